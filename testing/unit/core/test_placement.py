# SPDX-License-Identifier: Apache-2.0
"""Room and ports are claims: never given away twice, never taken from others."""

from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from pycloud.adapters.fakes import FakeClock, FakeSensors
from pycloud.adapters.store.memory import MemoryStore
from pycloud.core.model.catalog import Flavor
from pycloud.core.model.identifiers import HostId
from pycloud.core.placement import Placement, PlacementOptions
from pycloud.errors import CapacityExceeded, HypervisorError, NoFreePort, PortInUse
from testing.unit.core.races import at_once

HOST = HostId("local")
OPTIONS = PlacementOptions(
    host_id=HOST,
    max_instances=4,
    reserved_memory_mib=1024,
    memory_overcommit=1.0,
    port_range=(20000, 20004),
)
SMALL = Flavor(vcpus=1, memory_mib=256)


class Bench:
    def __init__(self, options=OPTIONS, memory_mib=4096, overhead_mib=0):
        self.overhead_mib = overhead_mib
        self.store = MemoryStore()
        self.clock = FakeClock()
        self.sensors = FakeSensors(memory_mib=memory_mib)
        self.placement = self.server(options)

    def server(self, options=OPTIONS):
        return Placement(
            store=self.store,
            clock=self.clock,
            sensors=self.sensors,
            overhead_mib=lambda: self.overhead_mib,
            options=options,
        )

    def leased(self):
        return sorted(lease.port for lease in self.store.port_leases.find().items)


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def placement(bench):
    return bench.placement


@pytest.mark.parametrize(("overcommit", "memory_mib"), [(1.0, 3072), (1.5, 4608), (0.5, 1536)])
def test_capacity_is_what_the_host_can_spare(overcommit, memory_mib):
    host = Bench(replace(OPTIONS, memory_overcommit=overcommit)).placement.host()

    assert (host.vcpus, host.memory_mib, host.max_instances) == (4, memory_mib, 4)


def test_capacity_of_a_host_with_less_than_is_reserved_is_none():
    assert Bench(memory_mib=512).placement.host().memory_mib == 0


def test_capacity_follows_the_settings_and_keeps_claims(bench):
    bench.placement.claim("a", SMALL)

    host = bench.server(replace(OPTIONS, max_instances=9)).refresh_host()

    assert (host.max_instances, [claim.holder for claim in host.claims]) == (9, ["a"])


def test_host_is_recorded_once_when_many_ask_first(bench):
    hosts = at_once([bench.placement.host] * 8)

    assert len(set(hosts)) == 1


def test_claim_counts_what_the_emulator_takes():
    placement = Bench(overhead_mib=64).placement
    placement.claim("a", Flavor(vcpus=1, memory_mib=2700))
    fitting, larger = Flavor(vcpus=1, memory_mib=244), Flavor(vcpus=1, memory_mib=245)

    with pytest.raises(CapacityExceeded, match="245 MiB of memory and 64 for its emulator, 308 of"):
        placement.claim("b", larger)

    assert not placement.could_fit(larger, without=())
    assert placement.could_fit(fitting, without=())
    placement.claim("b", fitting)
    assert placement.host().claimed_memory_mib == 3072


def test_claim_twice_is_one_claim(placement):
    placement.claim("a", SMALL)
    placement.claim("a", SMALL)

    assert placement.host().claimed_memory_mib == 256


def test_claim_beyond_the_memory_is_refused_with_the_figures(placement):
    placement.claim("a", Flavor(vcpus=1, memory_mib=3000))

    with pytest.raises(CapacityExceeded, match="needs 256 MiB of memory, 72 of 3072 MiB are free"):
        placement.claim("b", SMALL)


def test_claim_beyond_the_count_is_refused_with_the_figures(placement):
    for number in range(4):
        placement.claim(str(number), SMALL)

    with pytest.raises(CapacityExceeded, match=r"4 of 4 instances .* pycloud\.max_instances"):
        placement.claim("b", SMALL)


def test_claims_never_exceed_the_room_when_they_race(bench):
    servers = [bench.server() for _ in range(12)]

    results = at_once(
        [partial(server.claim, str(number), SMALL) for number, server in enumerate(servers)]
    )

    refused = [result for result in results if isinstance(result, CapacityExceeded)]
    assert (len(bench.placement.host().claims), len(refused)) == (4, 8)


def test_release_gives_room_and_ports_back_and_only_the_holders(bench, placement):
    for holder in ("a", "b"):
        placement.claim(holder, SMALL)
        placement.lease_port(holder, 80)

    placement.release("a")
    placement.release("a")

    assert placement.holders() == {"b"}
    assert len(bench.leased()) == 1


