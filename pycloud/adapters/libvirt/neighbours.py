# SPDX-License-Identifier: Apache-2.0
"""Find the IPv4 address of a guest on a bridge by its network address.

The host learns a neighbour's address only when it talks to it, so it is made to: one
empty datagram to every address of the bridge's own network lets the kernel ask for
them all. Needs no privilege; large networks are left alone.
"""

import contextlib
import ipaddress
import socket
from pathlib import Path

import psutil

_ARP_TABLE = Path("/proc/net/arp")
_DISCARD_PORT = 9
_LARGEST_NETWORK = 1024
_COMPLETE = 0x2


def known_address(mac_address: str, *, table: str | None = None) -> str | None:
    """Return the address that the kernel's table has for a station, None if it has none."""
    text = _ARP_TABLE.read_text(encoding="ascii") if table is None else table
    for line in text.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 6:
            continue
        address, _kind, flags, station = columns[:4]
        if station.lower() == mac_address.lower() and int(flags, 16) & _COMPLETE:
            return address
    return None


def ask_all(interface: str) -> None:
    """Let the kernel look for every station in the networks of an interface."""
    for network in searchable_networks(interface):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0)
            for address in network.hosts():
                # A full queue or an unreachable station is no reason to stop.
                with contextlib.suppress(OSError):
                    sender.sendto(b"", (str(address), _DISCARD_PORT))


def searchable_networks(interface: str) -> list[ipaddress.IPv4Network]:
    """Return the networks of an interface in which stations can be looked for."""
    networks = []
    for entry in psutil.net_if_addrs().get(interface, []):
        if entry.family is socket.AF_INET and entry.netmask is not None:
            network = ipaddress.IPv4Network(f"{entry.address}/{entry.netmask}", strict=False)
            if network.num_addresses <= _LARGEST_NETWORK:
                networks.append(network)
    return networks
