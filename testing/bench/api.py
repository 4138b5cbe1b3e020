# SPDX-License-Identifier: Apache-2.0
"""The Cloudlet API against a bare Pyramid view on waitress that returns the same bytes.

    python -m testing.bench.api [--seconds S] [--rounds N]

Each side has a process of its own: ours the whole application on the SQLite store behind
our server, the bare one a single Pyramid view per path behind plain waitress with the
same number of threads. They take turns in many short rounds, and every other time the
bare one is first, so that whatever else the machine does meets both; the table shows
medians, and how far the middle half of the ratios lies apart: a ratio is worth no more
than that. The load comes from this process, one thread that watches all its sockets at
once, so it measures both sides alike.
"""

import argparse
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from testing.bench.table import Effort, Table, ratios

PATHS = (
    ("/api/services", 0.7),
    ("/api/system/get_messages?serviceId=service-001", 0.7),
    ("/api/v2/services", 0.4),
)
"""What is asked for, and the share of the bare rate that we promise."""
CLIENTS = (1, 16, 256)
SERVICES = 20
START_TIMEOUT_S = 60.0
WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long each round is, and how many there are of each side."""

    seconds: float
    rounds: int


PACES = {Effort.FULL: Pace(seconds=1.0, rounds=11), Effort.QUICK: Pace(seconds=0.4, rounds=2)}
"""Single rounds differ by up to a factor of three while something else uses the processors,
and as much with two seconds as with one, so there are many short ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many clients ask, and whether they keep their connections."""

    clients: int
    keeps_alive: bool

    @property
    def name(self) -> str:
        """The load as the table names it."""
        kind = "keep-alive" if self.keeps_alive else "connection per call"
        return f"{self.clients} x {kind}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one round gave."""

    requests_per_s: float
    p99_ms: float


@dataclass(slots=True)
class _Client:
    """One client with one request under way."""

    sock: socket.socket
    sent_s: float
    received: bytearray = field(default_factory=bytearray)
    wanted: int = 0


