# SPDX-License-Identifier: Apache-2.0
"""Which bodies are taken in, decided by the head of their request alone.

A body is kept before the application sees its request, so what strangers may have
kept for them has to be decided before that. Small bodies are taken from everybody and
stay in memory; a large one is taken only where the table of routes says so, and only
from an administrator. What is refused is still answered by the application, which
knows how its errors look.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol, cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from pycloud.core.access import Access
from pycloud.errors import CloudletError, PermissionDenied, Unauthenticated
from pycloud.web.bodies import MOST_JSON_BYTES
from pycloud.web.errors import DOCUMENTED_AT, PROBLEM_TYPE, BodyTooLarge, row_of
from pycloud.web.request import bearer_token

REFUSAL_KEY = "pycloud.body_refused"
"""Where the environ of a request whose body was refused has the error to be answered."""
_PLACEHOLDER = re.compile(r"\{\w+\}")


class BodySize(StrEnum):
    """How large a body an endpoint takes: as JSON is, or as the settings allow."""

    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True, slots=True)
class Head:
    """What of a request is there before its body."""

    method: str
    path: str
    authorization: str


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of a body is taken, and the error for one that is larger."""

    limit_bytes: int
    excess: CloudletError


class BodyGate(Protocol):
    """Decides about bodies; called by the thread that reads from all clients."""

    def allowance(self, head: Head) -> Allowance:
        """Return what is taken of the body of this request; cheap."""
        ...


class RouteGate:
    """The gate of an application: large bodies on a few routes, from administrators."""

    def __init__(self, access: Access, *, limit_bytes: int) -> None:
        self._access = access
        self._limit_bytes = limit_bytes
        self._large: list[tuple[str, re.Pattern[str]]] = []

    def take_large(self, method: str, pattern: str) -> None:
        """Let one endpoint take large bodies; `pattern` is that of its route."""
        parts = (re.escape(part) for part in _PLACEHOLDER.split(pattern))
        self._large.append((method, re.compile("[^/]+".join(parts))))

    def allowance(self, head: Head) -> Allowance:
        """Return what is taken of the body of this request."""
        if not any(head.method == m and p.fullmatch(head.path) for m, p in self._large):
            return _up_to(MOST_JSON_BYTES)
        try:
            self._require_administrator(head)
        except CloudletError as exc:
            return Allowance(MOST_JSON_BYTES, exc)
        return _up_to(self._limit_bytes)

    def _require_administrator(self, head: Head) -> None:
        token = bearer_token(head.authorization)
        if token is None:
            raise Unauthenticated("this needs an administrator's token")
        if not self._access.is_admin(self._access.authenticate(token)):
            raise PermissionDenied("you may not do this")


class OneLimit:
    """The gate of an application that has none: the same for every request."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes

    def allowance(self, head: Head) -> Allowance:  # noqa: ARG002  # the same for all
        """Return what is taken of any body."""
        return _up_to(self._limit_bytes)


def gate_of(application: WSGIApplication, *, limit_bytes: int) -> BodyGate:
    """Return the gate that an application brings, or one with this limit alone."""
    return _own_gate(application) or OneLimit(limit_bytes)


def answering_refusals(application: WSGIApplication) -> WSGIApplication:
    """Return an application that answers for refused bodies, if this one does not itself."""
    if _own_gate(application) is not None:
        return application

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refusal = environ.get(REFUSAL_KEY)
        if refusal is None:
            return application(environ, start_response)
        return _plain_problem(refusal, start_response)

    return cast("WSGIApplication", answer)  # cast: the protocol has position-only parameters


def _up_to(limit_bytes: int) -> Allowance:
    return Allowance(limit_bytes, BodyTooLarge(f"the body may have at most {limit_bytes} bytes"))


def _own_gate(application: WSGIApplication) -> BodyGate | None:
    registry: Any = getattr(application, "registry", None)  # Any: pyramid's, if it is pyramid
    # cast: the registry takes any attribute
    return cast("BodyGate | None", getattr(registry, "body_gate", None))


def _plain_problem(refusal: CloudletError, start_response: StartResponse) -> list[bytes]:
    status = HTTPStatus(row_of(type(refusal)).status)
    content = {
        "type": DOCUMENTED_AT + refusal.code,
        "title": status.phrase,
        "status": status,
        "detail": refusal.message,
        "code": refusal.code,
    }
    body = json.dumps(content).encode()
    headers = [("Content-Type", PROBLEM_TYPE), ("Content-Length", str(len(body)))]
    start_response(f"{status} {status.phrase}", headers)
    return [body]
