# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison: a Core on real libvirt that prepares and starts demo Services.

Everything goes through the Core as it does for a client of the HTTP interface. Rounds of
maintenance are called by the measurement, not by the clock, so that none falls into one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pycloud.core.catalog import ServiceChanges
from pycloud.core.facade import Core
from pycloud.core.instances import StartRequest
from pycloud.core.intake import AddRequest
from pycloud.core.model.catalog import MemoryState, ServiceDraft, Upload
from pycloud.core.model.identifiers import InstanceId, JobId, Principal, ServiceId
from pycloud.core.model.runtime import Instance, Job, JobKind, JobState, StartMethod
from pycloud.settings import Settings, from_mapping
from pycloud.wiring import build_core
from testing.bench.phone import await_first_byte, touch_memory
from testing.guest import guest_image

OPERATOR = Principal("admin")
GUEST_PORT = 8080
USED_SHARE = 0.4
"""Of its memory a guest has written to this much when it is saved."""
WAIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start; times in seconds since the request."""

    instance: Instance
    ready_s: float
    """The client was told the port, and not before the service had answered once."""
    answer_s: float
    """The client had the first byte of its own answer."""


def used_mib(memory_mib: int) -> int:
    """Return how much of a guest's memory is in use when it is saved."""
    return round(memory_mib * USED_SHARE)


def settings_for(data_dir: Path) -> Settings:
    """Return settings of a cloudlet that is left alone by its background rounds."""
    return from_mapping(
        {
            "pycloud.data_dir": str(data_dir),
            "pycloud.discovery": "off",
            "pycloud.reconcile_s": "3600",
            "pycloud.port_range": "25000-25999",
            "pycloud.publish_bind": "127.0.0.1",
            "pycloud.reserved_memory_mib": "0",
            "pycloud.memory_overcommit": "8",
            "pycloud.max_instances": "128",
            "pycloud.warm_total": "16",
            "pycloud.warm_min_free_mib": "0",
        }
    ).settings


class OurCloudlet:
    """A Core with demo Services of different sizes. Starts may come from several threads."""

    def __init__(self, data_dir: Path) -> None:
        self.core: Core = build_core(settings_for(data_dir), observers=[self._before_step])
        self._touch_mib = 0

    def add_service(self, memory_mib: int) -> ServiceId:
        """Add a Service and save the memory of its guest while a good part of it is in use."""
        service_id = ServiceId(f"demo-{memory_mib}")
        self._touch_mib = used_mib(memory_mib)
        added = self._add(_draft(service_id, memory_mib), prepare=True)
        self._finished(self.core.jobs.job(JobId(added.result["prepare_job"])))
        return service_id

    def add_cold_service(self, memory_mib: int) -> ServiceId:
        """Add a Service that has no memory state and so boots at every start."""
        service_id = ServiceId(f"cold-{memory_mib}")
        self._add(_draft(service_id, memory_mib), prepare=False)
        return service_id

    def memory_of(self, service_id: ServiceId) -> MemoryState:
        """Return the memory state of a Service that was prepared."""
        memory = self.core.catalog.startable(service_id)[1].memory
        assert memory is not None
        return memory

    def fill_pool(self, service_id: ServiceId, count: int) -> None:
        """Let this many copies of a Service wait; made as a round of maintenance makes them."""
        self._want_copies(service_id, count)
        self.core.instances.warm_pool.maintain()
        for job in self.core.jobs.active():
            self._finished(job)
        waiting = self.core.background.store.warm_domains.find({"service_id": service_id}).items
        assert len(waiting) == count, waiting

    def drain_pool(self, service_id: ServiceId) -> None:
        """Let no copy of a Service wait."""
        self._want_copies(service_id, 0)
        self.core.instances.warm_pool.evict_service(service_id)

    def start(self, service_id: ServiceId, expected: StartMethod) -> Start:
        """Start an Instance and ask it as a client does."""
        begin_s = time.perf_counter()
        request = StartRequest(service_id=service_id)
        started = self.core.instances.request_start(request, by=OPERATOR)
        job = self.core.jobs.wait(started.instance.job_id, timeout_s=WAIT_S)
        instance = self.core.instances.instance(started.instance.id)
        ready_s = time.perf_counter() - begin_s
        assert job.state is JobState.SUCCEEDED, job.failure
        await_first_byte(instance.ports[0].host_port)
        answer_s = time.perf_counter() - begin_s
        assert instance.start_method is expected, instance.start_method
        return Start(instance=instance, ready_s=ready_s, answer_s=answer_s)

    def stop(self, *instance_ids: InstanceId) -> None:
        """Stop Instances, all at the same time, and wait for their ends."""
        instances = self.core.instances
        for job in [instances.request_stop(each, by=OPERATOR) for each in instance_ids]:
            self._finished(job)

    def close(self) -> None:
        """End all guests and the server."""
        running = self.core.instances.instances({"state": "running"}, limit=500).items
        self.stop(*(instance.id for instance in running))
        while self.core.instances.warm_pool.evict_one():
            continue
        self.core.background.stop()

    def _want_copies(self, service_id: ServiceId, count: int) -> None:
        changes = ServiceChanges(warm_count=count)
        self.core.catalog.update_service(service_id, changes, generation=None, by=OPERATOR)

    def _add(self, draft: ServiceDraft, *, prepare: bool) -> Job:
        upload_id = self._uploaded(guest_image()).id
        request = AddRequest(draft=draft, upload_id=upload_id, prepare=prepare)
        return self._finished(self.core.intake.request_add(request, by=OPERATOR))

    def _uploaded(self, path: Path) -> Upload:
        announced = self.core.uploads.create(path.name, path.stat().st_size, by=OPERATOR)
        with path.open("rb") as stream:
            return self.core.uploads.append(announced.id, 0, stream)

    def _finished(self, job: Job) -> Job:
        done = self.core.jobs.wait(job.id, timeout_s=WAIT_S)
        assert done.state is JobState.SUCCEEDED, done.failure
        return done

    def _before_step(self, kind: JobKind, step: str, moment: str) -> None:
        """Let a template's guest use its memory before that is taken."""
        if (kind, step, moment) == (JobKind.SERVICE_PREPARE, "capture", "begin"):
            (lease,) = self.core.background.store.port_leases.find().items
            touch_memory(lease.port, self._touch_mib)


@contextmanager
def our_cloudlet(data_dir: Path) -> Iterator[OurCloudlet]:
    """Run a cloudlet for a while; none of its guests outlives it."""
    cloudlet = OurCloudlet(data_dir)
    cloudlet.core.background.start()
    try:
        yield cloudlet
    finally:
        cloudlet.close()


def _draft(service_id: ServiceId, memory_mib: int) -> ServiceDraft:
    return ServiceDraft(
        id=service_id,
        port=GUEST_PORT,
        min_memory_mib=memory_mib,
        ideal_memory_mib=memory_mib,
        warm_count=0,
    )