@pytest.mark.parametrize(("without", "fits"), [((), False), (("a",), True)])
def test_room_that_others_could_give_back_is_counted(placement, without, fits):
    placement.claim("a", Flavor(vcpus=1, memory_mib=3000))

    assert placement.could_fit(SMALL, without=without) is fits


def test_ports_are_leased_once_when_leases_race(bench):
    results = at_once([partial(bench.server().lease_port, str(number), 80) for number in range(8)])

    ports = [result.host_port for result in results if not isinstance(result, Exception)]
    assert sorted(ports) == [20000, 20001, 20002, 20003, 20004]
    assert sum(isinstance(result, NoFreePort) for result in results) == 3


def test_attempt_is_repeated_until_a_port_is_free(bench, placement):
    tried = []

    def attempt(ports):
        tried.append(ports[0].host_port)
        if len(tried) < 3:
            raise PortInUse(ports[0].host_port)

    ports = placement.with_port("a", 80, attempt)

    assert len(set(tried)) == 3
    assert ports == placement.ports_of("a", 80)
    assert (ports[0].guest_port, ports[0].host_port) == (80, tried[-1])


def test_attempt_uses_the_port_that_is_leased_already(placement):
    leased = placement.lease_port("a", 80)

    assert placement.with_port("a", 80, lambda _ports: None) == (leased,)


def test_attempt_that_fails_otherwise_is_not_repeated(placement):
    def attempt(_ports):
        raise HypervisorError("no")

    with pytest.raises(HypervisorError):
        placement.with_port("a", 80, attempt)


def test_attempt_gives_up_when_all_ports_are_in_use(bench, placement):
    def attempt(ports):
        raise PortInUse(ports[0].host_port)

    with pytest.raises(NoFreePort, match="all 5 ports"):
        placement.with_port("a", 80, attempt)

    assert placement.holders() == frozenset()


def test_attempt_gives_up_after_many_ports_in_a_row():
    placement = Bench(replace(OPTIONS, port_range=(20000, 20999))).placement

    def attempt(ports):
        raise PortInUse(ports[0].host_port)

    with pytest.raises(NoFreePort, match="16 ports"):
        placement.with_port("a", 80, attempt)


def test_blocked_port_is_given_out_again_when_its_time_is_over(bench, placement):
    port = placement.lease_port("a", 80).host_port
    placement.block_port(port)
    placement.unblock_ports()
    before = bench.leased()
    bench.clock.advance(timedelta(minutes=5).total_seconds())

    placement.unblock_ports()

    assert (before, bench.leased()) == ([port], [])


def test_unblocking_spares_a_port_that_was_leased_anew_meanwhile(bench, placement):
    lease = placement.lease_port("a", 80)
    placement.block_port(lease.host_port)
    bench.clock.advance(600)
    find = bench.store.port_leases.find

    def find_then_lease(where=None, **options):
        found = find(where, **options)
        bench.store.port_leases.find = find
        bench.server().unblock_ports()
        for number in range(5):
            bench.server().lease_port(f"new {number}", 80)
        return found

    bench.store.port_leases.find = find_then_lease

    placement.unblock_ports()

    assert len(bench.leased()) == 5


def test_release_spares_a_port_that_was_leased_anew_meanwhile(bench, placement):
    """Two releases of one holder overlap: the slower one finds what it no longer has."""
    placement.lease_port("a", 80)
    find = bench.store.port_leases.find

    def find_then_lease(where=None, **options):
        found = find(where, **options)
        bench.store.port_leases.find = find
        bench.server().release("a")
        for number in range(5):
            bench.server().lease_port(f"new {number}", 80)
        return found

    bench.store.port_leases.find = find_then_lease

    placement.release("a")

    assert len(bench.leased()) == 5


def test_release_spares_a_port_that_was_blocked_meanwhile(bench, placement):
    port = placement.lease_port("a", 80).host_port
    find = bench.store.port_leases.find

    def find_then_block(where=None, **options):
        found = find(where, **options)
        bench.store.port_leases.find = find
        bench.server().block_port(port)
        return found

    bench.store.port_leases.find = find_then_block

    placement.release("a")

    assert bench.leased() == [port]


def test_racing_releases_of_one_holder_give_everything_back_once(bench, placement):
    placement.claim("a", SMALL)
    placement.lease_port("a", 80)

    results = at_once([partial(bench.server().release, "a") for _ in range(6)])

    assert not any(isinstance(result, Exception) for result in results)
    assert (bench.leased(), placement.holders()) == ([], frozenset())
