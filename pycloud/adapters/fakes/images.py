# SPDX-License-Identifier: Apache-2.0
"""Disk images that are little more than a header; no tool is ever run on them."""

import struct
from io import BytesIO

from pycloud.core.model.catalog import BlobRef, DiskFormat, StoredDisk
from pycloud.core.ports import Blobs, ImageFacts, Report
from pycloud.errors import ImageRefused, QuotaExceeded

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQ")
"""The first fields of a qcow2 header: magic, version, offset and length of the
name of the backing file, cluster bits, virtual size (QEMU's docs/interop/qcow2)."""
_SECTOR_BYTES = 512
_NO_LIMIT = 1 << 62


def fake_qcow2(content: bytes = b"", *, virtual_size_bytes: int = 64 << 20) -> bytes:
    """Return bytes that pass for a qcow2 image of this size with FakeImages."""
    return _HEADER.pack(_MAGIC, 3, 0, 0, 16, virtual_size_bytes) + content


def fake_raw(content: bytes = b"") -> bytes:
    """Return a raw disk of whole sectors that begins with a boot sector."""
    boot_sector = content[:510].ljust(510, b"\0") + b"\x55\xaa"
    rest = content[510:]
    return boot_sector + rest.ljust(-(-len(rest) // _SECTOR_BYTES) * _SECTOR_BYTES, b"\0")


class FakeImages:
    """Twin of the image gate: knows qcow2 by its magic; raw has to be declared."""

    def __init__(self, blobs: Blobs, *, max_size_bytes: int = 1 << 36) -> None:
        self._blobs = blobs
        self._max_size_bytes = max_size_bytes

    def inspect(self, area: str, name: str, *, declared: DiskFormat | None = None) -> ImageFacts:
        """Parse the header of a staged image."""
        with self._blobs.open_staged(area, name) as stream:
            head = stream.read(_SECTOR_BYTES)
            file_size_bytes = stream.seek(0, 2)
        facts = _read_header(head, file_size_bytes, declared)
        if facts.virtual_size_bytes > self._max_size_bytes:
            raise QuotaExceeded(
                "the disk in the image is too large", limit_bytes=self._max_size_bytes
            )
        return facts

    def normalise(
        self,
        area: str,
        name: str,
        target: str,
        *,
        declared: DiskFormat | None = None,
        report: Report | None = None,
    ) -> StoredDisk:
        """Rewrite an image as a fresh one with the same content."""
        facts = self.inspect(area, name, declared=declared)
        with self._blobs.open_staged(area, name) as stream:
            whole = stream.read()
        content = whole[_HEADER.size :] if facts.format is DiskFormat.QCOW2 else whole
        self._stage(area, target, fake_qcow2(content, virtual_size_bytes=facts.virtual_size_bytes))
        blob = self._blobs.adopt(area, target, report=report)
        return StoredDisk(blob=blob, virtual_size_bytes=facts.virtual_size_bytes)

    def flatten(
        self, disk: StoredDisk, area: str, target: str, *, report: Report | None = None
    ) -> None:
        """Write the layers of a disk, the lowest first, as one image."""
        layers = [disk.backing, disk.blob] if disk.backing is not None else [disk.blob]
        content = b"".join(self._payload(layer) for layer in layers)
        if report is not None:
            report(len(content), len(content))
        self._stage(area, target, fake_qcow2(content, virtual_size_bytes=disk.virtual_size_bytes))

    def _payload(self, layer: BlobRef) -> bytes:
        with self._blobs.open(layer.id) as stream:
            return stream.read()[_HEADER.size :]

    def _stage(self, area: str, name: str, content: bytes) -> None:
        self._blobs.append(area, name, BytesIO(content), offset_bytes=0, limit_bytes=_NO_LIMIT)


def _read_header(head: bytes, file_size_bytes: int, declared: DiskFormat | None) -> ImageFacts:
    if head.startswith(_MAGIC):
        found, virtual_size_bytes = DiskFormat.QCOW2, _qcow2_size_bytes(head)
    elif _is_raw(file_size_bytes, declared):
        found, virtual_size_bytes = DiskFormat.RAW, file_size_bytes
    else:
        raise ImageRefused("this is neither a qcow2 image nor a raw disk", reason="format")
    if declared is not None and declared is not found:
        raise ImageRefused(f"the image is {found}, not {declared}", reason="format_mismatch")
    return ImageFacts(
        format=found, virtual_size_bytes=virtual_size_bytes, file_size_bytes=file_size_bytes
    )


def _qcow2_size_bytes(head: bytes) -> int:
    if len(head) < _HEADER.size:
        raise ImageRefused("the image ends within its header", reason="truncated")
    _, version, backing_offset, _, _, size_bytes = _HEADER.unpack_from(head)
    if version not in {2, 3}:
        raise ImageRefused(f"qcow2 version {version} is unknown", reason="version")
    if backing_offset:
        raise ImageRefused("the image names a backing file", reason="backing_file")
    return int(size_bytes)


def _is_raw(file_size_bytes: int, declared: DiskFormat | None) -> bool:
    whole_sectors = file_size_bytes > 0 and file_size_bytes % _SECTOR_BYTES == 0
    return declared is DiskFormat.RAW and whole_sectors
