# SPDX-License-Identifier: Apache-2.0
"""Run several apps in one process until a signal ends it, and end cleanly.

All ports are bound before any app answers, so a port that is taken stops the
start and not half of it.
"""

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from wsgiref.types import WSGIApplication

from pycloud.errors import CloudletError
from pycloud.settings import Settings
from pycloud.web.granian_server import GranianServer
from pycloud.web.process import prepare_process, stop_at_signals
from pycloud.web.serving import bind, build_server, limits_of

logger = logging.getLogger(__name__)

_WAKE_S = 0.5


class WsgiServer(StrEnum):
    """What may run an app; the values are those of `pycloud.wsgi_server`."""

    WAITRESS = "waitress"
    GRANIAN = "granian"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One app and where it listens; port 0 takes any free one."""

    name: str
    application: WSGIApplication
    host: str
    port: int
    server: WsgiServer = WsgiServer.WAITRESS


class Server(Protocol):
    """A server with its socket, whichever it is."""

    effective_host: str
    effective_port: str

    def run(self) -> None:
        """Serve until `stop`, finish what was begun, and release everything."""

    def stop(self) -> None:
        """Let `run` come to an end; safe in a signal handler and from any thread."""


class ServerDied(CloudletError):
    """Say that one of the servers ended although nobody asked it to."""

    code = "server_died"


def serve(
    listeners: Sequence[Listener],
    settings: Settings,
    *,
    on_ready: Callable[[Mapping[str, str]], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; only from the main thread.

    `on_ready` is told the URL of every listener by its name. Raises InvalidSettings
    for a port that is taken and for a server that is not installed, ServerDied.
    """
    prepare_process(settings)
    sockets = [bind(listener.host, listener.port) for listener in listeners]
    servers = {
        listener.name: _build(listener, sock, settings)
        for listener, sock in zip(listeners, sockets, strict=True)
    }
    ended = threading.Event()
    stop_at_signals(ended.set)
    threads = [_run_in_thread(name, server, ended) for name, server in servers.items()]
    urls = {
        name: f"http://{server.effective_host}:{server.effective_port}"
        for name, server in servers.items()
    }
    for name, url in urls.items():
        logger.info("server_listening", extra={"app": name, "url": url})
    if on_ready is not None:
        on_ready(urls)
    try:
        # The kernel may hand a signal to any thread, and then only a main thread that wakes
        # by itself runs its handler.
        while not ended.wait(_WAKE_S):
            continue
    finally:
        was_asked = all(thread.is_alive() for thread in threads)
        for server in servers.values():
            server.stop()
        for thread in threads:
            thread.join()
    if not was_asked:
        raise ServerDied("a server ended by itself; the log says why")


def _build(listener: Listener, sock: socket.socket, settings: Settings) -> Server:
    if listener.server is WsgiServer.GRANIAN:
        return GranianServer(listener.application, sock, settings)
    return build_server(listener.application, sock, limits_of(settings))


def _run_in_thread(name: str, server: Server, ended: threading.Event) -> threading.Thread:
    def body() -> None:
        try:
            server.run()
        finally:
            ended.set()

    thread = threading.Thread(target=body, name=f"server-{name}", daemon=True)
    thread.start()
    return thread
