# SPDX-License-Identifier: Apache-2.0
"""Memory states and packages: both boot the Service once and leave nothing of that."""

from dataclasses import replace

import pytest

from pycloud.adapters.fakes.network import Answer
from pycloud.core.access import ADMIN
from pycloud.core.catalog import ServiceChanges
from pycloud.core.model.catalog import OsType
from pycloud.core.model.identifiers import PackageId
from pycloud.core.model.runtime import JobKind, JobState
from pycloud.errors import Conflict, HypervisorError, NotFound, StaleRecord
from testing.composed import BASE_SETTINGS, a_core
from testing.factories import HISTOGRAM, a_memory_state
from testing.unit.core.steps import a_small_host, crash


def prepare(composed):
    return composed.core.templates.request_prepare(HISTOGRAM, by=ADMIN)


def export(composed):
    return composed.core.exports.request_export(HISTOGRAM, by=ADMIN)


BOTH = pytest.mark.parametrize("request_job", [prepare, export])
STEPS = {
    JobKind.SERVICE_PREPARE: ["reserve", "boot", "ready", "capture"],
    JobKind.SERVICE_EXPORT: ["reserve", "boot", "ready", "save", "pack"],
}


def finished(composed, job):
    composed.run_jobs()
    return composed.core.jobs.job(job.id)


def memory_of(composed):
    return composed.core.catalog.startable(HISTOGRAM)[1].memory


def packages(composed):
    return composed.core.exports.list_packages().items


@BOTH
def test_job_leaves_nothing_but_its_product(cold, request_job):
    job = finished(cold, request_job(cold))

    assert job.state is JobState.SUCCEEDED
    assert cold.leftovers() == ()
    assert (memory_of(cold) is not None) == (request_job is prepare)
    assert len(packages(cold)) == (request_job is export)


@BOTH
@pytest.mark.parametrize("fault", ["boot", "answer", "room"])
def test_failed_job_leaves_nothing(cold, request_job, fault):
    if fault == "boot":
        cold.hypervisor.fail_next("start", HypervisorError("no"))
    elif fault == "answer":
        cold.probe.answer = Answer.NEVER
    else:
        a_small_host(cold, free_mib=10)

    job = finished(cold, request_job(cold))

    assert job.state is JobState.FAILED
    assert (cold.leftovers(), memory_of(cold), packages(cold)) == ((), None, ())


@BOTH
def test_job_takes_the_room_of_a_waiting_copy(warm, request_job):
    a_small_host(warm, free_mib=0)

    assert finished(warm, request_job(warm)).state is JobState.SUCCEEDED
    assert warm.store.warm_domains.count() == 0


@BOTH
def test_job_stops_when_the_service_changes_under_it(request_job):
    def change(_kind, name, moment):
        if (name, moment) == ("ready", "end"):
            composed.core.catalog.update_service(
                HISTOGRAM, ServiceChanges(ideal_memory_mib=512), generation=None, by=ADMIN
            )

    composed = a_core(observers=(change,))
    composed.add_service()

    job = finished(composed, request_job(composed))

    assert (job.state, job.failure.code) == (JobState.FAILED, "conflict")
    assert (composed.leftovers(), memory_of(composed)) == ((), None)


@BOTH
def test_job_stops_when_the_service_is_removed_under_it(request_job):
    def remove(_kind, name, moment):
        if (name, moment) == ("ready", "end"):
            composed.store.services.remove(HISTOGRAM)

    composed = a_core(observers=(remove,))
    composed.add_service()

    job = finished(composed, request_job(composed))

    assert (job.failure.code, composed.leftovers()) == ("not_found", ())


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize(
    ("kind", "step"), [(kind, step) for kind, steps in STEPS.items() for step in steps]
)
def test_crashed_job_leaves_nothing(cold, kind, step, moment):
    job = prepare(cold) if kind is JobKind.SERVICE_PREPARE else export(cold)
    crash(cold, job, step, moment)
    cold.clock.advance(10)

    cold.core.background.runner.recover()

    assert cold.core.jobs.job(job.id).state is JobState.FAILED
    assert (cold.leftovers(), packages(cold)) == ((), ())


