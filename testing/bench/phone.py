# SPDX-License-Identifier: Apache-2.0
"""A client that has just been told a port and asks it until it answers.

QEMU's user-mode network accepts connections that the guest does not hear of, so a silent one
is followed by another, at growing distances that do not drown a guest in requests.
"""

import contextlib
import select
import socket
import time
from http.client import HTTPConnection

ADDRESS = "127.0.0.1"
REQUEST = b"GET /health HTTP/1.0\r\nHost: guest\r\n\r\n"
FIRST_SILENCE_S = 0.25
AFTER_REFUSAL_S = 0.02
DEADLINE_S = 120.0
LONG_REQUEST_S = 300.0


def await_first_byte(port: int) -> None:
    """Return when the service has sent the first byte of an answer.

    Raises TimeoutError at the deadline.
    """
    deadline_s = time.monotonic() + DEADLINE_S
    silence_s = FIRST_SILENCE_S
    asked: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        while time.monotonic() < deadline_s:
            try:
                asked.append(stack.enter_context(_asking(port)))
            except OSError:
                time.sleep(AFTER_REFUSAL_S)
                continue
            if _have_answer(asked, within_s=silence_s):
                return
            silence_s *= 2
    message = f"no answer on port {port} within {DEADLINE_S:g} s"
    raise TimeoutError(message)


def _asking(port: int) -> socket.socket:
    connection = socket.create_connection((ADDRESS, port), timeout=DEADLINE_S)
    try:
        connection.sendall(REQUEST)
    except OSError:
        connection.close()
        raise
    return connection


def _have_answer(asked: list[socket.socket], *, within_s: float) -> bool:
    """Wait for a byte on any connection; those that end without one are dropped."""
    until_s = time.monotonic() + within_s
    while asked and (left_s := until_s - time.monotonic()) > 0:
        readable, _, _ = select.select(asked, [], [], left_s)
        for connection in readable:
            with contextlib.suppress(OSError):
                if connection.recv(1):
                    return True
            asked.remove(connection)
    return False


def touch_memory(port: int, mib: int) -> None:
    """Let the guest write to this much of its memory and hold it. Raises RuntimeError."""
    with contextlib.closing(HTTPConnection(ADDRESS, port, timeout=LONG_REQUEST_S)) as connection:
        connection.request("POST", f"/memory?touch_mib={mib}")
        answer = connection.getresponse()
        said = answer.read().decode()
    if answer.status != 200:
        message = f"the guest cannot hold {mib} MiB: {said}"
        raise RuntimeError(message)
