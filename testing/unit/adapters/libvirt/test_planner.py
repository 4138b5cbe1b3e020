# SPDX-License-Identifier: Apache-2.0
"""What is refused before anything is made."""

from dataclasses import replace
from pathlib import Path

import pytest

from pycloud.adapters.fakes.hypervisor import FAKE_FACTS
from pycloud.adapters.libvirt.domain_plan import (
    BridgeLink,
    DiskFiles,
    Incoming,
    ProcessOwner,
    RamAccess,
    RestrictedUserLink,
    Tag,
)
from pycloud.adapters.libvirt.planner import Placement, Planner
from pycloud.core.model.catalog import Architecture, MemoryKind, OsType
from pycloud.core.ports import BridgedNetwork, DomainSpec, UserNetwork
from pycloud.errors import HypervisorError, StateUnusable
from testing.factories import a_disk, a_machine, a_memory_state

PLACEMENT = Placement(
    tag=Tag(cloudlet="c", owner="i"),
    disk=DiskFiles(overlay=Path("/o"), layers=()),
    serial_log=Path("/s"),
)
BRIDGED = BridgedNetwork(bridge="br0", mac_address="52:54:00:ab:cd:ef")


def _spec(**changes):
    spec = DomainSpec(
        owner="i",
        domain_id="11111111-2222-4333-8444-555555555555",
        machine=a_machine(),
        os_type=OsType.LINUX,
        vcpus=1,
        memory_mib=256,
        disk=a_disk(),
        network=UserNetwork(forwards=()),
    )
    return replace(spec, **changes)


def _resumed(kind=MemoryKind.TEMPLATE, **changes):
    memory = replace(a_memory_state(kind=kind), **changes)
    return _spec(
        memory=memory,
        disk=memory.disk,
        memory_mib=memory.memory_mib,
        vcpus=memory.vcpus,
        machine=memory.machine,
    )


def _planner(**changes):
    facts = replace(FAKE_FACTS, **changes)
    return Planner(facts=lambda: facts, process_owner=lambda: None, translation_cache_mib=64)


@pytest.mark.parametrize("kind", MemoryKind)
def test_check_accepts_a_state_made_here(kind):
    _planner().check(_resumed(kind))


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        (_resumed(), {"accelerator": "kvm"}),
        (_resumed(), {"emulator_version": "6.2.0"}),
        (_resumed(), {"instant_start": False}),
        (replace(_resumed(), memory_mib=64), {}),
        (replace(_resumed(), vcpus=7), {}),
        (replace(_resumed(), network=BRIDGED), {}),
    ],
    ids=["accelerator", "older QEMU", "no private memory", "memory", "processors", "bridge"],
)
def test_check_calls_a_state_unusable_when_it_does_not_fit(spec, facts):
    with pytest.raises(StateUnusable):
        _planner(**facts).check(spec)


def test_check_refuses_a_state_on_another_disk():
    spec = replace(_resumed(), disk=a_disk(backing=a_disk().blob))

    with pytest.raises(HypervisorError, match="own disk"):
        _planner().check(spec)


def test_check_refuses_a_guest_of_another_architecture():
    machine = replace(a_machine(), architecture=Architecture.AARCH64)

    with pytest.raises(HypervisorError, match="aarch64"):
        _planner().check(_spec(machine=machine))


@pytest.mark.parametrize(
    ("version", "access"), [("7.2.22", RamAccess.PRIVATE), ("8.2.0", RamAccess.SEALED)]
)
def test_clone_opens_the_ram_as_safely_as_the_emulator_can(version, access):
    plan = _planner(emulator_version=version).clone(_resumed(), PLACEMENT, Path("/ram"))

    assert plan.ram.access is access
    assert plan.incoming is Incoming.LATER
    assert isinstance(plan.link, RestrictedUserLink)


def test_template_is_refused_on_a_bridge():
    with pytest.raises(StateUnusable):
        _planner().template(_spec(network=BRIDGED), PLACEMENT, Path("/ram"))


def test_fresh_guest_on_a_bridge_has_the_address_it_was_given():
    plan = _planner().fresh(_spec(network=BRIDGED), PLACEMENT)

    assert plan.link == BridgeLink(bridge="br0")
    assert plan.hardware.nic.mac_address == BRIDGED.mac_address


def test_plans_have_a_new_generation_each():
    planner = _planner()

    plans = [planner.fresh(_spec(), PLACEMENT) for _ in range(2)]

    assert plans[0].generation_id != plans[1].generation_id


def test_plans_run_the_emulator_under_our_account_when_libvirt_would_not():
    owner = ProcessOwner(user_id=5, group_id=6)
    planner = Planner(
        facts=lambda: FAKE_FACTS, process_owner=lambda: owner, translation_cache_mib=64
    )

    plan = planner.fresh(_spec(), PLACEMENT)

    assert plan.process_owner == owner
