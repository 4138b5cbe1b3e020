# SPDX-License-Identifier: Apache-2.0
"""Two servers on one store, and a procedure of three steps that does what a test says."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from pycloud.adapters.fakes import FakeClock
from pycloud.adapters.store.memory import MemoryStore
from pycloud.core.access import ADMIN
from pycloud.core.jobs import JobRunner, Jobs, Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.jobs.ledger import JobRequest
from pycloud.core.jobs.runner import RunnerOptions
from pycloud.core.model.fleet import ThisHost
from pycloud.core.model.runtime import Failure, JobKind, JobState
from pycloud.errors import HypervisorError
from testing.factories import THIS_HOST, a_job

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
        host = ThisHost(id=THIS_HOST)
        jobs = Jobs(self.store, clock or self.clock, host=host)
        workers = {Lane.CONTENT: 2}
        runner = JobRunner(
            jobs,
            store=self.store,
            clock=clock or self.clock,
            options=RunnerOptions(
                server_id=name, host=host, lease_s=lease_s, workers=workers, poll_s=0.01
            ),
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


def refuse(_context):
    raise HypervisorError("no")


def crash(_context):
    raise ZeroDivisionError
