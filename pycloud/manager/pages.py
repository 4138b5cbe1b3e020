# SPDX-License-Identifier: Apache-2.0
"""Render pages: one template each, and a policy under which only our own files run."""

from collections.abc import Mapping

from pyramid.renderers import render
from pyramid.response import Response

from pycloud.web.errors import Problem
from pycloud.web.request import Request

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'"
)


def page(
    request: Request, template: str, values: Mapping[str, object], *, status: int = 200
) -> Response:
    """Return a page made of a template of ours."""
    text = render(f"pycloud.manager:templates/{template}.jinja2", dict(values), request=request)
    response = Response(
        str(text).encode(), status=status, content_type="text/html", charset="utf-8"
    )
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def error_page(problem: Problem, request: Request) -> Response:
    """Return a page that says what failed and under which id the log explains it."""
    values = {
        "problem": problem,
        "request_id": request.request_id,
        "cloudlet": request.core.cloudlet,
    }
    response = page(request, "error", values, status=problem.status)
    response.headers.update(problem.headers)
    return response
