# SPDX-License-Identifier: Apache-2.0
"""What guests can reach and what reaches them, on the real network paths of QEMU."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from testing.real_host import answer_of, free_port, published_port
from testing.serial_shell import run_in_guest

HOST_IN_USER_NETWORK = "10.0.2.2"


@pytest.fixture
def guest(real_host):
    """A running guest whose service answers."""
    spec = real_host.clone()
    answer_of(published_port(spec))
    yield spec
    real_host.end(spec)


def test_guest_reaches_no_service_on_the_hosts_loopback(guest):
    port = free_port()
    with closing(socket.create_server(("127.0.0.1", port))) as listener:
        listener.settimeout(0)

        printed = run_in_guest(guest.domain_id, f"nc -w 2 {HOST_IN_USER_NETWORK} {port} </dev/null")

        assert "status=0" not in printed
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert answer_of(published_port(guest))


def test_guest_reaches_itself_by_the_same_command(guest):
    printed = run_in_guest(guest.domain_id, "nc -w 2 127.0.0.1 8080 </dev/null")

    assert "status=0" in printed


def test_guest_resolves_no_names_through_the_host(guest):
    printed = run_in_guest(guest.domain_id, "nslookup localhost 10.0.2.3")

    assert "status=0" not in printed


def test_guest_accepts_only_when_it_listens_itself(real_host, guest):
    view = real_host.adapters.guest_view
    deaf = real_host.spec()
    real_host.adapters.hypervisor.start(deaf, on_phase=lambda _name: None)

    with socket.create_connection(("127.0.0.1", published_port(deaf))):
        is_deaf = not view.accepts(deaf.domain_id, published_port(deaf))
    with socket.create_connection(("127.0.0.1", published_port(guest))) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.recv(1)
        is_heard = view.accepts(guest.domain_id, published_port(guest))

    real_host.end(deaf)
    assert is_deaf
    assert is_heard


def test_guest_on_a_bridge_is_found_by_its_address(tmp_path):
    # A network namespace of its own, so that the bridge is nobody else's.
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "testing.system.bridged_guest"]
    if os.geteuid() != 0:
        command[1:1] = ["--user", "--map-root-user"]

    finished = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )

    assert finished.returncode == 0, finished.stderr
    seen = json.loads(finished.stdout.splitlines()[-1])
    assert seen["address"] == "192.0.2.77"
    assert seen["service"] == "pycloud-demo"
    assert seen["ports_left"] == []
    assert seen["with_memory"] == "state_unusable"
