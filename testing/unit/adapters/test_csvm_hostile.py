# SPDX-License-Identifier: Apache-2.0
"""Packages that lie, overflow or break off are refused and leave nothing behind."""

import gzip
import io
import json
import random
import tarfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycloud.adapters.csvm import CsvmPackages, tar
from pycloud.adapters.data_directory import DataDirectory
from pycloud.errors import PackageRefused, QuotaExceeded
from pycloud.settings import Settings
from testing.old_packages import DISK, OLD_DESCRIPTION, STATE, built, old_package

MIB = 1 << 20
AREA = "area"
JSON = json.dumps(OLD_DESCRIPTION).encode()
GOOD = [("speech.qcow2", DISK), ("speech.qcow2.lqs", STATE), ("service.json", JSON)]


@pytest.fixture
def data(tmp_path):
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def packages(data):
    return CsvmPackages(data, Settings(max_image_gib=1))


def stage(data, content, name="package"):
    data.staged_path(AREA, name).write_bytes(content)


def names(data):
    return sorted(path.name for path in data.area_path(AREA).iterdir())


def refusal_of(data, packages, content):
    stage(data, content)
    with pytest.raises(PackageRefused) as refusal:
        packages.unpack(AREA, "package")
    assert names(data) == ["package"]
    return refusal.value.reason


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([*GOOD, ("readme.txt", b"x")], "members"),
        ([*GOOD, ("other.qcow2", b"x")], "members"),
        ([*GOOD, ("service.json", JSON)], "members"),
        ([*GOOD, ("speech.qcow2", DISK)], "members"),
        ([("../speech.qcow2", DISK), *GOOD[1:]], "members"),
        ([("/etc/speech.qcow2", DISK), *GOOD[1:]], "members"),
        ([("./speech.qcow2", DISK), *GOOD[1:]], "members"),
        ([("Speech.qcow2", DISK), *GOOD[1:]], "members"),
        (GOOD[1:], "members"),
        ([GOOD[0], GOOD[2]], "members"),
        (GOOD[:2], "description"),
        ([], "description"),
        ([*GOOD[:2], ("service.json", b" " * 70_000)], "description"),
        (
            [*GOOD, ("link.qcow2", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"})],
            "member",
        ),
        ([("speech.qcow2", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"})], "member"),
        ([("speech.qcow2", b"", {"type": tarfile.LNKTYPE, "linkname": "service.json"})], "member"),
        ([("speech.qcow2", b"", {"type": tarfile.CHRTYPE})], "member"),
        ([("speech.qcow2", b"", {"type": tarfile.FIFOTYPE})], "member"),
        ([("speech.qcow2", b"", {"type": tarfile.DIRTYPE})], "member"),
        ([("speech.qcow2", b"", {"type": tarfile.GNUTYPE_SPARSE})], "member"),
        ([("speech.qcow2", b"", {"type": b"V"})], "member"),
        ([("a" * 200 + ".qcow2", DISK), *GOOD[1:]], "members"),
    ],
)
def test_unpack_refuses_members_that_no_package_has(data, packages, members, reason):
    assert refusal_of(data, packages, built(*members)) == reason


def test_unpack_refuses_a_long_name_in_the_way_of_gnu(data, packages):
    content = built(("a" * 200 + ".qcow2", DISK), format=tarfile.GNU_FORMAT)

    assert refusal_of(data, packages, content) == "member"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"path": "../../etc/passwd"}, "members"),
        ({"linkpath": "/etc/shadow"}, "member"),
        ({"GNU.sparse.major": "1", "GNU.sparse.realsize": "1099511627776"}, "member"),
        ({"size": "-5"}, "member"),
        ({"size": "9" * 40}, "member"),
        ({"comment": "x" * 20_000}, "member"),
    ],
)
def test_unpack_refuses_extended_headers_that_play_tricks(data, packages, headers, reason):
    content = built(("speech.qcow2", DISK, {"pax_headers": headers}), format=tarfile.PAX_FORMAT)

    assert refusal_of(data, packages, content) == reason


@pytest.mark.parametrize(
    "records", [b"x", b"5 a", b"0 a=b\n", b"999 a=b\n", b"99999999 a=b\n", b"8 ab=c\n"]
)
def test_unpack_refuses_extended_headers_that_cannot_be_read(data, packages, records):
    content = built(
        ("speech.qcow2", records, {"type": tarfile.XHDTYPE}), format=tarfile.USTAR_FORMAT
    )

    assert refusal_of(data, packages, content) == "member"


def test_unpack_refuses_an_extended_header_that_claims_gigabytes(data, packages):
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 40
    header = member.tobuf(tarfile.GNU_FORMAT)

    assert refusal_of(data, packages, gzip.compress(header + bytes(MIB))) == "member"


def test_unpack_refuses_a_member_that_is_larger_than_allowed(data, packages):
    member = tarfile.TarInfo("speech.qcow2")
    member.size = 2 << 30
    stage(data, gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(MIB)))

    with pytest.raises(QuotaExceeded):
        packages.unpack(AREA, "package")

    assert names(data) == ["package"]


def test_unpack_refuses_a_bomb_when_it_grows_too_much(data, packages):
    member = tarfile.TarInfo("speech.qcow2")
    member.size = 512 * MIB
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [deflater.compress(member.tobuf(tarfile.GNU_FORMAT))]
    parts.extend(deflater.compress(b"bomb" * (MIB // 4)) for _ in range(512))
    content = b"".join(parts) + deflater.flush()

    assert refusal_of(data, packages, content) == "bomb"


def test_unpack_refuses_a_bomb_behind_the_end(data, packages):
    content = old_package() + gzip.compress(bytes(64 * MIB))

    assert refusal_of(data, packages, content) == "trailing_data"


def test_unpack_refuses_data_behind_the_end(data, packages):
    content = old_package() + gzip.compress(b"more")

    assert refusal_of(data, packages, content) == "trailing_data"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\0" * 5000, "truncated"),
        (b"this is no package at all", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (gzip.compress(b""), "truncated"),
        (gzip.compress(b"short"), "truncated"),
        (gzip.compress(b"no tar" * 1000), "not_a_tar"),
        (gzip.compress(bytes(range(256)) * 20), "not_a_tar"),
    ],
    ids=[
        "empty",
        "zeros",
        "text",
        "zip",
        "gzip-of-nothing",
        "gzip-of-a-word",
        "text-tar",
        "no-tar",
    ],
)
def test_unpack_refuses_what_is_no_package(data, packages, content, reason):
    assert refusal_of(data, packages, content) == reason


@pytest.mark.parametrize("position", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_unpack_refuses_a_package_when_it_is_cut_off(data, packages, position):
    whole = old_package(disk=random.Random(4).randbytes(100_000))

    reason = refusal_of(data, packages, whole[: int(len(whole) * position)])

    assert reason in {"damaged", "truncated"}


def test_unpack_refuses_a_package_when_a_bit_has_flipped(data, packages):
    content = bytearray(old_package(disk=random.Random(5).randbytes(100_000)))
    content[50_000] ^= 1

    assert refusal_of(data, packages, bytes(content)) == "damaged"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 511), st.integers(0, 255))
def test_any_header_gives_a_member_or_a_refusal(offset, value):
    block = bytearray(tarfile.TarInfo("speech.qcow2").tobuf(tarfile.GNU_FORMAT)[:512])
    block[offset] = value
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    stream = io.BytesIO(bytes(block) * 40)

    try:
        member = tar.read_member(stream.read)
    except PackageRefused:
        member = None

    assert member is None or member.size_bytes >= 0
