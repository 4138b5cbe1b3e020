# SPDX-License-Identifier: Apache-2.0
"""Our own reader of qcow2 headers, so that no tool opens an image we know nothing of.

The layout is that of QEMU's docs/interop/qcow2, all numbers big-endian:

    0   magic "QFI\\xfb"             48  offset of the refcount table
    4   version, 2 or 3             56  its clusters
    8   offset, 16 length of the    60  number, 64 offset of internal snapshots
        backing file's name         72  incompatible, 80 compatible, 88 autoclear features
    20  cluster bits                96  refcount order
    24  virtual size                100 header length
    32  encryption method           104 compression type
    36  L1 entries                  then: extensions (type, length, data padded to 8)
    40  offset of the L1 table

Version 2 ends at 72. Anything that makes an image more than one plain disk in one file is
refused. Works on bytes in memory; must not open, read or convert anything.
"""

import struct
from dataclasses import dataclass
from enum import IntFlag

from pycloud.errors import ImageRefused

MAGIC = b"QFI\xfb"
HEAD_BYTES = 64 * 1024
"""How much of a file `parse_header` wants to see; extensions behind it are refused."""

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")
_FIXED_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_V2_BYTES = 72
_V3_BYTES = 104
_SECTOR_BYTES = 512
_EXTENSION_LIMIT = 64

# The limits QEMU itself sets (QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE).
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20

_END_OF_EXTENSIONS = 0x00000000
_REFUSED_EXTENSIONS = {
    0xE2792ACA: ("backing_file", "names the format of a backing file"),
    0x44415441: ("data_file", "keeps its data in another file"),
    0x0537BE77: ("encryption", "is encrypted"),
    0x23852875: ("bitmaps", "carries dirty bitmaps; remove them with `qemu-img bitmap --remove`"),
}


class Incompatible(IntFlag):
    """Features that a reader has to know."""

    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION_TYPE = 8
    EXTENDED_L2 = 16


class _Compatible(IntFlag):
    LAZY_REFCOUNTS = 1


