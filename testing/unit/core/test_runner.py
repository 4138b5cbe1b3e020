# SPDX-License-Identifier: Apache-2.0
"""The job runner: one body at a time, undone or finished, and cancelled when asked."""

import threading

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.model.runtime import Failure, JobKind, JobState
from pycloud.errors import Conflict
from testing.factories import a_job
from testing.unit.core.bench import LEASE_S, Bench, crash, refuse


@pytest.fixture
def bench():
    return Bench()


# -- one run --------------------------------------------------------------------------


def test_job_succeeds_when_all_steps_end(bench):
    job = bench.submit()

    bench.runner.run_pending()

    found = bench.job(job)
    assert bench.notes == ["first", "second", "last"]
    assert (found.state, found.stage, found.lease_owner) == (JobState.SUCCEEDED, "last", "")
    assert found.lease_expires_at is None
    assert found.finished_at == bench.clock.now()


def test_job_is_undone_backwards_when_a_step_fails(bench):
    bench.bodies["second"] = refuse
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "undo second", "undo first"]
    assert bench.job(job).state is JobState.FAILED
    assert bench.failures == [Failure(code="hypervisor_error", message="no")]


def test_job_is_recorded_as_internal_when_a_step_crashes(bench, caplog):
    bench.bodies["second"] = crash
    job = bench.submit()

    bench.runner.run_pending()

    failure = bench.job(job).failure
    assert (failure.code, failure.message) == ("internal", "an unexpected ZeroDivisionError")
    assert [record.message for record in caplog.records] == ["job_crashed"]


@pytest.mark.parametrize("way", [refuse, crash])
def test_job_runs_the_other_undos_and_keeps_its_failure_when_an_undo_fails(bench, way):
    bench.bodies |= {"second": refuse, "undo second": way}
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "undo second", "undo first"]
    assert bench.job(job).failure == Failure(code="hypervisor_error", message="no")


@pytest.mark.parametrize("way", [refuse, crash])
def test_job_ends_when_what_follows_a_failure_fails_too(bench, way):
    bench.bodies["first"] = refuse
    bench.on_failure = lambda context, _failure: way(context)
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.job(job).failure.message == "no"


def test_result_is_kept_when_the_job_fails_later(bench):
    bench.bodies |= {"first": lambda context: context.add_result("a", "1"), "second": refuse}
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.job(job).result == {"a": "1"}


def test_result_of_earlier_steps_is_there_for_later_ones(bench):
    seen = []
    bench.bodies |= {
        "first": lambda context: context.add_result("a", "1"),
        "second": lambda context: seen.append(dict(context.job.result)),
    }
    bench.submit()

    bench.runner.run_pending()

    assert seen == [{"a": "1"}]


def test_progress_is_written_at_most_four_times_a_second(bench):
    def report(context):
        for done in range(100):
            context.report(done, 100)
            bench.clock.advance(0.01)

    bench.bodies["first"] = report
    before = bench.store.jobs.revision()
    bench.submit()

    bench.runner.run_pending()

    assert bench.store.jobs.revision() - before <= 4 + 6


def test_timeline_has_no_gaps(bench):
    seen = []

    def mark(context):
        for name, duration_s in (("a", 1.0), ("b", 0.5)):
            bench.clock.advance(duration_s)
            context.mark(name)
        seen.extend(context.timeline())

    bench.bodies["first"] = mark
    job = bench.submit()
    bench.clock.advance(2.0)

    bench.runner.run_pending()

    assert seen == [("a", 0.0, 3000.0), ("b", 3000.0, 500.0)]
    assert bench.job(job).state is JobState.SUCCEEDED


# -- whose job it is --------------------------------------------------------------------


