# SPDX-License-Identifier: Apache-2.0
"""Remove Services: never from under a user unless told so, and always to the end."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from pycloud.core.catalog import Catalog
from pycloud.core.instances import Instances
from pycloud.core.jobs import Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.model.fleet import UNTOLD
from pycloud.core.model.identifiers import Principal, ServiceId, ServiceVMId
from pycloud.core.model.runtime import LIVE_STATES, Instance, Job, JobKind
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import IllegalTransition, NotFound, ServiceInUse, StaleRecord

_WAIT_S = 1.0
_PAUSE_S = 0.25


class RunningInstances(StrEnum):
    """What a removal does about Instances that run: refuse, or stop them."""

    REFUSE = "refuse"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The end of Services. Safe to use from several threads."""

    catalog: Catalog
    jobs: Jobs
    instances: Instances
    warm_pool: WarmPool

    def request_remove(
        self,
        service_id: ServiceId,
        running: RunningInstances,
        *,
        generation: int | None,
        by: Principal,
    ) -> Job:
        """Ask for the removal of a Service with all its VMs.

        Raises NotFound, StaleRecord, ServiceInUse when Instances run and REFUSE was
        said. An Instance that is asked for after this check is stopped. All VMs of a
        Service are on one Host, whose server does the work.
        """
        service = self.catalog.service(service_id)
        if generation is not None and generation != service.generation:
            raise StaleRecord("service", service_id)
        found = tuple(self.catalog.all_service_vms(service_id))
        service_vms = tuple(service_vm.id for service_vm in found)
        live = self._live(service_id, service_vms)
        if live and running is RunningInstances.REFUSE:
            raise ServiceInUse(service_id, instances=len(live))
        return self.jobs.submit(
            JobRequest(
                kind=JobKind.SERVICE_REMOVE,
                arguments={
                    "service_id": service_id,
                    # What is meant: the id may be given to another Service meanwhile.
                    "created_at": service.created_at.isoformat(),
                    "service_vms": ",".join(service_vms),
                },
                resources=(f"service/{service_id}",),
                created_by=by,
                host_id=next(
                    (one.host_id for one in found if one.id == service.service_vm_id), UNTOLD
                ),
            )
        )

    def procedures(self) -> tuple[Procedure, ...]:
        """Return the bodies of the Jobs of this capability."""
        return (
            Procedure(
                kind=JobKind.SERVICE_REMOVE,
                lane=Lane.CONTENT,
                recovery=Recovery.ROLL_FORWARD,
                steps=(
                    Step(name="hide", run=self._hide, final=True),
                    Step(name="stop", run=self._stop, unit="instances"),
                    Step(name="sweep", run=self._sweep),
                ),
            ),
        )

    def _hide(self, context: StepContext) -> None:
        try:
            service = self.catalog.service(_id(context))
        except NotFound:
            return
        if service.created_at.isoformat() == context.job.arguments["created_at"]:
            self.catalog.forget_service(service.id)

    def _stop(self, context: StepContext) -> None:
        self.warm_pool.evict_service(_id(context))
        stopped = 0
        while live := self._live(_id(context), _meant(context)):
            context.report(stopped, stopped + len(live))
            jobs = [self._stop_one(instance, context) for instance in live]
            for job in jobs:
                if job is not None and not job.is_final:
                    self.jobs.wait(job.id, timeout_s=_WAIT_S)
            if all(job is None or job.is_final for job in jobs):
                # Nothing to wait for: reconciliation has to repair these first.
                self.instances.records.clock.sleep(_PAUSE_S)
            stopped += len(live) - len(self._live(_id(context), _meant(context)))

    def _stop_one(self, instance: Instance, context: StepContext) -> Job | None:
        try:
            return self.instances.request_stop(instance.id, by=context.job.created_by)
        except (IllegalTransition, NotFound):
            return None

    def _sweep(self, context: StepContext) -> None:
        service_id = _id(context)
        self.warm_pool.evict_service(service_id)
        for service_vm_id in _meant(context):
            self.catalog.forget_service_vm(service_vm_id)
        self.catalog.record(service_id, "removed", context.job.created_by)

    def _live(
        self, service_id: ServiceId, service_vms: Collection[ServiceVMId]
    ) -> tuple[Instance, ...]:
        found = self.instances.all_instances({"service_id": service_id})
        return tuple(
            item
            for item in found
            if item.state in LIVE_STATES and item.service_vm_id in service_vms
        )


def _meant(context: StepContext) -> tuple[ServiceVMId, ...]:
    return tuple(ServiceVMId(part) for part in context.job.arguments["service_vms"].split(","))


def _id(context: StepContext) -> ServiceId:
    return ServiceId(context.job.arguments["service_id"])
