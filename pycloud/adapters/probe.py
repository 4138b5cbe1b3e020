# SPDX-License-Identifier: Apache-2.0
"""Waits for the first answer of a service inside a guest.

QEMU's user-mode network accepts a connection before the guest listens, so a
connect proves nothing: an answer is a byte that the guest sent. A connection
made while the guest was still booting may stay silent long after the service is
up, which is why several of different age are kept open at the same time. This
module must not know domains; it is told by callbacks whether the guest lives.
"""

import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

from pycloud.core.model.catalog import Readiness
from pycloud.core.model.identifiers import DomainId
from pycloud.core.ports import Clock, ProbeTarget
from pycloud.errors import GuestFailed, ServiceNotReady

Accepts = Callable[[DomainId, int], bool]
"""Tells whether the guest itself accepted a connection to this published port."""

_ALIVE_INTERVAL_S = 0.25
_BANNER_WAIT_S = 0.004
"""A service that speaks first, resumed from memory, does so within about 2 ms."""
_MAX_ATTEMPTS = 16
_BESIDE_SILENT_S = 0.25
"""A further connection costs the guest a request of its own. Without KVM one took a shell
script 70 ms; opening one every 20 ms made a clone answer after 2.0 s instead of 0.16 s."""
_WORKED_ON_S = 5.0
"""How long a connection that the guest itself accepted is trusted to bring an answer. Eight
clones that started at once on a busy host were asked 122 to 445 times and answered after 7
to 40 s when each was asked again every quarter of a second; trusted for two seconds, they
were asked 10 to 33 times and answered after 3 to 9 s."""
_STATUS_LINE = b"HTTP/"
_READ_BYTES = 512


class SocketProbe:
    """The Probe port on TCP sockets."""

    def __init__(self, clock: Clock, accepts: Accepts) -> None:
        self._clock = clock
        self._accepts = accepts

    def wait(self, target: ProbeTarget, *, timeout_s: float, is_alive: Callable[[], bool]) -> None:
        """Return at the first answer.

        Raises ServiceNotReady at the deadline, GuestFailed when the guest is gone, and
        what `is_alive` raises.
        """
        begin_s = self._clock.monotonic()
        ask_alive_at_s = begin_s + _ALIVE_INTERVAL_S
        with _Attempts(target, begin_s) as attempts:
            while True:
                now_s = self._clock.monotonic()
                if now_s >= begin_s + timeout_s:
                    raise ServiceNotReady(port=target.port, timeout_s=timeout_s)
                if now_s >= ask_alive_at_s:
                    if not is_alive():
                        raise GuestFailed("the guest stopped before its service answered")
                    ask_alive_at_s = self._clock.monotonic() + _ALIVE_INTERVAL_S
                if attempts.is_due(now_s):
                    if self._is_worked_on(target, attempts, now_s):
                        attempts.postpone(now_s)
                    else:
                        attempts.open(now_s)
                until_s = min(begin_s + timeout_s, ask_alive_at_s, attempts.next_event_at_s())
                if attempts.have_answer(max(0.0, until_s - now_s), self._clock):
                    return
                if self._is_accepted(target, attempts):
                    return

    def _is_worked_on(self, target: ProbeTarget, attempts: "_Attempts", now_s: float) -> bool:
        if now_s - attempts.last_opened_at_s >= _WORKED_ON_S:
            return False
        return attempts.is_connected() and self._accepts(target.domain_id, target.port)

    def _is_accepted(self, target: ProbeTarget, attempts: "_Attempts") -> bool:
        if target.readiness is not Readiness.TCP:
            return False
        return attempts.is_connected() and self._accepts(target.domain_id, target.port)


class _Stage(Enum):
    CONNECTING = auto()
    LISTENING = auto()
    """Connected; a service that speaks first may do so."""
    ASKED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class _Attempt:
    """One connection and how far it came."""

    sock: socket.socket
    stage: _Stage = _Stage.CONNECTING
    ask_at_s: float = float("inf")
    received: bytearray = field(default_factory=bytearray)


