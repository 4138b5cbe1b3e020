# SPDX-License-Identifier: Apache-2.0
"""The job runner after a crash, in threads, and when it is told to stop."""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from pycloud.adapters.clock import SystemClock
from pycloud.core.access import ADMIN
from pycloud.core.jobs import Recovery
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.model.identifiers import HostId
from pycloud.core.model.runtime import JobState
from pycloud.errors import HypervisorError, JobCancelled, StoreUnavailable
from testing.unit.core.bench import KIND, LEASE_S, Bench, crash, refuse
from testing.unit.core.races import wait_until

A_LEASE = timedelta(seconds=LEASE_S)


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def forward():
    return Bench(recovery=Recovery.ROLL_FORWARD)


# -- when the wall clock jumps ---------------------------------------------------------------


def test_recovery_leaves_alone_what_this_server_works_on(bench):
    def jump(_context):
        bench.clock.advance(LEASE_S * 2)
        bench.runner.recover()

    bench.bodies["second"] = jump
    job = bench.submit()

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "last"]
    assert bench.job(job).state is JobState.SUCCEEDED


@pytest.mark.parametrize("recovery", Recovery)
def test_interrupted_job_is_recovered_though_the_clock_was_set_back(recovery):
    bench = Bench(recovery=recovery)
    job = bench.interrupted("second", lease_expires_at=bench.clock.now() + A_LEASE)
    bench.clock.set(bench.clock.now() - timedelta(hours=1))
    bench.runner.recover()
    before = bench.job(job)
    bench.clock.advance(LEASE_S)

    bench.runner.recover()
    bench.runner.run_pending()

    assert before.attempts == 1
    assert bench.job(job).is_final


def test_job_of_another_server_is_left_alone_when_the_clock_was_set_back(bench):
    job = bench.submit()

    def work(_context):
        bench.clock.set(bench.clock.now() - timedelta(hours=1))
        bench.other.recover()
        for _ in range(3):
            bench.clock.advance(LEASE_S / 2)
            for held in bench.runner._held.values():
                held.renew()
            bench.other.recover()

    bench.bodies["second"] = work

    bench.runner.run_pending()

    assert bench.notes == ["first", "second", "last"]
    assert (bench.job(job).state, bench.job(job).attempts) == (JobState.SUCCEEDED, 1)


def test_lease_that_another_server_renews_is_not_run_out_however_late_it_ends(bench):
    job = bench.interrupted("second")
    for _ in range(4):
        late = bench.clock.now() + timedelta(hours=1)
        job = bench.store.jobs.replace(replace(job, lease_expires_at=late))
        bench.clock.advance(LEASE_S / 2)
        bench.runner.recover()

    assert bench.job(job) == job


def test_lease_that_ends_a_little_late_lasts_until_then(bench):
    job = bench.interrupted("second", lease_expires_at=bench.clock.now() + 2 * A_LEASE)
    bench.runner.recover()
    bench.clock.advance(2 * LEASE_S - 1)
    bench.runner.recover()
    before = bench.job(job).state
    bench.clock.advance(1)

    bench.runner.recover()

    assert (before, bench.job(job).state) == (JobState.RUNNING, JobState.FAILED)


def test_job_of_another_host_is_left_alone_however_late_its_lease_ends(bench):
    late = bench.clock.now() + timedelta(hours=1)
    job = bench.interrupted("second", lease_expires_at=late, host_id=HostId("next-door"))
    for _ in range(4):
        bench.runner.recover()
        bench.clock.advance(LEASE_S)

    assert bench.job(job) == job


# -- after a crash ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "undone"),
    [
        ("", []),
        ("first", ["undo first"]),
        ("second", ["undo second", "undo first"]),
        ("last", ["undo last", "undo second", "undo first"]),
    ],
)
def test_interrupted_job_is_rolled_back_from_where_it_stopped(bench, stage, undone):
    job = bench.interrupted(stage, result={"a": "1"})

    bench.runner.recover()

    found = bench.job(job)
    assert bench.notes == undone
    assert (found.state, found.failure.code) == (JobState.FAILED, "interrupted")
    assert found.result == {"a": "1"}


def test_interrupted_job_succeeds_when_its_effect_is_complete(bench):
    bench.complete = lambda context: context.job.stage == "last"
    job = bench.interrupted("last")

    bench.runner.recover()

    assert bench.notes == []
    assert bench.job(job).state is JobState.SUCCEEDED


def test_interrupted_job_is_cancelled_when_that_was_asked(bench):
    job = bench.interrupted("second", cancel_requested=True)

    bench.runner.recover()

    assert bench.job(job).state is JobState.CANCELLED
    assert [failure.code for failure in bench.failures] == [JobCancelled.code]


@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("", ["first", "second", "last"]),
        ("first", ["first", "second", "last"]),
        ("second", ["second", "last"]),
        ("last", ["last"]),
    ],
)
def test_interrupted_job_goes_on_at_its_step(forward, stage, done):
    job = forward.interrupted(stage)

    forward.runner.recover()
    forward.runner.run_pending()

    assert forward.notes == done
    assert forward.job(job).state is JobState.SUCCEEDED


