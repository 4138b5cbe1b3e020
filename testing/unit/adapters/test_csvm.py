# SPDX-License-Identifier: Apache-2.0
"""Packages: what old cloudlets wrote comes in, and what we write they can read."""

import io
import json
import os
import random
import resource
import subprocess
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from pycloud.adapters.csvm import CsvmPackages, tar
from pycloud.adapters.csvm.gzip_stream import PIECE_BYTES
from pycloud.adapters.data_directory import DataDirectory
from pycloud.core.model.catalog import OsType, Readiness, ServiceDraft
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.ports import UnpackedPackage
from pycloud.errors import InsufficientStorage, InvalidInput, JobCancelled, NotFound
from pycloud.settings import Settings
from testing.old_packages import DISK, OLD_DESCRIPTION, STATE, old_package

MIB = 1 << 20
AREA = "area"
FULL_DRAFT = ServiceDraft(
    id=ServiceId("edu.cmu.speech"),
    version="2.1",
    description="Zürich, speech → text",
    tags=("speech", "ml"),
    port=8080,
    sharing_limit=7,
    vcpus=2,
    min_memory_mib=512,
    ideal_memory_mib=1024,
    os_type=OsType.WINDOWS,
    readiness=Readiness.HTTP,
    warm_count=3,
    idle_timeout_s=60,
    max_lifetime_s=3600,
)


@pytest.fixture
def data(tmp_path):
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def packages(data):
    return CsvmPackages(data, Settings(max_image_gib=1))


def stage(data, content, name="package"):
    data.staged_path(AREA, name).write_bytes(content)


def staged(data, name):
    return data.staged_path(AREA, name).read_bytes()


def names(data):
    return sorted(path.name for path in data.area_path(AREA).iterdir())


def pack(data, packages, *, draft=FULL_DRAFT, disk=DISK, report=None):
    stage(data, disk, "disk")
    stage(data, STATE, "state")
    content = UnpackedPackage(draft=draft, disk="disk", state="state")
    packages.pack(AREA, "package", content=content, report=report)
    return staged(data, "package")


