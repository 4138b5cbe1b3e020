# SPDX-License-Identifier: Apache-2.0
"""Copies of popular Services that are loaded and paused, so that a start only resumes one.

Each has answered once before it waits: a first answer from a fresh copy costs an emulator
without KVM the translation of all the code behind it, 0.16 s where a second one takes 0.05 s.
A copy is claimed by removing its record: exactly one of several servers wins.
A server makes and gives up copies on its own Host alone; to claim one is free to all.
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
from pycloud.core.model.catalog import Flavor, MemoryKind, MemoryState, Service, ServiceVM
from pycloud.core.model.fleet import ThisHost
from pycloud.core.model.identifiers import InstanceId, Principal, ServiceId, ServiceVMId
from pycloud.core.model.runtime import Instance, Job, JobKind, JobState, WarmDomain
from pycloud.core.ports import Repository, Store, every
from pycloud.errors import CapacityExceeded, Conflict, NotFound, StaleRecord, StateUnusable

log = logging.getLogger(__name__)

_SYSTEM = Principal("system")
_MIB = 1024 * 1024
_REST = timedelta(minutes=1)
"""How long no copy of a Service is made after one failed."""
_FILL_END_S = 5.0
"""How long a start waits for the room of a copy that is just being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmOptions:
    """How many copies may wait; see the settings of the same names."""

    total: int
    per_service: int
    popular_s: int
    min_free_mib: int


