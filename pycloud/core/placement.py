# SPDX-License-Identifier: Apache-2.0
"""Room on the Host: who may start, and which port each Instance is given.

Both are claims written by compare-and-swap, never a look followed by a use, so
several servers on one store cannot give the same room or port away twice.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from pycloud.core.model.catalog import Flavor
from pycloud.core.model.fleet import Claim, Host, ThisHost
from pycloud.core.model.identifiers import HostId
from pycloud.core.model.runtime import PortLease, PortMapping
from pycloud.core.ports import Clock, HostSensors, Store, every
from pycloud.errors import (
    CapacityExceeded,
    DuplicateRecord,
    NoFreePort,
    NotFound,
    PortInUse,
    StaleRecord,
)

_BLOCKED_FOR = timedelta(minutes=5)
"""How long a port that another program holds is left alone."""
_PORT_ATTEMPTS = 16
_GENERATIONS = 2**48
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementOptions:
    """What a Host is allowed to give away; see the settings of the same names."""

    host_id: HostId
    max_instances: int
    reserved_memory_mib: int
    memory_overcommit: float
    port_range: tuple[int, int]


class Placement:
    """Claims of memory and ports on this Host. Safe to use from several threads."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        sensors: HostSensors,
        overhead_mib: Callable[[], int],
        options: PlacementOptions,
    ) -> None:
        """`overhead_mib` tells what a guest costs the Host beyond the guest's own memory."""
        self._store = store
        self._clock = clock
        self._sensors = sensors
        self._overhead_mib = overhead_mib
        self._options = options

    @property
    def host_id(self) -> HostId:
        """The id of the Host on which claims are made."""
        return self._options.host_id

    @property
    def this_host(self) -> ThisHost:
        """The Host on which claims are made, for looking what is on it."""
        return ThisHost(id=self._options.host_id)

    def host(self) -> Host:
        """Return the Host with its claims; it is recorded at the first call."""
        try:
            return self._store.hosts.get(self._options.host_id)
        except NotFound:
            return self._record_host()

    def refresh_host(self) -> Host:
        """Bring the recorded capacity in line with this machine and the settings."""
        self.host()
        return self._change_host(
            lambda host: replace(
                host,
                vcpus=self._measured().vcpus,
                memory_mib=self._measured().memory_mib,
                max_instances=self._options.max_instances,
            )
        )

    def claim(self, holder: str, flavor: Flavor) -> None:
        """Claim room for `holder`; nothing happens if it holds a claim already.

        Raises CapacityExceeded with the figures that were compared.
        """
        overhead_mib = self._overhead_mib()

        def add(host: Host) -> Host:
            if any(claim.holder == holder for claim in host.claims):
                return host
            _require_room(host, flavor, overhead_mib)
            memory_mib = flavor.memory_mib + overhead_mib
            claim = Claim(holder=holder, vcpus=flavor.vcpus, memory_mib=memory_mib)
            return replace(host, claims=(*host.claims, claim))

        self._change_host(add)

    def could_fit(self, flavor: Flavor, *, without: Collection[str]) -> bool:
        """Return whether there would be room if these holders gave theirs back."""
        host = self.host()
        claims = tuple(claim for claim in host.claims if claim.holder not in without)
        try:
            _require_room(replace(host, claims=claims), flavor, self._overhead_mib())
        except CapacityExceeded:
            return False
        return True

    def release(self, holder: str) -> None:
        """Give room and ports of `holder` back; idempotent."""
        for lease in self._store.port_leases.find({"holder": holder}).items:
            self._remove(lease)
        self._change_host(
            lambda host: replace(
                host, claims=tuple(claim for claim in host.claims if claim.holder != holder)
            )
        )

    def lease_port(self, holder: str, guest_port: int) -> PortMapping:
        """Lease a free host port for a guest port. Raises NoFreePort."""
        low, high = self._options.port_range
        size = high - low + 1
        begin = random.randrange(size)  # noqa: S311  # spreads claims, guards nothing
        for step in range(size):
            port = low + (begin + step) % size
            try:
                self._store.port_leases.add(self._lease(port, holder))
            except DuplicateRecord:
                continue
            return PortMapping(guest_port=guest_port, host_port=port)
        raise NoFreePort(f"all {size} ports of pycloud.port_range {low}-{high} are leased")

    def with_port(
        self, holder: str, guest_port: int, attempt: Callable[[tuple[PortMapping, ...]], None]
    ) -> tuple[PortMapping, ...]:
        """Call `attempt` with a leased port until no other program holds that port.

        A lease that `holder` has already is tried first. Raises NoFreePort.
        """
        for _ in range(_PORT_ATTEMPTS):
            ports = self.ports_of(holder, guest_port) or (self.lease_port(holder, guest_port),)
            try:
                attempt(ports)
            except PortInUse as exc:
                self.block_port(exc.port)
                continue
            return ports
        raise NoFreePort(
            f"{_PORT_ATTEMPTS} ports of pycloud.port_range in a row are used by other programs;"
            " choose another range"
        )

    def ports_of(self, holder: str, guest_port: int) -> tuple[PortMapping, ...]:
        """Return what `holder` leased, as a mapping to the guest port."""
        leases = self._store.port_leases.find({"holder": holder}).items
        return tuple(PortMapping(guest_port=guest_port, host_port=lease.port) for lease in leases)

    def block_port(self, port: int) -> None:
        """Keep a leased port that another program holds from being given out for a while."""
        lease = self._store.port_leases.get(self._lease_id(port))
        blocked = replace(lease, holder="", blocked_until=self._clock.now() + _BLOCKED_FOR)
        self._store.port_leases.replace(blocked)

    def holders(self) -> frozenset[str]:
        """Return everybody who holds room or a port."""
        leases = every(self._store.port_leases, {"host_id": self._options.host_id})
        claims = {claim.holder for claim in self.host().claims}
        return frozenset(claims | {lease.holder for lease in leases if lease.holder})

    def unblock_ports(self) -> None:
        """Give ports out again whose blocking time is over."""
        now = self._clock.now()
        blocked = {"holder": "", "host_id": self._options.host_id}
        for lease in every(self._store.port_leases, blocked):
            if lease.blocked_until is not None and lease.blocked_until <= now:
                self._remove(lease)

    def _remove(self, lease: PortLease) -> None:
        """Remove exactly this lease, none that somebody took of the same port since."""
        try:
            self._store.port_leases.remove(lease.id, generation=lease.generation)
        except (NotFound, StaleRecord):
            # Another thread or server was faster, or the port was found taken and is blocked.
            return

    def _lease(self, port: int, holder: str) -> PortLease:
        return PortLease(
            id=self._lease_id(port),
            port=port,
            host_id=self._options.host_id,
            holder=holder,
            created_at=self._clock.now(),
            # The id comes back with the port. Drawn, so that no earlier lease was the same.
            generation=random.randrange(_GENERATIONS),  # noqa: S311  # tells apart, guards nothing
        )

    def _lease_id(self, port: int) -> str:
        return f"{self._options.host_id}:{port}"

    def _measured(self) -> Host:
        metadata = self._sensors.metadata()
        usable_mib = metadata.memory.max_bytes // _MIB - self._options.reserved_memory_mib
        return Host(
            id=self._options.host_id,
            vcpus=metadata.cpu.max_cores,
            memory_mib=max(int(usable_mib * self._options.memory_overcommit), 0),
            disk_gib=0,
            max_instances=self._options.max_instances,
            created_at=self._clock.now(),
        )

    def _record_host(self) -> Host:
        try:
            return self._store.hosts.add(self._measured())
        except DuplicateRecord:
            return self._store.hosts.get(self._options.host_id)

    def _change_host(self, change: Callable[[Host], Host]) -> Host:
        while True:
            host = self.host()
            wanted = change(host)
            if wanted == host:
                return host
            try:
                return self._store.hosts.replace(wanted)
            except StaleRecord:
                continue


def _require_room(host: Host, flavor: Flavor, overhead_mib: int) -> None:
    if len(host.claims) >= host.max_instances:
        raise CapacityExceeded(
            f"{len(host.claims)} of {host.max_instances} instances are in use;"
            " stop one or raise pycloud.max_instances"
        )
    free_mib = host.memory_mib - host.claimed_memory_mib
    if flavor.memory_mib + overhead_mib > free_mib:
        emulator = f" and {overhead_mib} for its emulator" if overhead_mib else ""
        raise CapacityExceeded(
            f"the service needs {flavor.memory_mib} MiB of memory{emulator}, {max(free_mib, 0)} of"
            f" {host.memory_mib} MiB are free; stop an instance or try another cloudlet"
        )
