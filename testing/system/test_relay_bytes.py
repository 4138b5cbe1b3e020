# SPDX-License-Identifier: Apache-2.0
"""What goes through the relay: every byte, both ends, resets, and no more than fits."""

import contextlib
import hashlib
import random
import socket
import struct
import threading
from contextlib import ExitStack
from queue import SimpleQueue

import pytest

from testing.system.relayed import (
    DEADLINE_S,
    connected,
    echo,
    free_port,
    read_all,
    relay_client,
    serving,
    until,
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    """A relay for the whole module."""
    return relay_client(tmp_path_factory.mktemp("relay"), idle_exit_s=1.0)


@pytest.fixture
def published(relay):
    """Return a function that serves something on a published port until the test ends."""
    with ExitStack() as stack:

        def publish(service):
            port = stack.enter_context(serving(service))
            relay.publish(f"owner-{port}", [port])
            stack.callback(relay.withdraw, f"owner-{port}")
            return port

        yield publish


def test_relay_passes_every_byte_both_ways(published):
    block = random.Random(1).randbytes(MIB)
    sent, got = hashlib.sha256(), hashlib.sha256()

    def write(sock):
        for number in range(64):
            piece = block[number:] + block[:number]
            sent.update(piece)
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)

    with connected(published(echo)) as client:
        writer = threading.Thread(target=write, args=(client,))
        writer.start()
        length = 0
        while piece := client.recv(MIB):
            got.update(piece)
            length += len(piece)
        writer.join()

    assert length == 64 * MIB
    assert got.digest() == sent.digest()


def test_relay_answers_after_the_client_has_ended_its_question(published):
    def count(sock):
        sock.sendall(str(len(read_all(sock))).encode())

    with connected(published(count)) as client:
        client.sendall(b"x" * 1000)
        client.shutdown(socket.SHUT_WR)

        assert read_all(client) == b"1000"


def test_relay_goes_on_with_questions_after_the_service_has_ended_its_answer(published):
    heard = SimpleQueue()

    def greet(sock):
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        heard.put(read_all(sock))

    with connected(published(greet)) as client:
        greeting = read_all(client)
        client.sendall(b"still there")
        client.shutdown(socket.SHUT_WR)

        assert greeting == b"hello"
        assert heard.get(timeout=DEADLINE_S) == b"still there"


def test_relay_keeps_many_connections_apart(published):
    port = published(echo)
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(port)) for _ in range(200)]

        for number, client in enumerate(clients):
            client.sendall(f"I am {number}".encode())
        for client in clients:
            client.shutdown(socket.SHUT_WR)

        assert [read_all(client) for client in clients] == [
            f"I am {number}".encode() for number in range(200)
        ]


def test_relay_resets_the_services_side_when_the_client_resets(published, relay):
    ends = SimpleQueue()

    def note_end(sock):
        sock.recv(1)
        sock.sendall(b"go")
        try:
            ends.put(sock.recv(1))
        except ConnectionResetError:
            ends.put("reset")

    client = connected(published(note_end))
    client.sendall(b"x")
    client.recv(2)
    _reset(client)

    assert ends.get(timeout=DEADLINE_S) == "reset"
    until(lambda: relay.state().connections == 0, what="no connection is left")


def test_relay_delivers_what_was_sent_before_the_service_reset(published):
    answer = random.Random(2).randbytes(MIB)

    def answer_and_reset(sock):
        sock.sendall(answer)
        # The last byte of the question says that the answer has been read.
        sock.recv(1)
        _reset(sock)

    with connected(published(answer_and_reset)) as client:
        got = b""
        while len(got) < len(answer):
            got += client.recv(MIB)
        client.sendall(b"x")

        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert got == answer


def test_relay_delivers_an_early_refusal_of_a_question_that_nobody_reads(published):
    refusal = b"too large" * 1000

    def refuse(sock):
        sock.recv(10)
        sock.sendall(refusal)
        # Closed with most of the question unread, which the kernel makes a reset.

    with connected(published(refuse)) as client:
        client.sendall(b"x" * 100_000)
        with client.makefile("rb") as answer:
            got = answer.read(len(refusal))
            with pytest.raises(ConnectionResetError):
                answer.read()

    assert got == refusal


def test_relay_resets_the_client_when_nobody_listens_behind_the_port(relay):
    port = free_port()
    relay.publish("nobody", [port])

    # The reset may come before the client has noticed that it is connected.
    with pytest.raises(ConnectionResetError):
        _heard(port)

    relay.withdraw("nobody")


def test_relay_holds_no_more_than_fits_when_the_service_does_not_read(published):
    may_read, lengths = threading.Event(), SimpleQueue()

    def read_late(sock):
        may_read.wait(DEADLINE_S)
        lengths.put(len(read_all(sock)))

    with connected(published(read_late)) as client:
        client.settimeout(0.5)
        taken = _filled(client)
        may_read.set()
        client.shutdown(socket.SHUT_WR)

        assert lengths.get(timeout=DEADLINE_S) == taken
    assert taken < 64 * MIB


def test_relay_serves_others_when_one_client_has_too_many_connections(relay):
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=1024))
        relay.publish("crowded", [port])
        stack.callback(relay.withdraw, "crowded")
        for _ in range(512):
            stack.enter_context(connected(port))
        until(lambda: relay.state().connections == 512, what="all of them are passed")

        stack.enter_context(connected(port, source="127.0.0.3"))

        with pytest.raises(ConnectionResetError):
            _heard(port)
        until(lambda: relay.state().connections == 513, what="the other client is passed")
    until(lambda: relay.state().connections == 0, what="no connection is left")


def test_relay_ends_a_passage_whose_sides_both_reset(published, relay):
    may_end, ended = threading.Event(), threading.Event()

    def wait_and_reset(sock):
        sock.recv(1)
        sock.sendall(b"go")
        may_end.wait(DEADLINE_S)
        _reset(sock)
        ended.set()

    client = connected(published(wait_and_reset))
    client.sendall(b"x")
    client.recv(2)
    may_end.set()
    _reset(client)

    assert ended.wait(DEADLINE_S)
    until(lambda: relay.state().connections == 0, what="no connection is left")


def _heard(port):
    """Connect, say nothing and return what comes."""
    with connected(port) as sock:
        return read_all(sock)


def _filled(sock):
    """Send until nothing more is taken, and return how much was."""
    taken, piece = 0, bytes(MIB)
    with contextlib.suppress(TimeoutError):
        while taken < 256 * MIB:
            taken += sock.send(piece)
    return taken


def _reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
