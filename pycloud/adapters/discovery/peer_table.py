# SPDX-License-Identifier: Apache-2.0
"""The other cloudlets seen at present: sightings of two service types, joined by name."""

import threading
from dataclasses import dataclass

from pycloud.adapters.discovery.announcement import (
    LEGACY_TYPE,
    MODERN_TYPE,
    Sighting,
    make_peer,
    peer_name,
    txt_value,
)
from pycloud.core.model.fleet import Peer
from pycloud.core.ports import Clock

_MAX_SIGHTINGS = 512
"""More than any segment holds; what a flood of announcements can cost us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnName:
    """How we recognise ourselves: our name, and the identity that we announce with it."""

    name: str
    identity: str


class PeerTable:
    """Sightings by type and name. Thread-safe; never grows beyond a bound."""

    def __init__(self, clock: Clock, *, own: OwnName | None = None) -> None:
        self._clock = clock
        self._own = own
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._sightings: dict[tuple[str, str], Sighting] = {}

    def see(self, sighting: Sighting) -> None:
        """Note a resolved service, or what changed about it."""
        name = peer_name(sighting.name)
        if name is None:
            return
        key = (sighting.service_type, name)
        with self._lock:
            if key not in self._sightings and len(self._sightings) >= _MAX_SIGHTINGS:
                return
            self._sightings[key] = sighting
            self._refresh(name)

    def lose(self, service_type: str, instance: str) -> None:
        """Forget a service that said goodbye or no longer answers."""
        name = peer_name(instance)
        if name is None:
            return
        with self._lock:
            if self._sightings.pop((service_type, name), None) is not None:
                self._refresh(name)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._sightings.clear()
            self._peers.clear()

    def peers(self) -> tuple[Peer, ...]:
        """Return all cloudlets but ourselves, by name."""
        with self._lock:
            return tuple(self._peers[name] for name in sorted(self._peers))

    def _refresh(self, name: str) -> None:
        legacy = self._sightings.get((LEGACY_TYPE, name))
        modern = self._sightings.get((MODERN_TYPE, name))
        peer = make_peer(name, legacy=legacy, modern=modern, seen_at=self._clock.now())
        if peer is None or self._is_own(name, modern):
            self._peers.pop(name, None)
            return
        self._peers[name] = peer

    def _is_own(self, name: str, modern: Sighting | None) -> bool:
        if self._own is None:
            return False
        if modern is None:
            return name == self._own.name
        return txt_value(modern.txt, "id") == self._own.identity
