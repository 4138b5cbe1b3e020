# SPDX-License-Identifier: Apache-2.0
"""One connection to libvirt: opened when needed, reopened after a loss, with deadlines.

libvirt's calls know no deadline, so each runs in a thread that is left behind when it
hangs; no event loop is needed. Errors of the driver leave this module only as errors of
ours. Guests live on without the daemon, so losing it costs nothing but the call.
"""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import libvirt

from pycloud.adapters.libvirt.session_daemon import needs_own_daemon, provide_daemon
from pycloud.errors import HypervisorError, HypervisorUnavailable

T = TypeVar("T")
CALL_TIMEOUT_S = 30.0
"""Deadline of calls that only look or give an order."""
START_TIMEOUT_S = 120.0
"""Deadline of calls that start or stop an emulator on a busy host."""
_OPEN_TIMEOUT_S = 60.0
_HEARTBEAT_S = 0.5
_MAX_IDLE = 8
_REOPEN_WAITS_S = (0.05, 0.2)
# Of the domains of libvirt's errors: those that mean "the way to the daemon is broken".
_TRANSPORT = frozenset(
    {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_AUTH, libvirt.VIR_FROM_POLKIT}
)
_TRANSPORT_CODES = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_AUTH_CANCELLED,
    }
)


class LibvirtRefused(HypervisorError):
    """Carry a refusal of libvirt; `libvirt_code` is its VIR_ERR number."""

    def __init__(self, message: str, *, libvirt_code: int) -> None:
        super().__init__(message)
        self.libvirt_code = libvirt_code


class Connection:
    """The way to libvirt; may be used from several threads at once.

    Each call has a connection to itself: libvirtd reads no more than five requests of
    one connection at a time, so that a look at a guest would wait for the starts of others.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._idle: list[Any] = []  # Any: libvirt ships no types.

    @property
    def uri(self) -> str:
        """The URI as it was configured."""
        return self._uri

    def run(
        self,
        action: Callable[[Any], T],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        heartbeat: Callable[[], None] | None = None,
    ) -> T:
        """Call `action` with an open connection of libvirt and return its result.

        Objects of libvirt must not outlive the action. `heartbeat` is called meanwhile;
        what it raises passes and leaves the action to itself. Raises HypervisorUnavailable
        when the connection breaks or the deadline passes, LibvirtRefused otherwise.
        """
        handle = self._taken()
        try:
            result = _within(timeout_s, lambda: action(handle), heartbeat)
        except _DeadlinePassed as exc:
            raise HypervisorUnavailable(
                f"libvirt at {self._uri} did not answer within {timeout_s:g} s"
            ) from exc
        except libvirt.libvirtError as exc:
            if _is_transport_error(exc):
                raise _unavailable(self._uri, exc) from exc
            self._give_back(handle)
            raise LibvirtRefused(str(exc), libvirt_code=exc.get_error_code()) from exc
        self._give_back(handle)
        return result

    def close(self) -> None:
        """Let go of all connections that are not in use; the next call opens another."""
        with self._lock:
            self._idle.clear()

    def _taken(self) -> Any:  # Any: libvirt ships no types.
        """Return a connection that answered just now.

        A daemon that died is noticed by the first call only, so each use begins with
        the cheapest one there is (0.1 ms), and an order is never lost to a dead peer.
        """
        while True:
            with self._lock:
                handle = self._idle.pop() if self._idle else None
            if handle is None:
                return self._opened()
            if _answers(handle):
                return handle

    def _give_back(self, handle: Any) -> None:  # Any: libvirt ships no types.
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(handle)

    def _opened(self) -> Any:  # Any: libvirt ships no types.
        # Without a handler of its own, libvirt prints every error to standard error.
        libvirt.registerErrorHandler(_say_nothing, None)
        for wait_s in _REOPEN_WAITS_S:
            try:
                return self._open_once()
            except HypervisorUnavailable:
                # A daemon that is just dying takes connections that nobody will answer.
                time.sleep(wait_s)
        return self._open_once()

    def _open_once(self) -> Any:  # Any: libvirt ships no types.
        uri = provide_daemon() if needs_own_daemon(self._uri) else self._uri
        try:
            return _within(_OPEN_TIMEOUT_S, lambda: libvirt.open(uri))
        except (_DeadlinePassed, libvirt.libvirtError) as exc:
            raise _unavailable(self._uri, exc) from exc


class _DeadlinePassed(Exception):
    """A call did not return in time; its thread is left to itself."""


def _within(
    timeout_s: float, action: Callable[[], T], heartbeat: Callable[[], None] | None = None
) -> T:
    outcome: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            outcome.put((action(), None))
        except BaseException as exc:  # noqa: BLE001  # handed to the thread that waits
            outcome.put((None, exc))

    threading.Thread(target=work, name="libvirt-call", daemon=True).start()
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(deadline - time.monotonic(), 0.0)
        pause_s = left_s if heartbeat is None else min(left_s, _HEARTBEAT_S)
        try:
            result, error = outcome.get(timeout=pause_s)
            break
        except Empty as exc:
            if heartbeat is None or pause_s == left_s:
                raise _DeadlinePassed(f"no answer within {timeout_s:g} s") from exc
        heartbeat()
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # without an error it is the action's result


def _answers(handle: Any) -> bool:  # Any: libvirt ships no types.
    try:
        _within(CALL_TIMEOUT_S, handle.getLibVersion)
    except (libvirt.libvirtError, _DeadlinePassed):
        return False
    return True


def _is_transport_error(exc: libvirt.libvirtError) -> bool:
    return exc.get_error_domain() in _TRANSPORT or exc.get_error_code() in _TRANSPORT_CODES


def _unavailable(uri: str, exc: Exception) -> HypervisorUnavailable:
    return HypervisorUnavailable(f"libvirt at {uri} cannot be reached: {exc}")


def _say_nothing(_context: object, _error: object) -> None:
    """Drop what libvirt would print; the exception says the same."""
