# SPDX-License-Identifier: Apache-2.0
"""One plan of every kind that pycloud makes, with fixed names and paths."""

from dataclasses import replace
from pathlib import Path

from pycloud.adapters.libvirt.domain_plan import (
    USER_NETWORK_MAC,
    BridgeLink,
    CpuFeature,
    DiskBus,
    DiskDevice,
    DiskFiles,
    Hardware,
    Incoming,
    NicDevice,
    NicModel,
    OptionRom,
    PciAddress,
    PlainUserLink,
    Plan,
    ProcessOwner,
    RamAccess,
    RamFile,
    RestrictedUserLink,
    Role,
    Tag,
    VideoDevice,
    VideoModel,
    standard_hardware,
)
from pycloud.core.model.catalog import Architecture, MachineSpec, OsType
from pycloud.core.model.identifiers import DomainId, InstanceId

DATA = Path("/var/lib/pycloud")
INSTANCE = DATA / "instances/instance-1"
PC = MachineSpec(machine="pc-i440fx-7.2", cpu_model="Nehalem", accelerator="tcg")
ARM = MachineSpec(
    architecture=Architecture.AARCH64,
    machine="virt-7.2",
    cpu_model="cortex-a57",
    accelerator="tcg",
)
BRIDGE_MAC = "52:54:00:ab:cd:ef"


def a_plan(machine: MachineSpec = PC, os_type: OsType = OsType.LINUX) -> Plan:
    """Return a cold boot in user-mode networking."""
    return Plan(
        name="pycloud-instance-1",
        domain_id=DomainId("11111111-2222-4333-8444-555555555555"),
        tag=Tag(cloudlet="0123456789abcdef", owner=InstanceId("instance-1")),
        machine=machine,
        os_type=os_type,
        vcpus=2,
        memory_mib=512,
        hardware=standard_hardware(machine, os_type, mac_address=USER_NETWORK_MAC),
        disk=DiskFiles(
            overlay=INSTANCE / "disk.qcow2", layers=(DATA / "blobs/aa/aa11", DATA / "blobs/bb/bb22")
        ),
        link=RestrictedUserLink(),
        serial_log=INSTANCE / "serial.log",
        generation_id="99999999-8888-4777-8666-555555555555",
    )


def _bridged(plan: Plan) -> Plan:
    hardware = standard_hardware(plan.machine, plan.os_type, mac_address=BRIDGE_MAC)
    return replace(plan, link=BridgeLink(bridge="br0"), hardware=hardware)


def _with_ram(access: RamAccess) -> RamFile:
    return RamFile(path=DATA / "blobs/cc/cc33", access=access)


def _foreign() -> Plan:
    hardware = Hardware(
        disk=DiskDevice(bus=DiskBus.IDE, address=None),
        nic=NicDevice(
            model=NicModel.RTL8139,
            address=PciAddress(slot=3),
            mac_address="52:54:00:01:02:03",
            rom=OptionRom.DEFAULT,
        ),
        video=VideoDevice(model=VideoModel.CIRRUS, address=PciAddress(slot=2), memory_kib=16_384),
        usb=PciAddress(slot=1, function=2),
        balloon=PciAddress(slot=4),
        has_hpet=True,
        cpu_features=(
            CpuFeature(name="x2apic", policy="require"),
            CpuFeature(name="svm", policy="disable"),
        ),
        sleep_states=(("suspend-to-mem", "no"), ("suspend-to-disk", "no")),
    )
    return replace(a_plan(replace(PC, cpu_model="qemu64")), hardware=hardware)


def all_plans() -> dict[str, Plan]:
    """Return every kind of plan by the name of its golden file."""
    plans: dict[str, Plan] = {}
    for machine in (PC, ARM):
        for os_type in OsType:
            name = f"{machine.architecture}-{os_type}"
            plans[f"{name}-user"] = a_plan(machine, os_type)
            plans[f"{name}-bridged"] = _bridged(a_plan(machine, os_type))
    clone = replace(a_plan(), incoming=Incoming.LATER)
    return plans | {
        "template": replace(a_plan(), ram=_with_ram(RamAccess.SHARED)),
        "clone": replace(clone, ram=_with_ram(RamAccess.PRIVATE)),
        "clone-sealed": replace(clone, ram=_with_ram(RamAccess.SEALED)),
        "held": replace(
            clone,
            ram=_with_ram(RamAccess.PRIVATE),
            tag=Tag(cloudlet="0123456789abcdef", owner=InstanceId("warm-1"), role=Role.HELD),
        ),
        "kvm": a_plan(replace(PC, accelerator="kvm")),
        "kvm-windows": a_plan(replace(PC, accelerator="kvm"), OsType.WINDOWS),
        "kvm-host-cpu": a_plan(replace(ARM, accelerator="kvm", cpu_model="host")),
        "system-daemon": replace(a_plan(), process_owner=ProcessOwner(user_id=990, group_id=991)),
        "save-image": replace(
            a_plan(),
            tag=None,
            link=PlainUserLink(),
            serial_log=None,
            disk=DiskFiles(overlay=DATA / "disk.qcow2", layers=None),
        ),
        "save-image-of-another-cloudlet": _foreign(),
    }
