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


def test_every_permission_has_a_rule_and_a_row() -> None:
    assert set(RULES) == set(Permission) == set(ALLOWED)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("route", "endpoint"),
    API_ENDPOINTS,
    ids=[f"{endpoint.method} {route.pattern}" for route, endpoint in API_ENDPOINTS],
)
def test_api_lets_in_whom_the_table_allows(
    stand: Stand, route: Route, endpoint: Endpoint, caller: str
) -> None:
    prepare(stand)
    is_open = caller in ALLOWED[endpoint.permission]
    # Without a look at who asks, a public route has no reason to mind a token that is wrong.
    if caller == "bad token" and endpoint.permission is Permission.PUBLIC:
        return
    response = call(stand, stand.api, route, endpoint, caller)
    assert (response.status_int not in {401, 403}) == is_open
    if not is_open:
        is_known_phone = endpoint.permission is Permission.INSTANCE_CONTROL
        assert response.status_int == 401 or is_known_phone


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    ("route", "endpoint"),
    [(route, endpoint) for route in MANAGER_ROUTES for endpoint in route.endpoints],
    ids=[route.name for route in MANAGER_ROUTES for _ in route.endpoints],
)
def test_manager_lets_in_whom_the_table_allows(
    stand: Stand, route: Route, endpoint: Endpoint, caller: str
) -> None:
    if caller == "bad token" and endpoint.permission is Permission.PUBLIC:
        return
    response = call(stand, stand.manager, route, endpoint, caller)
    assert (response.status_int not in {401, 403}) == (caller in ALLOWED[endpoint.permission])


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
    stand.store.instances.add(an_instance(id="x", owner="device:phone-1", job_id="x"))
    stand.store.jobs.add(a_job(id="x"))


def call(stand: Stand, client_of, route: Route, endpoint: Endpoint, caller: str):
    client: TestApp = client_of(address="127.0.0.1" if caller == "local" else "192.0.2.77")
    headers = {
        "admin": stand.admin,
        "owner": PHONE,
        "other phone": OTHER_PHONE,
        "nobody": {},
        "local": {},
        "bad token": {"Authorization": "Bearer clt_0_wrong"},
    }[caller]
    path = re.sub(r"{\w+}", "x", route.pattern)
    return client.request(path, method=endpoint.method, headers=headers, expect_errors=True)
