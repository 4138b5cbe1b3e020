# SPDX-License-Identifier: Apache-2.0
"""The Discovery port: the fake, and python-zeroconf on loopback; then what only the wire shows."""

import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from zeroconf import RecordUpdateListener, ServiceInfo, Zeroconf

from pycloud.adapters.clock import SystemClock
from pycloud.adapters.discovery import Intervals, Reach, ZeroconfDiscovery
from pycloud.adapters.discovery.announcement import txt_value
from pycloud.adapters.discovery.dns import DNSText
from pycloud.adapters.discovery.finder import find_by_zeroconf
from pycloud.adapters.fakes import FakeClock, FakeDiscovery, FakeNetwork
from pycloud.adapters.interfaces import InterfaceAddress
from pycloud.core.model.fleet import Cloudlet
from pycloud.errors import DiscoveryError
from testing.multicast_dns import ask, of_type

HANG_S = 30.0
LOOPBACK = InterfaceAddress(interface="lo", address="127.0.0.1", prefix_length=8)
QUICK = Intervals(look_s=0.05, load_s=0.3, refresh_s=1.0, retry_s=0.5)


def fresh_name() -> str:
    """Return a name that no other test on this machine announces."""
    return f"cloudlet-{uuid.uuid4().hex[:12]}"


def cloudlet(name: str, *, port: int = 9999) -> Cloudlet:
    return Cloudlet(name=name, fqdn=None, address="127.0.0.1", port=port, version="1.2.3")


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.02)


def peer_of(discovery, name):
    return next((peer for peer in discovery.peers() if peer.name == name), None)


def zeroconf_discovery(
    name, *, port=9999, addresses=lambda: (LOOPBACK,), clock=None
) -> ZeroconfDiscovery:
    return ZeroconfDiscovery(
        cloudlet(name, port=port),
        clock or SystemClock(),
        identity=uuid.uuid4().hex,
        reach=Reach(addresses=addresses),
        intervals=QUICK,
    )


@pytest.fixture(params=["fake", "zeroconf"])
def make(request):
    """Give a function that makes a discovery on a network shared by the test."""
    network = FakeNetwork()
    with contextlib.ExitStack() as stack:

        def make_one(name, *, port=9999):
            if request.param == "fake":
                made = FakeDiscovery(cloudlet(name, port=port), SystemClock(), network=network)
            else:
                made = zeroconf_discovery(name, port=port)
            stack.callback(made.stop)
            return made

        yield make_one


@pytest.fixture
def zeroconf():
    """A python-zeroconf of its own that plays other machines."""
    with Zeroconf(interfaces=["127.0.0.1"]) as running:
        yield running
        running.unregister_all_services()


@pytest.fixture
def started():
    """Give a function that starts a discovery by python-zeroconf and waits for its announcement."""
    with contextlib.ExitStack() as stack:

        def start(name, *, port=9999):
            discovery = zeroconf_discovery(name, port=port)
            stack.callback(discovery.stop)
            discovery.start()
            until(lambda: discovery.problem() is None)
            return discovery

        yield start


@pytest.fixture(scope="module")
def standing():
    """One discovery that is announced as long as this module's tests run; its name."""
    name = fresh_name()
    discovery = zeroconf_discovery(name, port=9992)
    discovery.start()
    until(lambda: discovery.problem() is None)
    yield Standing(name, discovery)
    discovery.stop()


@dataclass(frozen=True)
class Standing:
    """A discovery and the name under which it is announced."""

    name: str
    discovery: ZeroconfDiscovery


def announce(zeroconf, name, *, service_type="_cloudlet._tcp", **options):
    """Play a cloudlet that is not ours."""
    info = ServiceInfo(
        f"{service_type}.local.",
        f"{name}.{service_type}.local.",
        **{
            "port": 9999,
            "properties": b"\x13encryption=disabled",
            "server": f"{fresh_name()}.local.",
            "parsed_addresses": ["127.0.0.1"],
        }
        | options,
    )
    zeroconf.register_service(info, cooperating_responders=True)
    return info


def test_cloudlets_see_each_other_when_both_are_started(make):
    first, second = make(fresh_name(), port=9997), make(fresh_name(), port=9996)
    first.start()
    second.start()

    until(lambda: any(peer.port == 9996 for peer in first.peers()))
    until(lambda: any(peer.port == 9997 for peer in second.peers()))


def test_peer_is_whole_when_it_was_seen(make):
    name = fresh_name()
    first, second = make(fresh_name()), make(name, port=9995)
    first.start()
    second.start()

    until(lambda: (peer := peer_of(first, name)) is not None and peer.api_version == "2")

    peer = peer_of(first, name)
    assert (peer.addresses, peer.port) == (("127.0.0.1",), 9995)
    assert not peer.encryption
    assert not peer.tls
    assert peer.seen_at.tzinfo is not None


