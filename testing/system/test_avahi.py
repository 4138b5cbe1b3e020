# SPDX-License-Identifier: Apache-2.0
"""A cloudlet announced by a real avahi-daemon, and python-zeroconf on the machine beside it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycloud.adapters.discovery import identity_of
from pycloud.adapters.discovery.announcement import Announcement, modern_txt, txt_strings
from pycloud.core.model.fleet import Cloudlet
from pycloud.settings import Settings
from testing.system.avahi_host import AvahiHost, avahi_host
from testing.system.cloudlet import running_server
from testing.system.network_segment import (
    REPOSITORY,
    TIMEOUT_S,
    Machine,
    Segment,
    agent,
    segment,
)

LEGACY = "_cloudlet._tcp.local."
MODERN = "_pycloud._tcp.local."
LEFT = Cloudlet(name="left", fqdn=None, address="10.77.0.1", port=9999, version="1.2.3")


@pytest.fixture
def machines() -> Iterator[Segment]:
    with segment() as made:
        made.plug_in()
        yield made


@pytest.fixture
def host(machines: Segment, tmp_path: Path) -> Iterator[AvahiHost]:
    """The left machine, with an avahi-daemon that announces nothing yet."""
    with avahi_host(machines.left, tmp_path / "host", "left-host") as running:
        yield running


def is_well(problem: object) -> bool:
    return problem is None


def test_phone_finds_the_cloudlet_that_avahi_announces(
    machines: Segment, host: AvahiHost, tmp_path: Path
) -> None:
    host.install("corner")
    settings = {
        "hypervisor": "fake:",
        "discovery": "avahi",
        "api_host": "0.0.0.0",
        "api_port": "9999",
    }
    with running_server(tmp_path / "server", settings, wrapper=host.machine.enter):
        host.await_lines("pycloud-facts.service changed", "facts.service) successfully established")
        phone = subprocess.run(
            [*machines.right.enter, sys.executable, "-m", "testing.system.newcomer"],
            cwd=REPOSITORY,
            capture_output=True,
            timeout=2 * TIMEOUT_S,
            check=False,
        )
    assert phone.returncode == 0, phone.stderr.decode()
    found = json.loads(phone.stdout)
    assert (found["name"], found["address"]) == ("corner", "10.77.0.1")
    assert (found["encryption"], found["strings"]) == ("disabled", True)
    assert found["max_cores"] >= 1


def resolved(machine: Machine, name: str) -> dict[str, tuple[bytes, int, list[str]]]:
    """Return TXT record, port and IPv4 addresses of each type as python-zeroconf sees them."""
    script = (
        "import sys, zeroconf\n"
        "with zeroconf.Zeroconf() as running:\n"
        "    for kind in sys.argv[2:]:\n"
        "        info = running.get_service_info(kind, sys.argv[1] + '.' + kind, 10_000)\n"
        "        addresses = info.parsed_addresses(zeroconf.IPVersion.V4Only)\n"
        "        print(kind, info.text.hex(), info.port, *addresses)\n"
    )
    done = subprocess.run(
        [*machine.enter, sys.executable, "-c", script, name, LEGACY, MODERN],
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return {kind: (bytes.fromhex(text), int(port), rest) for kind, text, port, *rest in lines}


def test_both_types_say_what_they_should_when_avahi_announces_them(
    machines: Segment, host: AvahiHost
) -> None:
    host.install("left")
    with agent(host.machine, "left", "discovery=avahi") as left:
        left.ask("load 42 speech faces")
        host.await_lines("pycloud-facts.service changed", "facts.service) successfully established")
        seen = resolved(machines.right, "left")
        problem = left.until(
            "problem", lambda problem: problem != "avahi-daemon has not been asked yet"
        )

    assert seen[LEGACY] == (b"\x13encryption=disabled", 9999, ["10.77.0.1"])
    text, port, addresses = seen[MODERN]
    assert (port, addresses) == (9999, ["10.77.0.1"])
    told = Announcement(
        identity=identity_of(Settings(), LEFT),
        version="1.2.3",
        load_percent=40,
        services=("speech", "faces"),
    )
    assert set(txt_strings(text)) == set(txt_strings(modern_txt(told)))
    assert problem is None
    # What phones look for stayed as it was.
    assert "pycloud.service changed" not in host.log_text()
    assert host.log_text().count("pycloud.service) successfully established") == 1


def test_cloudlets_see_each_other_when_avahi_announces_one_of_them(
    machines: Segment, host: AvahiHost
) -> None:
    host.install("left")
    with agent(machines.right, "right") as right:
        right.until("problem", is_well)
        with agent(host.machine, "left", "discovery=avahi") as left:
            (peer,) = left.until("peers", bool)
            (seen,) = right.until("peers", bool)

    assert (peer["name"], peer["addresses"], peer["api_version"]) == ("right", ["10.77.0.2"], "2")
    assert (seen["name"], seen["addresses"], seen["port"]) == ("left", ["10.77.0.1"], 9999)


def test_taken_name_is_reported_when_avahi_takes_another_one(
    machines: Segment, host: AvahiHost
) -> None:
    with agent(machines.right, "twin") as right:
        right.until("problem", is_well)
        host.install("twin")
        host.await_lines('"twin #2" (/etc/avahi/services/pycloud.service) successfully')
        with agent(host.machine, "twin", "discovery=avahi") as left:
            left.until("problem", lambda problem: problem is not None and "another" in problem)
            assert [peer["addresses"] for peer in left.ask("peers")] == [["10.77.0.2"]]
