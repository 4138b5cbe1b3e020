# SPDX-License-Identifier: Apache-2.0
"""This cloudlet, what it sees and what happened on it."""

from pyramid.response import Response

from pycloud.api.replies import json_reply, wait_s
from pycloud.api.schemas.fleet import peer_json, system_json
from pycloud.api.schemas.runtime import event_json
from pycloud.core.model.runtime import Event
from pycloud.web.request import Request

EXTENSIONS = (
    "apps",
    "events",
    "hosts",
    "idempotency",
    "jobs",
    "null_changes",
    "packages",
    "prepare_after_change",
    "sharing",
    "uploads_tus",
    "wait",
)
"""Names of features; one is added with every addition that a client may want to test for."""
_EVENT_POLL_S = 0.25
"""How often a request that waits for events looks; other servers may write them."""


def index(request: Request) -> Response:
    """Tell what this server can do."""
    return json_reply(
        {
            "version": "2.0",
            "server": f"pycloud/{request.core.cloudlet.version}",
            "api_extensions": list(EXTENSIONS),
            "auth": "trusted" if request.is_admin else "untrusted",
            "links": {
                "description": "/api/v2/openapi.yaml",
                "documentation": "/docs/api",
            },
        }
    )


def description_yaml(request: Request) -> Response:
    """Send the API description as it is written."""
    return Response(request.registry.contract.text.encode(), content_type="application/yaml")


def description_json(request: Request) -> Response:
    """Send the API description as JSON."""
    return json_reply(dict(request.registry.contract.document))


def get_system(request: Request) -> Response:
    """Show this cloudlet and its Host."""
    return json_reply(system_json(request.core))


def list_peers(request: Request) -> Response:
    """List the cloudlets seen on the network."""
    return json_reply({"items": [peer_json(peer) for peer in request.core.peers()], "next": None})


def list_events(request: Request) -> Response:
    """Read the event log, and wait for the next event if the client wants to."""
    log, query = request.core.events, request.checked.query
    # Read first: whatever is not among the events below and not after it does not match.
    seen = log.latest()
    after = seen if query["after"] is None else query["after"]
    kinds = tuple(query["kinds"] or ())
    events = log.after(after, limit=query["limit"], kinds=kinds)
    if not events and wait_s(request):
        events = _awaited_events(request, after, kinds)
    return json_reply(
        {
            "items": [event_json(event) for event in events],
            "last": events[-1].sequence if events else max(after, seen),
            "gap": _has_gap(request, after),
        }
    )


def _awaited_events(request: Request, after: int, kinds: tuple[str, ...]) -> tuple[Event, ...]:
    log, clock, limit = request.core.events, request.core.clock, request.checked.query["limit"]
    deadline_s = clock.monotonic() + wait_s(request)
    with request.waiting_place() as has_place:
        while has_place and clock.monotonic() < deadline_s and not request.is_abandoned():
            clock.sleep(_EVENT_POLL_S)
            events = log.after(after, limit=limit, kinds=kinds)
            if events:
                return events
    return ()


def _has_gap(request: Request, after: int) -> bool:
    """Return whether events behind `after` were dropped before they were read."""
    oldest = request.core.events.after(after, limit=1)
    return bool(oldest) and oldest[0].sequence > after + 1
