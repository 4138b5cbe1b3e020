# SPDX-License-Identifier: Apache-2.0
"""Packages: Services as files, out and in."""

from pyramid.response import Response

from pycloud.api.replies import (
    download_reply,
    expected_generation,
    job_reply,
    page_reply,
    tagged_reply,
)
from pycloud.api.schemas.catalog import import_request, package_json
from pycloud.core.model.identifiers import PackageId, ServiceId
from pycloud.web.request import Request


def import_package(request: Request) -> Response:
    """Ask for a Service from an uploaded package."""
    wanted = import_request(request.checked.body)
    return job_reply(request, request.core.intake.request_import(wanted, by=request.principal))


def list_packages(request: Request) -> Response:
    """List the packages that are ready."""
    query = request.checked.query
    page = request.core.exports.list_packages(limit=query["limit"], cursor=query["cursor"])
    return page_reply(request, page, package_json)


def export_package(request: Request) -> Response:
    """Ask for a package of a Service."""
    service_id = ServiceId(request.checked.body["service_id"])
    job = request.core.exports.request_export(
        service_id, job_id=request.new_job_id, by=request.principal
    )
    return job_reply(request, job)


def get_package(request: Request) -> Response:
    """Show a package."""
    package = request.core.exports.package(_package_id(request))
    return tagged_reply(request, package_json(package), package)


def remove_package(request: Request) -> Response:
    """Remove a package."""
    package = request.core.exports.package(_package_id(request))
    request.core.exports.discard(
        package.id, generation=expected_generation(request, package), by=request.principal
    )
    return Response(status=204)


def download_package(request: Request) -> Response:
    """Send the package itself."""
    package = request.core.exports.package(_package_id(request))
    return download_reply(
        request,
        request.core.exports.open(package),
        size_bytes=package.blob.size_bytes,
        tag=f'"{package.blob.id}"',
        file_name=package.file_name,
    )


def _package_id(request: Request) -> PackageId:
    return PackageId(request.matchdict["package_id"])
