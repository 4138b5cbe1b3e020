# SPDX-License-Identifier: Apache-2.0
"""Signatures of files that are not raw disks.

A raw image has no header, so anything passes for one; what carries the mark of another
format is that format under a wrong name, or an attempt to have it opened as such later.
Looks at bytes in memory only.
"""

HEAD_BYTES = 4096
TAIL_BYTES = 512

_AT_START = (
    (b"QFI\xfb", "a qcow2 image"),
    (b"QED\0", "a QED image"),
    (b"KDMV", "a VMware disk"),
    (b"COWD", "a VMware disk"),
    (b"# Disk DescriptorFile", "the description of a VMware disk"),
    (b"vhdxfile", "a Hyper-V disk (VHDX)"),
    (b"conectix", "a Hyper-V disk (VHD)"),
    (b"cxsparse", "a Hyper-V disk (VHD)"),
    (b"<<< ", "a VirtualBox disk"),
    (b"WithoutFreeSpace", "a Parallels disk"),
    (b"WithouFreSpacExt", "a Parallels disk"),
    (b"Bochs Virtual HD Image", "a Bochs disk"),
    (b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (b"SKUL\xba\xbe", "an encrypted volume (LUKS)"),
    (b"LibvirtQemudSave", "a saved memory state"),
    (b"LibvirtQemudPart", "an unfinished memory state"),
    (b"QEVM", "a QEMU memory state"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"#!", "a script"),
    (b"<?xml", "an XML document"),
)
_INSIDE = (
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk"),
    (257, b"ustar", "a tar archive"),
)
_AT_END = (
    (b"conectix", "a Hyper-V disk (VHD)"),
    (b"koly", "an Apple disk image"),
)


def foreign_format(head: bytes, tail: bytes) -> str | None:
    """Say what a file is that claims to be a raw disk, None if nothing gives it away.

    `head` is its first HEAD_BYTES and `tail` its last TAIL_BYTES, or all of a shorter one.
    """
    for signature, name in _AT_START:
        if head.startswith(signature):
            return name
    for offset, signature, name in _INSIDE:
        if head[offset : offset + len(signature)] == signature:
            return name
    for signature, name in _AT_END:
        if tail.startswith(signature):
            return name
    return None
