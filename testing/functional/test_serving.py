# SPDX-License-Identifier: Apache-2.0
"""The server on real sockets: slow, greedy and vanishing clients, and a clean end."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pycloud.web.serving import BoundedServer, Limits, bind, build_server
from pycloud.web.waiting import ENVIRON_KEY

DEADLINE_S = 30.0
DRIPPERS = 150


def application(environ, start_response):
    """Answer with the length of the body."""
    body = str(len(environ["wsgi.input"].read())).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@contextlib.contextmanager
def running(limits: Limits, app: Callable = application) -> Iterator[BoundedServer]:
    server = build_server(app, bind("127.0.0.1", 0), limits)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(timeout=DEADLINE_S)
        assert not thread.is_alive()


def connect(server: BoundedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.effective_port)), DEADLINE_S)


def get(server: BoundedServer) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.effective_port), DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read()


def was_closed(sock: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_clients_that_drip_heads_do_not_starve_others() -> None:
    limits = Limits(connections=100, connections_per_address=100, head_timeout_s=60)
    with running(limits) as server, contextlib.ExitStack() as stack:
        for _ in range(DRIPPERS):
            sock = stack.enter_context(connect(server))
            sock.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        answers = [get(server) for _ in range(20)]
        open_connections = len(server.channels)
    assert answers == [b"0"] * 20
    assert open_connections <= 100


def test_head_that_drips_is_cut_off_at_its_deadline() -> None:
    with running(Limits(head_timeout_s=0.4)) as server, connect(server) as sock:
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


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n"])
def test_connection_without_a_request_is_cut_off(sent: bytes) -> None:
    with running(Limits(head_timeout_s=0.3)) as server, connect(server) as sock:
        sock.sendall(sent)
        assert was_closed(sock)


def test_head_deadline_counts_anew_for_the_next_request() -> None:
    with running(Limits(head_timeout_s=0.3)) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.recv(4096)
        sock.sendall(b"GET / HT")
        assert was_closed(sock)


def test_body_that_stalls_is_cut_off() -> None:
    limits = Limits(head_timeout_s=0.3, body_timeout_s=0.3)
    with running(limits) as server, connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10000\r\n\r\nabc")
        assert was_closed(sock)


def test_body_that_keeps_moving_takes_longer_than_the_timeouts() -> None:
    limits = Limits(head_timeout_s=0.4, body_timeout_s=0.4)
    with running(limits) as server, connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 16384\r\n\r\n")
        for _ in range(8):
            sock.sendall(b"x" * 2048)
            time.sleep(0.12)
        assert b"16384" in sock.recv(4096)


def test_reader_that_stalls_is_cut_off() -> None:
    def endless(_environ, start_response):
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(4000))

    with running(Limits(body_timeout_s=0.4), endless) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.recv(1)
        gone = eventually(lambda: not server.channels)
    assert gone


def test_address_at_its_limit_loses_its_oldest_idle_connection() -> None:
    limits = Limits(connections_per_address=4, head_timeout_s=60)
    with running(limits) as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(server))
        assert eventually(lambda: server.addresses["127.0.0.1"] == 1)
        for _ in range(4):
            stack.enter_context(connect(server))
        assert was_closed(first)
        assert server.addresses["127.0.0.1"] <= 4


def test_connections_at_work_are_never_given_up_for_new_ones() -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def slow(environ, start_response):
        entered.release()
        release.wait(DEADLINE_S)
        return application(environ, start_response)

    limits = Limits(connections=2, connections_per_address=2, threads=4)
    with running(limits, slow) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(server)) for _ in range(2)]
        for sock in busy:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            entered.acquire()
        with connect(server) as refused:
            assert was_closed(refused)
        release.set()
        assert all(sock.recv(15) == b"HTTP/1.1 200 OK" for sock in busy)


def test_counts_return_to_nothing() -> None:
    with running(Limits()) as server:
        for _ in range(5):
            get(server)
        assert eventually(lambda: not server.addresses)


def test_large_head_and_large_body_are_refused() -> None:
    with running(Limits(body_bytes=1000)) as server:
        with connect(server) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n")
            assert b" 431 " in sock.recv(100)
        with connect(server) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n")
            assert b" 413 " in sock.recv(100)


def test_client_that_left_is_noticed_by_the_request() -> None:
    seen = threading.Event()

    def watching(environ, start_response):
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if environ["waitress.client_disconnected"]():
                seen.set()
                break
            time.sleep(0.02)
        return application(environ, start_response)

    with running(Limits(), watching) as server:
        with connect(server) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(0.1)
        assert seen.wait(DEADLINE_S)


def test_requests_that_wait_leave_the_threads_to_others() -> None:
    release = threading.Event()
    waiting = threading.Semaphore(0)

    def sleepy(environ, start_response):
        if environ["PATH_INFO"] == "/wait":
            with environ[ENVIRON_KEY].place():
                waiting.release()
                release.wait(DEADLINE_S)
        return application(environ, start_response)

    with running(Limits(threads=2), sleepy) as server, contextlib.ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(connect(server))
            sock.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
            assert waiting.acquire(timeout=DEADLINE_S)
        answer = get(server)
        release.set()
    assert answer == b"0"


def test_server_that_ends_finishes_what_it_began() -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(environ, start_response):
        entered.set()
        release.wait(DEADLINE_S)
        return application(environ, start_response)

    with running(Limits(), slow) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        entered.wait(DEADLINE_S)
        server.stop()
        threading.Timer(0.2, release.set).start()
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