def test_cloudlet_does_not_see_itself_when_it_is_announced(make):
    name, other = fresh_name(), fresh_name()
    discovery, witness = make(name), make(other)
    discovery.start()
    witness.start()

    until(lambda: peer_of(witness, name) and peer_of(discovery, other))

    assert peer_of(discovery, name) is None


def test_peer_is_gone_when_it_said_goodbye(make):
    name = fresh_name()
    first, second = make(fresh_name()), make(name)
    first.start()
    second.start()
    until(lambda: peer_of(first, name))

    second.stop()

    until(lambda: peer_of(first, name) is None)


def test_load_reaches_others_when_it_is_updated(make):
    name = fresh_name()
    first, second = make(fresh_name()), make(name)
    first.start()
    second.start()
    until(lambda: peer_of(first, name))

    second.update_load(load_percent=40, services=["speech", "faces"])

    until(lambda: peer_of(first, name).load_percent == 40)
    assert peer_of(first, name).services == ("speech", "faces")


def test_name_is_refused_and_reported_when_it_is_taken(make):
    name = fresh_name()
    holder, late = make(name, port=9994), make(name, port=9993)
    holder.start()
    until(lambda: holder.problem() is None)

    late.start()

    until(lambda: name in (late.problem() or ""))
    assert holder.problem() is None
    assert peer_of(late, name).port == 9994


def test_name_is_claimed_when_its_holder_leaves(make):
    name = fresh_name()
    holder, late = make(name, port=9994), make(name, port=9993)
    holder.start()
    until(lambda: holder.problem() is None)
    late.start()
    until(lambda: name in (late.problem() or ""))

    holder.stop()

    until(lambda: late.problem() is None)


def test_stop_does_nothing_when_called_twice(make):
    discovery = make(fresh_name())
    discovery.start()
    discovery.stop()

    discovery.stop()

    assert discovery.peers() == ()
    assert discovery.problem() is None


def test_discovery_announces_again_when_it_is_restarted(make):
    name = fresh_name()
    witness, discovery = make(fresh_name()), make(name)
    witness.start()
    discovery.start()
    until(lambda: peer_of(witness, name))
    discovery.stop()
    until(lambda: peer_of(witness, name) is None)

    discovery.start()

    until(lambda: peer_of(witness, name))


# What only the wire shows.


def test_first_type_has_exactly_one_txt_string_when_asked_by_a_stranger(standing):
    name = standing.name

    records = ask(f"{name}._cloudlet._tcp.local.", "TXT")

    (txt,) = of_type(records, "TXT")
    assert txt.strings == (b"encryption=disabled",)
    assert txt.to_wire() == b"\x13encryption=disabled"


def test_first_type_names_port_and_host_when_asked_by_a_stranger(standing):
    name = standing.name

    records = ask(f"{name}._cloudlet._tcp.local.", "SRV")

    (server,) = of_type(records, "SRV")
    assert server.port == 9992
    assert server.target.to_text() == f"{name}.local."


def test_host_has_one_ipv4_address_and_no_other_when_asked_by_a_stranger(standing):
    name = standing.name

    records = ask(f"{name}._cloudlet._tcp.local.", "SRV") + ask(f"{name}.local.", "A")

    assert {record.address for record in of_type(records, "A")} == {"127.0.0.1"}
    assert of_type(records, "AAAA") == []


def test_both_types_are_listed_under_our_name_when_asked_by_a_stranger(standing):
    name = standing.name

    for service_type in ("_cloudlet._tcp.local.", "_pycloud._tcp.local."):
        assert f"{name}.{service_type}" in listed(service_type, name)


def listed(service_type, name):
    """Ask until the answer of the cloudlet in question comes in; others may be faster."""
    end_s = time.monotonic() + HANG_S
    while time.monotonic() < end_s:
        found = {record.target.to_text() for record in of_type(ask(service_type, "PTR"), "PTR")}
        if f"{name}.{service_type}" in found:
            return found
    raise AssertionError(f"{name} is not listed")


def test_second_type_tells_the_facts_when_asked_by_a_stranger(standing):
    name = standing.name

    (txt,) = of_type(ask(f"{name}._pycloud._tcp.local.", "TXT"), "TXT")

    told = dict(string.decode().split("=", 1) for string in txt.strings)
    assert told.pop("id")
    assert told == {"txtvers": "1", "api": "2", "tls": "0", "load": "0", "version": "1.2.3"}


