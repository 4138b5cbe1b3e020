# SPDX-License-Identifier: Apache-2.0
"""The layers around every view: request id, double slashes, counting, headers; refused bodies.

They stand on the path of every request of every phone, so they do nothing that
can be done later or not at all.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from pyramid.response import Response

from pycloud.web.body_gate import REFUSAL_KEY
from pycloud.web.request import Request, current_request_id

access_log = logging.getLogger("pycloud.access")
_SLASHES = re.compile(r"//+")
View = Callable[[Request], Response]


def edge_tween_factory(handler: View, registry: Any) -> View:  # Any: pyramid has no types
    """Wrap the application's handler; `registry.metrics` counts."""
    observe = registry.metrics.observe
    clock = time.perf_counter

    def edge(request: Request) -> Response:
        began = clock()
        environ = request.environ
        if "//" in environ["PATH_INFO"]:
            # Old peers join a base that ends in a slash with a path that begins with one.
            environ["PATH_INFO"] = _SLASHES.sub("/", environ["PATH_INFO"])
        request_id = request.request_id
        mark = current_request_id.set(request_id)
        try:
            response = handler(request)
        finally:
            current_request_id.reset(mark)
        headers = response.headerlist
        headers.append(("X-Request-ID", request_id))
        headers.append(("X-Content-Type-Options", "nosniff"))
        route = request.matched_route
        seconds = clock() - began
        observe(
            route.name if route is not None else "unknown",
            environ["REQUEST_METHOD"],
            status=response.status_code,
            seconds=seconds,
        )
        if access_log.isEnabledFor(logging.DEBUG):
            _log(request, response, seconds)
        return response

    return edge


def refusal_tween_factory(handler: View, registry: Any) -> View:  # noqa: ARG001  # Any: as above
    """Wrap what is below the rendering of errors: answer for bodies that the server refused."""

    def refuse(request: Request) -> Response:
        refusal = request.environ.get(REFUSAL_KEY)
        if refusal is not None:
            raise refusal
        return handler(request)

    return refuse


def _log(request: Request, response: Response, seconds: float) -> None:
    access_log.debug(
        "request",
        extra={
            "request_id": request.request_id,
            "address": request.client_address,
            "method": request.environ["REQUEST_METHOD"],
            "path": request.environ["PATH_INFO"],
            "status": response.status_code,
            "duration_ms": round(seconds * 1000, 2),
        },
    )
