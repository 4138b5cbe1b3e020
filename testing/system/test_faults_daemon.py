# SPDX-License-Identifier: Apache-2.0
"""A cloudlet whose libvirt daemon dies, or is not there at all."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.guest import guest_image
from testing.system.callers import Operator, Phone, require_right_checksums
from testing.system.cloudlet import Server, running_server, wait_until
from testing.system.own_daemon import daemon_of, own_daemon, server_on

CONTENT = b"no daemon needed\n" * 500
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def runtime_dir() -> Iterator[Path]:
    """Where the daemon of these tests, and of no others, has its socket and its process id."""
    with own_daemon() as directory:
        yield directory


@pytest.fixture(scope="module")
def server(runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with a daemon of its own and a prepared Service."""
    with server_on(runtime_dir, tmp_path_factory.mktemp("daemon")) as server:
        operator = Operator(server.url, server.token)
        operator.add_service("demo", guest_image())
        operator.done(operator.call("POST", "/services/demo/prepare"))
        yield server


def test_guests_live_on_and_starts_go_on_when_the_daemon_dies(
    server: Server, runtime_dir: Path
) -> None:
    operator = Operator(server.url, server.token)
    before = operator.start("demo")
    os.kill(daemon_of(runtime_dir), signal.SIGKILL)
    require_right_checksums(before["port"], CONTENT)

    after = operator.start("demo")
    require_right_checksums(after["port"], CONTENT)
    assert operator.instance(before["id"])["state"] == "running"
    assert operator.stop(before["id"])["state"] == "stopped"
    assert operator.stop(after["id"])["state"] == "stopped"
    server.require_agreement()


def test_start_ends_one_way_or_the_other_when_the_daemon_dies_in_it(
    server: Server, runtime_dir: Path
) -> None:
    operator = Operator(server.url, server.token)
    answer = operator.call("POST", "/instances", {"service_id": "demo"})
    wait_until(
        lambda: operator.get(f"/jobs/{answer.json['job']['id']}")["stage"] == "boot",
        DEADLINE_S,
        server.log_text,
    )
    os.kill(daemon_of(runtime_dir), signal.SIGKILL)
    job = operator.job(answer)
    instance = operator.instance(answer.json["instance"]["id"])
    if job["state"] == "succeeded":
        require_right_checksums(instance["port"], CONTENT)
    else:
        assert job["error"]["code"] == "hypervisor_unavailable"
        assert instance["state"] == "failed"
    operator.stop_all()
    server.require_agreement()


@pytest.fixture
def cut_off(tmp_path: Path) -> Iterator[Server]:
    """A cloudlet with a Service, whose libvirt went away for good before it was started again."""
    with running_server(tmp_path, {"hypervisor": "fake:"}) as server:
        Operator(server.url, server.token).add_service("demo", guest_image())
        server.stop()
        server.texts["hypervisor"] = "qemu+unix:///session?socket=/nonexistent/libvirt-sock"
        server.start()
        yield server
        server.stop()
        server.texts["hypervisor"] = "fake:"


def test_cloudlet_without_libvirt_says_so_and_does_what_it_can(cut_off: Server) -> None:
    operator = Operator(cut_off.url, cut_off.token)
    assert [item["id"] for item in operator.get("/services")["items"]] == ["demo"]
    assert operator.get("/system")["hypervisor"] is None
    ready = operator.outside("/readyz")
    assert ready.status == 503
    assert [check["name"] for check in ready.json["checks"] if not check["ok"]] == ["hypervisor"]

    answer = operator.call("POST", "/instances", {"service_id": "demo"})
    job = operator.job(answer)
    assert (job["state"], job["error"]["code"]) == ("failed", "hypervisor_unavailable")
    assert operator.instance(answer.json["instance"]["id"])["state"] == "failed"
    phone = Phone(cut_off.port).get("/servicevm/start", serviceId="demo")
    assert phone.status == 500
    assert phone.headers["content-type"].startswith("text/plain")
    assert operator.get("/system")["host"]["instances"] == 0
