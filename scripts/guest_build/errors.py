# SPDX-License-Identifier: Apache-2.0
"""The one error of the builder and the one way it runs other programs.

It must not print; the command line does that.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TOOL_TIMEOUT_S = 300
# mke2fs and friends are there on a user's machine, but not on a user's PATH.
SYSTEM_PATH = (Path("/usr/sbin"), Path("/sbin"), Path("/usr/bin"), Path("/bin"))


class BuildError(Exception):
    """The image cannot be built; the message says what to do about it."""


def find_tool(name: str, *, package: str) -> Path:
    """Return the path of an installed program.

    Raises: BuildError that names the package to install.
    """
    search_path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, SYSTEM_PATH)])
    found = shutil.which(name, path=search_path)
    if found is None:
        raise BuildError(f"{name} is missing; run: sudo apt-get install {package}")
    return Path(found)


def run_tool(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program to its end and return what it printed.

    `environment` adds to the inherited one. Messages are asked for in English.
    Raises: BuildError with the program's own words when it fails or hangs.
    """
    command = " ".join(str(part) for part in argv)
    full_environment = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
    try:
        done = subprocess.run(
            [str(part) for part in argv],
            cwd=cwd,
            env=full_environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TOOL_TIMEOUT_S,
            check=True,
        )
    except subprocess.CalledProcessError as exc:
        words = (exc.stderr or exc.stdout).decode(errors="replace").strip()
        raise BuildError(f"{command} failed with status {exc.returncode}: {words}") from exc
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"{command} did not end within {TOOL_TIMEOUT_S} s") from exc
    except OSError as exc:
        raise BuildError(f"{command} cannot be started: {exc}") from exc
    return done.stdout
