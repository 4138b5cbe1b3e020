# SPDX-License-Identifier: Apache-2.0
"""Everything the core needs from outside, as protocols in the core's own words.

What crosses a port is content ids, streams and specs, never a path of this
machine: a Host may be elsewhere. Adapters translate every error of their
driver into the tree of `pycloud.errors` at their own boundary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Generic, Protocol, TypeVar

from pycloud.core.model.catalog import (
    App,
    BlobRef,
    DiskFormat,
    MachineSpec,
    MemoryState,
    OsType,
    Package,
    Readiness,
    Service,
    ServiceDraft,
    ServiceVM,
    StoredDisk,
    Upload,
)
from pycloud.core.model.fleet import (
    DomainInfo,
    Host,
    HostMetadata,
    HypervisorFacts,
    Peer,
    StorageFacts,
)
from pycloud.core.model.identifiers import BlobId, DomainId, InstanceId
from pycloud.core.model.runtime import (
    Event,
    IdempotentReply,
    Instance,
    Job,
    Message,
    PortLease,
    PortMapping,
    WarmDomain,
)

R = TypeVar("R")
Report = Callable[[int, int], None]
"""Progress callback `(done, total)` in the unit of the operation; it may raise
JobCancelled, which every adapter lets pass after cleaning up."""


# -- time ---------------------------------------------------------------------


class Clock(Protocol):
    """Time, so that nothing else asks the operating system for it."""

    def now(self) -> datetime:
        """Return the present as an aware UTC datetime."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin that never goes back."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Wait; only for polling with a deadline."""
        ...


# -- records -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Generic[R]):
    """One page of records and the cursor of the next page, None at the end."""

    items: tuple[R, ...]
    next_cursor: str | None


class Repository(Protocol[R]):
    """Records of one kind, each with an `id` and a `generation`.

    Every write is durable before the call returns. Records are ordered by
    (`created_at`, `id`). Raises StoreUnavailable when the store cannot be reached.
    """

    def add(self, record: R) -> R:
        """Store a new record as generation 1 and return it.

        Raises DuplicateRecord if the id is taken: adding is how ids are claimed.
        """
        ...

    def get(self, record_id: str) -> R:
        """Return the record. Raises NotFound."""
        ...

    def replace(self, record: R) -> R:
        """Write if the stored generation equals the record's; return it one higher.

        Raises StaleRecord if somebody was faster, NotFound if it is gone.
        """
        ...

    def remove(self, record_id: str, *, generation: int | None = None) -> None:
        """Remove the record; nothing happens if it is gone already.

        With `generation`: raises StaleRecord if the stored one differs, NotFound
        if the record is gone (so that exactly one of several callers succeeds).
        """
        ...

    def find(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 500,
        cursor: str | None = None,
    ) -> Slice[R]:
        """Return records whose indexed fields equal `where`, at most `limit` of them.

        Raises InvalidInput for a field that is not indexed or a broken cursor.
        """
        ...

    def count(self, where: Mapping[str, str] | None = None) -> int:
        """Count the records whose indexed fields equal `where`."""
        ...

    def revision(self) -> int:
        """Return a number that changes with every write to this kind, by any server."""
        ...


class EventLog(Protocol):
    """The events of this cloudlet in one durable order; old ones are dropped."""

    def append(self, event: Event) -> Event:
        """Store the event and return it with the next sequence number."""
        ...

    def after(self, sequence: int, *, limit: int, kinds: Sequence[str] = ()) -> tuple[Event, ...]:
        """Return events with a higher sequence number, oldest first."""
        ...

    def latest(self) -> int:
        """Return the highest sequence number given so far, 0 if none."""
        ...

    def trim(self, *, keep: int) -> None:
        """Drop all but the newest `keep` events."""
        ...


class Store(Protocol):
    """All records of a cloudlet. Several servers may share one store."""

    services: Repository[Service]
    service_vms: Repository[ServiceVM]
    apps: Repository[App]
    uploads: Repository[Upload]
    packages: Repository[Package]
    instances: Repository[Instance]
    jobs: Repository[Job]
    port_leases: Repository[PortLease]
    warm_domains: Repository[WarmDomain]
    hosts: Repository[Host]
    messages: Repository[Message]
    idempotent_replies: Repository[IdempotentReply]
    events: EventLog

    def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable."""
        ...

    def close(self) -> None:
        """Release connections; idempotent."""
        ...


# -- content -------------------------------------------------------------------