class _Attempts:
    """The connections of one wait: a bounded number, the oldest given up for a new one.

    After a refusal the next attempt follows within 2 % of the time waited so far; beside
    a silent one, within 5 %, but never in less than a quarter of a second, and later still
    while the guest works on one. So the probe is
    quick with a clone and cheap with a cold boot, and as sixteen attempts span a factor of
    two in age, a service that needs a long time for its first answer gets it too.
    """

    def __init__(self, target: ProbeTarget, begin_s: float) -> None:
        self._target = target
        self._begin_s = begin_s
        self._next_open_at_s = begin_s
        self.last_opened_at_s = begin_s
        self._selector = selectors.DefaultSelector()
        self._open: list[_Attempt] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for attempt in self._open:
            attempt.sock.close()
        self._selector.close()

    def is_due(self, now_s: float) -> bool:
        """Return whether it is time for a further connection."""
        return now_s >= self._next_open_at_s

    def postpone(self, now_s: float) -> None:
        """Give the open connections a little more time."""
        self._next_open_at_s = now_s + _BESIDE_SILENT_S

    def open(self, now_s: float) -> None:
        """Open a further connection."""
        self.last_opened_at_s = now_s
        if len(self._open) >= _MAX_ATTEMPTS:
            self._close(self._open[0])
        self._next_open_at_s = now_s + _clamped(
            0.05 * (now_s - self._begin_s), _BESIDE_SILENT_S, 2.0
        )
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        attempt = _Attempt(sock=sock)
        self._open.append(attempt)
        sock.settimeout(0)
        self._selector.register(sock, selectors.EVENT_WRITE, attempt)
        try:
            sock.connect((self._target.address, self._target.port))
        except BlockingIOError:
            return  # The selector tells when the connection is made or refused.
        except OSError:
            self._give_up(attempt, now_s)

    def next_event_at_s(self) -> float:
        """Return when something is to be done even if no socket stirs."""
        asks = (attempt.ask_at_s for attempt in self._open)
        return min(self._next_open_at_s, min(asks, default=float("inf")))

    def is_connected(self) -> bool:
        """Return whether a connection is open, which a user-mode network grants by itself."""
        return any(attempt.stage is not _Stage.CONNECTING for attempt in self._open)

    def have_answer(self, timeout_s: float, clock: Clock) -> bool:
        """Wait for sockets to stir, move their attempts on; True at an answer."""
        for key, _ in self._selector.select(timeout_s):
            attempt: _Attempt = key.data
            if attempt.stage is _Stage.CONNECTING:
                self._connected(attempt, clock.monotonic())
            elif self._is_answered(attempt, clock.monotonic()):
                return True
        now_s = clock.monotonic()
        for attempt in [attempt for attempt in self._open if attempt.ask_at_s <= now_s]:
            self._ask(attempt, now_s)
        return False

    def _connected(self, attempt: _Attempt, now_s: float) -> None:
        sock = attempt.sock
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or is_own_echo(sock):
            self._give_up(attempt, now_s)
            return
        attempt.stage = _Stage.LISTENING
        self._selector.modify(sock, selectors.EVENT_READ, attempt)
        if self._target.readiness is Readiness.AUTO:
            attempt.ask_at_s = now_s + _BANNER_WAIT_S
        elif self._target.readiness is Readiness.HTTP:
            self._ask(attempt, now_s)

    def _ask(self, attempt: _Attempt, now_s: float) -> None:
        attempt.stage = _Stage.ASKED
        attempt.ask_at_s = float("inf")
        request = (
            f"GET / HTTP/1.0\r\nHost: {self._target.address}:{self._target.port}\r\n"
            "User-Agent: pycloud\r\nConnection: close\r\n\r\n"
        )
        try:
            attempt.sock.sendall(request.encode("ascii"))
        except OSError:
            self._give_up(attempt, now_s)

    def _is_answered(self, attempt: _Attempt, now_s: float) -> bool:
        try:
            piece = attempt.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        attempt.received += piece
        if self._target.readiness is not Readiness.HTTP:
            if not piece:
                self._give_up(attempt, now_s)
            return bool(piece)
        if attempt.received.startswith(_STATUS_LINE):
            return True
        if not piece or not _STATUS_LINE.startswith(attempt.received):
            self._give_up(attempt, now_s)
        return False

    def _give_up(self, attempt: _Attempt, now_s: float) -> None:
        self._close(attempt)
        retry_at_s = now_s + _clamped(0.02 * (now_s - self._begin_s), 0.005, 0.05)
        self._next_open_at_s = min(self._next_open_at_s, retry_at_s)

    def _close(self, attempt: _Attempt) -> None:
        self._selector.unregister(attempt.sock)
        attempt.sock.close()
        self._open.remove(attempt)


def is_own_echo(sock: socket.socket) -> bool:
    """Return whether a socket is connected to itself.

    A connect to a free local port of the ephemeral range may pick that very port as its
    own (TCP simultaneous open), and would then read back what it sends.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return True


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
