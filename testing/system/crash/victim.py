# SPDX-License-Identifier: Apache-2.0
"""A server that kills itself with SIGKILL at a given moment of a given step.

    python -m testing.system.crash.victim DATA_DIR FILES SCENARIO STEP MOMENT

MOMENT is `end` (the effect is made, nothing is recorded yet), `midway` (a little
after the step began), `later` (when the tools that it runs are at work) or `undo` (the
last step failed, and the step is about to be undone). It exits with 3 if it is still
alive at the end.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from pycloud.core.jobs.runner import StepObserver
from pycloud.core.model.runtime import JobKind
from pycloud.errors import InsufficientStorage
from testing.system.crash.cloudlets import running_core, settings_for
from testing.system.crash.scenarios import BROKEN, SCENARIOS

_SECONDS_INTO = {"midway": 0.03, "later": 1.0}


def main() -> int:
    """Provoke the Job and die in it."""
    data_dir, files, name, step, moment = sys.argv[1:]
    scenario = SCENARIOS[name]
    last_steps: dict[JobKind, str] = {}
    observers = (_death(scenario.kind, step, moment), _failure(last_steps, moment))
    settings = settings_for(Path(data_dir), warm_total=scenario.warm_total)
    with running_core(settings, observers=observers) as core:
        procedure = core.background.runner.procedures[scenario.kind]
        last_steps[scenario.kind] = procedure.steps[-1].name
        scenario.provoke(core, Path(files))
    return 3


def _death(kind: JobKind, step: str, moment: str) -> StepObserver:
    def die(seen_kind: JobKind, seen_step: str, seen_moment: str) -> None:
        if (seen_kind, seen_step) != (kind, step):
            return
        if moment == seen_moment:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment in _SECONDS_INTO and seen_moment == "begin":
            seconds = _SECONDS_INTO[moment]
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return die


def _failure(last_steps: dict[JobKind, str], moment: str) -> StepObserver:
    def fail(seen_kind: JobKind, seen_step: str, seen_moment: str) -> None:
        is_last = last_steps.get(seen_kind) == seen_step
        if moment == "undo" and is_last and seen_moment == "begin":
            raise InsufficientStorage(BROKEN)

    return fail


if __name__ == "__main__":
    sys.exit(main())
