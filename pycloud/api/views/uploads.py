# SPDX-License-Identifier: Apache-2.0
"""Uploads: the core, creation and termination parts of tus 1.0."""

import base64
import binascii

from pyramid.response import Response

from pycloud.api.replies import json_reply, page_reply
from pycloud.api.schemas.catalog import upload_json
from pycloud.core.model.identifiers import UploadId
from pycloud.errors import Conflict, InvalidInput, OnAnotherHost
from pycloud.web.bodies import body_stream
from pycloud.web.errors import OffsetMismatch
from pycloud.web.request import Request

_VERSION = "1.0.0"
_GIB = 1024**3


def upload_features(request: Request) -> Response:
    """Tell what is spoken here."""
    response = _empty()
    response.headers["Tus-Version"] = _VERSION
    response.headers["Tus-Extension"] = "creation,termination"
    response.headers["Tus-Max-Size"] = str(request.settings.max_image_gib * _GIB)
    return response


def list_uploads(request: Request) -> Response:
    """List uploads that are not used yet."""
    query = request.checked.query
    page = request.core.uploads.uploads(limit=query["limit"], cursor=query["cursor"])
    return page_reply(request, page, upload_json)


def create_upload(request: Request) -> Response:
    """Announce a file."""
    upload = request.core.uploads.create(
        _file_name(request.headers.get("Upload-Metadata", "")),
        int(request.headers["Upload-Length"]),
        by=request.principal,
    )
    response = json_reply(upload_json(upload), status=201)
    response.headers["Location"] = f"/api/v2/uploads/{upload.id}"
    response.headers["Tus-Resumable"] = _VERSION
    return response


def get_upload(request: Request) -> Response:
    """Tell how much of an upload has arrived."""
    upload = request.core.uploads.upload(_upload_id(request))
    response = json_reply(upload_json(upload))
    response.headers["Tus-Resumable"] = _VERSION
    response.headers["Upload-Offset"] = str(upload.offset_bytes)
    response.headers["Upload-Length"] = str(upload.size_bytes)
    response.headers["Cache-Control"] = "no-store"
    return response


def append_upload(request: Request) -> Response:
    """Take the next piece in."""
    upload_id = _upload_id(request)
    offset_bytes = int(request.headers["Upload-Offset"])
    try:
        upload = request.core.uploads.append(upload_id, offset_bytes, body_stream(request))
    except OnAnotherHost:
        raise
    except Conflict as exc:
        raise OffsetMismatch(exc.message) from exc
    response = _empty()
    response.headers["Upload-Offset"] = str(upload.offset_bytes)
    return response


def discard_upload(request: Request) -> Response:
    """Drop an upload."""
    upload_id = request.core.uploads.upload(_upload_id(request)).id
    request.core.uploads.discard(upload_id)
    return _empty()


def _empty() -> Response:
    response = Response(status=204)
    response.headers["Tus-Resumable"] = _VERSION
    return response


def _file_name(metadata: str) -> str:
    """Return the `filename` of tus metadata: comma-separated `key base64` pairs."""
    for pair in metadata.split(","):
        key, _, encoded = pair.strip().partition(" ")
        if key == "filename":
            try:
                return base64.b64decode(encoded, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError) as exc:
                raise InvalidInput(
                    "filename is UTF-8 in base64", pointer="Upload-Metadata"
                ) from exc
    return ""


def _upload_id(request: Request) -> UploadId:
    return UploadId(request.matchdict["upload_id"])
