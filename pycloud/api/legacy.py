# SPDX-License-Identifier: Apache-2.0
"""The wire format of phones that are already out there, in plain mode, to the byte.

Those clients take 200 and nothing else for success, need Content-Length, read
errors as plain text, take a missing value only as null, and follow no redirect.
Every call is a GET, also those that start and stop. Nothing new belongs here.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from pyramid.response import Response

from pycloud.api.replies import disposition, wait_for
from pycloud.core.apps import AppFilter
from pycloud.core.instances import Join, Started, StartRequest
from pycloud.core.model.catalog import App, Service
from pycloud.core.model.fleet import HostMetadata
from pycloud.core.model.identifiers import (
    AppId,
    InstanceId,
    ServiceId,
    checked_id,
)
from pycloud.core.model.runtime import Instance, InstanceState, JobState, Message
from pycloud.errors import (
    CapacityExceeded,
    IllegalTransition,
    InvalidInput,
    JobFailed,
    NotFound,
)
from pycloud.web.caching import LONGEST_KEPT_QUERY, KeptBody
from pycloud.web.errors import MethodNotAllowed, Problem
from pycloud.web.request import Request

_TRUE = frozenset({"T", "TRUE", "Y", "YES"})
_JSON = "application/json"
_APK = "application/vnd.android.package-archive"
_SSH_PORT = 22
_START_GRACE_S = 30.0
"""What a start may take beyond the deadline of the service itself: queueing, copies, undo."""
_STOP_GRACE_S = 30.0
_RUNNING = frozenset({InstanceState.RUNNING, InstanceState.PAUSED})
Json = dict[str, Any]  # Any: JSON of the old format, spelled out below.


# -- services -----------------------------------------------------------------------------


def list_services(request: Request) -> Response:
    """`/api/services`."""
    catalog = request.core.catalog
    kept = request.registry.bodies.body(
        "legacy services",
        revision=catalog.revision(),
        make=lambda: _kept({"services": [_service_json(one) for one in catalog.all_services()]}),
    )
    return Response(kept.content, content_type=_JSON)


def get_service(request: Request) -> Response:
    """`/api/services/get?serviceId=`."""
    service_id = _id(_query(request), "serviceId")
    return _reply(_service_json(request.core.catalog.service(ServiceId(service_id))))


# -- instances, which this format calls service VMs -----------------------------------------


def start_servicevm(request: Request) -> Response:
    """`/api/servicevm/start?serviceId=&join=`; answers when the service has answered."""
    _require_get(request)
    query = _query(request)
    service_id = ServiceId(_id(query, "serviceId"))
    join = Join.SHARE if query.get("join", "").upper() in _TRUE else Join.FRESH
    try:
        request.core.catalog.service(service_id)
    except NotFound as exc:
        raise InvalidInput(exc.message, pointer="serviceId") from exc
    with request.waiting_place() as has_place:
        if not has_place:
            # Before anything is asked for: nobody could be told which service VM is theirs.
            raise CapacityExceeded("too many clients wait already; try again in a moment")
        started = request.core.instances.request_start(
            StartRequest(service_id=service_id, join=join, device_id=request.device_id),
            by=request.principal,
        )
        instance = _awaited_start(request, started)
    return _reply(_servicevm_json(instance, _fqdn_of(request, instance)))


def stop_servicevm(request: Request) -> Response:
    """`/api/servicevm/stop?instanceId=`; counts one user less, the last one stops it."""
    _require_get(request)
    instance_id = InstanceId(_id(_query(request), "instanceId"))
    try:
        job = request.core.instances.leave(instance_id, by=request.principal)
    except IllegalTransition as exc:
        raise NotFound("running service VM", instance_id) from exc
    if job is not None:
        with request.waiting_place() as has_place:
            # The stop is durable and goes on without a client that waits for it.
            timeout_s = request.settings.stop_timeout_s + _STOP_GRACE_S if has_place else 0
            job = wait_for(request, job.id, timeout_s=timeout_s)
        if job.state is JobState.FAILED and job.failure is not None:
            raise JobFailed(job.failure.message, error_code=job.failure.code)
    return _reply({})


def _fqdn_of(request: Request, instance: Instance) -> str | None:
    """Return this cloudlet's name if clients reach the Instance under it.

    Old clients prefer the name to the address, but a guest on a bridge has an address of its
    own, and one on another host that host's.
    """
    is_here = request.core.system.placement.this_host.has(instance.host_id)
    return request.core.cloudlet.fqdn if is_here and instance.ports else None


def _awaited_start(request: Request, started: Started) -> Instance:
    """Wait for the start, and give the use back if the client does not live to see it."""
    instances = request.core.instances
    if started.job is not None:
        timeout_s = request.settings.start_timeout_s + _START_GRACE_S
        job = wait_for(request, started.job.id, timeout_s=timeout_s)
        if not job.is_final or (request.is_abandoned() and not request.wait_room.closing):
            _give_back(request, started.instance.id)
            raise JobFailed("the start took too long and was given up", error_code="timeout")
        if job.state is not JobState.SUCCEEDED:
            failure = job.failure
            message = failure.message if failure is not None else f"the start was {job.state}"
            raise JobFailed(message, error_code=failure.code if failure is not None else job.state)
    instance = instances.instance(started.instance.id)
    if instance.state not in _RUNNING:
        raise JobFailed(f"the service VM is {instance.state}", error_code=instance.state)
    return instance


def _give_back(request: Request, instance_id: InstanceId) -> None:
    try:
        request.core.instances.leave(instance_id, by=request.principal)
    except (NotFound, IllegalTransition):
        return  # It ended by itself meanwhile, which is all that was wanted.


# -- apps -----------------------------------------------------------------------------------


def list_apps(request: Request) -> Response:
    """`/api/apps?osName=&osVersion=&tags=`."""
    query = _query(request)
    tags = tuple(tag for tag in query.get("tags", "").split(",") if tag)
    wanted = AppFilter(
        os_name=query.get("osName", ""), os_version=query.get("osVersion", ""), tags=tags
    )
    return _reply({"apps": [_app_json(app) for app in request.core.apps.matching(wanted)]})


def get_app(request: Request) -> Response:
    """`/api/apps/get?appId=`: the package itself, never a range of it."""
    app = request.core.apps.app(AppId(_id(_query(request), "appId")))
    response = Response(content_type=_APK)
    response.content_length = app.blob.size_bytes
    response.headers["Content-Disposition"] = disposition(app.file_name)
    if request.environ["REQUEST_METHOD"] == "HEAD":
        return response
    stream = request.core.apps.open(app)
    wrapper = request.environ.get("wsgi.file_wrapper")
    if wrapper is not None:
        response.app_iter = wrapper(stream)
    else:
        response.body_file = stream
        response.content_length = app.blob.size_bytes
    return response


# -- the cloudlet itself ----------------------------------------------------------------------


def get_system(request: Request) -> Response:
    """`/api/system?services=&apps=`."""
    query = _query(request)
    content = _metadata_json(request.core.system.metadata())
    if query.get("services", "").upper() in _TRUE:
        content["services"] = [_service_json(one) for one in request.core.catalog.all_services()]
    if query.get("apps", "").upper() in _TRUE:
        content["apps"] = [_app_json(app) for app in request.core.apps.matching(AppFilter())]
    return _reply(content)


def get_messages(request: Request) -> Response:
    """`/api/system/get_messages?serviceId=`; every message is handed out once."""
    _require_get(request)
    service_id = ServiceId(_id(_query(request), "serviceId"))
    device_id = request.device_id
    if device_id is None:
        return Response(_NO_MESSAGES, content_type=_JSON)
    request.core.instances.touch(service_id, device_id)
    messages = request.core.mailbox.take(device_id, service_id)
    if not messages:
        return Response(_NO_MESSAGES, content_type=_JSON)
    return _reply({"messages": [_message_json(message) for message in messages]})


# -- errors -----------------------------------------------------------------------------------


def error_reply(problem: Problem) -> Response:
    """Show an error as old clients can: plain text, and only statuses they know."""
    status = problem.status if problem.status in {400, 404, 405, 413} else 500
    response = Response(
        f"{problem.detail}\n".encode(), status=status, content_type="text/plain", charset="UTF-8"
    )
    if "Allow" in problem.headers:
        response.headers["Allow"] = problem.headers["Allow"]
    return response


# -- shapes -----------------------------------------------------------------------------------


def _service_json(service: Service) -> Json:
    return {
        "_id": service.id,
        "service_id": service.id,
        "description": service.description or None,
        "version": service.version or None,
        "tags": list(service.tags),
    }


def _servicevm_json(instance: Instance, fqdn: str | None) -> Json:
    ports = {mapping.guest_port: mapping.host_port for mapping in instance.ports}
    return {
        "_id": instance.id,
        "service_id": instance.service_id,
        "running": instance.state in _RUNNING,
        "port": instance.published_port(),
        "ip_address": instance.address,
        "vnc_address": None,
        "ssh_port": ports.get(_SSH_PORT),
        "fqdn": fqdn or None,
    }


def _app_json(app: App) -> Json:
    return {
        "_id": app.id,
        "name": app.name,
        "service_id": app.service_id or None,
        "description": app.description or None,
        "package_name": app.package_name or None,
        "min_android_version": app.min_os_version or None,
        "md5sum": app.md5sum or None,
        "app_version": app.app_version or None,
        "tags": list(app.tags),
    }


def _metadata_json(metadata: HostMetadata) -> Json:
    cpu, memory = metadata.cpu, metadata.memory
    return {
        "memory_info": {"max_memory": memory.max_bytes, "free_memory": memory.free_bytes},
        "cpu_info": {
            # The rankers of old clients divide by these two and find no cloudlet at zero.
            "max_cores": max(1, cpu.max_cores),
            "usage": cpu.usage_percent,
            "speed": cpu.speed_mhz if cpu.speed_mhz > 0 else 1.0,
            "cache": cpu.cache_kib,
        },
    }


def _message_json(message: Message) -> Json:
    return {
        "device_id": message.device_id,
        "service_id": message.service_id,
        "message": message.message,
        "params": dict(message.params),
    }


# -- reading and writing ------------------------------------------------------------------------


def _encoded(content: Json) -> bytes:
    # Old clients that are not told the character set take Latin-1; ASCII is both.
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True).encode("ascii")


_NO_MESSAGES = _encoded({"messages": []})


def _reply(content: Json) -> Response:
    return Response(_encoded(content), content_type=_JSON)


def _kept(content: Json) -> KeptBody:
    return KeptBody(_encoded(content), "")


def _query(request: Request) -> Mapping[str, str]:
    """Return the query; unknown parameters are ignored, as they always were."""
    text = request.environ.get("QUERY_STRING", "")
    # Phones send the same few queries again and again, and short ones.
    return _known(text) if len(text) <= LONGEST_KEPT_QUERY else _parsed(text)


@lru_cache(maxsize=1024)
def _known(text: str) -> Mapping[str, str]:
    return _parsed(text)


def _parsed(text: str) -> Mapping[str, str]:
    try:
        return MappingProxyType(
            dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=64))
        )
    except (UnicodeDecodeError, ValueError) as exc:
        raise InvalidInput("the query is not URL-encoded UTF-8") from exc


def _id(query: Mapping[str, str], name: str) -> str:
    if not query.get(name):
        raise InvalidInput(f"parameter {name} is required", pointer=name)
    return checked_id(query[name], pointer=name)


def _require_get(request: Request) -> None:
    """Refuse HEAD, which pyramid takes for GET: looking must not start or stop anything."""
    if request.environ["REQUEST_METHOD"] != "GET":
        raise MethodNotAllowed(allowed=("GET",))
