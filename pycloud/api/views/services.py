# SPDX-License-Identifier: Apache-2.0
"""Services and their ServiceVMs."""

from pyramid.response import Response

from pycloud.api.replies import (
    expected_generation,
    job_reply,
    kept_body,
    kept_reply,
    page_reply,
    require_match,
    tagged_reply,
)
from pycloud.api.schemas.catalog import (
    add_request,
    service_changes,
    service_json,
    service_vm_json,
)
from pycloud.core.model.identifiers import ServiceId, ServiceVMId
from pycloud.core.removal import RunningInstances
from pycloud.web.request import Request


def list_services(request: Request) -> Response:
    """List Services; pages are kept until any Service changes."""
    catalog, query = request.core.catalog, request.checked.query
    kept = request.registry.bodies.body(
        f"v2 services {query['limit']} {query['cursor']}",
        revision=catalog.revision(),
        make=lambda: kept_body(
            catalog.services(limit=query["limit"], cursor=query["cursor"]), service_json
        ),
    )
    return kept_reply(request, kept)


def add_service(request: Request) -> Response:
    """Ask for a Service from an uploaded image."""
    wanted = add_request(request.checked.body)
    return job_reply(request, request.core.intake.request_add(wanted, by=request.principal))


def get_service(request: Request) -> Response:
    """Show a Service."""
    service = request.core.catalog.service(_service_id(request))
    return tagged_reply(request, service_json(service), service)


def change_service(request: Request) -> Response:
    """Change a Service, and tell which Job prepares it anew if the change asks for that."""
    require_match(request)
    service = request.core.catalog.service(_service_id(request))
    changed = request.core.templates.change_service(
        service.id,
        service_changes(request.checked.body),
        generation=expected_generation(request, service),
        by=request.principal,
    )
    content = service_json(changed.service)
    content["prepare_job"] = None if changed.job is None else changed.job.id
    return tagged_reply(request, content, changed.service)


def remove_service(request: Request) -> Response:
    """Ask for the removal of a Service."""
    service = request.core.catalog.service(_service_id(request))
    job = request.core.removal.request_remove(
        service.id,
        RunningInstances(request.checked.query["instances"]),
        generation=expected_generation(request, service),
        by=request.principal,
    )
    return job_reply(request, job)


def prepare_service(request: Request) -> Response:
    """Ask for a memory state of a Service."""
    job = request.core.templates.request_prepare(
        _service_id(request), job_id=request.new_job_id, by=request.principal
    )
    return job_reply(request, job)


def list_service_vms(request: Request) -> Response:
    """List the ServiceVMs of a Service."""
    query = request.checked.query
    service = request.core.catalog.service(_service_id(request))
    page = request.core.catalog.service_vms(
        service.id, limit=query["limit"], cursor=query["cursor"]
    )
    return page_reply(request, page, service_vm_json)


def get_service_vm(request: Request) -> Response:
    """Show a ServiceVM."""
    service_vm = request.core.catalog.service_vm(ServiceVMId(request.matchdict["service_vm_id"]))
    return tagged_reply(request, service_vm_json(service_vm), service_vm)


def _service_id(request: Request) -> ServiceId:
    return ServiceId(request.matchdict["service_id"])
