# SPDX-License-Identifier: Apache-2.0
"""Headers of the few tar members that a package has, read and written by our own code.

A library for any tar follows links, knows sparse maps and lets an extended header take as
much memory as it claims. Here only regular files exist; of extended headers (POSIX pax,
which many programs write for a fraction of a second) only path and size are taken, both
within bounds. Formats: POSIX.1-2017 "pax", "ustar Interchange Format"; sizes of 8 GiB and
more in GNU's base-256 notation. Deals in bytes; opens no file.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from pycloud.errors import PackageRefused

BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES
"""Archives are padded with zeros to whole records."""

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_REGULAR = frozenset({b"0", b"\0"})
_PAX = b"x"
_PAX_LIMIT_BYTES = 16 * 1024
_OCTAL_LIMIT = 8**11
_MTIME_FIELD_S = 0
"""Old readers keep the time; ours is fixed, so that equal content gives an equal package."""

ReadExactly = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A regular file in an archive."""

    name: str
    size_bytes: int

    @property
    def padding_bytes(self) -> int:
        """How many zeros follow the content."""
        return -self.size_bytes % BLOCK_BYTES


def read_member(read: ReadExactly) -> Member | None:
    """Read the header of the next member; None at the end of the archive.

    `read(n)` returns exactly n bytes or raises. Raises PackageRefused for anything that
    is not a regular file.
    """
    block = read(BLOCK_BYTES)
    if not any(block):
        return None
    kind, member = _parse(block)
    if kind != _PAX:
        return _regular(kind, member)
    if member.size_bytes > _PAX_LIMIT_BYTES:
        raise refused("member", "has an extended header that is too long")
    records = _parse_pax(read(member.size_bytes))
    read(member.padding_bytes)
    kind, member = _parse(read(BLOCK_BYTES))
    return _regular(kind, _overridden(member, records))


def write_header(member: Member) -> bytes:
    """Return the header block of a member, readable by every tar since GNU tar 1.13."""
    fields = (
        member.name.encode("ascii"),
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        _number(member.size_bytes),
        _number(_MTIME_FIELD_S),
        b" " * 8,
        b"0",
        b"",
        b"ustar  \0",
        b"root",
        b"root",
        b"",
        b"",
        b"",
    )
    block = _HEADER.pack(*fields)
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def refused(reason: str, what: str) -> PackageRefused:
    """Return the error for a package that `what` is true of."""
    return PackageRefused(f"the package {what}", reason=reason)


def _parse(block: bytes) -> tuple[bytes, Member]:
    (name, _, _, _, size, _, checksum, kind, _, magic, *_, prefix) = _HEADER.unpack(block)
    expected = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _parse_number(checksum) != expected or not magic.startswith(b"ustar"):
        raise refused("not_a_tar", "is no tar archive, or is damaged")
    # Only POSIX has a prefix there; GNU keeps times in the same place.
    if magic == b"ustar\0" + b"00" and prefix.rstrip(b"\0"):
        raise refused("member", "has a member with a path; a package has plain names only")
    return kind, Member(name=_text(name), size_bytes=_parse_number(size))


def _regular(kind: bytes, member: Member) -> Member:
    if kind not in _REGULAR:
        raise refused("member", f"holds {member.name!r}, which is not a regular file")
    return member


def _overridden(member: Member, records: dict[str, str]) -> Member:
    if any(key.startswith("GNU.sparse") for key in records) or "linkpath" in records:
        raise refused("member", "holds a sparse file or a link")
    size = records.get("size", str(member.size_bytes))
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise refused("member", f"holds a member of an impossible size ({size[:30]!r})")
    return Member(name=records.get("path", member.name), size_bytes=int(size))


def _parse_pax(content: bytes) -> dict[str, str]:
    """Read records of the form "length key=value newline", the length counting itself."""
    records: dict[str, str] = {}
    while content:
        length_text, _, _ = content.partition(b" ")
        if not length_text.isdigit() or len(length_text) > 6:
            raise refused("member", "has an extended header that cannot be read")
        length = int(length_text)
        key, separator, value = content[len(length_text) + 1 : length].partition(b"=")
        if not separator or not value.endswith(b"\n") or length > len(content):
            raise refused("member", "has an extended header that cannot be read")
        records[_text(key)] = _text(value[:-1])
        content = content[length:]
    return records


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", errors="backslashreplace")


def _parse_number(field: bytes) -> int:
    """Read an octal number, or a base-256 one, which is marked by its highest bit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    try:
        return int(text or b"0", 8) if not text.startswith((b"-", b"+")) else _bad_number()
    except ValueError:
        return _bad_number()


def _bad_number() -> int:
    raise refused("not_a_tar", "has a header with something else where a number belongs")


def _number(value: int) -> bytes:
    if value < _OCTAL_LIMIT:
        return b"%011o\0" % value
    return b"\x80" + value.to_bytes(11, "big")
