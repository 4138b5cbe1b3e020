# SPDX-License-Identifier: Apache-2.0
"""The reader of qcow2 headers: any bytes give facts or a refusal, nothing else."""

import struct
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycloud.adapters.images.qcow2_header import Incompatible, parse_header
from pycloud.adapters.images.qcow2_mapping import walk_mapping
from pycloud.adapters.images.signatures import foreign_format
from pycloud.errors import ImageRefused

CLUSTER = 65536
GIB = 1 << 30

FIELDS = {
    "magic": (0, "4s", b"QFI\xfb"),
    "version": (4, "I", 3),
    "backing_offset": (8, "Q", 0),
    "backing_bytes": (16, "I", 0),
    "cluster_bits": (20, "I", 16),
    "size_bytes": (24, "Q", GIB),
    "encryption": (32, "I", 0),
    "l1_entries": (36, "I", 2),
    "l1_offset": (40, "Q", 3 * CLUSTER),
    "refcount_offset": (48, "Q", CLUSTER),
    "refcount_clusters": (56, "I", 1),
    "snapshots": (60, "I", 0),
    "snapshots_offset": (64, "Q", 0),
    "incompatible": (72, "Q", 0),
    "compatible": (80, "Q", 0),
    "autoclear": (88, "Q", 0),
    "refcount_order": (96, "I", 4),
    "header_bytes": (100, "I", 104),
}


def image(l1=(4 * CLUSTER, 0), l2=(), extensions=b"", **changes):
    """Return a small qcow2 file: header, refcounts, L1 in cluster 3, L2 in cluster 4, one of data."""
    content = bytearray(6 * CLUSTER)
    for name, (offset, code, default) in FIELDS.items():
        struct.pack_into(">" + code, content, offset, changes.get(name, default))
    start = changes.get("header_bytes", 104)
    content[start : start + len(extensions)] = extensions
    struct.pack_into(f">{len(l1)}Q", content, 3 * CLUSTER, *l1)
    struct.pack_into(f">{len(l2)}Q", content, 4 * CLUSTER, *l2)
    return bytes(content)


def examine(content):
    header = parse_header(content[:CLUSTER], len(content))
    return header, walk_mapping(BytesIO(content), header, len(content))


def outcome(content):
    """Return why an image is refused, or "passed"; any other error is a failure."""
    try:
        examine(content)
    except ImageRefused as refusal:
        return refusal.reason
    return "passed"


def test_header_tells_the_size_when_all_is_well():
    header, mapped = examine(image(l2=[5 * CLUSTER | 1 << 63]))

    assert header.virtual_size_bytes == GIB
    assert mapped.plain_bytes == CLUSTER
    assert mapped.compressed_bytes == 0


def test_header_is_understood_when_it_is_version_2():
    content = bytearray(image(version=2))
    content[72:112] = bytes(40)

    header, _ = examine(bytes(content))

    assert header.version == 2


def test_compressed_clusters_are_counted_apart():
    _, mapped = examine(image(l2=[1 << 62 | 5 * CLUSTER]))

    assert mapped.compressed_bytes == CLUSTER


def test_zero_clusters_hold_no_data():
    _, mapped = examine(image(l2=[1, 0, 77 * CLUSTER | 1]))

    assert mapped.plain_bytes == 0


