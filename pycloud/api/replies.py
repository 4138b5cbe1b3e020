# SPDX-License-Identifier: Apache-2.0
"""The shapes that replies of /api/v2 share: pages, tagged resources, jobs, downloads."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode

from pyramid.response import FileIter, Response

from pycloud.api.schemas import Json, microseconds
from pycloud.api.schemas.runtime import Viewer, instance_json, job_json
from pycloud.core.model.identifiers import JobId
from pycloud.core.model.runtime import Instance, Job
from pycloud.core.ports import Slice
from pycloud.errors import StaleRecord
from pycloud.web.caching import KeptBody, etag_of
from pycloud.web.errors import PreconditionFailed, PreconditionRequired, RangeNotSatisfiable
from pycloud.web.request import Request

R = TypeVar("R")
LONGEST_WAIT_S = 60
_WAIT_SLICE_S = 0.5
"""How often a request that waits looks whether its client is still there."""
_WAIT = re.compile(r"wait\s*=\s*(\d{1,6})")
_TAG = re.compile(r'(?:W/)?"([^"]*)"|\*')
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9 ._()+@-]")


def viewer_of(request: Request) -> Viewer:
    """Return for whom a reply is made."""
    return Viewer(request.principal, request.is_admin)


def serialised(content: Json) -> bytes:
    """Return JSON as it goes over the wire."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def json_reply(content: Json, *, status: int = 200) -> Response:
    """Return a JSON reply."""
    return Response(serialised(content), status=status, content_type="application/json")


# -- single resources ---------------------------------------------------------------------


class Versioned(Protocol):
    """What a record has that is shown with a tag."""

    @property
    def id(self) -> str:
        """Its id, which may have belonged to another record before."""
        ...

    @property
    def created_at(self) -> datetime:
        """What tells it from a record that had the id before."""
        ...

    @property
    def generation(self) -> int:
        """What changes with every write, and begins anew with the next record of the id."""
        ...


def tag_of(record: Versioned, scope: str = "") -> str:
    """Return the strong tag of a record as it is shown; other bytes have another tag.

    `scope` tells views of one generation apart that show different parts of it.
    """
    return f'{_incarnation(record, scope)}{record.generation:x}"'


def _incarnation(record: Versioned, scope: str) -> str:
    """Return what all tags of this record in this view begin with, and no others."""
    return f'"{microseconds(record.created_at):x}{scope}-'


def tagged_reply(
    request: Request, content: Json, record: Versioned, *, scope: str = "", status: int = 200
) -> Response:
    """Return a resource with its ETag, or 304 if the client has it already."""
    tag = tag_of(record, scope)
    if status == 200 and _holds(request, tag):
        return _not_modified(tag)
    response = json_reply(content, status=status)
    response.headers["ETag"] = tag
    return response


def require_match(request: Request) -> None:
    """Raise PreconditionRequired without If-Match."""
    if "HTTP_IF_MATCH" not in request.environ:
        raise PreconditionRequired("send If-Match with the ETag that you have read")


def expected_generation(request: Request, record: Versioned, *, scope: str = "") -> int | None:
    """Return the generation of the record if If-Match names it, None for none or `*`.

    It is for the core to make sure of it when it writes. Raises StaleRecord for the tag of
    an earlier generation, PreconditionFailed for any other.
    """
    text = request.environ.get("HTTP_IF_MATCH", "*")
    if text.strip() == "*":
        return None
    given = {match[0] for match in _TAG.finditer(text)}
    if tag_of(record, scope) in given:
        return record.generation
    if any(tag.startswith(_incarnation(record, scope)) for tag in given):
        raise StaleRecord(type(record).__name__.lower(), record.id)
    raise PreconditionFailed("If-Match is not the ETag of what is there")


def _holds(request: Request, tag: str) -> bool:
    given = request.environ.get("HTTP_IF_NONE_MATCH")
    if given is None or request.environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
        return False
    return any(match[0] == "*" or f'"{match[1]}"' == tag for match in _TAG.finditer(given))


def _not_modified(tag: str) -> Response:
    response = Response(status=304)
    response.headers["ETag"] = tag
    return response


# -- pages --------------------------------------------------------------------------------


def page_json(page: Slice[R], to_json: Callable[[R], Json]) -> Json:
    """Show one page of records."""
    return {"items": [to_json(item) for item in page.items], "next": page.next_cursor}


def page_reply(request: Request, page: Slice[R], to_json: Callable[[R], Json]) -> Response:
    """Return one page of records with a Link to the next."""
    return _linked(request, json_reply(page_json(page, to_json)), page.next_cursor)


def kept_body(page: Slice[R], to_json: Callable[[R], Json]) -> KeptBody:
    """Return one page of records as it may be kept."""
    content = serialised(page_json(page, to_json))
    return KeptBody(content, etag_of(content), page.next_cursor)


def kept_reply(request: Request, kept: KeptBody) -> Response:
    """Return a kept page, or 304 if the client has it already."""
    if _holds(request, kept.etag):
        return _not_modified(kept.etag)
    response = Response(kept.content, content_type="application/json")
    response.headerlist.append(("ETag", kept.etag))
    return _linked(request, response, kept.next_cursor)


def _linked(request: Request, response: Response, next_cursor: str | None) -> Response:
    if next_cursor is not None:
        query = [
            (name, value)
            for name, value in parse_qsl(request.environ.get("QUERY_STRING", ""))
            if name != "cursor"
        ]
        target = f"{request.path}?{urlencode([*query, ('cursor', next_cursor)])}"
        response.headerlist.append(("Link", f'<{target}>; rel="next"'))
    return response


