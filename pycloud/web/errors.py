# SPDX-License-Identifier: Apache-2.0
"""Which error becomes which status, and how an error looks over HTTP (RFC 9457).

This is the only place that knows both. An error that is not ours says nothing
about itself to the client but the id under which the log explains it.
"""

import http
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyramid.httpexceptions import HTTPException, HTTPForbidden, HTTPNotFound
from pyramid.response import Response

from pycloud import errors
from pycloud.web.request import Request

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
DOCUMENTED_AT = "/docs/api#error-"


class MalformedRequest(errors.CloudletError):
    """Say that the request cannot even be read: not JSON, too deep, not UTF-8."""

    code = "malformed_request"


class BodyTooLarge(errors.CloudletError):
    """Say that the body is larger than this operation takes."""

    code = "body_too_large"


class UnsupportedMediaType(errors.CloudletError):
    """Say that the body is of a type this operation does not take."""

    code = "unsupported_media_type"


class MethodNotAllowed(errors.CloudletError):
    """Say that this place knows other methods; `allowed` names them."""

    code = "method_not_allowed"

    def __init__(self, *, allowed: tuple[str, ...]) -> None:
        super().__init__(f"this method is not allowed here; allowed: {', '.join(allowed)}")
        self.allowed = allowed


class PreconditionFailed(errors.CloudletError):
    """Say that If-Match does not hold: somebody else changed the resource."""

    code = "precondition_failed"


class PreconditionRequired(errors.CloudletError):
    """Say that this change needs If-Match, so that nobody's change is overwritten."""

    code = "precondition_required"


class RangeNotSatisfiable(errors.CloudletError):
    """Say that the range asked for lies outside the content."""

    code = "range_not_satisfiable"

    def __init__(self, *, size_bytes: int) -> None:
        super().__init__(f"the content has {size_bytes} bytes; ask for a range inside it")
        self.size_bytes = size_bytes


class OffsetMismatch(errors.Conflict):
    """Say that an upload goes on at another offset than the one sent."""

    code = "offset_mismatch"


class IdempotencyKeyReused(errors.CloudletError):
    """Say that this Idempotency-Key was used for another request."""

    code = "idempotency_key_reused"


class RequestInFlight(errors.CloudletError):
    """Say that the first request with this Idempotency-Key is still being worked on."""

    code = "request_in_flight"


class InvalidFields(errors.CloudletError):
    """Say which fields of a body are not acceptable: (JSON pointer, explanation) pairs."""

    code = "invalid_input"

    def __init__(self, fields: tuple[tuple[str, str], ...]) -> None:
        super().__init__("the body does not match what this operation takes")
        self.fields = fields


