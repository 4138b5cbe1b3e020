# SPDX-License-Identifier: Apache-2.0
"""From what the core asks for to a complete plan of a domain, or a refusal.

Everything that makes a start impossible and can be known beforehand is refused here.
Must not talk to libvirt or change anything.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pycloud.adapters.libvirt.capabilities import SEALED_RAM_SINCE, version_tuple
from pycloud.adapters.libvirt.domain_plan import (
    USER_NETWORK_MAC,
    BridgeLink,
    DiskFiles,
    Hardware,
    Incoming,
    Link,
    PlainUserLink,
    Plan,
    ProcessOwner,
    RamAccess,
    RamFile,
    RestrictedUserLink,
    Tag,
    TapLink,
    standard_hardware,
)
from pycloud.adapters.libvirt.domains import domain_name
from pycloud.core.model.catalog import MemoryKind, MemoryState
from pycloud.core.model.fleet import HypervisorFacts
from pycloud.core.ports import BridgedNetwork, DomainSpec
from pycloud.errors import HypervisorError, StateUnusable

_ANY_DISK = Path("/var/lib/pycloud/disk.qcow2")
"""Stands where whoever restores a save image puts the path of his own disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a new domain is given on this host: its tag and the files that are its own."""

    tag: Tag
    disk: DiskFiles
    serial_log: Path
    tap: str | None = None
    """A tap device made for the domain, if libvirt cannot make one."""


class Planner:
    """Makes plans for domains of one host."""

    def __init__(
        self,
        *,
        facts: Callable[[], HypervisorFacts],
        process_owner: Callable[[], ProcessOwner | None],
        translation_cache_mib: int,
    ) -> None:
        self._facts = facts
        self._process_owner = process_owner
        self._translation_cache_mib = translation_cache_mib

    def check(self, spec: DomainSpec) -> None:
        """Raise HypervisorError or StateUnusable if this host cannot start this domain."""
        facts = self._facts()
        if spec.machine.architecture.value != facts.architecture:
            raise HypervisorError(
                f"the guest is made for {spec.machine.architecture.value},"
                f" this host is {facts.architecture}"
            )
        if spec.memory is not None:
            _check_memory(spec, spec.memory, facts)

    def fresh(self, spec: DomainSpec, placement: Placement) -> Plan:
        """Plan a cold boot."""
        mac_address = (
            spec.network.mac_address
            if isinstance(spec.network, BridgedNetwork)
            else USER_NETWORK_MAC
        )
        hardware = standard_hardware(spec.machine, spec.os_type, mac_address=mac_address)
        return self._plan(spec, placement, hardware)

    def template(self, spec: DomainSpec, placement: Placement, ram: Path) -> Plan:
        """Plan a cold boot whose RAM is a file that later copies are made from."""
        if isinstance(spec.network, BridgedNetwork):
            raise _bridged()
        return replace(self.fresh(spec, placement), ram=RamFile(path=ram, access=RamAccess.SHARED))

    def clone(self, spec: DomainSpec, placement: Placement, ram: Path) -> Plan:
        """Plan a copy that maps the RAM of a template privately and waits for its devices."""
        can_seal = version_tuple(self._facts().emulator_version) >= SEALED_RAM_SINCE
        access = RamAccess.SEALED if can_seal else RamAccess.PRIVATE
        return replace(
            self.fresh(spec, placement),
            ram=RamFile(path=ram, access=access),
            incoming=Incoming.LATER,
        )

    def restored(self, spec: DomainSpec, placement: Placement, hardware: Hardware) -> Plan:
        """Plan a guest whose devices a saved state dictates."""
        return self._plan(spec, placement, hardware)

    def portable(self, spec: DomainSpec) -> Plan:
        """Plan what another cloudlet reads in a save image: plain devices, no files of ours."""
        mac_address = USER_NETWORK_MAC
        return Plan(
            name=domain_name(spec.owner),
            domain_id=spec.domain_id,
            tag=None,
            machine=spec.machine,
            os_type=spec.os_type,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            hardware=standard_hardware(spec.machine, spec.os_type, mac_address=mac_address),
            disk=DiskFiles(overlay=_ANY_DISK, layers=None),
            link=PlainUserLink(),
            generation_id=str(uuid.uuid4()),
            translation_cache_mib=self._translation_cache_mib,
        )

    def _plan(self, spec: DomainSpec, placement: Placement, hardware: Hardware) -> Plan:
        return Plan(
            name=domain_name(spec.owner),
            domain_id=spec.domain_id,
            tag=placement.tag,
            machine=spec.machine if spec.memory is None else spec.memory.machine,
            os_type=spec.os_type,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            hardware=hardware,
            disk=placement.disk,
            link=_link(spec, placement),
            serial_log=placement.serial_log,
            # A new one tells the guest that it is a copy, so that it draws new random numbers.
            generation_id=str(uuid.uuid4()),
            translation_cache_mib=self._translation_cache_mib,
            process_owner=self._process_owner(),
        )


def _link(spec: DomainSpec, placement: Placement) -> Link:
    if not isinstance(spec.network, BridgedNetwork):
        return RestrictedUserLink()
    if placement.tap is not None:
        return TapLink(device=placement.tap)
    return BridgeLink(bridge=spec.network.bridge)


def _check_memory(spec: DomainSpec, memory: MemoryState, facts: HypervisorFacts) -> None:
    if memory.disk != spec.disk:
        raise HypervisorError("a memory state may only be resumed on its own disk")
    if (memory.memory_mib, memory.vcpus) != (spec.memory_mib, spec.vcpus):
        raise StateUnusable("the memory state was made with other memory or processors")
    if isinstance(spec.network, BridgedNetwork):
        raise _bridged()
    if memory.machine.accelerator != facts.accelerator:
        raise StateUnusable(
            f"the memory state was made with {memory.machine.accelerator}, guests run with"
            f" {facts.accelerator} here: {facts.accelerator_reason}"
        )
    made_by = version_tuple(memory.machine.emulator_version)
    if made_by[:2] > version_tuple(facts.emulator_version)[:2]:
        raise StateUnusable(
            f"the memory state was made by QEMU {memory.machine.emulator_version},"
            f" newer than {facts.emulator_version} here"
        )
    if memory.kind is MemoryKind.TEMPLATE and not facts.instant_start:
        raise StateUnusable("this QEMU cannot resume from privately mapped memory")


def _bridged() -> StateUnusable:
    return StateUnusable(
        "a saved state carries the guest's network address, and two copies on one bridge"
        " would collide; guests on a bridge boot cold"
    )
