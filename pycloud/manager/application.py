# SPDX-License-Identifier: Apache-2.0
"""Make the Manager application on the same core as the Cloudlet API."""

import atexit
from collections.abc import Mapping
from dataclasses import replace
from wsgiref.types import WSGIApplication

from jinja2 import StrictUndefined
from pyramid.response import Response

from pycloud import wiring
from pycloud.core.facade import Core
from pycloud.manager.pages import error_page
from pycloud.manager.routes import ROUTES
from pycloud.settings import Settings, from_deployment
from pycloud.web.application import add_routes, finish, new_configurator
from pycloud.web.errors import problem_of
from pycloud.web.request import Request


def main(
    global_config: Mapping[str, str],
    **settings: str,  # PasteDeploy passes the keys of the section this way.
) -> WSGIApplication:
    """Make the app for `pserve`, with the core behind it and its background work started."""
    loaded = from_deployment(global_config, settings, origin="[app:main]").settings
    # The Cloudlet API announces this cloudlet; a second announcement would clash with it.
    core = wiring.build_core(replace(loaded, discovery="off"))
    core.background.start()
    atexit.register(core.background.stop)
    return make_app(core, loaded)


def make_app(core: Core, settings: Settings) -> WSGIApplication:
    """Make the app on a core that exists; opens nothing but its own templates.

    A core without discovery, where `settings` have one, means that another process announces.
    """
    config = new_configurator(core, settings, on_error=_error_view)
    config.add_settings({"jinja2.undefined": StrictUndefined})
    config.include("pyramid_jinja2")
    add_routes(config, ROUTES)
    return finish(config)


def _error_view(exc: Exception, request: Request) -> Response:
    return error_page(problem_of(exc, request), request)
