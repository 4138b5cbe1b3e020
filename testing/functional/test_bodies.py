# SPDX-License-Identifier: Apache-2.0
"""Bodies on real sockets, of the real API on either server: what is taken, from whom, and where.

The servers run in this process, so that its open files tell what they keep on the disk.
"""

import contextlib
import json
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path

import pytest

from pycloud import api
from pycloud.cli import transfer
from pycloud.cli.api_client import Api
from pycloud.cli.output import Format, Printer
from pycloud.core.access import ADMIN
from pycloud.core.model.identifiers import UploadId
from pycloud.settings import Settings
from pycloud.web.bodies import MOST_JSON_BYTES
from pycloud.web.granian_server import GranianServer
from pycloud.web.receiving import BodyRules
from pycloud.web.serving import MOST_DROPPED_BYTES, bind, build_server, limits_of
from testing.stand import Stand, make_stand

DEADLINE_S = 30.0
MIB = 1 << 20
STRANGERS = 60
"""More than granian takes bodies from at once, from one address and in total."""
CONTENT = random.Random(3).randbytes(3 * MIB + 17)
SERVERS = ("waitress", "granian")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A cloudlet whose API is served on a port."""

    stand: Stand
    port: int
    bodies: Path

    def connect(self) -> socket.socket:
        """Return a connection."""
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)

    def ask(self, method: str, path: str, body: bytes, **headers: str) -> Answer:
        """Send a request with all of its body, whatever is answered meanwhile."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def kept_bytes(self) -> int:
        """Return how much of bodies is on the disk at present."""
        kept = 0
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(self.bodies) in str(entry.readlink()):
                    kept += entry.stat().st_size
        return kept

    def announced(self, size_bytes: int) -> str:
        """Return where an upload of this size may be sent to."""
        upload = self.stand.core.uploads.create("file", size_bytes, by=ADMIN)
        return f"/api/v2/uploads/{upload.id}"

    @property
    def authorization(self) -> str:
        """The header of an administrator."""
        return self.stand.admin["Authorization"]


