# SPDX-License-Identifier: Apache-2.0
"""The port that clients are told, for guests behind forwards and on a bridge."""

import pytest

from pycloud.core.model.runtime import InstanceState, PortMapping
from testing.factories import an_instance

FORWARDED = (
    PortMapping(guest_port=22, host_port=20001),
    PortMapping(guest_port=8080, host_port=20002),
)


def test_forwarded_guest_is_reached_at_the_host_port_of_its_service():
    instance = an_instance(state=InstanceState.RUNNING, address="192.0.2.10", ports=FORWARDED)

    assert instance.published_port() == 20002


@pytest.mark.parametrize("state", [InstanceState.RUNNING, InstanceState.PAUSED])
def test_bridged_guest_is_reached_at_the_port_of_its_service(state):
    assert an_instance(state=state, address="192.0.2.77").published_port() == 8080


def test_bridged_guest_has_no_port_before_it_has_an_address():
    assert an_instance(state=InstanceState.STARTING).published_port() is None


@pytest.mark.parametrize("state", [InstanceState.STOPPED, InstanceState.FAILED])
def test_guest_that_is_gone_has_no_port(state):
    """Its address stays in the record, its forwards do not."""
    assert an_instance(state=state, address="192.0.2.10").published_port() is None
