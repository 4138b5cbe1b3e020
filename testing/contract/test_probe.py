# SPDX-License-Identifier: Apache-2.0
"""The Probe port: the fake and the real one on loopback sockets, then what only sockets show."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from pycloud.adapters import probe
from pycloud.adapters.clock import SystemClock
from pycloud.adapters.fakes import Answer, FakeClock, FakeProbe
from pycloud.adapters.probe import SocketProbe, is_own_echo
from pycloud.core.model.catalog import Readiness
from pycloud.core.model.identifiers import DomainId
from pycloud.core.ports import Probe, ProbeTarget
from pycloud.errors import GuestFailed, JobCancelled, ServiceNotReady

HANG_S = 30.0
"""Longer than any of these tests may take; a test that comes near it has failed."""
SHORT_S = 0.6


class Service:
    """A loopback service whose behaviour for the n-th connection a test gives."""

    def __init__(self, behave: Callable[[socket.socket, int], None], *, listen: bool = True):
        self.connections = 0
        self.requests: list[bytes] = []
        self._behave = behave
        self._open: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        if listen:
            self.listen()

    def listen(self) -> None:
        self._listener.listen(64)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=HANG_S)
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self.connections += 1
            with contextlib.suppress(OSError):
                self._behave(connection, self.connections)


@contextlib.contextmanager
def service(behave, *, listen=True) -> Iterator[Service]:
    running = Service(behave, listen=listen)
    try:
        yield running
    finally:
        running.close()


def answers_http(connection, _number):
    connection.recv(4096)
    connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")
    connection.close()


def stays_silent(_connection, _number):
    pass


def closes(connection, _number):
    connection.close()


def target(port, readiness=Readiness.AUTO) -> ProbeTarget:
    return ProbeTarget(
        address="127.0.0.1", port=port, readiness=readiness, domain_id=DomainId("domain")
    )


def socket_probe(*, accepts=False) -> SocketProbe:
    return SocketProbe(SystemClock(), lambda _domain, _port: accepts)


@dataclass(frozen=True)
class Subject:
    """A probe and a target whose service behaves as asked."""

    probe: Probe
    target: ProbeTarget


@pytest.fixture(params=["fake", "socket"])
def subject(request):
    """Give a function that makes a Subject for an Answer."""
    with contextlib.ExitStack() as stack:

        def make(answer: Answer) -> Subject:
            if request.param == "fake":
                fake = FakeProbe(FakeClock())
                fake.answer = answer
                return Subject(fake, target(20000))
            behave = answers_http if answer is Answer.READY else stays_silent
            running = stack.enter_context(service(behave))
            return Subject(socket_probe(), target(running.port))

        yield make


def test_wait_returns_when_the_service_answers(subject):
    ready = subject(Answer.READY)

    ready.probe.wait(ready.target, timeout_s=HANG_S, is_alive=lambda: True)


def test_wait_raises_at_the_deadline_when_the_service_is_silent(subject):
    silent = subject(Answer.NEVER)

    with pytest.raises(ServiceNotReady) as caught:
        silent.probe.wait(silent.target, timeout_s=SHORT_S, is_alive=lambda: True)

    assert caught.value.port == silent.target.port
    assert caught.value.timeout_s == SHORT_S


def test_wait_fails_when_the_guest_dies(subject):
    silent = subject(Answer.NEVER)

    with pytest.raises(GuestFailed):
        silent.probe.wait(silent.target, timeout_s=HANG_S, is_alive=lambda: False)


def test_wait_stops_when_the_job_is_cancelled(subject):
    silent = subject(Answer.NEVER)

    def cancelled():
        raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        silent.probe.wait(silent.target, timeout_s=HANG_S, is_alive=cancelled)


def test_wait_asks_again_when_the_guest_lives(subject):
    silent = subject(Answer.NEVER)
    asked = []

    with pytest.raises(ServiceNotReady):
        silent.probe.wait(silent.target, timeout_s=1.0, is_alive=lambda: asked.append(1) is None)

    assert len(asked) >= 2


# What only sockets show.


def test_socket_probe_takes_a_banner_when_the_service_speaks_first():
    def speaks(connection, _number):
        connection.sendall(b"2")

    with service(speaks) as running:
        socket_probe().wait(target(running.port), timeout_s=HANG_S, is_alive=lambda: True)


def test_socket_probe_sends_a_plain_request_when_the_service_waits():
    received = []

    def listens(connection, _number):
        received.append(connection.recv(4096))
        connection.sendall(b"\x15")

    with service(listens) as running:
        socket_probe().wait(target(running.port), timeout_s=HANG_S, is_alive=lambda: True)

    head, _, rest = received[0].partition(b"\r\n")
    assert head == b"GET / HTTP/1.0"
    assert f"\r\nHost: 127.0.0.1:{running.port}\r\n".encode() in b"\r\n" + rest
    assert received[0].endswith(b"\r\n\r\n")


def test_socket_probe_tries_again_when_connections_are_closed_without_a_byte():
    def closes_at_first(connection, number):
        closes(connection, number) if number < 20 else answers_http(connection, number)

    with service(closes_at_first) as running:
        socket_probe().wait(target(running.port), timeout_s=HANG_S, is_alive=lambda: True)

    assert running.connections >= 20


def test_socket_probe_tries_again_when_connections_are_refused():
    with service(answers_http, listen=False) as running:
        timer = threading.Timer(0.3, running.listen)
        timer.start()
        socket_probe().wait(target(running.port), timeout_s=HANG_S, is_alive=lambda: True)
        timer.join()

    assert running.connections >= 1


def test_socket_probe_is_answered_on_a_younger_connection_when_the_older_ones_hang():
    def hangs_at_first(connection, number):
        if number > 3:
            answers_http(connection, number)

    with service(hangs_at_first) as running:
        socket_probe().wait(target(running.port), timeout_s=HANG_S, is_alive=lambda: True)

    assert running.connections >= 4


@pytest.mark.parametrize(("accepts", "connections"), [(True, 1), (False, 3)])
def test_socket_probe_asks_once_while_the_guest_works_on_it(accepts, connections):
    with service(stays_silent) as slow, pytest.raises(ServiceNotReady):
        socket_probe(accepts=accepts).wait(
            target(slow.port), timeout_s=SHORT_S, is_alive=lambda: True
        )

    assert slow.connections == connections


def test_socket_probe_asks_again_when_the_guest_accepted_and_forgot(monkeypatch):
    monkeypatch.setattr(probe, "_WORKED_ON_S", SHORT_S)

    def answers_the_second(connection, number):
        if number > 1:
            answers_http(connection, number)

    with service(answers_the_second) as forgetful:
        socket_probe(accepts=True).wait(
            target(forgetful.port), timeout_s=HANG_S, is_alive=lambda: True
        )

    assert forgetful.connections == 2


def test_socket_probe_keeps_few_connections_when_all_of_them_hang():
    open_now, most_open = set(), 0

    def hangs(connection, number):
        nonlocal most_open
        open_now.add(number)
        most_open = max(most_open, len(open_now))
        threading.Thread(target=forgets_at_the_end, args=(connection, number)).start()

    def forgets_at_the_end(connection, number):
        while connection.recv(4096):
            pass
        open_now.discard(number)

    with service(hangs) as running, pytest.raises(ServiceNotReady):
        socket_probe().wait(target(running.port), timeout_s=2.0, is_alive=lambda: True)

    # The server may notice a closed connection a little later than the next one.
    assert running.connections > 5
    assert most_open <= 20


def test_socket_probe_waits_for_a_slow_answer_when_the_service_takes_a_second():
    def thinks(connection, _number):
        def later():
            connection.recv(4096)
            time.sleep(1.0)
            with contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

        threading.Thread(target=later, daemon=True).start()

    with service(thinks) as running:
        socket_probe().wait(target(running.port), timeout_s=HANG_S, is_alive=lambda: True)


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n", b"\x15\x03\x01", b"HTTQ", b"H"])
def test_socket_probe_refuses_when_http_is_wanted_and_something_else_answers(answer):
    def speaks(connection, _number):
        connection.recv(4096)
        connection.sendall(answer)
        connection.close()

    with service(speaks) as running, pytest.raises(ServiceNotReady):
        socket_probe().wait(
            target(running.port, Readiness.HTTP), timeout_s=SHORT_S, is_alive=lambda: True
        )


def test_socket_probe_puts_a_status_line_together_when_it_comes_in_pieces():
    def dribbles(connection, _number):
        connection.recv(4096)
        for piece in (b"HT", b"TP", b"/1.1 503"):
            connection.sendall(piece)
            time.sleep(0.01)

    with service(dribbles) as running:
        socket_probe().wait(
            target(running.port, Readiness.HTTP), timeout_s=HANG_S, is_alive=lambda: True
        )


def test_socket_probe_returns_when_tcp_is_wanted_and_the_guest_accepted():
    with service(stays_silent) as running:
        socket_probe(accepts=True).wait(
            target(running.port, Readiness.TCP), timeout_s=HANG_S, is_alive=lambda: True
        )


def test_socket_probe_sends_nothing_when_tcp_is_wanted():
    received = []

    def listens(connection, _number):
        connection.settimeout(HANG_S)
        received.append(connection.recv(4096))

    with service(listens) as running, pytest.raises(ServiceNotReady):
        socket_probe().wait(
            target(running.port, Readiness.TCP), timeout_s=SHORT_S, is_alive=lambda: True
        )

    assert received[0] == b""


def test_socket_probe_does_not_ask_the_guest_when_nothing_is_connected():
    asked = []
    probe = SocketProbe(SystemClock(), lambda domain, port: asked.append(port) is None)

    with service(stays_silent, listen=False) as running, pytest.raises(ServiceNotReady):
        probe.wait(target(running.port, Readiness.TCP), timeout_s=SHORT_S, is_alive=lambda: True)

    assert asked == []


def test_socket_probe_raises_at_the_deadline_when_the_address_cannot_be_reached():
    unreachable = replace(target(9), address="255.255.255.255")

    with pytest.raises(ServiceNotReady):
        socket_probe().wait(unreachable, timeout_s=SHORT_S, is_alive=lambda: True)


def test_own_echo_is_recognised_when_a_socket_connects_to_itself():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())

        assert is_own_echo(sock)
