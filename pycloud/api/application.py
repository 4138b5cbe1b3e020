# SPDX-License-Identifier: Apache-2.0
"""Make the Cloudlet API application; check at start that it is what `openapi.yaml` says."""

import atexit
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from wsgiref.types import WSGIApplication

from pyramid.exceptions import ConfigurationError
from pyramid.response import Response

from pycloud import wiring
from pycloud.api import legacy, routes
from pycloud.api.contract import Contract
from pycloud.api.idempotency import idempotent
from pycloud.core.facade import Core
from pycloud.settings import Settings, from_deployment
from pycloud.web.application import Endpoint, Route, add_routes, finish, new_configurator
from pycloud.web.caching import BodyCache
from pycloud.web.errors import problem_of, problem_response
from pycloud.web.request import Request

LEGACY_PREFIX = "/api/"
V2_PREFIX = "/api/v2"


def main(
    global_config: Mapping[str, str],
    **settings: str,  # PasteDeploy passes the keys of the section this way.
) -> WSGIApplication:
    """Make the app for `pserve`, with the core behind it and its background work started."""
    loaded = from_deployment(global_config, settings, origin="[app:main]").settings
    core = wiring.build_core(loaded)
    core.background.start()
    atexit.register(core.background.stop)
    return make_app(core, loaded)


def make_app(core: Core, settings: Settings) -> WSGIApplication:
    """Make the app on a core that exists; opens nothing but the API description."""
    contract = _contract()
    config = new_configurator(core, settings, on_error=_error_view)
    config.include("pyramid_jinja2")
    config.registry.contract = contract
    config.registry.bodies = BodyCache()
    add_routes(config, routes.LEGACY)
    add_routes(config, _bound(routes.V2, contract))
    add_routes(config, routes.OTHERS)
    return finish(config)


@cache
def _contract() -> Contract:
    """Read and compile the API description once per process."""
    return Contract(files("pycloud.api").joinpath("openapi.yaml").read_text("utf-8"))


def _bound(table: Iterable[Route], contract: Contract) -> list[Route]:
    """Put the contract, and where it says so idempotency, around every view.

    Raises ConfigurationError unless table and description name the same operations.
    """
    described = {
        (operation.path, operation.method): operation for operation in contract.operations.values()
    }
    bound = []
    for route in table:
        endpoints: list[Endpoint] = []
        for endpoint in route.endpoints:
            operation = described.pop((route.pattern, endpoint.method), None)
            name = endpoint.view.__name__
            if operation is None or operation.id != name:
                message = (
                    f"openapi.yaml does not describe {endpoint.method} {route.pattern} as {name}"
                )
                raise ConfigurationError(message)
            view = endpoint.view
            if operation.names_header("Idempotency-Key"):
                view = idempotent(view)
            endpoints.append(replace(endpoint, view=contract.bind(operation.id, view)))
        bound.append(replace(route, endpoints=tuple(endpoints)))
    if described:
        missing = ", ".join(f"{method} {path}" for path, method in described)
        message = f"openapi.yaml describes what no route answers: {missing}"
        raise ConfigurationError(message)
    return bound


def _error_view(exc: Exception, request: Request) -> Response:
    problem = problem_of(exc, request)
    path = request.environ["PATH_INFO"]
    if path.startswith(LEGACY_PREFIX) and not path.startswith(V2_PREFIX):
        return legacy.error_reply(problem)
    return problem_response(problem, request)