class WarmPool:
    """Waiting copies on this Host. Safe to use from several threads and servers."""

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
            if _is_copy_of(warm, service) and self._take(warm):
                return warm
        return None

    def claim_room(self, holder: str, flavor: Flavor) -> None:
        """Claim room on the Host; where that helps, copies are given up for it.

        Raises CapacityExceeded.
        """
        placement = self._guests.placement
        while True:
            try:
                placement.claim(holder, flavor)
            except CapacityExceeded:
                filling = self._fills(JobState.RUNNING)
                luxury = {warm.id for warm in self._waiting()}
                luxury |= {InstanceId(job.arguments["owner"]) for job in filling}
                if not placement.could_fit(flavor, without=luxury):
                    raise
                if not self.evict_one() and not any(map(self._end_fill, filling)):
                    raise
            else:
                return

    def evict_one(self) -> bool:
        """Give up the oldest waiting copy; False if none is left."""
        for warm in self._waiting():
            if self._take(warm):
                self._end(warm)
                return True
        return False

    def evict_service(self, service_id: ServiceId) -> None:
        """Give up all waiting copies of a Service."""
        for warm in self._waiting():
            if warm.service_id == service_id and self._take(warm):
                self._end(warm)

    def maintain(self) -> None:
        """Start to make copies that are wanted and give up those that are not."""
        wanted = self._wanted()
        waiting = self._give_up_unwanted(wanted)
        coming = Counter(ServiceId(job.arguments["service_id"]) for job in self._active_fills())
        resting = self._resting()
        room = self._options.total - waiting.total() - coming.total()
        spare_mib = self._spare_mib()
        for service_id, (service, count) in wanted.items():
            missing = count - waiting[service_id] - coming[service_id]
            while missing > 0 and room > 0 and service_id not in resting:
                spare_mib -= self._cost_mib(service)
                if spare_mib < 0:
                    return
                self._request_fill(service_id)
                missing, room = missing - 1, room - 1

    def _give_up_unwanted(self, wanted: Mapping[ServiceId, tuple[Service, int]]) -> Counter[str]:
        """Give up copies that are too many or of no use; return how many wait per Service."""
        waiting: Counter[str] = Counter()
        # The newest first: they are the last to be given up.
        for warm in reversed(self._waiting()):
            service, count = wanted.get(warm.service_id, (None, 0))
            fits = service is not None and _is_copy_of(warm, service)
            if fits and waiting[warm.service_id] < count and waiting.total() < self._options.total:
                waiting[warm.service_id] += 1
            elif self._take(warm):
                self._end(warm)
        return waiting

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
                    Step(name="rehearse", run=self._rehearse),
                    Step(name="publish", run=self._publish, undo=self._unpublish, final=True),
                ),
            ),
        )

    # -- which copies --------------------------------------------------------------

    def _waiting(self) -> tuple[WarmDomain, ...]:
        """Return the copies on this Host, the oldest first."""
        found = every(self._store.warm_domains)
        return tuple(warm for warm in found if self._here.has(warm.host_id))

    @property
    def _here(self) -> ThisHost:
        return self._guests.placement.this_host

    def _wanted(self) -> Mapping[ServiceId, tuple[Service, int]]:
        if self._options.total == 0 or self._spare_mib() < 0:
            return {}
        popular = self._popular()
        wanted: dict[ServiceId, tuple[Service, int]] = {}
        for service in self._catalog.all_services():
            count = service.warm_count
            if count is None:
                count = self._options.per_service if service.id in popular else 0
            if count > 0 and self._memory_for(service) is not None:
                wanted[service.id] = (service, count)
        return wanted

    def _popular(self) -> frozenset[ServiceId]:
        since = self._guests.clock.now() - timedelta(seconds=self._options.popular_s)
        instances = every(self._store.instances)
        return frozenset(item.service_id for item in instances if item.created_at >= since)

    def _spare_mib(self) -> int:
        """Return the free memory that copies may use, below 0 when memory is short."""
        free_bytes = self._guests.sensors.metadata().memory.free_bytes
        return free_bytes // _MIB - self._options.min_free_mib

    def _cost_mib(self, service: Service) -> int:
        return service.ideal_memory_mib + self._guests.hypervisor.facts().overhead_mib

    def _resting(self) -> frozenset[str]:
        """Return the Services whose copy could not be made a moment ago."""
        since = self._guests.clock.now() - _REST
        return frozenset(
            job.arguments["service_id"]
            for job in self._fills(JobState.FAILED)
            if job.finished_at is not None and job.finished_at > since
        )

    def _active_fills(self) -> tuple[Job, ...]:
        return (*self._fills(JobState.QUEUED), *self._fills(JobState.RUNNING))

    def _fills(self, state: JobState) -> tuple[Job, ...]:
        where = {"kind": JobKind.WARM_FILL, "state": state}
        found = every(self._store.jobs, where)
        return tuple(job for job in found if self._here.has(job.host_id))

    def _memory_for(self, service: Service) -> MemoryState | None:
        if service.service_vm_id is None:
            return None
        try:
            service_vm = self._catalog.service_vm(service.service_vm_id)
        except NotFound:
            return None
        if not self._here.has(service_vm.host_id):
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
        if self._spare_mib() < self._cost_mib(service):
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
        # What was loaded, not what the Service looks like when it is published.
        context.add_result("service_vm_id", service_vm.id)
        context.add_result("memory_mib", str(spec.memory_mib))
        context.add_result("vcpus", str(spec.vcpus))

    def _rehearse(self, context: StepContext) -> None:
        """Let the copy answer once; the port leased for that stays with it."""
        service = self._catalog.service(ServiceId(context.job.arguments["service_id"]))
        owner, hypervisor = _owner(context), self._guests.hypervisor
        domain_id = domain_id_of(owner)
        self._guests.with_ports(
            owner,
            service,
            lambda ports: hypervisor.release(domain_id, ports, on_phase=context.mark),
        )
        self._guests.await_answer(owner, service, context)
        hypervisor.hold(domain_id)

    def _publish(self, context: StepContext) -> None:
        service = self._catalog.service(ServiceId(context.job.arguments["service_id"]))
        owner, loaded = _owner(context), context.job.result
        self._store.warm_domains.add(
            WarmDomain(
                id=owner,
                service_id=service.id,
                service_vm_id=ServiceVMId(loaded["service_vm_id"]),
                host_id=self._guests.placement.host_id,
                domain_id=domain_id_of(owner),
                memory_mib=int(loaded["memory_mib"]),
                vcpus=int(loaded["vcpus"]),
                created_at=context.job.created_at,
            )
        )

    def _is_complete(self, context: StepContext) -> bool:
        owner = _owner(context)
        return _exists(self._store.warm_domains, owner) or self._is_claimed(owner)

    def _is_claimed(self, owner: InstanceId) -> bool:
        """Return whether a copy is an Instance by now, and not ours to undo any more."""
        return _exists(self._store.instances, owner)

    def _unpublish(self, context: StepContext) -> None:
        self._store.warm_domains.remove(_owner(context))

    def _destroy(self, context: StepContext) -> None:
        owner = _owner(context)
        if not self._is_claimed(owner):
            self._guests.hypervisor.destroy(domain_id_of(owner), owner)

    def _free(self, context: StepContext) -> None:
        owner = _owner(context)
        if not self._is_claimed(owner):
            self._guests.placement.release(owner)

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

    def _end_fill(self, job: Job) -> bool:
        """Stop the making of a copy; False if that takes too long."""
        try:
            self._jobs.cancel(job.id, by=_SYSTEM)
        except (Conflict, NotFound):
            log.info("warm_copy_is_ready", extra={"job_id": job.id})
        return self._jobs.wait(job.id, timeout_s=_FILL_END_S).is_final


def _is_copy_of(warm: WarmDomain, service: Service) -> bool:
    asked = (service.service_vm_id, service.ideal_memory_mib, service.vcpus)
    if (warm.service_vm_id, warm.memory_mib, warm.vcpus) != asked:
        return False
    # A copy publishes the port that the Service had when it was asked for.
    return warm.created_at >= service.updated_at


def _exists(repository: Repository[WarmDomain] | Repository[Instance], record_id: str) -> bool:
    try:
        repository.get(record_id)
    except NotFound:
        return False
    return True


def _owner(context: StepContext) -> InstanceId:
    return InstanceId(context.job.arguments["owner"])
