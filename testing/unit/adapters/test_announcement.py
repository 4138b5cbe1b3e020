# SPDX-License-Identifier: Apache-2.0
"""What we announce fits old clients; what others announce cannot hurt."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycloud.adapters.discovery.announcement import (
    LEGACY_TYPE,
    MODERN_TYPE,
    Announcement,
    Sighting,
    host_label,
    legacy_txt,
    make_peer,
    modern_txt,
    peer_name,
    txt_strings,
    txt_value,
    usable_addresses,
)
from pycloud.adapters.discovery.peer_table import OwnName, PeerTable
from pycloud.adapters.fakes import FakeClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


def sighting(service_type=LEGACY_TYPE, **changes) -> Sighting:
    facts = {
        "service_type": service_type,
        "name": "box",
        "addresses": ("192.0.2.1",),
        "port": 9999,
        "txt": legacy_txt(),
    }
    return Sighting(**facts | changes)


def modern(**changes) -> Sighting:
    txt = modern_txt(Announcement(identity="them", version="1"))
    return sighting(MODERN_TYPE, **{"txt": txt} | changes)


def test_legacy_txt_is_one_string_when_written():
    assert legacy_txt() == b"\x13encryption=disabled"


def test_legacy_txt_reads_as_old_clients_read_it_when_split_at_equals_signs():
    text = "".join(string.decode() for string in txt_strings(legacy_txt()))

    assert text.split("=")[1] == "disabled"


@given(load_percent=st.integers(-1000, 1000), services=st.lists(WORDS, max_size=200, unique=True))
def test_modern_txt_comes_back_within_bounds_when_parsed(load_percent, services):
    txt = modern_txt(
        Announcement(
            identity="i" * 36, version="1.2.3", load_percent=load_percent, services=tuple(services)
        )
    )

    peer = make_peer("box", legacy=None, modern=modern(txt=txt), seen_at=NOW)

    assert peer is not None
    assert len(txt) < 1200
    assert peer.services == tuple(services[: len(peer.services)])
    assert peer.load_percent == min(max(load_percent, 0), 100)


def test_modern_txt_holds_all_services_when_they_need_several_strings():
    services = tuple(f"service-number-{number}" for number in range(40))

    txt = modern_txt(Announcement(identity="i", version="1", services=services))

    assert sum(string.startswith(b"s=") for string in txt_strings(txt)) > 1
    assert make_peer("b", legacy=None, modern=modern(txt=txt), seen_at=NOW).services == services


@given(
    txt=st.binary(max_size=2000),
    name=st.text(max_size=100),
    addresses=st.lists(st.text(max_size=40) | st.ip_addresses().map(str), max_size=20),
    port=st.integers(-1, 70000),
)
def test_peer_is_sound_when_everything_is_hostile(txt, name, addresses, port):
    seen = sighting(name=name, addresses=tuple(addresses), port=port, txt=txt)
    table = PeerTable(FakeClock())

    table.see(seen)
    table.see(sighting(MODERN_TYPE, name=name, addresses=tuple(addresses), port=port, txt=txt))

    for peer in table.peers():
        assert peer.name.isprintable()
        assert 0 < len(peer.name) <= 63
        assert " " not in peer.name
        assert 0 < peer.port < 65536
        assert 0 < len(peer.addresses) <= 8
        assert len(peer.services) <= 64


@pytest.mark.parametrize(
    ("txt", "expected"),
    [
        (b"\x12encryption=enabled", True),
        (b"\x12ENCRYPTION=Enabled", True),
        (b"\x13encryption=disabled", False),
        (b"\x0aencryption", False),
        (b"", False),
    ],
)
def test_encryption_is_known_when_the_first_type_tells_it(txt, expected):
    peer = make_peer("box", legacy=sighting(txt=txt), modern=None, seen_at=NOW)

    assert peer.encryption is expected


def test_txt_value_is_that_of_the_first_when_a_key_comes_twice():
    assert txt_value(b"\x03a=1\x03a=2", "a") == "1"


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        ("box", "box"),
        ("The cloudlet box", "box"),
        ("bo\x1b[31mx\x00y", "y"),
        ("Wörkshop", "Wörkshop"),
        ("  ", None),
        ("", None),
        ("x" * 200, "x" * 63),
    ],
)
def test_peer_name_is_the_last_word_when_there_are_several(instance, expected):
    assert peer_name(instance) == expected


def test_addresses_begin_with_ipv4_when_both_kinds_are_announced():
    announced = ["2001:db8::1", "fe80::1", "224.0.0.1", "0.0.0.0", "192.0.2.9", "192.0.2.1", "x"]

    assert usable_addresses(announced) == ("192.0.2.9", "192.0.2.1", "2001:db8::1")


def test_there_is_no_peer_when_only_a_link_local_address_is_announced():
    seen = sighting(addresses=("fe80::1%eth0",))

    assert make_peer("box", legacy=seen, modern=None, seen_at=NOW) is None


@pytest.mark.parametrize(
    ("name", "label"), [("box", "box"), ("My_Box.local", "My-Box-local"), ("__", "cloudlet")]
)
def test_host_label_is_a_host_name_when_the_name_is_not(name, label):
    assert host_label(name) == label


def test_table_joins_both_types_when_the_name_is_the_same():
    table = PeerTable(FakeClock())

    table.see(sighting())
    table.see(modern())

    (peer,) = table.peers()
    assert peer.api_version == "2"


def test_table_keeps_a_peer_when_it_loses_one_of_its_types():
    table = PeerTable(FakeClock())
    table.see(sighting())
    table.see(modern())

    table.lose(MODERN_TYPE, "box")

    (peer,) = table.peers()
    assert peer.api_version is None


def test_table_forgets_a_peer_when_it_loses_both_types():
    table = PeerTable(FakeClock())
    table.see(sighting())

    table.lose(LEGACY_TYPE, "box")

    assert table.peers() == ()


@pytest.mark.parametrize("order", ["legacy first", "modern first"])
def test_table_leaves_us_out_when_the_identity_is_ours(order):
    table = PeerTable(FakeClock(), own=OwnName(name="box", identity="them"))
    seen = [sighting(), modern()] if order == "legacy first" else [modern(), sighting()]

    for each in seen:
        table.see(each)

    assert table.peers() == ()


def test_table_shows_our_namesake_when_its_identity_is_another():
    table = PeerTable(FakeClock(), own=OwnName(name="box", identity="us"))

    table.see(sighting())
    table.see(modern())

    assert [peer.name for peer in table.peers()] == ["box"]


def test_table_is_bounded_when_the_network_is_flooded():
    table = PeerTable(FakeClock())

    for number in range(2000):
        table.see(sighting(name=f"box-{number}"))

    assert len(table.peers()) == 512
