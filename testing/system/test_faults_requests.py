# SPDX-License-Identifier: Apache-2.0
"""Requests that are broken, hostile or far too large, against a real server."""

import base64
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.system.callers import Operator, Phone, read_answer
from testing.system.cloudlet import Server, running_server, wait_until

MIB = 1 << 20
MAX_BODY_MIB = 2
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cloudlet that takes small bodies."""
    settings = {"hypervisor": "fake:", "max_body_mib": str(MAX_BODY_MIB)}
    with running_server(tmp_path_factory.mktemp("requests"), settings) as server:
        yield server


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    """The operator; afterwards the server is as it was, and has nothing to be ashamed of."""
    outside = set(server.folder.iterdir())
    yield Operator(server.url, server.token)
    assert server.is_running()
    assert Phone(server.port).get("/services").json == {"services": []}
    assert server.log("request_failed") == []
    assert server.log("job_crashed") == []
    assert set(server.folder.iterdir()) == outside
    bodies = server.settings.data_dir / "bodies"
    wait_until(lambda: not list(bodies.iterdir()), DEADLINE_S, lambda: "bodies are kept")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_request"),
        (b"\xff\xfe", 400, "malformed_request"),
        (b'{"id":' + b"[" * 100_000, 400, "malformed_request"),
        (b"[" * 100_000 + b"]" * 100_000, 400, "malformed_request"),
        (b'{"id": 5, "port": "80", "upload_id": null}', 422, "invalid_input"),
        (b'{"id": "../up", "port": 80, "upload_id": "x"}', 422, "invalid_input"),
        (b'{"id": "a", "port": 1e400, "upload_id": "x"}', 422, "invalid_input"),
        (b'{"id": "a", "port": 80, "upload_id": "nothing"}', 404, "not_found"),
        (b'{"id": "' + b"a" * (3 * MIB // 2) + b'"}', 413, "body_too_large"),
    ],
)
def test_bad_body_is_refused_with_its_code(
    operator: Operator, body: bytes, status: int, code: str
) -> None:
    answer = operator.call("POST", "/services", body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_body_that_is_announced_too_large_is_not_waited_for(
    server: Server, operator: Operator
) -> None:
    del operator
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as connection:
        connection.sendall(
            b"POST /api/v2/services HTTP/1.1\r\nHost: cloudlet\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1099511627776\r\n\r\n"
        )
        assert read_answer(connection).status == 413


def test_body_in_chunks_without_an_end_is_cut_off(server: Server, operator: Operator) -> None:
    del operator
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as connection:
        connection.sendall(
            b"POST /api/v2/services HTTP/1.1\r\nHost: cloudlet\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            connection.sendall(chunk * (1 + 20 * MAX_BODY_MIB * MIB // len(chunk)))


@pytest.mark.parametrize(
    "path",
    [
        "/uploads/..%2f..%2fadmin.token",
        "/uploads/%2e%2e",
        "/packages/..%2fadmin.token/content",
        "/apps/%00/content",
        "/services/%c0%ae%c0%ae",
        "/instances/" + "a" * 5000,
        "/jobs/%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_path_out_of_the_store_leads_nowhere(operator: Operator, path: str) -> None:
    answer = operator.call("GET", path)
    assert answer.status in {400, 404}
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["../../../escaped.apk", "/etc/passwd", "a\r\nb", "x" * 2000, ""])
def test_file_name_of_an_upload_never_becomes_a_path(operator: Operator, name: str) -> None:
    encoded = base64.b64encode(name.encode()).decode()
    headers = {"Upload-Length": "4", "Upload-Metadata": f"filename {encoded}"}
    answer = operator.call("POST", "/uploads", headers=headers)
    assert answer.status == 201, answer.text
    kept = answer.json["file_name"]
    assert "/" not in kept
    assert kept.isprintable()
    assert operator.append(answer.json["id"], 0, b"once").status == 204
    assert operator.call("DELETE", f"/uploads/{answer.json['id']}").status == 204


@pytest.mark.parametrize("content", [b"not a disk at all", b"QFI\xfb" + bytes(2000), bytes(4096)])
def test_upload_that_is_no_image_becomes_no_service(
    operator: Operator, content: bytes, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    upload_id = operator.upload(image)
    wanted = {"id": "bad", "port": 80, "upload_id": upload_id, "prepare": False}
    job = operator.job(operator.call("POST", "/services", wanted))
    assert (job["state"], job["error"]["code"]) == ("failed", "image_refused"), job
    job = operator.job(operator.call("POST", "/imports", {"upload_id": upload_id}))
    assert (job["state"], job["error"]["code"]) == ("failed", "package_refused"), job
    assert operator.call("DELETE", f"/uploads/{upload_id}").status == 204


def test_noise_on_the_port_is_survived(server: Server, operator: Operator) -> None:
    del operator
    source = random.Random(17)
    noises = [source.randbytes(length) for length in (1, 100, 5000, 100_000)]
    noises += [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(300),
        b"POST /api/v2/uploads HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\x00\xff?%zz HTTP/1.1\r\nHost: \xff\r\nX-Device-ID: \xff\r\n\r\n",
    ]
    for noise in noises:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as connection:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
