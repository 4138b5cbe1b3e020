# SPDX-License-Identifier: Apache-2.0
"""The catalogue: which Services there are and which ServiceVM runs each.

It holds records only; how disks and memory states come to be is the business
of `intake` and `templates`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from pycloud.core.model.catalog import (
    MemoryState,
    OsType,
    Readiness,
    Service,
    ServiceDraft,
    ServiceVM,
)
from pycloud.core.model.changes import UNCHANGED, Unchanged, given_in
from pycloud.core.model.identifiers import BlobId, Principal, ServiceId, ServiceVMId, checked_id
from pycloud.core.model.runtime import Event
from pycloud.core.ports import Clock, Slice, Store, every
from pycloud.errors import Conflict, DuplicateRecord, InvalidInput, NotFound, StaleRecord

_MAX_TEXT = 4096
_MAX_TAGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceChanges:
    """What an operator may change of a Service; None means what it means in a Service."""

    version: str | Unchanged = UNCHANGED
    description: str | Unchanged = UNCHANGED
    tags: tuple[str, ...] | Unchanged = UNCHANGED
    port: int | Unchanged = UNCHANGED
    sharing_limit: int | Unchanged = UNCHANGED
    vcpus: int | Unchanged = UNCHANGED
    min_memory_mib: int | Unchanged = UNCHANGED
    ideal_memory_mib: int | Unchanged = UNCHANGED
    os_type: OsType | Unchanged = UNCHANGED
    readiness: Readiness | Unchanged = UNCHANGED
    warm_count: int | Unchanged | None = UNCHANGED
    idle_timeout_s: int | Unchanged | None = UNCHANGED
    max_lifetime_s: int | Unchanged | None = UNCHANGED


class Catalog:
    """Services and their ServiceVMs. Safe to use from several threads."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def services(self, *, limit: int = 50, cursor: str | None = None) -> Slice[Service]:
        """Return a page of Services, oldest first."""
        return self._store.services.find(limit=limit, cursor=cursor)

    def all_services(self) -> Iterator[Service]:
        """Iterate over every Service."""
        return every(self._store.services)

    def service(self, service_id: ServiceId) -> Service:
        """Return a Service. Raises NotFound."""
        return self._store.services.get(service_id)

    def revision(self) -> int:
        """Return a number that changes whenever any Service changes."""
        return self._store.services.revision()

    def service_vms(
        self, service_id: ServiceId | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> Slice[ServiceVM]:
        """Return a page of ServiceVMs, of one Service or of all."""
        where = {"service_id": service_id} if service_id is not None else None
        return self._store.service_vms.find(where, limit=limit, cursor=cursor)

    def all_service_vms(self, service_id: ServiceId) -> Iterator[ServiceVM]:
        """Iterate over every ServiceVM of a Service."""
        return every(self._store.service_vms, {"service_id": service_id})

    def service_vm(self, service_vm_id: ServiceVMId) -> ServiceVM:
        """Return a ServiceVM. Raises NotFound."""
        return self._store.service_vms.get(service_vm_id)

    def startable(self, service_id: ServiceId) -> tuple[Service, ServiceVM]:
        """Return a Service and its current ServiceVM. Raises NotFound, Conflict without one."""
        service = self.service(service_id)
        if service.service_vm_id is None:
            raise Conflict(f"service {service_id!r} has no VM yet; add or import one first")
        return service, self.service_vm(service.service_vm_id)

    def update_service(
        self,
        service_id: ServiceId,
        changes: ServiceChanges,
        *,
        generation: int | None,
        by: Principal,
    ) -> Service:
        """Change a Service; with `generation`, only if it is still that one.

        A change of the guest's machine drops the saved memory state, which fits only the
        one it was made on. Raises NotFound, StaleRecord, InvalidInput.
        """
        given = given_in(changes)
        while True:
            service = self.service(service_id)
            if generation is not None and generation != service.generation:
                raise StaleRecord("service", service_id)
            changed = replace(service, **given, updated_at=self._clock.now())
            check_service(changed)
            try:
                stored = self._store.services.replace(changed)
            except StaleRecord:
                continue
            break
        same_machine = (stored.flavor, stored.os_type) == (service.flavor, service.os_type)
        if not same_machine and service.service_vm_id is not None:
            self.set_memory(service.service_vm_id, None)
        self.record(stored.id, "updated", by)
        return stored

    def check_draft(self, draft: ServiceDraft) -> None:
        """Raise InvalidInput or DuplicateRecord unless the draft may become a Service."""
        checked_id(draft.id)
        if self._exists(draft.id):
            raise DuplicateRecord("service", draft.id)
        check_service(self._from_draft(draft))

    def publish(self, draft: ServiceDraft, service_vm: ServiceVM, *, by: Principal) -> Service:
        """Add a Service with its ServiceVM. Raises DuplicateRecord; then nothing is stored.

        The ServiceVM comes first: a Service is visible to phones at once and has to
        be startable, while a ServiceVM without one is swept up after a crash.
        """
        service = replace(self._from_draft(draft), service_vm_id=service_vm.id)
        self._store.service_vms.add(service_vm)
        try:
            stored = self._store.services.add(service)
        except DuplicateRecord:
            self._store.service_vms.remove(service_vm.id)
            raise
        self.record(stored.id, "added", by)
        return stored

    def unpublish(self, service_id: ServiceId, service_vm_id: ServiceVMId) -> None:
        """Take back what `publish` stored for this ServiceVM; idempotent."""
        if self.is_published(service_id, service_vm_id):
            self._store.services.remove(service_id)
        self._store.service_vms.remove(service_vm_id)

    def forget_service(self, service_id: ServiceId) -> None:
        """Take a Service out of the catalogue, so that nobody starts it; idempotent."""
        self._store.services.remove(service_id)

    def forget_service_vm(self, service_vm_id: ServiceVMId) -> None:
        """Remove a ServiceVM's record; its content goes when nothing needs it; idempotent."""
        self._store.service_vms.remove(service_vm_id)

    def is_published(self, service_id: ServiceId, service_vm_id: ServiceVMId) -> bool:
        """Return whether the Service is there and this is its ServiceVM."""
        try:
            return self.service(service_id).service_vm_id == service_vm_id
        except NotFound:
            return False

    def set_memory(self, service_vm_id: ServiceVMId, memory: MemoryState | None) -> ServiceVM:
        """Give a ServiceVM a memory state, or take it away. Raises NotFound."""
        while True:
            service_vm = self.service_vm(service_vm_id)
            if service_vm.memory == memory:
                return service_vm
            try:
                return self._store.service_vms.replace(replace(service_vm, memory=memory))
            except StaleRecord:
                continue

    def referenced_blobs(self) -> frozenset[BlobId]:
        """Return all content that any ServiceVM needs."""
        return frozenset(
            blob_id
            for service_vm in every(self._store.service_vms)
            for blob_id in _blobs_of(service_vm)
        )

    def record(self, service_id: ServiceId, action: str, by: Principal) -> None:
        """Append an event about a Service."""
        self._store.events.append(
            Event(
                time=self._clock.now(),
                kind="service",
                action=action,
                resource=f"service/{service_id}",
                actor=by,
            )
        )

    def _exists(self, service_id: ServiceId) -> bool:
        try:
            self.service(service_id)
        except NotFound:
            return False
        return True

    def _from_draft(self, draft: ServiceDraft) -> Service:
        now = self._clock.now()
        given = {item.name: getattr(draft, item.name) for item in fields(draft)}
        return Service(**given, created_at=now, updated_at=now)


def check_service(service: Service) -> None:
    """Raise InvalidInput, naming the field, unless the values make sense together."""
    limits = (
        ("port", service.port, 1, 65535),
        ("sharing_limit", service.sharing_limit, 1, 10_000),
        ("vcpus", service.vcpus, 1, 256),
        ("min_memory_mib", service.min_memory_mib, 16, 16_777_216),
        ("ideal_memory_mib", service.ideal_memory_mib, service.min_memory_mib, 16_777_216),
        ("warm_count", service.warm_count or 0, 0, 256),
        ("idle_timeout_s", service.idle_timeout_s or 0, 0, 31_536_000),
        ("max_lifetime_s", service.max_lifetime_s or 0, 0, 31_536_000),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise InvalidInput(f"{name} is {value}, allowed is {low} to {high}", pointer=f"/{name}")
    for name, text in (("version", service.version), ("description", service.description)):
        _require_plain(name, text)
    if len(service.tags) > _MAX_TAGS:
        raise InvalidInput(f"at most {_MAX_TAGS} tags are allowed", pointer="/tags")
    for tag in service.tags:
        _require_plain("tags", tag)
        if "," in tag:
            raise InvalidInput("a tag must not contain a comma", pointer="/tags")


def _require_plain(name: str, text: str) -> None:
    if len(text) > _MAX_TEXT or any(ord(char) < 32 and char not in "\n\t" for char in text):
        raise InvalidInput(
            f"{name} is plain text of at most {_MAX_TEXT} characters", pointer=f"/{name}"
        )


def _blobs_of(service_vm: ServiceVM) -> Iterator[BlobId]:
    disks = [service_vm.disk]
    if service_vm.memory is not None:
        disks.append(service_vm.memory.disk)
        yield service_vm.memory.memory.id
        if service_vm.memory.devices is not None:
            yield service_vm.memory.devices.id
    for disk in disks:
        yield disk.blob.id
        if disk.backing is not None:
            yield disk.backing.id
