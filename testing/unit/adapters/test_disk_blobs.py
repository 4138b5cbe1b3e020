# SPDX-License-Identifier: Apache-2.0
"""The content store on disk: holes, modes, full disks, kills at every step."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from io import BytesIO

import pytest

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory
from pycloud.core.model.identifiers import BlobId, InstanceId
from pycloud.errors import BlobCorrupt, InsufficientStorage, InvalidInput, NotFound, StoreError
from testing.unit.core.races import later

PLENTY = 1 << 40
MIB = 1 << 20

KILLED_CHILD = """
import os, signal, sys
from io import BytesIO
from pathlib import Path

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory

root, action, fatal_call = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
blobs = DiskBlobs(DataDirectory(root))
calls = 0

def deadly(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

for name in ("open", "ftruncate", "pwrite", "pread", "fsync", "fchmod", "utime", "rename", "unlink", "mkdir"):
    setattr(os, name, deadly(getattr(os, name)))
if action == "adopt":
    blobs.adopt("area", "file")
else:
    blobs.append("area", "file", BytesIO(b"second"), offset_bytes=5, limit_bytes=100)
"""


@pytest.fixture
def data(tmp_path):
    return DataDirectory(tmp_path / "data")


@pytest.fixture
def blobs(data):
    return DiskBlobs(data)


@pytest.fixture
def file_size_limit():
    """A disk that is full after one MiB, for root and for everybody else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    yield MIB
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stage(blobs, content, *, name="file", offset_bytes=0):
    return blobs.append(
        "area", name, BytesIO(content), offset_bytes=offset_bytes, limit_bytes=PLENTY
    )


def killed_runs(data, action):
    """Run `action` in children, each killed at a later call than the one before; yield after each."""
    for fatal_call in range(1, 100):
        child = subprocess.run(
            [sys.executable, "-c", KILLED_CHILD, str(data.root), action, str(fatal_call)],
            timeout=60,
            check=False,
        )
        yield child.returncode
        if child.returncode == 0:
            return
    raise AssertionError("the child never ran to its end")


def test_adopt_keeps_holes_when_the_file_is_sparse(blobs, data):
    path = data.staged_path("area", "ram")
    with path.open("wb") as stream:
        stream.seek(64 * MIB)
        stream.write(b"end")

    ref = blobs.adopt("area", "ram")

    assert data.blob_path(ref.id).stat().st_blocks * 512 < MIB
    digest = hashlib.sha256(bytes(64 * MIB) + b"end")
    assert ref.id == digest.hexdigest()


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [(0, 4096)],
        [(1 * MIB, 4096)],
        [(3 * MIB - 4096, 4096)],
        [(0, 100), (MIB + 4096, 2 * 4096), (2 * MIB + 8192, 5)],
    ],
)
def test_adopt_hashes_what_a_reader_would_see_when_there_are_holes(blobs, data, runs):
    path = data.staged_path("area", "sparse")
    with path.open("wb") as stream:
        stream.truncate(3 * MIB)
        for start, length in runs:
            stream.seek(start)
            stream.write(os.urandom(length))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()

    ref = blobs.adopt("area", "sparse")

    assert ref.id == expected
    assert ref.size_bytes == 3 * MIB


def test_content_is_read_only_for_everybody(blobs, data):
    stage(blobs, b"content")

    ref = blobs.adopt("area", "file")

    assert data.blob_path(ref.id).stat().st_mode & 0o777 == 0o444


def test_directories_belong_to_their_owner_alone(blobs, data):
    stage(blobs, b"content")
    ref = blobs.adopt("area", "file")
    data.instance_dir(InstanceId("i-1"))

    modes = {
        path.stat().st_mode & 0o777
        for path in (
            data.root,
            data.blob_path(ref.id).parent,
            data.blobs_dir(),
            data.area_path("area"),
            data.instances_dir() / "i-1",
        )
    }

    assert modes == {0o700}


def test_adopt_replaces_content_when_it_was_cut_short(blobs, data):
    stage(blobs, b"content")
    ref = blobs.adopt("area", "file")
    path = data.blob_path(ref.id)
    path.unlink()
    path.write_bytes(b"cont")
    stage(blobs, b"content")

    blobs.adopt("area", "file")

    blobs.verify(ref.id)


def test_verify_notices_when_a_bit_has_flipped(blobs, data):
    stage(blobs, b"content")
    ref = blobs.adopt("area", "file")
    path = data.blob_path(ref.id)
    path.chmod(0o600)
    path.write_bytes(b"contenu")

    with pytest.raises(BlobCorrupt):
        blobs.verify(ref.id)