def test_resumed_job_undoes_the_steps_before_the_crash_when_it_fails(forward):
    forward.bodies["second"] = refuse
    forward.interrupted("second")

    forward.runner.recover()
    forward.runner.run_pending()

    assert forward.notes == ["second", "undo second", "undo first"]


def test_resumed_job_undoes_the_interrupted_step_when_it_is_cancelled_at_once(forward):
    job = forward.interrupted("second", cancel_requested=True)

    forward.runner.recover()
    forward.runner.run_pending()

    assert forward.notes == ["undo second", "undo first"]
    assert forward.job(job).state is JobState.CANCELLED


def test_job_that_kills_every_server_is_rolled_back(forward):
    job = forward.interrupted("second", attempts=5)

    forward.runner.recover()
    forward.runner.run_pending()

    assert forward.notes == ["undo second", "undo first"]
    assert forward.job(job).state is JobState.FAILED


def test_recovery_looks_again_when_it_cannot_know_yet(bench):
    bench.complete = refuse
    job = bench.interrupted("second")
    bench.runner.recover()
    bench.complete = lambda _context: True
    bench.clock.advance(LEASE_S + 1)

    bench.runner.recover()

    assert bench.job(job).state is JobState.SUCCEEDED


@pytest.mark.parametrize("way", [refuse, crash])
def test_recovery_goes_on_with_other_jobs_when_one_cannot_be_judged(bench, way):
    jobs = [bench.interrupted("first"), bench.interrupted("first")]
    bench.complete = lambda context: way(context) if context.job.id == jobs[0].id else False

    bench.runner.recover()

    assert bench.job(jobs[1]).state is JobState.FAILED


def test_recovery_goes_on_with_other_jobs_when_an_end_cannot_be_written(bench):
    jobs = [bench.interrupted("first"), bench.interrupted("first")]
    replaced = bench.store.jobs.replace

    def fail_once(record):
        if record.id == jobs[0].id and record.is_final:
            raise StoreUnavailable("gone")
        return replaced(record)

    bench.store.jobs.replace = fail_once

    bench.runner.recover()

    assert bench.job(jobs[0]).state is JobState.RUNNING
    assert bench.job(jobs[1]).state is JobState.FAILED


# -- threads, start and stop -----------------------------------------------------------------


def test_started_runner_runs_what_is_submitted(bench):
    jobs, runner = bench.server("three", clock=SystemClock())
    runner.start()
    try:
        job = jobs.submit(JobRequest(kind=KIND, arguments={}, resources=(), created_by=ADMIN))
        finished = jobs.wait(job.id, timeout_s=5)
    finally:
        runner.stop()

    assert finished.state is JobState.SUCCEEDED


def test_started_runner_finds_what_another_server_submitted(bench):
    jobs, runner = bench.server("three", clock=SystemClock())
    runner.start()
    try:
        finished = jobs.wait(bench.submit().id, timeout_s=5)
    finally:
        runner.stop()

    assert finished.state is JobState.SUCCEEDED


def test_heartbeat_keeps_the_lease_of_a_long_step(bench):
    jobs, runner = bench.server("three", clock=SystemClock(), lease_s=0.06)
    leases = []

    def look(context):
        for _ in range(4):
            threading.Event().wait(0.03)
            leases.append(bench.job(context.job).lease_expires_at)

    bench.bodies["first"] = look
    runner.start()
    try:
        finished = jobs.wait(bench.submit().id, timeout_s=5)
    finally:
        runner.stop()

    assert finished.attempts == 1
    assert len(set(leases)) > 1


def wait_for_interruption(begun):
    def work(context):
        begun.set()
        for _ in range(500):
            threading.Event().wait(0.01)
            context.check()
        pytest.fail("nobody interrupted the step")

    return work


def test_stop_undoes_what_does_not_end_in_time(bench):
    jobs, runner = bench.server("three", clock=SystemClock())
    begun = threading.Event()
    bench.bodies["second"] = wait_for_interruption(begun)
    runner.start()
    job = jobs.submit(JobRequest(kind=KIND, arguments={}, resources=(), created_by=ADMIN))
    begun.wait(5)

    runner.stop(grace_s=0.01)

    assert bench.notes == ["first", "second", "undo second", "undo first"]
    assert bench.job(job).failure.code == "interrupted"


@pytest.mark.parametrize("stage", ["second", "last"])
def test_stop_leaves_a_job_that_goes_forward_to_the_next_server(forward, stage):
    jobs, runner = forward.server("three", clock=SystemClock())
    begun = threading.Event()
    forward.bodies[stage] = wait_for_interruption(begun)
    runner.start()
    job = jobs.submit(JobRequest(kind=KIND, arguments={}, resources=(), created_by=ADMIN))
    begun.wait(5)
    runner.stop(grace_s=0.01)
    left = forward.job(job)
    del forward.bodies[stage]
    forward.notes.clear()

    forward.other.run_pending()

    assert (left.state, left.lease_owner, left.lease_expires_at) == (JobState.QUEUED, "", None)
    assert forward.notes == ["second", "last"][["second", "last"].index(stage) :]
    assert forward.job(job).state is JobState.SUCCEEDED


