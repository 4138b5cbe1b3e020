# SPDX-License-Identifier: Apache-2.0
"""granian in the place of waitress, for a Cloudlet API with hundreds of clients at once.

granian parses HTTP and holds its connections outside of Python, so that more requests
get through one process. It runs in this process, on the same core as everything else.
What it costs, compared with our waitress:

- The deadline for a request head also ends connections that idle between two requests.
- granian has no deadline for bodies and for readers of responses. Few such requests
  are let in at once, and those that stall are ended by `connection_watch`, but only
  after a time in which every other request would have been answered.
- At a limit for connections, the ones that moved longest ago are ended, even if they
  only wait for our answer; limits are enforced once a second, not at once.
- Nobody notices that a client left while its request waits: a start that was asked for
  the old way goes on, and its user stays counted until the Instance is stopped.
- A download holds a thread until its last byte is taken, and is refused with 429 when
  too many are under way.
- Header names arrive in small letters, and every response says `server: granian`.

This module knows nothing of the application that it serves.
"""

import asyncio
import importlib
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast
from wsgiref.types import WSGIApplication

from pycloud.errors import InvalidSettings
from pycloud.settings import Settings
from pycloud.web import waiting
from pycloud.web.connection_watch import ConnectionWatch, WatchLimits
from pycloud.web.full_disk import NO_ROOM
from pycloud.web.serving import DRAIN_S, WAIT_PLACES, Limits, limits_of

logger = logging.getLogger(__name__)

REQUIREMENT = "granian>=2.8.7,<2.9"
"""What is used here is not what granian promises to keep, so the next minor may differ."""
SLOW_PLACES = 32
"""Requests at once that a client can keep busy by being slow; each holds a thread."""
SLOW_PLACES_PER_ADDRESS = 8
_PATIENCE_BEYOND_S = 60.0
"""How much longer than the longest request a connection may be silent."""
_IN_MEMORY_BYTES = 512 * 1024
_PIECE_BYTES = 256 * 1024
_LARGEST_HEAD_BYTES = 64 * 1024
_IDLE_THREAD_S = 30
_BACKLOG = 1024
_NO_TLS: tuple[object, ...] = (False, None, None, None, "tls1.3", None, [], False)
_ENDING_S = 3.0
"""How long threads of granian get to end after the last request."""


class GranianServer:
    """One listening socket and all that granian runs for it."""

    def __init__(
        self, application: WSGIApplication, listener: socket.socket, settings: Settings
    ) -> None:
        limits = limits_of(settings)
        self.effective_host, port = listener.getsockname()
        self.effective_port = str(port)
        self.wait_room = waiting.WaitRoom(places=WAIT_PLACES)
        self._listener = listener
        self._granian = _load()
        self._signal = self._granian.WorkerSignal()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._signal.add_cb(self._ended.set)
        self._watch = ConnectionWatch(port, _watch_limits(settings))
        self._callback = _Callback(application, self.wait_room, limits)
        listener.listen(_BACKLOG)
        self._worker = _worker(self._granian, listener, limits)

    def stop(self) -> None:
        """Let `run` come to an end; safe in a signal handler and from any thread."""
        self.wait_room.close()
        self._stopping.set()

    def run(self) -> None:
        """Serve until `stop`, finish what was begun, and release everything."""
        before = _foreign_threads()
        loop = asyncio.new_event_loop()
        try:
            scheduler = _scheduler(loop, self._callback)
            self._worker.serve_mtr(scheduler, loop, self._signal)
            self._watch.start()
            self._stopping.wait()
            self._signal.set()
            if not self._ended.wait(DRAIN_S):
                self._watch.end_all()
                self._ended.wait(_ENDING_S)
            self._watch.stop()
        finally:
            loop.close()
            self._listener.close()
        _await_end_of(before)