class Loader:
    """Sends the same request from many clients for a while."""

    def __init__(self, port: int, path: str, load: Load) -> None:
        self._address = ("127.0.0.1", port)
        self._load = load
        ending = "" if load.keeps_alive else "Connection: close\r\n"
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: bench\r\nX-Device-ID: phone-1\r\n{ending}\r\n"
        ).encode()
        self._selector = selectors.DefaultSelector()
        self._latencies_s: list[float] = []

    def run(self, seconds: float) -> Measured:
        """Keep all clients busy, and return what they saw."""
        clients = [self._open() for _ in range(self._load.clients)]
        self._spin(time.perf_counter() + WARM_UP_S)
        self._latencies_s.clear()
        begin_s = time.perf_counter()
        self._spin(begin_s + seconds)
        elapsed_s = time.perf_counter() - begin_s
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()
        del clients
        latencies = sorted(self._latencies_s)
        p99_s = latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))]
        return Measured(len(latencies) / elapsed_s, p99_s * 1000)

    def _open(self) -> _Client:
        sent_s = time.perf_counter()
        sock = socket.create_connection(self._address, START_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(self._request)
        client = _Client(sock, sent_s)
        self._selector.register(sock, selectors.EVENT_READ, client)
        return client

    def _spin(self, until_s: float) -> None:
        while time.perf_counter() < until_s:
            for key, _ in self._selector.select(timeout=1.0):
                self._receive(key.data)

    def _receive(self, client: _Client) -> None:
        piece = client.sock.recv(262_144)
        if not piece:
            message = "the server closed a connection in the middle of a reply"
            raise RuntimeError(message)
        client.received += piece
        if not client.wanted:
            client.wanted = _length_of(client.received)
        if client.wanted and len(client.received) >= client.wanted:
            now_s = time.perf_counter()
            self._latencies_s.append(now_s - client.sent_s)
            if self._load.keeps_alive:
                client.received.clear()
                client.sent_s = now_s
                client.sock.sendall(self._request)
            else:
                self._selector.unregister(client.sock)
                client.sock.close()
                self._open()


def _length_of(received: bytearray) -> int:
    """Return the length of the whole reply once its head is there, else 0."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = bytes(received[:end]).lower()
    if not head.startswith(b"http/1.1 200"):
        message = f"the server answered {head[:200]!r}"
        raise RuntimeError(message)
    begin = head.index(b"content-length:") + len(b"content-length:")
    return end + 4 + int(head[begin:].split(b"\r\n", 1)[0])


# -- servers ----------------------------------------------------------------------------


@contextmanager
def server(kind: str, directory: Path) -> Iterator[int]:
    """Run one side in a process of its own; yields its port."""
    command = [sys.executable, "-W", "ignore", "-m", "testing.bench.api_servers", kind]
    with subprocess.Popen([*command, str(directory)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=START_TIMEOUT_S)
            process.kill()


def fetch(port: int, path: str) -> bytes:
    """Return the body at a path."""
    with socket.create_connection(("127.0.0.1", port), START_TIMEOUT_S) as sock:
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: bench\r\nX-Device-ID: phone-1\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        content = b""
        while piece := sock.recv(65536):
            content += piece
    return content.partition(b"\r\n\r\n")[2]


# -- the table ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One path under one load: every round of both sides, in pairs."""

    path: str
    load: Load
    ours: tuple[Measured, ...]
    bare: tuple[Measured, ...]

    @property
    def ratios(self) -> list[float]:
        """Our shares of the bare rate, pair by pair."""
        return rate_ratios(self.ours, self.bare)


def tables(_directory: Path, effort: Effort) -> list[Table]:
    """Measure in short rounds; the servers keep their files in directories of their own."""
    return [table_of(measure(PACES[effort]))]


def measure(pace: Pace) -> list[Row]:
    """Measure every path under every load."""
    loads = [Load(clients=count, keeps_alive=True) for count in CLIENTS]
    loads.append(Load(clients=16, keeps_alive=False))
    rows = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        ports = both_sides(stack, Path(name))
        for path, _ in PATHS:
            for load in loads:
                ours, bare = zip(*in_pairs(ports, path, load, pace), strict=True)
                rows.append(Row(path, load, ours, bare))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return rows


def both_sides(stack: ExitStack, directory: Path) -> tuple[int, int]:
    """Run our server and a bare one that returns the same bytes; returns their ports."""
    ours = stack.enter_context(server("ours", directory))
    for number, (path, _) in enumerate(PATHS):
        (directory / f"{number}.body").write_bytes(fetch(ours, path))
    return ours, stack.enter_context(server("bare", directory))


def in_pairs(
    ports: tuple[int, int], path: str, load: Load, pace: Pace
) -> list[tuple[Measured, Measured]]:
    """Measure two servers right after each other; each is first in every other pair."""
    pairs = []
    for number in range(pace.rounds):
        in_turn = ports if number % 2 == 0 else ports[::-1]
        found = {port: Loader(port, path, load).run(pace.seconds) for port in in_turn}
        pairs.append((found[ports[0]], found[ports[1]]))
    return pairs


def rate_ratios(ours: Sequence[Measured], baseline: Sequence[Measured]) -> list[float]:
    """Return the ratios of the rates of each pair."""
    pairs = zip(ours, baseline, strict=True)
    return [mine.requests_per_s / other.requests_per_s for mine, other in pairs]


def table_of(rows: list[Row]) -> Table:
    """Return the figures as a table."""
    promises = dict(PATHS)
    return Table(
        title="Cloudlet API against a bare Pyramid view on waitress, same bytes",
        columns=("", "ours/s", "bare/s", "ratio (middle half)", "at least", "p99 ours", "p99 bare"),
        rows=tuple(
            (
                f"{row.path.partition('?')[0]}, {row.load.name}",
                f"{median_of(row.ours, 'requests_per_s'):.0f}",
                f"{median_of(row.bare, 'requests_per_s'):.0f}",
                ratios(row.ratios),
                f"{promises[row.path]:.1f}",
                f"{median_of(row.ours, 'p99_ms'):.1f} ms",
                f"{median_of(row.bare, 'p99_ms'):.1f} ms",
            )
            for row in rows
        ),
        notes=(f"{SERVICES} services in the catalogue, SQLite store; medians of all rounds.",),
    )


def median_of(measured: Sequence[Measured], figure: str) -> float:
    """Return the median of one figure of several rounds."""
    values: list[float] = [getattr(one, figure) for one in measured]
    return statistics.median(values)


def main() -> int:
    """Measure, print the table, and fail if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    full = PACES[Effort.FULL]
    parser.add_argument("--seconds", type=float, default=full.seconds, help="length of one round")
    parser.add_argument("--rounds", type=int, default=full.rounds, help="rounds of each side")
    parser.add_argument("--markdown", action="store_true", help="print for a document")
    options = parser.parse_args()
    rows = measure(Pace(seconds=options.seconds, rounds=options.rounds))
    table = table_of(rows)
    print(table.markdown() if options.markdown else table.text())
    promises = dict(PATHS)
    kept = all(statistics.median(row.ratios) >= promises[row.path] for row in rows)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
