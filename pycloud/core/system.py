# SPDX-License-Identifier: Apache-2.0
"""The state of this cloudlet itself: its load, its means, and whether all of it works."""

from collections.abc import Callable
from dataclasses import dataclass

from pycloud.core.model.fleet import (
    Cloudlet,
    Host,
    HostMetadata,
    HypervisorFacts,
    Peer,
    StorageFacts,
)
from pycloud.core.placement import Placement
from pycloud.core.ports import Blobs, Discovery, HostSensors, Hypervisor, Store
from pycloud.errors import CloudletError

_LOW_DISK_BYTES = 256 * 1024 * 1024
CHECKED = ("store", "hypervisor", "disk")
"""What `System.checks` looks at, in that order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that has to work, whether it does, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What can be asked about this cloudlet. Safe to use from several threads."""

    cloudlet: Cloudlet
    store: Store
    hypervisor_port: Hypervisor
    blobs: Blobs
    sensors: HostSensors
    placement: Placement
    discovery: Discovery

    def metadata(self) -> HostMetadata:
        """Return memory and processor figures."""
        return self.sensors.metadata()

    def hypervisor(self) -> HypervisorFacts:
        """Return what the hypervisor can do. Raises HypervisorUnavailable."""
        return self.hypervisor_port.facts()

    def storage(self) -> StorageFacts:
        """Return the room on the disk that holds the data directory."""
        return self.blobs.storage()

    def host(self) -> Host:
        """Return the Host with its claims."""
        return self.placement.host()

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets seen on the network."""
        return self.discovery.peers()

    def checks(self) -> tuple[Check, ...]:
        """Look at everything a start depends on; only for callers that may wait for libvirt.

        Discovery is told but not required.
        """
        looks = (self._check_store, self._check_hypervisor, self._check_disk)
        return tuple(_check(name, look) for name, look in zip(CHECKED, looks, strict=True))

    def _check_store(self) -> str:
        self.store.ping()
        return "answers"

    def _check_hypervisor(self) -> str:
        self.hypervisor_port.domains()
        return self.hypervisor_port.facts().accelerator

    def _check_disk(self) -> str:
        free_bytes = self.blobs.storage().free_bytes
        if free_bytes < _LOW_DISK_BYTES:
            raise CloudletError(f"only {free_bytes} bytes are free")
        return f"{free_bytes} bytes free"


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=look())
    except CloudletError as exc:
        return Check(name=name, ok=False, detail=exc.message)
