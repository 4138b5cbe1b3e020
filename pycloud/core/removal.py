# SPDX-License-Identifier: Apache-2.0
"""Remove Services: never from under a user unless told so, and always to the end."""

from dataclasses import dataclass
from enum import StrEnum

from pycloud.core.catalog import Catalog
from pycloud.core.instances import Instances
from pycloud.core.jobs import Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.model.identifiers import Principal, ServiceId
from pycloud.core.model.runtime import LIVE_STATES, Instance, Job, JobKind
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import IllegalTransition, ServiceInUse, StaleRecord

_WAIT_S = 1.0


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
        said. An Instance that is asked for after this check is stopped.
        """
        service = self.catalog.service(service_id)
        if generation is not None and generation != service.generation:
            raise StaleRecord("service", service_id)
        live = self._live(service_id)
        if live and running is RunningInstances.REFUSE:
            raise ServiceInUse(service_id, instances=len(live))
        return self.jobs.submit(
            JobRequest(
                kind=JobKind.SERVICE_REMOVE,
                arguments={"service_id": service_id},
                resources=(f"service/{service_id}",),
                created_by=by,
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
        self.catalog.forget_service(_id(context))

    def _stop(self, context: StepContext) -> None:
        service_id = _id(context)
        self.warm_pool.evict_service(service_id)
        while live := self._live(service_id):
            for instance in live:
                self._stop_one(instance, context)

    def _stop_one(self, instance: Instance, context: StepContext) -> None:
        context.check()
        try:
            job = self.instances.request_stop(instance.id, by=context.job.created_by)
        except IllegalTransition:
            return
        self.jobs.wait(job.id, timeout_s=_WAIT_S)

    def _sweep(self, context: StepContext) -> None:
        service_id = _id(context)
        self.warm_pool.evict_service(service_id)
        for service_vm in self.catalog.service_vms(service_id, limit=500).items:
            self.catalog.forget_service_vm(service_vm.id)
        self.catalog.record(service_id, "removed", context.job.created_by)

    def _live(self, service_id: ServiceId) -> tuple[Instance, ...]:
        found = self.instances.instances({"service_id": service_id}, limit=10_000).items
        return tuple(item for item in found if item.state in LIVE_STATES)


def _id(context: StepContext) -> ServiceId:
    return ServiceId(context.job.arguments["service_id"])
