# SPDX-License-Identifier: Apache-2.0
"""A shell inside a test guest, on the terminal that QEMU gives to its serial port."""

import os
import select
import time
import tty
from pathlib import Path

from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.monitor import Monitor
from pycloud.core.model.identifiers import DomainId
from testing.real_host import SESSION_URI

_DEADLINE_S = 30.0
# QEMU looks once a second whether somebody has opened the terminal.
_REPEAT_S = 1.5


def run_in_guest(domain_id: DomainId, command: str) -> str:
    """Run one command in a guest and return what it prints, its exit status last."""
    descriptor = os.open(_terminal(domain_id), os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(descriptor)
        _exchange(descriptor, "echo rea''dy\n", until="ready", repeat=True)
        printed = _exchange(
            descriptor, f"{{ {command}; }} 2>&1; echo sta''tus=$?\n", until="status="
        )
        return printed[printed.index("\n") + 1 :]
    finally:
        os.close(descriptor)


def _terminal(domain_id: DomainId) -> Path:
    devices = Monitor(Connection(SESSION_URI), domain_id).execute("query-chardev")
    names = {device["label"]: device["filename"] for device in devices}
    return Path(names["serial0"].removeprefix("pty:"))


def _exchange(descriptor: int, text: str, *, until: str, repeat: bool = False) -> str:
    """Type a line and return what is printed up to the line that begins with `until`."""
    printed = ""
    deadline = time.monotonic() + _DEADLINE_S
    os.write(descriptor, text.encode())
    while not _has_line(printed, until):
        assert time.monotonic() < deadline, f"no {until!r} in {printed!r}"
        readable, _, _ = select.select([descriptor], [], [], _REPEAT_S)
        if readable:
            printed += os.read(descriptor, 4096).decode(errors="replace")
        elif repeat:
            os.write(descriptor, text.encode())
    return printed


def _has_line(printed: str, beginning: str) -> bool:
    """Return whether a finished line begins like this."""
    return any(line.startswith(beginning) for line in printed.split("\n")[:-1])