def test_job_runs_once_when_two_servers_race_for_it():
    for _ in range(20):
        bench = Bench()
        for _ in range(5):
            bench.submit()
        barrier = threading.Barrier(2)

        def race(runner, barrier=barrier):
            barrier.wait()
            runner.run_pending()

        threads = [
            threading.Thread(target=race, args=(runner,)) for runner in (bench.runner, bench.other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bench.notes.count("first") == 5


def test_job_is_left_alone_by_others_while_its_lease_lasts(bench):
    def look(_context):
        bench.clock.advance(LEASE_S - 1)
        bench.other.recover()
        bench.other.run_pending()

    bench.bodies["first"] = look
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "last"]
    assert bench.job(job).attempts == 1


def test_job_is_undone_by_another_server_when_its_lease_ran_out(bench):
    def freeze(_context):
        bench.clock.advance(LEASE_S + 1)
        bench.other.recover()

    bench.bodies["second"] = freeze
    job = bench.submit()

    bench.runner.run_pending()

    # Once: the first server finds its lease lost and leaves the undoing to the other.
    assert bench.notes == ["first", "second", "undo second", "undo first"]
    assert bench.job(job).failure.code == "interrupted"


def test_lease_lasts_when_it_is_renewed(bench):
    def work(_context):
        for _ in range(4):
            bench.clock.advance(LEASE_S / 2)
            for held in bench.runner._held.values():
                held.renew()
            bench.other.recover()

    bench.bodies["first"] = work
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.job(job).state is JobState.SUCCEEDED


def test_job_of_an_unregistered_kind_is_left_alone(bench):
    strange = bench.store.jobs.add(a_job(kind=JobKind.WARM_FILL, created_at=bench.clock.now()))
    died = bench.interrupted("first", kind=JobKind.WARM_FILL)
    known = bench.submit()

    bench.runner.run_pending()
    bench.runner.recover()

    assert bench.job(strange) == strange
    assert bench.job(died) == died
    assert bench.job(known).state is JobState.SUCCEEDED


# -- cancelling ---------------------------------------------------------------------------


def test_cancel_ends_a_queued_job_without_running_it(bench):
    job = bench.submit()
    bench.jobs.cancel(job.id, by=ADMIN)

    bench.runner.run_pending()

    assert bench.notes == []
    assert bench.job(job).state is JobState.CANCELLED
    assert [failure.code for failure in bench.failures] == ["cancelled"]


@pytest.mark.parametrize("server", ["jobs", "other_jobs"])
def test_cancel_undoes_a_running_job(bench, server):
    job = bench.submit()
    bench.bodies["second"] = lambda _context: getattr(bench, server).cancel(job.id, by=ADMIN)

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "undo second", "undo first"]
    assert bench.job(job).state is JobState.CANCELLED


def test_cancel_reaches_a_step_through_its_report(bench):
    job = bench.submit()

    def work(context):
        bench.jobs.cancel(job.id, by=ADMIN)
        context.report(1, 2)
        pytest.fail("the step went on")

    bench.bodies["first"] = work

    bench.runner.run_pending()

    assert bench.job(job).state is JobState.CANCELLED


def test_cancel_is_refused_when_the_final_step_began(bench):
    job = bench.submit()
    refused = []

    def work(context):
        with pytest.raises(Conflict, match="can no longer be undone"):
            bench.jobs.cancel(job.id, by=ADMIN)
        refused.append(context.job.id)

    bench.bodies["last"] = work

    bench.runner.run_pending()

    assert refused == [job.id]
    assert bench.job(job).state is JobState.SUCCEEDED


def test_cancel_is_refused_when_the_job_is_over(bench):
    job = bench.submit()
    bench.runner.run_pending()

    with pytest.raises(Conflict, match="is over"):
        bench.jobs.cancel(job.id, by=ADMIN)


def test_cancel_wins_when_it_comes_just_before_the_final_step(bench):
    job = bench.submit()
    replaced = bench.store.jobs.replace

    def cancel_first(record):
        # Another server's cancel, accepted between the check and the write of the step.
        if record.stage == "last" and not record.cancel_requested:
            bench.store.jobs.replace = replaced
            bench.other_jobs.cancel(job.id, by=ADMIN)
        return replaced(record)

    bench.store.jobs.replace = cancel_first

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "undo second", "undo first"]
    assert bench.job(job).state is JobState.CANCELLED


def test_cancel_twice_is_recorded_once(bench):
    job = bench.submit()
    bench.jobs.cancel(job.id, by=ADMIN)

    bench.jobs.cancel(job.id, by=ADMIN)

    assert [event.action for event in bench.store.events.after(0, limit=10)] == ["cancel_requested"]