@pytest.mark.parametrize("step", ["publish", "free"])
def test_export_that_crashed_behind_its_package_has_succeeded(cold, step):
    job = export(cold)
    crash(cold, job, step)
    cold.clock.advance(10)

    cold.core.background.runner.recover()
    cold.reconcile(2)

    found = cold.core.jobs.job(job.id)
    assert (found.state, found.result["package_id"]) == (JobState.SUCCEEDED, job.id)
    assert int(found.result["size_bytes"]) > 0
    assert cold.leftovers() == ()


def test_preparation_that_crashed_behind_its_record_has_succeeded(cold):
    job = prepare(cold)
    crash(cold, job, "free", "begin")
    cold.clock.advance(10)

    cold.core.background.runner.recover()
    cold.reconcile(2)

    assert cold.core.jobs.job(job.id).state is JobState.SUCCEEDED
    assert (memory_of(cold) is not None, cold.leftovers()) == (True, ())


def test_cancelled_export_leaves_no_package():
    def cancel(kind, name, moment):
        if (kind, name, moment) == (JobKind.SERVICE_EXPORT, "publish", "end"):
            composed.core.jobs.cancel(job.id, by=ADMIN)

    composed = a_core(observers=(cancel,))
    composed.add_service()
    job = export(composed)

    assert finished(composed, job).state is JobState.CANCELLED
    assert packages(composed) == ()


@pytest.mark.parametrize("step", ["save", "pack", "publish"])
def test_export_shows_progress_and_can_be_cancelled_in_every_long_step(step):
    moments = []

    def cancel(kind, name, moment):
        if (kind, name) == (JobKind.SERVICE_EXPORT, step):
            moments.append(moment)
            if moment == "begin":
                composed.core.jobs.cancel(job.id, by=ADMIN)

    composed = a_core(observers=(cancel,))
    composed.add_service()
    job = export(composed)

    ended = finished(composed, job)

    assert (ended.state, ended.stage, "end" in moments) == (JobState.CANCELLED, step, False)
    assert (composed.leftovers(), packages(composed)) == ((), ())
    assert ended.progress.unit == "bytes"


def test_failed_preparation_keeps_an_earlier_state(instant):
    before = memory_of(instant)
    instant.hypervisor.fail_next("capture_template", HypervisorError("no"))

    finished(instant, prepare(instant))

    assert memory_of(instant) == before


def test_preparation_is_refused_for_guests_on_a_bridge():
    composed = a_core(settings=replace(BASE_SETTINGS, network_bridge="br0"))
    composed.add_service(prepare=True)

    with pytest.raises(Conflict, match="MAC address"):
        prepare(composed)
    assert memory_of(composed) is None


def test_bridged_guest_is_reached_at_its_own_address_and_port():
    composed = a_core(settings=replace(BASE_SETTINGS, network_bridge="br0"))
    composed.add_service()

    instance = composed.start(HISTOGRAM)

    assert (instance.address, instance.published_port()) == ("192.0.2.100", 8080)
    assert instance.ports == ()


def test_bridged_guest_without_address_fails_at_the_deadline():
    composed = a_core(settings=replace(BASE_SETTINGS, network_bridge="br0"))
    composed.add_service()
    composed.hypervisor.address = lambda _domain_id: None

    instance = composed.start(HISTOGRAM)

    assert (instance.failure.code, composed.leftovers()) == ("address_unknown", ())
    assert "br0" in instance.failure.message


