# SPDX-License-Identifier: Apache-2.0
"""Repeats that do nothing twice: the first reply to an Idempotency-Key is kept for 24 hours.

Adding the record claims the key, so of two equal requests at the same moment one
runs. Only successes are kept: a refusal changed nothing and may be tried again.

A server may die between doing something and recording its reply, and a disk may be
full then. So a Job that a request makes gets its id from the claim, and the Job that is
waited for is noted there before the waiting: a repeat is answered from that Job. Where a
Job takes its id from an upload instead, the upload makes sure that there is but one.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from pyramid.response import Response

from pycloud.api.replies import job_location, job_reply, use_reply
from pycloud.api.schemas import microseconds
from pycloud.core.model.identifiers import InstanceId, JobId
from pycloud.core.model.runtime import IdempotentReply, Job, JobKind
from pycloud.errors import CloudletError, DuplicateRecord, NotFound, StaleRecord
from pycloud.web.bodies import MOST_JSON_BYTES, read_body
from pycloud.web.errors import IdempotencyKeyReused, RequestInFlight
from pycloud.web.request import Request

log = logging.getLogger(__name__)

KEEP = timedelta(hours=24)
GIVE_UP_AFTER = timedelta(minutes=10)
"""A first request that left neither a reply nor a Job for this long died with its server."""
_KEPT_HEADERS = ("Content-Type", "Location", "ETag", "Tus-Resumable")
_USES = frozenset({JobKind.INSTANCE_START, JobKind.INSTANCE_STOP})
"""Jobs of requests that show the Instance beside the Job."""
View = Callable[[Request], Response]


def idempotent(view: View) -> View:
    """Return the view with repeats answered from the first reply, or from its Job."""

    def answer(request: Request) -> Response:
        key = request.environ.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            return view(request)
        claim = _claimed(request, key)
        if isinstance(claim, Response):
            claim.headers["Idempotency-Replayed"] = "true"
            return claim
        request.new_job_id = _job_id_of(claim.record)
        request.on_job = claim.note
        try:
            response = view(request)
        except Exception:
            claim.give_up()
            raise
        claim.keep(response)
        return response

    return answer


class _Claim:
    """A key that this request holds."""

    def __init__(self, request: Request, record: IdempotentReply) -> None:
        self.record = record
        self._request = request

    def note(self, job_id: JobId) -> None:
        """Keep which Job will be waited for."""
        self._write(replace(self.record, headers={"Location": job_location(job_id)}))

    def keep(self, response: Response) -> None:
        """Keep the reply for repeats."""
        headers = {
            name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers
        }
        body = response.text if response.body else ""
        status = response.status_code
        self._write(replace(self.record, status=status, headers=headers, body=body))

    def give_up(self) -> None:
        """Let the key be used again, unless something was made under it."""
        if _job_of(self._request, self.record) is None:
            self._request.core.replies.remove(self.record.id)

    def _write(self, record: IdempotentReply) -> None:
        try:
            self.record = self._request.core.replies.replace(record)
        except CloudletError as exc:
            # What was asked for is done, or on its way, and the client is told so.
            fields = {"code": exc.code, "reason": exc.message}
            log.warning("reply_not_kept", extra=fields)


def _claimed(request: Request, key: str) -> _Claim | Response:
    """Return a claim of our own, or the reply to a repeat."""
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
            return _Claim(request, replies.add(record))
        except DuplicateRecord:
            pass
        try:
            found = replies.get(record.id)
        except NotFound:
            continue
        if found.expires_at <= now:
            _remove(request, found)
            continue
        job = None if found.status else _job_of(request, found)
        if not found.status and job is None and found.created_at + GIVE_UP_AFTER <= now:
            # With the same end the same id of a Job comes of it, should the first one wake up.
            record = replace(record, expires_at=found.expires_at)
            _remove(request, found)
            continue
        return _repeated(request, found, record.request_digest, job)


def _repeated(request: Request, found: IdempotentReply, digest: str, job: Job | None) -> Response:
    if found.request_digest != digest:
        raise IdempotencyKeyReused("this Idempotency-Key was used for another request")
    if found.status:
        return _replayed(found)
    if job is None:
        raise RequestInFlight("the first request with this Idempotency-Key still runs")
    if job.kind in _USES:
        instance_id = InstanceId(job.arguments["instance_id"])
        return use_reply(request, request.core.instances.instance(instance_id), job)
    return job_reply(request, job)


def _remove(request: Request, found: IdempotentReply) -> None:
    try:
        request.core.replies.remove(found.id, generation=found.generation)
    except (NotFound, StaleRecord):
        return  # Somebody was faster; whatever is there now is looked at next.


def _job_id_of(record: IdempotentReply) -> JobId:
    """Return the id of the Job that may be made under a claim, and under it alone."""
    text = f"{record.id} {microseconds(record.expires_at)}"
    return JobId(hashlib.sha256(text.encode()).hexdigest()[:32])


def _job_of(request: Request, record: IdempotentReply) -> Job | None:
    """Return what was made under a claim without a reply.

    Raises NotFound for a Job that there was and is no more: it must not be made again.
    """
    noted = record.headers.get("Location")
    if noted is not None:
        return request.core.jobs.job(JobId(noted.rpartition("/")[2]))
    try:
        return request.core.jobs.job(_job_id_of(record))
    except NotFound:
        return None


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
    return response
