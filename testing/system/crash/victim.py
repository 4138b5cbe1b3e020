# SPDX-License-Identifier: Apache-2.0
"""A server that kills itself with SIGKILL at a given moment of a given step.

    python -m testing.system.crash.victim DATA_DIR FILES KIND STEP MOMENT

MOMENT is `end` (the effect is made, nothing is recorded yet), `midway` (a little
after the step began) or `later` (when the tools that it runs are at work). It exits
with 3 if it is still alive at the end.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from pycloud.core.model.runtime import JobKind
from testing.system.crash.cloudlets import running_core, settings_for
from testing.system.crash.scenarios import SCENARIOS

_SECONDS_INTO = {"midway": 0.03, "later": 1.0}


def main() -> int:
    """Provoke the Job and die in it."""
    data_dir, files, kind_name, step, moment = sys.argv[1:]
    kind = JobKind(kind_name)
    scenario = SCENARIOS[kind]

    def die(_kind: JobKind, _step: str, _moment: str) -> None:
        if (_kind, _step) != (kind, step):
            return
        if moment == "end" and _moment == "end":
            os.kill(os.getpid(), signal.SIGKILL)
        if moment in _SECONDS_INTO and _moment == "begin":
            seconds = _SECONDS_INTO[moment]
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    settings = settings_for(Path(data_dir), warm_total=scenario.warm_total)
    with running_core(settings, observers=(die,)) as core:
        scenario.provoke(core, Path(files))
    return 3


if __name__ == "__main__":
    sys.exit(main())
