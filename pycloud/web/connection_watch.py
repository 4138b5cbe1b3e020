# SPDX-License-Identifier: Apache-2.0
"""Ends connections that a server cannot end itself, going by what the kernel knows of them.

For a server that accepts its connections outside of Python and has no limits of its
own for them. The watch finds the sockets among the descriptors of this process, reads
their counters and shuts down those that do not move or are too many; the server then
sees a client that left. It never reads or writes a byte, and cannot know whether a
silent connection waits for us or lets us wait; hence the patience must be longer than
any request may take.
"""

import contextlib
import os
import socket
import stat
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

PERIOD_S = 1.0
LEAST_BYTES = 1024
"""What a client must send to count as moving, if it does not take anything either."""
_ROOM_KEPT = 0.25
"""Share of all connections that is given up at once when there are too many."""
_COUNTERS = struct.Struct("<QQ")
"""`tcpi_bytes_acked` and `tcpi_bytes_received` of `struct tcp_info` in linux/tcp.h ..."""
_COUNTERS_AT = 120
"""... which stand here, after 8 bytes, 24 words and two rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """How many connections there may be and how long one may not move."""

    connections: int
    connections_per_address: int
    patience_s: float


@dataclass(slots=True)
class _Connection:
    """One connection: how far it was when it last moved, and when that was."""

    address: str
    taken_bytes: int
    sent_bytes: int
    moved_s: float


class ConnectionWatch:
    """Watches the connections accepted at one port in a thread of its own."""

    def __init__(self, port: int, limits: WatchLimits) -> None:
        self._port = port
        self._limits = limits
        self._known: dict[int, _Connection | None] = {}
        """By inode, which the kernel does not use again soon; None is no client of ours."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connection-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch; it leaves connections as they are."""
        self._ended.set()
        self._thread.join()

    def sweep(self, now_s: float) -> int:
        """Look at every connection once; returns how many were ended."""
        # Those that moved longest ago come first.
        ordered = sorted(self._look(now_s).items(), key=lambda item: item[1].moved_s)
        doomed = self._doomed(ordered, now_s)
        if doomed:
            self._end(doomed)
        return len(doomed)

    def end_all(self) -> None:
        """End every connection."""
        self._end(set(self._look(time.monotonic())))

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self.sweep(time.monotonic())

    def _doomed(self, ordered: list[tuple[int, _Connection]], now_s: float) -> set[int]:
        limits = self._limits
        doomed = {inode for inode, one in ordered if now_s - one.moved_s > limits.patience_s}
        by_address: dict[str, list[int]] = defaultdict(list)
        for inode, one in ordered:
            by_address[one.address].append(inode)
        for inodes in by_address.values():
            doomed.update(inodes[: max(0, len(inodes) - limits.connections_per_address)])
        left = [inode for inode, _ in ordered if inode not in doomed]
        if len(left) >= limits.connections:
            doomed.update(left[: len(left) - int(limits.connections * (1 - _ROOM_KEPT))])
        return doomed

    def _look(self, now_s: float) -> dict[int, _Connection]:
        seen: dict[int, _Connection | None] = {}
        for inode, descriptor in _sockets():
            if inode in self._known and self._known[inode] is None:
                seen[inode] = None
                continue
            with contextlib.suppress(OSError), _borrowed(descriptor) as sock:
                # Between listing and borrowing it may have become another one.
                inode = os.fstat(sock.fileno()).st_ino  # noqa: PLW2901
                seen[inode] = self._measured(sock, self._known.get(inode), now_s)
        self._known = seen
        return {inode: one for inode, one in seen.items() if one is not None}

    def _measured(
        self, sock: socket.socket, before: _Connection | None, now_s: float
    ) -> _Connection | None:
        if before is None:
            address = self._client_of(sock)
            return None if address is None else _Connection(address, 0, 0, now_s)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        taken_bytes, sent_bytes = _COUNTERS.unpack_from(info, _COUNTERS_AT)
        if taken_bytes > before.taken_bytes or sent_bytes - before.sent_bytes >= LEAST_BYTES:
            return _Connection(before.address, taken_bytes, sent_bytes, now_s)
        return before

    def _client_of(self, sock: socket.socket) -> str | None:
        if sock.family != socket.AF_INET or sock.type != socket.SOCK_STREAM:
            return None
        if sock.getsockname()[1] != self._port:
            return None
        try:
            return str(sock.getpeername()[0])
        except OSError:
            # The listening socket, or one that is already closed.
            return None

    def _end(self, inodes: set[int]) -> None:
        for inode, descriptor in _sockets():
            if inode in inodes:
                with contextlib.suppress(OSError), _borrowed(descriptor) as sock:
                    if os.fstat(sock.fileno()).st_ino == inode:
                        sock.shutdown(socket.SHUT_RDWR)


def _sockets() -> Iterator[tuple[int, int]]:
    """Yield inode and descriptor of every socket of this process."""
    with os.scandir("/proc/self/fd") as entries:
        descriptors = [int(entry.name) for entry in entries]
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode):
                yield status.st_ino, descriptor


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Open a second descriptor of a socket that somebody else owns. Raises OSError."""
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        yield sock