def test_unallocated_subclusters_hold_no_data():
    content = image(
        incompatible=Incompatible.EXTENDED_L2,
        l1=(4 * CLUSTER, 0, 0, 0),
        l1_entries=4,
        l2=[5 * CLUSTER, 1, 77 * CLUSTER, 1 << 32],
    )

    _, mapped = examine(content)

    assert mapped.plain_bytes == CLUSTER


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magic": b"QFI\xfa"}, "format"),
        ({"version": 1}, "version"),
        ({"version": 4}, "version"),
        ({"backing_offset": 400, "backing_bytes": 11}, "backing_file"),
        ({"backing_bytes": 11}, "backing_file"),
        ({"cluster_bits": 8}, "geometry"),
        ({"cluster_bits": 22}, "geometry"),
        ({"cluster_bits": 0xFFFFFFFF}, "geometry"),
        ({"size_bytes": 0}, "geometry"),
        ({"size_bytes": GIB + 1}, "geometry"),
        ({"size_bytes": 1 << 63}, "geometry"),
        ({"encryption": 1}, "encryption"),
        ({"encryption": 2}, "encryption"),
        ({"l1_entries": 1}, "geometry"),
        ({"l1_entries": 0xFFFFFFFF}, "geometry"),
        ({"l1_offset": 0}, "geometry"),
        ({"l1_offset": 3 * CLUSTER + 8}, "geometry"),
        ({"l1_offset": CLUSTER}, "geometry"),
        ({"l1_offset": 1 << 40}, "truncated"),
        ({"l1_offset": (1 << 64) - CLUSTER}, "truncated"),
        ({"refcount_offset": 0}, "geometry"),
        ({"refcount_offset": 5}, "geometry"),
        ({"refcount_offset": 1 << 40}, "truncated"),
        ({"refcount_clusters": 0}, "geometry"),
        ({"refcount_clusters": 0xFFFFFFFF}, "geometry"),
        ({"snapshots": 1}, "snapshots"),
        ({"incompatible": 1}, "dirty"),
        ({"incompatible": 2}, "corrupt"),
        ({"incompatible": 4}, "data_file"),
        ({"incompatible": 8}, "unknown_feature"),
        ({"incompatible": 32}, "unknown_feature"),
        ({"incompatible": 1 << 63}, "unknown_feature"),
        ({"compatible": 2}, "unknown_feature"),
        ({"autoclear": 1}, "bitmaps"),
        ({"autoclear": 2}, "data_file"),
        ({"autoclear": 4}, "unknown_feature"),
        ({"refcount_order": 7}, "geometry"),
        ({"header_bytes": 96}, "geometry"),
        ({"header_bytes": 108}, "geometry"),
        ({"header_bytes": 1 << 31}, "geometry"),
        ({"cluster_bits": 9, "incompatible": 16}, "geometry"),
    ],
)
def test_header_is_refused_when_one_field_is_wrong(changes, reason):
    if changes.get("header_bytes", 0) > CLUSTER:
        content = bytearray(image())
        struct.pack_into(">I", content, 100, changes["header_bytes"])
        content = bytes(content)
    else:
        content = image(**changes)

    with pytest.raises(ImageRefused) as refusal:
        examine(content)

    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (0xE2792ACA, "backing_file"),
        (0x44415441, "data_file"),
        (0x0537BE77, "encryption"),
        (0x23852875, "bitmaps"),
    ],
)
def test_header_is_refused_when_an_extension_is_behind_a_harmless_one(kind, reason):
    harmless = struct.pack(">II8s", 0x6803F857, 5, b"names")

    with pytest.raises(ImageRefused) as refusal:
        examine(image(extensions=harmless + struct.pack(">II8s", kind, 5, b"qcow2")))

    assert refusal.value.reason == reason


@pytest.mark.parametrize("length", [CLUSTER, 0xFFFFFFFF, CLUSTER - 104 - 7])
def test_header_is_refused_when_an_extension_is_longer_than_it(length):
    with pytest.raises(ImageRefused):
        examine(image(extensions=struct.pack(">II", 1, length)))


def test_header_is_refused_when_its_extensions_do_not_end():
    with pytest.raises(ImageRefused):
        examine(image(extensions=struct.pack(">II", 1, 0) * 1000))