class Blobs(Protocol):
    """Immutable content by its SHA-256, and staging areas where it is made.

    A staging area belongs to one owner (the id of a Job or an Upload) and is made
    at its first use; names in it are ids. `adopt` moves a finished file into the
    content store atomically and durably. Raises InsufficientStorage on a full disk.
    """

    def append(
        self, area: str, name: str, stream: BinaryIO, *, offset_bytes: int, limit_bytes: int
    ) -> int:
        """Write the stream at `offset_bytes` of a staged file; return the bytes written.

        What lies behind the offset is cut off first. Durable on return. Raises
        QuotaExceeded beyond `limit_bytes` (of the whole file).
        """
        ...

    def open_staged(self, area: str, name: str) -> BinaryIO:
        """Open a staged file for reading; the caller closes it. Raises NotFound."""
        ...

    def adopt(self, area: str, name: str, *, report: Report | None = None) -> BlobRef:
        """Hash a staged file and move it into the content store; idempotent by content."""
        ...

    def discard(self, area: str) -> None:
        """Remove a staging area with all it holds; idempotent."""
        ...

    def areas(self) -> tuple[str, ...]:
        """Return the owners of all staging areas."""
        ...

    def open(self, blob_id: BlobId) -> BinaryIO:
        """Open content for reading; the caller closes it. Raises NotFound."""
        ...

    def verify(self, blob_id: BlobId) -> None:
        """Hash the content again. Raises BlobCorrupt, NotFound."""
        ...

    def remove(self, blob_id: BlobId) -> None:
        """Remove content; idempotent. The caller knows that nothing refers to it."""
        ...

    def stored(self) -> Iterator[BlobRef]:
        """Iterate over everything in the content store."""
        ...

    def storage(self) -> StorageFacts:
        """Return the room on the disk."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the header of a disk image says, read by our own parser."""

    format: DiskFormat
    virtual_size_bytes: int
    file_size_bytes: int


class Images(Protocol):
    """The gate for disk images: nothing from outside reaches a tool unparsed."""

    def inspect(self, area: str, name: str, *, declared: DiskFormat | None = None) -> ImageFacts:
        """Parse the header of a staged image.

        Raises ImageRefused (backing file, external data file, encryption, unknown
        feature, absurd geometry, format other than declared) or QuotaExceeded.
        """
        ...

    def normalise(
        self,
        area: str,
        name: str,
        target: str,
        *,
        declared: DiskFormat | None = None,
        report: Report | None = None,
    ) -> StoredDisk:
        """Convert a staged image that passes `inspect` into fresh qcow2 and adopt it.

        Inspects again; raw has to be declared. Runs under resource limits. `target`
        names the intermediate file in the same area. Raises ImageRefused, ToolFailed,
        InsufficientStorage.
        """
        ...

    def flatten(
        self, disk: StoredDisk, area: str, target: str, *, report: Report | None = None
    ) -> None:
        """Write a stored disk, all layers merged, as plain qcow2 into a staging area."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedPackage:
    """What a `.csvm` holds: files in the staging area and what it says of itself.

    `draft` is validated; `disk` and `state` are names in the area, `state` None if
    the package has no memory state.
    """

    draft: ServiceDraft
    disk: str
    state: str | None


class Packages(Protocol):
    """The `.csvm` format: a gzip tar of a disk image, a saved state and `service.json`."""

    def unpack(self, area: str, name: str, *, report: Report | None = None) -> UnpackedPackage:
        """Copy the members of a staged package, by exact name and with caps, beside it.

        Raises PackageRefused, QuotaExceeded, InsufficientStorage.
        """
        ...

    def pack(
        self,
        area: str,
        target: str,
        *,
        content: UnpackedPackage,
        report: Report | None = None,
    ) -> None:
        """Write a package from staged files, readable by old cloudlets."""
        ...


# -- machines --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNetwork:
    """QEMU's user-mode network: only the forwarded TCP ports reach the guest.

    The guest reaches nothing unless `outbound`, and never the host's loopback.
    """

    forwards: tuple[PortMapping, ...]
    outbound: bool = False


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

        It keeps its forwards; idempotent. Raises DomainNotFound.
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

    def save_image(self, spec: DomainSpec, area: str, *, state: str, disk: str) -> None:
        """Save a running plain domain as a libvirt save image and its flattened disk.

        Both become files in the staging area; the domain is gone afterwards.
        """
        ...

    def adopt_save_image(self, area: str, name: str, *, disk: StoredDisk) -> MemoryState:
        """Check a staged foreign save image and adopt it.

        Its domain description is only read, never used. Raises StateUnusable when
        the guest cannot be rebuilt here by our own builder.
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

    def accepts(self, domain_id: DomainId, host_port: int) -> bool:
        """Return whether the guest itself accepted a connection through a forward."""
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


class HostSensors(Protocol):
    """Load and size of the machine this server runs on."""

    def metadata(self) -> HostMetadata:
        """Return memory and processor figures, at most a second old."""
        ...

    def published_address(self) -> str:
        """Return the IPv4 address at which clients reach published ports."""
        ...


class Secrets(Protocol):
    """Small secrets of this cloudlet, readable by its owner only."""

    def read_or_create(self, name: str) -> str:
        """Return the secret of this name; a new random one is kept at the first call."""
        ...


# -- the network around -----------------------------------------------------------


class Discovery(Protocol):
    """Announce this cloudlet and see others."""

    def start(self) -> None:
        """Begin to announce and browse in the background; `problem` tells how it goes.

        A name that is taken or a network that is missing raises nothing: it is tried again.
        """
        ...

    def update_load(self, *, load_percent: int, services: Sequence[str]) -> None:
        """Change what the second service type tells about us; cheap, rate-limited."""
        ...

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets seen at present."""
        ...

    def problem(self) -> str | None:
        """Return why we are not announced, in words for the operator; None if all is well."""
        ...

    def stop(self) -> None:
        """Say goodbye and stop; idempotent."""
        ...
