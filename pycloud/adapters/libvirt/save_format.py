# SPDX-License-Identifier: Apache-2.0
"""The file that libvirt's `save` writes: a header, a domain description, QEMU's stream.

    offset  bytes  field
         0     16  magic `LibvirtQemudSave` (`LibvirtQemudPart` while it is written)
        16      4  version: 1, or 2 with a cookie; in the byte order of the writer
        20      4  length of the data area that follows the header
        24      4  whether the guest ran when it was saved
        28      4  compression of the stream; 0 is none
        32      4  offset of the cookie within the data area; 0 is none
        36     56  zero
        92         data area: the description, a NUL, the cookie, padding
                   then the stream, to the end of the file

The description comes from wherever the file comes from: it is data here, bounded and
never handed on. Source: struct _virQEMUSaveHeader in libvirt's qemu_saveimage.h.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from pycloud.errors import StateUnusable

HEADER_BYTES = 92
MAX_DATA_BYTES = 1 << 20
_MAGIC = b"LibvirtQemudSave"
_VERSIONS = frozenset({1, 2})
_FIELDS = "16s5I56x"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveHeader:
    """What the header says; `stream_offset` is where QEMU's stream begins."""

    data_bytes: int
    was_running: bool
    description: bytes

    @property
    def stream_offset(self) -> int:
        """Where QEMU's stream begins."""
        return HEADER_BYTES + self.data_bytes


def read_header(stream: BinaryIO) -> SaveHeader:
    """Read header and description. Raises StateUnusable for anything but a usable image."""
    raw = stream.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES or not raw.startswith(_MAGIC):
        raise StateUnusable("this is not a finished save image of libvirt")
    order = _byte_order(raw)
    _, version, data_bytes, was_running, compression, cookie_offset = struct.unpack(
        order + _FIELDS, raw
    )
    if compression != 0:
        raise StateUnusable("the save image is compressed; only plain ones can be resumed")
    if not 0 < data_bytes <= MAX_DATA_BYTES:
        raise StateUnusable(f"the description in the save image has {data_bytes} bytes")
    if version == 1 and cookie_offset != 0:
        raise StateUnusable("the header of the save image contradicts itself")
    data = stream.read(data_bytes)
    if len(data) < data_bytes or cookie_offset > data_bytes:
        raise StateUnusable("the save image ends within its description")
    description = data[: cookie_offset or data_bytes].split(b"\0", 1)[0]
    return SaveHeader(data_bytes=data_bytes, was_running=was_running != 0, description=description)


def header_and_data(description: bytes, *, data_bytes: int) -> bytes:
    """Return header and data area of a running guest's image, padded to `data_bytes`."""
    padded = (description + b"\0").ljust(data_bytes, b"\0")
    header = struct.pack("=" + _FIELDS, _MAGIC, 2, len(padded), 1, 0, 0)
    return header + padded


def _byte_order(raw: bytes) -> str:
    """Return the struct prefix of the writer's byte order. Raises StateUnusable."""
    for order in ("<", ">"):
        (version,) = struct.unpack_from(order + "I", raw, 16)
        if version in _VERSIONS:
            return order
    raise StateUnusable("the save image has an unknown version")
