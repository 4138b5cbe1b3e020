# SPDX-License-Identifier: Apache-2.0
"""What monitors read: is the process there, is the cloudlet ready, and the numbers."""

import json

from pyramid.response import Response

from pycloud.web.metrics import CONTENT_TYPE
from pycloud.web.request import Request


def healthz(request: Request) -> Response:  # noqa: ARG001  # a view takes the request
    """Answer while the process can answer."""
    return Response(b"ok\n", content_type="text/plain", charset="utf-8")


def readyz(request: Request) -> Response:
    """Answer 200 only if a start could work; details are for administrators and this host.

    Anybody may ask, so nothing is looked at here.
    """
    checks = request.core.health.checks()
    is_ready = all(check.ok for check in checks)
    shows_detail = request.is_local or request.is_admin
    content = {
        "ready": is_ready,
        "checks": [
            {"name": check.name, "ok": check.ok}
            | ({"detail": check.detail} if shows_detail else {})
            for check in checks
        ],
    }
    return Response(
        json.dumps(content).encode(),
        status=200 if is_ready else 503,
        content_type="application/json",
    )


def metrics(request: Request) -> Response:
    """Return the numbers in the text format of Prometheus."""
    response = Response(request.registry.metrics.render())
    response.headers["Content-Type"] = CONTENT_TYPE
    return response
