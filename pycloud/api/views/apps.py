# SPDX-License-Identifier: Apache-2.0
"""Apps: the client packages that phones download."""

import re
from bisect import bisect_right

from pyramid.response import Response

from pycloud.api.replies import (
    download_reply,
    expected_generation,
    page_reply,
    require_match,
    tagged_reply,
)
from pycloud.api.schemas import microseconds
from pycloud.api.schemas.catalog import app_changes, app_draft, app_json
from pycloud.core.apps import AppFilter
from pycloud.core.model.catalog import App
from pycloud.core.model.identifiers import AppId, UploadId
from pycloud.core.ports import Slice
from pycloud.errors import InvalidInput
from pycloud.web.request import Request

_CURSOR = re.compile(r"([0-9a-f]{1,16})\.([A-Za-z0-9][A-Za-z0-9._-]{0,63})")


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
    response = tagged_reply(request, app_json(app), app, status=201)
    response.headers["Location"] = f"/api/v2/apps/{app.id}"
    return response


def get_app(request: Request) -> Response:
    """Show an App."""
    app = request.core.apps.app(_app_id(request))
    return tagged_reply(request, app_json(app), app)


def change_app(request: Request) -> Response:
    """Change what is said about an App."""
    require_match(request)
    app = request.core.apps.app(_app_id(request))
    changed = request.core.apps.update(
        app.id,
        app_changes(request.checked.body),
        generation=expected_generation(request, app),
        by=request.principal,
    )
    return tagged_reply(request, app_json(changed), changed)


def remove_app(request: Request) -> Response:
    """Remove an App."""
    app = request.core.apps.app(_app_id(request))
    request.core.apps.remove(
        app.id, generation=expected_generation(request, app), by=request.principal
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
    """Cut a page out of a filtered list.

    The cursor is the place of the last App of the page before in the order of all of them,
    so that it leads on when that App is removed.
    """
    begin = 0 if cursor is None else bisect_right(apps, _read_cursor(cursor), key=_place)
    items = apps[begin : begin + limit]
    is_last = begin + limit >= len(apps)
    return Slice(items=items, next_cursor=None if is_last else _cursor(items[-1]))


def _place(app: App) -> tuple[int, str]:
    return microseconds(app.created_at), app.id


def _cursor(app: App) -> str:
    created_at, app_id = _place(app)
    return f"{created_at:x}.{app_id}"


def _read_cursor(cursor: str) -> tuple[int, str]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidInput("this cursor leads nowhere; start again", pointer="cursor")
    return int(match[1], 16), match[2]


def _app_id(request: Request) -> AppId:
    return AppId(request.matchdict["app_id"])
