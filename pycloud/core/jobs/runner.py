# SPDX-License-Identifier: Apache-2.0
"""Works on Jobs: claims them by compare-and-swap, runs their steps, undoes what failed.

Several servers may share one store: a Job is worked on by servers of the Host that it
names alone, a lease decides which of them, and a Job whose lease ran out is rolled
forward or back by whichever of them finds it first. This is the one place that catches every exception: a Job always ends with a record.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta

from pycloud.core.jobs.lease import CANCELLED, HeldJob, LeaseLost, LeaseWatch
from pycloud.core.jobs.ledger import Jobs
from pycloud.core.jobs.procedure import Lane, Procedure, Recovery, Step, StepContext
from pycloud.core.model.fleet import ThisHost
from pycloud.core.model.identifiers import JobId, Principal
from pycloud.core.model.runtime import Failure, Job, JobKind, JobState
from pycloud.core.ports import Clock, Store, every
from pycloud.errors import (
    CloudletError,
    JobCancelled,
    JobInterrupted,
    NotFound,
    StaleRecord,
)

log = logging.getLogger(__name__)

StepObserver = Callable[[JobKind, str, str], None]
"""Told (kind, step, `begin`, `end` or `undo`) around every step."""

_STOP_POLL_S = 0.02
_HEARTBEAT, _POLL = "job-heartbeat", "job-poll"
"""The names of the threads that every runner has."""
_MOST_ATTEMPTS = 5
"""A Job that killed its server this often is rolled back, not tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """Who this server is among those that share the store, and how much it takes on."""

    server_id: str
    host: ThisHost
    lease_s: float
    workers: Mapping[Lane, int]
    poll_s: float = 1.0
    """How often Jobs that other servers stored are looked for."""


