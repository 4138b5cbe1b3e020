# SPDX-License-Identifier: Apache-2.0
"""Jobs as callers see them: submit, look up, wait for, cancel. It runs nothing itself."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from uuid import uuid4

from pycloud.core.model.fleet import UNTOLD, ThisHost
from pycloud.core.model.identifiers import HostId, JobId, Principal
from pycloud.core.model.runtime import Event, Job, JobKind, JobState
from pycloud.core.ports import Clock, Slice, Store, every
from pycloud.errors import Conflict, StaleRecord

log = logging.getLogger(__name__)

_FOREIGN_POLL_S = 0.25
"""How often a Job that another process may be running is looked at while waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What is asked for: the kind, its arguments, what it touches and who asks.

    `may_cancel` False is for Jobs that have to be done once they are asked for. `host_id`
    is where the work has to be done, here unless it is said.
    """

    kind: JobKind
    arguments: Mapping[str, str]
    resources: tuple[str, ...]
    created_by: Principal
    id: JobId | None = None
    may_cancel: bool = True
    host_id: HostId = UNTOLD


class Jobs:
    """The Jobs of this cloudlet, on all its Hosts. Safe to use from several threads."""

    def __init__(self, store: Store, clock: Clock, *, host: ThisHost) -> None:
        self._store = store
        self._clock = clock
        self._host = host
        self._changed = threading.Condition()
        self._listeners: list[Callable[[Job], None]] = []

    def listen(self, listener: Callable[[Job], None]) -> None:
        """Call `listener` with every Job that is submitted or cancelled in this process."""
        self._listeners.append(listener)

    def submit(self, request: JobRequest) -> Job:
        """Store a Job, durably, and let the runner here know if it is for this Host."""
        job = self._store.jobs.add(
            Job(
                id=request.id or JobId(uuid4().hex),
                kind=request.kind,
                arguments=dict(request.arguments),
                resources=request.resources,
                may_cancel=request.may_cancel,
                host_id=self._host.named(request.host_id),
                created_by=request.created_by,
                created_at=self._clock.now(),
            )
        )
        # The one line in which the log names both the request at work and the Job.
        log.info("job_submitted", extra={"job_id": job.id, "kind": job.kind})
        self._tell(job)
        return job

    def job(self, job_id: JobId) -> Job:
        """Return a Job. Raises NotFound."""
        return self._store.jobs.get(job_id)

    def jobs(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Slice[Job]:
        """Return a page of Jobs, oldest first."""
        return self._store.jobs.find(where, limit=limit, cursor=cursor)

    def active(self) -> tuple[Job, ...]:
        """Return every Job that is queued or running, on any server."""
        states = (JobState.QUEUED, JobState.RUNNING)
        return tuple(job for state in states for job in every(self._store.jobs, {"state": state}))

    def cancel(self, job_id: JobId, *, by: Principal) -> Job:
        """Ask a Job to stop and undo itself; it ends as CANCELLED a little later.

        Raises NotFound, or Conflict when it is over or past the point of no return.
        """
        while True:
            job = self._store.jobs.get(job_id)
            if job.is_final or not job.may_cancel:
                reason = "is over" if job.is_final else "can no longer be undone"
                raise Conflict(f"job {job_id} {reason} ({job.state}, step {job.stage!r})")
            if job.cancel_requested:
                return job
            try:
                job = self._store.jobs.replace(replace(job, cancel_requested=True))
            except StaleRecord:
                continue
            self.record(job, "cancel_requested", actor=by)
            self._tell(job)
            return job

    def wait(self, job_id: JobId, *, timeout_s: float) -> Job:
        """Return the Job once it is final, or as it is when the time is over."""
        deadline = self._clock.monotonic() + timeout_s
        patience_s = timeout_s
        with self._changed:
            while True:
                job = self._store.jobs.get(job_id)
                left_s = min(deadline - self._clock.monotonic(), patience_s)
                if job.is_final or left_s <= 0:
                    return job
                pause_s = min(left_s, _FOREIGN_POLL_S)
                if not self._changed.wait(pause_s):
                    # Counted as well, so that a clock which stands still ends the wait too.
                    patience_s -= pause_s

    def announce(self) -> None:
        """Wake those who wait; called by the runner whenever a Job became final."""
        with self._changed:
            self._changed.notify_all()

    def record(self, job: Job, action: str, *, actor: Principal) -> None:
        """Append an event about the Job."""
        data = {"kind": job.kind, "state": job.state, "stage": job.stage}
        if job.failure is not None:
            data |= {"code": job.failure.code, "message": job.failure.message}
        self._store.events.append(
            Event(
                time=self._clock.now(),
                kind="job",
                action=action,
                resource=f"job/{job.id}",
                actor=actor,
                data=data,
            )
        )

    def _tell(self, job: Job) -> None:
        for listener in self._listeners:
            listener(job)
