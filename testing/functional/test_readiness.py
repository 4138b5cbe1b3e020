# SPDX-License-Identifier: Apache-2.0
"""/readyz while libvirt hangs, and while nothing works in the background."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from webtest import TestApp

from pycloud.adapters.fakes import FakeClock
from testing.stand import Stand, make_stand

DEADLINE_S = 30.0


class HangingLibvirt:
    """In the place of `FakeHypervisor.domains`: does not answer until it is told to."""

    def __init__(self) -> None:
        self.callers: list[int] = []
        self.called = threading.Event()
        self._go_on = threading.Event()

    def __call__(self) -> tuple[()]:
        """Hang."""
        self.callers.append(threading.get_ident())
        self.called.set()
        assert self._go_on.wait(DEADLINE_S)
        return ()

    def let_go(self) -> None:
        """Answer everybody."""
        self._go_on.set()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stand(tmp_path: Path, clock: FakeClock) -> Iterator[Stand]:
    """A cloudlet whose background is not started."""
    stand = make_stand(tmp_path, clock=clock)
    yield stand
    stand.core.background.stop()


def not_well(client: TestApp) -> set[str]:
    response = client.get("/readyz", status=503)
    assert response.json["ready"] is False
    return {one["name"] for one in response.json["checks"] if not one["ok"]}


def test_cloudlet_without_background_is_not_ready(stand: Stand) -> None:
    assert not_well(stand.api()) == {"store", "hypervisor", "disk", "worker"}


def test_cloudlet_whose_background_stopped_is_not_ready(stand: Stand) -> None:
    phone = stand.api()
    background = stand.core.background
    background.start()
    while phone.get("/readyz", expect_errors=True).status_int != 200:
        pass
    background.stop()
    assert not_well(phone) == {"worker"}


def test_cloudlet_whose_libvirt_hangs_says_so_without_asking_it(
    stand: Stand, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = stand.api(address="127.0.0.1")
    stand.core.health.look()
    libvirt = HangingLibvirt()
    monkeypatch.setattr(stand.hypervisor, "domains", libvirt)
    stand.core.background.start()
    try:
        assert libvirt.called.wait(DEADLINE_S)
        phone.get("/readyz", status=200)
        clock.advance(60)
        assert {"store", "hypervisor", "disk"} <= not_well(phone)
        details = phone.get("/readyz", status=503).json["checks"]
        assert details[1]["detail"].endswith(", 60 s ago")
    finally:
        libvirt.let_go()
    assert threading.get_ident() not in libvirt.callers
