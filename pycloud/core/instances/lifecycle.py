# SPDX-License-Identifier: Apache-2.0
"""What callers may do with Instances. The long parts run as Jobs in `starting` and `stopping`."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import uuid4

from pycloud.core.catalog import Catalog
from pycloud.core.guests import Guests
from pycloud.core.instances.records import InstanceRecords
from pycloud.core.instances.starting import deadlines
from pycloud.core.jobs import Jobs
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.machines import domain_id_of
from pycloud.core.model.catalog import Service, ServiceVM
from pycloud.core.model.identifiers import (
    DeviceId,
    InstanceId,
    JobId,
    Principal,
    ServiceId,
)
from pycloud.core.model.runtime import Instance, InstanceState, Job, JobKind
from pycloud.core.ports import Slice, every
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import Conflict, DuplicateRecord, IllegalTransition, NotFound, StaleRecord

_JOINABLE = (InstanceState.RUNNING, InstanceState.STARTING, InstanceState.REQUESTED)
"""In the order in which a user is served soonest."""
_EXECUTING = (InstanceState.RUNNING, InstanceState.PAUSED)
_MOST_REMEMBERED = 10_000
_STARTING = frozenset({InstanceState.REQUESTED, InstanceState.STARTING})
_OVER = frozenset({InstanceState.STOPPED, InstanceState.FAILED})


class Join(StrEnum):
    """Whether a start may join a running Instance of a Service that allows sharing."""

    FRESH = "fresh"
    SHARE = "share"


class StopMode(StrEnum):
    """AT_ONCE ends the VM; GRACEFUL lets the guest power off first, within a deadline."""

    AT_ONCE = "at_once"
    GRACEFUL = "graceful"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """What a client asks for; `job_id` is for the Job if one has to be made, None for any."""

    service_id: ServiceId
    join: Join = Join.FRESH
    device_id: DeviceId | None = None
    job_id: JobId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The Instance and the Job that starts it; None when it was running already."""

    instance: Instance
    job: Job | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceOptions:
    """Deadlines of Instances whose Service says nothing; 0 means never."""

    idle_timeout_s: int
    max_lifetime_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """The Instances of this cloudlet. Safe to use from several threads and servers.

    They run on the Host that has their Service. Starting, joining, leaving and stopping can
    be asked for on any Host, as records and Jobs carry it over; what has to look at or touch
    a guest at once raises OnAnotherHost elsewhere.
    """

    records: InstanceRecords
    catalog: Catalog
    jobs: Jobs
    guests: Guests
    warm_pool: WarmPool
    options: InstanceOptions
    _sharing: threading.Lock = field(default_factory=threading.Lock, init=False, compare=False)
    _untimed: dict[ServiceId, int] = field(default_factory=dict, init=False, compare=False)
    """The revision at which no running Instance of a Service had an idle deadline."""

    # -- look ------------------------------------------------------------------------

    def instance(self, instance_id: InstanceId) -> Instance:
        """Return an Instance. Raises NotFound."""
        return self.records.get(instance_id)

    def instances(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Slice[Instance]:
        """Return a page of Instances, oldest first, finished ones included for a while."""
        return self.records.store.instances.find(where, limit=limit, cursor=cursor)

    def all_instances(self, where: Mapping[str, str] | None = None) -> Iterator[Instance]:
        """Iterate over every Instance, finished ones included for a while."""
        return every(self.records.store.instances, where)

    def serial_tail(self, instance_id: InstanceId, *, limit_bytes: int) -> bytes:
        """Return the end of the serial output, kept also when the start failed.

        Raises NotFound, OnAnotherHost.
        """
        instance = self.instance(instance_id)
        if instance.state in _OVER:
            return instance.serial_output.encode()[-limit_bytes:]
        self._require_here(instance)
        return self.guests.view.serial_tail(instance_id, limit_bytes=limit_bytes)

    # -- start and join ----------------------------------------------------------------

    def request_start(self, request: StartRequest, *, by: Principal) -> Started:
        """Join an Instance with room, or ask for a new one.

        Raises NotFound, Conflict (a Service without VM), DuplicateRecord for a `job_id` that
        was used before. A refusal for lack of room is found by the Job, which fails with
        CapacityExceeded.
        """
        subject = service, _ = self.catalog.startable(request.service_id)
        if request.join is Join.FRESH or service.sharing_limit <= 1:
            return self._start(subject, request, by)
        # Clients that ask at the same moment must find each other's Instance. Those of two
        # servers may miss it and get one each, which costs memory and breaks nothing.
        with self._sharing:
            return self._join(service) or self._start(subject, request, by)

    def _start(
        self, subject: tuple[Service, ServiceVM], request: StartRequest, by: Principal
    ) -> Started:
        service, service_vm = subject
        warm = self.warm_pool.claim(service, service_vm)
        instance_id = warm.id if warm is not None else InstanceId(uuid4().hex)
        instance = self._add(instance_id, subject, request, by)
        job = self.jobs.submit(
            JobRequest(
                id=instance.job_id,
                kind=JobKind.INSTANCE_START,
                arguments={
                    "instance_id": instance.id,
                    "warm": "true" if warm is not None else "false",
                },
                resources=(f"instance/{instance.id}", f"service/{service.id}"),
                created_by=by,
                host_id=instance.host_id,
            )
        )
        return Started(instance=instance, job=job)

    def _add(
        self,
        instance_id: InstanceId,
        subject: tuple[Service, ServiceVM],
        request: StartRequest,
        by: Principal,
    ) -> Instance:
        service, service_vm = subject
        now = self.records.clock.now()
        idle_s = _chosen(service.idle_timeout_s, self.options.idle_timeout_s)
        life_s = _chosen(service.max_lifetime_s, self.options.max_lifetime_s)
        instance = Instance(
            id=instance_id,
            service_id=service.id,
            service_vm_id=service_vm.id,
            host_id=self.guests.placement.this_host.named(service_vm.host_id),
            vcpus=service.vcpus,
            memory_mib=service.ideal_memory_mib,
            service_port=service.port,
            sharing_limit=service.sharing_limit,
            owner=by,
            device_id=request.device_id,
            job_id=request.job_id or JobId(uuid4().hex),
            idle_timeout_s=idle_s,
            expires_at=now + timedelta(seconds=life_s) if life_s is not None else None,
            created_at=now,
            updated_at=now,
        )
        stored = self.records.store.instances.add(deadlines(instance, now))
        self.records.record(stored, by=by)
        return stored

    def _join(self, service: Service) -> Started | None:
        for state in _JOINABLE:
            where = {"service_id": service.id, "state": state}
            for found in self.all_instances(where):
                joined = self._join_one(found, service)
                if joined is not None:
                    return joined
        return None

    def _join_one(self, instance: Instance, service: Service) -> Started | None:
        """Add a user unless the Instance is full, abandoned or about to end."""
        try:
            while instance.state in _JOINABLE and 0 < instance.users < service.sharing_limit:
                job = self._start_job(instance)
                if job is not None and (job.is_final or job.cancel_requested):
                    # It was published a moment ago, or it is not going to be.
                    newer = self.instance(instance.id)
                    if newer.generation == instance.generation:
                        return None
                    instance = newer
                    continue
                now = self.records.clock.now()
                wanted = deadlines(replace(instance, users=instance.users + 1), now)
                try:
                    joined = self.records.store.instances.replace(wanted)
                except StaleRecord:
                    instance = self.instance(instance.id)
                    continue
                return Started(instance=joined, job=job)
        except NotFound:
            # The Instance is gone, or its Job is not stored yet: start another one.
            return None
        return None

    def _start_job(self, instance: Instance) -> Job | None:
        return self.jobs.job(instance.job_id) if instance.state in _STARTING else None

    # -- pause and resume ---------------------------------------------------------------

    def pause(
        self, instance_id: InstanceId, *, generation: int | None = None, by: Principal
    ) -> Instance:
        """Stop the guest's processors; its memory stays.

        With `generation` only if it is still that one. Raises NotFound, StaleRecord,
        IllegalTransition, OnAnotherHost.
        """
        instance = _unless_changed(self.instance(instance_id), generation)
        instance.check_transition(InstanceState.PAUSED)
        self._require_here(instance)
        self.guests.hypervisor.pause(domain_id_of(instance_id))
        return self.records.move(instance_id, InstanceState.PAUSED, by=by)

    def resume(
        self, instance_id: InstanceId, *, generation: int | None = None, by: Principal
    ) -> Instance:
        """Let a paused guest go on; `generation` and errors as with `pause`."""
        instance = _unless_changed(self.instance(instance_id), generation)
        if instance.state is not InstanceState.PAUSED:
            raise IllegalTransition(
                "instance", instance_id, state=instance.state, wanted=InstanceState.RUNNING
            )
        self._require_here(instance)
        self.guests.hypervisor.resume(domain_id_of(instance_id))
        return self.records.move(instance_id, InstanceState.RUNNING, by=by)

    def _require_here(self, instance: Instance) -> None:
        self.guests.placement.this_host.require("instance", instance.id, instance.host_id)

    # -- stop --------------------------------------------------------------------------

    def leave(self, instance_id: InstanceId, *, by: Principal) -> Job | None:
        """Count one user less; the last one stops the Instance, and the Job is returned.

        Nobody can join between the last one's leaving and the stop. Raises NotFound,
        IllegalTransition if it is stopped already.
        """
        while True:
            instance = self.instance(instance_id)
            if instance.state not in (*_JOINABLE, InstanceState.PAUSED):
                return self.request_stop(instance_id, by=by)
            users = max(instance.users - 1, 0)
            try:
                if users == 0 and instance.state in _EXECUTING:
                    return self._stop(instance, StopMode.AT_ONCE, by)
                self.records.store.instances.replace(replace(instance, users=users))
            except StaleRecord:
                continue
            return self.request_stop(instance_id, by=by) if users == 0 else None

    def request_stop(
        self,
        instance_id: InstanceId,
        *,
        mode: StopMode = StopMode.AT_ONCE,
        generation: int | None = None,
        by: Principal,
    ) -> Job:
        """Stop an Instance whoever uses it; asking again returns the same Job.

        One that is starting is stopped by cancelling its start. With `generation` only if it
        is still that one. Raises NotFound, StaleRecord, IllegalTransition if it is over
        already.
        """
        while True:
            instance = _unless_changed(self.instance(instance_id), generation)
            if instance.state is InstanceState.STOPPING:
                return self._stop_job(instance, mode, by)
            if instance.state in _STARTING:
                job = self._cancel_start(instance, by)
                if job is not None and job.cancel_requested:
                    return job
                if job is not None:
                    continue
            instance.check_transition(InstanceState.STOPPING)
            try:
                return self._stop(instance, mode, by)
            except StaleRecord:
                continue

    def _cancel_start(self, instance: Instance, by: Principal) -> Job | None:
        """Cancel the Job that starts an Instance; None if there is none at work."""
        try:
            return self.jobs.cancel(instance.job_id, by=by)
        except NotFound:
            # The request died before it stored the Job, or is a moment away from it.
            return None
        except Conflict:
            job = self.jobs.wait(instance.job_id, timeout_s=1.0)
            return None if job.is_final else job

    def _stop_job(self, instance: Instance, mode: StopMode, by: Principal) -> Job:
        try:
            return self.jobs.job(instance.job_id)
        except NotFound:
            return self.submit_stop(instance, mode, by)

    def _stop(self, instance: Instance, mode: StopMode, by: Principal) -> Job:
        stopping = self.records.store.instances.replace(
            replace(
                instance,
                state=InstanceState.STOPPING,
                job_id=JobId(uuid4().hex),
                updated_at=self.records.clock.now(),
            )
        )
        self.records.record(stopping, by=by)
        return self.submit_stop(stopping, mode, by)

    def submit_stop(self, instance: Instance, mode: StopMode, by: Principal) -> Job:
        """Store the Job that stops an Instance in state STOPPING, under its `job_id`.

        Idempotent: of several callers one stores it and all return it.
        """
        request = JobRequest(
            id=instance.job_id,
            kind=JobKind.INSTANCE_STOP,
            arguments={"instance_id": instance.id, "mode": mode},
            resources=(f"instance/{instance.id}", f"service/{instance.service_id}"),
            created_by=by,
            may_cancel=False,
            host_id=instance.host_id,
        )
        try:
            return self.jobs.submit(request)
        except DuplicateRecord:
            return self.jobs.job(instance.job_id)

    # -- deadlines ------------------------------------------------------------------------

    def renew(self, instance_id: InstanceId) -> Instance:
        """Count its idle time anew, for who uses it in ways that cannot be seen from here.

        Raises NotFound, Conflict if it is stopping or over.
        """
        while True:
            instance = self.instance(instance_id)
            if instance.state in _OVER or instance.state is InstanceState.STOPPING:
                raise Conflict(f"instance {instance_id} is {instance.state}; start another one")
            renewed = deadlines(instance, self.records.clock.now())
            if renewed == instance:
                return instance
            try:
                return self.records.store.instances.replace(renewed)
            except StaleRecord:
                continue

    def touch(self, service_id: ServiceId, device_id: DeviceId) -> None:
        """Count a sign of life of a device as use of its Instances of a Service.

        Who joined a shared Instance is not known, so any device counts for those. Cheap
        when nothing has an idle deadline, because phones call it every 10 s.
        """
        revision = self.records.store.instances.revision()
        if self._untimed.get(service_id) == revision:
            return
        now = self.records.clock.now()
        is_timed = False
        for state in _EXECUTING:
            where = {"service_id": service_id, "state": state}
            for found in self.all_instances(where):
                is_timed = is_timed or found.idle_timeout_s is not None
                uses = found.device_id == device_id or found.sharing_limit > 1
                if uses and _is_used_up(found, now):
                    self._renew(found, now)
        if not is_timed:
            if len(self._untimed) >= _MOST_REMEMBERED:
                self._untimed.clear()
            self._untimed[service_id] = revision

    def _renew(self, instance: Instance, now: datetime) -> None:
        try:
            self.records.store.instances.replace(deadlines(instance, now))
        except (StaleRecord, NotFound):
            # Somebody joins, stops or renews it at this moment; the next call is soon.
            return

    def stop_overdue(self, *, by: Principal) -> None:
        """Stop every Instance here whose deadline has passed, idle or for life, or unused.

        An open connection to one counts as use.
        """
        now, here = self.records.clock.now(), self.guests.placement.this_host
        for state in _EXECUTING:
            for found in self.all_instances({"state": state}):
                if not here.has(found.host_id):
                    continue
                if found.users > 0 and not _has_passed(found.expires_at, now):
                    if _is_used_up(found, now) and self._is_connected(found):
                        self._renew(found, now)
                        continue
                    if not _has_passed(found.idle_at, now):
                        continue
                try:
                    self._stop(found, StopMode.AT_ONCE, by)
                except (StaleRecord, NotFound):
                    # Joined, used or stopped at this moment: the next round looks again.
                    continue

    def _is_connected(self, instance: Instance) -> bool:
        return self.guests.view.is_connected(domain_id_of(instance.id))


def _has_passed(moment: datetime | None, now: datetime) -> bool:
    return moment is not None and moment <= now


def _unless_changed(instance: Instance, generation: int | None) -> Instance:
    if generation is not None and generation != instance.generation:
        raise StaleRecord("instance", instance.id)
    return instance


def _is_used_up(instance: Instance, now: datetime) -> bool:
    """Return whether a tenth of the idle time is used up, so that renewing is worth a write."""
    if instance.idle_timeout_s is None:
        return False
    left = timedelta(seconds=instance.idle_timeout_s * 0.9)
    return instance.idle_at is None or instance.idle_at - now <= left


def _chosen(of_service: int | None, of_settings: int) -> int | None:
    """Return the Service's own timeout, else that of the settings; 0 means never."""
    chosen = of_service if of_service is not None else of_settings
    return chosen if chosen > 0 else None
