# SPDX-License-Identifier: Apache-2.0
"""Guests that panic, are late, never answer or are killed, and hosts without room or ports."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycloud.core.machines import domain_id_of
from pycloud.core.model.identifiers import InstanceId
from testing.guest import GuestVariant, guest_image
from testing.system.callers import Operator, Phone, require_right_checksums
from testing.system.cloudlet import Server, running_server, wait_until

CONTENT = b"still here\n" * 999
SHORT_S = 8
"""Long enough for a guest to print something, too short for a service that never comes."""
ROUNDS_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with few ports and little room, and a Service of every kind of guest."""
    with running_server(tmp_path_factory.mktemp("guests"), {"max_instances": "3"}) as server:
        operator = Operator(server.url, server.token)
        operator.add_service("demo", guest_image())
        operator.done(operator.call("POST", "/services/demo/prepare"))
        for variant in (GuestVariant.PANIC, GuestVariant.LATE):
            operator.add_service(str(variant), guest_image(variant))
        yield server


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    """The operator; whatever a test leaves running is stopped and must leave nothing."""
    operator = Operator(server.url, server.token)
    yield operator
    operator.stop_all()
    server.require_agreement()


def failed_start(operator: Operator, service_id: str) -> dict[str, Any]:
    """Start a Service that cannot start and return the Instance."""
    answer = operator.call("POST", "/instances", {"service_id": service_id})
    job = operator.job(answer)
    assert job["state"] == "failed", job
    instance = operator.instance(answer.json["instance"]["id"])
    assert instance["state"] == "failed"
    assert instance["failure"] == job["error"]
    assert instance["ports"] == []
    return instance


def serial_of(operator: Operator, instance: dict[str, Any]) -> str:
    """Return what is kept of the serial output."""
    answer = operator.call("GET", f"/instances/{instance['id']}/serial")
    assert answer.status == 200
    return answer.text


def test_panic_fails_the_start_and_its_last_words_are_kept(
    server: Server, operator: Operator
) -> None:
    instance = failed_start(operator, "panic")
    assert instance["failure"]["code"] == "guest_failed"
    assert "panic" in serial_of(operator, instance)
    server.require_agreement()


def test_start_ends_at_its_deadline_when_the_service_never_answers(tmp_path: Path) -> None:
    with running_server(tmp_path, {"start_timeout_s": str(SHORT_S)}) as server:
        operator = Operator(server.url, server.token)
        operator.add_service("never", guest_image(GuestVariant.NEVER))
        answer = Phone(server.port).get("/servicevm/start", serviceId="never")
        assert answer.status == 500
        assert answer.headers["content-type"].startswith("text/plain")
        assert f"{SHORT_S} s" in answer.text
        (instance,) = operator.get("/instances?state=failed")["items"]
        assert instance["failure"]["code"] == "service_not_ready"
        assert serial_of(operator, instance).strip()
        server.require_agreement()


def test_start_waits_for_a_service_that_comes_late(operator: Operator) -> None:
    instance = operator.start("late")
    require_right_checksums(instance["port"], CONTENT)
    by_name = {phase["name"]: phase for phase in instance["timeline"]}
    assert by_name["answer"]["duration_ms"] > 5000


def test_instance_fails_when_its_emulator_is_killed(server: Server, operator: Operator) -> None:
    instance = operator.start("demo")
    os.kill(emulator_of(instance["id"]), signal.SIGKILL)
    ended = wait_until(
        lambda: (
            found if (found := operator.instance(instance["id"]))["state"] == "failed" else None
        ),
        ROUNDS_S,
        lambda: str(operator.instance(instance["id"])),
    )
    assert ended["failure"]["code"] == "guest_ended"
    assert (ended["ports"], ended["users"]) == ([], 0)
    Phone(server.port).stop(instance["id"])
    server.require_agreement()


def emulator_of(instance_id: str) -> int:
    """Return the process of an Instance's emulator, found by the domain id in its arguments."""
    domain_id = domain_id_of(InstanceId(instance_id)).encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = entry.read_bytes().split(b"\0")
            if b"qemu-system" in arguments[0] and domain_id in arguments:
                return int(entry.parent.name)
    raise AssertionError("there is no emulator")


def test_start_beyond_the_limit_is_refused_and_works_when_there_is_room(
    server: Server, operator: Operator
) -> None:
    running = [operator.start("demo") for _ in range(3)]
    instance = failed_start(operator, "demo")
    assert instance["failure"]["code"] == "capacity_exceeded"
    assert "pycloud.max_instances" in instance["failure"]["message"]
    refused = Phone(server.port).get("/servicevm/start", serviceId="demo")
    assert refused.status == 500
    assert "instances are in use" in refused.text

    operator.stop(running[0]["id"])
    require_right_checksums(operator.start("demo")["port"], CONTENT)


def test_start_that_needs_more_memory_than_there_is_is_refused(operator: Operator) -> None:
    operator.add_service("vast", guest_image(), ideal_memory_mib=900_000)
    instance = failed_start(operator, "vast")
    assert instance["failure"]["code"] == "capacity_exceeded"
    assert "900000 MiB" in instance["failure"]["message"]
    assert "clone" not in str(instance["timeline"])


def test_start_takes_another_port_when_a_program_holds_one(tmp_path: Path, server: Server) -> None:
    low, _ = server.settings.port_range
    narrow = {"port_range": f"{low}-{low + 1}"}
    # A second server on the same Host has leases of its own and must not trust them alone.
    with running_server(tmp_path, narrow) as second, _taken(range(low, low + 1)):
        operator = Operator(second.url, second.token)
        operator.add_service("demo", guest_image())
        instance = operator.start("demo")
        assert instance["port"] == low + 1
        require_right_checksums(instance["port"], CONTENT)

        refused = failed_start(operator, "demo")
        assert refused["failure"]["code"] == "no_free_port"
        assert "pycloud.port_range" in refused["failure"]["message"]
        operator.stop(instance["id"])
        second.require_agreement()


@contextlib.contextmanager
def _taken(ports: range) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
        yield
