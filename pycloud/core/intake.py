# SPDX-License-Identifier: Apache-2.0
"""How Services come in: from an uploaded disk image, or from a package of another cloudlet.

Everything passes the image gate. A Job that was interrupted goes on where it
stopped; one that fails keeps the upload, so that it can be tried again.
"""

import itertools
import logging
from dataclasses import dataclass

from pycloud.core.catalog import Catalog
from pycloud.core.drafts import draft_from_text, draft_to_text
from pycloud.core.jobs import Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.model.catalog import (
    Architecture,
    BlobRef,
    DiskFormat,
    MachineSpec,
    ServiceDraft,
    ServiceVM,
    StoredDisk,
    Upload,
)
from pycloud.core.model.identifiers import (
    BlobId,
    JobId,
    Principal,
    ServiceId,
    ServiceVMId,
    UploadId,
    checked_id,
)
from pycloud.core.model.runtime import Job, JobKind
from pycloud.core.ports import Hypervisor, Images, MemoryCapture, Packages
from pycloud.core.templates import Templates
from pycloud.core.uploads import CONTENT, Uploads
from pycloud.errors import Conflict, DuplicateRecord, NotFound, StateUnusable

log = logging.getLogger(__name__)

_TARGET = "normalised"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRequest:
    """A Service to be made from an uploaded disk image.

    `declared` is the format that the sender says it is; a raw image has to be
    declared. With `prepare` a memory state is made afterwards, by a Job of its own.
    """

    draft: ServiceDraft
    upload_id: UploadId
    declared: DiskFormat | None = None
    prepare: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """A Service to be made from an uploaded `.csvm`; `service_id` renames it."""

    upload_id: UploadId
    service_id: ServiceId | None = None
    prepare: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Services from outside. Safe to use from several threads."""

    catalog: Catalog
    jobs: Jobs
    uploads: Uploads
    templates: Templates
    images: Images
    packages: Packages
    hypervisor: Hypervisor
    capture: MemoryCapture

    def request_add(self, request: AddRequest, *, by: Principal) -> Job:
        """Ask for a Service from a disk image.

        Raises InvalidInput, DuplicateRecord, NotFound, Conflict (upload incomplete).
        """
        self.catalog.check_draft(request.draft)
        upload = self.uploads.complete(request.upload_id)
        arguments = {
            "draft": draft_to_text(request.draft),
            "upload_id": upload.id,
            "declared": request.declared or "",
            "prepare": "true" if request.prepare else "false",
            "source": upload.file_name,
        }
        resources = (f"service/{request.draft.id}", f"upload/{upload.id}")
        return self._submit(upload, JobKind.SERVICE_ADD, (arguments, resources), by)

    def request_import(self, request: ImportRequest, *, by: Principal) -> Job:
        """Ask for a Service from a package. Raises InvalidInput, NotFound, Conflict."""
        if request.service_id is not None:
            checked_id(request.service_id, pointer="/service_id")
        upload = self.uploads.complete(request.upload_id)
        arguments = {
            "upload_id": upload.id,
            "service_id": request.service_id or "",
            "declared": "",
            "prepare": "true" if request.prepare else "false",
            "source": upload.file_name,
        }
        resources = (f"upload/{upload.id}",)
        return self._submit(upload, JobKind.SERVICE_IMPORT, (arguments, resources), by)

    def _submit(
        self,
        upload: Upload,
        kind: JobKind,
        content: tuple[dict[str, str], tuple[str, ...]],
        by: Principal,
    ) -> Job:
        """Store the Job under an id that only one use of the upload at a time can have."""
        arguments, resources = content
        for attempt in itertools.count(1):
            job_id = JobId(f"{upload.id}-{attempt}")
            try:
                return self.jobs.submit(
                    JobRequest(
                        id=job_id,
                        kind=kind,
                        arguments=arguments,
                        resources=resources,
                        created_by=by,
                        host_id=upload.host_id,
                    )
                )
            except DuplicateRecord:
                if not self.jobs.job(job_id).is_final:
                    break
        raise Conflict(f"upload {upload.id} is being used by job {job_id}")

    def procedures(self) -> tuple[Procedure, ...]:
        """Return the bodies of the Jobs of this capability."""
        normalise = Step(name="normalise", run=self._normalise, unit="bytes")
        publish = Step(name="publish", run=self._publish, undo=self._unpublish)
        finish = Step(name="finish", run=self._finish, final=True)
        return (
            Procedure(
                kind=JobKind.SERVICE_ADD,
                lane=Lane.CONTENT,
                recovery=Recovery.ROLL_FORWARD,
                steps=(
                    Step(name="inspect", run=self._inspect_added, undo=self._strip),
                    normalise,
                    publish,
                    finish,
                ),
            ),
            Procedure(
                kind=JobKind.SERVICE_IMPORT,
                lane=Lane.CONTENT,
                recovery=Recovery.ROLL_FORWARD,
                steps=(
                    Step(name="unpack", run=self._unpack, undo=self._strip, unit="bytes"),
                    normalise,
                    publish,
                    Step(name="memory", run=self._adopt_memory, unit="bytes"),
                    finish,
                ),
            ),
        )

    # -- steps -----------------------------------------------------------------------

    def _inspect_added(self, context: StepContext) -> None:
        arguments = context.job.arguments
        declared = DiskFormat(arguments["declared"]) if arguments["declared"] else None
        facts = self.images.inspect(arguments["upload_id"], CONTENT, declared=declared)
        context.add_result("draft", arguments["draft"])
        context.add_result("disk", CONTENT)
        context.add_result("format", facts.format)

    def _unpack(self, context: StepContext) -> None:
        arguments = context.job.arguments
        upload_id = arguments["upload_id"]
        given = ServiceId(arguments["service_id"]) if arguments["service_id"] else None
        unpacked = self.packages.unpack(upload_id, CONTENT, service_id=given, report=context.report)
        draft = unpacked.draft
        self.catalog.check_draft(draft)
        facts = self.images.inspect(upload_id, unpacked.disk)
        context.add_result("draft", draft_to_text(draft))
        context.add_result("disk", unpacked.disk)
        context.add_result("format", facts.format)
        context.add_result("state", unpacked.state or "")

    def _strip(self, context: StepContext) -> None:
        """Leave the upload alone, so that it takes no more room than it did before."""
        self.uploads.strip(UploadId(context.job.arguments["upload_id"]))

    def _normalise(self, context: StepContext) -> None:
        result = context.job.result
        disk = self.images.normalise(
            context.job.arguments["upload_id"],
            result["disk"],
            _TARGET,
            declared=DiskFormat(result["format"]),
            report=context.report,
        )
        context.add_result("blob", disk.blob.id)
        context.add_result("blob_bytes", str(disk.blob.size_bytes))
        context.add_result("virtual_bytes", str(disk.virtual_size_bytes))

    def _publish(self, context: StepContext) -> None:
        draft = draft_from_text(context.job.result["draft"])
        service_vm = self._service_vm(context, draft)
        if not self.catalog.is_published(draft.id, service_vm.id):
            self.catalog.forget_service_vm(service_vm.id)
            self.catalog.publish(draft, service_vm, by=context.job.created_by)
        context.add_result("service_id", draft.id)

    def _unpublish(self, context: StepContext) -> None:
        draft = draft_from_text(context.job.result["draft"])
        self.catalog.unpublish(draft.id, ServiceVMId(context.job.id))

    def _adopt_memory(self, context: StepContext) -> None:
        result = context.job.result
        if not result["state"]:
            return
        service_vm_id = ServiceVMId(context.job.id)
        if self.catalog.service_vm(service_vm_id).memory is not None:
            context.add_result("memory", "imported")
            return
        try:
            memory = self.capture.adopt_save_image(
                context.job.arguments["upload_id"],
                result["state"],
                disk=_disk(context),
                report=context.report,
            )
        except (StateUnusable, NotFound) as exc:
            # Not found: a server died between taking the state in and recording it.
            context.add_result("memory", f"not used: {exc.message}")
            return
        draft = draft_from_text(result["draft"])
        if (memory.memory_mib, memory.vcpus) != (draft.ideal_memory_mib, draft.vcpus):
            size = f"{memory.vcpus} vcpus and {memory.memory_mib} MiB"
            context.add_result("memory", f"not used: it was made with {size}")
            return
        self.catalog.set_memory(service_vm_id, memory)
        context.add_result("memory", "imported")

    def _finish(self, context: StepContext) -> None:
        job = context.job
        service_id = ServiceId(job.result["service_id"])
        wanted = job.arguments["prepare"] == "true" and job.result.get("memory") != "imported"
        if wanted and self.templates.can_prepare():
            prepare_id = JobId(f"{job.id}-prepare")
            try:
                self.templates.request_prepare(service_id, job_id=prepare_id, by=job.created_by)
            except DuplicateRecord:
                log.info("preparation_was_asked_for_already", extra={"job_id": prepare_id})
            context.add_result("prepare_job", prepare_id)
        self.uploads.drop(UploadId(job.arguments["upload_id"]))

    def _service_vm(self, context: StepContext, draft: ServiceDraft) -> ServiceVM:
        facts = self.hypervisor.facts()
        return ServiceVM(
            id=ServiceVMId(context.job.id),
            service_id=draft.id,
            disk=_disk(context),
            machine=MachineSpec(
                architecture=Architecture(facts.architecture),
                machine=facts.machine,
                cpu_model=facts.cpu_model,
                accelerator=facts.accelerator,
                emulator_version=facts.emulator_version,
            ),
            source=context.job.arguments["source"],
            host_id=context.job.host_id,
            created_at=context.job.created_at,
        )


def _disk(context: StepContext) -> StoredDisk:
    result = context.job.result
    blob = BlobRef(id=BlobId(result["blob"]), size_bytes=int(result["blob_bytes"]))
    return StoredDisk(blob=blob, virtual_size_bytes=int(result["virtual_bytes"]))
