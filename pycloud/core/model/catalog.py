# SPDX-License-Identifier: Apache-2.0
"""What a cloudlet offers: Services, the ServiceVMs that run them, and client Apps."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pycloud.core.model.fleet import UNTOLD
from pycloud.core.model.identifiers import (
    AppId,
    BlobId,
    HostId,
    JobId,
    PackageId,
    Principal,
    ServiceId,
    ServiceVMId,
    UploadId,
)


class OsType(StrEnum):
    """The guest's family; it decides clock, timers and device models."""

    LINUX = "linux"
    WINDOWS = "windows"


class Readiness(StrEnum):
    """What counts as an answer of the service port.

    AUTO takes any byte: a banner, or a reply to a plain HTTP request. HTTP wants
    an HTTP status line. TCP is content when the guest itself accepted the connection.
    """

    AUTO = "auto"
    HTTP = "http"
    TCP = "tcp"


class Architecture(StrEnum):
    """The guest's processor architecture, in QEMU's spelling."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class DiskFormat(StrEnum):
    """A disk image format that pycloud accepts."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A resource ask. `disk_gib` is the virtual size of the disk, rounded up."""

    vcpus: int
    memory_mib: int
    disk_gib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A catalogue entry that clients ask for.

    `sharing_limit` is how many users may share one Instance; 1 means nobody
    shares. `service_vm_id` names the current ServiceVM. `min_memory_mib` is what
    the guest cannot do without, `ideal_memory_mib` what it is started with.
    """

    id: ServiceId
    version: str = "1"
    description: str = ""
    tags: tuple[str, ...] = ()
    port: int
    sharing_limit: int = 1
    vcpus: int = 1
    min_memory_mib: int
    ideal_memory_mib: int
    os_type: OsType = OsType.LINUX
    readiness: Readiness = Readiness.AUTO
    warm_count: int | None = None
    """Waiting copies kept for this Service; None leaves it to the settings."""
    idle_timeout_s: int | None = None
    """An Instance nobody uses is stopped after this; None leaves it to the settings."""
    max_lifetime_s: int | None = None
    service_vm_id: ServiceVMId | None = None
    created_at: datetime
    updated_at: datetime
    generation: int = 0

    @property
    def flavor(self) -> Flavor:
        """What one Instance of this Service is given."""
        return Flavor(vcpus=self.vcpus, memory_mib=self.ideal_memory_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """Content in the blob store: its digest and its length."""

    id: BlobId
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDisk:
    """A normalised, read-only disk image: qcow2 that names no other file.

    `backing` is the layer below, if this one is only a delta; the chain is put
    together when a VM is started, so that content never depends on a path.
    """

    blob: BlobRef
    virtual_size_bytes: int
    backing: BlobRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """The virtual machine a guest was made with; a memory state only fits this one.

    `machine` is a versioned QEMU machine type (`pc-i440fx-7.2`), `cpu_model` a
    QEMU CPU model, `emulator_version` the QEMU that wrote the memory state.
    """

    architecture: Architecture = Architecture.X86_64
    machine: str
    cpu_model: str
    accelerator: str
    """`kvm` or `tcg`."""
    emulator_version: str = ""


class MemoryKind(StrEnum):
    """How a memory state is stored.

    TEMPLATE: a RAM file that clones map privately, plus a small device state.
    SAVE_IMAGE: a libvirt save image, restored through a rewritten header.
    """

    TEMPLATE = "template"
    SAVE_IMAGE = "save_image"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryState:
    """The saved memory of a guest whose service was answering.

    For TEMPLATE `memory` is the RAM file and `devices` the device stream; for
    SAVE_IMAGE `memory` is the whole save image and `devices` is None. `disk` is the
    disk as it stood at that moment: the only one this memory may be resumed on.
    """

    kind: MemoryKind
    memory: BlobRef
    devices: BlobRef | None = None
    disk: StoredDisk
    memory_mib: int
    vcpus: int
    machine: MachineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceVM:
    """The stored, startable VM of a Service; immutable but for its memory state."""

    id: ServiceVMId
    service_id: ServiceId
    disk: StoredDisk
    machine: MachineSpec
    memory: MemoryState | None = None
    source: str = ""
    """Where it came from, for people: a file name, never a path."""
    host_id: HostId = UNTOLD
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A client package (an APK, say) that uses a Service.

    `name` is used as a file name by phones; `md5sum` is what old phones check.
    """

    id: AppId
    name: str
    service_id: ServiceId | None = None
    description: str = ""
    package_name: str = ""
    app_version: str = ""
    os_name: str = "Android"
    min_os_version: str = ""
    tags: tuple[str, ...] = ()
    file_name: str
    blob: BlobRef
    md5sum: str
    host_id: HostId = UNTOLD
    created_at: datetime
    updated_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that a client is sending in pieces.

    `offset_bytes` bytes have arrived and are on disk. The bytes lie in the staging
    area named by the id; whoever consumes them discards the area and the record.
    """

    id: UploadId
    file_name: str
    size_bytes: int
    offset_bytes: int = 0
    created_by: Principal
    host_id: HostId = UNTOLD
    created_at: datetime
    expires_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An exported Service, ready for download until `expires_at`."""

    id: PackageId
    service_id: ServiceId
    file_name: str
    blob: BlobRef
    job_id: JobId
    host_id: HostId = UNTOLD
    created_at: datetime
    expires_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDraft:
    """What an operator says about a Service before it is stored."""

    id: ServiceId
    version: str = "1"
    description: str = ""
    tags: tuple[str, ...] = field(default=())
    port: int
    sharing_limit: int = 1
    vcpus: int = 1
    min_memory_mib: int = 128
    ideal_memory_mib: int = 256
    os_type: OsType = OsType.LINUX
    readiness: Readiness = Readiness.AUTO
    warm_count: int | None = None
    idle_timeout_s: int | None = None
    max_lifetime_s: int | None = None