def test_header_is_refused_when_extensions_go_on_where_nobody_looked():
    skip = struct.pack(">II", 1, CLUSTER - 104 - 8)
    content = bytearray(image(cluster_bits=21, l1_offset=2 << 21, refcount_offset=1 << 21))
    content[104 : 104 + len(skip)] = skip

    with pytest.raises(ImageRefused) as refusal:
        parse_header(bytes(content[:CLUSTER]), 8 << 21)

    assert refusal.value.reason == "geometry"


@pytest.mark.parametrize(
    ("l1", "l2", "reason"),
    [
        ([6 * CLUSTER], [], "truncated"),
        ([4 * CLUSTER + 512], [], "corrupt"),
        ([4 * CLUSTER | 1], [], "corrupt"),
        ([4 * CLUSTER | 1 << 60], [], "corrupt"),
        ([4 * CLUSTER], [6 * CLUSTER], "truncated"),
        ([4 * CLUSTER], [5 * CLUSTER + 512], "corrupt"),
        ([4 * CLUSTER], [5 * CLUSTER | 2], "corrupt"),
        ([4 * CLUSTER], [1 << 62 | 7 * CLUSTER], "truncated"),
    ],
)
def test_mapping_is_refused_when_an_entry_leads_astray(l1, l2, reason):
    with pytest.raises(ImageRefused) as refusal:
        examine(image(l1=l1, l2=l2))

    assert refusal.value.reason == reason


def test_mapping_is_refused_when_one_table_is_named_over_and_over():
    entries = 2048
    clusters = 21
    content = bytearray(5 << clusters)
    header = image(
        cluster_bits=clusters,
        l1_entries=entries,
        l1_offset=2 << clusters,
        refcount_offset=1 << clusters,
        size_bytes=entries << 39,
    )
    content[:CLUSTER] = header[:CLUSTER]
    struct.pack_into(f">{entries}Q", content, 2 << clusters, *[3 << clusters] * entries)

    with pytest.raises(ImageRefused) as refusal:
        examine(bytes(content))

    assert refusal.value.reason == "geometry"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096))
def test_any_bytes_are_refused_when_they_are_no_image(content):
    with pytest.raises(ImageRefused):
        examine(content)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 160), st.integers(0, 255)), min_size=1, max_size=6, unique=True
    )
)
def test_a_mutated_header_gives_facts_or_a_refusal(mutations):
    content = bytearray(image(l2=[5 * CLUSTER]))
    for offset, value in mutations:
        content[offset] = value

    assert outcome(bytes(content)) != ""


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, (1 << 64) - 1), max_size=2),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=8),
)
def test_any_tables_give_facts_or_a_refusal(l1, l2):
    content = image(l1=[4 * CLUSTER, *l1[1:]], l2=l2)

    assert outcome(content) in {"passed", "corrupt", "truncated"}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 6 * CLUSTER - 1))
def test_a_truncated_image_is_refused_when_its_data_is_cut_off(length):
    content = image(l2=[5 * CLUSTER])[:length]

    if length <= 5 * CLUSTER:
        with pytest.raises(ImageRefused):
            examine(content)
    else:
        examine(content)


@pytest.mark.parametrize(
    "content",
    [
        b"QFI\xfb",
        b"KDMV",
        b"# Disk DescriptorFile\n",
        b"vhdxfile",
        b"conectix",
        b"LUKS\xba\xbe",
        b"QED\0",
        b"\x1f\x8b\x08",
        b"\xfd7zXZ\0",
        b"PK\x03\x04",
        bytes(64) + b"\x7f\x10\xda\xbe",
        bytes(257) + b"ustar",
        b"LibvirtQemudSave",
    ],
)
def test_a_signature_gives_a_foreign_format_away(content):
    assert foreign_format(content.ljust(4096, b"\0"), bytes(512)) is not None


def test_a_signature_gives_a_foreign_format_away_when_it_is_at_the_end():
    assert foreign_format(bytes(4096), b"conectix".ljust(512, b"\0")) is not None


def test_a_boot_sector_is_no_foreign_format():
    assert foreign_format(b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa", bytes(512)) is None
