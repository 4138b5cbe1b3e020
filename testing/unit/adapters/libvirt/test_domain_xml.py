# SPDX-License-Identifier: Apache-2.0
"""Domain XML against golden files, and the properties that keep guests apart and safe."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from pycloud.adapters.libvirt.domain_plan import Incoming, RamAccess, RamFile, Tag
from pycloud.adapters.libvirt.domain_xml import QEMU_NAMESPACE, render
from testing.unit.adapters.libvirt.plans import a_plan, all_plans

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "domain_xml"
PLANS = all_plans()


def _arguments(text):
    root = ET.fromstring(text)
    return [item.get("value") for item in root.iterfind(f"{{{QEMU_NAMESPACE}}}commandline/*")]


def _option(text, name):
    arguments = _arguments(text)
    return [json.loads(arguments[at + 1]) for at, value in enumerate(arguments) if value == name]


@pytest.mark.parametrize("name", sorted(PLANS))
def test_render_gives_the_golden_text_for_each_kind_of_plan(name, request):
    golden = GOLDEN / f"{name}.xml"
    if request.config.getoption("--refresh-golden"):
        golden.write_text(render(PLANS[name]), encoding="utf-8")

    text = render(PLANS[name])

    assert text == golden.read_text(encoding="utf-8")


def test_golden_files_have_a_plan_each():
    assert sorted(path.stem for path in GOLDEN.glob("*.xml")) == sorted(PLANS)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_render_gives_no_balloon_to_a_guest_whose_ram_is_a_file(name):
    plan = PLANS[name]

    root = ET.fromstring(render(plan))

    balloons = [item.get("model") for item in root.iterfind("devices/memballoon")]
    assert len(balloons) == 1
    assert balloons == ["none"] or plan.ram is None


@pytest.mark.parametrize("name", sorted(PLANS))
def test_render_restricts_every_user_mode_network_that_we_run(name):
    text = render(PLANS[name])

    netdevs = _option(text, "-netdev")

    assert all(item["restrict"] is True and item["ipv6"] is False for item in netdevs)
    assert netdevs or 'type="bridge"' in text or PLANS[name].tag is None


def test_render_gives_a_clone_the_hardware_of_its_template():
    template = replace(a_plan(), ram=RamFile(path=Path("/ram"), access=RamAccess.SHARED))
    clone = replace(
        template,
        ram=RamFile(path=Path("/ram"), access=RamAccess.PRIVATE),
        incoming=Incoming.LATER,
    )

    cloned = render(clone)

    def without_ram(text):
        return [line for line in text.splitlines() if "mem-path" not in line]

    waiting = [line for line in without_ram(cloned) if line not in without_ram(render(template))]
    assert [line.split('value="')[1] for line in waiting] == ['-incoming" />', 'defer" />']


def test_render_escapes_whatever_the_names_contain():
    hostile = '<x a="1">&'
    plan = replace(a_plan(), name=hostile, tag=Tag(cloudlet=hostile, owner=hostile, area=hostile))

    root = ET.fromstring(render(plan))

    assert root.findtext("name") == hostile


def test_render_doubles_commas_in_the_path_of_the_serial_log():
    plan = replace(a_plan(), serial_log=Path("/data,id=evil/serial.log"))

    arguments = _arguments(render(plan))

    chardev = arguments[arguments.index("-chardev") + 1]
    assert chardev == "pty,id=serial0,logfile=/data,,id=evil/serial.log,logappend=on"