class ContractBroken(errors.CloudletError):
    """Say that a reply of ours does not match our own API description."""

    code = "contract_broken"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a status and whether the message is for everybody."""

    status: int
    is_public: bool = True


TABLE: Mapping[type[errors.CloudletError], Row] = {
    # what the caller sent
    MalformedRequest: Row(400),
    errors.InvalidInput: Row(400),  # 422 if the request has a body; see `problem_of`
    InvalidFields: Row(422),
    IdempotencyKeyReused: Row(422),
    errors.ImageRefused: Row(422),
    errors.PackageRefused: Row(422),
    UnsupportedMediaType: Row(415),
    BodyTooLarge: Row(413),
    errors.QuotaExceeded: Row(413),
    RangeNotSatisfiable: Row(416),
    errors.Unauthenticated: Row(401),
    errors.PermissionDenied: Row(403),
    errors.NotFound: Row(404),
    MethodNotAllowed: Row(405),
    errors.TooManyRequests: Row(429),
    # what the state of the cloudlet forbids
    errors.Conflict: Row(409),  # and what derives from it
    RequestInFlight: Row(409),
    PreconditionFailed: Row(412),
    PreconditionRequired: Row(428),
    errors.NameTaken: Row(409),
    errors.JobCancelled: Row(409),
    errors.CapacityExceeded: Row(503),
    errors.PortInUse: Row(503),
    errors.InsufficientStorage: Row(507),
    # what failed below us
    errors.StoreUnavailable: Row(503, is_public=False),
    errors.HypervisorUnavailable: Row(503, is_public=False),
    errors.ServiceNotReady: Row(504),
    errors.GuestFailed: Row(500),
    errors.StateUnusable: Row(500),
    errors.JobFailed: Row(500),
    errors.JobInterrupted: Row(500),
    errors.CloudletError: Row(500, is_public=False),
}
_RETRY_AFTER_S = {503: 5, 504: 5}
_NOT_SAID = "the server could not do this; its log says more under the request id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as it is told to a client."""

    status: int
    code: str
    detail: str
    fields: tuple[tuple[str, str], ...] = ()
    """(JSON pointer or parameter, explanation) pairs."""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the status."""
        return http.HTTPStatus(self.status).phrase


def row_of(kind: type[Exception]) -> Row:
    """Return the row of the nearest class in the table."""
    for ancestor in kind.__mro__:
        if issubclass(ancestor, errors.CloudletError) and ancestor in TABLE:
            return TABLE[ancestor]
    return Row(500, is_public=False)


def problem_of(exc: Exception, request: Request) -> Problem:
    """Translate any exception, and log it if somebody has to look into it."""
    match exc:
        case errors.CloudletError():
            problem = _of_ours(exc, request)
        case HTTPForbidden():
            problem = _of_refusal(request)
        case HTTPNotFound():
            problem = Problem(status=404, code="not_found", detail="there is nothing here")
        case HTTPException():
            problem = Problem(status=exc.code, code="http_error", detail=exc.explanation or "")
        case UnicodeDecodeError():
            problem = Problem(
                status=400, code=MalformedRequest.code, detail="the URL is not valid UTF-8"
            )
        case _:
            problem = Problem(status=500, code="internal", detail=_NOT_SAID)
    if problem.status >= 500:
        logger.error(
            "request_failed",
            extra={
                "code": problem.code,
                "request_id": request.request_id,
                "method": request.environ.get("REQUEST_METHOD"),
                "path": request.environ.get("PATH_INFO"),
            },
            exc_info=exc,
        )
    return problem


def problem_response(problem: Problem, request: Request) -> Response:
    """Render a problem as `application/problem+json`."""
    content = {
        "type": DOCUMENTED_AT + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.environ.get("PATH_INFO", "")
        .encode("latin-1")
        .decode("utf-8", "replace"),
        "code": problem.code,
        "request_id": request.request_id,
    }
    if problem.fields:
        content["errors"] = [
            {"pointer": pointer, "detail": detail} for pointer, detail in problem.fields
        ]
    response = Response(
        json.dumps(content).encode(), status=problem.status, content_type=PROBLEM_TYPE
    )
    response.headers.update(problem.headers)
    return response


def _of_ours(exc: errors.CloudletError, request: Request) -> Problem:
    row = row_of(type(exc))
    status = row.status
    fields: tuple[tuple[str, str], ...] = ()
    headers: dict[str, str] = {}
    retry_after_s = _RETRY_AFTER_S.get(status)
    match exc:
        case InvalidFields():
            fields = exc.fields
        case errors.InvalidInput():
            # A body that can be read but not accepted is 422; a URL that cannot, 400.
            has_body = request.environ["REQUEST_METHOD"] in {"POST", "PUT", "PATCH"}
            status = 422 if has_body and exc.pointer.startswith("/") else 400
            fields = ((exc.pointer, exc.message),) if exc.pointer else ()
        case errors.StaleRecord() if "HTTP_IF_MATCH" in request.environ:
            status = 412
        case errors.Unauthenticated():
            headers["WWW-Authenticate"] = 'Bearer realm="pycloud"'
        case errors.TooManyRequests():
            retry_after_s = exc.retry_after_s
        case MethodNotAllowed():
            headers["Allow"] = ", ".join(exc.allowed)
        case RangeNotSatisfiable():
            headers["Content-Range"] = f"bytes */{exc.size_bytes}"
        case RequestInFlight():
            retry_after_s = 1
        case _:
            pass
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    detail = exc.message if row.is_public else _NOT_SAID
    return Problem(status=status, code=exc.code, detail=detail, fields=fields, headers=headers)


def _of_refusal(request: Request) -> Problem:
    """Translate a refusal of the permission check: prove who you are, or you may not."""
    if request.token is None:
        return _of_ours(errors.Unauthenticated("this needs an administrator's token"), request)
    return _of_ours(errors.PermissionDenied("you may not do this"), request)
