# SPDX-License-Identifier: Apache-2.0
"""Valid records for tests: `a_service(port=80)` is a Service that is right but for its port.

What is not given has a sensible default; ids that must differ between records do, and
count up, so that records made later also sort later. Nothing here touches a store.
"""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypedDict, Unpack

from pycloud.core.model.catalog import (
    App,
    Architecture,
    BlobRef,
    MachineSpec,
    MemoryKind,
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
from pycloud.core.model.fleet import Claim, Host
from pycloud.core.model.identifiers import (
    AppId,
    BlobId,
    DeviceId,
    DomainId,
    HostId,
    InstanceId,
    JobId,
    PackageId,
    Principal,
    ServiceId,
    ServiceVMId,
    UploadId,
)
from pycloud.core.model.runtime import (
    Event,
    Failure,
    IdempotentReply,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
    Message,
    Phase,
    PortLease,
    PortMapping,
    Progress,
    StartMethod,
)

A_MOMENT = datetime(2024, 5, 17, 12, 0, 0, 250_000, tzinfo=UTC)
"""When everything happened, unless a test says otherwise."""
ADMIN = Principal("admin")
HISTOGRAM = ServiceId("histogram")
THIS_HOST = HostId("local")

_NUMBERS = itertools.count(1)


def a_blob(number: int = 1, *, size_bytes: int = 4096) -> BlobRef:
    """Return a reference to content; equal numbers mean equal content."""
    return BlobRef(id=BlobId(f"{number:064x}"), size_bytes=size_bytes)


def a_disk(*, backing: BlobRef | None = None) -> StoredDisk:
    """Return a normalised disk of 8 MiB in 4 KiB of qcow2."""
    return StoredDisk(blob=a_blob(1), virtual_size_bytes=8 * 2**20, backing=backing)


def a_machine(*, accelerator: str = "tcg") -> MachineSpec:
    """Return the machine that guests of the tests were made with."""
    return MachineSpec(
        architecture=Architecture.X86_64,
        machine="pc-i440fx-7.2",
        cpu_model="qemu64",
        accelerator=accelerator,
        emulator_version="7.2.0",
    )


def a_memory_state(*, kind: MemoryKind = MemoryKind.TEMPLATE) -> MemoryState:
    """Return a memory state that fits `a_machine`."""
    return MemoryState(
        kind=kind,
        memory=a_blob(2, size_bytes=256 * 2**20),
        devices=a_blob(3) if kind is MemoryKind.TEMPLATE else None,
        disk=a_disk(backing=a_blob(4)),
        memory_mib=256,
        vcpus=1,
        machine=a_machine(),
    )


# -- the catalogue ------------------------------------------------------------------


class _ServiceDraftFields(TypedDict, total=False):
    id: ServiceId
    version: str
    description: str
    tags: tuple[str, ...]
    port: int
    sharing_limit: int
    vcpus: int
    min_memory_mib: int
    ideal_memory_mib: int
    os_type: OsType
    readiness: Readiness
    warm_count: int | None
    idle_timeout_s: int | None
    max_lifetime_s: int | None


class _ServiceFields(_ServiceDraftFields, total=False):
    service_vm_id: ServiceVMId | None
    created_at: datetime
    updated_at: datetime
    generation: int


def a_service(**overrides: Unpack[_ServiceFields]) -> Service:
    """Return a Service, `histogram` on port 8080."""
    service = Service(
        id=HISTOGRAM,
        description="Counts the bytes of a file",
        tags=("demo",),
        port=8080,
        min_memory_mib=128,
        ideal_memory_mib=256,
        created_at=A_MOMENT,
        updated_at=A_MOMENT,
    )
    return replace(service, **overrides)


def a_service_draft(**overrides: Unpack[_ServiceDraftFields]) -> ServiceDraft:
    """Return what an operator says about the Service `histogram`."""
    return replace(ServiceDraft(id=HISTOGRAM, port=8080), **overrides)


class _ServiceVMFields(TypedDict, total=False):
    id: ServiceVMId
    service_id: ServiceId
    disk: StoredDisk
    machine: MachineSpec
    memory: MemoryState | None
    source: str
    host_id: HostId
    created_at: datetime
    generation: int


def a_service_vm(**overrides: Unpack[_ServiceVMFields]) -> ServiceVM:
    """Return a ServiceVM of `histogram` without a memory state."""
    service_vm = ServiceVM(
        id=ServiceVMId(_next("vm")),
        service_id=HISTOGRAM,
        disk=a_disk(),
        machine=a_machine(),
        source="histogram.qcow2",
        created_at=A_MOMENT,
    )
    return replace(service_vm, **overrides)


class _AppFields(TypedDict, total=False):
    id: AppId
    name: str
    service_id: ServiceId | None
    description: str
    package_name: str
    app_version: str
    os_name: str
    min_os_version: str
    tags: tuple[str, ...]
    file_name: str
    blob: BlobRef
    md5sum: str
    host_id: HostId
    created_at: datetime
    updated_at: datetime
    generation: int


def an_app(**overrides: Unpack[_AppFields]) -> App:
    """Return an App that uses `histogram`."""
    app = App(
        id=AppId(_next("app")),
        name="Histogram",
        service_id=HISTOGRAM,
        package_name="org.example.histogram",
        app_version="1.0",
        file_name="histogram.apk",
        blob=a_blob(5),
        md5sum="0123456789abcdef0123456789abcdef",
        created_at=A_MOMENT,
        updated_at=A_MOMENT,
    )
    return replace(app, **overrides)


class _UploadFields(TypedDict, total=False):
    id: UploadId
    file_name: str
    size_bytes: int
    offset_bytes: int
    created_by: Principal
    host_id: HostId
    created_at: datetime
    expires_at: datetime
    generation: int


def an_upload(**overrides: Unpack[_UploadFields]) -> Upload:
    """Return an upload of 1 MiB of which nothing has arrived."""
    upload = Upload(
        id=UploadId(_next("upload")),
        file_name="disk.qcow2",
        size_bytes=2**20,
        created_by=ADMIN,
        created_at=A_MOMENT,
        expires_at=A_MOMENT + timedelta(days=1),
    )
    return replace(upload, **overrides)


class _PackageFields(TypedDict, total=False):
    id: PackageId
    service_id: ServiceId
    file_name: str
    blob: BlobRef
    job_id: JobId
    host_id: HostId
    created_at: datetime
    expires_at: datetime
    generation: int


def a_package(**overrides: Unpack[_PackageFields]) -> Package:
    """Return an exported `histogram`."""
    package = Package(
        id=PackageId(_next("package")),
        service_id=HISTOGRAM,
        file_name="histogram.csvm",
        blob=a_blob(6),
        job_id=JobId("export"),
        created_at=A_MOMENT,
        expires_at=A_MOMENT + timedelta(hours=1),
    )
    return replace(package, **overrides)


# -- what is going on -----------------------------------------------------------------


class _InstanceFields(TypedDict, total=False):
    id: InstanceId
    service_id: ServiceId
    service_vm_id: ServiceVMId
    state: InstanceState
    host_id: HostId
    domain_id: DomainId | None
    vcpus: int
    memory_mib: int
    service_port: int
    address: str | None
    ports: tuple[PortMapping, ...]
    users: int
    sharing_limit: int
    owner: Principal
    device_id: DeviceId | None
    start_method: StartMethod | None
    timeline: tuple[Phase, ...]
    failure: Failure | None
    job_id: JobId
    idle_timeout_s: int | None
    idle_at: datetime | None
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime
    generation: int


def an_instance(**overrides: Unpack[_InstanceFields]) -> Instance:
    """Return a requested Instance of `histogram` that has nothing yet."""
    instance = Instance(
        id=InstanceId(_next("instance")),
        service_id=HISTOGRAM,
        service_vm_id=ServiceVMId("vm"),
        host_id=THIS_HOST,
        vcpus=1,
        memory_mib=256,
        service_port=8080,
        owner=ADMIN,
        job_id=JobId("start"),
        created_at=A_MOMENT,
        updated_at=A_MOMENT,
    )
    return replace(instance, **overrides)


class _JobFields(TypedDict, total=False):
    id: JobId
    kind: JobKind
    state: JobState
    arguments: dict[str, str]
    resources: tuple[str, ...]
    stage: str
    progress: Progress
    may_cancel: bool
    cancel_requested: bool
    created_by: Principal
    lease_owner: str
    lease_expires_at: datetime | None
    attempts: int
    result: dict[str, str]
    failure: Failure | None
    host_id: HostId
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    generation: int


def a_job(**overrides: Unpack[_JobFields]) -> Job:
    """Return a queued Job that starts an Instance."""
    job = Job(
        id=JobId(_next("job")),
        kind=JobKind.INSTANCE_START,
        created_by=ADMIN,
        created_at=A_MOMENT,
    )
    return replace(job, **overrides)


class _PortLeaseFields(TypedDict, total=False):
    id: str
    port: int
    host_id: HostId
    holder: str
    blocked_until: datetime | None
    created_at: datetime
    generation: int


def a_port_lease(**overrides: Unpack[_PortLeaseFields]) -> PortLease:
    """Return a lease of port 20000, with the id that belongs to host and port."""
    lease = PortLease(id="", port=20000, host_id=THIS_HOST, holder="instance", created_at=A_MOMENT)
    lease = replace(lease, **overrides)
    return lease if lease.id else replace(lease, id=f"{lease.host_id}:{lease.port}")


class _MessageFields(TypedDict, total=False):
    id: str
    device_id: DeviceId
    service_id: ServiceId
    message: str
    params: dict[str, str]
    created_at: datetime
    generation: int


def a_message(**overrides: Unpack[_MessageFields]) -> Message:
    """Return a note for the device `phone` about `histogram`."""
    message = Message(
        id=_next("message"),
        device_id=DeviceId("phone"),
        service_id=HISTOGRAM,
        message="migrated",
        created_at=A_MOMENT,
    )
    return replace(message, **overrides)


class _IdempotentReplyFields(TypedDict, total=False):
    id: str
    request_digest: str
    status: int
    headers: dict[str, str]
    body: str
    created_at: datetime
    expires_at: datetime
    generation: int


def an_idempotent_reply(**overrides: Unpack[_IdempotentReplyFields]) -> IdempotentReply:
    """Return the place of a reply to a request that is still being worked on."""
    reply = IdempotentReply(
        id=_next("key"),
        request_digest=f"{0:064x}",
        created_at=A_MOMENT,
        expires_at=A_MOMENT + timedelta(days=1),
    )
    return replace(reply, **overrides)


class _EventFields(TypedDict, total=False):
    sequence: int
    time: datetime
    kind: str
    action: str
    resource: str
    actor: Principal
    data: dict[str, str]


def an_event(**overrides: Unpack[_EventFields]) -> Event:
    """Return the news that an Instance was started, not stored yet."""
    event = Event(
        time=A_MOMENT, kind="instance", action="started", resource="instance/1", actor=ADMIN
    )
    return replace(event, **overrides)


# -- where it goes on -------------------------------------------------------------------


class _HostFields(TypedDict, total=False):
    id: HostId
    vcpus: int
    memory_mib: int
    disk_gib: int
    max_instances: int
    claims: tuple[Claim, ...]
    created_at: datetime
    generation: int


def a_host(**overrides: Unpack[_HostFields]) -> Host:
    """Return an empty Host with room for eight Instances."""
    host = Host(
        id=THIS_HOST,
        vcpus=4,
        memory_mib=8192,
        disk_gib=100,
        max_instances=8,
        created_at=A_MOMENT,
    )
    return replace(host, **overrides)


def _next(noun: str) -> str:
    return f"{noun}-{next(_NUMBERS):05d}"
