# SPDX-License-Identifier: Apache-2.0
"""Calls of libvirt, here its test driver that needs no daemon, with a heartbeat meanwhile."""

import threading

import pytest

from pycloud.adapters.libvirt import connection
from pycloud.adapters.libvirt.connection import Connection
from pycloud.errors import HypervisorUnavailable, JobCancelled


@pytest.fixture
def daemon(monkeypatch):
    monkeypatch.setattr(connection, "_HEARTBEAT_S", 0.001)
    return Connection("test:///default")


@pytest.fixture
def held():
    """A call that does not return until the test is over."""
    event = threading.Event()
    yield lambda _handle: event.wait(5)
    event.set()


def test_call_returns_its_result_in_spite_of_the_heartbeat(daemon):
    beats = threading.Event()

    result = daemon.run(lambda handle: (beats.wait(5), handle.getType()), heartbeat=beats.set)

    assert result == (True, "TEST")


def test_what_the_heartbeat_raises_passes_though_the_call_goes_on(daemon, held):
    def cancel():
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        daemon.run(held, heartbeat=cancel)


@pytest.mark.parametrize("heartbeat", [None, lambda: None])
def test_call_that_takes_too_long_is_left_alone(daemon, held, heartbeat):
    with pytest.raises(HypervisorUnavailable):
        daemon.run(held, timeout_s=0.01, heartbeat=heartbeat)
