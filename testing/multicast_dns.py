# SPDX-License-Identifier: Apache-2.0
"""Asks multicast DNS on loopback with dnspython, which shares no code with what it checks."""

import socket
import struct
import time

import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype
import dns.rrset

GROUP = ("224.0.0.251", 5353)
ASK_AGAIN_S = 0.5
MAX_DATAGRAM_BYTES = 9000


def ask(name: str, record_type: str, *, timeout_s: float = 20.0) -> list[dns.rrset.RRset]:
    """Return all record sets of the first response that answers the question.

    The question comes from an ephemeral port, so responders answer it as RFC 6762
    section 6.7 says, directly to us. Raises TimeoutError.
    """
    query = dns.message.make_query(name, record_type)
    query.flags &= ~dns.flags.RD
    wanted = dns.rdatatype.from_text(record_type)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, struct.pack("B", 255))
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(ASK_AGAIN_S)
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            sock.sendto(query.to_wire(), GROUP)
            try:
                wire = sock.recv(MAX_DATAGRAM_BYTES)
            except TimeoutError:
                continue
            # Names within NSEC records are compressed as RFC 6762 section 18.14 says, which
            # plain DNS, and so dnspython, forbids; those records are passed over.
            answer = dns.message.from_wire(wire, continue_on_error=True)
            if any(found.rdtype == wanted for found in answer.answer):
                return [*answer.answer, *answer.additional]
    raise TimeoutError(f"nobody answered for {name} {record_type}")


def of_type(records: list[dns.rrset.RRset], record_type: str) -> list:
    """Return the records of one type."""
    wanted = dns.rdatatype.from_text(record_type)
    return [record for found in records if found.rdtype == wanted for record in found]