def test_stop_lets_a_short_job_end(bench):
    jobs, runner = bench.server("three", clock=SystemClock())
    begun = threading.Event()

    def work(_context):
        begun.set()
        threading.Event().wait(0.05)

    bench.bodies["second"] = work
    runner.start()
    job = jobs.submit(JobRequest(kind=KIND, arguments={}, resources=(), created_by=ADMIN))
    begun.wait(5)

    runner.stop(grace_s=5)

    assert bench.job(job).state is JobState.SUCCEEDED


def test_submitted_job_is_kept_for_others_when_the_runner_has_stopped(bench):
    jobs, runner = bench.server("three", clock=SystemClock())
    runner.start()
    runner.stop()

    job = jobs.submit(JobRequest(kind=KIND, arguments={}, resources=(), created_by=ADMIN))

    assert bench.job(job).state is JobState.QUEUED


def test_resumed_job_runs_in_its_lane_and_not_where_it_was_found(forward):
    jobs, runner = forward.server("three", clock=SystemClock())
    names = []
    forward.bodies["second"] = lambda _context: names.append(threading.current_thread().name)
    job = forward.interrupted("second")
    runner.start()
    try:
        runner.recover()
        jobs.wait(job.id, timeout_s=5)
    finally:
        runner.stop()

    assert [name.rsplit("_")[0] for name in names] == ["job-content"]


# -- waiting --------------------------------------------------------------------------------


def test_wait_returns_the_job_as_it_is_when_time_is_over(bench):
    job = bench.submit()

    found = bench.jobs.wait(job.id, timeout_s=0.01)

    assert found.state is JobState.QUEUED


def test_wait_ends_though_the_clock_stands_still(bench):
    job = bench.submit()
    waiter = threading.Thread(target=bench.jobs.wait, args=(job.id,), kwargs={"timeout_s": 0.05})
    waiter.start()

    waiter.join(5)

    assert not waiter.is_alive()


# -- a store that fails ------------------------------------------------------------------------


def failing(inner, times, way):
    """Let the first calls of a method fail."""
    left = [times]

    def call(*arguments, **options):
        if left[0] > 0:
            left[0] -= 1
            way(None)
        return inner(*arguments, **options)

    return call


@pytest.mark.parametrize("way", [refuse, crash])
@pytest.mark.parametrize("operation", ["find", "get"])
def test_started_runner_survives_a_store_that_fails_for_a_moment(bench, operation, way):
    _, runner = bench.server("three", clock=SystemClock())
    job = bench.submit()
    inner = getattr(bench.store.jobs, operation)
    setattr(bench.store.jobs, operation, failing(inner, 2, way))
    runner.start()
    try:
        wait_until(lambda: bench.store.jobs.count({"state": JobState.SUCCEEDED}) == 1)
    finally:
        runner.stop()

    assert bench.job(job).state is JobState.SUCCEEDED


@pytest.mark.parametrize("way", [refuse, crash])
def test_heartbeat_survives_a_store_that_fails_for_a_moment(bench, way):
    _, runner = bench.server("three", clock=SystemClock(), lease_s=0.06)
    begun = threading.Event()
    may_end = threading.Event()

    def work(_context):
        begun.set()
        may_end.wait(5)

    bench.bodies["first"] = work
    job = bench.submit()
    runner.start()
    try:
        begun.wait(5)
        bench.store.jobs.replace = failing(bench.store.jobs.replace, 3, way)
        before = bench.job(job).generation
        wait_until(lambda: bench.job(job).generation > before)
        may_end.set()
        wait_until(lambda: bench.job(job).is_final)
    finally:
        runner.stop()

    assert bench.job(job).state is JobState.SUCCEEDED


def test_job_whose_record_is_removed_is_dropped_without_undo(bench):
    job = bench.submit()
    bench.bodies["first"] = lambda _context: bench.store.jobs.remove(job.id)

    bench.runner.run_pending()

    assert bench.notes == ["first"]


def test_interrupted_job_that_was_taken_over_meanwhile_is_left_alone(forward):
    job = forward.submit()

    def lose(context):
        del forward.bodies["first"]
        forward.clock.advance(LEASE_S + 1)
        forward.other.recover()
        context.interrupt()
        context.check()

    forward.bodies["first"] = lose

    forward.runner.run_pending()

    # The other server queued it again, and this one found it there.
    assert forward.notes == ["first", "first", "second", "last"]
    assert (forward.job(job).state, forward.job(job).attempts) == (JobState.SUCCEEDED, 2)


def test_job_that_fails_after_it_was_taken_over_undoes_nothing(forward):
    job = forward.submit()

    def lose_and_fail(_context):
        del forward.bodies["first"]
        forward.clock.advance(LEASE_S + 1)
        forward.other.recover()
        forward.other.run_pending()
        raise HypervisorError("what the other one left")

    forward.bodies["first"] = lose_and_fail

    forward.runner.run_pending()

    assert forward.notes == ["first", "first", "second", "last"]
    assert (forward.job(job).state, forward.failures) == (JobState.SUCCEEDED, [])
