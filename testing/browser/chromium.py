# SPDX-License-Identifier: Apache-2.0
"""Find a Chromium that runs.

Ubuntu's package is a wrapper around a snap: it can be there, and the browser not, or the snap
be there and nothing on PATH.
"""

import shutil
import subprocess
from collections.abc import Sequence

# As in scripts/setup.sh, which looks before the tests are run.
NAMES = ("chromium", "chromium-browser", "/snap/bin/chromium")
_VERSION_TIMEOUT_S = 60.0


def find_chromium(names: Sequence[str] = NAMES) -> str:
    """Return the first program that says its version. Raises AssertionError."""
    found = [program for name in names if (program := shutil.which(name))]
    working = next(filter(_runs, found), None)
    assert working is not None, (
        f"no Chromium that runs (found: {', '.join(found) or 'none'});"
        " ./scripts/setup.sh --dev installs it, on Ubuntu as a snap, for which snapd has to run"
    )
    return working


def _runs(program: str) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
