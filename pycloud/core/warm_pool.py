# SPDX-License-Identifier: Apache-2.0
"""Copies of popular Services that are loaded and paused, so that a start only resumes one.

A copy is claimed by removing its record: exactly one of several servers wins.
Copies are a luxury: they are bounded, made in the background, and given up at
once when memory is short or somebody else needs the room.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

from pycloud.core.catalog import Catalog
from pycloud.core.guests import Guests
from pycloud.core.jobs import Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.machines import domain_id_of, resumed, usable_memory
from pycloud.core.model.catalog import MemoryKind, MemoryState, Service, ServiceVM
from pycloud.core.model.identifiers import InstanceId, Principal, ServiceId
from pycloud.core.model.runtime import JobKind, WarmDomain
from pycloud.core.ports import Store
from pycloud.errors import CapacityExceeded, NotFound, StaleRecord, StateUnusable

log = logging.getLogger(__name__)

_SYSTEM = Principal("system")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmOptions:
    """How many copies may wait; see the settings of the same names."""

    total: int
    per_service: int
    popular_s: int
    min_free_mib: int


class WarmPool:
    """Waiting copies on one Host. Safe to use from several threads and servers."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        jobs: Jobs,
        guests: Guests,
        options: WarmOptions,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._jobs = jobs
        self._guests = guests
        self._options = options

    def claim(self, service: Service, service_vm: ServiceVM) -> WarmDomain | None:
        """Take a waiting copy of exactly this VM, None if there is none.

        Its room on the Host stays claimed under its id, which the Instance takes over.
        """
        for warm in self._store.warm_domains.find({"service_vm_id": service_vm.id}).items:
            if (warm.memory_mib, warm.vcpus) != (service.ideal_memory_mib, service.vcpus):
                continue
            if self._take(warm):
                return warm
        return None

    def evict_one(self) -> bool:
        """Give up the oldest waiting copy; False if none is left."""
        for warm in self._store.warm_domains.find(limit=8).items:
            if self._take(warm):
                self._end(warm)
                return True
        return False

    def evict_service(self, service_id: ServiceId) -> None:
        """Give up all waiting copies of a Service."""
        for warm in self._store.warm_domains.find({"service_id": service_id}).items:
            if self._take(warm):
                self._end(warm)

    def maintain(self) -> None:
        """Start to make copies that are wanted and give up those that are not."""
        wanted = self._wanted()
        waiting = Counter(warm.service_id for warm in self._store.warm_domains.find().items)
        coming = Counter(
            ServiceId(job.arguments["service_id"])
            for job in self._jobs.active()
            if job.kind is JobKind.WARM_FILL
        )
        for warm in self._store.warm_domains.find().items:
            if waiting[warm.service_id] > wanted.get(warm.service_id, 0) and self._take(warm):
                waiting[warm.service_id] -= 1
                self._end(warm)
        room = self._options.total - waiting.total() - coming.total()
        for service_id, count in wanted.items():
            missing = min(count - waiting[service_id] - coming[service_id], room)
            for _ in range(missing):
                self._request_fill(service_id)
            room -= max(missing, 0)

    def procedures(self) -> tuple[Procedure, ...]:
        """Return the bodies of the Jobs of this capability."""
        return (
            Procedure(
                kind=JobKind.WARM_FILL,
                lane=Lane.BACKGROUND,
                recovery=Recovery.ROLL_BACK,
                is_complete=self._is_complete,
                steps=(
                    Step(name="reserve", run=self._reserve, undo=self._free),
                    Step(name="load", run=self._load, undo=self._destroy),
                    Step(name="publish", run=self._publish, final=True),
                ),
            ),
        )

    # -- which copies --------------------------------------------------------------

    def _wanted(self) -> Mapping[ServiceId, int]:
        if self._options.total == 0 or self._memory_is_short():
            return {}
        popular = self._popular()
        wanted: dict[ServiceId, int] = {}
        for service in self._catalog.all_services():
            count = service.warm_count
            if count is None:
                count = self._options.per_service if service.id in popular else 0
            if count > 0 and self._memory_for(service) is not None:
                wanted[service.id] = count
        return wanted

    def _popular(self) -> frozenset[ServiceId]:
        since = self._guests.clock.now() - timedelta(seconds=self._options.popular_s)
        instances = self._store.instances.find(limit=10_000).items
        return frozenset(item.service_id for item in instances if item.created_at >= since)

    def _memory_is_short(self) -> bool:
        free_bytes = self._guests.sensors.metadata().memory.free_bytes
        return free_bytes < self._options.min_free_mib * _MIB

    def _memory_for(self, service: Service) -> MemoryState | None:
        if service.service_vm_id is None:
            return None
        try:
            service_vm = self._catalog.service_vm(service.service_vm_id)
        except NotFound:
            return None
        memory = usable_memory(service, service_vm, self._guests.options.network)
        return memory if memory is not None and memory.kind is MemoryKind.TEMPLATE else None

    # -- making one ----------------------------------------------------------------

    def _request_fill(self, service_id: ServiceId) -> None:
        owner = uuid4().hex
        self._jobs.submit(
            JobRequest(
                kind=JobKind.WARM_FILL,
                arguments={"service_id": service_id, "owner": owner},
                resources=(f"service/{service_id}", f"instance/{owner}"),
                created_by=_SYSTEM,
            )
        )

    def _reserve(self, context: StepContext) -> None:
        service = self._catalog.service(ServiceId(context.job.arguments["service_id"]))
        if self._memory_is_short():
            raise CapacityExceeded("memory is short; no copies are kept waiting")
        self._guests.placement.claim(_owner(context), service.flavor)

    def _load(self, context: StepContext) -> None:
        service, service_vm = self._catalog.startable(
            ServiceId(context.job.arguments["service_id"])
        )
        memory = self._memory_for(service)
        if memory is None:
            raise StateUnusable(f"service {service.id!r} has no memory state for waiting copies")
        spec = self._guests.spec(_owner(context), service, service_vm)
        self._guests.hypervisor.start_held(resumed(spec, memory))

    def _publish(self, context: StepContext) -> None:
        service, service_vm = self._catalog.startable(
            ServiceId(context.job.arguments["service_id"])
        )
        owner = _owner(context)
        self._store.warm_domains.add(
            WarmDomain(
                id=owner,
                service_id=service.id,
                service_vm_id=service_vm.id,
                host_id=self._guests.placement.host_id,
                domain_id=domain_id_of(owner),
                memory_mib=service.ideal_memory_mib,
                vcpus=service.vcpus,
                created_at=self._guests.clock.now(),
            )
        )

    def _is_complete(self, context: StepContext) -> bool:
        # A copy that somebody claimed meanwhile is an Instance now, and not ours to undo.
        owner = _owner(context)
        for repository in (self._store.warm_domains, self._store.instances):
            try:
                repository.get(owner)
            except NotFound:
                continue
            return True
        return False

    def _destroy(self, context: StepContext) -> None:
        owner = _owner(context)
        self._guests.hypervisor.destroy(domain_id_of(owner), owner)

    def _free(self, context: StepContext) -> None:
        self._guests.placement.release(_owner(context))

    # -- giving one up ---------------------------------------------------------------

    def _take(self, warm: WarmDomain) -> bool:
        try:
            self._store.warm_domains.remove(warm.id, generation=warm.generation)
        except (NotFound, StaleRecord):
            return False
        return True

    def _end(self, warm: WarmDomain) -> None:
        log.info("warm_copy_given_up", extra={"service_id": warm.service_id, "id": warm.id})
        self._guests.hypervisor.destroy(warm.domain_id, warm.id)
        self._guests.placement.release(warm.id)


def _owner(context: StepContext) -> InstanceId:
    return InstanceId(context.job.arguments["owner"])
