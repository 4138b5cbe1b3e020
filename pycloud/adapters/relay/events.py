# SPDX-License-Identifier: Apache-2.0
"""The relay's event loop: one thread, one epoll, no events for what is closed already.

Must not know what the sockets are for.
"""

import array
import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable

Handler = Callable[[int], None]
READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
LOST = select.EPOLLERR | select.EPOLLHUP
"""What the kernel reports unasked: an error, or nothing more in either direction."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_DRAIN_TIMEOUT_S = 10.0
_DRAIN_POLL_S = 0.02


class EventLoop:
    """Calls a socket's handler with what happened to it. For one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._closing: list[socket.socket] = []
        self._draining: list[tuple[socket.socket, float]] = []

    def watch(self, sock: socket.socket, events: int, handler: Handler) -> None:
        """Call `handler` with the events of a socket; LOST ones come unasked."""
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock, events)

    def change(self, sock: socket.socket, events: int) -> None:
        """Wait for other events of a watched socket."""
        self._epoll.modify(sock, events)

    def forget(self, sock: socket.socket) -> None:
        """Report no more of a socket; idempotent."""
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    def close(self, sock: socket.socket) -> None:
        """Forget and close a socket.

        It is closed once all events at hand are reported, so that none of them can be
        taken for one of a new socket with the same number.
        """
        self.forget(sock)
        self._closing.append(sock)

    def reset(self, sock: socket.socket) -> None:
        """Close a socket so that its peer sees a reset, after all that was sent before."""
        self.forget(sock)
        self._draining.append((sock, time.monotonic() + _DRAIN_TIMEOUT_S))

    def run_once(self, timeout_s: float) -> None:
        """Wait for events and report them."""
        wait_s = min(timeout_s, _DRAIN_POLL_S) if self._draining else timeout_s
        for number, events in self._epoll.poll(wait_s):
            handler = self._handlers.get(number)
            if handler is not None:
                handler(events)
        self._drain()
        while self._closing:
            self._closing.pop().close()

    def _drain(self) -> None:
        # A reset throws away what the peer has not acknowledged yet.
        now_s = time.monotonic()
        waiting = self._draining
        self._draining = []
        for sock, deadline_s in waiting:
            if _unacknowledged_bytes(sock) > 0 and now_s < deadline_s:
                self._draining.append((sock, deadline_s))
                continue
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._closing.append(sock)


def _unacknowledged_bytes(sock: socket.socket) -> int:
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return count[0]
