# SPDX-License-Identifier: Apache-2.0
"""A real Chromium, and a real server whose hypervisor is a twin: pages need no guests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from testing.browser.chromium import find_chromium
from testing.system.cloudlet import Server, running_server

_OPTIONS = (
    "--no-sandbox",  # Tests may run as root, for whom Chromium has no sandbox.
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium; the tests fail when it is missing."""
    program = find_chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page; at its end nothing may have been complained about."""
    context = browser.new_context()
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both apps, as `pycloud serve` runs them."""
    folder: Path = tmp_path_factory.mktemp("server")
    with running_server(folder, {"hypervisor": "fake:"}) as running:
        yield running