class _Callback:
    """What granian calls for every request, in a thread of its own."""

    def __init__(
        self, application: WSGIApplication, room: waiting.WaitRoom, limits: Limits
    ) -> None:
        self._application = application
        self._limits = limits
        self._slow = _SlowPlaces(SLOW_PLACES, SLOW_PLACES_PER_ADDRESS)
        self._environ = {
            "SCRIPT_NAME": "",
            "SERVER_SOFTWARE": "granian",
            "wsgi.errors": sys.stderr,
            "wsgi.multiprocess": False,
            "wsgi.multithread": True,
            "wsgi.run_once": False,
            "wsgi.version": (1, 0),
            waiting.ENVIRON_KEY: room,
        }

    def __call__(self, protocol: Any, environ: dict[str, Any]) -> None:  # Any: WSGI; granian's own
        """Answer one request."""
        environ |= self._environ
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if not chunked and environ.get("CONTENT_LENGTH", "0") == "0":
            self._answer(protocol, environ)
            return
        with self._slow.place(environ["REMOTE_ADDR"]) as has_place:
            if not has_place:
                _refuse(protocol, 429, "too_many_requests", "too many requests are being received")
                return
            body = self._received(protocol, environ)
        if body is not None:
            with body:
                environ["wsgi.input"] = body
                self._answer(protocol, environ)

    def _received(
        self,
        protocol: Any,  # Any: as above
        environ: dict[str, Any],
    ) -> IO[bytes] | None:
        """Return the whole body, so that the application never waits for a client."""
        declared = environ.get("CONTENT_LENGTH")
        limit_bytes = self._limits.body_bytes
        if declared is not None and int(declared) > limit_bytes:
            _refuse(protocol, 413, "body_too_large", f"at most {limit_bytes} bytes are taken")
            return None
        body = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # the caller's
        try:
            length_bytes = _copy(environ["wsgi.input"], body, limit_bytes)
        except OSError as exc:
            body.close()
            if exc.errno not in NO_ROOM:
                raise
            _refuse(protocol, 507, "insufficient_storage", "the disk of the server is full")
            return None
        if length_bytes > limit_bytes:
            _refuse(protocol, 413, "body_too_large", f"at most {limit_bytes} bytes are taken")
        elif declared is not None and length_bytes != int(declared):
            _refuse(protocol, 400, "malformed_request", "the body ended too early")
        else:
            environ["CONTENT_LENGTH"] = str(length_bytes)
            environ.pop("HTTP_TRANSFER_ENCODING", None)
            body.seek(0)
            return cast("IO[bytes]", body)  # cast: not declared as one, yet is
        body.close()
        return None

    def _answer(self, protocol: Any, environ: dict[str, Any]) -> None:  # Any: as above
        start = _Start()
        result = self._application(environ, start)
        if isinstance(result, list):
            protocol.response_bytes(start.status, start.headers, b"".join(result))
            _close(result)
            return
        with self._slow.place(environ["REMOTE_ADDR"]) as has_place:
            if has_place:
                protocol.response_iter(start.status, start.headers, _Pieces(result))
                return
        _close(result)
        _refuse(protocol, 429, "too_many_requests", "too many downloads are under way")


class _Start:
    """The `start_response` of one request."""

    __slots__ = ("headers", "status")

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[str, str]] = []

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:  # noqa: ARG002  # Any: WSGI
        """Take status and headers."""
        self.status = int(status[:3])
        self.headers = headers


class _Pieces:
    """A response in pieces, as granian takes them."""

    def __init__(self, result: Iterable[bytes]) -> None:
        self._result = result
        self._pieces = iter(result)

    def __next__(self) -> bytes:
        """Return the next piece."""
        return next(self._pieces)

    def close(self) -> None:
        """Release what the response was made from."""
        _close(self._result)


