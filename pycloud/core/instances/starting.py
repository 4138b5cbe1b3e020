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
from pycloud.core.model.identifiers import InstanceId, Principal
from pycloud.core.model.runtime import (
    Failure,
    Instance,
    InstanceState,
    JobKind,
    Phase,
    PortMapping,
    StartMethod,
)
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import (
    CapacityExceeded,
    DomainNotFound,
    GuestFailed,
    IllegalTransition,
    JobCancelled,
    ServiceNotReady,
    StateUnusable,
)

log = logging.getLogger(__name__)

_SERIAL_BYTES = 8192
_SYSTEM = Principal("system")


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """The procedure of JobKind.INSTANCE_START."""

    records: InstanceRecords
    catalog: Catalog
    guests: Guests
    warm_pool: WarmPool

    def procedure(self) -> Procedure:
        """Return the body of the Job."""
        return Procedure(
            kind=JobKind.INSTANCE_START,
            lane=Lane.INSTANCES,
            recovery=Recovery.ROLL_BACK,
            is_complete=self._is_complete,
            on_failure=self._failed,
            steps=(
                Step(name="reserve", run=self._reserve, undo=self._free),
                Step(name="boot", run=self._boot, undo=self._destroy),
                Step(name="ready", run=self._ready),
                Step(name="publish", run=self._publish, final=True),
            ),
        )

    # -- steps -----------------------------------------------------------------------

    def _reserve(self, context: StepContext) -> None:
        context.mark("queue")
        instance = self.records.get(_id(context))
        service, _ = self.catalog.startable(instance.service_id)
        while True:
            try:
                self.guests.placement.claim(instance.id, service.flavor)
                break
            except CapacityExceeded:
                if not self.warm_pool.evict_one():
                    raise
        self.records.move(instance.id, InstanceState.STARTING, by=instance.owner)
        context.mark("reserve")

    def _boot(self, context: StepContext) -> None:
        instance = self.records.get(_id(context))
        service, service_vm = self.catalog.startable(instance.service_id)
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
            except (StateUnusable, DomainNotFound) as exc:
                if method is StartMethod.COLD:
                    raise
                log.warning(
                    "start_falls_back",
                    extra={"instance_id": instance.id, "method": method, "reason": exc.message},
                )
                self.guests.hypervisor.destroy(domain_id_of(instance.id), instance.id)
            else:
                return

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
        except (ServiceNotReady, GuestFailed):
            self._keep_serial_output(instance)
            raise
        context.mark("answer")
        self.records.change(
            instance.id, lambda found: replace(found, address=address), by=instance.owner
        )

    def _publish(self, context: StepContext) -> None:
        instance = self.records.get(_id(context))
        timeline = tuple(
            Phase(name=name, begin_ms=round(begin, 2), duration_ms=round(duration, 2))
            for name, begin, duration in context.timeline()
        )
        self.records.change(
            instance.id,
            lambda found: replace(found, state=InstanceState.RUNNING, timeline=timeline),
            by=instance.owner,
        )
        context.add_result("instance_id", instance.id)

    # -- undo and recovery ---------------------------------------------------------------

    def _free(self, context: StepContext) -> None:
        self.guests.placement.release(_id(context))

    def _destroy(self, context: StepContext) -> None:
        owner = _id(context)
        self.guests.hypervisor.destroy(domain_id_of(owner), owner)

    def _is_complete(self, context: StepContext) -> bool:
        state = self.records.get(_id(context)).state
        return state not in {
            InstanceState.REQUESTED,
            InstanceState.STARTING,
            InstanceState.FAILED,
        }

    def _failed(self, context: StepContext, failure: Failure) -> None:
        instance_id = _id(context)
        if failure.code == JobCancelled.code:
            self.records.move(instance_id, InstanceState.STOPPING, by=_SYSTEM)
            self.records.change(instance_id, _stopped, by=_SYSTEM)
            return
        try:
            self.records.change(
                instance_id,
                lambda found: replace(
                    found, state=InstanceState.FAILED, failure=failure, ports=(), users=0
                ),
                by=_SYSTEM,
            )
        except IllegalTransition:
            log.info("failed_start_was_over_already", extra={"instance_id": instance_id})

    def _keep_serial_output(self, instance: Instance) -> None:
        tail = self.guests.view.serial_tail(instance.id, limit_bytes=_SERIAL_BYTES)
        text = tail.decode("utf-8", "replace")
        self.records.change(
            instance.id, lambda found: replace(found, serial_output=text), by=instance.owner
        )


def deadlines(instance: Instance, now: datetime) -> Instance:
    """Return the Instance with its idle deadline counted from `now`."""
    if instance.idle_timeout_s is None:
        return instance
    return replace(instance, idle_at=now + timedelta(seconds=instance.idle_timeout_s))


def _stopped(instance: Instance) -> Instance:
    return replace(instance, state=InstanceState.STOPPED, ports=(), users=0)


def _id(context: StepContext) -> InstanceId:
    return InstanceId(context.job.arguments["instance_id"])
