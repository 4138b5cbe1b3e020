# SPDX-License-Identifier: Apache-2.0
"""The IPv4 addresses of this machine's network interfaces; it changes nothing about them."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

import ifaddr
import psutil

from pycloud.settings import Settings

LOOPBACK_ADDRESS = "127.0.0.1"
_BEYOND_THE_GATEWAY = ("198.51.100.1", 9)
"""An address of TEST-NET-2 (RFC 5737), which no interface has; nothing is sent to it."""


EVERYWHERE = "0.0.0.0"  # noqa: S104  # compared with, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """One IPv4 address of one interface."""

    interface: str
    address: str
    prefix_length: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can use it."""
        return IPv4Address(self.address).is_loopback


def interface_addresses() -> tuple[InterfaceAddress, ...]:
    """Return all IPv4 addresses of all interfaces, in the kernel's order."""
    return tuple(
        InterfaceAddress(
            interface=adapter.name, address=str(ip.ip), prefix_length=ip.network_prefix
        )
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv4
    )


def multicast_addresses(names: Sequence[str] = ()) -> tuple[InterfaceAddress, ...]:
    """Return the addresses of interfaces that are up and fit for discovery.

    With `names`, those of these interfaces; else all but loopback; else, if there is
    nothing else, loopback.
    """
    states = psutil.net_if_stats()
    running = [
        item
        for item in interface_addresses()
        if (state := states.get(item.interface.partition(":")[0])) is not None and state.isup
    ]
    if names:
        return tuple(item for item in running if item.interface.partition(":")[0] in names)
    outside = tuple(item for item in running if not item.is_loopback)
    return outside or tuple(running)


def settled_address(settings: Settings) -> str | None:
    """Return the address to tell clients if the settings leave no choice, else None.

    With `auto` that is the one on which we listen, if it is a single one.
    """
    told = (settings.publish_address, settings.publish_bind, settings.api_host)
    return next((address for address in told if address not in {"auto", EVERYWHERE}), None)


def default_route_address() -> str | None:
    """Return our address on the default route, None without one.

    Connecting a UDP socket makes the kernel choose a route and sends nothing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_BEYOND_THE_GATEWAY)
        except OSError:
            return None
        address = str(sock.getsockname()[0])
    return None if IPv4Address(address).is_unspecified else address


def preferred_address(candidates: Sequence[InterfaceAddress] | None = None) -> str:
    """Return the address at which others most likely reach this machine.

    That of the default route; else the first one that is not loopback; else loopback.
    With `candidates`, only these count.
    """
    known = interface_addresses() if candidates is None else candidates
    routed = default_route_address()
    if routed is not None and any(item.address == routed for item in known):
        return routed
    outside = [item.address for item in known if not item.is_loopback]
    return outside[0] if outside else LOOPBACK_ADDRESS
