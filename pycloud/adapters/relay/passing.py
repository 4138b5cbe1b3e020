# SPDX-License-Identifier: Apache-2.0
"""One connection through the relay: bytes both ways, half-close, back-pressure, reset.

Either side learns of the other what it would learn without a relay: the end of one
direction is passed on after its last byte, a reset as a reset. At most one buffer of each
direction is held here; a side that does not read is not read for. Must not look at bytes.
"""

import socket
from collections.abc import Callable

from pycloud.adapters.relay.events import LOST, READABLE, WRITABLE, EventLoop

BUFFER_BYTES = 1 << 18
_READS_IN_A_ROW = 8
"""Buffers of one connection before the others have their turn."""
_SYN_RETRIES = 4
"""About half a minute; a guest that is alive accepts at once."""
# What is read goes on or is copied before the next read, so one buffer serves all.
_buffer = bytearray(BUFFER_BYTES)
_view = memoryview(_buffer)


class Side:
    """One of the two sockets of a passage, and how far it has come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.events = 0
        self.pending = memoryview(b"")
        """What is still to be sent to this side."""
        self.is_ended = False
        """It sends nothing more, and all that it sent was read."""
        self.is_shut = False
        """It was told that nothing more comes."""
        self.is_reset = False
        """Its peer threw the connection away; nothing can be sent to it."""
        self.is_lost = False
        """It reports no more events; what it sent may still be there to be read."""


class Passage:
    """A client's connection and the one that is made for it."""

    def __init__(
        self,
        loop: EventLoop,
        client: socket.socket,
        target: tuple[str, int],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._on_end = on_end
        self._is_over = False
        self._client = Side(client)
        self._guest = Side(_connecting(target))
        self._is_connected = False
        self._guest.events = WRITABLE
        loop.watch(client, 0, lambda events: self._happened(self._client, self._guest, events))
        loop.watch(
            self._guest.sock,
            WRITABLE,
            lambda events: self._happened(self._guest, self._client, events),
        )

    def _happened(self, side: Side, other: Side, events: int) -> None:
        if not self._is_connected and not self._connected(side):
            return
        if events & LOST:
            # It would be reported again and again while the other side is slow.
            side.is_lost = True
            self._loop.forget(side.sock)
        if events & WRITABLE:
            self._flush(side)
            if other.is_lost:
                self._read(other, side)
        if events & (READABLE | LOST):
            self._read(side, other)
        self._settle()

    def _connected(self, side: Side) -> bool:
        """Return whether bytes may flow; without a connection the client gets a reset."""
        error = self._guest.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or side is self._client:
            side.is_lost = True
            self._end_by_reset()
            return False
        self._is_connected = True
        return True

    def _read(self, side: Side, other: Side) -> None:
        """Pass on what a side sent, as far as the other takes it."""
        turns = 0
        while not (side.is_ended or other.pending or other.is_reset):
            turns += 1
            if turns > _READS_IN_A_ROW and not side.is_lost:
                return
            try:
                count = side.sock.recv_into(_buffer)
            except BlockingIOError:
                return
            except OSError:
                side.is_reset = True
                count = 0
            if count == 0:
                side.is_ended = True
                return
            self._send(other, _view[:count])

    def _send(self, side: Side, content: memoryview) -> None:
        sent = _sent(side, content)
        if sent < len(content) and not side.is_reset:
            side.pending = memoryview(bytes(content[sent:]))

    def _flush(self, side: Side) -> None:
        if side.pending:
            side.pending = side.pending[_sent(side, side.pending) :]

    def _settle(self) -> None:
        """Pass on what has ended and wait for what may come next."""
        sides = ((self._client, self._guest), (self._guest, self._client))
        for side, other in sides:
            if side.is_reset:
                side.pending = memoryview(b"")
            if side.is_reset and (side.is_ended or other.is_reset) and not other.pending:
                self._end_by_reset()
                return
            if other.is_ended and not (other.is_reset or side.pending or side.is_shut):
                self._shut(side)
        if all(side.is_ended and side.is_shut for side, _ in sides):
            self._end()
            return
        if self._client.is_lost and self._guest.is_lost:
            self._end_by_reset()
            return
        for side, other in sides:
            self._await(side, other)

    def _shut(self, side: Side) -> None:
        side.is_shut = True
        try:
            side.sock.shutdown(socket.SHUT_WR)
        except OSError:
            side.is_reset = True

    def _await(self, side: Side, other: Side) -> None:
        is_read = not (side.is_ended or other.pending or other.is_reset)
        events = (READABLE if is_read else 0) | (WRITABLE if side.pending else 0)
        if events != side.events and not side.is_lost:
            side.events = events
            self._loop.change(side.sock, events)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._loop.close(self._client.sock)
            self._loop.close(self._guest.sock)
            self._on_end()

    def _end_by_reset(self) -> None:
        if not self._is_over:
            self._is_over = True
            for side in (self._client, self._guest):
                # Nobody acknowledges what was sent to a side that is gone.
                is_gone = side.is_reset or side.is_lost
                (self._loop.close if is_gone else self._loop.reset)(side.sock)
            self._on_end()


def _sent(side: Side, content: memoryview) -> int:
    try:
        return side.sock.send(content)
    except BlockingIOError:
        return 0
    except OSError:
        # What it sent before may still be there to be read, and comes first.
        side.is_reset = True
        return 0


def _connecting(target: tuple[str, int]) -> socket.socket:
    """Return a socket that is about to be connected; how it went is its first event."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _SYN_RETRIES)
    try:
        sock.connect(target)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        raise
    return sock
