# SPDX-License-Identifier: Apache-2.0
"""How Services go out: as a `.csvm` package that other cloudlets, also old ones, import.

Old cloudlets want a libvirt save image, which our own memory states are not; so
the Service is booted once on plain devices and saved when it answers.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import BinaryIO

from pycloud.core.catalog import Catalog
from pycloud.core.drafts import draft_of
from pycloud.core.guests import Guests
from pycloud.core.jobs import Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.machines import domain_id_of, shape_of
from pycloud.core.model.catalog import Package, Service, ServiceVM
from pycloud.core.model.identifiers import (
    BlobId,
    InstanceId,
    JobId,
    PackageId,
    Principal,
    ServiceId,
    ServiceVMId,
)
from pycloud.core.model.runtime import Event, Job, JobKind
from pycloud.core.ports import Blobs, Packages, Slice, Store, UnpackedPackage, every
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import Conflict, NotFound

_PACKAGE = "package"
_DISK = "disk"
_STATE = "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """Packages made of Services. Safe to use from several threads."""

    store: Store
    catalog: Catalog
    jobs: Jobs
    guests: Guests
    blobs: Blobs
    packages: Packages
    warm_pool: WarmPool
    keep_s: int

    def request_export(
        self, service_id: ServiceId, *, job_id: JobId | None = None, by: Principal
    ) -> Job:
        """Ask for a package of a Service.

        Raises NotFound, Conflict, and DuplicateRecord if `job_id` was used before.
        """
        service, service_vm = self.catalog.startable(service_id)
        return self.jobs.submit(
            JobRequest(
                id=job_id,
                kind=JobKind.SERVICE_EXPORT,
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

    def package(self, package_id: PackageId) -> Package:
        """Return a finished package. Raises NotFound."""
        return self.store.packages.get(package_id)

    def list_packages(self, *, limit: int = 50, cursor: str | None = None) -> Slice[Package]:
        """Return a page of finished packages, oldest first."""
        return self.store.packages.find(limit=limit, cursor=cursor)

    def open(self, package: Package) -> BinaryIO:
        """Open a package for reading; the caller closes it. Raises OnAnotherHost."""
        self.guests.placement.this_host.require("package", package.id, package.host_id)
        return self.blobs.open(package.blob.id)

    def discard(self, package_id: PackageId, *, generation: int | None, by: Principal) -> None:
        """Remove a package that nobody needs any more. Raises NotFound, StaleRecord.

        It was whole when its record came to be, so no Job minds. Its content goes when
        nothing else uses it; who is reading it reads to the end.
        """
        package = self.package(package_id)
        expected = package.generation if generation is None else generation
        self.store.packages.remove(package_id, generation=expected)
        self.store.events.append(
            Event(
                time=self.guests.clock.now(),
                kind="package",
                action="removed",
                resource=f"package/{package_id}",
                actor=by,
                data={"service_id": package.service_id},
            )
        )

    def remove(self, package_id: PackageId) -> None:
        """Remove a package that was not to be or is over; idempotent."""
        self.store.packages.remove(package_id)

    def drop_expired(self) -> None:
        """Drop packages that have been kept long enough."""
        now = self.guests.clock.now()
        for package in every(self.store.packages):
            if package.expires_at <= now:
                self.remove(package.id)

    def referenced_blobs(self) -> frozenset[BlobId]:
        """Return all content that any package needs."""
        return frozenset(package.blob.id for package in every(self.store.packages))

    def procedures(self) -> tuple[Procedure, ...]:
        """Return the bodies of the Jobs of this capability."""
        return (
            Procedure(
                kind=JobKind.SERVICE_EXPORT,
                lane=Lane.CONTENT,
                recovery=Recovery.ROLL_BACK,
                is_complete=self._is_complete,
                steps=(
                    Step(name="reserve", run=self._reserve, undo=self._free),
                    Step(name="boot", run=self._boot, undo=self._destroy),
                    Step(name="ready", run=self._ready),
                    Step(name="save", run=self._save, unit="bytes"),
                    Step(name="pack", run=self._pack, unit="bytes"),
                    Step(name="publish", run=self._publish, undo=self._unpublish, unit="bytes"),
                    Step(name="free", run=self._free, final=True),
                ),
            ),
        )

    # -- steps -----------------------------------------------------------------------

    def _reserve(self, context: StepContext) -> None:
        service, _ = self._subject(context)
        self.warm_pool.claim_room(context.job.id, service.flavor)

    def _boot(self, context: StepContext) -> None:
        service, service_vm = self._subject(context)
        owner = _owner(context)
        self.guests.with_ports(
            owner,
            service,
            lambda ports: self.guests.hypervisor.start(
                self.guests.spec(owner, service, service_vm, ports), on_phase=context.mark
            ),
        )

    def _ready(self, context: StepContext) -> None:
        service, _ = self._subject(context)
        self.guests.await_answer(_owner(context), service, context)

    def _save(self, context: StepContext) -> None:
        service, service_vm = self._subject(context)
        owner = _owner(context)
        ports = self.guests.placement.ports_of(owner, service.port)
        spec = self.guests.spec(owner, service, service_vm, ports)
        self.guests.capture.save_image(
            spec, context.job.id, state=_STATE, disk=_DISK, report=context.report
        )
        self.guests.placement.release(owner)

    def _pack(self, context: StepContext) -> None:
        service, _ = self._subject(context)
        content = UnpackedPackage(draft=draft_of(service), disk=_DISK, state=_STATE)
        self.packages.pack(context.job.id, _PACKAGE, content=content, report=context.report)

    def _publish(self, context: StepContext) -> None:
        service, _ = self._subject(context)
        now = self.guests.clock.now()
        package = self.store.packages.add(
            Package(
                id=PackageId(context.job.id),
                service_id=service.id,
                file_name=f"{service.id}.csvm",
                blob=self.blobs.adopt(context.job.id, _PACKAGE, report=context.report),
                job_id=context.job.id,
                host_id=context.job.host_id,
                created_at=now,
                expires_at=now + timedelta(seconds=self.keep_s),
            )
        )
        _tell(context, package)

    def _unpublish(self, context: StepContext) -> None:
        self.remove(PackageId(context.job.id))

    def _destroy(self, context: StepContext) -> None:
        owner = _owner(context)
        self.guests.hypervisor.destroy(domain_id_of(owner), owner)

    def _free(self, context: StepContext) -> None:
        self.guests.placement.release(context.job.id)
        self.blobs.discard(context.job.id)

    def _is_complete(self, context: StepContext) -> bool:
        try:
            package = self.package(PackageId(context.job.id))
        except NotFound:
            return False
        _tell(context, package)
        return True

    def _subject(self, context: StepContext) -> tuple[Service, ServiceVM]:
        arguments = context.job.arguments
        service = self.catalog.service(ServiceId(arguments["service_id"]))
        if shape_of(service) != arguments["shape"]:
            raise Conflict(f"service {service.id!r} was changed meanwhile; export it again")
        return service, self.catalog.service_vm(ServiceVMId(arguments["service_vm_id"]))


def _tell(context: StepContext, package: Package) -> None:
    context.add_result("package_id", package.id)
    context.add_result("size_bytes", str(package.blob.size_bytes))


def _owner(context: StepContext) -> InstanceId:
    return InstanceId(context.job.id)
