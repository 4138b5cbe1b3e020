# SPDX-License-Identifier: Apache-2.0
"""A session daemon of libvirt for root, who gets none from libvirt itself.

For an ordinary user libvirt starts a daemon at the first use of `qemu:///session`; for
root it looks for the system daemon instead. So root's is started here, in a user
namespace in which root is an ordinary user: the daemon and its guests own root's files
and have none of root's powers. Nothing is configured, and the daemon ends when it has
been idle. Must not be used for any other URI.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from pycloud.adapters.libvirt import session_supervisor
from pycloud.errors import HypervisorUnavailable

SESSION_URI = "qemu:///session"
RUNTIME_DIR = Path("/run/pycloud")
_IDLE_TIMEOUT_S = 120
_START_DEADLINE_S = 20.0
_POLL_S = 0.02
# Any account but 0 makes libvirt take itself for unprivileged; nothing is looked up under it.
_UNPRIVILEGED_ID = 1
_DAEMONS = (("virtqemud", "virtqemud-sock"), ("libvirtd", "libvirt-sock"))


def needs_own_daemon(uri: str) -> bool:
    """Return whether libvirt would look in vain for a session daemon of this user."""
    return uri == SESSION_URI and os.geteuid() == 0


def provide_daemon() -> str:
    """Start root's session daemon unless it listens already; return the URI that reaches it.

    Raises HypervisorUnavailable.
    """
    for program, socket_name in _DAEMONS:
        executable = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if executable is None:
            continue
        socket_path = RUNTIME_DIR / "libvirt" / socket_name
        if not _listens(socket_path):
            _start(executable, socket_path)
        return f"qemu+unix:///session?socket={socket_path}"
    raise HypervisorUnavailable("libvirt is not installed: neither virtqemud nor libvirtd is there")


def emulator_log(name: str) -> Path:
    """Return where a session daemon keeps what an emulator said; it never removes it."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "libvirt" / "qemu" / "log" / f"{name}.log"


def _start(executable: str, socket_path: Path) -> None:
    RUNTIME_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = RUNTIME_DIR / "daemon.log"
    command = [
        "unshare",
        "--user",
        f"--map-user={_UNPRIVILEGED_ID}",
        f"--map-group={_UNPRIVILEGED_ID}",
        "--",
        sys.executable,
        # Neither the environment nor site packages: only the standard library is needed.
        "-I",
        "-S",
        str(Path(session_supervisor.__file__)),
        executable,
        f"--timeout={_IDLE_TIMEOUT_S}",
    ]
    try:
        with log.open("wb") as output:
            subprocess.run(
                command,
                env={
                    **os.environ,
                    "XDG_RUNTIME_DIR": str(RUNTIME_DIR),
                    # Errors only; otherwise every guest adds lines that nobody reads.
                    "LIBVIRT_LOG_OUTPUTS": "4:stderr",
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=_START_DEADLINE_S,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as exc:
        raise _not_started(log, str(exc)) from exc
    deadline = time.monotonic() + _START_DEADLINE_S
    # Of two that start at once one gives up, so what counts is that the socket answers.
    while not _listens(socket_path):
        if time.monotonic() > deadline:
            raise _not_started(log, "its socket does not answer")
        time.sleep(_POLL_S)


def _not_started(log: Path, why: str) -> HypervisorUnavailable:
    said = ""
    with contextlib.suppress(OSError):
        said = log.read_text(encoding="utf-8", errors="replace").strip()[-400:]
    return HypervisorUnavailable(
        f"the session daemon of libvirt cannot be started ({why}; it said: {said or 'nothing'});"
        " run pycloud as an ordinary user, or set pycloud.hypervisor = qemu:///system"
    )


def _listens(socket_path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(socket_path))
        except OSError:
            return False
    return True
