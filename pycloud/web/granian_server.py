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
- granian reads a body only as far as it is asked for, so the gate decides here as early as
  with waitress; but what is left of a refused body is read by the thread that answered,
  for as long as the client takes its time, and that thread's place is not free before.
- Nobody notices that a client left while its request waits: a start that was asked for
  the old way goes on, and its user stays counted until the Instance is stopped.
- A download holds a thread until its last byte is taken, and is refused with 429 when
  too many are under way.
- Header names arrive in small letters, and every response says `server: granian`.

This module knows nothing of the application that it serves.
"""

import asyncio
import importlib
import io
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, cast
from wsgiref.types import WSGIApplication

from pycloud.errors import CloudletError, InvalidSettings
from pycloud.settings import Settings
from pycloud.web import waiting
from pycloud.web.body_gate import REFUSAL_KEY, Allowance, Head, answering_refusals, gate_of
from pycloud.web.connection_watch import ConnectionWatch, WatchLimits
from pycloud.web.receiving import NO_ROOM, BodyRules, no_room
from pycloud.web.serving import DRAIN_S, MOST_DROPPED_BYTES, WAIT_PLACES, Limits, limits_of

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
        self._application = answering_refusals(application)
        self._rules = BodyRules(
            gate=gate_of(application, limit_bytes=limits.body_bytes),
            reserve_bytes=limits.reserve_bytes,
        )
        self._most_dropped_bytes = max(limits.body_bytes, MOST_DROPPED_BYTES)
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
        head = Head(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("HTTP_AUTHORIZATION", ""),
        )
        allowance = self._rules.gate.allowance(head)
        declared = environ.get("CONTENT_LENGTH")
        kept = self._kept(environ["wsgi.input"], declared, allowance)
        if isinstance(kept, CloudletError):
            self._refuse_body(protocol, environ, kept)
            return None
        body, length_bytes = kept
        if declared is not None and length_bytes != int(declared):
            body.close()
            _refuse(protocol, 400, "malformed_request", "the body ended too early")
            return None
        environ["CONTENT_LENGTH"] = str(length_bytes)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        body.seek(0)
        return body

    def _kept(
        self, source: IO[bytes], declared: str | None, allowance: Allowance
    ) -> tuple[IO[bytes], int] | CloudletError:
        """Return a copy of a body and its length, or why it is not to be kept."""
        declared_bytes = int(declared or 0)
        if declared_bytes > allowance.limit_bytes:
            return allowance.excess
        if declared_bytes > _IN_MEMORY_BYTES and not self._rules.has_room(declared_bytes):
            return no_room()
        length_bytes = 0
        with ExitStack() as undo:
            body = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # the caller's
            undo.callback(_discard, body)
            # It waits until it has as much as it is asked for, and one byte is too many.
            while piece := source.read(min(_PIECE_BYTES, allowance.limit_bytes + 1 - length_bytes)):
                length_bytes += len(piece)
                if length_bytes > allowance.limit_bytes:
                    return allowance.excess
                if length_bytes > _IN_MEMORY_BYTES and not self._rules.has_room(len(piece)):
                    return no_room()
                if not _write(body, piece):
                    return no_room()
            undo.pop_all()
        return cast("IO[bytes]", body), length_bytes  # cast: not declared as one, yet is

    def _refuse_body(
        self,
        protocol: Any,  # Any: as above
        environ: dict[str, Any],
        refusal: CloudletError,
    ) -> None:
        """Answer, and read on until the client is done: it would lose the answer otherwise."""
        source: IO[bytes] = environ["wsgi.input"]
        environ |= {REFUSAL_KEY: refusal, "wsgi.input": io.BytesIO(), "CONTENT_LENGTH": "0"}
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        self._answer(protocol, environ)
        # Who sent Expect waits to be asked for the body, and to read would be to ask.
        left_bytes = 0 if "HTTP_EXPECT" in environ else self._most_dropped_bytes
        while left_bytes > 0 and (piece := source.read(_PIECE_BYTES)):
            left_bytes -= len(piece)
        # The traceback of the refusal may keep this frame, and a body keeps a thread of granian.
        del source

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


def _discard(body: Any) -> None:  # Any: a SpooledTemporaryFile
    # Closing writes out what still waits in memory, and so may find no room again.
    with suppress(OSError):
        body.close()


def _write(target: Any, piece: bytes) -> bool:  # Any: a SpooledTemporaryFile
    """Write, and return whether there was room for it."""
    try:
        target.write(piece)
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            raise
        return False
    return True


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
