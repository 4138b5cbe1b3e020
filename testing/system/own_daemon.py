# SPDX-License-Identifier: Apache-2.0
"""Servers whose libvirt daemon nobody else uses, so that it may die or see other mounts."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pycloud.adapters.libvirt import session_daemon
from testing.system.cloudlet import Server, running_server
from testing.system.own_mounts import bound, wrapper

_ROOTS_RUNTIME_DIR = Path("/run/pycloud")


@contextmanager
def own_daemon() -> Iterator[Path]:
    """Let this process and its servers use a session daemon of their own for a while.

    Yields the directory of its socket. The daemon is started by whoever needs it first.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pycloud-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        directory = Path(name)
        patch.setenv("XDG_RUNTIME_DIR", name)
        patch.setattr(session_daemon, "RUNTIME_DIR", directory)
        yield directory
        os.kill(daemon_of(directory), signal.SIGTERM)


@contextmanager
def server_on(runtime_dir: Path, folder: Path, *mounts: str) -> Iterator[Server]:
    """Run a server for a while that finds its daemon there and sees these mounts."""
    if os.geteuid() == 0:
        mounts = (bound(runtime_dir, _ROOTS_RUNTIME_DIR), *mounts)
    with running_server(folder, wrapper=wrapper(*mounts) if mounts else ()) as server:
        yield server


def daemon_of(runtime_dir: Path) -> int:
    """Return the process of the daemon."""
    (pid_file,) = (
        path
        for name in ("virtqemud.pid", "libvirtd.pid")
        if (path := runtime_dir / "libvirt" / name).exists()
    )
    return int(pid_file.read_text())
