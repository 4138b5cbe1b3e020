# SPDX-License-Identifier: Apache-2.0
"""The Cloudlet API under granian: as a real process, and against clients that mean no good."""

import contextlib
import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from pycloud.errors import InvalidSettings
from pycloud.settings import Settings, from_mapping
from pycloud.web import granian_server
from pycloud.web.connection_watch import ConnectionWatch, WatchLimits
from pycloud.web.granian_server import SLOW_PLACES_PER_ADDRESS, GranianServer
from pycloud.web.serving import WAIT_PLACES, bind
from pycloud.web.waiting import ENVIRON_KEY

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
HEAD = b"GET / HTTP/1.1\r\nHost: test\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\n"


def application(environ, start_response):
    """Answer with the length of the body, or with endless pieces."""
    if environ["PATH_INFO"] == "/endless":
        start_response("200 OK", [("Content-Length", str(1 << 40))])
        return (b"x" * 65536 for _ in range(1 << 24))
    body = str(len(environ["wsgi.input"].read())).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def settings_with(**values: str) -> Settings:
    return from_mapping({f"pycloud.{name}": value for name, value in values.items()}).settings


@contextlib.contextmanager
def running(app: Callable = application, **values: str) -> Iterator[GranianServer]:
    server = GranianServer(app, bind("127.0.0.1", 0), settings_with(**values))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(timeout=DEADLINE_S)
        assert not thread.is_alive()


def connect(server: GranianServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.effective_port)), DEADLINE_S)


def get(server: GranianServer) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.effective_port), DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read()


def exchange(server: GranianServer, sent: bytes) -> bytes:
    """Send, and return the answer up to the end of its head."""
    with connect(server) as sock:
        sock.sendall(sent)
        return head_from(sock)