def test_package_is_kept_for_a_while_and_can_be_removed(cold):
    job = finished(cold, export(cold))
    package = cold.core.exports.package(PackageId(job.result["package_id"]))
    with cold.core.exports.open(package) as stream:
        size = len(stream.read())

    cold.core.exports.remove(package.id)
    cold.core.exports.remove(package.id)

    assert (package.file_name, package.blob.size_bytes) == ("histogram.csvm", size)
    with pytest.raises(NotFound):
        cold.core.exports.package(package.id)


def test_package_that_nobody_needs_gives_back_its_room(cold):
    package = cold.core.exports.package(PackageId(finished(cold, export(cold)).id))

    cold.core.exports.discard(package.id, generation=package.generation, by=ADMIN)
    cold.reconcile(2)

    assert package.blob not in list(cold.blobs.stored())
    with pytest.raises(NotFound):
        cold.core.exports.discard(package.id, generation=None, by=ADMIN)


# -- a memory state that no longer fits -------------------------------------------------


def change(composed, **changes):
    return composed.core.templates.change_service(
        HISTOGRAM, ServiceChanges(**changes), generation=None, by=ADMIN
    )


@pytest.mark.parametrize(
    "changes", [{"ideal_memory_mib": 512}, {"vcpus": 2}, {"os_type": OsType.WINDOWS}]
)
def test_change_of_the_machine_makes_the_memory_state_anew(instant, changes):
    before = memory_of(instant)

    changed = change(instant, **changes)
    dropped = memory_of(instant)
    job = finished(instant, changed.job)

    memory = memory_of(instant)
    assert (dropped, job.kind, job.state) == (None, JobKind.SERVICE_PREPARE, JobState.SUCCEEDED)
    assert job.created_by == ADMIN
    assert memory not in {None, before}
    assert (memory.memory_mib, memory.vcpus) == (
        changed.service.ideal_memory_mib,
        changed.service.vcpus,
    )
    assert instant.start(HISTOGRAM).start_method == "clone"


@pytest.mark.parametrize("changes", [{"description": "new"}, {"port": 81}, {"warm_count": None}])
def test_change_that_keeps_the_memory_state_makes_none(instant, changes):
    before = memory_of(instant)

    changed = change(instant, **changes)

    assert (changed.job, memory_of(instant)) == (None, before)


def test_change_of_a_service_that_boots_cold_makes_no_memory_state(cold):
    assert change(cold, ideal_memory_mib=512).job is None


def test_change_under_a_preparation_asks_for_another(cold):
    first = prepare(cold)

    changed = change(cold, ideal_memory_mib=512)
    cold.run_jobs()

    assert cold.core.jobs.job(first.id).failure.code == "conflict"
    assert cold.core.jobs.job(changed.job.id).state is JobState.SUCCEEDED
    assert memory_of(cold).memory_mib == 512


def test_change_of_words_under_a_preparation_leaves_it_alone(cold):
    first = prepare(cold)

    changed = change(cold, description="new")

    assert changed.job is None
    assert finished(cold, first).state is JobState.SUCCEEDED


def test_change_on_a_bridge_asks_for_no_memory_state():
    composed = a_core(settings=replace(BASE_SETTINGS, network_bridge="br0"))
    composed.add_service()
    vm = composed.core.catalog.startable(HISTOGRAM)[1]
    composed.core.catalog.set_memory(vm.id, a_memory_state())

    assert change(composed, ideal_memory_mib=512).job is None


def test_late_change_asks_for_nothing(instant):
    with pytest.raises(StaleRecord):
        instant.core.templates.change_service(
            HISTOGRAM, ServiceChanges(ideal_memory_mib=512), generation=7, by=ADMIN
        )

    assert memory_of(instant) is not None
    assert instant.jobs(JobState.QUEUED) == ()


def test_memory_state_is_made_anew_where_the_service_is(instant):
    there = instant.on_another_host()

    changed = change(there, ideal_memory_mib=512)
    there.run_jobs()
    finished(instant, changed.job)

    assert memory_of(there).memory_mib == 512