@contextlib.contextmanager
def running(kind: str, folder: Path, **texts: str) -> Iterator[Served]:
    stand = make_stand(folder, **texts)
    application = api.make_app(stand.core, stand.settings)
    listener = bind("127.0.0.1", 0)
    server = (
        GranianServer(application, listener, stand.settings)
        if kind == "granian"
        else build_server(application, listener, limits_of(stand.settings))
    )
    bodies = folder / "bodies"
    bodies.mkdir()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(bodies))
            yield Served(stand=stand, port=int(server.effective_port), bodies=bodies)
    finally:
        server.stop()
        thread.join(timeout=DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """A cloudlet whose limits are those of the settings."""
    with running(request.param, tmp_path) as served:
        yield served


@pytest.fixture(params=SERVERS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """A cloudlet that takes small bodies only."""
    with running(request.param, tmp_path, max_body_mib="1") as served:
        yield served


def code_of(response: Answer) -> str:
    """Return the code of a problem, after a look at its form."""
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert problem["status"] == response.status
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["instance"].startswith("/api/v2/")
    return str(problem["code"])


# -- what is refused ---------------------------------------------------------------------------


def test_file_is_sent_in_pieces_that_the_server_takes(small: Served, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    client = Api(f"http://127.0.0.1:{small.port}", token=small.stand.token)
    upload_id = transfer.upload(client, path, Printer(Format.JSON))
    with small.stand.blobs.open_staged(UploadId(upload_id), "content") as stream:
        assert stream.read() == CONTENT


def test_piece_that_is_too_large_is_a_problem(small: Served) -> None:
    response = small.ask(
        "PATCH",
        small.announced(len(CONTENT)),
        CONTENT,
        Authorization=small.authorization,
        Upload_Offset="0",
        Content_Type="application/offset+octet-stream",
    )
    assert (response.status, code_of(response)) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/api/v2/services", 413, "body_too_large"),
        ("POST", "/api/v2/uploads", 413, "body_too_large"),
        ("GET", "/api/v2/services", 413, "body_too_large"),
        ("POST", "/api/v2/uploads/x", 413, "body_too_large"),
        ("PATCH", "/api/v2/uploads/x/y", 413, "body_too_large"),
        ("PATCH", "/api/v2/uploads/x", 401, "unauthenticated"),
        ("PATCH", "/api/v2/uploads/%78", 401, "unauthenticated"),
    ],
)
def test_large_body_of_a_stranger_is_refused(
    served: Served, method: str, path: str, status: int, code: str
) -> None:
    response = served.ask(method, path, CONTENT)
    assert (response.status, code_of(response)) == (status, code)


@pytest.mark.parametrize("token", ["Bearer wrong", "Basic abc", "Bearer"])
def test_large_piece_with_a_wrong_token_is_refused(served: Served, token: str) -> None:
    response = served.ask("PATCH", "/api/v2/uploads/x", CONTENT, Authorization=token)
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="pycloud"'
    assert (response.status, code_of(response)) == (401, "unauthenticated")


def test_large_body_with_the_token_is_refused_where_json_is_expected(served: Served) -> None:
    response = served.ask(
        "POST",
        "/api/v2/services",
        b" " * (MOST_JSON_BYTES + 1),
        Authorization=served.authorization,
        Content_Type="application/json",
    )
    assert (response.status, code_of(response)) == (413, "body_too_large")


def test_large_body_of_an_old_phone_is_refused_in_plain_text(served: Served) -> None:
    response = served.ask("GET", "/api/services", CONTENT)
    assert response.status == 413
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.body == b"the body may have at most 262144 bytes\n"


def test_body_in_chunks_is_refused_when_it_gets_too_large(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(
            b"POST /api/v2/services HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(1 + MOST_JSON_BYTES // 0x8000):
            sock.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_client_that_asks_before_it_sends_is_told_to_leave_it(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(
            b"POST /api/v2/services HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n"
            b"Content-Length: 99999999\r\n\r\n"
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_refused_body_is_not_taken_for_requests(served: Served) -> None:
    inner = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
    head = b"POST /api/v2/services HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n"
    body = inner * 10_000
    with served.connect() as sock:
        sock.sendall(head % len(body) + body)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_refused_body_that_never_ends_is_cut_off(served: Served) -> None:
    piece = b"x" * 65536
    with served.connect() as sock:
        sock.sendall(
            b"POST /api/v2/services HTTP/1.1\r\nHost: test\r\nContent-Length: 1099511627776\r\n\r\n"
        )
        # Buffers on the way hold a few more than the server reads.
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            sock.sendall(piece * (20 * MOST_DROPPED_BYTES // len(piece)))


# -- what is kept ------------------------------------------------------------------------------


def unfinished(*, chunked: bool, declared_bytes: int, sent_bytes: int) -> bytes:
    length = (
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % declared_bytes
        if chunked
        else b"Content-Length: %d\r\n\r\n" % declared_bytes
    )
    head = b"PATCH /api/v2/uploads/x HTTP/1.1\r\nHost: test\r\n"
    return head + length + b"x" * sent_bytes


@pytest.mark.parametrize(
    "sent",
    [
        unfinished(chunked=False, declared_bytes=60 * MIB, sent_bytes=MIB),
        unfinished(chunked=False, declared_bytes=MOST_JSON_BYTES, sent_bytes=MOST_JSON_BYTES - 1),
        unfinished(chunked=True, declared_bytes=60 * MIB, sent_bytes=MIB),
        unfinished(chunked=True, declared_bytes=60 * MIB, sent_bytes=MOST_JSON_BYTES - 9),
    ],
    ids=["large", "small", "large chunk", "small part of a chunk"],
)
def test_strangers_fill_no_disk_with_unfinished_bodies(served: Served, sent: bytes) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(served.connect()) for _ in range(STRANGERS)]
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.sendall(sent)
        assert served.ask("GET", "/healthz", b"").status == 200
        for _ in range(25):
            # Nothing tells when the server has read all that it will.
            time.sleep(0.02)
            assert served.kept_bytes() == 0


def test_piece_of_an_administrator_is_kept_on_the_disk(served: Served) -> None:
    path = served.announced(len(CONTENT))
    with served.connect() as sock:
        sock.sendall(
            f"PATCH {path} HTTP/1.1\r\nHost: test\r\nAuthorization: {served.authorization}\r\n"
            "Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\n"
            f"Content-Length: {len(CONTENT)}\r\n\r\n".encode()
        )
        sock.sendall(CONTENT[:-1])
        while served.kept_bytes() < MIB:
            pass
        sock.sendall(CONTENT[-1:])
        assert sock.recv(100).startswith(b"HTTP/1.1 204 ")


# -- a disk that fills up ------------------------------------------------------------------------


def send_piece(served: Served, content: bytes) -> Answer:
    return served.ask(
        "PATCH",
        served.announced(len(content)),
        content,
        Authorization=served.authorization,
        Upload_Offset="0",
        Content_Type="application/offset+octet-stream",
    )


def with_room_for(looks: int) -> Callable[..., bool]:
    """Stand for a disk that something else fills between two looks at it."""
    left = [looks]

    def has_room(_self: BodyRules, _wanted_bytes: int = 0) -> bool:
        left[0] -= 1
        return left[0] >= 0

    return has_room


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_piece_leaves_the_reserve_of_the_disk_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    monkeypatch.setattr(BodyRules, "has_room", with_room_for(looks))
    response = send_piece(served, CONTENT)
    assert (response.status, code_of(response)) == (507, "insufficient_storage")
    assert served.kept_bytes() == 0


def test_body_that_needs_no_disk_is_taken_when_there_is_none(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BodyRules, "has_room", with_room_for(0))
    assert send_piece(served, CONTENT[:MOST_JSON_BYTES]).status == 204


def test_room_is_what_the_disk_has_beyond_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usage = os.statvfs(tmp_path)
    free_bytes = usage.f_bavail * usage.f_frsize
    gate = None
    assert BodyRules(gate=gate, reserve_bytes=0).has_room(1)
    assert BodyRules(gate=gate, reserve_bytes=free_bytes // 2).has_room(1)
    assert not BodyRules(gate=gate, reserve_bytes=free_bytes // 2).has_room(free_bytes)
    assert not BodyRules(gate=gate, reserve_bytes=2 * free_bytes).has_room()


def test_servers_keep_the_reserve_of_uploads() -> None:
    assert limits_of(Settings()).reserve_bytes == 256 * MIB
