# SPDX-License-Identifier: Apache-2.0
"""What is going on in a cloudlet: Instances, Jobs, leases, and their state tables."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import ceil

from pycloud.core.model.fleet import UNTOLD
from pycloud.core.model.identifiers import (
    DeviceId,
    DomainId,
    HostId,
    InstanceId,
    JobId,
    Principal,
    ServiceId,
    ServiceVMId,
)
from pycloud.errors import IllegalTransition


class InstanceState(StrEnum):
    """Where an Instance stands; `INSTANCE_TRANSITIONS` says what may follow."""

    REQUESTED = "requested"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    MIGRATING = "migrating"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_I = InstanceState
INSTANCE_TRANSITIONS: dict[InstanceState, frozenset[InstanceState]] = {
    _I.REQUESTED: frozenset({_I.STARTING, _I.STOPPING, _I.FAILED}),
    _I.STARTING: frozenset({_I.RUNNING, _I.STOPPING, _I.FAILED}),
    _I.RUNNING: frozenset({_I.PAUSED, _I.MIGRATING, _I.STOPPING, _I.FAILED}),
    _I.PAUSED: frozenset({_I.RUNNING, _I.MIGRATING, _I.STOPPING, _I.FAILED}),
    _I.MIGRATING: frozenset({_I.RUNNING, _I.PAUSED, _I.STOPPING, _I.FAILED}),
    _I.STOPPING: frozenset({_I.STOPPED, _I.FAILED}),
    _I.STOPPED: frozenset(),
    _I.FAILED: frozenset({_I.STOPPING}),
}
LIVE_STATES = frozenset(
    {_I.REQUESTED, _I.STARTING, _I.RUNNING, _I.PAUSED, _I.MIGRATING, _I.STOPPING}
)
"""States in which an Instance may hold a domain, a disk, ports or capacity."""


class StartMethod(StrEnum):
    """How an Instance came to run, fastest first."""

    WARM = "warm"
    CLONE = "clone"
    RESTORE = "restore"
    COLD = "cold"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A guest TCP port published on a host port."""

    guest_port: int
    host_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of a start, in milliseconds since the request."""

    name: str
    begin_ms: float
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why something failed: a stable code and a message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One running copy of a ServiceVM.

    `users` counts those who started or joined and did not stop yet. `address` is
    where clients reach it: with user-mode networking the published address and
    `ports`; on a bridge the guest's own address.
    """

    id: InstanceId
    service_id: ServiceId
    service_vm_id: ServiceVMId
    state: InstanceState = InstanceState.REQUESTED
    host_id: HostId
    domain_id: DomainId | None = None
    vcpus: int
    memory_mib: int
    service_port: int
    address: str | None = None
    ports: tuple[PortMapping, ...] = ()
    users: int = 1
    sharing_limit: int = 1
    owner: Principal
    device_id: DeviceId | None = None
    start_method: StartMethod | None = None
    timeline: tuple[Phase, ...] = ()
    failure: Failure | None = None
    serial_output: str = ""
    """The end of the guest's serial output when a start failed."""
    job_id: JobId
    """The Job that starts or stops it at present, or did last."""
    idle_timeout_s: int | None = None
    idle_at: datetime | None = None
    """Stopped when this passes and no user is left; renewed by use."""
    expires_at: datetime | None = None
    """Stopped when this passes, whoever uses it."""
    created_at: datetime
    updated_at: datetime
    generation: int = 0

    def published_port(self) -> int | None:
        """Return the port at which clients reach the service port, None if they cannot.

        On a bridge it is the service port itself, at the guest's own address.
        """
        if self.state not in LIVE_STATES:
            return None
        for mapping in self.ports:
            if mapping.guest_port == self.service_port:
                return mapping.host_port
        return self.service_port if self.address is not None and not self.ports else None

    def check_transition(self, wanted: InstanceState) -> None:
        """Raise IllegalTransition unless the table allows going to `wanted`."""
        if wanted not in INSTANCE_TRANSITIONS[self.state]:
            raise IllegalTransition("instance", self.id, state=self.state, wanted=wanted)


