# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine is to be, as frozen values: the plan from which XML is written.

`Hardware` is all that a guest can see and that a saved state therefore depends on;
the rest of a `Plan` may differ from one copy of the guest to the next. Must not know
XML, libvirt or the file system.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pycloud.core.model.catalog import Architecture, MachineSpec, OsType
from pycloud.core.model.identifiers import DomainId, InstanceId

USER_NETWORK_MAC = "52:54:00:12:34:56"
"""Every user-mode network is a world of its own, so one address does for all guests."""


class DiskBus(StrEnum):
    """How the disk is attached; VIRTIO needs a driver that Windows does not bring along."""

    VIRTIO = "virtio"
    IDE = "ide"


class NicModel(StrEnum):
    """The network card."""

    VIRTIO = "virtio"
    E1000 = "e1000"
    RTL8139 = "rtl8139"


class VideoModel(StrEnum):
    """The graphics card."""

    VGA = "vga"
    CIRRUS = "cirrus"


class OptionRom(StrEnum):
    """Whether the network card brings the boot ROM that QEMU gives it by default."""

    DEFAULT = "default"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class PciAddress:
    """A place on the first PCI bus."""

    slot: int
    function: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDevice:
    """The one disk. `address` is None on IDE, where it is the master of the first channel."""

    bus: DiskBus
    address: PciAddress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NicDevice:
    """The one network card."""

    model: NicModel
    address: PciAddress
    mac_address: str
    rom: OptionRom = OptionRom.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDevice:
    """A graphics card with its memory in KiB."""

    model: VideoModel
    address: PciAddress
    memory_kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFeature:
    """A CPU feature switched on (`require`) or off (`disable`) beside the model's own."""

    name: str
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All devices of a guest and their addresses.

    `balloon` exists for states made elsewhere; a guest whose RAM is a shared file must
    not have one, because a balloon punches holes into that file.
    """

    disk: DiskDevice
    nic: NicDevice
    video: VideoDevice | None = None
    usb: PciAddress | None = None
    entropy: PciAddress | None = None
    balloon: PciAddress | None = None
    has_serial: bool = True
    has_panic: bool = False
    has_generation_id: bool = False
    has_hpet: bool = False
    cpu_features: tuple[CpuFeature, ...] = ()
    sleep_states: tuple[tuple[str, str], ...] = ()
    """ACPI sleep states that were set explicitly, as (element, `yes` or `no`)."""


class Role(StrEnum):
    """What a domain of ours is for."""

    INSTANCE = "instance"
    HELD = "held"
    TEMPLATE = "template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """The mark in a domain's metadata by which we know it again."""

    cloudlet: str
    owner: InstanceId
    role: Role = Role.INSTANCE
    area: str = ""
    """The staging area that holds a template's RAM."""


class RamAccess(StrEnum):
    """How a guest's RAM is mapped from its file.

    SHARED writes go to the file. PRIVATE writes stay with the guest, but QEMU needs
    write permission all the same. SEALED is PRIVATE with the file opened read-only.
    """

    SHARED = "shared"
    PRIVATE = "private"
    SEALED = "sealed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RamFile:
    """A file that is the guest's RAM."""

    path: Path
    access: RamAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFiles:
    """The copy-on-write layer of one guest and the read-only layers below, topmost first.

    With `layers` None nothing is said about what lies below, and libvirt looks into the
    image for it; only for descriptions given away.
    """

    overlay: Path
    layers: tuple[Path, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestrictedUserLink:
    """User-mode networking from which the guest reaches nothing but answers to forwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainUserLink:
    """User-mode networking as libvirt itself writes it; only for descriptions given away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLink:
    """A tap device on a bridge of the host."""

    bridge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TapLink:
    """A tap device that exists already and is on its bridge."""

    device: str


Link = RestrictedUserLink | PlainUserLink | BridgeLink | TapLink


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOwner:
    """The account under which a privileged libvirt runs the emulator."""

    user_id: int
    group_id: int


class Incoming(StrEnum):
    """Where the guest's state comes from at the start."""

    NOTHING = "nothing"
    LATER = "later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One domain, complete."""

    name: str
    domain_id: DomainId
    tag: Tag | None
    machine: MachineSpec
    os_type: OsType
    vcpus: int
    memory_mib: int
    hardware: Hardware
    disk: DiskFiles
    link: Link
    serial_log: Path | None = None
    ram: RamFile | None = None
    incoming: Incoming = Incoming.NOTHING
    generation_id: str | None = None
    translation_cache_mib: int = 256
    process_owner: ProcessOwner | None = None


def standard_hardware(machine: MachineSpec, os_type: OsType, *, mac_address: str) -> Hardware:
    """Return the devices of a guest that we make ourselves.

    Slots are fixed, because a saved state only fits devices that are where they were.
    """
    if machine.architecture is Architecture.X86_64 and os_type is OsType.WINDOWS:
        return _windows_pc(mac_address)
    is_pc = machine.architecture is Architecture.X86_64
    return Hardware(
        disk=DiskDevice(bus=DiskBus.VIRTIO, address=PciAddress(slot=4)),
        nic=NicDevice(model=NicModel.VIRTIO, address=PciAddress(slot=3), mac_address=mac_address),
        entropy=PciAddress(slot=5),
        has_panic=is_pc,
        has_generation_id=is_pc,
    )


def _windows_pc(mac_address: str) -> Hardware:
    return Hardware(
        disk=DiskDevice(bus=DiskBus.IDE, address=None),
        nic=NicDevice(model=NicModel.E1000, address=PciAddress(slot=3), mac_address=mac_address),
        video=VideoDevice(model=VideoModel.VGA, address=PciAddress(slot=2), memory_kib=16_384),
        has_panic=True,
        has_generation_id=True,
    )
