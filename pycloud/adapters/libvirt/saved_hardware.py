# SPDX-License-Identifier: Apache-2.0
"""Read the hardware of a saved guest out of a foreign domain description.

An allow-list: what is not known here makes the state unusable, because a device that
our builder does not reproduce exactly would make QEMU refuse the stream, or worse,
misread it. Only facts leave this module, as our own types; nothing of the text does.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pycloud.adapters.libvirt.domain_plan import (
    CpuFeature,
    DiskBus,
    DiskDevice,
    Hardware,
    NicDevice,
    NicModel,
    OptionRom,
    PciAddress,
    VideoDevice,
    VideoModel,
)
from pycloud.adapters.libvirt.domain_xml import QEMU_NAMESPACE
from pycloud.core.model.catalog import Architecture, MachineSpec
from pycloud.errors import StateUnusable

E = TypeVar("E", bound=StrEnum)

_MACHINE = re.compile(r"pc-i440fx-\d{1,2}\.\d{1,2}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NUMBER = re.compile(r"\d{1,10}")
_REDIRECTION = re.compile(r"-redir|tcp:\d{1,5}::\d{1,5}")
_UNITS_KIB = {"KiB": 1, "k": 1, "MiB": 1 << 10, "M": 1 << 10, "GiB": 1 << 20, "G": 1 << 20}
_ACCELERATORS = {"kvm": "kvm", "qemu": "tcg"}
# What says nothing about the hardware.
_IGNORED_TOP = frozenset(
    {
        "name", "uuid", "title", "description", "metadata", "resource", "seclabel",
        "on_poweroff", "on_reboot", "on_crash", "genid",
    }
)  # fmt: skip
_READ_TOP = frozenset(
    {"memory", "currentMemory", "vcpu", "os", "features", "cpu", "clock", "pm", "devices"}
)
_IGNORED_DEVICES = frozenset({"emulator", "graphics"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedGuest:
    """A guest as a save image describes it."""

    machine: MachineSpec
    memory_mib: int
    vcpus: int
    hardware: Hardware


def read_saved_guest(description: bytes) -> SavedGuest:
    """Return the guest that a description of at most a mebibyte is about.

    Raises StateUnusable, naming what stands in the way.
    """
    root = _parsed(description)
    known = _IGNORED_TOP | _READ_TOP | {f"{{{QEMU_NAMESPACE}}}commandline"}
    _only(root, known)
    _check_arguments(root)
    return SavedGuest(
        machine=_machine(root),
        memory_mib=_memory_mib(root),
        vcpus=_vcpus(root),
        hardware=_hardware(root),
    )


def _parsed(description: bytes) -> ET.Element:
    # Entities and everything else that a DTD brings cannot occur in what libvirt writes.
    if b"<!" in description:
        raise StateUnusable("the description in the save image has a document type")
    try:
        root = ET.fromstring(description)  # noqa: S314  # bounded, and no DTD can be in it
    except (ET.ParseError, ValueError) as exc:
        raise StateUnusable(f"the description in the save image is not XML: {exc}") from exc
    if root.tag != "domain":
        raise StateUnusable("the description in the save image is not that of a domain")
    return root


def _machine(root: ET.Element) -> MachineSpec:
    system = _one(root, "os")
    _only(system, {"type", "boot", "bootmenu", "bios", "smbios"})
    kind = _one(system, "type")
    if (kind.get("arch"), kind.text) != ("x86_64", "hvm"):
        raise _unknown("architecture", kind.get("arch"))
    machine = kind.get("machine", "")
    if _MACHINE.fullmatch(machine) is None:
        raise _unknown("machine type", machine)
    accelerator = _ACCELERATORS.get(root.get("type", ""))
    if accelerator is None:
        raise _unknown("kind of domain", root.get("type"))
    cpu = root.find("cpu")
    model = "qemu64" if cpu is None else _word(_one(cpu, "model").text)
    return MachineSpec(
        architecture=Architecture.X86_64,
        machine=machine,
        cpu_model=model,
        accelerator=accelerator,
    )


def _memory_mib(root: ET.Element) -> int:
    sizes_kib = []
    for name in ("memory", "currentMemory"):
        element = _one(root, name)
        unit = _UNITS_KIB.get(element.get("unit", "KiB"))
        if unit is None:
            raise _unknown("unit of memory", element.get("unit"))
        sizes_kib.append(_number(element.text) * unit)
    if sizes_kib[0] != sizes_kib[1] or sizes_kib[0] % 1024:
        raise StateUnusable("the saved guest's memory was ballooned or is no whole mebibyte")
    return sizes_kib[0] // 1024


def _vcpus(root: ET.Element) -> int:
    element = _one(root, "vcpu")
    if "current" in element.attrib:
        raise _unknown("processor setting", "current")
    return _number(element.text)


def _hardware(root: ET.Element) -> Hardware:
    features = _one(root, "features")
    _only(features, {"acpi", "apic", "pae", "tcg"})
    _one(features, "acpi")
    devices = _one(root, "devices")
    found = _Devices(devices)
    return Hardware(
        disk=found.disk(),
        nic=found.nic(),
        video=found.video(),
        usb=found.controllers(),
        entropy=found.pci("rng", model="virtio"),
        balloon=found.balloon(),
        has_serial=found.has_serial(),
        has_panic=found.has_panic(),
        has_generation_id=root.find("genid") is not None,
        has_hpet=_has_hpet(root),
        cpu_features=_cpu_features(root),
        sleep_states=_sleep_states(root),
    )


class _Devices:
    """The devices element; each method reads one kind of device."""

    def __init__(self, devices: ET.Element) -> None:
        read = {
            "disk", "interface", "video", "controller", "rng", "memballoon", "serial",
            "panic", "input", "audio", "console",
        }  # fmt: skip
        _only(devices, _IGNORED_DEVICES | read)
        self._devices = devices
        for element in devices.iterfind("input"):
            if element.get("bus") != "ps2":
                raise _unknown("input device", element.get("bus"))
        for element in devices.iterfind("audio"):
            if element.get("type") != "none":
                raise _unknown("audio device", element.get("type"))
        for element in devices.iterfind("console/target"):
            # This one is no device of its own but another name of the serial port.
            if element.get("type") != "serial":
                raise _unknown("console", element.get("type"))

    def disk(self) -> DiskDevice:
        """Read the one disk."""
        disk = _one(self._devices, "disk")
        if disk.get("device") != "disk":
            raise _unknown("disk", disk.get("device"))
        _only(disk, {"driver", "source", "target", "backingStore", "alias", "address"})
        for driver in disk.iterfind("driver"):
            _attributes(driver, {"name", "type", "cache", "io", "discard", "error_policy"})
        target = _one(disk, "target")
        bus = _choice(DiskBus, target.get("bus"), "bus of the disk")
        if bus is DiskBus.VIRTIO:
            return DiskDevice(bus=bus, address=_pci(disk))
        if target.get("dev") != "hda":
            raise _unknown("place of the disk", target.get("dev"))
        return DiskDevice(bus=bus, address=None)

    def nic(self) -> NicDevice:
        """Read the one network card, whatever it was connected to."""
        nic = _one(self._devices, "interface")
        _only(nic, {"mac", "source", "target", "model", "alias", "address", "rom"})
        if nic.get("type") != "user":
            # The stream of a guest elsewhere lacks what user-mode networking saves.
            raise _unknown("network of the saved guest", nic.get("type"))
        mac_address = _one(nic, "mac").get("address", "").lower()
        if _MAC.fullmatch(mac_address) is None:
            raise _unknown("network address", mac_address)
        rom = nic.find("rom")
        return NicDevice(
            model=_choice(NicModel, _one(nic, "model").get("type"), "network card"),
            address=_pci(nic),
            mac_address=mac_address,
            rom=OptionRom.DEFAULT if rom is None else _rom(rom),
        )

    def video(self) -> VideoDevice | None:
        """Read the graphics card, if there is one."""
        video = _at_most_one(self._devices, "video")
        if video is None:
            return None
        model = _one(video, "model")
        if model.get("type") == "none":
            return None
        _attributes(model, {"type", "vram", "heads", "primary"})
        return VideoDevice(
            model=_choice(VideoModel, model.get("type"), "graphics card"),
            address=_pci(video),
            memory_kib=_number(model.get("vram")),
        )

    def controllers(self) -> PciAddress | None:
        """Check the controllers and return the address of the USB controller, if any."""
        usb = None
        for element in self._devices.iterfind("controller"):
            described = (element.get("type"), element.get("index"), element.get("model"))
            match described:
                case ("pci", "0", "pci-root") | ("ide", "0", None) | ("usb", "0", "none"):
                    continue
                case ("usb", "0", "piix3-uhci" | None):
                    usb = _pci(element)
                case _:
                    raise _unknown("controller", " ".join(str(part) for part in described))
        return usb

    def balloon(self) -> PciAddress | None:
        """Read the memory balloon, if there is one."""
        balloon = _at_most_one(self._devices, "memballoon")
        if balloon is None:
            # libvirt writes one unless it is told not to.
            raise StateUnusable("the saved guest does not say whether it has a memory balloon")
        if balloon.get("model") == "none":
            return None
        _attributes(balloon, {"model"})
        return self.pci("memballoon", model="virtio")

    def has_serial(self) -> bool:
        """Return whether there is a serial port."""
        serial = _at_most_one(self._devices, "serial")
        if serial is None:
            return False
        target = serial.find("target")
        if target is not None and target.get("type", "isa-serial") != "isa-serial":
            raise _unknown("serial port", target.get("type"))
        return True

    def has_panic(self) -> bool:
        """Return whether there is a panic device."""
        panic = _at_most_one(self._devices, "panic")
        if panic is not None and panic.get("model") != "isa":
            raise _unknown("panic device", panic.get("model"))
        return panic is not None

    def pci(self, name: str, *, model: str) -> PciAddress | None:
        """Read a device of which only presence, model and address count."""
        element = _at_most_one(self._devices, name)
        if element is None:
            return None
        if element.get("model") != model:
            raise _unknown(name, element.get("model"))
        return _pci(element)


def _cpu_features(root: ET.Element) -> tuple[CpuFeature, ...]:
    cpu = root.find("cpu")
    if cpu is None:
        return ()
    if cpu.get("mode") != "custom":
        raise _unknown("kind of processor", cpu.get("mode"))
    _only(cpu, {"model", "vendor", "feature"})
    features = []
    for element in cpu.iterfind("feature"):
        policy = element.get("policy", "require")
        if policy not in {"require", "disable"}:
            raise _unknown("policy of a processor feature", policy)
        features.append(CpuFeature(name=_word(element.get("name")), policy=policy))
    return tuple(features)


def _has_hpet(root: ET.Element) -> bool:
    clock = root.find("clock")
    if clock is None:
        return True
    _only(clock, {"timer"})
    for timer in clock.iterfind("timer"):
        if timer.get("name") not in {"rtc", "pit", "hpet"}:
            raise _unknown("timer", timer.get("name"))
        if timer.get("name") == "hpet":
            return timer.get("present") != "no"
    return True


def _sleep_states(root: ET.Element) -> tuple[tuple[str, str], ...]:
    power = root.find("pm")
    if power is None:
        return ()
    _only(power, {"suspend-to-mem", "suspend-to-disk"})
    return tuple(
        (element.tag, "yes" if element.get("enabled") == "yes" else "no") for element in power
    )


def _check_arguments(root: ET.Element) -> None:
    """Let port redirections of old cloudlets pass; they leave no trace in the stream."""
    for argument in root.iterfind(f"{{{QEMU_NAMESPACE}}}commandline/*"):
        value = argument.get("value", "")
        if argument.tag != f"{{{QEMU_NAMESPACE}}}arg" or not _REDIRECTION.fullmatch(value):
            raise _unknown("argument of the emulator", value or argument.tag)


def _pci(device: ET.Element) -> PciAddress:
    address = _one(device, "address")
    try:
        bus, slot, function = (
            int(address.get(name, "0"), 0) for name in ("bus", "slot", "function")
        )
    except ValueError as exc:
        raise _unknown("address of a device", str(address.attrib)) from exc
    if address.get("type") != "pci" or bus != 0 or not 0 < slot < 32 or not 0 <= function < 8:
        raise _unknown("address of a device", str(address.attrib))
    return PciAddress(slot=slot, function=function)


def _rom(element: ET.Element) -> OptionRom:
    if element.attrib != {"enabled": "no"}:
        raise _unknown("boot ROM", str(element.attrib))
    return OptionRom.NONE


def _one(parent: ET.Element, name: str) -> ET.Element:
    element = _at_most_one(parent, name)
    if element is None:
        raise StateUnusable(f"the saved guest has no {name!r}")
    return element


def _at_most_one(parent: ET.Element, name: str) -> ET.Element | None:
    elements = parent.findall(name)
    if len(elements) > 1:
        raise StateUnusable(f"the saved guest has more than one {name!r}")
    return elements[0] if elements else None


def _only(parent: ET.Element, names: Iterable[str]) -> None:
    for child in parent:
        if child.tag not in names:
            raise _unknown("element", f"{parent.tag}/{child.tag}")


def _attributes(element: ET.Element, names: Iterable[str]) -> None:
    for name in element.attrib:
        if name not in names:
            raise _unknown("setting", f"{element.tag}/@{name}")


def _choice(kind: type[E], value: str | None, what: str) -> E:
    try:
        return kind(str(value))
    except ValueError as exc:
        raise _unknown(what, value) from exc


def _word(value: str | None) -> str:
    if value is None or _WORD.fullmatch(value) is None:
        raise _unknown("name", value)
    return value


def _number(value: str | None) -> int:
    if value is None or _NUMBER.fullmatch(value.strip()) is None:
        raise _unknown("number", value)
    return int(value)


def _unknown(what: str, value: object) -> StateUnusable:
    return StateUnusable(f"the saved guest cannot be rebuilt here: {what} {str(value)[:80]!r}")
