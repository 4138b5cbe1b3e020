# SPDX-License-Identifier: Apache-2.0
"""The same Cloudlet API application under our waitress and under granian, in turn.

    python -m testing.bench.api_granian [--seconds S] [--rounds N]

Each server has a process and a store of its own. The last section asks what a phone gets
while many other connections drip the bytes of a request head and never finish it.
"""

import argparse
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testing.bench.api import (
    PACES,
    PATHS,
    START_TIMEOUT_S,
    Load,
    Measured,
    Pace,
    in_pairs,
    median_of,
    rate_ratios,
    server,
)
from testing.bench.table import Effort, Table, ratios

LOADS = (
    Load(clients=16, keeps_alive=True),
    Load(clients=256, keeps_alive=True),
    Load(clients=500, keeps_alive=True),
    Load(clients=16, keeps_alive=False),
)
DRIPPERS = 300
DRIP_EVERY_S = 0.5

Pair = tuple[Measured, Measured]
"""granian and waitress, measured right after each other."""


def tables(_directory: Path, effort: Effort) -> list[Table]:
    """Measure in short rounds; the servers keep their files in directories of their own."""
    return [table_of(measure(PACES[effort]))]


def measure(pace: Pace) -> dict[str, list[Pair]]:
    """Measure every path under every load, and one load among clients that drip."""
    measured: dict[str, list[Pair]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        granian, waitress = (
            stack.enter_context(server(kind, Path(stack.enter_context(_inside(name)))))
            for kind in ("granian", "ours")
        )
        ports = (granian, waitress)
        for path, _ in PATHS:
            for load in LOADS:
                label = f"{path.partition('?')[0]}, {load.name}"
                measured[label] = in_pairs(ports, path, load, pace)
                print(".", end="", flush=True, file=sys.stderr)
        for port in ports:
            stack.enter_context(dripping(port))
        path, load = PATHS[0][0], LOADS[0]
        label = f"{path}, {load.name}, {DRIPPERS} others drip"
        measured[label] = in_pairs(ports, path, load, pace)
    print(file=sys.stderr)
    return measured


def _inside(directory: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=directory)


@contextmanager
def dripping(port: int) -> Iterator[None]:
    """Keep connections open that send a byte now and then; who is cut off comes again."""
    ended = threading.Event()
    thread = threading.Thread(target=_drip, args=(port, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _drip(port: int, ended: threading.Event) -> None:
    socks: dict[int, socket.socket] = {}
    while not ended.wait(DRIP_EVERY_S):
        for number in range(DRIPPERS):
            try:
                if number not in socks:
                    socks[number] = socket.create_connection(("127.0.0.1", port), START_TIMEOUT_S)
                    socks[number].sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
                socks[number].sendall(b"x")
            except OSError:
                if number in socks:
                    socks.pop(number).close()
    for sock in socks.values():
        sock.close()


def table_of(measured: dict[str, list[Pair]]) -> Table:
    """Return the figures as a table."""
    rows = []
    for label, pairs in measured.items():
        granian, waitress = zip(*pairs, strict=True)
        rows.append(
            (
                label,
                f"{median_of(granian, 'requests_per_s'):.0f}",
                f"{median_of(waitress, 'requests_per_s'):.0f}",
                ratios(rate_ratios(granian, waitress)),
                f"{median_of(granian, 'p99_ms'):.1f} ms",
                f"{median_of(waitress, 'p99_ms'):.1f} ms",
            )
        )
    return Table(
        title="Cloudlet API under granian against the same under waitress",
        columns=(
            "",
            "granian/s",
            "waitress/s",
            "ratio (middle half)",
            "p99 granian",
            "p99 waitress",
        ),
        rows=tuple(rows),
        notes=("Medians of all rounds. `pycloud/web/granian_server.py` says what it costs.",),
    )


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    full = PACES[Effort.FULL]
    parser.add_argument("--seconds", type=float, default=full.seconds, help="length of one round")
    parser.add_argument("--rounds", type=int, default=full.rounds, help="rounds of each server")
    parser.add_argument("--markdown", action="store_true", help="print for a document")
    options = parser.parse_args()
    table = table_of(measure(Pace(seconds=options.seconds, rounds=options.rounds)))
    print(table.markdown() if options.markdown else table.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
