# SPDX-License-Identifier: Apache-2.0
"""Write a `Plan` as libvirt domain XML; the only place from which libvirt gets XML.

Every value is set through ElementTree and so escaped. Must not decide anything: what
a guest consists of stands in the plan.
"""

import json
import xml.etree.ElementTree as ET  # only written here, never parsed
from collections.abc import Iterator
from pathlib import Path

from pycloud.adapters.libvirt.domain_plan import (
    BridgeLink,
    DiskBus,
    DiskFiles,
    Hardware,
    Incoming,
    NicDevice,
    NicModel,
    OptionRom,
    PciAddress,
    PlainUserLink,
    Plan,
    RamAccess,
    RamFile,
    RestrictedUserLink,
    Tag,
    TapLink,
)
from pycloud.core.model.catalog import Architecture, OsType

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
TAG_NAMESPACE = "urn:pycloud:domain:1"
HOST_CPU = "host"
"""The CPU model that stands for the processor of the host itself."""
NETDEV_ID = "net0"

_QEMU_DRIVERS = {
    NicModel.VIRTIO: "virtio-net-pci",
    NicModel.E1000: "e1000",
    NicModel.RTL8139: "rtl8139",
}


def render(plan: Plan) -> str:
    """Return the domain XML of a plan, indented, always the same for the same plan."""
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    ET.register_namespace("pycloud", TAG_NAMESPACE)
    root = ET.Element("domain", type="kvm" if plan.machine.accelerator == "kvm" else "qemu")
    _add_identity(root, plan)
    _add_processor(root, plan)
    _add_lifecycle(root, plan)
    _add_devices(ET.SubElement(root, "devices"), plan)
    if plan.process_owner is not None:
        label = ET.SubElement(root, "seclabel", type="static", model="dac", relabel="no")
        owner = plan.process_owner
        ET.SubElement(label, "label").text = f"+{owner.user_id}:+{owner.group_id}"
    arguments = tuple(_emulator_arguments(plan))
    if arguments:
        command = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
        for argument in arguments:
            ET.SubElement(command, f"{{{QEMU_NAMESPACE}}}arg", value=argument)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _add_identity(root: ET.Element, plan: Plan) -> None:
    ET.SubElement(root, "name").text = plan.name
    ET.SubElement(root, "uuid").text = plan.domain_id
    if plan.hardware.has_generation_id:
        ET.SubElement(root, "genid").text = plan.generation_id
    if plan.tag is not None:
        _add_tag(ET.SubElement(root, "metadata"), plan.tag)
    ET.SubElement(root, "memory", unit="MiB").text = str(plan.memory_mib)
    ET.SubElement(root, "currentMemory", unit="MiB").text = str(plan.memory_mib)
    ET.SubElement(root, "vcpu", placement="static").text = str(plan.vcpus)


def _add_tag(metadata: ET.Element, tag: Tag) -> None:
    ET.SubElement(
        metadata,
        f"{{{TAG_NAMESPACE}}}domain",
        cloudlet=tag.cloudlet,
        owner=tag.owner,
        role=tag.role.value,
        area=tag.area,
    )


def _add_processor(root: ET.Element, plan: Plan) -> None:
    machine = plan.machine
    is_pc = machine.architecture is Architecture.X86_64
    system = ET.SubElement(root, "os")
    if not is_pc:
        system.set("firmware", "efi")
    kind = ET.SubElement(system, "type", arch=machine.architecture.value, machine=machine.machine)
    kind.text = "hvm"
    ET.SubElement(system, "boot", dev="hd")
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    if is_pc:
        ET.SubElement(features, "apic")
    if machine.accelerator == "kvm" and plan.os_type is OsType.WINDOWS and is_pc:
        _add_hyperv(features)
    if machine.accelerator != "kvm":
        cache = ET.SubElement(ET.SubElement(features, "tcg"), "tb-cache", unit="MiB")
        cache.text = str(plan.translation_cache_mib)
    _add_cpu(root, plan)


def _add_hyperv(features: ET.Element) -> None:
    """Add the paravirtualisation that keeps Windows from spinning and from clock drift."""
    hyperv = ET.SubElement(features, "hyperv", mode="custom")
    ET.SubElement(hyperv, "relaxed", state="on")
    ET.SubElement(hyperv, "vapic", state="on")
    ET.SubElement(hyperv, "spinlocks", state="on", retries="8191")


def _add_cpu(root: ET.Element, plan: Plan) -> None:
    if plan.machine.cpu_model == HOST_CPU:
        ET.SubElement(root, "cpu", mode="host-passthrough", check="none", migratable="on")
        return
    cpu = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
    ET.SubElement(cpu, "model", fallback="forbid").text = plan.machine.cpu_model
    for feature in plan.hardware.cpu_features:
        ET.SubElement(cpu, "feature", policy=feature.policy, name=feature.name)


def _add_lifecycle(root: ET.Element, plan: Plan) -> None:
    is_windows = plan.os_type is OsType.WINDOWS
    clock = ET.SubElement(root, "clock", offset="localtime" if is_windows else "utc")
    if plan.machine.architecture is Architecture.X86_64:
        present = "yes" if plan.hardware.has_hpet else "no"
        ET.SubElement(clock, "timer", name="hpet", present=present)
    ET.SubElement(root, "on_poweroff").text = "destroy"
    # A Linux service that restarts has panicked; Windows restarts in the course of its life.
    ET.SubElement(root, "on_reboot").text = "restart" if is_windows else "destroy"
    ET.SubElement(root, "on_crash").text = "preserve"
    if plan.hardware.sleep_states:
        power = ET.SubElement(root, "pm")
        for element, enabled in plan.hardware.sleep_states:
            ET.SubElement(power, element, enabled=enabled)


