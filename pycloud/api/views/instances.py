# SPDX-License-Identifier: Apache-2.0
"""Instances: start, look, renew, pause, resume, leave, stop."""

from pyramid.response import Response

from pycloud.api.replies import (
    expected_generation,
    job_reply,
    page_reply,
    tagged_reply,
    use_reply,
    viewer_of,
)
from pycloud.api.schemas.runtime import instance_json
from pycloud.core.instances import Join, StartRequest, StopMode
from pycloud.core.model.identifiers import InstanceId, ServiceId
from pycloud.core.model.runtime import Instance
from pycloud.web.request import Request


def list_instances(request: Request) -> Response:
    """List Instances: all for an administrator, their own for everybody else."""
    query, viewer = request.checked.query, viewer_of(request)
    where = {
        name: value
        for name, value in (
            ("service_id", query["service_id"]),
            ("state", query["state"]),
            ("owner", None if viewer.is_admin else viewer.principal),
        )
        if value is not None
    }
    page = request.core.instances.instances(where, limit=query["limit"], cursor=query["cursor"])
    return page_reply(request, page, lambda instance: instance_json(instance, viewer))


def start_instance(request: Request) -> Response:
    """Ask for an Instance, or join one."""
    body = request.checked.body
    started = request.core.instances.request_start(
        StartRequest(
            service_id=ServiceId(body["service_id"]),
            join=Join(body.get("join", Join.FRESH)),
            device_id=request.device_id,
            job_id=request.new_job_id,
        ),
        by=request.principal,
    )
    return use_reply(request, started.instance, started.job)


def get_instance(request: Request) -> Response:
    """Show an Instance."""
    return _shown(request, request.core.instances.instance(_instance_id(request)))


def stop_instance(request: Request) -> Response:
    """Stop an Instance, whoever uses it."""
    instances, instance_id = request.core.instances, _instance_id(request)
    job = instances.request_stop(
        instance_id,
        mode=StopMode(request.checked.query["mode"]),
        generation=_generation(request, instance_id),
        by=request.principal,
    )
    return job_reply(request, job)


def leave_instance(request: Request) -> Response:
    """Give one use of an Instance back."""
    instance_id = _instance_id(request)
    job = request.core.instances.leave(instance_id, by=request.principal)
    return use_reply(request, request.core.instances.instance(instance_id), job)


def renew_instance(request: Request) -> Response:
    """Count the idle time of an Instance anew."""
    return _shown(request, request.core.instances.renew(_instance_id(request)))


def pause_instance(request: Request) -> Response:
    """Pause an Instance."""
    instances, instance_id = request.core.instances, _instance_id(request)
    generation = _generation(request, instance_id)
    return _shown(
        request, instances.pause(instance_id, generation=generation, by=request.principal)
    )


def resume_instance(request: Request) -> Response:
    """Resume an Instance."""
    instances, instance_id = request.core.instances, _instance_id(request)
    generation = _generation(request, instance_id)
    return _shown(
        request, instances.resume(instance_id, generation=generation, by=request.principal)
    )


def get_serial_output(request: Request) -> Response:
    """Show the end of the serial output, without what a terminal would obey."""
    tail = request.core.instances.serial_tail(
        _instance_id(request), limit_bytes=request.checked.query["bytes"]
    )
    text = "".join(
        char if char.isprintable() or char in "\n\t" else ""
        for char in tail.decode("utf-8", "replace")
    )
    return Response(text.encode(), content_type="text/plain", charset="utf-8")


def _shown(request: Request, instance: Instance) -> Response:
    content = instance_json(instance, viewer_of(request))
    return tagged_reply(request, content, instance, scope=_scope(request, instance))


def _scope(request: Request, instance: Instance) -> str:
    """Tell the view of those who may know the owner from that of everybody else."""
    return "o" if viewer_of(request).may_know(instance.owner) else ""


def _generation(request: Request, instance_id: InstanceId) -> int | None:
    instance = request.core.instances.instance(instance_id)
    return expected_generation(request, instance, scope=_scope(request, instance))


def _instance_id(request: Request) -> InstanceId:
    return InstanceId(request.matchdict["instance_id"])
