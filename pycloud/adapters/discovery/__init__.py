# SPDX-License-Identifier: Apache-2.0
"""Announce this cloudlet over multicast DNS and see others; one module per way to do it."""

import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

from pycloud.adapters.discovery.avahi import AvahiDiscovery, run_avahi_browse
from pycloud.adapters.discovery.avahi_file import AvahiFile
from pycloud.adapters.discovery.finder import find_by_avahi, find_by_zeroconf
from pycloud.adapters.discovery.zeroconf_discovery import Intervals, Reach, ZeroconfDiscovery
from pycloud.adapters.interfaces import multicast_addresses, settled_address
from pycloud.core.model.fleet import Cloudlet, Peer
from pycloud.core.ports import Clock, Discovery
from pycloud.settings import Settings

__all__ = [
    "AvahiDiscovery",
    "AvahiFile",
    "Intervals",
    "NoDiscovery",
    "Reach",
    "ZeroconfDiscovery",
    "discovery_for",
    "find_cloudlets",
    "identity_of",
]

_IDENTITIES = uuid.UUID("6f0e4a52-7a1d-5d0c-9f43-6b1f3a1d0c57")
"""Chosen once, at random; the namespace (RFC 9562) of the identities of cloudlets."""


class NoDiscovery:
    """The Discovery port for an operator who wants none."""

    def start(self) -> None:
        """Do nothing."""

    def update_load(self, *, load_percent: int, services: Sequence[str]) -> None:
        """Do nothing."""

    def peers(self) -> tuple[Peer, ...]:
        """Return nobody."""
        return ()

    def problem(self) -> str | None:
        """Return None: not to be announced is what was asked for."""
        return None

    def stop(self) -> None:
        """Do nothing."""


def discovery_for(settings: Settings, cloudlet: Cloudlet, clock: Clock) -> Discovery:
    """Return the discovery that the settings choose, not yet started."""
    if settings.discovery == "off":
        return NoDiscovery()
    if settings.discovery == "avahi":
        file = AvahiFile(cloudlet, clock, identity=identity_of(settings, cloudlet))
        return AvahiDiscovery(cloudlet, clock, file=file)
    names = settings.discovery_interfaces
    return ZeroconfDiscovery(
        cloudlet,
        clock,
        identity=identity_of(settings, cloudlet),
        reach=Reach(
            addresses=lambda: multicast_addresses(names),
            published_address=settled_address(settings),
            none_of=f"none of the interfaces {', '.join(names)}" if names else "no interface",
        ),
    )


def find_cloudlets(settings: Settings, clock: Clock, *, timeout_s: float) -> tuple[Peer, ...]:
    """Return the cloudlets around, this machine's included, as a stranger sees them.

    Takes at most about `timeout_s`, less once no more turn up. Raises DiscoveryError.
    """
    if settings.discovery == "avahi":
        return find_by_avahi(clock, run_avahi_browse)
    return find_by_zeroconf(clock, timeout_s=timeout_s, interfaces=settings.discovery_interfaces)


def identity_of(settings: Settings, cloudlet: Cloudlet) -> str:
    """Return a UUID that stays the same over reboots and differs between cloudlets.

    Made from the machine's id, which must not be shown itself (machine-id(5)), the data
    directory and the name, since machines are cloned from images together with their ids.
    """
    return str(
        uuid.uuid5(_IDENTITIES, "\n".join([_machine_id(), str(settings.data_dir), cloudlet.name]))
    )


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return f"{socket.gethostname()} {uuid.getnode()}"
