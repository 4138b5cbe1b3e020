# SPDX-License-Identifier: Apache-2.0
"""A cloudlet whose disk fills up in the middle of things, and clients that stop in the middle."""

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.guest import guest_image
from testing.old_packages import OLD_DESCRIPTION, old_package
from testing.system.callers import Operator
from testing.system.cloudlet import Server, running_server, wait_until
from testing.system.full_disk import full_disk
from testing.system.own_mounts import small_disk, wrapper

KIB, MIB = 1 << 10, 1 << 20
DISK_MIB = 360
FILE = random.Random(5).randbytes(12 * MIB)
PIECE_BYTES = 4 * MIB
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet on a small disk of its own."""
    folder = tmp_path_factory.mktemp("storage")
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    own = wrapper(small_disk(data_dir, DISK_MIB))
    with running_server(folder, {"hypervisor": "fake:"}, wrapper=own) as server:
        yield server


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    """The operator; afterwards nothing but finished content may be on the disk."""
    operator = Operator(server.url, server.token)
    yield operator
    for upload in operator.get("/uploads?limit=200")["items"]:
        assert operator.call("DELETE", f"/uploads/{upload['id']}").status == 204
    wait_until(lambda: leftovers(server) == [], DEADLINE_S, lambda: str(leftovers(server)))


def leftovers(server: Server) -> list[Path]:
    """Return what lies in the folders of a data directory, finished content aside."""
    data_dir = server.seen(server.settings.data_dir)
    folders = [path for path in data_dir.iterdir() if path.is_dir() and path.name != "blobs"]
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("piece_bytes", "room_bytes"), [(8 * MIB, 2 * MIB), (400 * KIB, 200 * KIB)]
)
def test_upload_goes_on_after_the_disk_was_full_in_its_middle(
    server: Server, operator: Operator, piece_bytes: int, room_bytes: int
) -> None:
    # A large piece lies on the disk twice for a moment: as the body of the request and in its
    # place in the upload. The first of these cases fails at the one, the second, whose body is
    # kept in memory, at the other.
    upload_id = operator.announce(len(FILE))
    assert operator.append(upload_id, 0, FILE[:PIECE_BYTES]).status == 204
    with full_disk(server, but_bytes=room_bytes):
        refused = operator.append(
            upload_id, PIECE_BYTES, FILE[PIECE_BYTES : PIECE_BYTES + piece_bytes]
        )
        assert refused.status == 507, refused.text
        assert refused.json["code"] == "insufficient_storage"
        assert operator.get("/services") is not None
    offset = operator.get(f"/uploads/{upload_id}")["offset_bytes"]
    assert PIECE_BYTES <= offset < len(FILE)

    answer = operator.append(upload_id, offset, FILE[offset:])
    assert answer.headers["upload-offset"] == str(len(FILE))


def test_file_that_cannot_fit_is_refused_when_it_is_announced(operator: Operator) -> None:
    answer = operator.call("POST", "/uploads", headers={"Upload-Length": str(DISK_MIB * MIB)})
    assert (answer.status, answer.json["code"]) == (507, "insufficient_storage")


def test_add_can_be_tried_again_after_the_disk_was_full_in_its_middle(
    server: Server, operator: Operator
) -> None:
    wanted = {"id": "added", "port": 8080, "upload_id": operator.upload(guest_image())}
    with full_disk(server, but_bytes=6 * MIB):
        failed = operator.job(operator.call("POST", "/services", wanted))
        assert (failed["state"], failed["stage"]) == ("failed", "normalise")
        assert failed["error"]["code"] == "insufficient_storage", failed
        assert operator.call("GET", "/services/added").status == 404
    operator.done(operator.call("POST", "/services", wanted | {"prepare": False}))


def test_import_can_be_tried_again_after_the_disk_was_full_in_its_middle(
    server: Server, operator: Operator, tmp_path: Path
) -> None:
    package = tmp_path / "speech.csvm"
    package.write_bytes(old_package(OLD_DESCRIPTION, disk=guest_image().read_bytes()))
    wanted = {"upload_id": operator.upload(package), "prepare": False}
    with full_disk(server, but_bytes=6 * MIB):
        failed = operator.job(operator.call("POST", "/imports", wanted))
        assert (failed["state"], failed["stage"]) == ("failed", "unpack")
        assert failed["error"]["code"] == "insufficient_storage", failed
    operator.done(operator.call("POST", "/imports", wanted))
    assert operator.get("/services/speech")["port"] == 10191


def test_server_answers_and_recovers_when_not_a_byte_is_left(
    server: Server, operator: Operator
) -> None:
    upload_id = operator.announce(len(FILE))
    with full_disk(server, but_bytes=0):
        assert operator.get("/services") is not None
        assert operator.outside("/healthz").status == 200
        assert operator.append(upload_id, 0, FILE[:PIECE_BYTES]).status in {503, 507}
        assert server.is_running()
    assert operator.append(upload_id, 0, FILE[:PIECE_BYTES]).status == 204


def test_upload_keeps_what_had_arrived_when_its_client_goes_away(
    server: Server, operator: Operator
) -> None:
    upload_id = operator.announce(len(FILE))
    assert operator.append(upload_id, 0, FILE[:PIECE_BYTES]).status == 204
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"PATCH /api/v2/uploads/{upload_id} HTTP/1.1\r\nHost: cloudlet\r\n"
            f"Authorization: Bearer {server.token}\r\nUpload-Offset: {PIECE_BYTES}\r\n"
            f"Content-Type: application/offset+octet-stream\r\n"
            f"Content-Length: {len(FILE)}\r\n\r\n".encode()
        )
        connection.sendall(FILE[: 2 * MIB])
    wait_until(
        lambda: not list(server.seen(server.settings.data_dir / "bodies").iterdir()),
        DEADLINE_S,
        lambda: "what the client began to send is still kept",
    )
    assert operator.get(f"/uploads/{upload_id}")["offset_bytes"] == PIECE_BYTES
    rest = operator.append(upload_id, PIECE_BYTES, FILE[PIECE_BYTES:])
    assert rest.status == 204
