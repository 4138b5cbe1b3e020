# SPDX-License-Identifier: Apache-2.0
"""Leases: the record of one Job while this server holds its lease, and whose have run out.

All writes of the record by this server go through one object, so that the
worker that changes stages and the heartbeat that renews the lease never race
each other; what other servers write (a wish to cancel) is merged in.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from pycloud.core.jobs.procedure import Recovery
from pycloud.core.model.identifiers import JobId
from pycloud.core.model.runtime import Failure, Job, JobState, Progress
from pycloud.core.ports import Clock, Repository
from pycloud.errors import CloudletError, JobCancelled, JobInterrupted, NotFound, StaleRecord

CANCELLED = "the job was cancelled"
_PROGRESS_EVERY_S = 0.25
"""Progress is for people: writing it more often only costs commits."""


class LeaseLost(CloudletError):
    """Say that another server took the Job over; this one must stop and undo nothing."""

    code = "lease_lost"


class HeldJob:
    """A Job whose lease is ours; implements StepContext. Thread-safe."""

    def __init__(
        self,
        job: Job,
        jobs: Repository[Job],
        clock: Clock,
        *,
        lease_s: float,
        recovery: Recovery,
    ) -> None:
        self._job = job
        self._jobs = jobs
        self._clock = clock
        self._lease_s = lease_s
        self._recovery = recovery
        self._lock = threading.RLock()
        self._cancelled = threading.Event()
        self._interrupted = threading.Event()
        self._lost = threading.Event()
        self._result: dict[str, str] = dict(job.result)
        self._unit = ""
        self._progress_at = -_PROGRESS_EVERY_S
        self._origin = clock.monotonic() - (clock.now() - job.created_at).total_seconds()
        self._phases: list[tuple[str, float, float]] = []
        self._undoing = False
        if job.cancel_requested:
            self._cancelled.set()

    @property
    def job(self) -> Job:
        """The Job as it was last written."""
        return self._job

    # -- what steps may do --------------------------------------------------------

    def report(self, done: int, total: int) -> None:
        """Record progress within the step, not more often than people can see."""
        self.check()
        now = self._clock.monotonic()
        if now - self._progress_at < _PROGRESS_EVERY_S and done != total:
            return
        self._progress_at = now
        progress = Progress(done=done, total=total, unit=self._unit)
        self.write(lambda job: replace(job, progress=progress))

    def check(self) -> None:
        """Raise JobCancelled, JobInterrupted or LeaseLost when the step has to stop."""
        if self._undoing:
            return
        if self._lost.is_set():
            raise LeaseLost(f"job {self._job.id} belongs to another server now")
        if self._cancelled.is_set() and self._job.may_cancel:
            raise JobCancelled(CANCELLED)
        may_interrupt = self._job.may_cancel or self._recovery is Recovery.ROLL_FORWARD
        if self._interrupted.is_set() and may_interrupt:
            raise JobInterrupted("the server is shutting down; ask again when it is back")

    def mark(self, phase: str) -> None:
        """End a phase of the timeline."""
        now_ms = (self._clock.monotonic() - self._origin) * 1000.0
        begin_ms = self._phases[-1][1] + self._phases[-1][2] if self._phases else 0.0
        self._phases.append((phase, begin_ms, max(now_ms - begin_ms, 0.0)))

    def timeline(self) -> tuple[tuple[str, float, float], ...]:
        """Return (name, begin, duration) of the phases so far, in ms since the request."""
        return tuple(self._phases)

    def add_result(self, key: str, value: str) -> None:
        """Put something into the result, written with the next change of state."""
        self._result[key] = value

    # -- what the runner does ---------------------------------------------------------

    def request_cancel(self) -> None:
        """Make the next check raise JobCancelled."""
        self._cancelled.set()

    def interrupt(self) -> None:
        """Make the next check raise JobInterrupted: this server is going down."""
        self._interrupted.set()

    def lose(self) -> None:
        """Make the next check raise LeaseLost: another server took over."""
        self._lost.set()

    def begin_undo(self, failure: Failure) -> None:
        """Write why the Job fails, and let undos run to their end, whatever was asked.

        From here on the Job can only go back, on whichever server. Raises LeaseLost.
        """
        self._undoing = True
        self.write(lambda job: replace(job, failure=failure))

    def enter(self, stage: str, *, unit: str, may_cancel: bool) -> None:
        """Write that a step begins. Raises JobCancelled, JobInterrupted, LeaseLost.

        A wish to cancel that another server wrote before this step counts, one that
        comes later is refused there: compare-and-swap decides which of the two it is.
        """
        self.check()
        self._unit = unit

        def begin(job: Job) -> Job:
            if job.cancel_requested and job.may_cancel:
                raise JobCancelled(CANCELLED)
            return replace(
                job,
                stage=stage,
                progress=Progress(unit=unit),
                may_cancel=may_cancel,
                result=dict(self._result),
            )

        self.write(begin)

    def renew(self) -> None:
        """Extend the lease and learn whether somebody asked to cancel. Raises LeaseLost."""
        with self._lock:
            # It may have ended between the heartbeat's look and this call.
            if self._job.state is JobState.RUNNING:
                self.write(lambda job: job)

    def give_back(self) -> Job:
        """Put the Job back into the queue, to go on at its step. Raises LeaseLost."""
        return self.write(lambda job: replace(job, state=JobState.QUEUED))

    def finish(self, state: JobState, failure: Failure | None) -> Job:
        """Write the end of the Job and give the lease back."""
        now = self._clock.now()
        return self.write(
            lambda job: replace(
                job,
                state=state,
                failure=failure,
                result=dict(self._result),
                may_cancel=False,
                finished_at=now,
            )
        )

    def write(self, change: Callable[[Job], Job]) -> Job:
        """Apply `change` to the record under the lease. Raises LeaseLost."""
        with self._lock:
            while True:
                try:
                    self._job = self._jobs.replace(self._leased(change(self._job)))
                except StaleRecord:
                    self._reload()
                except NotFound as exc:
                    raise LeaseLost(f"job {self._job.id} was removed") from exc
                else:
                    return self._job

    def _leased(self, job: Job) -> Job:
        if job.state is not JobState.RUNNING:
            return replace(job, lease_owner="", lease_expires_at=None)
        lease_end = self._clock.now() + timedelta(seconds=self._lease_s)
        return replace(job, lease_expires_at=lease_end)

    def _reload(self) -> None:
        try:
            found = self._jobs.get(self._job.id)
        except NotFound as exc:
            raise LeaseLost(f"job {self._job.id} was removed") from exc
        if found.lease_owner != self._job.lease_owner or found.attempts != self._job.attempts:
            raise LeaseLost(f"job {found.id} was taken over by {found.lease_owner or 'nobody'}")
        if found.cancel_requested:
            self._cancelled.set()
        self._job = found


class LeaseWatch:
    """Tells which Jobs are nobody's any more. For one thread.

    A lease ends at a time of the wall clock, which all servers of a Host share and which
    may be set. Set back, it makes the lease of a dead server seem to last for hours: so one
    that ends later than any can, by twice `lease_s`, counts as run out when it was not
    renewed for `lease_s` of the monotonic clock. Set forward, it makes every lease seem to
    have run out: then a server may take over what another one of the same Host works on,
    until that has renewed it. No server can tell this from a death. The other one finds its
    lease lost at its next write, and neither undoes nor finishes anything from there on.
    """

    def __init__(self, clock: Clock, *, lease_s: float) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._seen: dict[JobId, tuple[datetime, float]] = {}
        """Leases that end too late to be true, and since when they are as they are."""

    def run_out(self, jobs: Iterable[Job]) -> tuple[Job, ...]:
        """Return those of the Jobs, which are all that run, that nobody works on any more."""
        before, self._seen = self._seen, {}
        return tuple(job for job in jobs if self._has_run_out(job, before.get(job.id)))

    def _has_run_out(self, job: Job, seen: tuple[datetime, float] | None) -> bool:
        end, now = job.lease_expires_at, self._clock.now()
        if end is None or end <= now:
            return True
        if end <= now + timedelta(seconds=2 * self._lease_s):
            return False
        since_s = self._clock.monotonic()
        if seen is not None and seen[0] == end:
            since_s = seen[1]
        self._seen[job.id] = (end, since_s)
        return self._clock.monotonic() - since_s >= self._lease_s
