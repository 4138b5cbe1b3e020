# SPDX-License-Identifier: Apache-2.0
"""The status page of the Manager and the explorer of the API: complete, and nothing foreign."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from webtest import TestApp

from pycloud import manager
from pycloud.core.instances import StartRequest
from pycloud.core.model.identifiers import DeviceId, Principal, ServiceId
from pycloud.errors import HypervisorUnavailable
from pycloud.web.body_gate import REFUSAL_KEY
from pycloud.web.errors import BodyTooLarge
from testing.stand import Stand, client_of, make_stand


@pytest.fixture
def page(stand: Stand) -> TestApp:
    """The Manager as somebody at the machine sees it."""
    return stand.manager()


def test_status_page_shows_what_runs(stand: Stand, page: TestApp) -> None:
    stand.add_service("echo")
    started = stand.core.instances.request_start(
        StartRequest(service_id=ServiceId("echo"), device_id=DeviceId("phone-1")),
        by=Principal("device:phone-1"),
    )
    stand.core.jobs.wait(started.job.id, timeout_s=30)
    response = page.get("/")
    assert "echo" in response
    assert started.instance.id in response
    assert "running" in response
    assert "phone-1" not in response


def test_body_that_is_too_large_is_refused_on_a_page(page: TestApp) -> None:
    refused = {REFUSAL_KEY: BodyTooLarge("the body may have at most 1 bytes")}
    response = page.post("/", extra_environ=refused, status=413)
    assert response.content_type == "text/html"
    assert "the body may have at most 1 bytes" in response


def test_status_page_escapes_what_operators_wrote(stand: Stand, page: TestApp) -> None:
    service = stand.add_service("echo")
    stand.store.services.replace(replace(service, description="<script>alert(1)</script>"))
    response = page.get("/")
    assert "<script>alert" not in response
    assert "&lt;script&gt;" in response


def test_state_is_the_changing_part_alone(page: TestApp) -> None:
    text = page.get("/home/state").text
    assert "<html" not in text
    assert "<h2" in text


def test_error_is_a_page(page: TestApp) -> None:
    response = page.get("/nothing", status=404)
    assert response.content_type == "text/html"
    assert response.headers["X-Request-ID"] in response


def test_hypervisor_that_is_away_does_not_take_the_page_along(
    stand: Stand, page: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise HypervisorUnavailable("libvirt is away")

    monkeypatch.setattr(stand.hypervisor, "facts", away)
    assert "cannot be reached" in page.get("/", status=200)


def discovery_of(client: TestApp) -> tuple[str, str]:
    """Return what the page says of discovery and of peers, with its marks."""
    text = " ".join(client.get("/home/state").text.split())
    health = re.search(r"<li[^>]*><b>[^<]*discovery</b>.*?</li>", text)
    peers = re.search(r"<dt>Peers seen</dt><dd>(.*?)</dd>", text)
    assert health
    assert peers
    return health[0], peers[1]


def test_announcement_by_this_process_is_judged(
    stand: Stand, page: TestApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    well, _ = discovery_of(page)
    monkeypatch.setattr(stand.core.system.discovery, "problem", lambda: "the name is taken")
    unwell, _ = discovery_of(page)
    assert "✓ discovery" in well
    assert "✗ discovery" in unwell
    assert "the name is taken" in unwell


def test_announcement_by_another_process_is_not_judged(tmp_path: Path) -> None:
    core = make_stand(tmp_path, discovery="off").core
    settings = replace(core.settings, discovery="zeroconf")
    health, peers = discovery_of(client_of(manager.make_app(core, settings), "127.0.0.1"))
    assert "pycloud cloudlet status" in health
    assert not {"✓", "✗"} & set(health)
    assert "pycloud cloudlet discover" in peers
    assert "none" not in peers


def test_announcement_that_nobody_wants_is_no_success(tmp_path: Path) -> None:
    health, peers = discovery_of(make_stand(tmp_path, discovery="off").manager())
    assert "pycloud.discovery = off" in health
    assert not {"✓", "✗"} & set(health)
    assert "not looked for" in peers


@pytest.mark.parametrize(
    ("app", "path"), [("manager", "/"), ("manager", "/nothing"), ("api", "/docs/api"), ("api", "/")]
)
def test_pages_run_nothing_but_our_own_files(stand: Stand, app: str, path: str) -> None:
    response = getattr(stand, app)(address="127.0.0.1").get(path, expect_errors=True)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(
        r'(src|href)="(https?:)?//', response.text.replace("http://192.0.2.10", "")
    )
    assert not re.search(r"<[^>]+\son\w+=|<style|style=|<script>", response.text)


@pytest.mark.parametrize(
    ("app", "base"), [("manager", "/static/manager"), ("api", "/docs/api/explorer")]
)
def test_files_of_the_pages_are_served(stand: Stand, app: str, base: str) -> None:
    client = getattr(stand, app)(address="127.0.0.1")
    assert client.get(f"{base}.js").content_type == "text/javascript"
    assert client.get(f"{base}.css").content_type == "text/css"
    client.get(f"{base}.png", status=404)
    client.get(f"{base.rpartition('/')[0]}/..%2fapplication.py", status=404)


def test_explorer_shows_every_operation_schema_and_error(stand: Stand) -> None:
    client = stand.api()
    text = client.get("/docs/api").text
    document = client.get("/api/v2/openapi.json").json
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                assert f'id="{operation["operationId"]}"' in text
        assert path in text
    for name in document["components"]["schemas"]:
        assert f'id="schema-{name}"' in text
    for code in ("not_found", "insufficient_storage", "precondition_required"):
        assert f'id="error-{code}"' in text


def test_every_link_of_a_problem_leads_into_the_explorer(stand: Stand) -> None:
    client = stand.api()
    problem = client.get("/api/v2/services/none", status=404).json
    path, _, anchor = problem["type"].partition("#")
    assert f'id="{anchor}"' in client.get(path).text
