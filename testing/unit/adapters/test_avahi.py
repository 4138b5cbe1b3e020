# SPDX-License-Identifier: Apache-2.0
"""Reading `avahi-browse`, the service file for avahi-daemon, and the choice among discoveries."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pycloud.adapters.discovery import (
    AvahiDiscovery,
    AvahiFile,
    NoDiscovery,
    ZeroconfDiscovery,
    avahi,
    discovery_for,
    identity_of,
)
from pycloud.adapters.discovery.announcement import Announcement, modern_txt, txt_strings
from pycloud.adapters.discovery.avahi import parse_avahi_browse, run_avahi_browse
from pycloud.adapters.discovery.avahi_file import LEGACY_FILE, MODERN_FILE
from pycloud.adapters.discovery.finder import find_by_avahi
from pycloud.adapters.fakes import FakeClock
from pycloud.adapters.interfaces import InterfaceAddress
from pycloud.core.model.fleet import Cloudlet
from pycloud.errors import DiscoveryError, ToolFailed
from pycloud.settings import Settings

INSTALL = Path(__file__).resolve().parents[3] / "discovery" / "install.sh"
OURS = Cloudlet(name="box", fqdn=None, address="192.0.2.1", port=9999, version="1")

# As avahi-browse 0.8 prints it.
LEGACY = """\
+;eth0;IPv4;box;_cloudlet._tcp;local
=;eth0;IPv4;box;_cloudlet._tcp;local;host.local;192.0.2.1;9999;"encryption=disabled"
=;lo;IPv4;box;_cloudlet._tcp;local;host.local;127.0.0.1;9999;"encryption=disabled"
=;eth0;IPv6;old\\032one;_cloudlet._tcp;local;old.local;fe80::1;1234;"encryption=enabled"
=;eth0;IPv4;old\\032one;_cloudlet._tcp;local;old.local;192.0.2.7;1234;"encryption=enabled"
"""
MODERN = """\
=;eth0;IPv4;box;_pycloud._tcp;local;host.local;192.0.2.1;9999;"tls=0" "api=2" "txtvers=1"
"""


@pytest.fixture(autouse=True)
def own_addresses(monkeypatch):
    ours = InterfaceAddress(interface="eth0", address="192.0.2.1", prefix_length=24)
    monkeypatch.setattr(avahi, "interface_addresses", lambda: (ours,))


def prints(legacy=LEGACY, modern=MODERN):
    return lambda service_type: legacy if service_type == "_cloudlet._tcp" else modern


def avahi_file(path=Path("/nonexistent/pycloud-facts.service"), *, clock=None) -> AvahiFile:
    return AvahiFile(OURS, clock or FakeClock(), identity="its-me", path=path)


def looked(browse, *, cloudlet=OURS) -> AvahiDiscovery:
    discovery = AvahiDiscovery(cloudlet, FakeClock(), file=avahi_file(), browse=browse)
    discovery.look()
    return discovery


def test_others_are_peers_when_avahi_sees_them():
    discovery = looked(prints())

    (peer,) = discovery.peers()
    assert (peer.name, peer.addresses, peer.port) == ("one", ("192.0.2.7",), 1234)
    assert peer.encryption
    assert discovery.problem() is None


def test_install_script_is_named_when_avahi_does_not_announce_us():
    discovery = looked(prints(legacy="", modern=""))

    assert "discovery/install.sh" in discovery.problem()


def test_install_script_is_named_when_avahi_announces_another_port():
    discovery = looked(prints(), cloudlet=replace(OURS, port=80, name="other"))

    assert "discovery/install.sh" in discovery.problem()


def test_other_name_is_told_when_avahi_announces_us_under_it():
    renamed = LEGACY.replace(";box;", ";box\\032#2;")

    discovery = looked(prints(legacy=renamed, modern=""))

    assert "'box #2'" in discovery.problem()
    assert [peer.name for peer in discovery.peers()] == ["one"]


def test_taken_name_is_reported_when_it_belongs_to_another_machine():
    foreign = LEGACY.replace("192.0.2.1;", "192.0.2.66;").replace("127.0.0.1;", "192.0.2.66;")

    discovery = looked(prints(legacy=foreign, modern=""))

    assert "another cloudlet" in discovery.problem()


@pytest.mark.parametrize("error", [DiscoveryError("gone"), ToolFailed("hung")])
def test_problem_tells_when_avahi_cannot_be_asked(error):
    def fails(_service_type):
        raise error

    discovery = looked(fails)

    assert discovery.problem() == error.message
    assert discovery.peers() == ()


def test_peers_are_gone_when_it_is_stopped():
    discovery = looked(prints())

    discovery.stop()

    assert discovery.peers() == ()


def test_stranger_finds_all_when_avahi_sees_them():
    found = find_by_avahi(FakeClock(), prints())

    assert [peer.name for peer in found] == ["box", "one"]
    assert found[0].addresses == ("192.0.2.1",)
    assert found[0].api_version == "2"


def test_escapes_are_undone_when_avahi_wrote_them():
    line = (
        "=;c0;IPv4;we\\032ird\\059\\032name\\.x\\\\;_cloudlet._tcp;local;h.local;192.0.2.9;1234;"
        '"a\\"b\\\\;c" "encryption=enabled"'
    )

    (seen,) = parse_avahi_browse(line)

    assert seen.name == "we ird; name.x\\"
    assert txt_strings(seen.txt) == (b'a"b\\;c', b"encryption=enabled")


@pytest.mark.parametrize(
    "output",
    [
        "",
        "=",
        "=;;;;;;;;;",
        "=;eth0;IPv4;box;_cloudlet._tcp;local;host.local;192.0.2.1;port;x",
        "+;eth0;IPv4;box;_cloudlet._tcp;local",
        "\x00\xff\n\udcff;=;;;;",
    ],
)
def test_lines_are_passed_over_when_they_are_not_avahis(output):
    assert list(parse_avahi_browse(output)) == []


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (FileNotFoundError("avahi-browse"), "avahi-utils"),
        (subprocess.CalledProcessError(1, "avahi-browse"), "running"),
        (subprocess.TimeoutExpired("avahi-browse", 10), "did not end"),
    ],
)
def test_failure_is_explained_when_avahi_browse_fails(monkeypatch, raised, expected):
    def run(*_args, **_options):
        raise raised

    monkeypatch.setattr(avahi.subprocess, "run", run)

    with pytest.raises((DiscoveryError, ToolFailed), match=expected):
        run_avahi_browse("_cloudlet._tcp")


def install(*arguments):
    return subprocess.run(
        ["bash", str(INSTALL), *arguments], check=False, capture_output=True, text=True, timeout=30
    )


def announced_by(path):
    """Return the name, and the type, port and strings of each service, in a service file."""
    group = ET.parse(path).getroot()
    services = [
        (
            service.findtext("type"),
            service.findtext("port"),
            [record.text for record in service.findall("txt-record")],
        )
        for service in group.findall("service")
    ]
    return group.findtext("name"), services


def test_service_files_announce_both_types_when_installed_and_told(tmp_path):
    result = install("--name", "box", "--port", "9999", "--directory", str(tmp_path))

    assert result.returncode == 0, result.stderr
    second, first = sorted(tmp_path.iterdir())
    assert first.name == LEGACY_FILE.name
    legacy = ("_cloudlet._tcp", "9999", ["encryption=disabled"])
    assert announced_by(first) == ("box", [legacy])
    assert second.name == MODERN_FILE.name
    assert announced_by(second) == ("box", [("_pycloud._tcp", "9999", [])])
    assert avahi_file(second).tell(load_percent=44, services=("speech", "faces")) is None
    modern = ["txtvers=1", "api=2", "tls=0", "id=its-me", "load=40", "version=1", "s=speech,faces"]
    assert announced_by(second) == ("box", [("_pycloud._tcp", "9999", modern)])
    assert {path.stat().st_mode & 0o777 for path in (first, second)} == {0o644}


def test_service_file_has_the_strings_of_the_other_variant_when_it_is_full(tmp_path):
    path = tmp_path / "facts.service"
    path.touch()
    services = tuple(f"service-{number:0>40}" for number in range(64))

    avahi_file(path).tell(load_percent=100, services=services)

    told = Announcement(identity="its-me", version="1", load_percent=100, services=services)
    strings = [string.decode() for string in txt_strings(modern_txt(told))]
    assert announced_by(path)[1][0][2] == strings
    assert path.stat().st_size == 4096


def test_service_file_is_rewritten_once_a_minute_at_most(tmp_path):
    path, clock = tmp_path / "facts.service", FakeClock()
    path.touch()
    file = avahi_file(path, clock=clock)
    file.tell(load_percent=0, services=())
    first = path.read_bytes()

    clock.advance(59)
    file.tell(load_percent=90, services=("speech",))
    too_soon = path.read_bytes()
    clock.advance(1)
    file.tell(load_percent=80, services=("speech",))

    assert too_soon == first
    assert "load=80" in announced_by(path)[1][0][2]


def test_service_file_is_left_alone_when_the_load_only_wavers(tmp_path):
    path, clock = tmp_path / "facts.service", FakeClock()
    path.touch()
    file = avahi_file(path, clock=clock)
    file.tell(load_percent=41, services=())
    os.utime(path, ns=(0, 0))

    clock.advance(600)
    file.tell(load_percent=38, services=())

    assert path.stat().st_mtime_ns == 0


def test_service_file_looks_changed_when_it_changed_within_a_second(tmp_path):
    path = tmp_path / "facts.service"
    path.touch()
    now_s = int(path.stat().st_mtime) + 1
    os.utime(path, (now_s, now_s))

    avahi_file(path).tell(load_percent=0, services=())

    assert int(path.stat().st_mtime) > now_s


def test_owner_is_named_when_the_service_file_cannot_be_written():
    discovery = looked(prints())

    discovery.update_load(load_percent=0, services=["speech"])

    assert "discovery/install.sh with --owner" in discovery.problem()


def test_service_file_is_written_by_the_discovery_when_it_is_told(tmp_path):
    path = tmp_path / "facts.service"
    path.touch()
    discovery = AvahiDiscovery(OURS, FakeClock(), file=avahi_file(path), browse=prints())
    discovery.look()

    discovery.update_load(load_percent=0, services=["speech"])

    assert discovery.problem() is None
    assert "s=speech" in announced_by(path)[1][0][2]


def test_link_in_place_of_the_service_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    path = tmp_path / "facts.service"
    path.symlink_to(tmp_path / "precious")

    assert avahi_file(path).tell(load_percent=0, services=()) is not None
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "two words"],
        ["--name", "a.b"],
        ["--name", "x</name>"],
        ["--name", "x/e; touch y"],
        ["--name", ""],
        ["--port", "0"],
        ["--port", "65536"],
        ["--port", "x"],
        ["--owner", "no-such-user"],
        ["--port"],
        ["--nonsense"],
    ],
)
def test_service_file_is_not_written_when_an_argument_is_wrong(tmp_path, arguments):
    result = install("--directory", str(tmp_path), *arguments)

    assert result.returncode != 0
    assert result.stderr.startswith("install.sh: ")
    assert list(tmp_path.iterdir()) == []


def test_service_files_are_gone_when_removed(tmp_path):
    install("--name", "box", "--directory", str(tmp_path))

    result = install("--remove", "--directory", str(tmp_path))

    assert result.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("zeroconf", ZeroconfDiscovery), ("avahi", AvahiDiscovery), ("off", NoDiscovery)],
)
def test_discovery_is_of_the_kind_that_the_settings_choose(choice, expected):
    settings = replace(Settings(), discovery=choice)

    assert isinstance(discovery_for(settings, OURS, FakeClock()), expected)


def test_no_discovery_is_content_when_asked():
    discovery = NoDiscovery()
    discovery.start()
    discovery.update_load(load_percent=1, services=[])

    assert (discovery.peers(), discovery.problem()) == ((), None)
    discovery.stop()


def test_identity_stays_when_asked_again_and_differs_when_the_name_does():
    settings = Settings()

    assert identity_of(settings, OURS) == identity_of(settings, OURS)
    assert identity_of(settings, OURS) != identity_of(settings, replace(OURS, name="other"))
