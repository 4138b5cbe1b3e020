# SPDX-License-Identifier: Apache-2.0
"""Ports for virtual machines: run them, capture their memory, see and probe them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pycloud.core.model.catalog import (
    MachineSpec,
    MemoryState,
    OsType,
    Readiness,
    StoredDisk,
)
from pycloud.core.model.fleet import (
    DomainInfo,
    HypervisorFacts,
)
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import (
    PortMapping,
)
from pycloud.core.ports.content import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNetwork:
    """QEMU's user-mode network: only the forwarded TCP ports reach the guest.

    The guest reaches nothing: QEMU cannot let it out without also letting it reach
    every service on the host's loopback. A guest that has to go out joins a bridge.
    """

    forwards: tuple[PortMapping, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgedNetwork:
    """The guest is a station on a bridge of the host and gets its own address there."""

    bridge: str
    mac_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSpec:
    """One virtual machine to run.

    `owner` names the copy-on-write disk and tags the domain, so that recovery knows
    whose it is; `domain_id` is chosen by the caller and makes `start` idempotent.
    `memory` None means a cold boot.
    """

    owner: InstanceId
    domain_id: DomainId
    machine: MachineSpec
    os_type: OsType
    vcpus: int
    memory_mib: int
    disk: StoredDisk
    network: UserNetwork | BridgedNetwork
    memory: MemoryState | None = None


PhaseSink = Callable[[str], None]
"""Told the name of a phase at the moment at which it ends."""


class Hypervisor(Protocol):
    """Virtual machines on one Host; a domain that is not tagged as ours is never touched.

    Every `start*` first makes the copy-on-write disk named by `spec.owner` on the
    read-only layers of `spec.disk`, and removes disk and domain again if it fails.
    """

    def facts(self) -> HypervisorFacts:
        """Return what this hypervisor can do; cached. Raises HypervisorUnavailable."""
        ...

    def start(self, spec: DomainSpec, *, on_phase: PhaseSink) -> None:
        """Run a domain; return when it executes, not when its service answers.

        Raises PortInUse, StateUnusable (boot cold instead), HypervisorError.
        """
        ...

    def start_held(self, spec: DomainSpec) -> None:
        """Load a domain from `spec.memory` and leave it paused, without forwards."""
        ...

    def release(
        self, domain_id: DomainId, forwards: Sequence[PortMapping], *, on_phase: PhaseSink
    ) -> None:
        """Publish the ports of a held domain and let it run.

        Raises PortInUse (the domain stays held), DomainNotFound.
        """
        ...

    def hold(self, domain_id: DomainId) -> None:
        """Pause a domain that was released, so that it waits to be released again.

        It keeps its forwards, which no client can use meanwhile; idempotent. Raises
        DomainNotFound.
        """
        ...

    def shut_down(self, domain_id: DomainId, *, timeout_s: float) -> bool:
        """Ask the guest to power off; True if it did in time or was gone already."""
        ...

    def destroy(self, domain_id: DomainId, owner: InstanceId) -> None:
        """End a domain at once and remove its disk; idempotent."""
        ...

    def pause(self, domain_id: DomainId) -> None:
        """Stop the guest's processors; idempotent. Raises DomainNotFound."""
        ...

    def resume(self, domain_id: DomainId) -> None:
        """Let a paused guest go on; idempotent. Raises DomainNotFound."""
        ...

    def domains(self) -> tuple[DomainInfo, ...]:
        """Return all domains of ours, whatever their state."""
        ...

    def disk_owners(self) -> tuple[InstanceId, ...]:
        """Return the owners of all copy-on-write disks, with or without a domain."""
        ...


class MemoryCapture(Protocol):
    """Make memory states from guests whose service answers."""

    def start_template(self, spec: DomainSpec, area: str) -> None:
        """Boot a domain cold, its RAM on a file in the staging area `area`."""
        ...

    def capture_template(self, spec: DomainSpec, area: str) -> MemoryState:
        """Stop a domain made by `start_template`, adopt its memory, devices and disk.

        The domain is gone afterwards. Raises HypervisorError.
        """
        ...

    def save_image(
        self,
        spec: DomainSpec,
        area: str,
        *,
        state: str,
        disk: str,
        report: Report | None = None,
    ) -> None:
        """Save a running plain domain as a libvirt save image and its flattened disk.

        Both become files in the staging area; the domain is gone afterwards. Progress is
        in bytes of the virtual disk.
        """
        ...

    def adopt_save_image(
        self, area: str, name: str, *, disk: StoredDisk, report: Report | None = None
    ) -> MemoryState:
        """Check a staged foreign save image and adopt it.

        Its domain description is only read, never used. Progress is in bytes of the
        image. Raises StateUnusable when the guest cannot be rebuilt here by our own builder.
        """
        ...


class GuestView(Protocol):
    """What can be seen of a running guest from outside."""

    def serial_tail(self, owner: InstanceId, *, limit_bytes: int) -> bytes:
        """Return the end of the guest's serial output, b"" if there is none."""
        ...

    def is_alive(self, domain_id: DomainId) -> bool:
        """Return whether the guest still executes or is paused by us: not crashed, not gone."""
        ...

    def accepts(self, domain_id: DomainId, port: int) -> bool:
        """Return whether the guest itself accepted a connection that the caller has made.

        `port` is the host port of a forward, whose far side is looked at; on a bridge it is
        the guest's own, and a connection there is one with the guest.
        """
        ...

    def is_connected(self, domain_id: DomainId) -> bool:
        """Return whether a client has a connection open to a published port.

        Never on a bridge, where connections pass by the emulator, nor if there is no domain.
        """
        ...

    def address(self, domain_id: DomainId) -> str | None:
        """Return a bridged guest's IPv4 address once it is known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTarget:
    """A service port to be waited for."""

    address: str
    port: int
    readiness: Readiness
    domain_id: DomainId


class Probe(Protocol):
    """Waits for the first answer of a service."""

    def wait(self, target: ProbeTarget, *, timeout_s: float, is_alive: Callable[[], bool]) -> None:
        """Return at the first answer.

        `is_alive` is asked now and then and may raise JobCancelled. Raises
        ServiceNotReady at the deadline, GuestFailed if it says no.
        """
        ...
