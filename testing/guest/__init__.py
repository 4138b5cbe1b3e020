# SPDX-License-Identifier: Apache-2.0
"""Test guests: the demo Service VM and its variants, built when first asked for and then kept.

An image's file name holds a digest of the builder's sources and of the options, so a change of
either makes a new image. The images are shared by all tests and read-only: boot them with a
copy-on-write layer, or copy them.
"""

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from testing.cache import cache_dir

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BUILDER = SCRIPTS / "build_guest.py"
BUILD_TIMEOUT_S = 240


class GuestVariant(StrEnum):
    """What the service of a test guest does after boot."""

    NORMAL = "normal"
    LATE = "late"
    NEVER = "never"
    PANIC = "panic"
    PANIC_LOOP = "panic-loop"


def guest_image(
    variant: GuestVariant = GuestVariant.NORMAL, port: int = 8080, *, late_s: int = 8
) -> Path:
    """Return a bootable qcow2 image, built now unless an earlier call has built it.

    Safe to call from several test processes at once. Raises: AssertionError with the builder's
    own words when it cannot be built.
    """
    options = [f"--variant={variant}", f"--port={port}", f"--late-s={late_s}"]
    folder = cache_dir() / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{variant}-{port}-{_digest(options)}.qcow2"
    if not image.exists():
        with _exclusive(folder / "lock"):
            if not image.exists():
                _build(image, options)
    return image


def _build(image: Path, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(BUILDER), f"--output={image}", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"the test guest cannot be built:\n{done.stdout}"
    # A test that forgets its copy-on-write layer fails at once instead of spoiling the others.
    image.chmod(0o444)


def _digest(options: list[str]) -> str:
    digest = hashlib.sha256("\0".join(options).encode())
    for path in (BUILDER, *_files("guest_build", "*.py"), *_files("guest_root", "*")):
        executable = path.stat().st_mode & 0o100
        digest.update(f"\0{path.relative_to(SCRIPTS)}\0{executable}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _files(folder: str, pattern: str) -> list[Path]:
    return sorted(path for path in (SCRIPTS / folder).rglob(pattern) if path.is_file())


@contextmanager
def _exclusive(lock_file: Path) -> Iterator[None]:
    # The kernel drops this lock with the process, so a killed test run leaves nothing to clear.
    with lock_file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
