# SPDX-License-Identifier: Apache-2.0
"""What doctor says of ports, addresses, bridges and discovery; nothing is opened here."""

import errno
from pathlib import Path

import pytest

from pycloud.adapters.diagnosis import network
from pycloud.adapters.interfaces import InterfaceAddress
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.settings import Settings, from_mapping

ETHERNET = InterfaceAddress(interface="eth0", address="192.0.2.2", prefix_length=24)
LOOPBACK = InterfaceAddress(interface="lo", address="127.0.0.1", prefix_length=8)


def only(check, settings: Settings) -> Finding:
    (found,) = check(settings)
    return found


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on a network, on which nobody listens."""
    monkeypatch.setattr(network, "_bind_problem", lambda *_: None)
    monkeypatch.setattr(network, "_listening_ports", set)
    monkeypatch.setattr(network, "_ephemeral_range", lambda: (32768, 60999))
    monkeypatch.setattr(network, "_avahi_runs", lambda: False)
    monkeypatch.setattr(network, "interface_addresses", lambda: (LOOPBACK, ETHERNET))
    monkeypatch.setattr(network, "multicast_addresses", lambda _names: (ETHERNET,))
    monkeypatch.setattr(network, "preferred_address", lambda: ETHERNET.address)
    monkeypatch.setattr(network, "_BRIDGES", tmp_path)
    monkeypatch.setattr(network, "searchable_networks", lambda _name: ["192.0.2.0/24"])
    for name in ("LEGACY_FILE", "MODERN_FILE"):
        (tmp_path / name).touch()
        monkeypatch.setattr(network, name, tmp_path / name)
    monkeypatch.setattr(network, "_BRIDGE_HELPER_CONFIG", tmp_path / "bridge.conf")


def test_free_ports_are_fine() -> None:
    assert {found.verdict for found in network.server_ports(Settings())} == {Verdict.OK}


@pytest.mark.parametrize(
    ("problem", "is_ours", "verdict"),
    [
        (errno.EADDRINUSE, True, Verdict.OK),
        (errno.EADDRINUSE, False, Verdict.FAIL),
        (errno.EACCES, False, Verdict.FAIL),
    ],
)
def test_port_that_cannot_be_had_is_judged(
    monkeypatch: pytest.MonkeyPatch, problem: int, is_ours: bool, verdict: Verdict
) -> None:
    monkeypatch.setattr(network, "_bind_problem", lambda *_: problem)
    monkeypatch.setattr(network, "_is_ours", lambda *_: is_ours)

    found = network.server_port("Cloudlet API", "api_port", "0.0.0.0", 9999)

    assert found.verdict is verdict
    assert bool(found.fix) is (verdict is Verdict.FAIL)


@pytest.mark.parametrize(
    ("port_range", "taken", "verdict"),
    [
        ((20000, 20999), set(), Verdict.OK),
        ((20000, 20999), {20001}, Verdict.OK),
        ((9000, 9999), set(), Verdict.FAIL),
        ((20000, 20001), {20000, 20001}, Verdict.FAIL),
        ((40000, 41000), set(), Verdict.WARN),
        ((20000, 20009), set(), Verdict.WARN),
    ],
)
def test_port_range_is_judged(
    monkeypatch: pytest.MonkeyPatch, port_range: tuple[int, int], taken: set[int], verdict: Verdict
) -> None:
    monkeypatch.setattr(network, "_listening_ports", lambda: taken)

    assert only(network.port_range, Settings(port_range=port_range)).verdict is verdict


@pytest.mark.parametrize(
    ("published", "chosen", "verdict"),
    [
        ("auto", "192.0.2.2", Verdict.OK),
        ("auto", "127.0.0.1", Verdict.WARN),
        ("192.0.2.2", "", Verdict.OK),
        ("203.0.113.5", "", Verdict.WARN),
    ],
)
def test_address_is_judged(
    monkeypatch: pytest.MonkeyPatch, published: str, chosen: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(network, "preferred_address", lambda: chosen)

    assert only(network.address, Settings(publish_address=published)).verdict is verdict


@pytest.mark.parametrize(
    ("texts", "verdict", "told"),
    [
        ({"publish_bind": "192.0.2.2"}, Verdict.OK, "clients are told 192.0.2.2"),
        ({"api_host": "192.0.2.2"}, Verdict.OK, "clients are told 192.0.2.2"),
        ({"publish_address": "192.0.2.2", "publish_bind": "192.0.2.2"}, Verdict.OK, ""),
        ({"publish_address": "203.0.113.5", "publish_bind": "192.0.2.2"}, Verdict.WARN, "no inter"),
        ({"publish_bind": "127.0.0.2"}, Verdict.WARN, "only this machine"),
        ({"api_host": "127.0.0.1"}, Verdict.WARN, "only this machine"),
        ({"publish_bind": "192.0.2.66"}, Verdict.FAIL, "ports of instances"),
        ({"api_host": "192.0.2.66"}, Verdict.FAIL, "Cloudlet API"),
        ({"publish_address": "127.0.0.1", "publish_bind": "192.0.2.2"}, Verdict.FAIL, "alone"),
        ({"publish_address": "192.0.2.2", "api_host": "127.0.0.1"}, Verdict.FAIL, "alone"),
        ({"publish_bind": "192.0.2.2", "api_host": "127.0.0.1"}, Verdict.FAIL, "alone"),
    ],
)
def test_address_has_to_be_one_on_which_we_listen(
    texts: dict[str, str], verdict: Verdict, told: str
) -> None:
    found = only(network.address, from_mapping(named(texts)).settings)

    assert found.verdict is verdict
    assert told in found.detail
    assert bool(found.fix) is (verdict is not Verdict.OK)


def named(texts: dict[str, str]) -> dict[str, str]:
    return {f"pycloud.{name}": text for name, text in texts.items()}


@pytest.mark.parametrize(
    "texts",
    [
        {"publish_bind": "192.0.2.66"},
        {"api_host": "192.0.2.66"},
        {"publish_address": "127.0.0.1", "publish_bind": "192.0.2.2"},
        {"publish_bind": "192.0.2.2", "api_host": "127.0.0.1"},
    ],
)
def test_address_is_fine_when_the_fix_was_followed(texts: dict[str, str]) -> None:
    fix = only(network.address, from_mapping(named(texts)).settings).fix
    setting, value = fix.partition("#")[0].removeprefix("set ").strip().split(" = ")

    assert only(
        network.address, from_mapping(named(texts) | {setting: value}).settings
    ).verdict is (Verdict.OK)


def test_bridge_is_not_looked_at_unless_it_is_wanted() -> None:
    assert list(network.bridge(Settings())) == []


def test_missing_bridge_fails() -> None:
    found = only(network.bridge, Settings(network_bridge="br0"))

    assert (found.verdict, "ip link add br0" in found.fix) == (Verdict.FAIL, True)


@pytest.mark.parametrize(
    ("config", "verdict"),
    [("", Verdict.FAIL), ("allow br0\n", Verdict.OK), ("# x\nallow all\n", Verdict.OK)],
)
def test_bridge_has_to_be_allowed_for_guests_of_users(
    tmp_path: Path, config: str, verdict: Verdict
) -> None:
    (tmp_path / "br0" / "bridge").mkdir(parents=True)
    (tmp_path / "bridge.conf").write_text(config, encoding="ascii")

    assert only(network.bridge, Settings(network_bridge="br0")).verdict is verdict


def test_bridge_without_address_of_this_host_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "br0" / "bridge").mkdir(parents=True)
    (tmp_path / "bridge.conf").write_text("allow br0\n", encoding="ascii")
    monkeypatch.setattr(network, "searchable_networks", lambda _name: [])

    found = only(network.bridge, Settings(network_bridge="br0"))

    assert found.verdict is Verdict.WARN
    assert "dev br0" in found.fix


@pytest.mark.parametrize(
    ("way", "avahi", "problem", "verdict"),
    [
        ("zeroconf", False, None, Verdict.OK),
        ("zeroconf", True, None, Verdict.OK),
        ("zeroconf", True, errno.EADDRINUSE, Verdict.FAIL),
        ("zeroconf", False, errno.EADDRINUSE, Verdict.FAIL),
        ("avahi", True, errno.EADDRINUSE, Verdict.OK),
        ("avahi", False, None, Verdict.FAIL),
        ("off", False, None, Verdict.WARN),
    ],
)
def test_discovery_is_judged(
    monkeypatch: pytest.MonkeyPatch, way: str, avahi: bool, problem: int | None, verdict: Verdict
) -> None:
    monkeypatch.setattr(network, "_avahi_runs", lambda: avahi)
    monkeypatch.setattr(network, "_bind_problem", lambda *_: problem)

    assert only(network.discovery, Settings(discovery=way)).verdict is verdict


@pytest.mark.parametrize(
    ("missing", "verdict"), [("LEGACY_FILE", Verdict.FAIL), ("MODERN_FILE", Verdict.WARN)]
)
def test_service_files_have_to_be_there_for_avahi_to_announce_us(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(network, "_avahi_runs", lambda: True)
    (tmp_path / missing).unlink()

    found = only(network.discovery, Settings(discovery="avahi", name="box"))

    assert found.verdict is verdict
    assert found.fix == 'sudo discovery/install.sh --owner="$USER" --port=9999 --name=box'


@pytest.mark.parametrize("usable", [(), (LOOPBACK,)])
def test_discovery_without_a_network_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, usable: tuple[InterfaceAddress, ...]
) -> None:
    monkeypatch.setattr(network, "multicast_addresses", lambda _names: usable)

    assert only(network.discovery, Settings()).verdict is Verdict.WARN
