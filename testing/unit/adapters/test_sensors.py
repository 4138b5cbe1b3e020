# SPDX-License-Identifier: Apache-2.0
"""The sensors tell figures that the rankers of old clients can work with."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pycloud.adapters import interfaces, sensors
from pycloud.adapters.fakes import FakeClock
from pycloud.adapters.interfaces import InterfaceAddress, preferred_address
from pycloud.adapters.sensors import PsutilSensors
from pycloud.settings import Settings

LOOPBACK = InterfaceAddress(interface="lo", address="127.0.0.1", prefix_length=8)
CABLE = InterfaceAddress(interface="eth0", address="192.0.2.7", prefix_length=24)
RADIO = InterfaceAddress(interface="wlan0", address="198.51.100.7", prefix_length=24)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def processor(monkeypatch):
    """Processor times that a test sets."""
    times = {"busy": 100.0, "idle": 100.0}

    class Times(tuple):
        __slots__ = ()
        idle = property(lambda self: self[1])

    monkeypatch.setattr(sensors.psutil, "cpu_times", lambda: Times((times["busy"], times["idle"])))
    return times


def machine(tmp_path: Path, *, cpuinfo="", caches=()):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    for number, (level, size) in enumerate(caches):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{number}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    return tmp_path


def test_metadata_agrees_with_the_machine_when_read(clock):
    figures = PsutilSensors(Settings(), clock).metadata()

    assert figures.memory.max_bytes == psutil.virtual_memory().total
    assert 0 < figures.memory.free_bytes <= figures.memory.max_bytes
    assert figures.cpu.max_cores >= 1
    assert figures.cpu.speed_mhz > 0
    assert 0 <= figures.cpu.usage_percent <= 100


def test_usage_is_the_share_since_the_last_reading_when_a_second_has_passed(clock, processor):
    sensor = PsutilSensors(Settings(), clock)
    sensor.metadata()
    clock.advance(1)
    processor["busy"] += 3
    processor["idle"] += 1

    figures = sensor.metadata()

    assert figures.cpu.usage_percent == 75.0


def test_metadata_is_measured_once_when_asked_twice_within_a_second(clock, processor):
    sensor = PsutilSensors(Settings(), clock)
    first = sensor.metadata()
    processor["busy"] += 50

    second = sensor.metadata()

    assert second is first


def test_metadata_is_fresh_when_the_last_one_is_a_second_old(clock):
    sensor = PsutilSensors(Settings(), clock)
    first = sensor.metadata()
    clock.advance(1)

    assert sensor.metadata() is not first


def hide_frequency(monkeypatch, found):
    def cpu_freq():
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(sensors.psutil, "cpu_freq", cpu_freq)


@pytest.mark.parametrize(
    "found",
    [
        None,
        OSError("hidden"),
        NotImplementedError("hidden"),
        SimpleNamespace(current=0.0, max=0.0),
    ],
)
def test_speed_comes_from_cpuinfo_when_psutil_knows_none(clock, tmp_path, monkeypatch, found):
    hide_frequency(monkeypatch, found)
    root = machine(tmp_path, cpuinfo="processor\t: 0\ncpu MHz\t\t: 2345.500\n")

    figures = PsutilSensors(Settings(), clock, root=root).metadata()

    assert figures.cpu.speed_mhz == 2345.5


def test_speed_is_the_maximum_when_the_present_one_is_unknown(clock, monkeypatch):
    hide_frequency(monkeypatch, SimpleNamespace(current=0.0, max=3100.0))

    assert PsutilSensors(Settings(), clock).metadata().cpu.speed_mhz == 3100.0


@pytest.mark.parametrize(
    ("output", "expected"),
    [("CPU max MHz:   2800.0000\nCPU min MHz: 800.0\n", 2800.0), ("", 1000.0), (None, 1000.0)],
)
def test_speed_comes_from_lscpu_or_is_nominal_when_nothing_else_knows(
    clock, tmp_path, monkeypatch, output, expected
):
    def run(*_args, **_options):
        if output is None:
            raise FileNotFoundError("lscpu")
        return SimpleNamespace(stdout=output)

    hide_frequency(monkeypatch, None)
    monkeypatch.setattr(sensors.subprocess, "run", run)

    figures = PsutilSensors(Settings(), clock, root=machine(tmp_path)).metadata()

    assert figures.cpu.speed_mhz == expected


@pytest.mark.parametrize(
    ("caches", "cpuinfo", "expected"),
    [
        ([(1, "32K"), (2, "1024K"), (3, "32M")], "", 32768),
        ([(1, "48K"), (2, "broken")], "", 48),
        ([], "cache size\t: 512 KB\n", 512),
        ([], "", 0),
    ],
)
def test_cache_is_that_of_the_last_level_when_there_are_several(
    clock, tmp_path, caches, cpuinfo, expected
):
    root = machine(tmp_path, caches=caches, cpuinfo=cpuinfo)

    assert PsutilSensors(Settings(), clock, root=root).metadata().cpu.cache_kib == expected


def test_published_address_is_the_configured_one_when_there_is_one(clock):
    settings = replace(Settings(), publish_address="192.0.2.99")

    assert PsutilSensors(settings, clock).published_address() == "192.0.2.99"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"publish_bind": "192.0.2.5"}, "192.0.2.5"),
        ({"api_host": "192.0.2.6"}, "192.0.2.6"),
        ({"publish_bind": "192.0.2.5", "api_host": "192.0.2.6"}, "192.0.2.5"),
        ({"publish_address": "192.0.2.99", "publish_bind": "192.0.2.5"}, "192.0.2.99"),
        ({}, "192.0.2.1"),
    ],
)
def test_published_address_is_one_on_which_we_listen(monkeypatch, clock, texts, expected):
    monkeypatch.setattr(sensors, "preferred_address", lambda: "192.0.2.1")

    assert PsutilSensors(replace(Settings(), **texts), clock).published_address() == expected


@pytest.mark.parametrize(
    ("routed", "known", "expected"),
    [
        ("198.51.100.7", [LOOPBACK, CABLE, RADIO], "198.51.100.7"),
        (None, [LOOPBACK, CABLE, RADIO], "192.0.2.7"),
        (None, [LOOPBACK], "127.0.0.1"),
        (None, [], "127.0.0.1"),
        ("203.0.113.1", [LOOPBACK, CABLE], "192.0.2.7"),
    ],
)
def test_preferred_address_follows_the_default_route_when_there_is_one(
    monkeypatch, routed, known, expected
):
    monkeypatch.setattr(interfaces, "default_route_address", lambda: routed)

    assert preferred_address(known) == expected