class _Autoclear(IntFlag):
    BITMAPS = 1
    RAW_DATA_FILE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """The part of a header that says where the disk lies in the file."""

    version: int
    cluster_bits: int
    virtual_size_bytes: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    incompatible: Incompatible

    @property
    def cluster_bytes(self) -> int:
        """The length of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_entry_bytes(self) -> int:
        """The length of one entry of an L2 table."""
        return 16 if Incompatible.EXTENDED_L2 in self.incompatible else 8

    @property
    def bytes_per_l2_table(self) -> int:
        """How much of the disk one L2 table maps."""
        return self.cluster_bytes // self.l2_entry_bytes * self.cluster_bytes


def parse_header(head: bytes, file_size_bytes: int) -> Qcow2Header:
    """Read the header in the first bytes of a file and refuse all that is not plain.

    `head` is the first HEAD_BYTES of the file, or all of a shorter one. Raises ImageRefused.
    """
    if len(head) < _V2_BYTES:
        raise refused("truncated", "ends within its header")
    (magic, version, backing_offset, backing_bytes, *rest) = _FIXED.unpack_from(head)
    if magic != MAGIC:
        raise refused("format", "does not begin like a qcow2 image")
    if version not in {2, 3}:
        raise refused("version", f"has qcow2 version {version}; 2 and 3 are known")
    if backing_offset or backing_bytes:
        raise refused("backing_file", "needs a backing file; flatten it with `qemu-img convert`")
    (cluster_bits, size_bytes, encryption, l1_entries, l1_offset, *rest) = rest
    (refcount_table_offset, refcount_table_clusters, snapshots, _) = rest
    if encryption:
        raise refused("encryption", "is encrypted")
    if snapshots:
        raise refused("snapshots", "holds internal snapshots; delete them with `qemu-img snapshot`")
    if not 9 <= cluster_bits <= 21:
        raise refused("geometry", f"has clusters of 2^{cluster_bits} bytes; 9 to 21 are possible")
    features, header_bytes = (
        _parse_version_3(head) if version == 3 else (Incompatible(0), _V2_BYTES)
    )
    _check_extensions(head, header_bytes, 1 << cluster_bits)
    header = Qcow2Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_size_bytes=size_bytes,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        refcount_table_offset=refcount_table_offset,
        refcount_table_clusters=refcount_table_clusters,
        incompatible=features,
    )
    _check_geometry(header, file_size_bytes)
    return header


def refused(reason: str, what: str) -> ImageRefused:
    """Return the error for an image that `what` is true of."""
    return ImageRefused(f"the image {what}", reason=reason)


def _parse_version_3(head: bytes) -> tuple[Incompatible, int]:
    """Return the incompatible features and the length of the header."""
    if len(head) < _V3_BYTES:
        raise refused("truncated", "ends within its header")
    incompatible, compatible, autoclear, refcount_order, header_bytes = _FIXED_V3.unpack_from(
        head, _V2_BYTES
    )
    _check_features(incompatible, compatible, autoclear)
    if refcount_order > 6:
        raise refused("geometry", f"has reference counts of 2^{refcount_order} bits")
    if not _V3_BYTES <= header_bytes <= 4096 or header_bytes % 8 or header_bytes > len(head):
        raise refused("geometry", f"has a header of {header_bytes} bytes")
    features = Incompatible(incompatible)
    compression = head[_V3_BYTES] if header_bytes > _V3_BYTES else 0
    if compression > 1 or bool(compression) != (Incompatible.COMPRESSION_TYPE in features):
        raise refused("unknown_feature", f"is compressed in an unknown way ({compression})")
    if any(head[_V3_BYTES + 1 : header_bytes]):
        raise refused("unknown_feature", "has header fields that are not known here")
    return features, header_bytes


def _check_features(incompatible: int, compatible: int, autoclear: int) -> None:
    for name, bits, known in (
        ("incompatible", incompatible, Incompatible),
        ("compatible", compatible, _Compatible),
        ("autoclear", autoclear, _Autoclear),
    ):
        unknown = bits & ~sum(known)
        if unknown:
            raise refused("unknown_feature", f"has unknown {name} features ({unknown:#x})")
    if incompatible & Incompatible.DATA_FILE or autoclear & _Autoclear.RAW_DATA_FILE:
        raise refused("data_file", "keeps its data in another file")
    if autoclear & _Autoclear.BITMAPS:
        raise refused(*_REFUSED_EXTENSIONS[0x23852875])
    if incompatible & Incompatible.CORRUPT:
        raise refused("corrupt", "is marked as corrupt; repair it with `qemu-img check -r all`")
    if incompatible & Incompatible.DIRTY:
        raise refused("dirty", "was not closed cleanly; repair it with `qemu-img check -r all`")


def _check_extensions(head: bytes, start: int, cluster_bytes: int) -> None:
    """Walk the header extensions, which have to end within the first cluster."""
    end = min(len(head), cluster_bytes)
    position = start
    for _ in range(_EXTENSION_LIMIT):
        if position + _EXTENSION.size > end:
            # A header may fill its cluster and so have no end mark.
            if end == cluster_bytes:
                return
            break
        kind, length = _EXTENSION.unpack_from(head, position)
        if kind == _END_OF_EXTENSIONS:
            return
        if kind in _REFUSED_EXTENSIONS:
            raise refused(*_REFUSED_EXTENSIONS[kind])
        position += _EXTENSION.size + (length + 7) // 8 * 8
        if position > end:
            break
    raise refused("geometry", "has header extensions without an end")


def _check_geometry(header: Qcow2Header, file_size_bytes: int) -> None:
    """Check that the tables are of a sane size, lie inside the file and do not overlap."""
    if not header.virtual_size_bytes or header.virtual_size_bytes % _SECTOR_BYTES:
        raise refused("geometry", f"is a disk of {header.virtual_size_bytes} bytes")
    if header.l2_entry_bytes == 16 and header.cluster_bits < 14:
        raise refused("geometry", "has subclusters in clusters that are too small for them")
    needed = -(-header.virtual_size_bytes // header.bytes_per_l2_table)
    if not needed <= header.l1_entries <= _MAX_L1_BYTES // 8:
        raise refused("geometry", f"has {header.l1_entries} L1 entries where {needed} are needed")
    refcount_bytes = header.refcount_table_clusters << header.cluster_bits
    if not 0 < refcount_bytes <= _MAX_REFCOUNT_TABLE_BYTES:
        raise refused("geometry", f"has a refcount table of {refcount_bytes} bytes")
    l1 = range(header.l1_offset, header.l1_offset + header.l1_entries * 8)
    refcounts = range(header.refcount_table_offset, header.refcount_table_offset + refcount_bytes)
    for name, table in (("L1", l1), ("refcount", refcounts)):
        if table.start < header.cluster_bytes or table.start % header.cluster_bytes:
            raise refused("geometry", f"has its {name} table at offset {table.start}")
    if l1.start < refcounts.stop and refcounts.start < l1.stop:
        raise refused("geometry", "has tables that overlap")
    if l1.stop > file_size_bytes or refcounts.start >= file_size_bytes:
        raise refused("truncated", "ends before its tables do")