def test_stored_passes_over_files_that_are_not_content(blobs, data):
    stage(blobs, b"content")
    ref = blobs.adopt("area", "file")
    (data.blobs_dir() / "README").write_text("foreign")
    (data.blob_path(ref.id).parent / "lost+found").write_text("foreign")

    assert list(blobs.stored()) == [ref]


@pytest.mark.parametrize("blob_id", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65])
def test_open_refuses_when_an_id_is_not_a_digest(blobs, blob_id):
    with pytest.raises(InvalidInput):
        blobs.open(BlobId(blob_id))


def test_open_staged_does_not_follow_links(blobs, data, tmp_path):
    (tmp_path / "secret").write_text("secret")
    data.staged_path("area", "file").symlink_to(tmp_path / "secret")

    with pytest.raises(StoreError):
        blobs.open_staged("area", "file")


def test_open_staged_takes_no_directory(blobs, data):
    data.staged_path("area", "file").mkdir()

    with pytest.raises(NotFound):
        blobs.open_staged("area", "file")


def test_append_leaves_nothing_when_the_disk_is_full(blobs, data, file_size_limit):
    with pytest.raises(InsufficientStorage):
        stage(blobs, b"x" * (2 * file_size_limit))

    assert not data.staged_path("area", "file").exists()


def test_share_takes_no_room_twice_and_leaves_one_name(blobs, data):
    stage(blobs, b"content")

    ref = blobs.share("area", "file")
    blobs.share("area", "file")

    assert data.blob_path(ref.id).samefile(data.staged_path("area", "file"))
    assert [path.name for path in data.area_path("area").iterdir()] == ["file"]


def test_removal_waits_for_content_that_is_just_coming_in_and_then_leaves_it(blobs, monkeypatch):
    stage(blobs, b"content")
    ref = blobs.adopt("area", "file")
    earlier = blobs.adoption(ref.id)
    stage(blobs, b"content")
    removals = []
    note_time = os.utime

    def note_time_late(path):
        removals.append(later(lambda: blobs.remove(ref.id, adoption=earlier)))
        with pytest.raises(TimeoutError):
            removals[0].result(timeout=0.05)
        note_time(path)

    monkeypatch.setattr(os, "utime", note_time_late)

    blobs.adopt("area", "file")

    removals[0].result(timeout=10)
    blobs.verify(ref.id)


def test_append_keeps_what_was_there_when_the_disk_is_full(blobs, data, file_size_limit):
    stage(blobs, b"first")

    with pytest.raises(InsufficientStorage):
        stage(blobs, b"x" * (2 * file_size_limit), offset_bytes=5)

    assert data.staged_path("area", "file").read_bytes() == b"first"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_append_says_so_when_there_is_no_room_at_the_very_end(blobs, data, monkeypatch, number):
    def full(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(InsufficientStorage):
        stage(blobs, b"content")

    assert not data.staged_path("area", "file").exists()


def test_append_blames_the_disk_when_it_is_broken(blobs, monkeypatch):
    def broken(fd, data, position):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", broken)

    with pytest.raises(StoreError):
        stage(blobs, b"content")


def test_adopt_leaves_the_file_or_the_blob_when_it_is_killed_anywhere(blobs, data):
    content = b"content" * 1000
    outcomes = []
    for returncode in killed_runs_with(data, blobs, content):
        staged = data.staged_path("area", "file")
        stored = list(blobs.stored())
        if staged.exists():
            assert staged.read_bytes() == content
        else:
            assert len(stored) == 1
        for ref in stored:
            blobs.verify(ref.id)
        outcomes.append(returncode)
        for ref in stored:
            blobs.remove(ref.id)

    assert outcomes[-1] == 0
    assert set(outcomes[:-1]) == {-signal.SIGKILL}
    assert len(outcomes) > 5


def killed_runs_with(data, blobs, content):
    stage(blobs, content)
    for returncode in killed_runs(data, "adopt"):
        yield returncode
        stage(blobs, content)


def test_append_never_loses_what_was_received_when_it_is_killed_anywhere(blobs, data):
    stage(blobs, b"first")
    outcomes = []
    for returncode in killed_runs(data, "append"):
        content = data.staged_path("area", "file").read_bytes()
        assert b"firstsecond".startswith(content)
        assert content.startswith(b"first")
        outcomes.append(returncode)

    assert outcomes[-1] == 0
    assert data.staged_path("area", "file").read_bytes() == b"firstsecond"