class _SlowPlaces:
    """A bounded number of places, in total and for each address; thread-safe."""

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._taken: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def place(self, address: str) -> Iterator[bool]:
        """Take a place for the duration of the block; yields False if there is none."""
        with self._lock:
            mine = self._taken.get(address, 0)
            taken = mine < self._per_address and sum(self._taken.values()) < self._total
            if taken:
                self._taken[address] = mine + 1
        try:
            yield taken
        finally:
            if taken:
                with self._lock:
                    self._taken[address] -= 1
                    if not self._taken[address]:
                        del self._taken[address]


def _load() -> Any:  # Any: its stub does not describe what this version has
    try:
        package = importlib.import_module("granian")
        module = importlib.import_module("granian._granian")
    except ImportError as exc:
        raise InvalidSettings("pycloud.wsgi_server", "granian", allowed=_advice()) from exc
    if not package.__version__.startswith("2.8."):
        found = f"version {package.__version__} is installed; {_advice()}"
        raise InvalidSettings("pycloud.wsgi_server", "granian", allowed=found)
    # What it says at the start and the end is in our own log already.
    logging.getLogger("_granian").setLevel(logging.WARNING)
    return module


def _advice() -> str:
    return f"waitress, or granian after `{sys.executable} -m pip install '{REQUIREMENT}'`"


def _scheduler(loop: asyncio.AbstractEventLoop, callback: _Callback) -> Any:  # Any: as above
    make = vars(importlib.import_module("granian._futures"))["_new_cbscheduler"]
    return make(loop, callback, impl_asyncio=True)


def _worker(granian: Any, listener: socket.socket, limits: Limits) -> Any:  # Any: as above
    settings = importlib.import_module("granian.http").HTTP1Settings(
        header_read_timeout=int(limits.head_timeout_s * 1000), max_buffer_size=_LARGEST_HEAD_BYTES
    )
    # It has a descriptor of its own, which it closes when it likes.
    descriptor = os.dup(listener.fileno())
    return granian.WSGIWorker(
        1,
        (None, granian.SocketHolder(fd=descriptor, uds=False, backlog=_BACKLOG)),
        None,
        1,
        1,
        limits.threads + WAIT_PLACES + SLOW_PLACES,
        _IDLE_THREAD_S,
        limits.connections,
        "1",
        settings,
        None,
        None,
        *_NO_TLS,
        (None, None),
    )


def _watch_limits(settings: Settings) -> WatchLimits:
    longest_s = max(
        settings.start_timeout_s, settings.stop_timeout_s, settings.request_body_timeout_s
    )
    return WatchLimits(
        connections=settings.connection_limit,
        connections_per_address=settings.connections_per_address,
        patience_s=longest_s + _PATIENCE_BEYOND_S,
    )


def _copy(source: IO[bytes], target: Any, limit_bytes: int) -> int:  # Any: a SpooledTemporaryFile
    """Copy until the end, or until there is more than allowed; returns how much there was."""
    length_bytes = 0
    while length_bytes <= limit_bytes and (piece := source.read(_PIECE_BYTES)):
        length_bytes += len(piece)
        target.write(piece)
    return length_bytes


def _refuse(protocol: Any, status: int, code: str, detail: str) -> None:  # Any: granian's own
    content: Mapping[str, object] = {
        "type": f"/docs/api#error-{code}",
        "title": detail,
        "status": status,
        "detail": detail,
        "code": code,
    }
    body = json.dumps(content).encode()
    headers = [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))]
    if status == 429:
        headers.append(("Retry-After", "1"))
    protocol.response_bytes(status, headers, body)


def _close(result: object) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _foreign_threads() -> set[int]:
    """Return the threads of this process that Python did not start."""
    with os.scandir("/proc/self/task") as entries:
        everyone = {int(entry.name) for entry in entries}
    return everyone - {thread.native_id for thread in threading.enumerate()}


def _await_end_of(before: set[int]) -> None:
    # A thread of granian that asks for the interpreter while that is being torn down
    # would abort the process.
    deadline_s = time.monotonic() + _ENDING_S
    while _foreign_threads() - before:
        if time.monotonic() > deadline_s:
            logger.warning("server_threads_left")
            return
        time.sleep(0.02)
