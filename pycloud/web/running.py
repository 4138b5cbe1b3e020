# SPDX-License-Identifier: Apache-2.0
"""Run several apps in one process until a signal ends it, and end cleanly.

All ports are bound before any app answers, so a port that is taken stops the
start and not half of it.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from wsgiref.types import WSGIApplication

from pycloud.errors import CloudletError
from pycloud.settings import Settings
from pycloud.web.process import prepare_process, stop_at_signals
from pycloud.web.serving import BoundedServer, bind, build_server, limits_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One app and where it listens; port 0 takes any free one."""

    name: str
    application: WSGIApplication
    host: str
    port: int


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
    for a port that is taken, ServerDied.
    """
    prepare_process(settings)
    limits = limits_of(settings)
    sockets = [bind(listener.host, listener.port) for listener in listeners]
    servers = {
        listener.name: build_server(listener.application, sock, limits)
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
        ended.wait()
    finally:
        was_asked = all(thread.is_alive() for thread in threads)
        for server in servers.values():
            server.stop()
        for thread in threads:
            thread.join()
    if not was_asked:
        raise ServerDied("a server ended by itself; the log says why")


def _run_in_thread(name: str, server: BoundedServer, ended: threading.Event) -> threading.Thread:
    def body() -> None:
        try:
            server.run()
        finally:
            ended.set()

    thread = threading.Thread(target=body, name=f"server-{name}", daemon=True)
    thread.start()
    return thread
