# SPDX-License-Identifier: Apache-2.0
"""Every route, every kind of caller: one table says who gets past the door."""

import re

import pytest
from pyramid.exceptions import ConfigurationError
from pyramid.response import Response
from webtest import TestApp

from pycloud import api
from pycloud.api import routes
from pycloud.api.application import make_app
from pycloud.api.contract import Contract
from pycloud.manager.routes import ROUTES as MANAGER_ROUTES
from pycloud.web.application import Endpoint, Route, add_routes, finish, new_configurator
from pycloud.web.security import RULES, Permission
from testing.factories import a_job, an_instance
from testing.stand import OTHER_PHONE, PHONE, Stand

CALLERS = ("admin", "owner", "other phone", "nobody", "local", "bad token")
ALLOWED = {
    Permission.PUBLIC: {"admin", "owner", "other phone", "nobody", "local"},
    Permission.INSTANCE_CONTROL: {"admin", "owner"},
    Permission.METRICS_READ: {"admin", "local"},
    Permission.STATUS_READ: {"admin", "local"},
    Permission.ADMIN: {"admin"},
}
API_ENDPOINTS = [
    (route, endpoint)
    for route in (*routes.LEGACY, *routes.V2, *routes.OTHERS)
    for endpoint in route.endpoints
]

MANAGER_ENDPOINTS = [(route, endpoint) for route in MANAGER_ROUTES for endpoint in route.endpoints]


def test_every_permission_has_a_rule_and_a_row() -> None:
    assert set(RULES) == set(Permission) == set(ALLOWED)


@pytest.mark.parametrize("caller", CALLERS)
def test_api_lets_in_whom_the_table_allows(stand: Stand, caller: str) -> None:
    assert mismatches(stand, stand.api, API_ENDPOINTS, caller) == []


@pytest.mark.parametrize("caller", CALLERS)
def test_manager_lets_in_whom_the_table_allows(stand: Stand, caller: str) -> None:
    assert mismatches(stand, stand.manager, MANAGER_ENDPOINTS, caller) == []


def mismatches(stand: Stand, client_of, endpoints, caller: str) -> list[str]:
    """Call everything, and return where the door opened or stayed shut against the table."""
    client: TestApp = client_of(address="127.0.0.1" if caller == "local" else "192.0.2.77")
    found = []
    for route, endpoint in endpoints:
        # Without a look at who asks, a public route has no reason to mind a wrong token.
        if caller == "bad token" and endpoint.permission is Permission.PUBLIC:
            continue
        prepare(stand)
        path = re.sub(r"{\w+}", "x", route.pattern)
        headers = headers_of(stand, caller)
        response = client.request(path, method=endpoint.method, headers=headers, expect_errors=True)
        if (response.status_int not in {401, 403}) != (caller in ALLOWED[endpoint.permission]):
            found.append(f"{endpoint.method} {path}: {response.status}")
    return found


def test_description_says_who_may_call_what_the_table_says(stand: Stand) -> None:
    contract: Contract = make_app(stand.core, stand.settings).registry.contract
    wanted = {
        Permission.PUBLIC: None,
        Permission.ADMIN: [{"administrator": []}],
        Permission.INSTANCE_CONTROL: [{}, {"administrator": []}],
    }
    for route in routes.V2:
        for endpoint in route.endpoints:
            described = contract.document["paths"][route.pattern][endpoint.method.lower()]
            assert described.get("security") == wanted[endpoint.permission], route.name


@pytest.mark.parametrize("permission", ["nobody", "anything"])
def test_app_does_not_start_with_a_route_without_a_known_permission(
    stand: Stand, permission: str
) -> None:
    config = new_configurator(stand.core, stand.settings, on_error=lambda _e, _r: Response())
    endpoint = Endpoint("GET", lambda _request: Response(), permission)
    add_routes(config, [Route("lost", "/lost", (endpoint,))])
    with pytest.raises(ConfigurationError, match="has no permission"):
        finish(config)


def test_app_does_not_start_with_a_view_that_names_no_permission(stand: Stand) -> None:
    config = new_configurator(stand.core, stand.settings, on_error=lambda _e, _r: Response())
    config.add_route("lost", "/lost")
    config.add_view(lambda _request: Response(), route_name="lost")
    with pytest.raises(ConfigurationError, match="has no permission"):
        finish(config)


def test_app_does_not_start_when_a_route_is_not_described(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "V2", routes.V2[1:])
    with pytest.raises(ConfigurationError, match="describes what no route answers"):
        api.make_app(stand.core, stand.settings)


def prepare(stand: Stand) -> None:
    """Make what the paths name, unless the call before left it there."""
    for repository, record in (
        (stand.store.instances, an_instance(id="x", owner="device:phone-1", job_id="x")),
        (stand.store.jobs, a_job(id="x")),
    ):
        repository.remove("x")
        repository.add(record)


def headers_of(stand: Stand, caller: str) -> dict[str, str]:
    """Return what this kind of caller sends."""
    return {
        "admin": stand.admin,
        "owner": PHONE,
        "other phone": OTHER_PHONE,
        "nobody": {},
        "local": {},
        "bad token": {"Authorization": "Bearer clt_0_wrong"},
    }[caller]