class JobKind(StrEnum):
    """The long operations; each has its steps registered under this name."""

    SERVICE_ADD = "service.add"
    SERVICE_PREPARE = "service.prepare"
    SERVICE_IMPORT = "service.import"
    SERVICE_EXPORT = "service.export"
    SERVICE_REMOVE = "service.remove"
    INSTANCE_START = "instance.start"
    INSTANCE_STOP = "instance.stop"
    WARM_FILL = "warm.fill"


class JobState(StrEnum):
    """Where a Job stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage has come: `done` of `total` in `unit`; total 0 means unknown."""

    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A long operation: durable, leased to one server at a time, undone after a crash.

    `arguments` and `result` are flat string mappings; `stage` is the name of the
    step that runs or ran last. `lease_owner` and `lease_expires_at`, a time of that
    server's wall clock, are set while a server works on it.
    """

    id: JobId
    kind: JobKind
    state: JobState = JobState.QUEUED
    arguments: dict[str, str] = field(default_factory=dict)
    resources: tuple[str, ...] = ()
    """What it works on, as `<kind>/<id>`."""
    stage: str = ""
    progress: Progress = Progress()
    may_cancel: bool = True
    cancel_requested: bool = False
    host_id: HostId = UNTOLD
    """Where it has to be worked on: by a server of the host whose guests and files it moves."""
    created_by: Principal
    lease_owner: str = ""
    lease_expires_at: datetime | None = None
    attempts: int = 0
    result: dict[str, str] = field(default_factory=dict)
    failure: Failure | None = None
    """Why it failed or was cancelled. Set before the first undo, while it is still RUNNING:
    such a Job is being undone, and whoever takes it over can only undo it again."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    generation: int = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_JOB_STATES

    def left_s(self, now: datetime) -> int | None:
        """Estimate how long it still takes; None while nothing is known.

        As if all of it went on as evenly as what `progress` counts.
        """
        progress = self.progress
        known = self.state is JobState.RUNNING and 0 < progress.done <= progress.total
        if not known or self.started_at is None:
            return None
        passed_s = max((now - self.started_at).total_seconds(), 0.0)
        return ceil(passed_s * (progress.total - progress.done) / progress.done)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortLease:
    """A host port claimed by adding this record; `id` is `<host_id>:<port>`.

    `holder` is the InstanceId (or a WarmDomain's or Job's id) that uses it; empty means
    the port was found taken by another program and is left alone until `blocked_until`.
    """

    id: str
    port: int
    host_id: HostId
    holder: str
    blocked_until: datetime | None = None
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmDomain:
    """A copy of a ServiceVM, loaded and paused, that waits to become an Instance.

    Its id is also the InstanceId under which its disk and domain were made, and the
    Instance that claims it takes that id over, so nothing has to be renamed.
    """

    id: InstanceId
    service_id: ServiceId
    service_vm_id: ServiceVMId
    host_id: HostId
    domain_id: DomainId
    memory_mib: int
    vcpus: int
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A note for one device about one Service, delivered once."""

    id: str
    device_id: DeviceId
    service_id: ServiceId
    message: str
    params: dict[str, str] = field(default_factory=dict)
    created_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentReply:
    """The reply given to a request with an Idempotency-Key, kept for repeats.

    `status` 0 means that the first request is still being worked on.
    """

    id: str
    request_digest: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    created_at: datetime
    expires_at: datetime
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, in the order of `sequence` (given by the store)."""

    sequence: int = 0
    time: datetime
    kind: str
    """`service`, `instance`, `job`, `app`, `package`, `cloudlet`."""
    action: str
    resource: str
    actor: Principal
    data: dict[str, str] = field(default_factory=dict)
