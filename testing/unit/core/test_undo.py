# SPDX-License-Identifier: Apache-2.0
"""Jobs whose server dies, or whose store refuses, while they are being undone."""

from dataclasses import replace

import pytest

from pycloud.adapters.fakes import fake_save_image
from pycloud.core.access import ADMIN
from pycloud.core.jobs import Recovery
from pycloud.core.model.runtime import Failure, JobKind, JobState
from pycloud.errors import HypervisorError, StoreError, StoreUnavailable
from testing.composed import a_core
from testing.factories import HISTOGRAM
from testing.unit.core.bench import LEASE_S, Bench, refuse
from testing.unit.core.steps import a_package, crash, fill, request_import, want

REFUSED = Failure(code="hypervisor_error", message="no")


class Killed(BaseException):
    """Stands for kill -9: nobody catches it."""


def die(_context):
    raise Killed


def killed(bench):
    """Work on what is queued until the server dies."""
    with pytest.raises(Killed):
        bench.runner.run_pending()
    bench.notes.clear()
    bench.clock.advance(LEASE_S + 1)


def dying_at_the_end(replaced):
    """Return a `replace` that dies before it writes the end of a Job."""

    def write(record):
        if record.is_final:
            raise Killed
        return replaced(record)

    return write


def refusing(replaced, is_refused):
    """Return a `replace` that refuses records of which this is true."""

    def write(record):
        if is_refused(record):
            raise StoreUnavailable("gone")
        return replaced(record)

    return write


@pytest.fixture(params=Recovery)
def bench(request):
    """Two servers and a procedure that is recovered in one way or the other."""
    return Bench(recovery=request.param)


@pytest.fixture
def back():
    return Bench(recovery=Recovery.ROLL_BACK)


@pytest.fixture
def forward():
    return Bench(recovery=Recovery.ROLL_FORWARD)


# -- the runner ---------------------------------------------------------------------------


def test_failure_is_written_before_the_first_undo(bench):
    seen = []
    bench.bodies |= {
        "second": refuse,
        "undo second": lambda context: seen.append(bench.job(context.job)),
    }
    bench.submit()

    bench.runner.run_pending()

    assert [(job.state, job.failure) for job in seen] == [(JobState.RUNNING, REFUSED)]


@pytest.mark.parametrize("step", ["second", "last"])
def test_job_that_was_being_undone_is_undone_again(bench, step):
    bench.bodies |= {step: refuse, "undo first": die}
    bench.complete = lambda _context: True
    job = bench.submit()
    killed(bench)
    bench.bodies = {}

    bench.other.recover()
    bench.other.run_pending()

    begun = ["first", "second", "last"][: ["first", "second", "last"].index(step) + 1]
    assert bench.notes == [f"undo {name}" for name in reversed(begun)]
    found = bench.job(job)
    assert (found.state, found.failure) == (JobState.FAILED, REFUSED)
    assert bench.failures == [REFUSED]


def test_job_that_was_undone_is_not_gone_on_with_when_its_end_was_not_written(bench):
    bench.bodies["second"] = refuse
    job = bench.submit()
    replaced = bench.store.jobs.replace
    bench.store.jobs.replace = dying_at_the_end(replaced)
    killed(bench)
    bench.store.jobs.replace = replaced
    bench.bodies = {}

    bench.other.recover()
    bench.other.run_pending()

    assert bench.notes == ["undo second", "undo first"]
    assert (bench.job(job).state, bench.job(job).failure) == (JobState.FAILED, REFUSED)


def test_job_whose_end_the_store_refuses_is_undone_again(bench):
    bench.bodies["second"] = refuse
    job = bench.submit()
    replaced = bench.store.jobs.replace
    bench.store.jobs.replace = refusing(replaced, lambda record: record.is_final)
    with pytest.raises(StoreUnavailable):
        bench.runner.run_pending()
    bench.store.jobs.replace = replaced
    bench.bodies = {}
    bench.clock.advance(LEASE_S + 1)

    bench.runner.recover()
    bench.runner.run_pending()

    assert (bench.job(job).state, bench.job(job).failure) == (JobState.FAILED, REFUSED)


