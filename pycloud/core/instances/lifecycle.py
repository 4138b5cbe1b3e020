# SPDX-License-Identifier: Apache-2.0
"""What callers may do with Instances. The long parts run as Jobs in `starting` and `stopping`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from uuid import uuid4

from pycloud.core.catalog import Catalog
from pycloud.core.guests import Guests
from pycloud.core.instances.records import InstanceRecords
from pycloud.core.instances.starting import deadlines
from pycloud.core.jobs import Jobs
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.machines import domain_id_of
from pycloud.core.model.catalog import Service
from pycloud.core.model.identifiers import (
    DeviceId,
    InstanceId,
    JobId,
    Principal,
    ServiceId,
)
from pycloud.core.model.runtime import Instance, InstanceState, Job, JobKind
from pycloud.core.ports import Slice
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import Conflict, IllegalTransition, StaleRecord

_JOINABLE = frozenset({InstanceState.REQUESTED, InstanceState.STARTING, InstanceState.RUNNING})
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
    """What a client asks for."""

    service_id: ServiceId
    join: Join = Join.FRESH
    device_id: DeviceId | None = None


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
    """The Instances of this cloudlet. Safe to use from several threads and servers."""

    records: InstanceRecords
    catalog: Catalog
    jobs: Jobs
    guests: Guests
    warm_pool: WarmPool
    options: InstanceOptions

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

    def serial_tail(self, instance_id: InstanceId, *, limit_bytes: int) -> bytes:
        """Return the end of the serial output, kept also when the start failed."""
        instance = self.instance(instance_id)
        if instance.state in _OVER:
            return instance.serial_output.encode()[-limit_bytes:]
        return self.guests.view.serial_tail(instance_id, limit_bytes=limit_bytes)

    # -- start and join ----------------------------------------------------------------

    def request_start(self, request: StartRequest, *, by: Principal) -> Started:
        """Join an Instance with room, or ask for a new one.

        Raises NotFound, Conflict (a Service without VM). A refusal for lack of room
        is found by the Job, which fails with CapacityExceeded.
        """
        service, service_vm = self.catalog.startable(request.service_id)
        if request.join is Join.SHARE and service.sharing_limit > 1:
            joined = self._join(service, by)
            if joined is not None:
                return joined
        warm = self.warm_pool.claim(service, service_vm)
        instance_id = warm.id if warm is not None else InstanceId(uuid4().hex)
        instance = self._add(instance_id, service, request, by)
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
            )
        )
        return Started(instance=instance, job=job)

    def _add(
        self, instance_id: InstanceId, service: Service, request: StartRequest, by: Principal
    ) -> Instance:
        now = self.records.clock.now()
        idle_s = _chosen(service.idle_timeout_s, self.options.idle_timeout_s)
        life_s = _chosen(service.max_lifetime_s, self.options.max_lifetime_s)
        instance = Instance(
            id=instance_id,
            service_id=service.id,
            service_vm_id=self.catalog.startable(service.id)[1].id,
            host_id=self.guests.placement.host_id,
            vcpus=service.vcpus,
            memory_mib=service.ideal_memory_mib,
            service_port=service.port,
            sharing_limit=service.sharing_limit,
            owner=by,
            device_id=request.device_id,
            job_id=JobId(uuid4().hex),
            idle_timeout_s=idle_s,
            expires_at=now + timedelta(seconds=life_s) if life_s is not None else None,
            created_at=now,
            updated_at=now,
        )
        stored = self.records.store.instances.add(deadlines(instance, now))
        self.records.record(stored, by=by)
        return stored

    def _join(self, service: Service, by: Principal) -> Started | None:
        for found in self.instances({"service_id": service.id}, limit=500).items:
            if found.state not in _JOINABLE or found.users >= service.sharing_limit:
                continue
            now = self.records.clock.now()
            try:
                joined = self.records.store.instances.replace(
                    deadlines(replace(found, users=found.users + 1), now)
                )
            except StaleRecord:
                # Somebody joined or stopped it at this moment: look at all of them again.
                return self._join(service, by)
            job = self.jobs.job(joined.job_id) if joined.state in _STARTING else None
            return Started(instance=joined, job=job)
        return None

    # -- pause and resume ---------------------------------------------------------------

    def pause(self, instance_id: InstanceId, *, by: Principal) -> Instance:
        """Stop the guest's processors; its memory stays. Raises NotFound, IllegalTransition."""
        self.instance(instance_id).check_transition(InstanceState.PAUSED)
        self.guests.hypervisor.pause(domain_id_of(instance_id))
        return self.records.move(instance_id, InstanceState.PAUSED, by=by)

    def resume(self, instance_id: InstanceId, *, by: Principal) -> Instance:
        """Let a paused guest go on. Raises NotFound, IllegalTransition."""
        instance = self.instance(instance_id)
        if instance.state is not InstanceState.PAUSED:
            raise IllegalTransition(
                "instance", instance_id, state=instance.state, wanted=InstanceState.RUNNING
            )
        self.guests.hypervisor.resume(domain_id_of(instance_id))
        return self.records.move(instance_id, InstanceState.RUNNING, by=by)

    # -- stop --------------------------------------------------------------------------

    def leave(self, instance_id: InstanceId, *, by: Principal) -> Job | None:
        """Count one user less; the last one stops the Instance, and the Job is returned.

        Raises NotFound, IllegalTransition if it is stopped already.
        """
        while True:
            instance = self.instance(instance_id)
            if instance.users <= 1:
                return self.request_stop(instance_id, by=by)
            try:
                self.records.store.instances.replace(replace(instance, users=instance.users - 1))
            except StaleRecord:
                continue
            return None

    def request_stop(
        self, instance_id: InstanceId, *, mode: StopMode = StopMode.AT_ONCE, by: Principal
    ) -> Job:
        """Stop an Instance whoever uses it; asking again returns the same Job.

        Raises NotFound, IllegalTransition if it is over already.
        """
        while True:
            instance = self.instance(instance_id)
            if instance.state is InstanceState.STOPPING:
                return self.jobs.job(instance.job_id)
            if instance.state in _STARTING:
                try:
                    return self.jobs.cancel(instance.job_id, by=by)
                except Conflict:
                    # The start has just been published, or has failed: look again.
                    self.jobs.wait(instance.job_id, timeout_s=1.0)
                    continue
            instance.check_transition(InstanceState.STOPPING)
            try:
                return self._stop(instance, mode, by)
            except StaleRecord:
                continue

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
        """Store the Job that stops an Instance in state STOPPING, under its `job_id`."""
        return self.jobs.submit(
            JobRequest(
                id=instance.job_id,
                kind=JobKind.INSTANCE_STOP,
                arguments={"instance_id": instance.id, "mode": mode},
                resources=(f"instance/{instance.id}", f"service/{instance.service_id}"),
                created_by=by,
            )
        )

    # -- deadlines ------------------------------------------------------------------------

    def touch(self, service_id: ServiceId, device_id: DeviceId) -> None:
        """Count a sign of life of a device as use of its Instances of a Service.

        Cheap when nothing has an idle deadline, because phones call it every 10 s.
        """
        now = self.records.clock.now()
        for found in self.instances({"service_id": service_id}, limit=500).items:
            if found.device_id != device_id or found.idle_timeout_s is None:
                continue
            if found.idle_at is not None and found.idle_at - now > timedelta(
                seconds=found.idle_timeout_s * 0.9
            ):
                continue
            self.records.change(found.id, lambda record: deadlines(record, now), by=found.owner)

    def stop_overdue(self, *, by: Principal) -> None:
        """Stop every Instance whose idle or lifetime deadline has passed."""
        now = self.records.clock.now()
        for state in (InstanceState.RUNNING, InstanceState.PAUSED):
            for found in self.instances({"state": state}, limit=10_000).items:
                passed = [at for at in (found.idle_at, found.expires_at) if at and at <= now]
                if passed:
                    self.request_stop(found.id, by=by)


def _chosen(of_service: int | None, of_settings: int) -> int | None:
    """Return the Service's own timeout, else that of the settings; 0 means never."""
    chosen = of_service if of_service is not None else of_settings
    return chosen if chosen > 0 else None
