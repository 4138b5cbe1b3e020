# SPDX-License-Identifier: Apache-2.0
"""A relay on an address of this machine, and programs on loopback for it to pass bytes to.

The published address is one of the loopback network, which takes any amount of traffic
without anybody else seeing it; clients from elsewhere are in `relay_agent`.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pycloud.adapters.relay.client import RelayClient

PUBLISHED = "127.0.0.2"
DEADLINE_S = 30.0
Service = Callable[[socket.socket], None]


def relay_client(data: Path, *, bind: str = PUBLISHED, idle_exit_s: float = 30.0) -> RelayClient:
    """Return what a server on this data directory would use."""
    return RelayClient(data / "relay", bind=bind, idle_exit_s=idle_exit_s)


@contextmanager
def serving(service: Service) -> Iterator[int]:
    """Call `service` with every connection to a port of 127.0.0.1, each in its own thread."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        threading.Thread(target=_accept, args=(listener, service), daemon=True).start()
        yield int(listener.getsockname()[1])
        # Closing alone does not wake the thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """Return a port that nobody listens on; the kernel takes care not to repeat itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def echo(sock: socket.socket) -> None:
    """Send everything back, and the end after it."""
    while content := sock.recv(1 << 18):
        sock.sendall(content)
    sock.shutdown(socket.SHUT_WR)


def connected(port: int, *, address: str = PUBLISHED, source: str = "") -> socket.socket:
    """Return a connection to a published port; whoever takes it closes it."""
    return socket.create_connection(
        (address, port), timeout=DEADLINE_S, source_address=(source, 0) if source else None
    )


def read_all(sock: socket.socket) -> bytes:
    """Read until the end."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def is_echoed(port: int, *, address: str = PUBLISHED) -> bool:
    """Return whether an echo answers on a published port; False if nobody listens there."""
    try:
        with connected(port, address=address) as sock:
            sock.sendall(b"who is there")
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock) == b"who is there"
    except OSError:
        return False


def until(condition: Callable[[], object], *, what: str) -> None:
    """Return when the condition holds. Raises AssertionError at the deadline."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"not so within {DEADLINE_S:g} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return whether a process executes; a dead one may wait long for process 1 to notice."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _accept(listener: socket.socket, service: Service) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve, args=(sock, service), daemon=True).start()


def _serve(sock: socket.socket, service: Service) -> None:
    # A client that leaves in the middle is a case, not a fault of the service.
    with sock, contextlib.suppress(OSError):
        sock.settimeout(DEADLINE_S)
        service(sock)
