# SPDX-License-Identifier: Apache-2.0
"""Start a guest and be killed at a given phase, as a server may be at any moment.

Run as `python -m testing.system.starter DIRECTORY PHASE` with a pickled spec on
standard input.
"""

import os
import pickle
import signal
import sys
from pathlib import Path

from testing.real_host import RealHost


def main(directory: Path, phase: str) -> None:
    """Start the guest and die at the phase."""
    spec = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the test itself

    def die(name: str) -> None:
        if name == phase:
            os.kill(os.getpid(), signal.SIGKILL)

    RealHost(directory).adapters.hypervisor.start(spec, on_phase=die)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