def head_from(sock: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer and (piece := sock.recv(4096)):
        answer += piece
    return answer


def was_closed(sock: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            pass
    return True


def environment(directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYCLOUD_DATA_DIR": str(directory),
        "PYCLOUD_HYPERVISOR": "fake:",
        "PYCLOUD_DISCOVERY": "off",
        "PYCLOUD_API_HOST": "127.0.0.1",
        "PYCLOUD_API_PORT": "0",
        "PYCLOUD_MANAGER_PORT": "0",
        "PYCLOUD_WSGI_SERVER": "granian",
        "PYTHONWARNINGS": "ignore",
    }


@contextlib.contextmanager
def pycloud_serve(directory: Path) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """Run both apps; yields the process and the URL of each app as its log says."""
    argv = [str(Path(sys.executable).with_name("pycloud")), "serve"]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment(directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            urls: dict[str, str] = {}
            while len(urls) < 2:
                line = process.stderr.readline()
                assert line, "the server ended early"
                if found := re.search(r"server_listening app=(\w+) url=(\S+)", line):
                    urls[found[1]] = found[2]
            yield process, urls
        finally:
            process.kill()


# -- the real thing --------------------------------------------------------------------------


def test_api_answers_old_phones_under_granian(tmp_path: Path) -> None:
    with pycloud_serve(tmp_path) as (_, urls):
        answer = requests.get(urls["api"] + "/api/services", timeout=DEADLINE_S)
    assert answer.headers["Server"] == "granian"
    assert answer.content == b'{"services":[]}'
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert "Transfer-Encoding" not in answer.headers


def test_manager_stays_on_waitress(tmp_path: Path) -> None:
    with pycloud_serve(tmp_path) as (_, urls):
        page = requests.get(urls["manager"], timeout=DEADLINE_S)
    assert page.status_code == 200
    assert page.headers.get("Server") != "granian"


def test_posted_json_reaches_the_api_under_granian(tmp_path: Path) -> None:
    with pycloud_serve(tmp_path) as (_, urls):
        answer = requests.post(
            urls["api"] + "/api/v2/instances",
            json={"service_id": "nowhere"},
            timeout=DEADLINE_S,
        )
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_cleanly_under_granian(tmp_path: Path, number: int) -> None:
    with pycloud_serve(tmp_path) as (process, urls):
        requests.get(urls["api"] + "/healthz", timeout=DEADLINE_S)
        process.send_signal(number)
        ended = process.wait(timeout=DEADLINE_S)
    assert ended == 0


def test_process_ends_cleanly_while_clients_are_slow(tmp_path: Path) -> None:
    with pycloud_serve(tmp_path) as (process, urls):
        port = int(urls["api"].rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for sent in (b"", HEAD, HEAD + b"\r\n", POST + b"Content-Length: 9\r\n\r\nx"):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                sock.sendall(sent)
            process.terminate()
            ended = process.wait(timeout=DEADLINE_S)
    assert ended == 0


def test_pserve_refuses_granian(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("pserve")), "development_api.ini"],
        check=False,
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode != 0
    assert "pycloud serve" in done.stderr


def test_missing_granian_is_said_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "granian", None)
    with bind("127.0.0.1", 0) as listener, pytest.raises(InvalidSettings) as caught:
        GranianServer(application, listener, settings_with())
    assert f"-m pip install '{granian_server.REQUIREMENT}'" in str(caught.value)


# -- bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [1, 100_000, 2_000_000])
def test_body_arrives_whole(size_bytes: int) -> None:
    with running() as server:
        answer = exchange(
            server, POST + f"Content-Length: {size_bytes}\r\n\r\n".encode() + b"x" * size_bytes
        )
    assert answer.endswith(str(size_bytes).encode())


def test_body_in_chunks_arrives_whole() -> None:
    chunks = b"5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n"
    with running() as server:
        answer = exchange(server, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert answer.endswith(b"8")


def test_large_body_is_refused() -> None:
    with running(max_body_mib="1") as server:
        answer = exchange(server, POST + b"Content-Length: 1048577\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in answer


def test_large_body_in_chunks_is_refused() -> None:
    chunk = b"80000\r\n" + b"x" * 0x80000 + b"\r\n"
    with running(max_body_mib="1") as server:
        answer = exchange(server, POST + b"Transfer-Encoding: chunked\r\n\r\n" + 3 * chunk)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_large_head_is_refused() -> None:
    with running() as server:
        answer = exchange(server, HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_body_that_stalls_is_cut_off() -> None:
    with running() as server, connect(server) as sock:
        watch = ConnectionWatch(
            int(server.effective_port),
            WatchLimits(connections=10, connections_per_address=10, patience_s=5),
        )
        sock.sendall(POST + b"Content-Length: 10000\r\n\r\nabc")
        now_s = time.monotonic()
        # It is counted from the first time that the watch sees it, after it was accepted.
        while not watch.sweep(now_s):
            now_s += 6
        assert was_closed(sock)


# -- nobody starves ---------------------------------------------------------------------------


def test_clients_that_drip_heads_do_not_starve_others() -> None:
    with (
        running(connection_limit="400", connections_per_address="400") as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(300):
            stack.enter_context(connect(server)).sendall(HEAD + b"X-Slow: ")
        answers = [get(server) for _ in range(20)]
    assert answers == [b"0"] * 20


def test_head_that_drips_is_cut_off_at_its_deadline() -> None:
    with running(request_head_timeout_s="0.4") as server, connect(server) as sock:
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    sock.sendall(b"x")

        dripper = threading.Thread(target=drip)
        dripper.start()
        closed = was_closed(sock)
        stop.set()
        dripper.join()
    assert closed


def test_connection_that_idles_is_cut_off_at_the_deadline_for_heads() -> None:
    with running(request_head_timeout_s="0.4") as server, connect(server) as sock:
        sock.sendall(HEAD + b"\r\n")
        assert head_from(sock).endswith(b"0")
        assert was_closed(sock)


def test_stalled_bodies_leave_the_threads_to_others() -> None:
    with running() as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server)) for _ in range(SLOW_PLACES_PER_ADDRESS + 1)]
        for sock in socks:
            sock.sendall(POST + b"Content-Length: 10\r\n\r\n")
        # All but one hold a place; which one comes last is up to the server.
        answered, _, _ = select.select(socks, [], [], DEADLINE_S)
        refused = head_from(answered[0])
        answer = get(server)
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after" in refused
    assert answer == b"0"


def test_readers_that_stall_leave_the_threads_to_others() -> None:
    request = b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n"
    with running() as server, contextlib.ExitStack() as stack:
        for _ in range(SLOW_PLACES_PER_ADDRESS):
            sock = stack.enter_context(connect(server))
            sock.sendall(request)
            assert head_from(sock).startswith(b"HTTP/1.1 200 ")
        refused = exchange(server, request)
        answer = get(server)
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert answer == b"0"


def test_requests_that_wait_leave_the_threads_to_others() -> None:
    release = threading.Event()
    waiting = threading.Semaphore(0)

    def sleepy(environ, start_response):
        if environ["PATH_INFO"] == "/wait":
            with environ[ENVIRON_KEY].place() as has_place:
                assert has_place
                waiting.release()
                release.wait(DEADLINE_S)
        return application(environ, start_response)

    with running(sleepy, wsgi_threads="2") as server, contextlib.ExitStack() as stack:
        for _ in range(WAIT_PLACES):
            sock = stack.enter_context(connect(server))
            sock.sendall(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
            assert waiting.acquire(timeout=DEADLINE_S)
        answer = get(server)
        release.set()
    assert answer == b"0"


def test_address_at_its_limit_loses_its_oldest_connections() -> None:
    with running(connections_per_address="4") as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(server))
        first.sendall(HEAD)
        time.sleep(0.1)
        for _ in range(4):
            stack.enter_context(connect(server)).sendall(HEAD)
        assert was_closed(first)
        answer = get(server)
    assert answer == b"0"


def test_server_at_its_limit_makes_room() -> None:
    with (
        running(connection_limit="16", request_head_timeout_s="60") as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(24):
            stack.enter_context(connect(server)).sendall(HEAD)
        answer = get(server)
    assert answer == b"0"


def test_server_that_ends_finishes_what_it_began() -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(environ, start_response):
        entered.set()
        release.wait(DEADLINE_S)
        return application(environ, start_response)

    with running(slow) as server, connect(server) as sock:
        sock.sendall(HEAD + b"\r\n")
        entered.wait(DEADLINE_S)
        server.stop()
        threading.Timer(0.2, release.set).start()
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
