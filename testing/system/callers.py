# SPDX-License-Identifier: Apache-2.0
"""Who calls a cloudlet: a phone with the old client, and an operator with the token.

Both are written from the contract alone and share no code with the server.
"""

import hashlib
import json
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

TIMEOUT_S = 150.0
PIECE_BYTES = 8 << 20
_FINAL = {"succeeded", "failed", "cancelled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:  # Any: whatever was sent.
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body, read as text."""
        return self.body.decode()


class Phone:
    """The old client: a connection per call, GET only, its own reading of HTTP/1.1."""

    def __init__(self, port: int, device_id: str = "phone-1") -> None:
        self._port = port
        self._device_id = device_id

    def get(self, path: str, **query: str) -> Answer:
        """Call `/api` + path and require what the old client cannot live without."""
        with self.ask(path, **query) as connection:
            answer = read_answer(connection)
        assert answer.headers["content-length"] == str(len(answer.body))
        assert "transfer-encoding" not in answer.headers
        assert "content-encoding" not in answer.headers
        return answer

    def ask(self, path: str, **query: str) -> socket.socket:
        """Send the call and return the connection; the caller reads, or walks away."""
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S)
        target = f"/api{path}" + (f"?{urlencode(query)}" if query else "")
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"X-Device-ID: {self._device_id}\r\nConnection: close\r\n\r\n".encode()
        )
        return connection

    def start(self, service_id: str, join: str = "false") -> dict[str, Any]:
        """Start or join a service VM and return its description."""
        answer = self.get("/servicevm/start", serviceId=service_id, join=join)
        assert answer.status == 200, answer.text
        described: dict[str, Any] = answer.json
        return described

    def stop(self, instance_id: str) -> None:
        """Give a service VM back."""
        answer = self.get("/servicevm/stop", instanceId=instance_id)
        assert (answer.status, answer.body) == (200, b"{}"), answer.text


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer up to the end of the connection."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), received[:200]
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Answer(status=int(status_line.split(" ")[1]), headers=headers, body=body)


class Operator:
    """Somebody with the administrator's token, or with another way to say who calls."""

    def __init__(self, url: str, token: str, headers: Mapping[str, str] | None = None) -> None:
        self._place = urlsplit(url).netloc
        self._headers = {"Authorization": f"Bearer {token}"} if headers is None else dict(headers)

    def call(
        self,
        method: str,
        path: str,
        content: Any = None,  # Any: bytes are sent as they are, the rest as JSON.
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request to `/api/v2` + path."""
        return self._send(method, f"/api/v2{path}", content, headers or {})

    def outside(self, path: str) -> Answer:
        """Get what is not part of `/api/v2`."""
        return self._send("GET", path, None, {})

    def _send(self, method: str, target: str, content: Any, headers: Mapping[str, str]) -> Answer:
        sent = {**self._headers, **headers}
        if content is not None and not isinstance(content, bytes):
            content = json.dumps(content).encode()
            sent = {"Content-Type": "application/json", **sent}
        with closing(HTTPConnection(self._place, timeout=TIMEOUT_S)) as connection:
            connection.request(method, target, content, sent)
            reply = connection.getresponse()
            return Answer(
                status=reply.status,
                headers={name.lower(): value for name, value in reply.getheaders()},
                body=reply.read(),
            )

    def get(self, path: str) -> Any:  # Any: JSON.
        """Return a resource that is there."""
        answer = self.call("GET", path)
        assert answer.status == 200, answer.text
        return answer.json

    # -- jobs ------------------------------------------------------------------------

    def job(self, answer: Answer) -> dict[str, Any]:
        """Return the end of the Job that was just asked for."""
        assert answer.status in {200, 202}, answer.text
        place = answer.headers.get("location") or f"/jobs/{answer.json['id']}"
        path = urlsplit(place).path.removeprefix("/api/v2")
        while True:
            job: dict[str, Any] = self.call("GET", path, headers={"Prefer": "wait=20"}).json
            if job["state"] in _FINAL:
                return job

    def done(self, answer: Answer) -> dict[str, Any]:
        """Return the Job that was just asked for, which has to succeed."""
        job = self.job(answer)
        assert job["state"] == "succeeded", job
        return job

    # -- services --------------------------------------------------------------------

    def upload(self, path: Path, *, name: str = "") -> str:
        """Send a file in pieces and return the id of the upload."""
        upload_id = self.announce(path.stat().st_size)
        with path.open("rb") as stream:
            offset = 0
            while piece := stream.read(PIECE_BYTES):
                answer = self.append(upload_id, offset, piece)
                assert answer.status == 204, answer.text
                offset += len(piece)
        return upload_id

    def announce(self, size_bytes: int) -> str:
        """Announce a file and return the id of the upload."""
        answer = self.call("POST", "/uploads", headers={"Upload-Length": str(size_bytes)})
        assert answer.status == 201, answer.text
        upload_id: str = answer.json["id"]
        return upload_id

    def append(self, upload_id: str, offset_bytes: int, piece: bytes) -> Answer:
        """Send one piece."""
        headers = {
            "Upload-Offset": str(offset_bytes),
            "Content-Type": "application/offset+octet-stream",
        }
        return self.call("PATCH", f"/uploads/{upload_id}", piece, headers=headers)

    def add_service(self, service_id: str, image: Path, **fields: Any) -> dict[str, Any]:
        """Add a Service from a disk image; returns the Job."""
        wanted = {
            "id": service_id,
            "port": 8080,
            "min_memory_mib": 128,
            "ideal_memory_mib": 160,
            "prepare": False,
            "upload_id": self.upload(image),
            **fields,
        }
        return self.done(self.call("POST", "/services", wanted))

    def start(self, service_id: str, **fields: Any) -> dict[str, Any]:
        """Start an Instance and return it when its service has answered."""
        answer = self.call("POST", "/instances", {"service_id": service_id, **fields})
        job = self.done(answer)
        return self.instance(job["result"]["instance_id"])

    def instance(self, instance_id: str) -> dict[str, Any]:
        """Return an Instance."""
        found: dict[str, Any] = self.get(f"/instances/{instance_id}")
        return found

    def stop(self, instance_id: str, mode: str = "at_once") -> dict[str, Any]:
        """Stop an Instance and return it."""
        self.done(self.call("DELETE", f"/instances/{instance_id}?mode={mode}"))
        return self.instance(instance_id)

    def stop_all(self) -> None:
        """Stop whatever runs, starts or is paused."""
        for state in ("requested", "starting", "running", "paused"):
            for found in self.get(f"/instances?state={state}&limit=200")["items"]:
                self.job(self.call("DELETE", f"/instances/{found['id']}"))


# -- what a service VM of the tests does ----------------------------------------------------


def ask_guest(
    port: int, path: str, content: bytes | None = None, *, timeout_s: float = 30.0
) -> dict[str, Any]:
    """Call the service of a test guest; raises OSError if it does not answer."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=timeout_s)) as connection:
        connection.request("GET" if content is None else "POST", path, content)
        reply = connection.getresponse()
        body: dict[str, Any] = json.loads(reply.read())
    assert reply.status == 200, body
    return body


def require_right_checksums(port: int, content: bytes) -> None:
    """Let a test guest work on content and compare its answer with our own."""
    answer = ask_guest(port, "/analyse", content)
    assert answer["sha256"] == hashlib.sha256(content).hexdigest()
    assert answer["md5"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert answer["size_bytes"] == len(content)
