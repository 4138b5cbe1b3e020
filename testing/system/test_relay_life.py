# SPDX-License-Identifier: Apache-2.0
"""The life of the relay: who starts it, what it survives, what it listens on, when it ends."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pycloud.adapters.relay import process
from pycloud.errors import HypervisorError, PortInUse
from testing.system.network_segment import REPOSITORY, TIMEOUT_S, segment
from testing.system.relayed import (
    PUBLISHED,
    connected,
    echo,
    free_port,
    is_echoed,
    is_running,
    relay_client,
    serving,
    until,
)


@pytest.fixture
def data(tmp_path):
    """A data directory; a relay that is left in it ends soon after."""
    yield tmp_path
    shutil.rmtree(tmp_path / "relay", ignore_errors=True)


@pytest.fixture
def relay(data):
    """What a server on the data directory uses."""
    return relay_client(data)


@pytest.fixture
def port():
    """A port on which an echo serves, not published yet."""
    with serving(echo) as number:
        yield number


@contextmanager
def agent(*words, enter=()):
    """Run `relay_agent` until the block ends, which is the end of its input."""
    started = subprocess.Popen(
        [*enter, sys.executable, "-m", "testing.system.relay_agent", *map(str, words)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.stdin.close()
            started.wait(timeout=TIMEOUT_S)


# publishing and giving up


def test_relay_listens_when_publish_returns(relay, port):
    relay.publish("a", [port])

    assert is_echoed(port)


def test_relay_refuses_clients_when_withdraw_returns(relay, port):
    relay.publish("a", [port])
    relay.publish("b", [free_port()])

    relay.withdraw("a")

    with pytest.raises(ConnectionRefusedError):
        connected(port)


def test_relay_keeps_an_owners_connections_when_another_one_leaves(relay, port):
    relay.publish("a", [port])
    relay.publish("b", [free_port()])
    with connected(port) as client:
        relay.withdraw("b")

        client.sendall(b"x")

        assert client.recv(1) == b"x"


def test_relay_forgets_an_owners_other_ports_when_it_publishes_again(relay, port):
    other = free_port()
    relay.publish("a", [other])

    relay.publish("a", [port])

    assert is_echoed(port)
    with pytest.raises(ConnectionRefusedError):
        connected(other)


def test_withdraw_does_nothing_when_nothing_was_published(relay, data):
    relay.withdraw("a")

    assert list(data.iterdir()) == []


def test_publish_names_the_port_that_another_program_has(relay, port):
    with socket.create_server((PUBLISHED, port)), pytest.raises(PortInUse) as caught:
        relay.publish("a", [port])

    assert caught.value.port == port
    relay.ensure()
    assert not is_echoed(port)


def test_publish_leaves_the_ports_of_before_when_the_new_ones_are_taken(relay, port):
    relay.publish("a", [port])
    taken = free_port()

    with socket.create_server((PUBLISHED, taken)), pytest.raises(PortInUse):
        relay.publish("a", [taken])

    assert is_echoed(port)


def test_publish_names_the_setting_when_the_address_is_not_this_machines(data, port):
    relay = relay_client(data, bind="192.0.2.250")

    with pytest.raises(HypervisorError, match=r"192\.0\.2\.250.*pycloud\.publish_bind"):
        relay.publish("a", [port])


def test_publish_needs_no_relay_when_only_this_host_is_to_reach_guests(data, port):
    relay = relay_client(data, bind="127.0.0.1")

    relay.publish("a", [port])
    relay.ensure()

    assert relay.state() is None
    assert list(data.iterdir()) == []


def test_relay_is_found_when_the_data_directory_has_a_long_name(data, port):
    deep = data / ("long" * 30) / ("name" * 30)
    deep.mkdir(parents=True)

    relay_client(deep, idle_exit_s=0.5).publish("a", [port])

    assert is_echoed(port)
    relay_client(deep).withdraw("a")


# what it survives


def test_relay_is_replaced_when_it_was_killed(relay, port):
    relay.publish("a", [port])
    os.kill(relay.state().pid, signal.SIGKILL)
    until(lambda: not is_echoed(port), what="the relay is gone")

    relay.ensure()

    assert is_echoed(port)


def test_relay_is_replaced_with_all_ports_when_publish_finds_it_killed(relay, port):
    relay.publish("a", [port])
    os.kill(relay.state().pid, signal.SIGKILL)
    with serving(echo) as other:
        relay.publish("b", [other])

        assert is_echoed(other)
    assert is_echoed(port)


def test_relay_is_kept_when_it_is_well(relay, port):
    relay.publish("a", [port])
    before = relay.state().pid

    relay.ensure()

    assert relay.state().pid == before


def test_relay_learns_at_the_next_round_what_a_killed_server_could_not_say(relay, port, data):
    relay.publish("a", [port])
    (data / "relay" / "forwards" / "a").unlink()

    relay.ensure()

    assert not is_echoed(port)


def test_relay_goes_on_when_the_server_that_started_it_is_killed(relay, port, data):
    with agent("publish", data, PUBLISHED, "a", port) as server:
        server.stdin.write("go\n")
        server.stdin.flush()
        pid = json.loads(server.stdout.readline())["relay"]
        with connected(port) as client:
            os.killpg(os.getpgid(pid), 0)
            server.kill()
            server.wait(timeout=TIMEOUT_S)

            client.sendall(b"x")

            assert client.recv(1) == b"x"
    assert is_echoed(port)
    assert relay.state().pid == pid
    assert os.getsid(pid) == pid


def test_servers_share_one_relay_when_they_publish_at_once(relay, data):
    with ExitStack() as stack:
        ports = [stack.enter_context(serving(echo)) for _ in range(6)]
        servers = [
            stack.enter_context(agent("publish", data, PUBLISHED, f"owner-{port}", port))
            for port in ports
        ]
        for server in servers:
            server.stdin.write("go\n")
            server.stdin.flush()
        pids = {json.loads(server.stdout.readline())["relay"] for server in servers}

        assert pids == {relay.state().pid}
        assert all(is_echoed(port) for port in ports)


def test_relay_goes_on_when_it_is_told_nonsense(relay, port, data):
    relay.publish("a", [port])
    before = relay.state().pid
    for nonsense in (b"{", b"[]", b'{"listen": "x", "on": 1}', b'{"listen": [{}], "on": ""}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            with relay._address("control") as address:
                sock.connect(address)
            sock.sendall(nonsense)
            assert sock.recv(1) == b""

    assert relay.state().pid == before
    assert is_echoed(port)


# versions


def test_relay_of_an_older_version_is_replaced_when_nobody_uses_it(relay, port, monkeypatch):
    relay.publish("a", [port])
    old = relay.state().pid
    monkeypatch.setattr(process, "VERSION", process.VERSION + 1)

    relay.ensure()

    assert relay.state().pid != old
    assert is_echoed(port)


def test_relay_of_an_older_version_is_kept_while_it_is_used(relay, port, monkeypatch):
    relay.publish("a", [port])
    old = relay.state().pid
    monkeypatch.setattr(process, "VERSION", process.VERSION + 1)
    with connected(port) as client:
        client.sendall(b"x")
        client.recv(1)

        relay.ensure()

        client.sendall(b"y")
        assert client.recv(1) == b"y"
    assert relay.state().pid == old


# what it may do


def test_relay_has_no_privileges(relay, port):
    relay.publish("a", [port])

    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{relay.state().pid}/status").read_text().splitlines()
        if ":\t" in line
    )

    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split()[0] != "0"


def test_relay_is_told_by_its_owner_alone(relay, port, data):
    relay.publish("a", [port])

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data / "relay").iterdir()}

    assert modes["control"] == 0o600
    assert stat.S_IMODE((data / "relay").stat().st_mode) == 0o700


# its end


def test_relay_ends_when_nothing_is_published_for_a_while(data, port):
    relay = relay_client(data, idle_exit_s=0.5)
    relay.publish("a", [port])
    pid = relay.state().pid

    relay.withdraw("a")

    until(lambda: not is_running(pid), what="the relay has ended")
    assert relay.state() is None


def test_relay_comes_back_when_something_is_published_after_its_end(data, port):
    relay = relay_client(data, idle_exit_s=0.1)
    relay.publish("a", [port])
    pid = relay.state().pid
    relay.withdraw("a")
    until(lambda: not is_running(pid), what="the relay has ended")

    relay.publish("b", [port])

    assert is_echoed(port)


def test_relay_ends_when_its_data_directory_is_removed(relay, port, data):
    relay.publish("a", [port])
    pid = relay.state().pid

    shutil.rmtree(data / "relay")

    until(lambda: not is_running(pid), what="the relay has ended")


# other machines


def test_relay_follows_addresses_that_come_and_go(data):
    port = free_port()
    with segment() as machines, agent("serve", data, port, enter=machines.left.enter):
        for _ in range(2):
            machines.plug_in()
            seen = _call(machines.right, port)
            machines.left.run("ip", "link", "delete", "cable")

            assert seen == {"peer": "127.0.0.1", "is_whole": True}


def _call(machine, port):
    """Ask from another machine until somebody listens; return what the service saw."""
    answers = []

    def asked():
        finished = subprocess.run(
            [
                *(*machine.enter, sys.executable, "-m", "testing.system.relay_agent"),
                *("call", "10.77.0.1", str(port), str(8 << 20)),
            ],
            cwd=REPOSITORY,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if finished.returncode == 0:
            answers.append(json.loads(finished.stdout))
        return answers

    until(asked, what="a client on another machine is answered")
    return answers[0]