def test_job_that_was_being_undone_stays_cancelled(bench):
    job = bench.submit()
    bench.bodies |= {
        "second": lambda _context: bench.jobs.cancel(job.id, by=ADMIN),
        "undo first": die,
    }
    killed(bench)
    bench.bodies = {}

    bench.other.recover()

    assert bench.job(job).state is JobState.CANCELLED


def test_failure_of_before_stays_when_a_cancel_comes_while_it_is_being_undone(bench):
    bench.bodies |= {"second": refuse, "undo first": die}
    job = bench.submit()
    killed(bench)
    bench.jobs.cancel(job.id, by=ADMIN)
    bench.bodies = {}

    bench.other.recover()

    assert (bench.job(job).state, bench.job(job).failure) == (JobState.FAILED, REFUSED)


def test_job_that_goes_forward_undoes_nothing_when_that_cannot_be_noted(forward):
    forward.bodies["second"] = refuse
    job = forward.submit()
    replaced = forward.store.jobs.replace
    forward.store.jobs.replace = refusing(replaced, lambda record: record.failure is not None)
    with pytest.raises(StoreUnavailable):
        forward.runner.run_pending()
    forward.store.jobs.replace = replaced
    forward.bodies = {}
    forward.clock.advance(LEASE_S + 1)

    forward.runner.recover()
    forward.runner.run_pending()

    assert forward.notes == ["first", "second", "second", "last"]
    assert forward.job(job).state is JobState.SUCCEEDED


def test_job_that_is_rolled_back_makes_room_though_that_cannot_be_noted(back, caplog):
    back.bodies["second"] = refuse
    job = back.submit()
    replaced = back.store.jobs.replace
    is_full = [True]
    back.store.jobs.replace = refusing(replaced, lambda record: record.failure and is_full[0])
    back.bodies["undo first"] = lambda _context: is_full.clear() or is_full.append(False)

    back.runner.run_pending()

    assert back.notes == ["first", "second", "undo second", "undo first"]
    assert (back.job(job).state, back.job(job).failure) == (JobState.FAILED, REFUSED)
    assert [record.message for record in caplog.records] == ["job_undo_not_noted"]


def test_job_that_was_taken_over_meanwhile_is_not_undone_twice(back):
    def freeze_and_fail(context):
        back.clock.advance(LEASE_S + 1)
        back.other.recover()
        refuse(context)

    back.bodies["second"] = freeze_and_fail
    job = back.submit()

    back.runner.run_pending()

    assert back.notes == ["first", "second", "undo second", "undo first"]
    assert back.job(job).failure.code == "interrupted"


# -- the procedures -------------------------------------------------------------------------


def an_add(composed):
    return composed.request_service()


def an_import(composed):
    return request_import(composed, a_package(state=fake_save_image(memory_mib=256, vcpus=1)))


def a_preparation(composed):
    composed.add_service()
    return composed.core.templates.request_prepare(HISTOGRAM, by=ADMIN)


def an_export(composed):
    composed.add_service()
    return composed.core.exports.request_export(HISTOGRAM, by=ADMIN)


def a_start(composed):
    composed.add_service()
    return composed.request_start(HISTOGRAM).job


def a_start_of_a_copy(composed):
    composed.add_service(prepare=True)
    fill(composed)
    return composed.request_start(HISTOGRAM).job


def a_fill(composed):
    composed.add_service(prepare=True)
    want(composed, 1)
    composed.core.background.reconciler.warm_pool.maintain()
    return composed.jobs(JobState.QUEUED)[0]


REQUESTS = {
    an_add: JobKind.SERVICE_ADD,
    an_import: JobKind.SERVICE_IMPORT,
    a_preparation: JobKind.SERVICE_PREPARE,
    an_export: JobKind.SERVICE_EXPORT,
    a_start: JobKind.INSTANCE_START,
    a_start_of_a_copy: JobKind.INSTANCE_START,
    a_fill: JobKind.WARM_FILL,
}


