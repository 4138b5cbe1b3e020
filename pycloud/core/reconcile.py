# SPDX-License-Identifier: Apache-2.0
"""Bring records, hypervisor, disks and leases into agreement again after anything died.

Runs at start-up and then periodically, on every server, and repairs what is on that
server's Host alone: of what is elsewhere it cannot tell whether it is gone. Running VMs
are adopted and never killed; domains that are not ours are never seen here. What looks
orphaned is only removed when a look in a later round finds it so again, because
between two writes of a healthy operation everything looks orphaned.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Protocol, TypeVar

from pycloud.core.apps import Apps
from pycloud.core.catalog import Catalog
from pycloud.core.exports import Exports
from pycloud.core.guests import Guests
from pycloud.core.instances import Instances, StopMode
from pycloud.core.instances.starting import failed
from pycloud.core.jobs import JobRunner
from pycloud.core.machines import domain_id_of
from pycloud.core.model.fleet import DomainInfo, ThisHost
from pycloud.core.model.identifiers import BlobId, InstanceId, JobId, Principal
from pycloud.core.model.runtime import (
    FINAL_JOB_STATES,
    LIVE_STATES,
    Failure,
    Instance,
    InstanceState,
    Job,
    JobKind,
    JobState,
)
from pycloud.core.ports import Blobs, Repository, Store, every
from pycloud.core.uploads import Uploads
from pycloud.core.warm_pool import WarmPool
from pycloud.errors import CloudletError, IllegalTransition, NotFound, StaleRecord

log = logging.getLogger(__name__)

_SYSTEM = Principal("system")
_EXECUTING = (InstanceState.RUNNING, InstanceState.PAUSED)
_STARTING = (InstanceState.REQUESTED, InstanceState.STARTING)
_GRACE_S = 2.0
"""A request, which unlike a Job holds no lease, makes all its writes within this time; rounds
may be set to come faster."""
_MOST_FINISHED = 1000
"""Of each kind and outcome. Clients whose starts are refused may try hundreds of times a second,
and to find what is popular every round reads all Instances: 50 ms for so many, from SQLite."""
_MOST_REPLIES = 20_000
_CONTENT_JOBS = frozenset(
    {
        JobKind.SERVICE_ADD,
        JobKind.SERVICE_IMPORT,
        JobKind.SERVICE_PREPARE,
        JobKind.SERVICE_EXPORT,
    }
)
"""Between taking content in and recording what it is for, nothing refers to it."""


class _Record(Protocol):
    """What all records have."""

    @property
    def id(self) -> str: ...

    @property
    def generation(self) -> int: ...


R = TypeVar("R", bound=_Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileOptions:
    """How long finished things are kept."""

    keep_finished_s: int
    keep_events: int


@dataclass(slots=True, kw_only=True)
class Reconciler:
    """One per server. `run` may be called from one thread at a time."""

    store: Store
    runner: JobRunner
    catalog: Catalog
    apps: Apps
    uploads: Uploads
    exports: Exports
    instances: Instances
    warm_pool: WarmPool
    guests: Guests
    blobs: Blobs
    options: ReconcileOptions
    _suspects: dict[str, float] = field(default_factory=dict, init=False)
    _seen: dict[str, float] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """Make one round; a part that fails is logged and tried again in the next round."""
        self._seen = {}
        for part in (
            self.runner.recover,
            self._instances_without_job,
            self._domains,
            self._orphan_domains,
            self._leases,
            self._staging,
            self._service_vms,
            self._content,
            self._overdue,
            self.uploads.drop_expired,
            self.exports.drop_expired,
            self._finished,
            self.warm_pool.maintain,
        ):
            _guarded(part.__name__, part)
        self._suspects = self._seen

    # -- records and reality -----------------------------------------------------------

    def _instances_without_job(self) -> None:
        """Repair Instances whose request or Job died between two writes."""
        for instance in self._instances_here(_STARTING):
            job = self._job_of(instance)
            over = job is None or job.is_final
            if over and self._is_orphan(f"start/{instance.id}"):
                lost = "the start was lost with its server"
                _guarded("start", partial(self._fail, instance, "interrupted", lost))
        for instance in self._instances_here((InstanceState.STOPPING,)):
            job = self._job_of(instance)
            if job is None and self._is_orphan(f"stop/{instance.id}"):
                self.instances.submit_stop(instance, StopMode.AT_ONCE, _SYSTEM)
            elif job is not None and job.is_final and self._is_orphan(f"stop/{instance.id}"):
                _guarded("stop", partial(self._stop_again, instance))

    def _stop_again(self, instance: Instance) -> None:
        renewed = replace(instance, job_id=JobId(f"{instance.id}-stop"))
        stored = self.store.instances.replace(renewed)
        self.store.jobs.remove(stored.job_id)
        self.instances.submit_stop(stored, StopMode.AT_ONCE, _SYSTEM)

    def _domains(self) -> None:
        """Adopt what runs, fail Instances whose domain died, forget copies that did."""
        domains = {domain.owner: domain for domain in self.guests.hypervisor.domains()}
        for instance in self._instances_here(_EXECUTING):
            _guarded("compare", partial(self._compare, instance, domains.get(instance.id)))
        for warm in every(self.store.warm_domains):
            dead = self._here.has(warm.host_id) and _is_dead(domains.get(warm.id))
            if dead and self._is_orphan(f"warm/{warm.id}"):
                self.store.warm_domains.remove(warm.id)

    def _orphan_domains(self) -> None:
        """Remove domains and disks of ours that belong to nobody."""
        hypervisor = self.guests.hypervisor
        found = {domain.owner for domain in hypervisor.domains()} | set(hypervisor.disk_owners())
        for owner in found - self._owners():
            if self._is_orphan(f"domain/{owner}"):
                log.warning("orphan_domain_removed", extra={"owner": owner})
                _guarded("destroy", partial(hypervisor.destroy, domain_id_of(owner), owner))

    def _compare(self, instance: Instance, domain: DomainInfo | None) -> None:
        if domain is None or _is_dead(domain):
            if self._is_orphan(f"instance/{instance.id}"):
                self._end(instance, domain)
            return
        if domain.state == "stalled" and instance.state is InstanceState.RUNNING:
            # Should there be no room yet, the guest stalls again at the same write.
            log.warning("guest_needs_disk_space", extra={"instance_id": instance.id})
            self.guests.hypervisor.resume(domain.id)
            return
        adopted = {"running": InstanceState.RUNNING, "paused": InstanceState.PAUSED}
        state = adopted.get(domain.state, instance.state)
        if state is not instance.state and self._is_orphan(f"state/{instance.id}"):
            self.instances.records.move(instance.id, state, by=_SYSTEM)

    def _end(self, instance: Instance, domain: DomainInfo | None) -> None:
        """Record that a guest ended by itself: a power-off is no failure, a crash is one."""
        tail = self.guests.view.serial_tail(instance.id, limit_bytes=8192)
        text = tail.decode("utf-8", "replace")
        if domain is not None and domain.state == "crashed":
            message = "the guest crashed; its last serial output is kept"
        else:
            message = "the VM ended without having been stopped by pycloud"
        self.instances.records.change(
            instance.id, lambda found: replace(found, serial_output=text), by=_SYSTEM
        )
        self._fail(instance, "guest_ended", message)

    def _fail(self, instance: Instance, code: str, message: str) -> None:
        self.guests.hypervisor.destroy(domain_id_of(instance.id), instance.id)
        self.guests.placement.release(instance.id)
        failure = Failure(code=code, message=message)
        self.instances.records.change(instance.id, lambda found: failed(found, failure), by=_SYSTEM)

    def _leases(self) -> None:
        """Give back room and ports whose holder is gone."""
        self.guests.placement.unblock_ports()
        for holder in self.guests.placement.holders() - self._owners():
            if self._is_orphan(f"holder/{holder}"):
                self.guests.placement.release(holder)

    def _staging(self) -> None:
        """Remove staging areas here of Jobs and uploads that are over."""
        jobs = {job.id for job in self._active_jobs()}
        uploads = {upload.id for upload in every(self.store.uploads)}
        for area in self.blobs.areas():
            if area not in jobs and area not in uploads and self._is_orphan(f"area/{area}"):
                self.blobs.discard(area)

    def _service_vms(self) -> None:
        """Remove ServiceVMs here whose Service is gone and that no Job is about to publish."""
        if self._is_content_moving():
            return
        services = {service.id for service in self.catalog.all_services()}
        for service_vm in every(self.store.service_vms):
            lost = service_vm.service_id not in services
            lost = lost and self._here.has(service_vm.host_id)
            if lost and self._is_orphan(f"service_vm/{service_vm.id}"):
                self.catalog.forget_service_vm(service_vm.id)

    def _content(self) -> None:
        """Remove content here that no record refers to, while nothing is being brought in.

        A record counts wherever it belongs: the same content on two Hosts stays on both.
        """
        if self._is_content_moving():
            return
        needed = self._referenced_blobs()
        for blob in self.blobs.stored():
            if blob.id in needed:
                continue
            # An App comes in without a Job, and what comes in again is not the same suspect.
            adoption = self.blobs.adoption(blob.id)
            if not self._is_orphan(f"blob/{blob.id}/{adoption}"):
                continue
            # Once more, because the same content may have come in again since.
            if blob.id not in self._referenced_blobs() and not self._is_content_moving():
                self.blobs.remove(blob.id, adoption=adoption)

    def _referenced_blobs(self) -> frozenset[BlobId]:
        return (
            self.catalog.referenced_blobs()
            | self.apps.referenced_blobs()
            | self.exports.referenced_blobs()
        )

    def _is_content_moving(self) -> bool:
        return any(
            job.kind in _CONTENT_JOBS and self._here.has(job.host_id) for job in self._active_jobs()
        )

    # -- time ------------------------------------------------------------------------

    def _overdue(self) -> None:
        self.instances.stop_overdue(by=_SYSTEM)

    def _finished(self) -> None:
        """Forget what ended long ago, and of what clients make without end all but the newest."""
        now = self.guests.clock.now()
        oldest = now - timedelta(seconds=self.options.keep_finished_s)
        for ended in (InstanceState.STOPPED, InstanceState.FAILED):
            _forget(
                self.store.instances,
                {"state": ended},
                # Nothing ends before it was made, so the later ones need no look.
                is_young=lambda instance: instance.created_at > oldest,
                is_over=lambda instance: instance.updated_at < oldest,
                most=_MOST_FINISHED,
            )
        for state in FINAL_JOB_STATES:
            _forget(
                self.store.jobs,
                {"state": state},
                is_young=lambda job: job.created_at > oldest,
                is_over=lambda job: job.finished_at is not None and job.finished_at < oldest,
                most=_MOST_FINISHED,
            )
        _forget(
            self.store.idempotent_replies,
            {},
            # All are kept equally long.
            is_young=lambda reply: reply.expires_at > now,
            is_over=lambda reply: reply.expires_at <= now,
            most=_MOST_REPLIES,
        )
        self.store.events.trim(keep=self.options.keep_events)

    # -- what there is ------------------------------------------------------------------

    def _is_orphan(self, suspect: str) -> bool:
        """Return whether this has been suspected for a while, in every round; remember it."""
        now = self.guests.clock.monotonic()
        since = self._seen[suspect] = self._suspects.get(suspect, now)
        return suspect in self._suspects and now - since >= _GRACE_S

    @property
    def _here(self) -> ThisHost:
        return self.guests.placement.this_host

    def _owners(self) -> frozenset[InstanceId]:
        """Return who may have a domain, on any Host: two may share one hypervisor."""
        owners = {instance.id for instance in self._in_states(LIVE_STATES)}
        owners |= {warm.id for warm in every(self.store.warm_domains)}
        for job in self._active_jobs():
            owners.add(InstanceId(job.id))
            owners |= {
                InstanceId(resource.removeprefix("instance/"))
                for resource in job.resources
                if resource.startswith("instance/")
            }
        return frozenset(owners)

    def _instances_here(self, states: Iterable[InstanceState]) -> tuple[Instance, ...]:
        found = self._in_states(states)
        return tuple(instance for instance in found if self._here.has(instance.host_id))

    def _in_states(self, states: Iterable[InstanceState]) -> tuple[Instance, ...]:
        return tuple(
            instance
            for state in states
            for instance in every(self.store.instances, {"state": state})
        )

    def _active_jobs(self) -> tuple[Job, ...]:
        return tuple(
            job
            for state in (JobState.QUEUED, JobState.RUNNING)
            for job in every(self.store.jobs, {"state": state})
        )

    def _job_of(self, instance: Instance) -> Job | None:
        try:
            return self.store.jobs.get(instance.job_id)
        except NotFound:
            return None


def _forget(
    repository: Repository[R],
    where: Mapping[str, str],
    *,
    is_young: Callable[[R], bool],
    is_over: Callable[[R], bool],
    most: int,
) -> None:
    """Remove records that are over, and beyond `most` the oldest ones.

    None that was made after a young one is over.
    """
    surplus = repository.count(where) - most
    for position, record in enumerate(every(repository, where)):
        if position >= surplus and is_young(record):
            return
        if position < surplus or is_over(record):
            remove = partial(repository.remove, generation=record.generation)
            _guarded("forget", partial(remove, record.id))


def _is_dead(domain: DomainInfo | None) -> bool:
    return domain is None or domain.state in {"shutoff", "crashed"}


def _guarded(what: str, action: Callable[[], None]) -> None:
    try:
        action()
    except (IllegalTransition, StaleRecord, NotFound) as exc:
        log.info("reconcile_was_overtaken", extra={"what": what, "reason": exc.message})
    except CloudletError as exc:
        fields = {"what": what, "code": exc.code, "reason": exc.message}
        log.warning("reconcile_failed", extra=fields)
    except Exception:  # Without this thread nothing would ever be repaired again.
        log.exception("reconcile_crashed", extra={"what": what})
