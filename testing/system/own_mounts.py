# SPDX-License-Identifier: Apache-2.0
"""Run a program with mounts that nobody else sees: small disks, directories in other places.

python -m testing.system.own_mounts disk:PATH:MIB bind:SOURCE:PATH -- PROGRAM ARGUMENTS
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def small_disk(path: Path, size_mib: int) -> str:
    """Name a fresh disk of this size at a directory, in memory."""
    return f"disk:{path}:{size_mib}"


def bound(source: Path, path: Path) -> str:
    """Name a directory that is to be seen in another place."""
    return f"bind:{source}:{path}"


def wrapper(*mounts: str) -> list[str]:
    """Return the words to put before a command; an ordinary user becomes root for it."""
    ways = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]
    python = [sys.executable, "-m", "testing.system.own_mounts"]
    return ["unshare", *ways, "--", *python, *mounts, "--"]


def main(words: Sequence[str]) -> None:
    """Make the mounts and become the program."""
    border = words.index("--")
    for mount in words[:border]:
        kind, first, second = mount.split(":")
        if kind == "disk":
            _mount("-t", "tmpfs", "-o", f"size={second}m,mode=0700", "tmpfs", first)
        else:
            Path(second).mkdir(mode=0o700, parents=True, exist_ok=True)
            _mount("--bind", first, second)
    program = words[border + 1 :]
    os.execvp(program[0], program)  # noqa: S606  # no shell is wanted


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, timeout=30)


if __name__ == "__main__":
    main(sys.argv[1:])
