# SPDX-License-Identifier: Apache-2.0
"""The explorer and the status page, as a person sees and uses them."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from pycloud.core.model.catalog import ServiceDraft
from pycloud.core.model.identifiers import Principal, ServiceId
from testing.factories import a_service_vm
from testing.system.cloudlet import Server, running_server

PHONE = {"width": 360, "height": 740}


@pytest.fixture
def manager_url(server: Server) -> str:
    return f"http://127.0.0.1:{server.texts['manager_port']}"


def test_explorer_sends_a_request_when_its_button_is_pressed(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/docs/api")
    operation = page.locator("#list_services")
    operation.locator("summary").click()

    operation.get_by_role("button", name="Send").click()

    expect(operation.locator("form.try pre")).to_contain_text("HTTP 200")
    expect(operation.locator("form.try pre")).to_contain_text('"items"')


def test_explorer_uses_the_token_when_one_is_entered(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/docs/api")
    page.get_by_label("Administrator's token").fill(server.token)
    operation = page.locator("#list_jobs")
    operation.locator("summary").click()

    operation.get_by_role("button", name="Send").click()

    expect(operation.locator("form.try pre")).to_contain_text("HTTP 200")


def test_explorer_loads_nothing_from_elsewhere_when_it_is_opened(
    page: Page, server: Server
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    page.goto(f"{server.url}/docs/api", wait_until="networkidle")

    foreign = [url for url in asked if not url.startswith((server.url, "data:"))]
    assert foreign == []


@pytest.mark.parametrize("where", ["explorer", "status"])
def test_page_fits_when_the_screen_is_a_phone(
    page: Page, server: Server, manager_url: str, where: str
) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # a plain dict of two sizes

    page.goto(f"{server.url}/docs/api" if where == "explorer" else manager_url)

    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]


def test_status_page_shows_health_when_nothing_runs(page: Page, manager_url: str) -> None:
    page.goto(manager_url)

    expect(page.get_by_role("heading", name="Health")).to_be_visible()
    expect(page.locator("#state")).to_contain_text("No services yet")


def test_status_page_follows_by_itself_when_something_changes(
    page: Page, server: Server, manager_url: str
) -> None:
    page.goto(manager_url)
    page.evaluate("document.body.dataset.loadedOnce = 'yes'")

    with server.core() as core:
        core.catalog.publish(
            ServiceDraft(id=ServiceId("newcomer"), port=80), a_service_vm(), by=Principal("admin")
        )

    expect(page.locator("#services")).to_be_visible()
    expect(page.locator("#state")).to_contain_text("newcomer", timeout=15_000)
    expect(page.locator("body")).to_have_attribute("data-loaded-once", "yes")


def test_status_page_says_that_it_is_stale_when_the_server_is_gone(
    browser: Browser, tmp_path: Path
) -> None:
    page = browser.new_page()
    with running_server(tmp_path, {"hypervisor": "fake:"}) as short_lived:
        page.goto(f"http://127.0.0.1:{short_lived.texts['manager_port']}")
        expect(page.locator("#stale")).to_be_hidden()

    expect(page.locator("#stale")).to_be_visible(timeout=15_000)
    page.close()
