# SPDX-License-Identifier: Apache-2.0
"""What is an APK, and what would only like to be looked at for a long time."""

import struct
import tracemalloc
import zipfile
from io import BytesIO

import pytest

from pycloud.core.apk import require_apk
from pycloud.errors import PackageRefused

MIB = 1 << 20
MANIFEST = "AndroidManifest.xml"
END_BYTES = 22


def zipped(*names, comment=b""):
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.comment = comment
        for name in names:
            archive.writestr(name, b"x" * 100)
    return stream.getvalue()


def refusal_of(content):
    with pytest.raises(PackageRefused) as refusal:
        require_apk(BytesIO(content))
    return refusal.value.reason


def with_end64(content):
    """Let the end of a zip say where it ends in the way of huge ones."""
    files, size_bytes, offset = struct.unpack("<2H2L2x", content[-14:])[1:]
    end = len(content) - END_BYTES
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, files, files, size_bytes, offset
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    plain = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return content[:end] + record + locator + plain


def entries(count, *, name=b"x", comment_bytes=0):
    """Return a zip that is directory alone."""
    head = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 0, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, comment_bytes, 0, 0, 0, 0
    )
    directory = (head + name + bytes(comment_bytes)) * count
    shown = min(count, 0xFFFF)
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, shown, shown, len(directory), 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        zipped(MANIFEST),
        zipped("classes.dex", MANIFEST, "res/\u00e4.png"),
        zipped(MANIFEST, comment=b"made by hand" * 1000),
        b"#!/bin/sh\n" + zipped(MANIFEST),
        with_end64(zipped("classes.dex", MANIFEST)),
        zipped(MANIFEST, *(f"assets/{number}" for number in range(3000))),
    ],
    ids=["least", "usual", "comment", "prefix", "zip64", "many"],
)
def test_zip_with_a_manifest_is_an_apk(content):
    assert MANIFEST in zipfile.ZipFile(BytesIO(content)).namelist()

    require_apk(BytesIO(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped("classes.dex"), "no_manifest"),
        (zipped("assets/AndroidManifest.xml"), "no_manifest"),
        (zipped(), "no_manifest"),
        (b"", "not_zip"),
        (b"PK\5\6", "not_zip"),
        (zipped(MANIFEST)[:-1], "not_zip"),
        (zipped(MANIFEST)[-60:], "not_zip"),
        (with_end64(zipped(MANIFEST))[-END_BYTES:], "not_zip"),
        (with_end64(zipped(MANIFEST))[:-END_BYTES] + zipped()[-END_BYTES:], "no_manifest"),
        (with_end64(zipped(MANIFEST)).replace(b"PK\6\6", b"PK\6\5"), "not_zip"),
        (zipped(MANIFEST).replace(b"PK\1\2", b"PK\1\3"), "not_zip"),
        (entries(2, name=MANIFEST.encode(), comment_bytes=3).replace(b"\3\0", b"\4\0"), "not_zip"),
    ],
)
def test_anything_else_is_refused(content, reason):
    assert refusal_of(content) == reason


@pytest.mark.parametrize(
    "content",
    [entries(400_000), entries(200, name=b"n" * 65_000), with_end64(entries(400_000))],
    ids=["entries", "names", "zip64"],
)
def test_endless_directory_is_refused_without_reading_it(content):
    tracemalloc.start()
    try:
        reason = refusal_of(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert reason == "too_many_files"
    assert peak_bytes < MIB


@pytest.mark.parametrize("count", [65_536, 170_000])
def test_more_files_than_a_plain_zip_holds_are_refused(count):
    assert refusal_of(entries(count, name=b"")) == "too_many_files"