def procedures():
    return a_core().core.background.runner.procedures


def test_every_procedure_with_an_undo_is_undone_here():
    assert {
        kind
        for kind, procedure in procedures().items()
        if any(step.undo is not None for step in procedure.steps)
    } == set(REQUESTS.values())


@pytest.mark.parametrize(
    ("request_job", "step"),
    [
        (request_job, step.name)
        for request_job, kind in REQUESTS.items()
        for step in procedures()[kind].steps
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("undone", ["nothing", "everything"])
def test_what_failed_is_gone_when_its_server_died_in_the_undo(request_job, step, undone):
    composed = a_core()
    job = request_job(composed)
    left = contents(composed)
    runner = composed.core.background.runner
    is_last = step == runner.procedures[job.kind].steps[-1].name
    crash(composed, job, step, "begin" if is_last else "end")
    composed.store.jobs.replace(replace(composed.core.jobs.job(job.id), failure=REFUSED))
    composed.clock.advance(LEASE_S + 1)
    if undone == "everything":
        runner._undo_of_begun(runner._claim(composed.core.jobs.job(job.id))).close()
        composed.clock.advance(LEASE_S + 1)

    runner.recover()

    found = composed.core.jobs.job(job.id)
    assert (found.state, found.failure) == (JobState.FAILED, REFUSED)
    kept = {f"area {upload.id}" for upload in composed.store.uploads.find().items}
    assert set(composed.leftovers()) == kept
    assert contents(composed) == left


def contents(composed):
    """Name what a Job that failed must not have changed."""
    store = composed.store
    return {
        name: {record.id for record in getattr(store, name).find().items}
        for name in ("services", "service_vms", "packages", "uploads", "warm_domains")
    }


def test_service_whose_adding_failed_in_the_last_step_does_not_count_as_added():
    composed = a_core()
    job = composed.request_service()
    discard = composed.blobs.discard
    refusals = [StoreError("I/O error")]

    def refuse_once(area):
        if refusals:
            raise refusals.pop()
        discard(area)

    composed.blobs.discard = refuse_once
    replaced = composed.store.jobs.replace
    composed.store.jobs.replace = dying_at_the_end(replaced)
    with pytest.raises(Killed):
        composed.run_jobs()
    composed.store.jobs.replace = replaced
    server = composed.another_server()

    for _ in range(4):
        server.reconcile()
        server.run_jobs()

    found = server.core.jobs.job(job.id)
    assert (found.state, found.failure.code) == (JobState.FAILED, "store_error")
    assert (server.store.services.count(), server.store.service_vms.count()) == (0, 0)


# -- a waiting copy of which nobody knows whether it was published ------------------------------


def test_copy_is_taken_back_when_the_store_did_not_say_that_it_was_published():
    composed = a_core()
    job = a_fill(composed)
    add = composed.store.warm_domains.add

    def add_and_fail(record):
        add(record)
        raise StoreUnavailable("gone")

    composed.store.warm_domains.add = add_and_fail

    composed.run_jobs()

    assert composed.core.jobs.job(job.id).state is JobState.FAILED
    assert (composed.store.warm_domains.count(), composed.leftovers()) == (0, ())


def test_copy_that_serves_already_is_not_undone():
    composed = a_core()
    job = a_fill(composed)
    add = composed.store.warm_domains.add

    def add_and_fail(record):
        add(record)
        started.append(composed.request_start(HISTOGRAM))
        raise HypervisorError("no")

    started = []
    composed.store.warm_domains.add = add_and_fail

    composed.run_jobs()

    instance = composed.core.instances.instance(started[0].instance.id)
    assert composed.core.jobs.job(job.id).state is JobState.FAILED
    assert (instance.state, instance.start_method) == ("running", "warm")
    assert composed.hypervisor.domain(instance.domain_id).state == "running"
    assert composed.core.system.placement.holders() == {instance.id}
