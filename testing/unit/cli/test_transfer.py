# SPDX-License-Identifier: Apache-2.0
"""Files in pieces: broken connections, answers that got lost, Ctrl-C, and checksums."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pycloud.cli import transfer
from pycloud.cli.api_client import Api, Refused, Unreachable
from pycloud.cli.failures import ExitCode, Failure, Quiet
from pycloud.cli.output import Format, Printer
from testing.http_transports import Reply, Script, a_problem, a_response

PIECE_BYTES = 8
CONTENT = bytes(range(30))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(transfer, "_LEAST_PIECE_BYTES", 2)
    monkeypatch.setattr(transfer, "_RETRY_PAUSE_S", 0)
    monkeypatch.setattr("pycloud.cli.api_client._RETRY_PAUSE_S", 0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(CONTENT)
    return path


class UploadServer:
    """Takes uploads as the Cloudlet API does; `trouble` comes before the next pieces."""

    def __init__(self) -> None:
        self.received = b""
        self.size_bytes = 0
        self.trouble: list[Reply | str] = []
        self.discarded = False
        self.pieces: list[int] = []
        self.largest_bytes = 1 << 30

    def answer(self, request: requests.PreparedRequest) -> Reply:
        match request.method:
            case "POST":
                self.size_bytes = int(request.headers["Upload-Length"])
                return a_response(201, self._upload())
            case "GET":
                return a_response(200, self._upload())
            case "DELETE":
                self.discarded = True
                return a_response(204, b"")
            case _:
                return self._append(request)

    def _append(self, request: requests.PreparedRequest) -> Reply:
        trouble = self.trouble.pop(0) if self.trouble else None
        if trouble is not None and trouble != "answer lost":
            return trouble
        piece = request.body
        assert isinstance(piece, bytes)
        if int(request.headers["Upload-Offset"]) != len(self.received):
            return a_problem(409, "offset_mismatch")
        if len(piece) > self.largest_bytes:
            return a_problem(413, "body_too_large")
        self.received += piece
        self.pieces.append(len(piece))
        if trouble == "answer lost":
            return requests.ConnectionError("reset")
        return a_response(204, b"", headers={"Upload-Offset": str(len(self.received))})

    def _upload(self) -> dict[str, object]:
        return {
            "id": "u1",
            "size_bytes": self.size_bytes,
            "offset_bytes": len(self.received),
        }


@pytest.fixture
def server() -> UploadServer:
    return UploadServer()


@pytest.fixture
def api(server: UploadServer) -> Iterator[Api]:
    return Api("http://192.0.2.1:1", transport=Script(answer=server.answer))


def send(api: Api, path: Path, resume: str | None = None) -> str:
    return transfer.upload(api, path, Printer(Format.TABLE), resume=resume)


def test_upload_arrives_in_pieces(api: Api, server: UploadServer, image: Path) -> None:
    upload_id = send(api, image)

    assert (upload_id, server.received, server.pieces) == ("u1", CONTENT, [8, 8, 8, 6])


def test_upload_goes_on_after_a_broken_connection(
    api: Api, server: UploadServer, image: Path
) -> None:
    server.trouble = [requests.ConnectionError("reset"), requests.exceptions.ReadTimeout()]

    send(api, image)

    assert server.received == CONTENT


def test_piece_whose_answer_was_lost_is_not_sent_twice(
    api: Api, server: UploadServer, image: Path
) -> None:
    server.trouble = ["answer lost"]

    send(api, image)

    assert (server.received, server.pieces) == (CONTENT, [8, 8, 8, 6])


def test_pieces_get_smaller_when_the_server_takes_no_larger_ones(
    api: Api, server: UploadServer, image: Path
) -> None:
    server.largest_bytes = 4

    send(api, image)

    assert server.received == CONTENT
    assert set(server.pieces) == {4, 2}


def test_lasting_loss_of_the_connection_keeps_the_upload_and_says_how_to_go_on(
    api: Api, server: UploadServer, image: Path
) -> None:
    server.trouble = [requests.ConnectionError("reset")] * 50

    with pytest.raises(Unreachable) as caught:
        send(api, image)

    assert "--resume u1" in caught.value.advice
    assert not server.discarded


def test_resumed_upload_begins_where_it_broke_off(
    api: Api, server: UploadServer, image: Path
) -> None:
    server.received, server.size_bytes = CONTENT[:11], len(CONTENT)

    send(api, image, resume="u1")

    assert (server.received, server.pieces) == (CONTENT, [8, 8, 3])


def test_another_file_cannot_go_on_with_an_upload(
    api: Api, server: UploadServer, image: Path
) -> None:
    server.size_bytes = 999

    with pytest.raises(Failure, match="999 bytes") as caught:
        send(api, image, resume="u1")

    assert caught.value.exit_code == ExitCode.CONFLICT


def test_interrupt_discards_what_was_sent(api: Api, server: UploadServer, image: Path) -> None:
    server.trouble = [KeyboardInterrupt]

    with pytest.raises(Quiet) as caught:
        send(api, image)

    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert server.discarded


def test_refused_piece_ends_the_upload(api: Api, server: UploadServer, image: Path) -> None:
    server.trouble = [a_problem(507, "insufficient_storage")]

    with pytest.raises(Refused):
        send(api, image)


@pytest.mark.parametrize("content", [b"", None])
def test_file_without_content_is_refused_before_anything_is_sent(
    api: Api, server: UploadServer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "disk.qcow2"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(Failure):
        send(api, path)

    assert server.size_bytes == 0


def test_upload_is_discarded_when_nothing_can_be_made_of_it(api: Api, server: UploadServer) -> None:
    with pytest.raises(Refused), transfer.using(api, "u1"):
        raise Refused("no", status=422, code="invalid_input")

    assert server.discarded


def fetch(content: bytes, target: Path, *, sha256: str) -> None:
    script = Script(replies=[a_response(200, content)])
    api = Api("http://192.0.2.1:1", transport=script)
    description = {"size_bytes": len(content), "sha256": sha256}
    transfer.download(api, "/x/content", target, description, Printer(Format.TABLE))


def test_download_writes_the_file(tmp_path: Path) -> None:
    target = tmp_path / "out.csvm"

    fetch(CONTENT, target, sha256=hashlib.sha256(CONTENT).hexdigest())

    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["out.csvm"]


def test_download_with_a_wrong_checksum_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.csvm"
    target.write_bytes(b"old")

    with pytest.raises(Failure, match="checksum"):
        fetch(CONTENT, target, sha256="0" * 64)

    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csvm"]


def test_download_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot write"):
        fetch(CONTENT, tmp_path / "no" / "out.csvm", sha256="0" * 64)
