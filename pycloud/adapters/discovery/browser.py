# SPDX-License-Identifier: Apache-2.0
"""Looks for cloudlets with python-zeroconf and keeps a table of them up to date.

A goodbye removes a peer at once. One that vanished without it stays in the library's
cache for 75 minutes (the lifetime of its pointer), so `refresh` asks every known one
again and drops those that no longer answer. This module announces nothing.
"""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError, Future
from ipaddress import ip_address

from zeroconf import Error, IPVersion, ServiceBrowser, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo

from pycloud.adapters.discovery.announcement import LEGACY_TYPE, MODERN_TYPE, Sighting
from pycloud.adapters.discovery.dns import DOMAIN, QUESTION_FOR_ALL, RecordType, send_question
from pycloud.adapters.discovery.peer_table import PeerTable

_RESOLVE_TIMEOUT_MS = 3000
_MAX_KNOWN = 512
_MAX_IN_FLIGHT = 64

log = logging.getLogger(__name__)


class CloudletBrowser:
    """Browses both service types on one Zeroconf, which it does not close."""

    def __init__(self, zeroconf: Zeroconf, table: PeerTable) -> None:
        self._zeroconf = zeroconf
        self._table = table
        self._lock = threading.Lock()
        self._known: set[tuple[str, str]] = set()
        self._in_flight: dict[tuple[str, str], Future[None]] = {}
        self._is_closed = False
        self._types = [f"{LEGACY_TYPE}.{DOMAIN}", f"{MODERN_TYPE}.{DOMAIN}"]
        self.on_loopback = True
        """Whether loopback addresses of others are believed."""
        self._browser = ServiceBrowser(zeroconf, self._types, handlers=[self._changed])

    def close(self) -> None:
        """Stop to browse and to look up."""
        self._browser.cancel()
        with self._lock:
            self._is_closed = True
            in_flight = list(self._in_flight.values())
        for future in in_flight:
            future.cancel()

    def refresh(self) -> None:
        """Ask for everything known again; what does not answer is dropped."""
        with self._lock:
            known = list(self._known)
        for service_type, name in known:
            self._resolve(service_type, name)

    def ask(self) -> None:
        """Ask the network now who is there, as after an interface came up."""
        send_question(self._zeroconf, [(name, RecordType.POINTER) for name in self._types])

    def _changed(
        self,
        zeroconf: Zeroconf,  # noqa: ARG002  (the library passes it by name)
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        key = (service_type, name)
        with self._lock:
            if state_change is ServiceStateChange.Removed:
                self._known.discard(key)
            elif key not in self._known and len(self._known) >= _MAX_KNOWN:
                return
            else:
                self._known.add(key)
        if state_change is ServiceStateChange.Removed:
            self._table.lose(_bare(service_type), _instance(service_type, name))
        else:
            self._resolve(service_type, name)

    def _resolve(self, service_type: str, name: str) -> None:
        key = (service_type, name)
        loop = self._zeroconf.loop
        with self._lock:
            if key in self._in_flight or len(self._in_flight) >= _MAX_IN_FLIGHT:
                return  # The next refresh comes back to it.
            if loop is None or self._is_closed:
                return
            future = asyncio.run_coroutine_threadsafe(self._look_up(service_type, name), loop)
            self._in_flight[key] = future
        future.add_done_callback(lambda done: self._landed(key, done))

    async def _look_up(self, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        answered = await info.async_request(
            self._zeroconf, _RESOLVE_TIMEOUT_MS, question_type=QUESTION_FOR_ALL
        )
        with self._lock:
            is_known = (service_type, name) in self._known
        if not is_known:
            return  # It said goodbye meanwhile.
        instance = _instance(service_type, name)
        if not answered or info.port is None:
            self._table.lose(_bare(service_type), instance)
            return
        addresses = info.parsed_addresses(IPVersion.All)
        self._table.see(
            Sighting(
                service_type=_bare(service_type),
                name=instance,
                addresses=tuple(
                    address
                    for address in addresses
                    if self.on_loopback or not ip_address(address.partition("%")[0]).is_loopback
                ),
                port=info.port,
                txt=info.text or b"",
            )
        )

    def _landed(self, key: tuple[str, str], done: "Future[None]") -> None:
        with self._lock:
            self._in_flight.pop(key, None)
        try:
            done.result()
        except (CancelledError, Error) as exc:
            # Ours was closed, or a name that is none; there is nobody to tell.
            log.debug("discovery.look_up_failed", extra={"error": repr(exc)})


def _bare(service_type: str) -> str:
    return service_type.removesuffix(f".{DOMAIN}")


def _instance(service_type: str, name: str) -> str:
    return name.removesuffix(f".{service_type}")
