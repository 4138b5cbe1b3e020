# SPDX-License-Identifier: Apache-2.0
"""Make a bootable disk: partition table, boot loader, boot partition, data partition, qcow2.

The boot partition is FAT, written by mtools, with syslinux as boot loader; the data partition is
ext4, written by mke2fs from an empty folder. Both are made as plain files and then laid at their
place in the disk, so nothing is mounted and no privileges are needed. Equal inputs give equal
bytes. It must not leave anything outside the folder it is given.
"""

import os
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guest_build.errors import BuildError, find_tool, run_tool

MIB = 1 << 20
SECTOR_BYTES = 512
DISK_MIB = 128
BOOT_START_MIB = 1
BOOT_MIB = 47
DATA_START_MIB = BOOT_START_MIB + BOOT_MIB
DATA_MIB = DISK_MIB - DATA_START_MIB
PARTITION_FAT16_LBA = 0x0E
PARTITION_LINUX = 0x83
BOOTABLE = 0x80
# Cylinder, head and sector "beyond what this can say": loaders then use the block address.
CHS_BEYOND = b"\xfe\xff\xff"
# Fixed identities and times, so that two builds from the same packages are the same bytes.
DISK_ID = 0x70796364
FAT_SERIAL = "70796364"
DATA_UUID = str(uuid.uuid5(uuid.NAMESPACE_DNS, "data.guest.pycloud"))
BUILD_TIME_S = "1700000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """What the boot partition holds."""

    kernel: bytes
    initramfs: bytes
    command_line: str


def build_disk(boot: BootFiles, *, tools: Path, scratch: Path) -> Path:
    """Return a qcow2 image inside `scratch`; `tools` is the unpacked package tree.

    Raises: BuildError when a tool fails or the files do not fit.
    """
    boot_partition = _build_boot_partition(boot, tools, scratch)
    data_partition = _build_data_partition(scratch)
    raw = scratch / "disk.raw"
    with raw.open("wb") as disk:
        disk.truncate(DISK_MIB * MIB)
        disk.write(_master_boot_record(tools))
        _lay(disk.fileno(), boot_partition, BOOT_START_MIB * MIB)
        _lay(disk.fileno(), data_partition, DATA_START_MIB * MIB)
    image = scratch / "disk.qcow2"
    qemu_img = find_tool("qemu-img", package="qemu-utils")
    run_tool([qemu_img, "convert", "-f", "raw", "-O", "qcow2", "--", raw, image])
    return image


def _build_boot_partition(boot: BootFiles, tools: Path, scratch: Path) -> Path:
    partition = scratch / "boot.img"
    content = len(boot.kernel) + len(boot.initramfs)
    if content > (BOOT_MIB - 2) * MIB:
        raise BuildError(f"kernel and initramfs take {content // MIB} MiB, too much to boot from")
    with partition.open("wb") as stream:
        stream.truncate(BOOT_MIB * MIB)
    (scratch / "kernel").write_bytes(boot.kernel)
    (scratch / "initramfs").write_bytes(boot.initramfs)
    (scratch / "syslinux.cfg").write_text(
        "DEFAULT guest\nPROMPT 0\nTIMEOUT 0\n"
        f"LABEL guest\nKERNEL /kernel\nINITRD /initramfs\nAPPEND {boot.command_line}\n",
        encoding="ascii",
    )
    environment = _mtools_environment(tools, scratch)
    geometry = ["-T", str(BOOT_MIB * MIB // SECTOR_BYTES), "-h", "16", "-s", "63"]
    hidden = ["-H", str(BOOT_START_MIB * MIB // SECTOR_BYTES)]
    identity = ["-N", FAT_SERIAL, "-v", "BOOT"]
    mformat, mcopy = tools / "usr/bin/mformat", tools / "usr/bin/mcopy"
    run_tool(
        [mformat, "-i", partition, *geometry, *hidden, *identity, "::"], environment=environment
    )
    # The boot loader comes first so that it lies in one piece at the front.
    syslinux = tools / "usr/bin/syslinux"
    run_tool([syslinux, "--install", partition], cwd=scratch, environment=environment)
    for name in ("syslinux.cfg", "kernel", "initramfs"):
        run_tool([mcopy, "-i", partition, scratch / name, "::/"], environment=environment)
    return partition


def _mtools_environment(tools: Path, scratch: Path) -> Mapping[str, str]:
    # syslinux calls mtools by name; the user's own mtools settings must not matter.
    return {
        "PATH": f"{tools / 'usr/bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "TMPDIR": str(scratch),
        "MTOOLSRC": os.devnull,
        "HOME": str(scratch),
        "SOURCE_DATE_EPOCH": BUILD_TIME_S,
        "TZ": "UTC",
    }


def _build_data_partition(scratch: Path) -> Path:
    partition = scratch / "data.img"
    empty = scratch / "data"
    empty.mkdir()
    with partition.open("wb") as stream:
        stream.truncate(DATA_MIB * MIB)
    mke2fs = find_tool("mke2fs", package="e2fsprogs")
    # Zeroed tables now spare the guest its lazy initialisation, which would write while it serves.
    system = ["-t", "ext4", "-b", "4096", "-m", "0", "-L", "data", "-U", DATA_UUID]
    extended = f"root_owner=0:0,hash_seed={DATA_UUID},lazy_itable_init=0,lazy_journal_init=0"
    run_tool(
        [mke2fs, "-q", "-F", *system, "-E", extended, "-d", empty, partition],
        environment={"E2FSPROGS_FAKE_TIME": BUILD_TIME_S, "SOURCE_DATE_EPOCH": BUILD_TIME_S},
    )
    return partition


def _master_boot_record(tools: Path) -> bytes:
    loader = (tools / "usr/lib/syslinux/mbr/mbr.bin").read_bytes()
    table = b"".join(
        (
            _partition(BOOTABLE, PARTITION_FAT16_LBA, BOOT_START_MIB, BOOT_MIB),
            _partition(0, PARTITION_LINUX, DATA_START_MIB, DATA_MIB),
        )
    )
    return struct.pack("<440sIH64s2s", loader, DISK_ID, 0, table, b"\x55\xaa")


def _partition(flag: int, kind: int, start_mib: int, size_mib: int) -> bytes:
    sectors_per_mib = MIB // SECTOR_BYTES
    start, size = start_mib * sectors_per_mib, size_mib * sectors_per_mib
    return struct.pack("<B3sB3sII", flag, CHS_BEYOND, kind, CHS_BEYOND, start, size)


def _lay(disk: int, partition: Path, offset: int) -> None:
    # Blocks of zeros stay holes.
    with partition.open("rb") as stream:
        while block := stream.read(MIB):
            if block.strip(b"\0"):
                os.pwrite(disk, block, offset)
            offset += len(block)
