# SPDX-License-Identifier: Apache-2.0
"""The start of an Instance, from the claim of its room to the first answer of its service.

The fastest way that works is taken: a waiting copy, a clone of the saved
memory, a cold boot; a way that turns out not to work falls back to the next.
"""

import logging
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pycloud.core.catalog import Catalog
from pycloud.core.guests import Guests
from pycloud.core.instances.records import InstanceRecords
from pycloud.core.jobs import Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.machines import domain_id_of, resumed, usable_memory
from pycloud.core.model.catalog import MemoryKind, Service, ServiceVM
from pycloud.core.model.identifiers import InstanceId, JobId, Principal
from pycloud.core.model.runtime import (
    Failure,
    Instance,
    InstanceState,
    JobKind,
    Phase,
    PortMapping,
    StartMethod,
)
from pycloud.core.templates import Templates
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import (
    AddressUnknown,
    DomainNotFound,
    DuplicateRecord,
    GuestFailed,
    HypervisorError,
    HypervisorUnavailable,
    JobCancelled,
    NotFound,
    ServiceNotReady,
    StateUnusable,
)

log = logging.getLogger(__name__)

_SERIAL_BYTES = 8192
_SYSTEM = Principal("system")
_FROM_STATE = frozenset({StartMethod.CLONE, StartMethod.RESTORE})
_PUBLISHED = frozenset({InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.MIGRATING})
_UNPUBLISHED = frozenset({InstanceState.REQUESTED, InstanceState.STARTING, InstanceState.STOPPING})
"""STOPPING under the start's own Job: it was cancelled, and the server died in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """The procedure of JobKind.INSTANCE_START."""

    records: InstanceRecords
    catalog: Catalog
    guests: Guests
    warm_pool: WarmPool
    templates: Templates

    def procedure(self) -> Procedure:
        """Return the body of the Job."""
        return Procedure(
            kind=JobKind.INSTANCE_START,
            lane=Lane.STARTS,
            recovery=Recovery.ROLL_BACK,
            is_complete=self._is_complete,
            on_failure=self._failed,
            steps=(
                Step(name="reserve", run=self._reserve, undo=self._let_go),
                Step(name="boot", run=self._boot, undo=self._destroy),
                Step(name="ready", run=self._ready),
                Step(name="publish", run=self._publish, final=True),
            ),
        )

    # -- steps -----------------------------------------------------------------------

    def _reserve(self, context: StepContext) -> None:
        context.mark("queue")
        instance = self.records.get(_id(context))
        instance.check_transition(InstanceState.STARTING)
        service, _ = self._subject(instance)
        self.warm_pool.claim_room(instance.id, service.flavor)
        self.records.move(instance.id, InstanceState.STARTING, by=instance.owner)
        context.mark("reserve")

    def _boot(self, context: StepContext) -> None:
        instance = self.records.get(_id(context))
        service, service_vm = self._subject(instance)
        methods = [StartMethod.COLD]
        memory = usable_memory(service, service_vm, self.guests.options.network)
        if memory is not None:
            is_template = memory.kind is MemoryKind.TEMPLATE
            methods.insert(0, StartMethod.CLONE if is_template else StartMethod.RESTORE)
        if context.job.arguments.get("warm") == "true":
            methods.insert(0, StartMethod.WARM)
        for method in methods:
            try:
                self._boot_by(method, instance, (service, service_vm), context)
            except HypervisorError as exc:
                if not _may_fall_back(method, exc):
                    raise
                log.warning(
                    "start_falls_back",
                    extra={"instance_id": instance.id, "method": method, "reason": exc.message},
                )
                self.guests.hypervisor.destroy(domain_id_of(instance.id), instance.id)
                if method in _FROM_STATE and isinstance(exc, StateUnusable):
                    self._ask_for_fresh_state(service_vm)
            else:
                return

    def _ask_for_fresh_state(self, service_vm: ServiceVM) -> None:
        """Let the next starts be fast again; once in a while, should that not help either."""
        job_id = JobId(f"{service_vm.id}-renew")
        try:
            self.templates.request_prepare(service_vm.service_id, job_id=job_id, by=_SYSTEM)
        except DuplicateRecord:
            log.info("fresh_state_was_asked_for", extra={"service_vm_id": service_vm.id})

    def _boot_by(
        self,
        method: StartMethod,
        instance: Instance,
        subject: tuple[Service, ServiceVM],
        context: StepContext,
    ) -> None:
        service, service_vm = subject
        hypervisor = self.guests.hypervisor
        domain_id = domain_id_of(instance.id)

        def attempt(ports: tuple[PortMapping, ...]) -> None:
            if method is StartMethod.WARM:
                hypervisor.release(domain_id, ports, on_phase=context.mark)
                return
            spec = self.guests.spec(instance.id, service, service_vm, ports)
            if method is not StartMethod.COLD and service_vm.memory is not None:
                spec = resumed(spec, service_vm.memory)
            hypervisor.start(spec, on_phase=context.mark)

        ports = self.guests.with_ports(instance.id, service, attempt)
        self.records.change(
            instance.id,
            lambda found: replace(found, domain_id=domain_id, ports=ports, start_method=method),
            by=instance.owner,
        )

    def _ready(self, context: StepContext) -> None:
        instance = self.records.get(_id(context))
        service = self.catalog.service(instance.service_id)
        try:
            address = self.guests.await_answer(instance.id, service, context)
        except (ServiceNotReady, AddressUnknown, GuestFailed):
            context.mark("no_answer")
            self._keep_serial_output(instance)
            raise
        context.mark("answer")
        context.add_result("address", address)

    def _publish(self, context: StepContext) -> None:
        timeline = _timeline(context)
        now = self.records.clock.now()

        def publish(found: Instance) -> Instance:
            running = replace(
                found,
                state=InstanceState.RUNNING,
                address=context.job.result["address"],
                timeline=timeline,
            )
            # A slow start is no idleness.
            return deadlines(running, now)

        self.records.change(_id(context), publish, by=context.job.created_by)
        context.add_result("instance_id", _id(context))

    def _subject(self, instance: Instance) -> tuple[Service, ServiceVM]:
        service, service_vm = self.catalog.startable(instance.service_id)
        if service_vm.id != instance.service_vm_id:
            # The Service was removed and another one took its id.
            raise NotFound("service_vm", instance.service_vm_id)
        return service, service_vm

    # -- undo and recovery ---------------------------------------------------------------

    def _let_go(self, context: StepContext) -> None:
        if context.job.arguments.get("warm") == "true":
            # The copy was there before the first step.
            self._destroy(context)
        self.guests.placement.release(_id(context))

    def _destroy(self, context: StepContext) -> None:
        owner = _id(context)
        self.guests.hypervisor.destroy(domain_id_of(owner), owner)

    def _is_complete(self, context: StepContext) -> bool:
        try:
            instance = self.records.get(_id(context))
        except NotFound:
            return False
        if instance.state not in _PUBLISHED and instance.job_id == context.job.id:
            return False
        context.add_result("instance_id", instance.id)
        return True

    def _failed(self, context: StepContext, failure: Failure) -> None:
        instance = self.records.get(_id(context))
        if instance.job_id == context.job.id and instance.state in _UNPUBLISHED:
            if failure.code == JobCancelled.code:
                self.records.move(instance.id, InstanceState.STOPPING, by=_SYSTEM)
                self.records.change(instance.id, stopped, by=_SYSTEM)
            else:
                self.records.change(
                    instance.id,
                    lambda found: replace(failed(found, failure), timeline=_timeline(context)),
                    by=_SYSTEM,
                )
        if not context.job.stage:
            self._let_go(context)

    def _keep_serial_output(self, instance: Instance) -> None:
        tail = self.guests.view.serial_tail(instance.id, limit_bytes=_SERIAL_BYTES)
        text = tail.decode("utf-8", "replace")
        self.records.change(
            instance.id, lambda found: replace(found, serial_output=text), by=instance.owner
        )


def _timeline(context: StepContext) -> tuple[Phase, ...]:
    return tuple(
        Phase(name=name, begin_ms=round(begin, 2), duration_ms=round(duration, 2))
        for name, begin, duration in context.timeline()
    )


def deadlines(instance: Instance, now: datetime) -> Instance:
    """Return the Instance with its idle deadline counted from `now`."""
    if instance.idle_timeout_s is None:
        return instance
    return replace(instance, idle_at=now + timedelta(seconds=instance.idle_timeout_s))


def stopped(instance: Instance) -> Instance:
    """Return the Instance as it is when nothing of it is left."""
    return replace(instance, state=InstanceState.STOPPED, ports=(), users=0)


def failed(instance: Instance, failure: Failure) -> Instance:
    """Return the Instance as it is when it failed and nothing of it is left."""
    return replace(instance, state=InstanceState.FAILED, failure=failure, ports=(), users=0)


def _may_fall_back(method: StartMethod, exc: HypervisorError) -> bool:
    """Return whether another way is worth a try: a waiting copy is only a short cut."""
    if method is StartMethod.COLD or isinstance(exc, HypervisorUnavailable):
        return False
    return method is StartMethod.WARM or isinstance(exc, StateUnusable | DomainNotFound)


def _id(context: StepContext) -> InstanceId:
    return InstanceId(context.job.arguments["instance_id"])
