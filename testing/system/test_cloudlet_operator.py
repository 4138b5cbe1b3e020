# SPDX-License-Identifier: Apache-2.0
"""An operator uses a real cloudlet through /api/v2: uploads, services, instances, removal."""

import hashlib
import itertools
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.guest import guest_image
from testing.system.callers import (
    Operator,
    Phone,
    ask_guest,
    require_right_checksums,
)
from testing.system.cloudlet import Server, running_server, wait_until

CONTENT = random.Random(11).randbytes(200_003)
PIECE_BYTES = 24 << 20
DEADLINE_S = 30.0
ODD_NAME = "a, b=c 'd' \"e\" <f> & %g é"
"""A directory whose name QEMU, XML and command lines like to take for something else."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet with a prepared Service, in a directory with a name full of traps."""
    folder = tmp_path_factory.mktemp("operator")
    with running_server(folder, {"data_dir": str(folder / ODD_NAME)}) as server:
        operator = Operator(server.url, server.token)
        operator.add_service("demo", guest_image())
        operator.done(operator.call("POST", "/services/demo/prepare"))
        yield server


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    """The operator; whatever a test leaves running is stopped and must leave nothing."""
    operator = Operator(server.url, server.token)
    yield operator
    operator.stop_all()
    server.require_agreement()


