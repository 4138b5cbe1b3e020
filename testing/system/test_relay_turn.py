# SPDX-License-Identifier: Apache-2.0
"""One turn of the relay, taken in this process, so that all events are at hand at once."""

import json
import os
import resource
import socket
from contextlib import ExitStack

import pytest

from pycloud.adapters.relay.process import Relay
from testing.system.relayed import (
    DEADLINE_S,
    PUBLISHED,
    connected,
    echo,
    free_port,
    serving,
    until,
)

_TURNS = 10
_TURN_S = 0.05


class SteppedRelay:
    """A relay that does something only when a test says so."""

    def __init__(self, relay, teller):
        self._relay = relay
        self._teller = teller

    def order(self, ports):
        """Send an order that the relay finds in its next turn."""
        self._teller.sendall(json.dumps({"listen": ports, "on": PUBLISHED}).encode())

    def take_turn(self):
        """Do what the events at hand ask for."""
        self._relay._loop.run_once(_TURN_S)

    def is_idle(self):
        """Take a turn; return whether nobody is connected any more."""
        self.take_turn()
        return not self._relay._clients

    def has_answered(self):
        """Return whether the answer to an order is there."""
        return bool(self._teller.recv(1 << 16))


@pytest.fixture
def stepped(tmp_path):
    """A relay that listens on nothing yet and waits for its first order."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        control, teller = (
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            for _ in range(2)
        )
        control.bind(str(tmp_path / "control"))
        control.listen()
        lock_fd = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
        stack.callback(os.close, lock_fd)
        relay = SteppedRelay(Relay(control, lock_fd, idle_exit_s=DEADLINE_S), teller)
        teller.settimeout(DEADLINE_S)
        teller.connect(str(tmp_path / "control"))
        relay.take_turn()
        yield relay
        relay.order([])
        relay.take_turn()
        # The relay closes its end of this, and of connections, when it sees the other closed.
        teller.close()
        until(relay.is_idle, what="no connection is left")


def test_relay_serves_a_client_that_comes_while_another_port_is_given_up(stepped):
    with ExitStack() as stack:
        kept, given_up = (stack.enter_context(serving(echo)) for _ in range(2))
        stepped.order([kept, given_up])
        stepped.take_turn()
        assert stepped.has_answered()
        # All three are reported to the relay in one turn, and in this order.
        stepped.order([kept])
        client = stack.enter_context(connected(kept))
        late = stack.enter_context(connected(given_up))
        client.sendall(b"x")

        for _ in range(_TURNS):
            stepped.take_turn()

        assert client.recv(1) == b"x"
        with pytest.raises(ConnectionResetError):
            late.recv(1)


def test_port_refuses_clients_in_the_turn_in_which_it_is_given_up(stepped):
    port = free_port()
    stepped.order([port])
    stepped.take_turn()
    assert stepped.has_answered()
    refused = []
    obey = stepped._relay._obey

    def obey_and_look(order):
        answer = obey(order)
        with socket.socket() as sock:
            refused.append(sock.connect_ex((PUBLISHED, port)))
        return answer

    stepped._relay._obey = obey_and_look
    stepped.order([])
    stepped.take_turn()

    assert stepped.has_answered()
    assert [os.strerror(number) for number in refused] == ["Connection refused"]


def test_port_that_is_given_up_and_taken_again_in_one_turn_is_listened_on(stepped):
    with serving(echo) as port:
        stepped.order([port])
        stepped.take_turn()
        assert stepped.has_answered()
        obey = stepped._relay._obey

        def obey_twice(order):
            obey({"listen": [], "on": PUBLISHED})
            return obey(order)

        stepped._relay._obey = obey_twice
        stepped.order([port])
        stepped.take_turn()

        assert stepped.has_answered()
        with connected(port) as client:
            client.sendall(b"x")
            for _ in range(_TURNS):
                stepped.take_turn()
            assert client.recv(1) == b"x"