class JobRunner:
    """Runs Jobs in threads of this process. `start` and `stop` may be called once each.

    Without `start` nothing runs but what `run_pending` and `recover` are called for.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        store: Store,
        clock: Clock,
        options: RunnerOptions,
        observers: Iterable[StepObserver] = (),
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._clock = clock
        self._options = options
        self._leases = LeaseWatch(clock, lease_s=options.lease_s)
        self._observers = tuple(observers)
        self._procedures: dict[JobKind, Procedure] = {}
        self._held: dict[JobId, HeldJob] = {}
        self._dispatched: set[JobId] = set()
        self._lock = threading.Lock()
        self._pools: dict[Lane, ThreadPoolExecutor] = {}
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._alive_s: dict[str, float] = {}
        """When each of the threads was last seen at work."""
        jobs.listen(self._noticed)

    def register(self, procedures: Iterable[Procedure]) -> None:
        """Make the bodies of Jobs known. Raises ValueError for a second one of a JobKind."""
        for procedure in procedures:
            if procedure.kind in self._procedures:
                raise ValueError(f"there is a procedure for {procedure.kind} already")
            self._procedures[procedure.kind] = procedure

    @property
    def procedures(self) -> Mapping[JobKind, Procedure]:
        """The registered bodies, for enumeration."""
        return self._procedures

    # -- life ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin to claim and run Jobs in the background."""
        for lane, workers in self._options.workers.items():
            self._pools[lane] = ThreadPoolExecutor(workers, thread_name_prefix=f"job-{lane}")
        for name, body in ((_HEARTBEAT, self._beat), (_POLL, self._poll)):
            self._tell_alive(name)
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, *, grace_s: float = 5.0) -> None:
        """Start no further Job, let running ones end within `grace_s`, then interrupt them.

        What was interrupted is undone, or left to the next server if it goes forward.
        """
        with self._lock:
            self._stopping.set()
        deadline = self._clock.monotonic() + grace_s
        while self._held and self._clock.monotonic() < deadline:
            self._clock.sleep(_STOP_POLL_S)
        for held in tuple(self._held.values()):
            held.interrupt()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def silent_s(self) -> float | None:
        """Return for how long its slowest thread was not seen at work; None if it is not run."""
        if not self._threads or self._stopping.is_set():
            return None
        return self._clock.monotonic() - min(self._alive_s.values())

    def _tell_alive(self, name: str) -> None:
        self._alive_s[name] = self._clock.monotonic()

    def run_pending(self) -> None:
        """Run every queued Job in the calling thread; for tools and tests without threads."""
        while any(self._claim_and_run(job.id) for job in self._queued()):
            # It may have submitted others, so look again after each one.
            continue

    # -- finding work ----------------------------------------------------------------

    def _queued(self) -> list[Job]:
        """Return the queued Jobs that this server can run; a newer one may have stored others."""
        return [job for job in self._in_state(JobState.QUEUED) if self._is_ours(job)]

    def _in_state(self, state: JobState) -> tuple[Job, ...]:
        return tuple(every(self._store.jobs, {"state": state}))

    def _is_ours(self, job: Job) -> bool:
        return job.kind in self._procedures and self._options.host.has(job.host_id)

    def _noticed(self, job: Job) -> None:
        held = self._held.get(job.id)
        if held is not None and job.cancel_requested:
            held.request_cancel()
        elif job.state is JobState.QUEUED:
            self._dispatch(job)

    def _dispatch(self, job: Job) -> None:
        if not self._is_ours(job):
            return
        pool = self._pools.get(self._procedures[job.kind].lane)
        with self._lock:
            # Under the lock of `stop`, which shuts the pools down afterwards.
            if pool is None or self._stopping.is_set() or job.id in self._dispatched:
                return
            self._dispatched.add(job.id)
            pool.submit(self._run_dispatched, job.id)

    def _run_dispatched(self, job_id: JobId) -> None:
        try:
            if not self._stopping.is_set():
                self._claim_and_run(job_id)
        except Exception:  # A worker thread has nobody above it who could report this.
            log.exception("job_worker_failed", extra={"job_id": job_id})
        finally:
            with self._lock:
                self._dispatched.discard(job_id)

    def _poll(self) -> None:
        # First at once, for what an earlier server left.
        pause_s = 0.0
        while not self._stopping.wait(pause_s):
            pause_s = self._options.poll_s
            try:
                for job in self._queued():
                    self._dispatch(job)
            except CloudletError as exc:
                log.warning("job_poll_failed", extra={"code": exc.code, "reason": exc.message})
            except Exception:  # Without this thread, Jobs of other servers would lie about.
                log.exception("job_poll_crashed")
            self._tell_alive(_POLL)

    def _beat(self) -> None:
        period_s = min(self._options.lease_s / 3.0, 1.0)
        while not self._ended.wait(period_s):
            for held in tuple(self._held.values()):
                try:
                    held.renew()
                except LeaseLost:
                    held.lose()
                except CloudletError as exc:
                    log.warning("job_lease_not_renewed", extra={"code": exc.code})
                except Exception:  # Without this thread, every lease would run out.
                    log.exception("job_heartbeat_crashed")
            self._tell_alive(_HEARTBEAT)

    # -- claiming --------------------------------------------------------------------

    def _claim_and_run(self, job_id: JobId) -> bool:
        try:
            job = self._store.jobs.get(job_id)
        except NotFound:
            return False
        if job.state is not JobState.QUEUED or not self._is_ours(job):
            return False
        held = self._claim(job)
        if held is None:
            return False
        with self._holding(held):
            self._execute(held)
        return True

    def recover(self) -> None:
        """Take over Jobs whose lease ran out.

        Those that go back are undone in this thread, which is short; those that go
        forward are queued again, because finishing one may take an hour.
        """
        running = self._in_state(JobState.RUNNING)
        # The wall clock may have jumped behind the lease of what is worked on here.
        others = [job for job in running if self._is_ours(job) and job.id not in self._held]
        for job in self._leases.run_out(others):
            try:
                self._recover(job)
            except CloudletError as exc:
                # The lease runs out again, and the next round looks once more.
                fields = {"job_id": job.id, "code": exc.code, "reason": exc.message}
                log.warning("job_recovery_postponed", extra=fields)
            except Exception:  # One broken Job must not keep the others from recovery.
                log.exception("job_recovery_crashed", extra={"job_id": job.id})

    def _recover(self, job: Job) -> None:
        procedure = self._procedures[job.kind]
        # What had failed may be undone in part already: it can neither go on nor be complete.
        failed = job.failure is not None
        forward = procedure.recovery is Recovery.ROLL_FORWARD and not failed
        if forward and job.attempts < _MOST_ATTEMPTS:
            self._requeue(job)
            return
        held = self._claim(job)
        if held is None:
            return
        log.warning("job_rolled_back", extra={"job_id": job.id, "stage": job.stage})
        with self._holding(held):
            if not failed and procedure.is_complete(held):
                self._finish(held, JobState.SUCCEEDED, None)
            else:
                self._go_back(held, self._undo_of_begun(held), _why_rolled_back(held.job))

    def _requeue(self, job: Job) -> None:
        try:
            queued = self._store.jobs.replace(
                replace(job, state=JobState.QUEUED, lease_owner="", lease_expires_at=None)
            )
        except (StaleRecord, NotFound):
            return
        log.warning("job_goes_on", extra={"job_id": job.id, "stage": job.stage})
        self._dispatch(queued)

    def _claim(self, job: Job) -> HeldJob | None:
        """Take a Job as it was seen; None if it has changed since."""
        now = self._clock.now()
        try:
            claimed = self._store.jobs.replace(
                replace(
                    job,
                    state=JobState.RUNNING,
                    host_id=self._options.host.id,
                    lease_owner=self._options.server_id,
                    lease_expires_at=now + timedelta(seconds=self._options.lease_s),
                    attempts=job.attempts + 1,
                    started_at=job.started_at or now,
                )
            )
        except (StaleRecord, NotFound):
            return None
        return HeldJob(
            claimed,
            self._store.jobs,
            self._clock,
            lease_s=self._options.lease_s,
            recovery=self._procedures[claimed.kind].recovery,
        )

    def _holding(self, held: HeldJob) -> ExitStack:
        self._held[held.job.id] = held
        stack = ExitStack()
        stack.callback(self._held.pop, held.job.id, None)
        return stack

    # -- running ---------------------------------------------------------------------

    def _execute(self, held: HeldJob) -> None:
        procedure = self._procedures[held.job.kind]
        # What a server that died did or began is to be undone, too, if this fails.
        undo = self._undo_of_begun(held)
        try:
            self._run_steps(held, procedure, undo)
        except LeaseLost as exc:
            # Whoever has the lease now undoes or finishes; two at once would clash.
            _log_lost(held, exc)
        except JobInterrupted as exc:
            if procedure.recovery is Recovery.ROLL_FORWARD:
                self._give_back(held)
            else:
                self._go_back(held, undo, _failure_of(held, exc))
        except Exception as exc:  # noqa: BLE001  # a Job always ends with a record
            self._go_back(held, undo, _failure_of(held, exc))
        else:
            self._finish(held, JobState.SUCCEEDED, None)

    def _run_steps(self, held: HeldJob, procedure: Procedure, undo: ExitStack) -> None:
        """Run what is left of the steps; `undo` holds what takes back all that has begun."""
        begun = _begun(held.job, procedure)
        may_cancel = True
        for position, step in enumerate(procedure.steps):
            may_cancel = may_cancel and not step.final
            if position < begun - 1:
                continue
            held.enter(step.name, unit=step.unit, may_cancel=may_cancel)
            if position >= begun:
                undo.callback(self._undo, held, step)
            self._observe(held, step, "begin")
            step.run(held)
            self._observe(held, step, "end")

    def _undo_of_begun(self, held: HeldJob) -> ExitStack:
        procedure = self._procedures[held.job.kind]
        undo = ExitStack()
        for step in procedure.steps[: _begun(held.job, procedure)]:
            undo.callback(self._undo, held, step)
        return undo

    def _go_back(self, held: HeldJob, undo: ExitStack, failure: Failure) -> None:
        """Undo everything and end the Job, having written first that this is under way.

        Without that note, a Job that goes forward would go on over what is not there any
        more: it undoes nothing before it is written, and its lease runs out instead. One that
        is rolled back anyway does not need it, and its undo may be what makes room for writes.
        """
        try:
            held.begin_undo(failure)
        except LeaseLost as exc:
            _log_lost(held, exc)
            return
        except CloudletError as exc:
            if self._procedures[held.job.kind].recovery is Recovery.ROLL_FORWARD:
                raise
            _log_failure("job_undo_not_noted", exc, {"job_id": held.job.id})
        undo.close()
        self._fail(held, failure)

    def _undo(self, held: HeldJob, step: Step) -> None:
        if step.undo is None:
            return
        self._observe(held, step, "undo")
        try:
            step.undo(held)
        except Exception as exc:  # noqa: BLE001  # the others still run, reconcile does the rest
            _log_failure("job_undo_failed", exc, {"job_id": held.job.id, "step": step.name})

    def _observe(self, held: StepContext, step: Step, moment: str) -> None:
        for observer in self._observers:
            observer(held.job.kind, step.name, moment)

    # -- the end ---------------------------------------------------------------------

    def _fail(self, held: HeldJob, failure: Failure) -> None:
        procedure = self._procedures[held.job.kind]
        try:
            procedure.on_failure(held, failure)
        except Exception as late:  # noqa: BLE001  # the failure itself has to be recorded
            _log_failure("job_on_failure_failed", late, {"job_id": held.job.id})
        cancelled = failure.code == JobCancelled.code
        self._finish(held, JobState.CANCELLED if cancelled else JobState.FAILED, failure)

    def _give_back(self, held: HeldJob) -> None:
        try:
            job = held.give_back()
        except LeaseLost as exc:
            _log_lost(held, exc)
            return
        log.info("job_left_to_next_server", extra={"job_id": job.id, "stage": job.stage})

    def _finish(self, held: HeldJob, state: JobState, failure: Failure | None) -> None:
        try:
            job = held.finish(state, failure)
        except LeaseLost as exc:
            _log_lost(held, exc)
            return
        fields = {"job_id": job.id, "kind": job.kind, "state": job.state}
        log.info("job_finished", extra=fields | ({"code": failure.code} if failure else {}))
        self._jobs.record(job, str(job.state), actor=Principal(job.created_by))
        self._jobs.announce()