class HeardLoads(RecordUpdateListener):
    """Every load of one cloudlet that went over the wire; one of each announcement."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.loads: list[str | None] = []
        self._key = f"{name}._pycloud._tcp.local."

    def async_update_records(self, _zeroconf, _now, updates) -> None:
        for update in updates:
            if isinstance(update.new, DNSText) and update.new.key == self._key:
                load = txt_value(update.new.text, "load")
                # The library sends each announcement several times.
                if self.loads[-1:] != [load]:
                    self.loads.append(load)


def test_load_is_not_announced_again_when_it_changes_quickly(zeroconf):
    name, clock, rounds = fresh_name(), FakeClock(), []
    heard = HeardLoads(name)
    zeroconf.add_listener(heard, None)
    discovery = zeroconf_discovery(
        name, addresses=lambda: rounds.append(1) or (LOOPBACK,), clock=clock
    )
    discovery.start()
    try:
        until(lambda: discovery.problem() is None)
        discovery.update_load(load_percent=1, services=[])
        until(lambda: heard.loads[-1:] == ["1"])

        for percent in range(2, 101):
            discovery.update_load(load_percent=percent, services=[])
        begin = len(rounds)
        until(lambda: len(rounds) > begin + 3)
        too_soon = heard.loads.copy()
        clock.advance(QUICK.load_s)
        until(lambda: heard.loads[-1:] == ["100"])
    finally:
        discovery.stop()

    assert too_soon == ["0", "1"]
    assert heard.loads == ["0", "1", "100"]


def test_old_cloudlet_is_a_peer_when_it_announces_the_first_type_only(standing, zeroconf):
    name = fresh_name()
    discovery = standing.discovery

    announce(zeroconf, name, port=9991, properties=b"\x12encryption=enabled")

    until(lambda: peer_of(discovery, name))
    peer = peer_of(discovery, name)
    assert (peer.port, peer.encryption, peer.api_version) == (9991, True, None)


def test_peer_is_dropped_when_it_dies_without_a_goodbye(standing):
    name = fresh_name()
    discovery = standing.discovery
    dying = Zeroconf(interfaces=["127.0.0.1"])
    announce(dying, name, host_ttl=2, other_ttl=4500)
    until(lambda: peer_of(discovery, name))

    dying.close()

    until(lambda: peer_of(discovery, name) is None)


def test_name_is_claimed_when_its_holder_died_without_a_goodbye(started, zeroconf):
    name = fresh_name()
    dying = Zeroconf(interfaces=["127.0.0.1"])
    announce(dying, name, host_ttl=2, other_ttl=4500)
    late = zeroconf_discovery(name)
    late.start()
    try:
        until(lambda: name in (late.problem() or ""))

        dying.close()

        until(lambda: late.problem() is None)
    finally:
        late.stop()


@pytest.mark.parametrize("service_type", ["_cloudlet._tcp", "_pycloud._tcp"])
def test_conflict_is_reported_when_somebody_takes_our_name_later(started, zeroconf, service_type):
    name = fresh_name()
    discovery = started(name)

    info = announce(zeroconf, name, service_type=service_type, properties=b"\x08id=thief")

    until(lambda: name in (discovery.problem() or ""))
    zeroconf.unregister_service(info)
    until(lambda: discovery.problem() is None)


@pytest.mark.parametrize(
    "properties",
    [
        b"",
        b"\x00",
        b"\xffshort",
        b"\x03api\x05load=\x08load=abc\x09load=9999\x05id=\xff\xfe",
        b"".join(b"\xff" + b"s=" + b"a," * 126 + b"b" for _ in range(20)),
        b"\x0as=../../x,\x0cs=<script>,y\x06tls=1\x00\x07api=\x1b[2",
    ],
)
def test_discovery_goes_on_when_others_announce_nonsense(standing, zeroconf, properties):
    hostile, name = fresh_name(), fresh_name()
    discovery = standing.discovery

    announce(zeroconf, hostile, service_type="_pycloud._tcp", properties=properties)
    announce(zeroconf, name)

    until(lambda: peer_of(discovery, hostile) and peer_of(discovery, name))
    peer = peer_of(discovery, hostile)
    assert peer.load_percent is None or 0 <= peer.load_percent <= 100
    assert len(peer.services) <= 64
    assert all(service.isidentifier() for service in peer.services)
    assert peer.api_version is None


def test_discovery_follows_when_an_interface_comes_and_goes(started):
    name, witness = fresh_name(), started(fresh_name())
    present = []
    discovery = zeroconf_discovery(name, addresses=lambda: tuple(present))
    discovery.start()
    try:
        until(lambda: "no interface" in (discovery.problem() or ""))
        present.append(LOOPBACK)
        until(lambda: discovery.problem() is None)
        until(lambda: peer_of(witness, name))
        present.clear()
        until(lambda: "no interface" in (discovery.problem() or ""))
        present.append(LOOPBACK)
        until(lambda: discovery.problem() is None)
        witness.stop()
        witness.start()
        until(lambda: peer_of(witness, name))
    finally:
        discovery.stop()


def test_name_with_dots_is_refused_when_announced():
    discovery = zeroconf_discovery("a.b")
    discovery.start()
    try:
        until(lambda: "dots" in (discovery.problem() or ""))
    finally:
        discovery.stop()


def test_finder_finds_when_a_cloudlet_is_announced(standing):
    found = find_by_zeroconf(SystemClock(), timeout_s=HANG_S, interfaces=["lo"])

    assert standing.name in {peer.name for peer in found}


def test_finder_fails_when_there_is_no_such_interface():
    with pytest.raises(DiscoveryError):
        find_by_zeroconf(SystemClock(), timeout_s=1, interfaces=["nowhere0"])
