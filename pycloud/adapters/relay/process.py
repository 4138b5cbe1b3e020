# SPDX-License-Identifier: Apache-2.0
"""The relay: listens on the published addresses and passes connections to loopback.

One per data directory, started by `client.py`, which gives it everything it needs: the
socket on which it is told what to listen on, and a locked file, whose lock says that it
lives. It opens no file, keeps no record and needs no privilege, so it gives up what it
has. It outlives the server, since running guests stay reachable while the server is
away: it leads a session of its own and belongs to nobody. What stops a service together
with everything that it started would end it, too: a systemd unit needs KillMode=process.

It ends by itself when it was told to listen on nothing, or when its data directory was
removed, and nobody uses it any more. Told again, a new one takes over the same table.

A message is one packet of JSON each way: {"listen": [port, ...], "on": address} changes
what it listens on, {"retire": true} ends it if no connection is open, {} changes nothing;
the answer is {"version", "pid", "taken": [port, ...], "missing": bool, "connections": count}.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import os
import resource
import socket
import struct
import time
from collections import Counter

from pycloud.adapters.relay.addresses import host_addresses, is_loopback
from pycloud.adapters.relay.events import READABLE, EventLoop
from pycloud.adapters.relay.passing import Passage

VERSION = 1
"""Of the messages and of what the relay does; a newer client replaces an older relay."""
ANY_ADDRESS = "0.0.0.0"  # noqa: S104  # stands for all addresses, and is never bound to
LOOPBACK = "127.0.0.1"
MESSAGE_BYTES = 1 << 17
_RESCAN_S = 2.0
_BACKLOG = 512
_ACCEPTS_IN_A_ROW = 32
_MAX_PASSAGES = 4096
_MAX_PASSAGES_OF_ONE_CLIENT = 512
_OTHER_DESCRIPTORS = 64
# A client that vanished without a word is noticed after about two minutes of silence.
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 60),
    (socket.TCP_KEEPINTVL, 15),
    (socket.TCP_KEEPCNT, 4),
)
_UNPRIVILEGED_ID = 65534
_PR_SET_NO_NEW_PRIVS = 38
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class Relay:
    """What listens now, and who uses it."""

    def __init__(self, control: socket.socket, lock_fd: int, *, idle_exit_s: float) -> None:
        self._loop = EventLoop()
        self._control = control
        self._lock_fd = lock_fd
        self._idle_exit_s = idle_exit_s
        self._ports: frozenset[int] = frozenset()
        self._bind = ""
        self._doors: dict[tuple[str, int], socket.socket] = {}
        self._taken: frozenset[int] = frozenset()
        self._is_missing = False
        self._clients: Counter[str] = Counter()
        self._max_passages = _raised_limit()
        self._is_retired = False
        control.settimeout(0)
        self._loop.watch(control, READABLE, self._admit)

    def run(self) -> None:
        """Serve until nobody needs it."""
        scanned_s = used_s = time.monotonic()
        while not self._is_retired:
            self._loop.run_once(_RESCAN_S)
            now_s = time.monotonic()
            if now_s - scanned_s >= _RESCAN_S:
                scanned_s = now_s
                self._rescan()
                if os.fstat(self._lock_fd).st_nlink == 0:
                    return
            if self._ports or self._clients:
                used_s = now_s
            elif now_s - used_s >= self._idle_exit_s:
                return

    # What it listens on

    def _rescan(self) -> None:
        """Listen on every port of every published address there is now, and on nothing else."""
        present = host_addresses()
        wanted = present if self._bind == ANY_ADDRESS else _specific(self._bind, present)
        doors = {(address, port) for address in wanted for port in self._ports}
        for gone in self._doors.keys() - doors:
            door = self._doors.pop(gone)
            # Whoever gave a port up is told that nobody listens on it, and it is so at once;
            # but its number is kept from new clients while events of this one are at hand.
            door.shutdown(socket.SHUT_RDWR)
            self._loop.close(door)
        taken = set()
        for address, port in sorted(doors - self._doors.keys()):
            try:
                self._open(address, port)
            except OSError as exc:
                # An address that is going or coming is met again at the next scan.
                if exc.errno != errno.EADDRNOTAVAIL:
                    taken.add(port)
        self._taken = frozenset(taken)
        self._is_missing = self._bind != ANY_ADDRESS and not wanted

    def _open(self, address: str, port: int) -> None:
        door = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The sockets of clients inherit these.
            door.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in _KEEPALIVE:
                door.setsockopt(socket.IPPROTO_TCP, option, value)
            door.bind((address, port))
            door.listen(_BACKLOG)
        except OSError:
            door.close()
            raise
        self._doors[address, port] = door
        self._loop.watch(door, READABLE, lambda _events: self._welcome(door, port))

    # Who uses it

    def _welcome(self, door: socket.socket, port: int) -> None:
        for _ in range(_ACCEPTS_IN_A_ROW):
            try:
                client, (address, _port) = door.accept()
            except OSError:
                return
            client.settimeout(0)
            try:
                self._pass(client, address, port)
            except OSError:
                self._loop.reset(client)

    def _pass(self, client: socket.socket, address: str, port: int) -> None:
        is_full = self._clients.total() >= self._max_passages
        if is_full or self._clients[address] >= _MAX_PASSAGES_OF_ONE_CLIENT:
            self._loop.reset(client)
            return

        def ended() -> None:
            self._clients[address] -= 1
            if not self._clients[address]:
                del self._clients[address]

        self._clients[address] += 1
        try:
            Passage(self._loop, client, (LOOPBACK, port), ended)
        except OSError:
            ended()
            raise

    # What it is told

    def _admit(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            teller, _ = self._control.accept()
            teller.settimeout(0)
            self._loop.watch(teller, READABLE, lambda _events: self._listen_to(teller))

    def _listen_to(self, teller: socket.socket) -> None:
        try:
            message = teller.recv(MESSAGE_BYTES)
            if message:
                teller.send(json.dumps(self._obey(json.loads(message))).encode())
        except (OSError, ValueError, TypeError, KeyError):
            # Whoever sent what cannot be understood, or left, gets no answer.
            message = b""
        if not message:
            self._loop.close(teller)

    def _obey(self, order: dict[str, object]) -> dict[str, object]:
        match order:
            case {"listen": list(ports), "on": str(bind)}:
                self._ports, self._bind = frozenset(map(int, ports)), bind
                self._rescan()
            case {"retire": True}:
                self._is_retired = not self._clients
            case _ if order != {}:
                raise ValueError("an order that this version does not know")
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "taken": sorted(self._taken),
            "missing": self._is_missing,
            "connections": self._clients.total(),
        }


def _specific(bind: str, present: frozenset[str]) -> frozenset[str]:
    """Return the one published address if it is there; QEMU itself has the usual loopback."""
    if bind == LOOPBACK or not (is_loopback(bind) or bind in present):
        return frozenset()
    return frozenset({bind})


def _raised_limit() -> int:
    """Allow as many descriptors as may be; return for how many passages they suffice."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 2 * _MAX_PASSAGES + (1 << 16))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(_MAX_PASSAGES, max(1, (wanted - _OTHER_DESCRIPTORS) // 4))


def _give_up_privileges() -> None:
    """Become nobody if this is root, without any capability, for good."""
    if os.geteuid() == 0:
        # Not possible in a user namespace that knows of root alone; then root means little.
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(_UNPRIVILEGED_ID, _UNPRIVILEGED_ID, _UNPRIVILEGED_ID)
            os.setresuid(_UNPRIVILEGED_ID, _UNPRIVILEGED_ID, _UNPRIVILEGED_ID)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Effective, permitted and inheritable, in two halves each; see capset(2).
    libc.capset(struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0), bytes(24))


def main() -> None:
    """Leave whoever started this, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--idle-exit-s", type=float, required=True)
    options = parser.parse_args()
    # Whoever called waits for this to end and is not to be the parent of what runs for days.
    if os.fork() != 0:
        return
    os.setsid()
    os.chdir("/")
    control = socket.socket(fileno=options.control_fd)
    relay = Relay(control, options.lock_fd, idle_exit_s=options.idle_exit_s)
    _give_up_privileges()
    relay.run()


if __name__ == "__main__":
    main()
