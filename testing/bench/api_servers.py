# SPDX-License-Identifier: Apache-2.0
"""The servers that `testing.bench.api` and `api_granian` compare; people do not start them.

    python -m testing.bench.api_servers ours|granian|bare DIRECTORY

Prints the port it listens on and serves until it is told to end.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from wsgiref.types import WSGIApplication

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from waitress.server import create_server

from pycloud import api, wiring
from pycloud.core.model.identifiers import ServiceId
from pycloud.settings import Settings, from_mapping
from pycloud.web.granian_server import GranianServer
from pycloud.web.process import stop_at_signals
from pycloud.web.running import Server
from pycloud.web.serving import bind, build_server, limits_of
from testing.bench.api import PATHS, SERVICES
from testing.factories import a_service

THREADS = 16
CONNECTIONS = 2000


def serve_ours(directory: Path) -> None:
    """Serve the whole application as `pycloud serve` does."""
    application, settings = whole_application(directory)
    run(build_server(application, bind("127.0.0.1", 0), limits_of(settings)))


def serve_granian(directory: Path) -> None:
    """Serve the whole application as `pycloud serve` does if the settings ask for granian."""
    application, settings = whole_application(directory)
    run(GranianServer(application, bind("127.0.0.1", 0), settings))


def run(server: Server) -> None:
    """Tell the port and serve."""
    stop_at_signals(server.stop)
    print(server.effective_port, flush=True)
    server.run()


def whole_application(directory: Path) -> tuple[WSGIApplication, Settings]:
    """Return the Cloudlet API on a store with some services."""
    loaded = from_mapping(
        {
            "pycloud.data_dir": str(directory / "data"),
            "pycloud.hypervisor": "fake:",
            "pycloud.discovery": "off",
            "pycloud.wsgi_threads": str(THREADS),
            "pycloud.connections_per_address": str(CONNECTIONS),
        }
    ).settings
    core = wiring.build_core(loaded)
    store = core.background.store
    for number in range(SERVICES):
        store.services.add(a_service(id=ServiceId(f"service-{number:03}")))
    return api.make_app(core, loaded), loaded


def serve_bare(directory: Path) -> None:
    """Serve the same bytes from views that do nothing."""
    config = Configurator()
    for number, (path, _) in enumerate(PATHS):
        config.add_route(f"bare{number}", path.partition("?")[0])
        config.add_view(
            view_of((directory / f"{number}.body").read_bytes()), route_name=f"bare{number}"
        )
    listener = bind("127.0.0.1", 0)
    server = create_server(
        config.make_wsgi_app(),
        sockets=[listener],
        threads=THREADS,
        connection_limit=CONNECTIONS,
        asyncore_use_poll=True,
    )
    stop_at_signals(lambda: os._exit(0))
    print(listener.getsockname()[1], flush=True)
    server.run()


def view_of(content: bytes) -> Callable[[Request], Response]:
    """Return a view that answers with these bytes."""

    def view(_request: Request) -> Response:
        return Response(content, content_type="application/json")

    return view


if __name__ == "__main__":
    # It warns at every request that has to queue, on both sides.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    kind, place = sys.argv[1:]
    {"ours": serve_ours, "granian": serve_granian, "bare": serve_bare}[kind](Path(place))