def _begun(job: Job, procedure: Procedure) -> int:
    """Return how many steps have begun, the one that was interrupted included."""
    names = [step.name for step in procedure.steps]
    return names.index(job.stage) + 1 if job.stage in names else 0


def _failure_of(held: HeldJob, exc: Exception) -> Failure:
    if isinstance(exc, CloudletError):
        return Failure(code=exc.code, message=exc.message)
    log.error("job_crashed", extra={"job_id": held.job.id}, exc_info=exc)
    return Failure(code="internal", message=f"an unexpected {type(exc).__name__}")


def _why_rolled_back(job: Job) -> Failure:
    """Return why a Job failed before its server died, or that this was it."""
    if job.failure is not None:
        return job.failure
    if job.cancel_requested:
        return Failure(code=JobCancelled.code, message=CANCELLED)
    reason = "the server stopped in the middle; everything was undone"
    return Failure(code=JobInterrupted.code, message=reason)


def _log_lost(held: HeldJob, exc: LeaseLost) -> None:
    log.warning("job_lease_lost", extra={"job_id": held.job.id, "reason": exc.message})


def _log_failure(event: str, exc: Exception, fields: dict[str, str]) -> None:
    if isinstance(exc, CloudletError):
        log.warning(event, extra=fields | {"code": exc.code, "reason": exc.message})
    else:
        log.error(event, extra=fields, exc_info=exc)
