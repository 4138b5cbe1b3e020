# SPDX-License-Identifier: Apache-2.0
"""Run several apps in one process until a signal ends it, and end cleanly.

All ports are bound before any app answers, so a port that is taken stops the
start and not half of it.
"""

import logging
import resource
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from wsgiref.types import WSGIApplication

from pycloud.errors import CloudletError, InvalidSettings
from pycloud.settings import Settings
from pycloud.web.serving import BoundedServer, bind, build_server, limits_of, stop_at_signals

logger = logging.getLogger(__name__)

_SPARE_FILES = 256
"""File descriptors for everything that is not a connection."""


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


def prepare_process(settings: Settings) -> None:
    """Give this process the file descriptors it may need, and a place for large bodies."""
    _raise_file_limit(settings.connection_limit + _SPARE_FILES)
    bodies = settings.data_dir / "bodies"
    try:
        bodies.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidSettings(
            "pycloud.data_dir", str(settings.data_dir), allowed=f"a writable directory ({exc})"
        ) from exc
    _keep_bodies_in(bodies)


def _keep_bodies_in(directory: Path) -> None:
    # waitress asks `tempfile` where to put a body that outgrows memory; the usual answer
    # is a RAM disk or a small partition.
    tempfile.tempdir = str(directory)


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    if reachable < wanted:
        logger.warning("file_limit_low", extra={"limit": reachable, "wanted": wanted})


def _run_in_thread(name: str, server: BoundedServer, ended: threading.Event) -> threading.Thread:
    def body() -> None:
        try:
            server.run()
        finally:
            ended.set()

    thread = threading.Thread(target=body, name=f"server-{name}", daemon=True)
    thread.start()
    return thread
