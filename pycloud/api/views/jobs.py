# SPDX-License-Identifier: Apache-2.0
"""Jobs: list, look, wait, cancel."""

from pyramid.response import Response

from pycloud.api.replies import awaited_job, job_reply, json_reply, page_reply, shown_job
from pycloud.core.model.identifiers import JobId
from pycloud.web.request import Request


def list_jobs(request: Request) -> Response:
    """List Jobs."""
    query = request.checked.query
    where = {name: query[name] for name in ("state", "kind") if query[name] is not None}
    page = request.core.jobs.jobs(where, limit=query["limit"], cursor=query["cursor"])
    return page_reply(request, page, lambda job: shown_job(request, job))


def get_job(request: Request) -> Response:
    """Show a Job, at its end if the client wants to wait for it."""
    job = awaited_job(request, _job_id(request))
    return json_reply(shown_job(request, job))


def cancel_job(request: Request) -> Response:
    """Ask a Job to undo itself."""
    return job_reply(request, request.core.jobs.cancel(_job_id(request), by=request.principal))


def _job_id(request: Request) -> JobId:
    return JobId(request.matchdict["job_id"])
