# SPDX-License-Identifier: Apache-2.0
"""Guests that answer callers beyond loopback, without any route of their own."""

import os
import signal
import socket

import pytest

from pycloud.adapters.interfaces import LOOPBACK_ADDRESS, preferred_address
from pycloud.errors import PortInUse
from pycloud.settings import Settings
from testing.real_host import (
    a_forward,
    answer_of,
    ignore_phase,
    published_port,
    running_real_host,
)
from testing.serial_shell import run_in_guest
from testing.system.relayed import PUBLISHED, relay_client, until


@pytest.fixture(scope="module")
def open_host(tmp_path_factory):
    """The real libvirt, its guests published on all addresses of this machine."""
    settings = Settings(publish_bind="0.0.0.0")
    with running_real_host(tmp_path_factory.mktemp("open-host"), settings=settings) as host:
        yield host


@pytest.fixture
def guest(open_host):
    """A guest whose service answers."""
    spec = open_host.clone()
    answer_of(published_port(spec))
    yield spec
    open_host.end(spec)


@pytest.fixture
def relay(open_host):
    """The relay of that host."""
    return relay_client(open_host.data.root)


def test_guest_answers_callers_beyond_loopback_though_it_knows_no_router(guest):
    address = preferred_address()

    routes = run_in_guest(guest.domain_id, "ip route")

    assert address != LOOPBACK_ADDRESS, "this machine has no address but loopback"
    assert "status=0" in routes
    assert "default" not in routes
    assert b"pycloud-demo" in answer_of(published_port(guest), address=address)


def test_guest_is_reached_by_nobody_when_it_was_ended(open_host):
    spec = open_host.clone()
    port, address = published_port(spec), preferred_address()
    answer_of(port, address=address)

    open_host.end(spec)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, port), timeout=5)


def test_guest_is_reached_again_at_the_next_look_when_the_relay_was_killed(open_host, guest, relay):
    os.kill(relay.state().pid, signal.SIGKILL)
    until(lambda: relay.state() is None, what="the relay is gone")

    open_host.adapters.hypervisor.domains()

    assert answer_of(published_port(guest), address=preferred_address())


def test_template_is_reached_by_this_host_alone(open_host):
    spec, capture = open_host.spec(), open_host.adapters.memory_capture
    port = published_port(spec)

    capture.start_template(spec, "reached-by")

    answer_of(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((preferred_address(), port), timeout=5)
    open_host.end(spec)
    open_host.blobs.discard("reached-by")


def test_waiting_copy_is_reached_by_nobody_until_it_is_released(open_host):
    hypervisor = open_host.adapters.hypervisor
    held, forward = open_host.spec(memory=open_host.template), a_forward()
    port, address = forward.host_port, preferred_address()
    hypervisor.start_held(held)
    hypervisor.release(held.domain_id, (forward,), on_phase=ignore_phase)
    answer_of(port, address=address)

    hypervisor.hold(held.domain_id)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, port), timeout=5)
    hypervisor.release(held.domain_id, (forward,), on_phase=ignore_phase)
    assert answer_of(port, address=address)
    open_host.end(held)


# a published address on which another program has the port


@pytest.fixture(scope="module")
def narrow_host(tmp_path_factory):
    """The real libvirt, its guests published on one address."""
    settings = Settings(publish_bind=PUBLISHED)
    with running_real_host(tmp_path_factory.mktemp("narrow-host"), settings=settings) as host:
        yield host


def test_start_leaves_nothing_behind_when_the_port_is_taken_where_clients_come(narrow_host):
    spec = narrow_host.spec()
    port = published_port(spec)

    with socket.create_server((PUBLISHED, port)), pytest.raises(PortInUse) as caught:
        narrow_host.adapters.hypervisor.start(spec, on_phase=ignore_phase)

    assert caught.value.port == port
    assert narrow_host.leftovers() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_held_guest_waits_for_another_port_when_the_first_is_taken_where_clients_come(narrow_host):
    hypervisor = narrow_host.adapters.hypervisor
    held = narrow_host.spec(memory=narrow_host.template)
    hypervisor.start_held(held)
    taken, free = a_forward(), a_forward()

    with socket.create_server((PUBLISHED, taken.host_port)), pytest.raises(PortInUse):
        hypervisor.release(held.domain_id, (taken,), on_phase=ignore_phase)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", taken.host_port), timeout=5)
    hypervisor.release(held.domain_id, (free,), on_phase=ignore_phase)

    assert answer_of(free.host_port, address=PUBLISHED)
    narrow_host.end(held)
