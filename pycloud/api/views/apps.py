# SPDX-License-Identifier: Apache-2.0
"""Apps: the client packages that phones download."""

from pyramid.response import Response

from pycloud.api.replies import (
    download_reply,
    expected_generation,
    page_reply,
    tagged_reply,
)
from pycloud.api.schemas.catalog import app_changes, app_draft, app_json
from pycloud.core.apps import AppFilter
from pycloud.core.model.catalog import App
from pycloud.core.model.identifiers import AppId, UploadId
from pycloud.core.ports import Slice
from pycloud.errors import InvalidInput
from pycloud.web.request import Request


def list_apps(request: Request) -> Response:
    """List the Apps that a client can use."""
    query = request.checked.query
    wanted = AppFilter(
        os_name=query["os_name"] or "",
        os_version=query["os_version"] or "",
        tags=tuple(query["tags"] or ()),
    )
    page = _page(request.core.apps.matching(wanted), query["limit"], query["cursor"])
    return page_reply(request, page, app_json)


def add_app(request: Request) -> Response:
    """Take an uploaded App in."""
    body = request.checked.body
    app = request.core.apps.add(app_draft(body), UploadId(body["upload_id"]), by=request.principal)
    response = tagged_reply(request, app_json(app), generation=app.generation, status=201)
    response.headers["Location"] = f"/api/v2/apps/{app.id}"
    return response


def get_app(request: Request) -> Response:
    """Show an App."""
    app = request.core.apps.app(_app_id(request))
    return tagged_reply(request, app_json(app), generation=app.generation)


def change_app(request: Request) -> Response:
    """Change what is said about an App."""
    app = request.core.apps.update(
        _app_id(request),
        app_changes(request.checked.body),
        generation=expected_generation(request, required=True),
        by=request.principal,
    )
    return tagged_reply(request, app_json(app), generation=app.generation)


def remove_app(request: Request) -> Response:
    """Remove an App."""
    request.core.apps.remove(
        _app_id(request),
        generation=expected_generation(request, required=False),
        by=request.principal,
    )
    return Response(status=204)


def download_app(request: Request) -> Response:
    """Send the package itself."""
    app = request.core.apps.app(_app_id(request))
    return download_reply(
        request,
        request.core.apps.open(app),
        size_bytes=app.blob.size_bytes,
        tag=f'"{app.blob.id}"',
        file_name=app.file_name,
    )


def _page(apps: tuple[App, ...], limit: int, cursor: str | None) -> Slice[App]:
    """Cut a page out of a filtered list; the cursor is the last id of the page before."""
    begin = 0
    if cursor is not None:
        ids = [app.id for app in apps]
        if cursor not in ids:
            raise InvalidInput("this cursor leads nowhere; start again", pointer="cursor")
        begin = ids.index(AppId(cursor)) + 1
    items = apps[begin : begin + limit]
    is_last = begin + limit >= len(apps)
    return Slice(items=items, next_cursor=None if is_last else items[-1].id)


def _app_id(request: Request) -> AppId:
    return AppId(request.matchdict["app_id"])