@pytest.fixture(scope="module")
def raw_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest as a raw disk."""
    raw = tmp_path_factory.mktemp("raw") / "guest.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(guest_image()), str(raw)],
        check=True,
        timeout=60,
    )
    return raw


def test_raw_disk_becomes_a_service_although_its_upload_was_cut(
    server: Server, operator: Operator, raw_image: Path
) -> None:
    content = raw_image.read_bytes()
    upload_id = operator.announce(len(content))
    assert operator.append(upload_id, 0, content[:PIECE_BYTES]).status == 204
    _begin_a_piece_and_hang_up(server, upload_id, content)
    offset = operator.get(f"/uploads/{upload_id}")["offset_bytes"]
    assert offset >= PIECE_BYTES
    assert operator.append(upload_id, offset + 1, b"later").status == 409
    while offset < len(content):
        offset = _continued(operator, upload_id, content, offset)

    undeclared = _addition(upload_id)
    refused = operator.job(operator.call("POST", "/services", undeclared))
    assert refused["error"]["code"] == "image_refused", refused
    operator.done(operator.call("POST", "/services", undeclared | {"format": "raw"}))

    require_right_checksums(operator.start("raw")["port"], CONTENT)
    assert operator.call("GET", f"/uploads/{upload_id}").status == 404


def _addition(upload_id: str) -> dict[str, object]:
    return {
        "id": "raw",
        "port": 8080,
        "min_memory_mib": 128,
        "ideal_memory_mib": 160,
        "prepare": False,
        "upload_id": upload_id,
    }


def _continued(operator: Operator, upload_id: str, content: bytes, offset: int) -> int:
    """Send the next piece, as soon as the server has given up the one before."""
    piece = content[offset : offset + PIECE_BYTES]
    answer = wait_until(
        lambda: (
            reply if (reply := operator.append(upload_id, offset, piece)).status == 204 else None
        ),
        DEADLINE_S,
        lambda: "the upload cannot be continued",
    )
    return int(answer.headers["upload-offset"])


def _begin_a_piece_and_hang_up(server: Server, upload_id: str, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"PATCH /api/v2/uploads/{upload_id} HTTP/1.1\r\nHost: cloudlet\r\n"
            f"Authorization: Bearer {server.token}\r\nTus-Resumable: 1.0.0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nUpload-Offset: {PIECE_BYTES}\r\n"
            f"Content-Length: {PIECE_BYTES}\r\n\r\n".encode()
        )
        connection.sendall(content[PIECE_BYTES : PIECE_BYTES + (5 << 20)])


def test_start_from_memory_tells_where_its_time_went(operator: Operator) -> None:
    instance = operator.start("demo")
    require_right_checksums(instance["port"], CONTENT)

    assert instance["start_method"] == "clone"
    phases = instance["timeline"]
    names = [phase["name"] for phase in phases]
    assert names[:2] == ["queue", "reserve"]
    assert names[-1] == "answer"
    assert len(names) == len(set(names)) > 4
    for before, after in itertools.pairwise(phases):
        end_ms = before["begin_ms"] + before["duration_ms"]
        assert after["begin_ms"] == pytest.approx(end_ms, abs=0.05)


def test_copies_of_one_memory_have_disks_and_ports_of_their_own(
    server: Server, operator: Operator
) -> None:
    first, second = operator.start("demo"), operator.start("demo")
    assert first["port"] != second["port"]
    visits = [ask_guest(first["port"], "/visits", b"")["visits"] for _ in range(3)]
    assert visits == [1, 2, 3]
    assert ask_guest(second["port"], "/visits", b"")["visits"] == 1

    operator.stop(first["id"])
    third = operator.start("demo")
    assert ask_guest(third["port"], "/visits", b"")["visits"] == 1
    assert _spoilt_content(server) == []


def test_cold_copies_are_boots_of_their_own(operator: Operator, server: Server) -> None:
    upload_id = operator.upload(guest_image())
    operator.done(operator.call("POST", "/services", _addition(upload_id) | {"id": "cold"}))
    first, second = operator.start("cold"), operator.start("cold")
    assert [first["start_method"], second["start_method"]] == ["cold", "cold"]
    assert ask_guest(first["port"], "/")["boot_id"] != ask_guest(second["port"], "/")["boot_id"]
    for instance in (first, second):
        assert ask_guest(instance["port"], "/visits", b"")["visits"] == 1
    assert _spoilt_content(server) == []


def _spoilt_content(server: Server) -> list[Path]:
    """Return the files of the content store that are no longer what their names say."""
    files = list((server.settings.data_dir / "blobs").glob("??/*"))
    assert files
    return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


def test_paused_guest_answers_again_when_it_is_resumed(operator: Operator) -> None:
    instance = operator.start("demo")
    paused = operator.call("POST", f"/instances/{instance['id']}/pause")
    assert (paused.status, paused.json["state"]) == (200, "paused")
    with pytest.raises(TimeoutError):
        ask_guest(instance["port"], "/health", timeout_s=1.0)

    resumed = operator.call("POST", f"/instances/{instance['id']}/resume")
    assert (resumed.status, resumed.json["state"]) == (200, "running")
    require_right_checksums(instance["port"], CONTENT)
    again = operator.call("POST", f"/instances/{instance['id']}/resume")
    assert again.status == 409


def test_guest_powers_off_by_itself_when_the_stop_is_graceful(
    server: Server, operator: Operator
) -> None:
    instance = operator.start("demo")
    serial = server.settings.data_dir / "instances" / instance["id"] / "serial.log"
    with serial.open("rb") as kept:
        stopped = operator.stop(instance["id"], mode="graceful")
        printed = kept.read().decode(errors="replace")
    assert stopped["state"] == "stopped"
    assert "power button, shutting down" in printed


def test_running_instances_keep_their_service_unless_told_otherwise(
    server: Server, operator: Operator
) -> None:
    operator.done(
        operator.call(
            "POST", "/services", _addition(operator.upload(guest_image())) | {"id": "short"}
        )
    )
    instance = operator.start("short")
    assert operator.call("DELETE", "/services/short").json["code"] == "service_in_use"
    assert ask_guest(instance["port"], "/health")

    operator.done(operator.call("DELETE", "/services/short?instances=stop"))
    assert operator.call("GET", "/services/short").status == 404
    assert operator.instance(instance["id"])["state"] == "stopped"
    phone = Phone(server.port).get("/servicevm/start", serviceId="short")
    assert phone.status == 400


def test_stranger_may_start_but_not_touch_what_belongs_to_others(
    server: Server, operator: Operator
) -> None:
    stranger = Operator(server.url, "", headers={"X-Device-ID": "stranger"})
    own = stranger.start("demo")
    foreign = operator.start("demo")
    assert [item["id"] for item in stranger.get("/instances")["items"]] == [own["id"]]
    assert stranger.call("DELETE", f"/instances/{foreign['id']}").status == 401
    assert stranger.call("DELETE", "/services/demo").status == 401
    wrong = Operator(server.url, "not-the-token")
    assert wrong.call("DELETE", f"/instances/{own['id']}").status == 401
    assert stranger.stop(own["id"])["state"] == "stopped"
    assert operator.instance(foreign["id"])["state"] == "running"
