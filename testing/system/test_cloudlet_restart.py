# SPDX-License-Identifier: Apache-2.0
"""A server that ends, politely or not, takes no guest with it and finds them all again."""

from collections.abc import Iterator

import pytest

from testing.guest import guest_image
from testing.system.callers import Operator, Phone, ask_guest, require_right_checksums
from testing.system.cloudlet import Server, running_server, wait_until

CONTENT = b"carried over\n" * 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with a prepared Service and two waiting copies at most."""
    with running_server(tmp_path_factory.mktemp("restart"), {"warm_total": "1"}) as server:
        operator = Operator(server.url, server.token)
        operator.add_service("demo", guest_image(), sharing_limit=2)
        operator.done(operator.call("POST", "/services/demo/prepare"))
        yield server


@pytest.mark.parametrize(("way", "status"), [(Server.stop, 0), (Server.kill, -9)])
def test_guests_outlive_their_server_and_are_stopped_by_the_next(
    server: Server, way: "type[Server.stop]", status: int
) -> None:
    phone = Phone(server.port)
    shared = phone.start("demo", join="true")
    operator = Operator(server.url, server.token)
    other = operator.start("demo")
    operator.call("POST", f"/instances/{other['id']}/pause")
    visits = ask_guest(shared["port"], "/visits", b"")["visits"]

    assert way(server) == status
    require_right_checksums(shared["port"], CONTENT)
    with pytest.raises(OSError, match="refused"):
        phone.get("/services")
    server.start()

    assert Phone(server.port, "phone-2").start("demo", join="true") == shared
    assert ask_guest(shared["port"], "/visits", b"")["visits"] == visits + 1
    assert operator.instance(other["id"])["state"] == "paused"
    operator.call("POST", f"/instances/{other['id']}/resume")
    require_right_checksums(other["port"], CONTENT)
    phone.stop(shared["_id"])
    phone.stop(shared["_id"])
    assert operator.stop(other["id"])["state"] == "stopped"
    with pytest.raises(OSError, match="refused"):
        ask_guest(shared["port"], "/health")
    server.require_agreement()


def test_start_that_a_polite_end_interrupts_is_undone(server: Server) -> None:
    operator = Operator(server.url, server.token)
    with Phone(server.port).ask("/servicevm/start", serviceId="demo"):
        wait_until(
            lambda: (
                operator.get("/instances?state=requested")["items"]
                or operator.get("/instances?state=starting")["items"]
                or operator.get("/instances?state=running")["items"]
            ),
            30.0,
            server.log_text,
        )
        assert server.stop() == 0
    server.start()
    operator.stop_all()
    server.require_agreement()


def test_phone_that_waits_for_a_start_is_answered_when_the_server_ends(server: Server) -> None:
    operator = Operator(server.url, server.token)
    operator.add_service("slow", guest_image())
    phone = Phone(server.port)
    with phone.ask("/servicevm/start", serviceId="slow") as waiting:
        wait_until(
            lambda: operator.get("/instances?state=starting&service_id=slow")["items"],
            30.0,
            server.log_text,
        )
        assert server.stop() == 0
        waiting.settimeout(30.0)
        received = waiting.recv(1 << 16)
    assert received.startswith((b"HTTP/1.1 500 ", b"HTTP/1.1 200 ")), received
    server.start()
    operator.stop_all()
    server.require_agreement()
