# SPDX-License-Identifier: Apache-2.0
"""What tests of the relay run in other processes: a server that publishes, a client far away.

python -m testing.system.relay_agent publish DIRECTORY BIND OWNER PORT   publishes and waits
python -m testing.system.relay_agent serve DIRECTORY PORT                a service, published
python -m testing.system.relay_agent call ADDRESS PORT BYTES             asks that service
"""

import hashlib
import json
import random
import socket
import sys
import threading
from pathlib import Path

from testing.system.relayed import connected, relay_client

_TIMEOUT_S = 20.0


def publish(directory: str, bind: str, owner: str, port: str) -> None:
    """Publish a port of a service that somebody else has; stay until the input ends."""
    relay = relay_client(Path(directory), bind=bind)
    print("ready", flush=True)
    sys.stdin.readline()
    relay.publish(owner, [int(port)])
    state = relay.state()
    assert state is not None
    print(json.dumps({"relay": state.pid}), flush=True)
    sys.stdin.read()


def serve(directory: str, port: str) -> None:
    """Answer each client with its address, as seen here, and the digest of what it sent."""
    relay = relay_client(Path(directory), bind="0.0.0.0", idle_exit_s=1.0)
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        relay.publish("service", [int(port)])
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
    relay.withdraw("service")


def call(address: str, port: str, length: str) -> None:
    """Send random bytes and print what the service saw, and whether it saw them all."""
    content = random.Random(length).randbytes(int(length))
    with connected(int(port), address=address) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        peer, digest = sock.makefile().read().split()
    whole = digest == hashlib.sha256(content).hexdigest()
    print(json.dumps({"peer": peer, "is_whole": whole}))


def _answer(listener: socket.socket) -> None:
    while True:
        sock, peer = listener.accept()
        digest = hashlib.sha256()
        with sock:
            while piece := sock.recv(1 << 18):
                digest.update(piece)
            sock.sendall(f"{peer[0]} {digest.hexdigest()}".encode())


if __name__ == "__main__":
    {"publish": publish, "serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
