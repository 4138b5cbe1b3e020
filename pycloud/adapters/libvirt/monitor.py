# SPDX-License-Identifier: Apache-2.0
"""QEMU's own monitor of one domain, reached through libvirt.

For what libvirt has no call for: forwards, files passed as descriptors, migration to
and from them. Must not be used where libvirt has a call of its own, because libvirt
does not see what is done here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import libvirt_qemu

from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.domain_xml import NETDEV_ID
from pycloud.core.model.identifiers import DomainId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.ports import Clock
from pycloud.errors import HypervisorError, PortInUse

LISTENING = "HOST_FORWARD"
_STREAM = "pycloud-stream"
_POLL_S = 0.002
# The guest can answer callers from loopback only; see the package of the relay.
_LOOPBACK = "127.0.0.1"
_CONNECTION_LINE = re.compile(
    r"^\s*TCP\[(?P<state>[A-Z0-9_]+)\s*\]\s+-?\d+\s+\S+\s+(?P<host_port>\d+)"
    r"\s+\S+\s+(?P<guest_port>\d+)\s",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserConnection:
    """A TCP connection through the user-mode network, or a forward that listens."""

    state: str
    host_port: int
    guest_port: int


class Monitor:
    """The monitor of one domain."""

    def __init__(self, connection: Connection, domain_id: DomainId) -> None:
        self._connection = connection
        self._domain_id = domain_id

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command and return its result. Raises HypervisorError."""
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})

        def call(handle: Any) -> str:  # Any: libvirt ships no types.
            domain = handle.lookupByUUIDString(self._domain_id)
            return str(libvirt_qemu.qemuMonitorCommand(domain, request, 0))

        return _result(command, self._connection.run(call))

    def human(self, line: str) -> str:
        """Run a command of the human monitor and return what it prints."""

        def call(handle: Any) -> str:  # Any: libvirt ships no types.
            domain = handle.lookupByUUIDString(self._domain_id)
            flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            return str(libvirt_qemu.qemuMonitorCommand(domain, line, flags))

        return self._connection.run(call)

    def hand_over(self, name: str, stream: BinaryIO) -> None:
        """Give QEMU a copy of a file descriptor under a name."""
        request = json.dumps({"execute": "getfd", "arguments": {"fdname": name}})

        def call(handle: Any) -> str:  # Any: libvirt ships no types.
            domain = handle.lookupByUUIDString(self._domain_id)
            reply, _files = libvirt_qemu.qemuMonitorCommandWithFiles(
                domain, request, [stream.fileno()], 0
            )
            return str(reply)

        _result("getfd", self._connection.run(call))

    # The stream of device states

    def write_devices(self, target: BinaryIO, *, clock: Clock, timeout_s: float) -> None:
        """Write the device state of a stopped guest, without the RAM that lies in a file."""
        self._leave_shared_memory_out()
        self.hand_over(_STREAM, target)
        self.execute("migrate", {"uri": f"fd:{_STREAM}"})
        self._await_migration(clock, timeout_s)

    def read_devices(self, source: BinaryIO, *, clock: Clock, timeout_s: float) -> None:
        """Load the device state into a domain that was started to wait for it."""
        self._leave_shared_memory_out()
        self.hand_over(_STREAM, source)
        self.execute("migrate-incoming", {"uri": f"fd:{_STREAM}"})
        self._await_migration(clock, timeout_s)

    def _leave_shared_memory_out(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self.execute("migrate-set-capabilities", {"capabilities": [capability]})

    def _await_migration(self, clock: Clock, timeout_s: float) -> None:
        deadline = clock.monotonic() + timeout_s
        while True:
            progress = self.execute("query-migrate")
            status = progress.get("status")
            if status == "completed":
                return
            if status in {"failed", "cancelled"}:
                why = progress.get("error-desc", "QEMU gives no reason")
                raise HypervisorError(f"the guest's state could not be moved: {why}")
            if clock.monotonic() > deadline:
                raise HypervisorError(f"the guest's state was not moved within {timeout_s:g} s")
            clock.sleep(_POLL_S)

    # Forwards of the user-mode network

    def connections(self) -> tuple[UserConnection, ...]:
        """Return the TCP connections and listening forwards of the user-mode network."""
        return parse_connections(self.human("info usernet"))

    def add_forwards(self, forwards: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
        """Let QEMU listen on ports of loopback; return those it did not listen on before.

        Raises PortInUse, and then has taken back what it added.
        """
        added: list[PortMapping] = []
        for mapping in forwards:
            rule = f"tcp:{_LOOPBACK}:{mapping.host_port}-:{mapping.guest_port}"
            complaint = self.human(f"hostfwd_add {NETDEV_ID} {rule}").strip()
            if not complaint:
                added.append(mapping)
            elif not self._listens_on(mapping):
                self.remove_forwards(added)
                raise _forward_error(mapping, complaint)
        return tuple(added)

    def remove_forwards(self, forwards: Sequence[PortMapping]) -> None:
        """Let QEMU no longer listen on ports of loopback."""
        for mapping in forwards:
            self.human(f"hostfwd_remove {NETDEV_ID} tcp:{_LOOPBACK}:{mapping.host_port}")

    def _listens_on(self, mapping: PortMapping) -> bool:
        wanted = UserConnection(
            state=LISTENING, host_port=mapping.host_port, guest_port=mapping.guest_port
        )
        return wanted in self.connections()


def parse_connections(printed: str) -> tuple[UserConnection, ...]:
    """Read what `info usernet` prints."""
    return tuple(
        UserConnection(
            state=match["state"],
            host_port=int(match["host_port"]),
            guest_port=int(match["guest_port"]),
        )
        for match in _CONNECTION_LINE.finditer(printed)
    )


def _forward_error(mapping: PortMapping, complaint: str) -> HypervisorError | PortInUse:
    if "could not set up host forwarding rule" in complaint.lower():
        return PortInUse(mapping.host_port)
    return HypervisorError(f"port {mapping.host_port} cannot be published: {complaint}")


def _result(command: str, reply: str) -> Any:
    document = json.loads(reply)
    if "error" in document:
        why = document["error"].get("desc", "no reason given")
        raise HypervisorError(f"QEMU refuses {command}: {why}")
    return document["return"]
