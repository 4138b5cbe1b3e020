# SPDX-License-Identifier: Apache-2.0
"""The waitress server, hardened against clients that take their time.

Plain waitress counts any received byte as activity, so a client that drips a
request head keeps its connection for ever, and a hundred of them keep everybody
else out. Here a request head has a deadline, bodies and readers of responses may
not stall, connections are limited by address and in total, and at a limit the
connection that has idled longest makes room for the new one. This module knows
nothing of the application that it serves.
"""

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from pycloud.core.uploads import KEEP_FREE_BYTES
from pycloud.errors import InvalidSettings
from pycloud.settings import Settings, from_deployment
from pycloud.web import receiving, waiting
from pycloud.web.body_gate import answering_refusals, gate_of
from pycloud.web.process import prepare_process, stop_at_signals

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 120.0
"""How long a connection may stay open between two requests."""
LEAST_BODY_BYTES = 1024
"""What a request body must bring within the body timeout to count as moving."""
WAIT_PLACES = 64
"""Requests that may wait at the same time, beside the threads that never do."""
DRAIN_S = 5.0
"""How long a server that ends lets requests finish that it has begun."""
MOST_DROPPED_BYTES = 16 * 1024 * 1024
"""How much of a refused body is read for the sake of its answer, if bodies may not be larger
anyway: twice the pieces in which the command line sends files."""
_LARGEST_HEAD_BYTES = 64 * 1024
_LOOP_TIMEOUT_S = 1.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server allows its clients."""

    threads: int = 16
    connections: int = 2000
    connections_per_address: int = 256
    head_timeout_s: float = 10.0
    body_timeout_s: float = 120.0
    body_bytes: int = 68 * _MIB
    reserve_bytes: int = 0
    """Room on the disk that no body may take."""


def limits_of(settings: Settings) -> Limits:
    """Return the limits that the settings ask for."""
    return Limits(
        threads=settings.wsgi_threads,
        connections=settings.connection_limit,
        connections_per_address=settings.connections_per_address,
        head_timeout_s=settings.request_head_timeout_s,
        body_timeout_s=settings.request_body_timeout_s,
        body_bytes=settings.max_body_mib * _MIB,
        reserve_bytes=KEEP_FREE_BYTES,
    )


class BoundedChannel(HTTPChannel):
    """A connection that knows since when it owes what.

    `received` and `overdue` run in the server's own thread, `service` in a worker.
    """

    server: "BoundedServer"
    task_class = receiving.Task

    def __init__(
        self,
        server: "BoundedServer",
        sock: socket.socket,
        addr: tuple[str, int],
        adj: Adjustments,
        map: dict[int, Any] | None = None,  # noqa: A002  # waitress passes it by this name
    ) -> None:
        self._has_served = False
        self._idle_since_s = self._part_since_s = time.monotonic()
        self._body_mark_bytes = 0
        self._is_counted = True
        self._is_refused = False
        self._lingers_since_s: float | None = None
        self._dropped_bytes = 0
        # waitress only calls it.
        self.parser_class = partial(  # type: ignore[assignment]
            receiving.Parser, rules=server.body_rules, on_refusal=self._note_refusal
        )
        server.addresses[addr[0]] += 1
        super().__init__(server, sock, addr, adj, map=map)

    def check_client_disconnected(self) -> bool:  # type: ignore[override]  # its stub says None
        """Return whether the client closed its side; for requests that wait.

        waitress can tell only if it reads on while a request is worked on, which
        costs every request as much again; a look at the socket costs only those who ask.
        """
        sock = self.socket
        if not self.connected or sock is None:
            return True
        try:
            return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def received(self, data: bytes) -> bool:
        """Take bytes in, and note when a new request or a new stretch of body begins."""
        if self._lingers_since_s is not None:
            self._drop(data)
            return False
        before = self.request
        accepted: bool = super().received(data)
        request = self.request
        if request is None:
            return accepted
        if request is not before:
            self._part_since_s, self._body_mark_bytes = time.monotonic(), 0
        elif request.headers_finished:
            arrived = int(request.body_bytes_received)
            if arrived - self._body_mark_bytes >= LEAST_BODY_BYTES or not self._body_mark_bytes:
                self._part_since_s, self._body_mark_bytes = time.monotonic(), arrived
        return accepted

    def service(self) -> None:
        """Answer one request in a worker thread."""
        super().service()
        self._has_served = True
        self._idle_since_s = time.monotonic()

    def handle_write(self) -> None:
        """Send what waits to be sent; after the answer to a refused body, let that run out."""
        if not self._is_refused:
            super().handle_write()
            return
        # The stub of waitress lacks both.
        self._flush_exception(self._flush_some_if_lockable)  # type: ignore[attr-defined]
        if self.will_close:
            self.handle_close()
        elif self.close_when_flushed and not self.total_outbufs_len:
            self.close_when_flushed = False
            self._linger()

    def _note_refusal(self) -> None:
        self._is_refused = True

    def _linger(self) -> None:
        """Say that nothing more comes from us, and read on until the client is done.

        To close with unread bytes resets the connection, and a client that is still sending
        would lose the answer.
        """
        self._lingers_since_s = time.monotonic()
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def _drop(self, data: bytes) -> None:
        self._dropped_bytes += len(data)
        if self._dropped_bytes > max(self.server.limits.body_bytes, MOST_DROPPED_BYTES):
            self.handle_close()

    def del_channel(self, map: Any = None) -> None:  # noqa: A002  # Any: its stub is too narrow
        """Give the place of this connection back; called once or twice."""
        if self._is_counted:
            self._is_counted = False
            self.server.addresses[self.addr[0]] -= 1
            if not self.server.addresses[self.addr[0]]:
                del self.server.addresses[self.addr[0]]
        super().del_channel(map)

    def idle_s(self, now_s: float) -> float | None:
        """Return for how long nothing useful came; None while a request is worked on."""
        if self.requests or self.total_outbufs_len:
            return None
        return now_s - (self._idle_since_s if self.request is None else self._part_since_s)

    def overdue(self, now_s: float, limits: Limits) -> str | None:
        """Return why this connection has to be closed, None if it need not."""
        if self._lingers_since_s is not None:
            is_late = now_s - self._lingers_since_s > limits.body_timeout_s
            return "refused request body goes on" if is_late else None
        if self.total_outbufs_len:
            # waitress stamps `last_activity` with the wall clock at every byte it sends.
            stalled_s = time.time() - self.last_activity
            return "response not read" if stalled_s > limits.body_timeout_s else None
        idle_s = self.idle_s(now_s)
        if idle_s is None:
            return None
        if self.request is None:
            allowed_s = KEEP_ALIVE_S if self._has_served else limits.head_timeout_s
            return "no request" if idle_s > allowed_s else None
        if not self.request.headers_finished:
            return "request head too slow" if idle_s > limits.head_timeout_s else None
        return "request body stalled" if idle_s > limits.body_timeout_s else None


class BoundedServer(TcpWSGIServer):
    """One listening socket, its connections and its worker threads."""

    channel_class = BoundedChannel
    effective_host: str
    effective_port: str
    _map: dict[int, Any]  # Any: sockets, connections and a trigger, all duck-typed by waitress.

    def __init__(
        self, application: WSGIApplication, listener: socket.socket, limits: Limits
    ) -> None:
        self.limits = limits
        self.addresses: Counter[str] = Counter()
        self.body_rules = receiving.BodyRules(
            gate=gate_of(application, limit_bytes=limits.body_bytes),
            reserve_bytes=limits.reserve_bytes,
        )
        self._stopping = threading.Event()
        dispatcher = ThreadedTaskDispatcher()
        self.wait_room = waiting.WaitRoom(
            places=WAIT_PLACES,
            on_change=lambda waiters: dispatcher.set_thread_count(limits.threads + waiters),
        )
        dispatcher.set_thread_count(limits.threads)
        super().__init__(
            _with_room(answering_refusals(application), self.wait_room),
            _sock=listener,
            dispatcher=dispatcher,
            adj=_adjustments(limits, listener),
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
        )

    @property
    def channels(self) -> dict[int, BoundedChannel]:
        """The open connections by file descriptor."""
        # cast: the stub declares the class attribute, not the mapping.
        return cast("dict[int, BoundedChannel]", self.active_channels)

    def maintenance(self, now: float) -> None:  # noqa: ARG002  # the wall clock may jump
        """Close every connection that owes something for too long."""
        now_s = time.monotonic()
        for channel in list(self.channels.values()):
            reason = channel.overdue(now_s, self.limits)
            if reason is not None:
                logger.debug(
                    "connection_closed", extra={"address": channel.addr[0], "reason": reason}
                )
                channel.handle_close()

    def handle_accept(self) -> None:
        """Accept a connection; at a limit the one that idled longest makes room for it."""
        try:
            accepted = self.accept()
            if accepted is None:
                return
            connection, address = accepted
            self.set_socket_options(connection)
        except OSError as exc:
            logger.debug("connection_lost", extra={"reason": str(exc)})
            return
        host = address[0]
        limits = self.limits
        has_room = self.addresses[host] < limits.connections_per_address or self._evict(host)
        if has_room and len(self.channels) >= limits.connections:
            has_room = self._evict(None)
        if not has_room:
            connection.close()
            return
        self.channel_class(self, connection, address, self.adj, map=self._map)

    def _evict(self, host: str | None) -> bool:
        now_s = time.monotonic()
        candidates = [
            (idle_s, channel)
            for channel in self.channels.values()
            if (host is None or channel.addr[0] == host)
            and (idle_s := channel.idle_s(now_s)) is not None
        ]
        if not candidates:
            return False
        max(candidates, key=lambda candidate: candidate[0])[1].handle_close()
        return True

    def stop(self) -> None:
        """Let `run` come to an end; safe in a signal handler and from any thread."""
        self._stopping.set()
        self.wait_room.close()
        self.pull_trigger()

    def run(self) -> None:
        """Serve until `stop`, finish what was begun, and release everything."""
        while not self._stopping.is_set():
            wasyncore.poll2(_LOOP_TIMEOUT_S, self._map)
        # New clients are refused at once; those who were accepted still get their answer.
        wasyncore.dispatcher.close(self)
        deadline_s = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline_s and self._is_busy():
            wasyncore.poll2(0.05, self._map)
        self.task_dispatcher.shutdown(timeout=1)
        wasyncore.close_all(self._map)

    def _is_busy(self) -> bool:
        return any(
            channel.requests or channel.total_outbufs_len for channel in self.channels.values()
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InvalidSettings, with what to do, if that fails."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise InvalidSettings(
            "listen", f"{host}:{port}", allowed=f"an address and port that are free here ({exc})"
        ) from exc
    return listener


def build_server(
    application: WSGIApplication, listener: socket.socket, limits: Limits
) -> BoundedServer:
    """Return a server for `application` that accepts connections once it runs.

    The server owns the socket. Its `wait_room` is in the environ of every request.
    """
    return BoundedServer(application, listener, limits)


def paste_server(
    application: WSGIApplication,
    global_config: Mapping[str, str],
    app: str = "api",
    **local_config: str,  # PasteDeploy passes the keys of the section this way.
) -> None:
    """Serve under `pserve`: `use = egg:pycloud#server` with `app = api` or `app = manager`.

    Takes `pycloud.*` keys from its own section and from `[DEFAULT]`; returns at
    SIGTERM or SIGINT. Raises InvalidSettings.
    """
    settings = from_deployment(global_config, local_config, origin="[server:main]").settings
    places = {
        "api": (settings.api_host, settings.api_port),
        "manager": (settings.manager_host, settings.manager_port),
    }
    if app not in places:
        raise InvalidSettings("app", app, allowed="api or manager")
    if app == "api" and settings.wsgi_server != "waitress":
        allowed = "waitress under pserve; `pycloud serve` runs the others"
        raise InvalidSettings("pycloud.wsgi_server", settings.wsgi_server, allowed=allowed)
    prepare_process(settings)
    server = build_server(application, bind(*places[app]), limits_of(settings))
    stop_at_signals(server.stop)
    url = f"http://{server.effective_host}:{server.effective_port}"
    logger.info("server_listening", extra={"app": app, "url": url})
    server.run()


def _with_room(application: WSGIApplication, room: waiting.WaitRoom) -> WSGIApplication:
    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Any:  # Any: as WSGI
        environ[waiting.ENVIRON_KEY] = room
        return application(environ, start_response)

    return cast("WSGIApplication", serve)  # cast: the protocol has position-only parameters


def _adjustments(limits: Limits, listener: socket.socket) -> Adjustments:
    adjustments = Adjustments(
        sockets=[listener],
        threads=limits.threads,
        # Our own count decides; waitress would stop to accept and so starve everybody.
        connection_limit=1_000_000,
        cleanup_interval=1,
        max_request_header_size=_LARGEST_HEAD_BYTES,
        max_request_body_size=limits.body_bytes + 1,
        asyncore_use_poll=True,
        log_socket_errors=False,
        ident=None,
        expose_tracebacks=False,
    )
    # waitress takes whole seconds from its configuration, yet only compares the number.
    adjustments.cleanup_interval = min(1.0, limits.head_timeout_s / 2)  # type: ignore[assignment]
    return adjustments