def _add_devices(devices: ET.Element, plan: Plan) -> None:
    hardware = plan.hardware
    _add_disk(devices, hardware, plan.disk)
    _add_controllers(devices, hardware)
    if isinstance(plan.link, PlainUserLink | BridgeLink | TapLink):
        _add_interface(devices, hardware.nic, plan.link)
    if hardware.has_serial and plan.serial_log is None:
        ET.SubElement(devices, "serial", type="pty")
    if hardware.video is not None:
        video = ET.SubElement(devices, "video")
        model = hardware.video
        ET.SubElement(video, "model", type=model.model.value, vram=str(model.memory_kib))
        _add_address(video, model.address)
    else:
        ET.SubElement(ET.SubElement(devices, "video"), "model", type="none")
    if hardware.balloon is None:
        ET.SubElement(devices, "memballoon", model="none")
    else:
        _add_address(ET.SubElement(devices, "memballoon", model="virtio"), hardware.balloon)
    if hardware.entropy is not None:
        entropy = ET.SubElement(devices, "rng", model="virtio")
        ET.SubElement(entropy, "backend", model="random").text = "/dev/urandom"
        _add_address(entropy, hardware.entropy)
    if hardware.has_panic:
        ET.SubElement(devices, "panic", model="isa")


def _add_disk(devices: ET.Element, hardware: Hardware, files: DiskFiles) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="writeback", discard="unmap")
    ET.SubElement(disk, "source", file=str(files.overlay))
    if files.layers is not None:
        _add_layers(disk, files.layers)
    is_virtio = hardware.disk.bus is DiskBus.VIRTIO
    ET.SubElement(disk, "target", dev="vda" if is_virtio else "hda", bus=hardware.disk.bus.value)
    if hardware.disk.address is not None:
        _add_address(disk, hardware.disk.address)
    elif not is_virtio:
        ET.SubElement(disk, "address", type="drive", controller="0", bus="0", target="0", unit="0")


def _add_layers(disk: ET.Element, layers: tuple[Path, ...]) -> None:
    below = disk
    for layer in layers:
        below = ET.SubElement(below, "backingStore", type="file")
        ET.SubElement(below, "format", type="qcow2")
        ET.SubElement(below, "source", file=str(layer))
    # An empty element ends the chain, so that no layer is searched for a name of another file.
    ET.SubElement(below, "backingStore")


def _add_controllers(devices: ET.Element, hardware: Hardware) -> None:
    if hardware.usb is None:
        ET.SubElement(devices, "controller", type="usb", index="0", model="none")
    else:
        usb = ET.SubElement(devices, "controller", type="usb", index="0", model="piix3-uhci")
        _add_address(usb, hardware.usb)


def _add_interface(
    devices: ET.Element, nic: NicDevice, link: PlainUserLink | BridgeLink | TapLink
) -> None:
    interface = ET.SubElement(devices, "interface")
    ET.SubElement(interface, "mac", address=nic.mac_address)
    match link:
        case PlainUserLink():
            interface.set("type", "user")
        case BridgeLink(bridge=bridge):
            interface.set("type", "bridge")
            ET.SubElement(interface, "source", bridge=bridge)
        case TapLink(device=device):
            interface.set("type", "ethernet")
            ET.SubElement(interface, "target", dev=device, managed="no")
    ET.SubElement(interface, "model", type=nic.model.value)
    if nic.rom is OptionRom.NONE:
        ET.SubElement(interface, "rom", enabled="no")
    _add_address(interface, nic.address)


def _add_address(device: ET.Element, address: PciAddress) -> None:
    ET.SubElement(
        device,
        "address",
        type="pci",
        domain="0x0000",
        bus="0x00",
        slot=f"0x{address.slot:02x}",
        function=f"0x{address.function:x}",
    )


def _emulator_arguments(plan: Plan) -> Iterator[str]:
    """Yield what libvirt's own XML cannot say."""
    if isinstance(plan.link, RestrictedUserLink):
        yield from _restricted_network(plan)
    if plan.hardware.has_serial and plan.serial_log is not None:
        # libvirt would log through a second daemon, which a privileged libvirt needs running.
        log = str(plan.serial_log).replace(",", ",,")
        yield from ("-chardev", f"pty,id=serial0,logfile={log},logappend=on")
        yield from ("-serial", "chardev:serial0")
    if plan.ram is not None:
        yield from ("-object", _memory_object(plan.ram, plan.memory_mib))
        yield from ("-machine", "memory-backend=ram0")
    if plan.incoming is Incoming.LATER:
        yield from ("-incoming", "defer")


def _restricted_network(plan: Plan) -> Iterator[str]:
    nic = plan.hardware.nic
    yield "-netdev"
    yield json.dumps({"type": "user", "id": NETDEV_ID, "restrict": True, "ipv6": False})
    is_i440fx = plan.machine.machine.startswith(("pc-i440fx", "pc-0", "pc-1"))
    device = {
        "driver": _QEMU_DRIVERS[nic.model],
        "netdev": NETDEV_ID,
        "id": "nic0",
        "mac": nic.mac_address,
        "bus": "pci.0" if is_i440fx else "pcie.0",
        "addr": f"0x{nic.address.slot:x}.{nic.address.function:x}",
    }
    if nic.rom is OptionRom.NONE:
        device["romfile"] = ""
    yield "-device"
    yield json.dumps(device)


def _memory_object(ram: RamFile, memory_mib: int) -> str:
    properties: dict[str, object] = {
        "qom-type": "memory-backend-file",
        "id": "ram0",
        "size": memory_mib << 20,
        "mem-path": str(ram.path),
        "share": ram.access is RamAccess.SHARED,
    }
    if ram.access is RamAccess.SEALED:
        properties |= {"readonly": True, "rom": "off"}
    return json.dumps(properties)
