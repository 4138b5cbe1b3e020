# SPDX-License-Identifier: Apache-2.0
"""What a server does about the relay: tell it what to listen on, and start it when it is gone.

    DIRECTORY/forwards/<owner>   the table
    DIRECTORY/control            the relay's socket
    DIRECTORY/alive              locked while the relay lives
    DIRECTORY/lock               locked by the server that changes something
    DIRECTORY/log                why the last relay died, if it did

The relay is always told the whole table, so whatever one server could not say, the next
one says. Several servers may share a data directory. Must not know of guests.
"""

import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pycloud.adapters.disk_errors import disk_errors
from pycloud.adapters.relay import process
from pycloud.adapters.relay.table import ForwardTable
from pycloud.core.model.identifiers import InstanceId
from pycloud.errors import CloudletError, HypervisorError, PortInUse

_log = logging.getLogger(__name__)
_IDLE_EXIT_S = 30.0
_ANSWER_TIMEOUT_S = 5.0
_LOCK_TIMEOUT_S = 20.0
_START_TIMEOUT_S = 20.0
_POLL_S = 0.005
_BACKLOG = 64
_IMPORT_ROOT = Path(process.__file__).resolve().parents[3]
_PROGRAM = f"import sys; sys.path.append(sys.argv.pop(1)); import {process.__name__} as relay; relay.main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayState:
    """What the relay says of itself."""

    version: int
    pid: int
    taken: frozenset[int]
    is_address_missing: bool
    connections: int


