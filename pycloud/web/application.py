# SPDX-License-Identifier: Apache-2.0
"""Make a Pyramid application of a table of routes; refuse what has no permission.

Both apps are made here, so both deny by default, count, and render errors the
same way. Nothing is read, opened or started.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from wsgiref.types import WSGIApplication

from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.response import Response

from pycloud.core.facade import Core
from pycloud.settings import Settings
from pycloud.web.body_gate import BodySize, RouteGate
from pycloud.web.errors import MethodNotAllowed
from pycloud.web.metrics import Metrics
from pycloud.web.request import Request
from pycloud.web.security import DENY_ALL, RULES, Permission, SecurityPolicy

_MIB = 1024 * 1024
View = Callable[[Request], Response]
ErrorView = Callable[[Exception, Request], Response]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of a route: who may call it, what answers, and how much it may be sent.

    A large body is taken from administrators alone, whatever the permission.
    """

    method: str
    view: View
    permission: Permission
    body: BodySize = BodySize.SMALL


@dataclass(frozen=True, slots=True)
class Route:
    """One place in the URL space."""

    name: str
    pattern: str
    endpoints: tuple[Endpoint, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods it answers; GET brings HEAD with it."""
        named = [endpoint.method for endpoint in self.endpoints]
        return tuple(named + (["HEAD"] if "GET" in named else []))


def new_configurator(core: Core, settings: Settings, *, on_error: ErrorView) -> Configurator:
    """Return a configurator with everything both apps have in common."""
    config = Configurator(
        settings={
            "pyramid.tweens": [
                "pycloud.web.tween.edge_tween_factory",
                "pyramid.tweens.excview_tween_factory",
                "pycloud.web.tween.refusal_tween_factory",
            ]
        },
        request_factory=Request,
        security_policy=SecurityPolicy(),
        default_permission=DENY_ALL,
        # Pyramid's own rendering of its refusals would win over ours for being more specific.
        exceptionresponse_view=None,
    )
    config.registry.core = core
    config.registry.cloudlet_settings = settings
    config.registry.metrics = Metrics(core)
    config.registry.body_gate = RouteGate(core.access, limit_bytes=settings.max_body_mib * _MIB)
    config.add_exception_view(on_error, context=Exception)
    return config


def add_routes(config: Configurator, routes: Sequence[Route]) -> None:
    """Add the table in its order; other methods than those named answer 405."""
    for route in routes:
        config.add_route(route.name, route.pattern)
        for endpoint in route.endpoints:
            config.add_view(
                endpoint.view,
                route_name=route.name,
                request_method=endpoint.method,
                permission=endpoint.permission,
            )
            if endpoint.body is BodySize.LARGE:
                config.registry.body_gate.take_large(endpoint.method, route.pattern)
        config.add_view(
            _refusal_of_method(route.methods),
            route_name=route.name,
            permission=Permission.PUBLIC,
        )


def finish(config: Configurator) -> WSGIApplication:
    """Return the application. Raises ConfigurationError if a view has no permission."""
    config.commit()
    for entry in config.introspector.get_category("views") or ():
        names = [one["value"] for one in entry["related"] if one.category_name == "permissions"]
        if not names or not all(name in RULES or name == _NO_PERMISSION for name in names):
            view = entry["introspectable"]
            message = f"{view.title} of route {view['route_name']!r} has no permission with a rule"
            raise ConfigurationError(message)
    return cast("WSGIApplication", config.make_wsgi_app())  # cast: pyramid has no types


_NO_PERMISSION = "__no_permission_required__"
"""What pyramid gives the views of exceptions."""


def _refusal_of_method(methods: tuple[str, ...]) -> View:
    def refuse(request: Request) -> Any:  # noqa: ARG001  # Any: never returns; a view takes it
        raise MethodNotAllowed(allowed=methods)

    return refuse
