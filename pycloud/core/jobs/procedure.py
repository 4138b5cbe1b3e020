# SPDX-License-Identifier: Apache-2.0
"""How the body of a Job is written: named steps, each with its undo.

Steps and undos read only the Job and the stores, never memory of an earlier
step, because after a crash another process undoes or finishes them. Both must
be idempotent: an undo also runs for a step that began and did not end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pycloud.core.model.runtime import Failure, Job, JobKind


class StepContext(Protocol):
    """What a step sees of the Job it works for."""

    @property
    def job(self) -> Job:
        """The Job as it was last written."""
        ...

    def report(self, done: int, total: int) -> None:
        """Record progress within the step. Raises JobCancelled when asked to stop."""
        ...

    def check(self) -> None:
        """Raise JobCancelled when asked to stop."""
        ...

    def mark(self, phase: str) -> None:
        """End a phase of the Job's timeline, which is kept in memory only."""
        ...

    def timeline(self) -> tuple[tuple[str, float, float], ...]:
        """Return (name, begin, duration) of the phases so far, in ms since the request."""
        ...

    def add_result(self, key: str, value: str) -> None:
        """Put something into the Job's result, written with the next change of state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: `run` makes the effect, `undo` removes whatever part of it exists.

    `unit` is what `report` counts. From a step that is `final` on, the Job can no
    longer be cancelled.
    """

    name: str
    run: Callable[[StepContext], None]
    undo: Callable[[StepContext], None] | None = None
    unit: str = ""
    final: bool = False


class Recovery(StrEnum):
    """What happens to a Job whose server died.

    ROLL_BACK undoes all steps that began; ROLL_FORWARD goes on at the step that was
    interrupted, which may find its own effect half made. The same happens when a server
    is told to stop. A Job that had failed before, and was being undone, is undone again,
    all of it, whatever is said here.
    """

    ROLL_BACK = "roll_back"
    ROLL_FORWARD = "roll_forward"


class Lane(StrEnum):
    """Which workers take a Job, so that copies delay no start, and starts no stop."""

    STARTS = "starts"
    STOPS = "stops"
    CONTENT = "content"
    BACKGROUND = "background"


def _never(_context: StepContext) -> bool:
    return False


def _nothing(_context: StepContext, _failure: Failure) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Procedure:
    """The registered body of one JobKind.

    `is_complete` tells before a roll-back that the effect exists and only the record of
    success is missing. `on_failure` runs after all undos, before the failure is recorded,
    also when no step has begun; like an undo it has to be idempotent.
    """

    kind: JobKind
    lane: Lane
    steps: tuple[Step, ...]
    recovery: Recovery
    is_complete: Callable[[StepContext], bool] = _never
    on_failure: Callable[[StepContext, Failure], None] = _nothing