class RelayClient:
    """The relay of one data directory. Safe to use from several threads and processes."""

    def __init__(self, directory: Path, *, bind: str, idle_exit_s: float = _IDLE_EXIT_S) -> None:
        """`directory` is made when it is needed; `bind` is the published address, or all."""
        self._directory = directory
        self._bind = bind
        self._idle_exit_s = idle_exit_s
        self._table = ForwardTable(directory / "forwards")
        self._lack: tuple[frozenset[int], bool] = (frozenset(), False)

    @property
    def is_needed(self) -> bool:
        """Whether there is an address to relay from: on loopback QEMU itself listens."""
        return self._bind != process.LOOPBACK

    def publish(self, owner: InstanceId, ports: Sequence[int]) -> None:
        """Return once the relay listens on these ports, and no others, for an owner.

        Raises PortInUse, HypervisorError, InsufficientStorage, StoreError, and then
        everything is as before.
        """
        if not self.is_needed:
            return
        with self._locked():
            before = self._table.ports_of(owner)
            try:
                self._table.put(owner, ports)
                self._require(self._told(), ports)
            except CloudletError:
                self._put_back(owner, before)
                raise

    def withdraw(self, owner: InstanceId) -> None:
        """Give an owner's ports up; idempotent. A relay that cannot be told now is told later."""
        if not self._directory.is_dir():
            return
        with self._locked():
            if self._table.remove(owner):
                self._tell_if_possible()

    def ensure(self) -> None:
        """See to it that a relay listens on what the table says.

        Raises HypervisorError, StoreError.
        """
        if not self._directory.is_dir():
            return
        with self._locked():
            if not self._table.all_ports():
                self._tell_if_possible()
                return
            state = self._told()
            if state.version < process.VERSION and self._retired():
                state = self._told()
        self._note(state)

    def state(self) -> RelayState | None:
        """Return what the relay says of itself, None if there is none. Raises HypervisorError."""
        return self._answer({}) if self._directory.is_dir() else None

    def _note(self, state: RelayState) -> None:
        """Log what the relay cannot listen on, once."""
        lack = (state.taken, state.is_address_missing)
        if lack != self._lack:
            self._lack = lack
            _log.warning(
                "relay_listens bind=%s taken=%s missing=%s",
                self._bind,
                sorted(state.taken),
                state.is_address_missing,
            )

    def _put_back(self, owner: InstanceId, before: tuple[int, ...]) -> None:
        if before:
            self._table.put(owner, before)
        else:
            self._table.remove(owner)
        self._tell_if_possible()

    def _require(self, state: RelayState, ports: Sequence[int]) -> None:
        if state.is_address_missing:
            raise HypervisorError(
                f"no port can be published: {self._bind} is no address of this machine;"
                " change pycloud.publish_bind"
            )
        for port in ports:
            if port in state.taken:
                raise PortInUse(port)

    # Telling

    def _told(self) -> RelayState:
        """Tell the relay the table; start it if there is none. Raises HypervisorError."""
        order = {"listen": sorted(self._table.all_ports()), "on": self._bind}
        state = self._answer(order)
        if state is None:
            self._start()
            state = self._answer(order)
        if state is None:
            raise HypervisorError(f"the relay ended at once: {self._said() or 'it gave no reason'}")
        return state

    def _tell_if_possible(self) -> None:
        """Tell a relay that is there the table; one that is not needs no telling."""
        order = {"listen": sorted(self._table.all_ports()), "on": self._bind}
        try:
            self._answer(order)
        except HypervisorError as exc:
            _log.warning("relay_not_told reason=%s", exc)

    def _retired(self) -> bool:
        state = self._answer({"retire": True})
        return state is not None and state.connections == 0

    def _answer(self, order: Mapping[str, object]) -> RelayState | None:
        """Return what the relay answers, None without one. Raises HypervisorError."""
        try:
            with self._address("control") as address, _packets() as sock:
                sock.settimeout(_ANSWER_TIMEOUT_S)
                sock.connect(address)
                sock.sendall(json.dumps(order).encode())
                answer = sock.recv(process.MESSAGE_BYTES)
        except (FileNotFoundError, ConnectionError):
            return None
        except OSError as exc:
            raise HypervisorError(f"the relay does not answer: {exc}") from exc
        return _parsed(answer) if answer else None

    # Starting

    def _start(self) -> None:
        """Start a relay once the last one is gone for good. Raises HypervisorError."""
        try:
            with (self._directory / "alive").open("wb") as alive, _packets() as control:
                _lock(alive.fileno(), _START_TIMEOUT_S)
                (self._directory / "control").unlink(missing_ok=True)
                with self._address("control") as address:
                    control.bind(address)
                (self._directory / "control").chmod(0o600)
                control.listen(_BACKLOG)
                self._spawn(control.fileno(), alive.fileno())
        except (OSError, subprocess.SubprocessError) as exc:
            raise HypervisorError(f"the relay cannot be started: {exc} {self._said()}") from exc
        _log.info("relay_started bind=%s", self._bind)

    def _spawn(self, control_fd: int, lock_fd: int) -> None:
        command = [
            # Neither environment nor installed packages: only the standard library is needed.
            *(sys.executable, "-I", "-S", "-c", _PROGRAM, str(_IMPORT_ROOT)),
            *("--control-fd", str(control_fd), "--lock-fd", str(lock_fd)),
            *("--idle-exit-s", str(self._idle_exit_s)),
        ]
        with (self._directory / "log").open("wb") as log:
            subprocess.run(
                command,
                env={},
                pass_fds=(control_fd, lock_fd),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=_START_TIMEOUT_S,
                check=True,
            )

    def _said(self) -> str:
        try:
            return (self._directory / "log").read_text(errors="replace").strip()[-400:]
        except OSError:
            return ""

    @contextmanager
    def _address(self, name: str) -> Iterator[str]:
        """Name a socket in the directory in less than the 108 bytes that a name may have."""
        directory_fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{directory_fd}/{name}"
        finally:
            os.close(directory_fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and servers out."""
        with disk_errors("the relay's directory cannot be used"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                _lock(lock_fd, _LOCK_TIMEOUT_S)
            except OSError as exc:
                raise HypervisorError(f"the relay's lock is held by others: {exc}") from exc
            yield
        finally:
            os.close(lock_fd)


def _packets() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _lock(descriptor: int, timeout_s: float) -> None:
    """Lock an open file; the kernel unlocks it with its last holder. Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not free within {timeout_s:g} s") from exc
            time.sleep(_POLL_S)
        else:
            return


def _parsed(answer: bytes) -> RelayState:
    try:
        told = json.loads(answer)
        return RelayState(
            version=int(told["version"]),
            pid=int(told["pid"]),
            taken=frozenset(map(int, told["taken"])),
            is_address_missing=bool(told["missing"]),
            connections=int(told["connections"]),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise HypervisorError(f"the relay's answer makes no sense: {answer[:100]!r}") from exc
