# SPDX-License-Identifier: Apache-2.0
"""Readiness is what was seen a moment ago, or nothing."""

import threading
from collections.abc import Iterator

import pytest

from testing.composed import Composed, a_core
from testing.unit.core.races import wait_until

STALE_S = 16.0
"""Four rounds of the settings."""


@pytest.fixture
def composed() -> Composed:
    """A Core of which nothing is started."""
    return a_core()


@pytest.fixture
def at_work() -> Iterator[Composed]:
    """A Core whose Jobs are worked on, and nothing else."""
    composed = a_core()
    composed.core.background.runner.start()
    yield composed
    composed.core.background.runner.stop()


def seen(composed: Composed) -> dict[str, bool]:
    return {check.name: check.ok for check in composed.core.health.checks()}


ALL_WELL = {"store": True, "hypervisor": True, "disk": True, "worker": True}
NOTHING_SEEN = {"store": False, "hypervisor": False, "disk": False, "worker": True}


def test_nothing_is_well_before_the_first_look(at_work: Composed) -> None:
    assert seen(at_work) == NOTHING_SEEN


def test_what_was_seen_is_remembered(at_work: Composed) -> None:
    at_work.core.health.look()
    at_work.hypervisor.available = False
    before = seen(at_work)
    at_work.core.health.look()
    assert (before, seen(at_work)) == (ALL_WELL, ALL_WELL | {"hypervisor": False})


def test_what_was_seen_long_ago_counts_no_more(at_work: Composed) -> None:
    at_work.core.health.look()
    at_work.clock.advance(STALE_S)
    just_so = seen(at_work)
    at_work.clock.advance(0.1)
    too_late = {name: ok for name, ok in seen(at_work).items() if name != "worker"}
    assert just_so == ALL_WELL
    assert too_late == {"store": False, "hypervisor": False, "disk": False}


def test_server_that_works_on_no_jobs_is_not_ready(composed: Composed) -> None:
    composed.core.health.look()
    assert seen(composed) == ALL_WELL | {"worker": False}


def test_worker_that_hangs_is_named(at_work: Composed, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(*_args: object, **_options: object) -> None:
        hangs.set()
        goes_on.wait(30)

    with monkeypatch.context() as patch:
        patch.setattr(at_work.store.jobs, "find", hang)
        assert hangs.wait(30)
        at_work.clock.advance(STALE_S + 1)
        at_work.core.health.look()
        hanging = seen(at_work)
    goes_on.set()
    assert hanging == ALL_WELL | {"worker": False}


def test_background_looks_again_and_again(composed: Composed) -> None:
    background = composed.core.background
    background.reconcile_s = 0.01
    background.start()
    wait_until(lambda: seen(composed) == ALL_WELL)
    composed.blobs.set_free_bytes(0)
    wait_until(lambda: not seen(composed)["disk"])
    composed.blobs.set_free_bytes(1 << 40)
    wait_until(lambda: seen(composed) == ALL_WELL)
    background.stop()
    assert not seen(composed)["worker"]
