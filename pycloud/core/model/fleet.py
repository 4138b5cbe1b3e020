# SPDX-License-Identifier: Apache-2.0
"""Where things run: this Cloudlet, its Hosts, and the Peers it sees."""

from dataclasses import dataclass
from datetime import datetime

from pycloud.core.model.identifiers import DomainId, HostId, InstanceId
from pycloud.errors import OnAnotherHost


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloudlet:
    """This node: identity, endpoint, capabilities."""

    name: str
    """No spaces; stable over reboots; phones keep credentials under it."""
    fqdn: str | None
    address: str
    port: int
    version: str


UNTOLD = HostId("")
"""In records from before hosts were told apart, when there was one: everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThisHost:
    """The Host that this server works on, one of those that may share a store.

    Servers on one data directory are of one Host. Records are for all to read; what they
    stand for (disks, memory states, staged files, guests, ports) is on one Host, and only a
    server there makes, changes, runs or removes it.
    """

    id: HostId

    def has(self, host_id: HostId) -> bool:
        """Return whether what a record stands for is here."""
        return host_id in (self.id, UNTOLD)

    def named(self, host_id: HostId) -> HostId:
        """Return the id of a Host that a record names, or that of this one."""
        return host_id or self.id

    def require(self, kind: str, identifier: str, host_id: HostId) -> None:
        """Return if this is here. Raises OnAnotherHost."""
        if not self.has(host_id):
            raise OnAnotherHost(kind, identifier, host_id=host_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one holder (an Instance or a waiting copy) takes from a Host."""

    holder: str
    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One hypervisor with a capacity; claims are added by compare-and-swap."""

    id: HostId
    vcpus: int
    memory_mib: int
    disk_gib: int
    max_instances: int
    claims: tuple[Claim, ...] = ()
    created_at: datetime
    generation: int = 0

    @property
    def claimed_memory_mib(self) -> int:
        """Memory promised to all claims together."""
        return sum(claim.memory_mib for claim in self.claims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another Cloudlet that was seen on the network."""

    name: str
    addresses: tuple[str, ...]
    port: int
    encryption: bool
    api_version: str | None = None
    tls: bool = False
    load_percent: int | None = None
    services: tuple[str, ...] = ()
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """The host's memory in bytes."""

    max_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The host's processors: use in per cent, clock in MHz, last-level cache in KiB."""

    max_cores: int
    usage_percent: float
    speed_mhz: float
    cache_kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMetadata:
    """What phones read to choose among cloudlets."""

    memory: MemoryInfo
    cpu: CpuInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorFacts:
    """What the hypervisor of a Host can do.

    `accelerator` is `kvm` or `tcg`; `accelerator_reason` says why. `machine` and
    `cpu_model` are the defaults for new guests.
    """

    uri: str
    libvirt_version: str
    emulator_version: str
    architecture: str
    accelerator: str
    accelerator_reason: str
    machine: str
    cpu_model: str
    instant_start: bool
    """Whether clones can be resumed from privately mapped memory."""
    overhead_mib: int
    """Host memory that each guest may cost beyond its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFacts:
    """The room on the disk that holds the data directory, in bytes."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainInfo:
    """A domain of ours as the hypervisor sees it."""

    id: DomainId
    owner: InstanceId
    """The Instance, waiting copy or Job for which it was made."""
    state: str
    """`running`, `paused`, `stalled` (a write found no room), `shutoff` or `crashed`."""