@pytest.fixture
def synced(monkeypatch):
    """The names of what was made durable, and how large it was then."""
    sizes = {}

    def note(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        sizes[path.name] = path.stat().st_size if path.is_file() else 0

    monkeypatch.setattr(os, "fsync", note)
    return sizes


def test_unpacked_members_are_durable_together_with_their_names(data, packages, synced):
    stage(data, old_package())

    unpacked = packages.unpack(AREA, "package")

    assert synced == {unpacked.disk: len(DISK), unpacked.state: len(STATE), AREA: 0}
    assert list(synced)[-1] == AREA


# -- old packages come in -----------------------------------------------------------------


@pytest.mark.parametrize(
    "tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]
)
def test_unpack_reads_a_package_when_an_old_cloudlet_wrote_it(data, packages, tar_format):
    stage(data, old_package(format=tar_format))

    unpacked = packages.unpack(AREA, "package")

    assert staged(data, unpacked.disk) == DISK
    assert staged(data, unpacked.state) == STATE
    assert unpacked.draft == ServiceDraft(
        id=ServiceId("speech"),
        version="1.0",
        description="Speech recognition",
        tags=("speech", "audio"),
        port=10191,
        sharing_limit=10_000,
        min_memory_mib=512,
        ideal_memory_mib=1024,
    )


def test_unpack_reads_a_package_when_gnu_tar_and_gzip_wrote_it(data, packages, tmp_path):
    (tmp_path / "speech.qcow2").write_bytes(DISK)
    (tmp_path / "speech.qcow2.lqs").write_bytes(STATE)
    (tmp_path / "service.json").write_text(json.dumps(OLD_DESCRIPTION))
    subprocess.run(
        ["tar", "-czf", "made", "speech.qcow2", "speech.qcow2.lqs", "service.json"],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    stage(data, (tmp_path / "made").read_bytes())

    unpacked = packages.unpack(AREA, "package")

    assert staged(data, unpacked.disk) == DISK


def test_unpack_reads_a_package_when_it_has_no_state(data, packages):
    description = OLD_DESCRIPTION | {
        "vm_image": {"disk_image": "speech.qcow2", "state_image": None}
    }
    stage(data, old_package(description, state=None))

    unpacked = packages.unpack(AREA, "package")

    assert unpacked.state is None


def test_unpack_can_be_repeated_when_it_was_interrupted(data, packages):
    stage(data, old_package())
    stage(data, b"half a disk", "unpacked-disk")

    unpacked = packages.unpack(AREA, "package")

    assert staged(data, unpacked.disk) == DISK


def test_unpack_writes_holes_when_there_are_zeros(data, packages):
    stage(data, old_package(disk=bytes(32 * MIB) + b"end"))

    unpacked = packages.unpack(AREA, "package")

    path = data.staged_path(AREA, unpacked.disk)
    assert path.stat().st_size == 32 * MIB + 3
    assert path.stat().st_blocks * 512 < 2 * MIB


def test_unpack_reports_up_to_the_length_of_the_package(data, packages):
    content = old_package(disk=random.Random(1).randbytes(3 * MIB))
    stage(data, content)
    seen = []

    packages.unpack(AREA, "package", report=lambda done, total: seen.append((done, total)))

    assert seen == sorted(seen)
    assert seen[-1] == (len(content), len(content))


def test_unpack_leaves_nothing_when_it_is_cancelled(data, packages):
    stage(data, old_package())

    def cancel(done, total):
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        packages.unpack(AREA, "package", report=cancel)

    assert names(data) == ["package"]


def test_unpack_fails_when_nothing_is_staged(packages):
    with pytest.raises(NotFound):
        packages.unpack(AREA, "package")


def test_unpack_refuses_a_name_that_is_a_path(packages):
    with pytest.raises(InvalidInput):
        packages.unpack(AREA, "../package")


# -- what we write can be read ---------------------------------------------------------------


def test_pack_writes_what_unpack_reads(data, packages):
    pack(data, packages)

    unpacked = packages.unpack(AREA, "package")

    assert unpacked.draft == FULL_DRAFT
    assert staged(data, unpacked.disk) == DISK
    assert staged(data, unpacked.state) == STATE


def test_pack_writes_what_an_old_cloudlet_reads(data, packages):
    content = pack(data, packages)

    with tarfile.open(fileobj=io.BytesIO(content), mode="r") as archive:
        members = {member.name: member for member in archive.getmembers()}
        document = json.load(archive.extractfile("service.json"))
        disk = archive.extractfile(document["vm_image"]["disk_image"]).read()
        state = archive.extractfile(document["vm_image"]["state_image"]).read()

    assert list(members) == [
        "edu.cmu.speech.qcow2",
        "edu.cmu.speech.qcow2.lqs",
        "service.json",
    ]
    assert all(member.isreg() for member in members.values())
    assert (disk, state) == (DISK, STATE)
    ours = document.pop("pycloud")
    assert ours["readiness"] == "http"
    assert document == {
        "service_id": "edu.cmu.speech",
        "vm_image": {
            "disk_image": "edu.cmu.speech.qcow2",
            "state_image": "edu.cmu.speech.qcow2.lqs",
        },
        "description": "Zürich, speech → text",
        "version": "2.1",
        "tags": ["speech", "ml"],
        "port": 8080,
        "num_users": 7,
        "ideal_memory": 1024,
        "min_memory": 512,
    }


@pytest.mark.parametrize("mode", ["r|gz", "r:gz"])
def test_pack_writes_one_gzip_member_for_readers_that_know_no_more(data, packages, mode):
    content = pack(data, packages, disk=random.Random(2).randbytes(3 * MIB + 7))

    inflater = zlib.decompressobj(wbits=31)
    inflater.decompress(content)
    with tarfile.open(fileobj=io.BytesIO(content), mode=mode) as archive:
        sizes = [member.size for member in archive]

    assert inflater.eof
    assert inflater.unused_data == b""
    assert sizes[0] == 3 * MIB + 7


def test_pack_writes_what_gnu_tar_reads(data, packages):
    pack(data, packages)

    listing = subprocess.run(
        ["tar", "-tzf", str(data.staged_path(AREA, "package"))],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert listing.stdout.split() == [
        "edu.cmu.speech.qcow2",
        "edu.cmu.speech.qcow2.lqs",
        "service.json",
    ]
    assert listing.stderr == ""


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, PIECE_BYTES, PIECE_BYTES + 1])
def test_pack_keeps_every_byte_at_awkward_lengths(data, packages, length):
    content = random.Random(length).randbytes(length)
    pack(data, packages, disk=content)

    unpacked = packages.unpack(AREA, "package")

    assert staged(data, unpacked.disk) == content


def test_pack_keeps_every_byte_when_the_disk_is_sparse(data, packages):
    path = data.staged_path(AREA, "disk")
    with path.open("wb") as stream:
        for position in (0, 4 * MIB - 2, 9 * MIB + 4096, 20 * MIB):
            stream.seek(position)
            stream.write(os.urandom(5000))
        stream.truncate(31 * MIB + 100)
    packages.pack(
        AREA, "package", content=UnpackedPackage(draft=FULL_DRAFT, disk="disk", state=None)
    )

    unpacked = packages.unpack(AREA, "package")

    assert staged(data, unpacked.disk) == path.read_bytes()


def test_pack_leaves_nothing_when_it_is_cancelled(data, packages):
    def cancel(done, total):
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        pack(data, packages, report=cancel)

    assert names(data) == ["disk", "state"]


def test_pack_reports_up_to_the_length_of_the_files(data, packages):
    seen = []

    pack(data, packages, report=lambda done, total: seen.append((done, total)))

    assert seen[-1] == (len(DISK) + len(STATE), len(DISK) + len(STATE))


def test_pack_fails_when_a_file_is_missing(data, packages):
    content = UnpackedPackage(draft=FULL_DRAFT, disk="disk", state=None)

    with pytest.raises(NotFound):
        packages.pack(AREA, "package", content=content)

    assert not data.staged_path(AREA, "package").exists()


@pytest.fixture
def full_disk():
    """A disk that is full after one MiB, for root and for everybody else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_pack_leaves_nothing_when_the_disk_is_full(data, packages, full_disk):
    stage(data, random.Random(3).randbytes(3 * MIB), "disk")
    full_disk()

    with pytest.raises(InsufficientStorage):
        packages.pack(
            AREA, "package", content=UnpackedPackage(draft=FULL_DRAFT, disk="disk", state=None)
        )

    assert names(data) == ["disk"]


def test_unpack_leaves_nothing_when_the_disk_is_full(data, packages, full_disk):
    stage(data, old_package(disk=b"x" * (3 * MIB)))
    full_disk()

    with pytest.raises(InsufficientStorage):
        packages.unpack(AREA, "package")

    assert names(data) == ["package"]


def test_description_keeps_what_only_new_cloudlets_know(data, packages):
    draft = replace(FULL_DRAFT, warm_count=None, os_type=OsType.LINUX, sharing_limit=10_000)
    pack(data, packages, draft=draft)

    assert packages.unpack(AREA, "package").draft == draft


def test_header_is_read_by_others_when_a_file_has_more_than_eight_gibibytes():
    block = tar.write_header(tar.Member(name="large.qcow2", size_bytes=20 << 30))

    member = tarfile.TarInfo.frombuf(block, "ascii", "strict")

    assert member.size == 20 << 30
    assert tar.read_member(io.BytesIO(block).read) == tar.Member(
        name="large.qcow2", size_bytes=20 << 30
    )
