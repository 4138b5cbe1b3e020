# SPDX-License-Identifier: Apache-2.0
"""The job runner: one body at a time, undone or finished whatever happens."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from pycloud.adapters.clock import SystemClock
from pycloud.adapters.fakes import FakeClock
from pycloud.adapters.store.memory import MemoryStore
from pycloud.core.access import ADMIN
from pycloud.core.jobs import JobRunner, Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.jobs.runner import RunnerOptions
from pycloud.core.model.runtime import Failure, JobKind, JobState
from pycloud.errors import Conflict, HypervisorError, JobCancelled, StoreUnavailable
from testing.factories import a_job

KIND = JobKind.SERVICE_ADD
LEASE_S = 8.0


@dataclass
class Bench:
    """Two servers on one store, whose procedure notes what it does."""

    store: MemoryStore = field(default_factory=MemoryStore)
    clock: FakeClock = field(default_factory=FakeClock)
    notes: list[str] = field(default_factory=list)
    bodies: dict[str, Callable[[StepContext], None]] = field(default_factory=dict)
    recovery: Recovery = Recovery.ROLL_BACK
    complete: Callable[[StepContext], bool] = lambda _context: False
    failures: list[Failure] = field(default_factory=list)
    on_failure: Callable[[StepContext, Failure], None] = lambda _context, _failure: None

    def __post_init__(self):
        self.jobs, self.runner = self.server("one")
        self.other_jobs, self.other = self.server("two")

    def server(self, name, *, clock=None, lease_s=LEASE_S):
        jobs = Jobs(self.store, clock or self.clock)
        workers = {Lane.INSTANCES: 2, Lane.CONTENT: 2, Lane.BACKGROUND: 1}
        runner = JobRunner(
            jobs,
            store=self.store,
            clock=clock or self.clock,
            options=RunnerOptions(server_id=name, lease_s=lease_s, workers=workers, poll_s=0.01),
        )
        runner.register([self.procedure()])
        return jobs, runner

    def procedure(self):
        return Procedure(
            kind=KIND,
            lane=Lane.CONTENT,
            recovery=self.recovery,
            is_complete=self._is_complete,
            on_failure=self._failed,
            steps=(self._step("first"), self._step("second"), self._step("last", final=True)),
        )

    def _is_complete(self, context):
        return self.complete(context)

    def _step(self, name, final=False):
        return Step(
            name=name,
            run=lambda context: self._run(name, context),
            undo=lambda context: self._run(f"undo {name}", context),
            final=final,
        )

    def _run(self, what, context):
        self.notes.append(what)
        if what in self.bodies:
            self.bodies[what](context)

    def _failed(self, context, failure):
        self.failures.append(failure)
        self.on_failure(context, failure)

    def submit(self):
        request = JobRequest(kind=KIND, arguments={}, resources=(), created_by=ADMIN)
        return self.jobs.submit(request)

    def interrupted(self, stage, **fields):
        """Store a Job whose server died in the middle of `stage`."""
        job = a_job(
            kind=KIND,
            state=JobState.RUNNING,
            stage=stage,
            lease_owner="gone",
            lease_expires_at=self.clock.now() - timedelta(seconds=1),
            attempts=1,
            created_at=self.clock.now(),
        )
        return self.store.jobs.add(replace(job, **fields))

    def job(self, job):
        return self.store.jobs.get(job.id)


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def forward():
    return Bench(recovery=Recovery.ROLL_FORWARD)


def refuse(_context):
    raise HypervisorError("no")


def crash(_context):
    raise ZeroDivisionError


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
