# SPDX-License-Identifier: Apache-2.0
"""Transports for `requests` that need no network: a WSGI application, or a script of answers."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse
from webtest import TestApp


def a_response(
    status: int = 200,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> requests.Response:
    """Return a response; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    response.raw = HTTPResponse(io.BytesIO(content), preload_content=False, status=status)
    return response


def a_problem(status: int, code: str, **members: object) -> requests.Response:
    """Return a refusal as the Cloudlet API words it."""
    body = {"detail": f"said of {code}", "code": code, "request_id": "r-1", **members}
    return a_response(status, body)


Reply = requests.Response | Exception | type[KeyboardInterrupt]


@dataclass
class Script(BaseAdapter):
    """Answers each request with the next reply and keeps the requests.

    A reply may be an exception, which is raised as the network would. `answer` is asked
    when no replies are left.
    """

    replies: list[Reply] = field(default_factory=list)
    answer: Callable[[requests.PreparedRequest], Reply] | None = None
    seen: list[requests.PreparedRequest] = field(default_factory=list)

    def send(self, request: requests.PreparedRequest, **_options: Any) -> requests.Response:
        """Answer a request."""
        self.seen.append(request)
        if self.replies:
            reply = self.replies.pop(0)
        else:
            assert self.answer is not None, f"nobody expected {request.method} {request.url}"
            reply = self.answer(request)
        if not isinstance(reply, requests.Response):
            raise reply
        reply.request, reply.url = request, str(request.url)
        return reply

    def close(self) -> None:
        """Do nothing."""


class WsgiTransport(BaseAdapter):
    """Hands requests to an application in this process."""

    def __init__(self, client: TestApp) -> None:
        self._client = client

    def send(self, request: requests.PreparedRequest, **_options: Any) -> requests.Response:
        """Call the application."""
        parts = urlsplit(str(request.url))
        body = request.body or b""
        answered = self._client.request(
            parts.path + (f"?{parts.query}" if parts.query else ""),
            method=str(request.method),
            headers=dict(request.headers),
            body=body.encode() if isinstance(body, str) else body,
            expect_errors=True,
        )
        response = a_response(answered.status_int, answered.body, headers=answered.headers)
        response.request, response.url = request, str(request.url)
        return response

    def close(self) -> None:
        """Do nothing."""
