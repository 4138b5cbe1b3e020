# SPDX-License-Identifier: Apache-2.0
"""Finds cloudlets as a stranger does: looks around once, announces nothing."""

from collections.abc import Sequence

from zeroconf import Error, Zeroconf

from pycloud.adapters.discovery.avahi import Browse, browse_avahi
from pycloud.adapters.discovery.browser import CloudletBrowser
from pycloud.adapters.discovery.peer_table import PeerTable
from pycloud.adapters.interfaces import multicast_addresses
from pycloud.core.model.fleet import Peer
from pycloud.core.ports import Clock
from pycloud.errors import DiscoveryError

_LOOK_S = 0.05
_SETTLED_S = 1.5
"""Nothing new for this long: all have answered, also who held back for a second what it
had just sent (RFC 6762 section 6)."""


def find_by_zeroconf(
    clock: Clock, *, timeout_s: float, interfaces: Sequence[str] = ()
) -> tuple[Peer, ...]:
    """Return the cloudlets that answer within the time, sooner once no more turn up.

    Raises DiscoveryError if nothing can be sent or heard.
    """
    found = multicast_addresses(interfaces)
    if not found:
        raise DiscoveryError("no interface is up with an IPv4 address")
    table = PeerTable(clock)
    try:
        with Zeroconf(interfaces=[item.address for item in found]) as zeroconf:
            browser = CloudletBrowser(zeroconf, table)
            try:
                _settle(table, clock, timeout_s)
            finally:
                browser.close()
    except (OSError, Error) as exc:
        raise DiscoveryError(f"multicast DNS does not work here: {exc}") from exc
    return table.peers()


def find_by_avahi(clock: Clock, browse: Browse) -> tuple[Peer, ...]:
    """Return the cloudlets that avahi-daemon sees. Raises DiscoveryError, ToolFailed."""
    table = PeerTable(clock)
    for sighting in browse_avahi(browse):
        table.see(sighting)
    return table.peers()


def _settle(table: PeerTable, clock: Clock, timeout_s: float) -> None:
    end_s = clock.monotonic() + timeout_s
    seen: tuple[Peer, ...] = ()
    settled_at_s = end_s
    while (now_s := clock.monotonic()) < min(end_s, settled_at_s):
        if (peers := table.peers()) != seen:
            seen = peers
            settled_at_s = now_s + _SETTLED_S
        clock.sleep(min(_LOOK_S, end_s - now_s))