# -- jobs ---------------------------------------------------------------------------------


def wait_s(request: Request) -> int:
    """Return for how long the client would have the reply held, 0 if not at all."""
    match = _WAIT.search(request.environ.get("HTTP_PREFER", ""))
    return 0 if match is None else min(int(match[1]), LONGEST_WAIT_S)


def awaited_job(request: Request, job_id: JobId) -> Job:
    """Return the Job once it is final, or as it is when the client's patience ends."""
    patience_s = wait_s(request)
    if not patience_s:
        return request.core.jobs.job(job_id)
    if request.on_job is not None:
        request.on_job(job_id)
    with request.waiting_place() as has_place:
        return wait_for(request, job_id, timeout_s=patience_s if has_place else 0)


def wait_for(request: Request, job_id: JobId, *, timeout_s: float) -> Job:
    """Wait for a Job in slices, and stop when nobody waits for the reply any more."""
    jobs, clock = request.core.jobs, request.core.clock
    deadline_s = clock.monotonic() + timeout_s
    while True:
        left_s = deadline_s - clock.monotonic()
        job = jobs.wait(job_id, timeout_s=max(0.0, min(left_s, _WAIT_SLICE_S)))
        if job.is_final or left_s <= 0 or request.is_abandoned():
            return job


def shown_job(request: Request, job: Job) -> Json:
    """Return a Job as the one who asks may see it."""
    return job_json(job, viewer_of(request), request.core.clock.now())


def job_location(job_id: JobId) -> str:
    """Return where a Job can be looked at."""
    return f"/api/v2/jobs/{job_id}"


def job_reply(request: Request, job: Job) -> Response:
    """Return 202 with a Job that has just been asked for, or 200 if it is over already."""
    seen = awaited_job(request, job.id) if wait_s(request) else job
    response = json_reply(shown_job(request, seen), status=200 if seen.is_final else 202)
    response.headers["Location"] = job_location(job.id)
    return response


def use_reply(request: Request, instance: Instance, job: Job | None) -> Response:
    """Return an Instance that one begins or ceases to use, and the Job that this takes."""
    seen = None if job is None else awaited_job(request, job.id)
    if seen is not None:
        instance = request.core.instances.instance(instance.id)
    response = json_reply(
        {
            "instance": instance_json(instance, viewer_of(request)),
            "job": None if seen is None else shown_job(request, seen),
        },
        status=200 if seen is None or seen.is_final else 202,
    )
    if seen is not None:
        response.headers["Location"] = job_location(seen.id)
    return response


# -- files --------------------------------------------------------------------------------


def download_reply(
    request: Request, stream: BinaryIO, *, size_bytes: int, tag: str, file_name: str
) -> Response:
    """Return a file, or the one range of it that was asked for. Owns the stream."""
    try:
        span = _range_of(request, size_bytes, tag)
    except RangeNotSatisfiable:
        stream.close()
        raise
    first, last = span if span is not None else (0, size_bytes - 1)
    stream.seek(first)
    response = Response(status=200 if span is None else 206)
    response.content_type = media_type_of(file_name)
    response.app_iter = _body_of(request, stream, last - first + 1)
    response.content_length = last - first + 1
    response.headers["ETag"] = tag
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["Content-Disposition"] = disposition(file_name)
    if span is not None:
        response.headers["Content-Range"] = f"bytes {first}-{last}/{size_bytes}"
    return response


def media_type_of(file_name: str) -> str:
    """Return the type of a file that we offer for download."""
    if file_name.lower().endswith(".apk"):
        return "application/vnd.android.package-archive"
    if file_name.lower().endswith(".csvm"):
        return "application/gzip"
    return "application/octet-stream"


def disposition(file_name: str) -> str:
    """Return a Content-Disposition that no file name can break out of."""
    return f'attachment; filename="{_NOT_IN_NAMES.sub("_", file_name).strip(". ") or "file"}"'


def _body_of(request: Request, stream: BinaryIO, length_bytes: int) -> object:
    wrapper = request.environ.get("wsgi.file_wrapper")
    if wrapper is not None and request.environ["REQUEST_METHOD"] == "GET":
        # The server sends the file by itself and frees this thread; it stops at Content-Length.
        return wrapper(stream)
    return _Span(stream, length_bytes)


class _Span(FileIter):  # type: ignore[misc]  # pyramid has no types
    """A file from where it stands, and no further than its length."""

    def __init__(self, stream: BinaryIO, length_bytes: int) -> None:
        super().__init__(stream)
        self._left_bytes = length_bytes

    def __next__(self) -> bytes:
        """Return the next piece."""
        piece: bytes = self.file.read(min(self.block_size, self._left_bytes))
        if not piece:
            raise StopIteration
        self._left_bytes -= len(piece)
        return piece

    next = __next__


def _range_of(request: Request, size_bytes: int, tag: str) -> tuple[int, int] | None:
    match = _RANGE.fullmatch(request.environ.get("HTTP_RANGE", "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if request.environ.get("HTTP_IF_RANGE", tag) != tag:
        return None
    if not match[1]:
        first, last = max(0, size_bytes - int(match[2])), size_bytes - 1
    else:
        first, last = int(match[1]), min(int(match[2] or size_bytes), size_bytes - 1)
    if match[1] and match[2] and int(match[1]) > int(match[2]):
        return None
    if first > last:
        raise RangeNotSatisfiable(size_bytes=size_bytes)
    return first, last
