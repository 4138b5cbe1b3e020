# SPDX-License-Identifier: Apache-2.0
"""The IPv4 addresses of this host, asked of the kernel without any library; for the relay only."""

import array
import fcntl
import socket
import struct

_SIOCGIFCONF = 0x8912
_MAX_ADDRESSES = 4096
# struct ifreq of netdevice(7): a name of 16 bytes and a socket address in a union of 24.
_ENTRY = struct.Struct("@16sHH4s16x" if struct.calcsize("P") == 8 else "@16sHH4s8x")


def host_addresses() -> frozenset[str]:
    """Return all IPv4 addresses of this host that are not loopback, see netdevice(7)."""
    found = array.array("B", bytes(_ENTRY.size * _MAX_ADDRESSES))
    place, size = found.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", size, place))
    used, _ = struct.unpack("iP", answer)
    entries = _ENTRY.iter_unpack(found.tobytes()[:used])
    addresses = (socket.inet_ntoa(packed) for _name, _family, _port, packed in entries)
    return frozenset(address for address in addresses if not is_loopback(address))


def is_loopback(address: str) -> bool:
    """Return whether only this machine can use an IPv4 address."""
    return address.startswith("127.")
