# SPDX-License-Identifier: Apache-2.0
"""Repeats that do nothing twice: the first reply to an Idempotency-Key is kept for 24 hours.

Adding the record claims the key, so of two equal requests at the same moment one
runs. Only successes are kept: a refusal changed nothing and may be tried again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from pyramid.response import Response

from pycloud.core.model.runtime import IdempotentReply
from pycloud.errors import DuplicateRecord, NotFound, StaleRecord
from pycloud.web.bodies import MOST_JSON_BYTES, read_body
from pycloud.web.errors import IdempotencyKeyReused, RequestInFlight
from pycloud.web.request import Request

KEEP = timedelta(hours=24)
GIVE_UP_AFTER = timedelta(minutes=10)
"""A first request that left no reply for this long died with its server."""
_KEPT_HEADERS = ("Content-Type", "Location", "ETag", "Tus-Resumable")
View = Callable[[Request], Response]


def idempotent(view: View) -> View:
    """Return the view with repeats answered from the first reply."""

    def answer(request: Request) -> Response:
        key = request.environ.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            return view(request)
        claimed = _claim(request, key)
        if claimed.status:
            return _replayed(claimed)
        replies = request.core.replies
        try:
            response = view(request)
        except Exception:
            replies.remove(claimed.id)
            raise
        replies.replace(
            replace(
                claimed,
                status=response.status_code,
                headers={
                    name: response.headers[name]
                    for name in _KEPT_HEADERS
                    if name in response.headers
                },
                body=response.text if response.body else "",
            )
        )
        return response

    return answer


def _claim(request: Request, key: str) -> IdempotentReply:
    """Return a fresh record of our own, or the finished one of the same request."""
    now = request.core.clock.now()
    record = IdempotentReply(
        id=hashlib.sha256(f"{request.principal}\n{key}".encode()).hexdigest(),
        request_digest=_digest_of(request),
        created_at=now,
        expires_at=now + KEEP,
    )
    replies = request.core.replies
    while True:
        try:
            return replies.add(record)
        except DuplicateRecord:
            pass
        try:
            found = replies.get(record.id)
            is_lost = not found.status and found.created_at + GIVE_UP_AFTER <= now
            if found.expires_at <= now or is_lost:
                replies.remove(found.id, generation=found.generation)
                continue
        except (NotFound, StaleRecord):
            continue
        if found.request_digest != record.request_digest:
            raise IdempotencyKeyReused("this Idempotency-Key was used for another request")
        if not found.status:
            raise RequestInFlight("the first request with this Idempotency-Key still runs")
        return found


def _digest_of(request: Request) -> str:
    body = read_body(request, limit_bytes=MOST_JSON_BYTES)
    parts = (
        request.principal,
        request.environ["REQUEST_METHOD"],
        request.environ["PATH_INFO"],
        request.environ.get("QUERY_STRING", ""),
        request.environ.get("HTTP_UPLOAD_LENGTH", ""),
        request.environ.get("HTTP_UPLOAD_METADATA", ""),
    )
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace") + b"\n" + body).hexdigest()


def _replayed(reply: IdempotentReply) -> Response:
    response = Response(reply.body.encode(), status=reply.status)
    response.headers.update(reply.headers)
    response.headers["Idempotency-Replayed"] = "true"
    return response
