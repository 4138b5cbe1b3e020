# SPDX-License-Identifier: Apache-2.0
"""The status page: what this cloudlet is, what runs, and what needs a hand."""

from enum import StrEnum
from importlib.resources import files

from pyramid.response import Response

from pycloud.core.model.fleet import HypervisorFacts
from pycloud.core.model.runtime import LIVE_STATES, Instance
from pycloud.errors import HypervisorError, NotFound
from pycloud.manager.pages import page
from pycloud.web.request import Request

_FILES = {"manager.js": "text/javascript", "manager.css": "text/css"}
_MOST_ROWS = 100


class Announcer(StrEnum):
    """Who announces this cloudlet, seen from this process."""

    THIS_PROCESS = "this process"
    CLOUDLET_API = "Cloudlet API"
    NOBODY = "nobody"


def home(request: Request) -> Response:
    """Show the whole page."""
    return page(request, "home", _status(request))


def state(request: Request) -> Response:
    """Show the changing part of the page alone, for the script that keeps it fresh."""
    return page(request, "state", _status(request))


def static_file(request: Request) -> Response:
    """Send the style sheet or the script."""
    name = request.matchdict["file_name"]
    if name not in _FILES:
        raise NotFound("file", name)
    content = files("pycloud.manager").joinpath("static", name).read_bytes()
    response = Response(content, content_type=_FILES[name], charset="utf-8")
    response.headers["Cache-Control"] = "no-cache"
    return response


def healthz(request: Request) -> Response:  # noqa: ARG001  # a view takes the request
    """Answer while the process can answer."""
    return Response(b"ok\n", content_type="text/plain", charset="utf-8")


def _status(request: Request) -> dict[str, object]:
    core = request.core
    return {
        "cloudlet": core.cloudlet,
        "checks": core.health.checks(),
        "metadata": core.system.metadata(),
        "host": core.system.host(),
        "storage": core.system.storage(),
        "hypervisor": _hypervisor(request),
        "announcer": _announcer(request),
        "discovery_problem": core.system.discovery.problem(),
        "services": core.catalog.services(limit=_MOST_ROWS).items,
        "instances": _live_instances(request),
        "jobs": core.jobs.active(),
        "peers": core.peers(),
        "api_url": f"http://{core.cloudlet.address}:{core.cloudlet.port}",
    }


def _announcer(request: Request) -> Announcer:
    if request.settings.discovery == "off":
        return Announcer.NOBODY
    # Where the Manager runs by itself, `main` made its core without discovery.
    if request.core.settings.discovery == "off":
        return Announcer.CLOUDLET_API
    return Announcer.THIS_PROCESS


def _live_instances(request: Request) -> list[Instance]:
    found: list[Instance] = []
    for one in sorted(LIVE_STATES):
        found.extend(request.core.instances.instances({"state": one}, limit=_MOST_ROWS).items)
    return sorted(found, key=lambda instance: (instance.created_at, instance.id))


def _hypervisor(request: Request) -> HypervisorFacts | None:
    try:
        return request.core.hypervisor_facts()
    except HypervisorError:
        return None
