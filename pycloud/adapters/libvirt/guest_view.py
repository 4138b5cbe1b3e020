# SPDX-License-Identifier: Apache-2.0
"""The GuestView port: what can be seen of a guest without its help. Changes nothing."""

import xml.etree.ElementTree as ET  # parses what libvirt says of our own domain
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycloud.adapters.libvirt.connection import LibvirtRefused
from pycloud.adapters.libvirt.domains import PAUSED, RUNNING, STALLED
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.adapters.libvirt.monitor import LISTENING
from pycloud.adapters.libvirt.neighbours import ask_all, known_address
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.errors import DomainNotFound

# States of a connection in which the guest's own answer is still to come, or was a refusal.
_NOT_ACCEPTED = frozenset({LISTENING, "NONE", "CLOSED", "LISTEN", "SYN_SENT", "SYN_RCVD"})


class LibvirtGuestView:
    """Looks at domains of this cloudlet."""

    def __init__(self, host: LibvirtHost) -> None:
        self._host = host

    def serial_tail(self, owner: InstanceId, *, limit_bytes: int) -> bytes:
        """Return the end of the guest's serial output, b"" if there is none."""
        return self._host.files.serial_tail(owner, limit_bytes=limit_bytes)

    def is_alive(self, domain_id: DomainId) -> bool:
        """Return whether the guest executes or was paused on request."""
        domain = self._host.domains.find(domain_id)
        return domain is not None and domain.state in {RUNNING, PAUSED, STALLED}

    def accepts(self, domain_id: DomainId, port: int) -> bool:
        """Return whether a connection to a published port got beyond the emulator.

        On a bridge no emulator stands in front of the guest, so whatever was connected was.
        """
        try:
            self._host.domains.require(domain_id)
            connections = self._host.monitor(domain_id).connections()
        except (DomainNotFound, LibvirtRefused):
            return False
        if not connections:
            # QEMU prints at least the forward that listens, unless there is no user-mode network.
            return self._card(domain_id) is not None
        return any(
            item.host_port == port and item.state not in _NOT_ACCEPTED for item in connections
        )

    def is_connected(self, domain_id: DomainId) -> bool:
        """Return whether the user-mode network has a connection with the guest."""
        try:
            self._host.domains.require(domain_id)
            connections = self._host.monitor(domain_id).connections()
        except (DomainNotFound, LibvirtRefused):
            return False
        return any(item.state not in _NOT_ACCEPTED for item in connections)

    def address(self, domain_id: DomainId) -> str | None:
        """Return a bridged guest's IPv4 address once the host has heard of it."""
        if self._host.domains.find(domain_id) is None:
            return None
        card = self._card(domain_id)
        if card is None:
            return None
        address = known_address(card.mac_address)
        if address is None:
            # The answer comes in a moment; whoever asks, asks again.
            ask_all(card.bridge)
        return address

    def _card(self, domain_id: DomainId) -> "_Card | None":
        def call(handle: Any) -> str:  # Any: libvirt ships no types.
            return str(handle.lookupByUUIDString(domain_id).XMLDesc(0))

        try:
            root = ET.fromstring(self._host.connection.run(call))  # noqa: S314  # libvirt wrote it
        except LibvirtRefused:
            return None
        mac = root.find("devices/interface/mac")
        device = root.find("devices/interface/target")
        if mac is None or device is None:
            return None
        bridge = Path("/sys/class/net") / device.get("dev", "") / "master"
        return _Card(mac_address=mac.get("address", ""), bridge=bridge.resolve().name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """A guest's network card and the bridge it is plugged into."""

    mac_address: str
    bridge: str
