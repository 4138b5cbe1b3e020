# SPDX-License-Identifier: Apache-2.0
"""What every package format does, `.csvm` and its twin in memory alike."""

from dataclasses import replace
from io import BytesIO

import pytest

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.csvm import CsvmPackages
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.fakes import FakePackages, MemoryBlobs
from pycloud.core.model.catalog import OsType, Readiness, ServiceDraft
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.ports import UnpackedPackage
from pycloud.errors import JobCancelled, NotFound, PackageRefused
from pycloud.settings import Settings

PLENTY = 1 << 40
DRAFT = ServiceDraft(
    id=ServiceId("speech"),
    version="2",
    description="line one\nline two",
    tags=("a", "b"),
    port=8080,
    sharing_limit=4,
    vcpus=2,
    min_memory_mib=64,
    ideal_memory_mib=512,
    os_type=OsType.WINDOWS,
    readiness=Readiness.TCP,
    warm_count=0,
    idle_timeout_s=60,
)


class Bench:
    """A package format and the staging area it works in."""

    def __init__(self, kind, tmp_path):
        if kind == "fake":
            self.blobs = MemoryBlobs()
            self.packages = FakePackages(self.blobs)
        else:
            data = DataDirectory(tmp_path / "data")
            self.blobs = DiskBlobs(data)
            self.packages = CsvmPackages(data, Settings())

    def stage(self, content, name):
        self.blobs.append("area", name, BytesIO(content), offset_bytes=0, limit_bytes=PLENTY)

    def staged(self, name):
        with self.blobs.open_staged("area", name) as stream:
            return stream.read()

    def pack(self, *, draft=DRAFT, state=b"the state", report=None):
        self.stage(b"the disk", "disk")
        if state is not None:
            self.stage(state, "state")
        content = UnpackedPackage(draft=draft, disk="disk", state="state" if state else None)
        self.packages.pack("area", "package", content=content, report=report)


@pytest.fixture(params=["csvm", "fake"])
def bench(request, tmp_path):
    return Bench(request.param, tmp_path)


def test_unpack_gives_back_what_was_packed(bench):
    bench.pack()

    unpacked = bench.packages.unpack("area", "package")

    assert unpacked.draft == DRAFT
    assert bench.staged(unpacked.disk) == b"the disk"
    assert bench.staged(unpacked.state) == b"the state"


def test_unpack_tells_when_there_is_no_state(bench):
    bench.pack(state=None)

    unpacked = bench.packages.unpack("area", "package")

    assert unpacked.state is None


def test_unpack_keeps_the_package(bench):
    bench.pack()
    before = bench.staged("package")

    bench.packages.unpack("area", "package")

    assert bench.staged("package") == before


def test_unpack_takes_the_id_that_is_given(bench):
    bench.pack()

    unpacked = bench.packages.unpack("area", "package", service_id=ServiceId("mine"))

    assert unpacked.draft == replace(DRAFT, id=ServiceId("mine"))


def test_unpack_refuses_an_id_that_is_not_allowed_here_unless_another_is_given(bench):
    bench.pack(draft=replace(DRAFT, id=ServiceId("my service")))

    with pytest.raises(PackageRefused):
        bench.packages.unpack("area", "package")
    unpacked = bench.packages.unpack("area", "package", service_id=ServiceId("mine"))

    assert unpacked.draft.id == "mine"


@pytest.mark.parametrize("content", [b"", b"anything else\n"])
def test_unpack_refuses_what_is_no_package(bench, content):
    bench.stage(content, "package")

    with pytest.raises(PackageRefused):
        bench.packages.unpack("area", "package")


def test_unpack_refuses_a_package_that_is_cut_off(bench):
    bench.pack()
    bench.stage(bench.staged("package")[:-1], "cut")

    with pytest.raises(PackageRefused):
        bench.packages.unpack("area", "cut")


def test_unpack_fails_when_nothing_is_staged(bench):
    with pytest.raises(NotFound):
        bench.packages.unpack("area", "package")


def test_pack_fails_when_a_file_is_missing(bench):
    content = UnpackedPackage(draft=DRAFT, disk="disk", state=None)

    with pytest.raises(NotFound):
        bench.packages.pack("area", "package", content=content)


def test_progress_ends_at_the_whole(bench):
    seen = []

    bench.pack(report=lambda done, total: seen.append((done, total)))

    done, total = seen[-1]
    assert done == total > 0


def test_cancelling_passes_through(bench):
    def cancel(done, total):
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        bench.pack(report=cancel)
