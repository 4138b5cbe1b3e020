# SPDX-License-Identifier: Apache-2.0
"""Runs both apps on one core in this process; loaded by `pycloud serve` alone."""

from collections.abc import Callable, Mapping

from pycloud import wiring
from pycloud.api import make_app as make_api
from pycloud.manager import make_app as make_manager
from pycloud.settings import Settings
from pycloud.web.logs import set_up_logging
from pycloud.web.running import Listener, WsgiServer
from pycloud.web.running import serve as serve_apps


def run(settings: Settings, *, on_ready: Callable[[Mapping[str, str]], None]) -> None:
    """Serve until SIGTERM or SIGINT. `on_ready` is told the URLs.

    Raises InvalidSettings, with the key `listen` for a port that is taken.
    """
    set_up_logging(settings)
    core = wiring.build_core(settings)
    listeners = (
        Listener(
            name="api",
            application=make_api(core, settings),
            host=settings.api_host,
            port=settings.api_port,
            server=WsgiServer(settings.wsgi_server),
        ),
        Listener(
            name="manager",
            application=make_manager(core, settings),
            host=settings.manager_host,
            port=settings.manager_port,
        ),
    )

    def begin(urls: Mapping[str, str]) -> None:
        # Only a server that owns its ports may touch what an earlier one left.
        core.background.start()
        on_ready(urls)

    try:
        serve_apps(listeners, settings, on_ready=begin)
    finally:
        core.background.stop()
