# SPDX-License-Identifier: Apache-2.0
"""Make memory states: boot a ServiceVM once, wait for its service, keep its memory.

The memory is taken when the service has answered, so every later start resumes
behind the boot. Starting Instances from it is the business of `instances`.
"""

import logging
from dataclasses import dataclass

from pycloud.core.catalog import Catalog, ServiceChanges
from pycloud.core.guests import Guests
from pycloud.core.jobs import Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.machines import domain_id_of, shape_of
from pycloud.core.model.catalog import Service, ServiceVM
from pycloud.core.model.identifiers import (
    InstanceId,
    JobId,
    Principal,
    ServiceId,
    ServiceVMId,
)
from pycloud.core.model.runtime import Job, JobKind
from pycloud.core.ports import Blobs
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import Conflict, NotFound

log = logging.getLogger(__name__)

_LAST_STEP = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedService:
    """A Service as it is now, and the Job that makes its memory state anew, if one has to."""

    service: Service
    job: Job | None


class Templates:
    """Memory states of ServiceVMs."""

    def __init__(
        self, *, catalog: Catalog, jobs: Jobs, guests: Guests, blobs: Blobs, warm_pool: WarmPool
    ) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._guests = guests
        self._blobs = blobs
        self._warm_pool = warm_pool

    def can_prepare(self) -> bool:
        """Return whether guests are attached in a way that allows memory states."""
        return not self._guests.options.network.is_bridged

    def request_prepare(
        self, service_id: ServiceId, *, job_id: JobId | None = None, by: Principal
    ) -> Job:
        """Ask for a memory state of the Service's current VM.

        Raises NotFound, Conflict, and DuplicateRecord if `job_id` was used before.
        """
        if not self.can_prepare():
            raise Conflict(
                "guests on a bridge start cold: a saved memory carries the MAC address, so"
                " two copies would collide; use user-mode networking for instant starts"
            )
        service, service_vm = self._catalog.startable(service_id)
        return self._jobs.submit(
            JobRequest(
                id=job_id,
                kind=JobKind.SERVICE_PREPARE,
                arguments={
                    "service_id": service.id,
                    "service_vm_id": service_vm.id,
                    "shape": shape_of(service),
                },
                resources=(f"service/{service.id}", f"service_vm/{service_vm.id}"),
                created_by=by,
                host_id=service_vm.host_id,
            )
        )

    def change_service(
        self,
        service_id: ServiceId,
        changes: ServiceChanges,
        *,
        generation: int | None,
        by: Principal,
    ) -> ChangedService:
        """Change a Service; a memory state that fits it no longer is made anew by a Job.

        With `generation` only if it is still that one. Until the Job is done, starts boot
        cold. Raises NotFound, StaleRecord, InvalidInput.
        """
        before = self._catalog.service(service_id)
        starts_instantly = self._starts_instantly(before)
        service = self._catalog.update_service(service_id, changes, generation=generation, by=by)
        job = None
        if starts_instantly and shape_of(service) != shape_of(before):
            job = self._prepare_again(service, by)
        return ChangedService(service=service, job=job)

    def _starts_instantly(self, service: Service) -> bool:
        """Return whether the Service has a memory state, or has one in the making."""
        service_vm = self._service_vm(service)
        if service_vm is None:
            return False
        return service_vm.memory is not None or any(
            job.kind is JobKind.SERVICE_PREPARE and job.arguments["service_vm_id"] == service_vm.id
            for job in self._jobs.active()
        )

    def _prepare_again(self, service: Service, by: Principal) -> Job | None:
        service_vm = self._service_vm(service)
        if service_vm is None or service_vm.memory is not None or not self.can_prepare():
            return None
        try:
            return self.request_prepare(service.id, by=by)
        except (Conflict, NotFound) as exc:
            # The Service was removed at this moment; it was changed before that all the same.
            log.info("service_is_gone", extra={"service_id": service.id, "reason": exc.message})
            return None

    def _service_vm(self, service: Service) -> ServiceVM | None:
        if service.service_vm_id is None:
            return None
        try:
            return self._catalog.service_vm(service.service_vm_id)
        except NotFound:
            return None

    def procedures(self) -> tuple[Procedure, ...]:
        """Return the bodies of the Jobs of this capability."""
        return (
            Procedure(
                kind=JobKind.SERVICE_PREPARE,
                lane=Lane.CONTENT,
                recovery=Recovery.ROLL_BACK,
                is_complete=lambda context: context.job.stage == _LAST_STEP,
                steps=(
                    Step(name="reserve", run=self._reserve, undo=self._free),
                    Step(name="boot", run=self._boot, undo=self._destroy),
                    Step(name="ready", run=self._ready),
                    Step(name="capture", run=self._capture),
                    Step(name=_LAST_STEP, run=self._free, final=True),
                ),
            ),
        )

    def _reserve(self, context: StepContext) -> None:
        service, _ = self._subject(context)
        self._warm_pool.claim_room(context.job.id, service.flavor)

    def _boot(self, context: StepContext) -> None:
        service, service_vm = self._subject(context)
        owner = _owner(context)
        self._guests.with_ports(
            owner,
            service,
            lambda ports: self._guests.capture.start_template(
                self._guests.spec(owner, service, service_vm, ports), context.job.id
            ),
        )

    def _ready(self, context: StepContext) -> None:
        service, _ = self._subject(context)
        self._guests.await_answer(_owner(context), service, context)

    def _capture(self, context: StepContext) -> None:
        service, service_vm = self._subject(context)
        owner = _owner(context)
        ports = self._guests.placement.ports_of(owner, service.port)
        spec = self._guests.spec(owner, service, service_vm, ports)
        memory = self._guests.capture.capture_template(spec, context.job.id)
        self._catalog.set_memory(service_vm.id, memory)
        self._catalog.record(service.id, "prepared", context.job.created_by)

    def _destroy(self, context: StepContext) -> None:
        owner = _owner(context)
        self._guests.hypervisor.destroy(domain_id_of(owner), owner)
        self._blobs.discard(context.job.id)

    def _free(self, context: StepContext) -> None:
        self._guests.placement.release(context.job.id)
        self._blobs.discard(context.job.id)

    def _subject(self, context: StepContext) -> tuple[Service, ServiceVM]:
        arguments = context.job.arguments
        service = self._catalog.service(ServiceId(arguments["service_id"]))
        if service.service_vm_id != arguments["service_vm_id"]:
            raise NotFound("service_vm", arguments["service_vm_id"])
        if shape_of(service) != arguments["shape"]:
            raise Conflict(f"service {service.id!r} was changed meanwhile; prepare it again")
        return service, self._catalog.service_vm(ServiceVMId(arguments["service_vm_id"]))


def _owner(context: StepContext) -> InstanceId:
    return InstanceId(context.job.id)
