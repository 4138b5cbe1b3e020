# SPDX-License-Identifier: Apache-2.0
"""What every image gate does, the one with qemu-img and the one in memory alike."""

import struct
import subprocess
from io import BytesIO

import pytest

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.fakes import FakeImages, MemoryBlobs
from pycloud.adapters.images import QemuImages
from pycloud.core.model.catalog import DiskFormat
from pycloud.errors import ImageRefused, NotFound, QuotaExceeded
from pycloud.settings import Settings

MIB = 1 << 20
PLENTY = 1 << 40
SETTINGS = Settings(max_image_gib=1)


class Gate:
    """A gate with its content store, and images that it knows."""

    def __init__(self, kind, tmp_path):
        if kind == "memory":
            self.blobs = MemoryBlobs()
            self.images = FakeImages(self.blobs, max_size_bytes=1 << 30)
        else:
            data = DataDirectory(tmp_path / "data")
            self.blobs = DiskBlobs(data)
            self.images = QemuImages(data, self.blobs, SETTINGS)
        self.qcow2 = made_by_qemu_img(tmp_path / "made.qcow2", "64M")
        self.large_qcow2 = made_by_qemu_img(tmp_path / "large.qcow2", "2G")

    def stage(self, content, name="image"):
        self.blobs.append("area", name, BytesIO(content), offset_bytes=0, limit_bytes=PLENTY)


def made_by_qemu_img(path, size):
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "--", str(path), size]
    subprocess.run(argv, check=True, timeout=60)
    return path.read_bytes()


@pytest.fixture(params=["qemu-img", "memory"])
def gate(request, tmp_path):
    return Gate(request.param, tmp_path)


def patched(content, offset, code, value):
    changed = bytearray(content)
    struct.pack_into(">" + code, changed, offset, value)
    return bytes(changed)


@pytest.mark.parametrize("declared", [None, DiskFormat.QCOW2])
def test_inspect_tells_what_a_qcow2_image_is(gate, declared):
    gate.stage(gate.qcow2)

    facts = gate.images.inspect("area", "image", declared=declared)

    assert facts.format is DiskFormat.QCOW2
    assert facts.virtual_size_bytes == 64 * MIB
    assert facts.file_size_bytes == len(gate.qcow2)


def test_inspect_takes_raw_when_it_is_declared(gate):
    gate.stage(bytes(MIB))

    facts = gate.images.inspect("area", "image", declared=DiskFormat.RAW)

    assert facts.format is DiskFormat.RAW
    assert facts.virtual_size_bytes == MIB


def test_inspect_refuses_raw_when_it_is_not_declared(gate):
    gate.stage(bytes(510) + b"\x55\xaa")

    with pytest.raises(ImageRefused):
        gate.images.inspect("area", "image")


def test_inspect_refuses_when_another_format_is_declared(gate):
    gate.stage(gate.qcow2)

    with pytest.raises(ImageRefused):
        gate.images.inspect("area", "image", declared=DiskFormat.RAW)


@pytest.mark.parametrize("content", [b"", b"\0", bytes(513)])
def test_inspect_refuses_raw_when_it_is_no_number_of_sectors(gate, content):
    gate.stage(content)

    with pytest.raises(ImageRefused):
        gate.images.inspect("area", "image", declared=DiskFormat.RAW)


def test_inspect_refuses_a_backing_file(gate):
    gate.stage(patched(gate.qcow2, 8, "Q", 512))

    with pytest.raises(ImageRefused) as refusal:
        gate.images.inspect("area", "image")

    assert refusal.value.reason == "backing_file"


def test_inspect_refuses_an_unknown_version(gate):
    gate.stage(patched(gate.qcow2, 4, "I", 9))

    with pytest.raises(ImageRefused) as refusal:
        gate.images.inspect("area", "image")

    assert refusal.value.reason == "version"


def test_inspect_refuses_when_the_disk_is_larger_than_allowed(gate):
    gate.stage(gate.large_qcow2)

    with pytest.raises(QuotaExceeded):
        gate.images.inspect("area", "image")


def test_inspect_fails_when_nothing_is_staged(gate):
    with pytest.raises(NotFound):
        gate.images.inspect("area", "image")


def test_normalise_adopts_a_fresh_disk_of_the_same_size(gate):
    gate.stage(gate.qcow2)

    disk = gate.images.normalise("area", "image", "fresh")

    assert disk.virtual_size_bytes == 64 * MIB
    assert disk.backing is None
    assert disk.blob in list(gate.blobs.stored())
    with pytest.raises(NotFound):
        gate.blobs.open_staged("area", "fresh")


def test_normalise_refuses_what_inspect_refuses(gate):
    gate.stage(patched(gate.qcow2, 8, "Q", 512))

    with pytest.raises(ImageRefused):
        gate.images.normalise("area", "image", "fresh")

    assert list(gate.blobs.stored()) == []


def test_flatten_writes_an_image_that_passes(gate):
    gate.stage(gate.qcow2)
    disk = gate.images.normalise("area", "image", "fresh")

    gate.images.flatten(disk, "area", "flat")

    facts = gate.images.inspect("area", "flat")
    assert facts.virtual_size_bytes == 64 * MIB
