# SPDX-License-Identifier: Apache-2.0
"""What every content store does, on disk and in memory alike."""

import hashlib
import subprocess
import sys
import time
from io import BytesIO

import pytest

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.fakes import MemoryBlobs
from pycloud.core.model.identifiers import BlobId
from pycloud.errors import Conflict, InvalidInput, JobCancelled, NotFound, QuotaExceeded
from testing.contract.processes import CHECKOUT

PLENTY = 1 << 30
ABSENT = BlobId("0" * 64)


@pytest.fixture(params=["disk", "memory"])
def blobs(request, tmp_path):
    if request.param == "memory":
        return MemoryBlobs()
    return DiskBlobs(DataDirectory(tmp_path / "data"))


def stage(blobs, content, *, name="file", offset_bytes=0, limit_bytes=PLENTY):
    return blobs.append(
        "area", name, BytesIO(content), offset_bytes=offset_bytes, limit_bytes=limit_bytes
    )


def stage_in(blobs, area):
    return blobs.append(area, "file", BytesIO(b"x"), offset_bytes=0, limit_bytes=PLENTY)


def staged(blobs, name="file"):
    with blobs.open_staged("area", name) as stream:
        return stream.read()


def adopted(blobs, content):
    stage(blobs, content, name="adopted")
    return blobs.adopt("area", "adopted")


class BrokenStream:
    """A client that goes away after its first bytes."""

    def __init__(self):
        self.pieces = [b"first"]

    def read(self, size=-1):
        if self.pieces:
            return self.pieces.pop()
        raise ConnectionResetError("the client went away")


def test_append_writes_the_stream_when_the_area_is_new(blobs):
    written = stage(blobs, b"0123456789")

    assert written == 10
    assert staged(blobs) == b"0123456789"
    assert blobs.areas() == ("area",)


def test_append_goes_on_when_the_offset_is_the_end(blobs):
    stage(blobs, b"0123")

    written = stage(blobs, b"456", offset_bytes=4)

    assert written == 3
    assert staged(blobs) == b"0123456"


def test_append_cuts_what_lies_behind_when_the_offset_is_inside(blobs):
    stage(blobs, b"0123456789")

    stage(blobs, b"xy", offset_bytes=4)

    assert staged(blobs) == b"0123xy"


def test_append_writes_nothing_when_the_stream_is_empty(blobs):
    written = stage(blobs, b"")

    assert written == 0
    assert staged(blobs) == b""


@pytest.mark.parametrize("offset_bytes", [-1, 5])
def test_append_refuses_when_the_offset_is_not_in_the_file(blobs, offset_bytes):
    stage(blobs, b"0123")

    with pytest.raises(InvalidInput):
        stage(blobs, b"x", offset_bytes=offset_bytes)


def test_append_takes_a_file_when_it_is_exactly_as_long_as_allowed(blobs):
    assert stage(blobs, b"0123", limit_bytes=4) == 4


def test_append_keeps_what_was_there_when_the_limit_is_passed(blobs):
    stage(blobs, b"0123")

    with pytest.raises(QuotaExceeded) as refusal:
        stage(blobs, b"456789", offset_bytes=4, limit_bytes=8)

    assert refusal.value.limit_bytes == 8
    assert staged(blobs) == b"0123"


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "/etc/passwd", ".hidden", "-rf", "a\n"])
def test_append_refuses_when_a_name_is_not_an_id(blobs, name):
    with pytest.raises(InvalidInput):
        stage(blobs, b"x", name=name)


@pytest.mark.parametrize("area", ["", "..", "../up", "a/b", "/etc", "-rf"])
def test_append_refuses_when_an_area_is_not_an_id(blobs, area):
    with pytest.raises(InvalidInput):
        stage_in(blobs, area)


def test_open_staged_fails_when_nothing_is_staged(blobs):
    with pytest.raises(NotFound):
        blobs.open_staged("area", "file")


def test_adopt_moves_the_file_into_the_content_store(blobs):
    stage(blobs, b"content")

    ref = blobs.adopt("area", "file")

    assert ref.id == hashlib.sha256(b"content").hexdigest()
    assert ref.size_bytes == 7
    with blobs.open(ref.id) as stream:
        assert stream.read() == b"content"
    with pytest.raises(NotFound):
        blobs.open_staged("area", "file")


def test_adopt_gives_one_blob_when_content_is_equal(blobs):
    first = adopted(blobs, b"same")

    second = adopted(blobs, b"same")

    assert first == second
    assert list(blobs.stored()) == [first]


def test_adopt_takes_a_file_when_it_is_empty(blobs):
    ref = adopted(blobs, b"")

    assert ref.size_bytes == 0
    blobs.verify(ref.id)


def test_adopt_fails_when_nothing_is_staged(blobs):
    with pytest.raises(NotFound):
        blobs.adopt("area", "file")


def test_adopt_reports_up_to_the_whole_length(blobs):
    stage(blobs, b"x" * 3_000_000)
    seen = []

    blobs.adopt("area", "file", report=lambda done, total: seen.append((done, total)))

    assert seen == sorted(seen)
    assert seen[-1] == (3_000_000, 3_000_000)


def test_adopt_leaves_the_file_staged_when_it_is_cancelled(blobs):
    stage(blobs, b"content")

    def cancel(done, total):
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        blobs.adopt("area", "file", report=cancel)

    assert staged(blobs) == b"content"
    assert list(blobs.stored()) == []


@pytest.mark.parametrize("way", ["adopt", "share"])
def test_adoption_changes_whenever_the_content_comes_in(blobs, way):
    words = [blobs.adoption(ABSENT)]
    for present in ("not yet", "already", "no longer"):
        stage(blobs, b"content")
        ref = getattr(blobs, way)("area", "file")
        words.append(blobs.adoption(ref.id))
        assert blobs.adoption(ref.id) == words[-1]
        if present == "already":
            blobs.remove(ref.id)
            assert blobs.adoption(ref.id) == ""
        # On a disk, two moments have to be further apart than a tick of the clock.
        time.sleep(0.02)

    assert len(set(words)) == 4


def test_remove_keeps_what_came_in_again(blobs):
    earlier = blobs.adoption(adopted(blobs, b"content").id)
    time.sleep(0.02)
    ref = adopted(blobs, b"content")

    blobs.remove(ref.id, adoption=earlier)
    kept = list(blobs.stored())
    blobs.remove(ref.id, adoption=blobs.adoption(ref.id))
    blobs.remove(ref.id, adoption=earlier)

    assert (kept, list(blobs.stored())) == ([ref], [])


def test_share_stores_the_content_and_leaves_it_staged(blobs):
    stage(blobs, b"content")

    ref = blobs.share("area", "file")

    with blobs.open(ref.id) as stream:
        assert stream.read() == b"content"
    assert staged(blobs) == b"content"
    assert ref == adopted(blobs, b"content")


def test_share_may_be_repeated(blobs):
    stage(blobs, b"content")
    first = blobs.share("area", "file")

    second = blobs.share("area", "file")
    blobs.remove(second.id)
    third = blobs.share("area", "file")
    blobs.discard("area")

    assert first == second == third
    blobs.verify(third.id)
    assert list(blobs.stored()) == [third]


def test_share_keeps_the_content_when_the_area_is_discarded(blobs):
    stage(blobs, b"content")
    ref = blobs.share("area", "file")

    blobs.discard("area")

    blobs.verify(ref.id)


def test_share_fails_when_nothing_is_staged(blobs):
    with pytest.raises(NotFound):
        blobs.share("area", "file")


def test_discard_removes_everything_in_the_area(blobs):
    stage(blobs, b"a", name="a")
    stage(blobs, b"b", name="b")

    blobs.discard("area")

    assert blobs.areas() == ()


def test_discard_is_idempotent(blobs):
    blobs.discard("area")

    blobs.discard("area")

    assert blobs.areas() == ()


def test_keep_only_removes_all_other_files_of_the_area(blobs):
    for name in ("kept", "kept.attempt-1", "other"):
        stage(blobs, b"x", name=name)
    stage_in(blobs, "elsewhere")

    blobs.keep_only("area", "kept")
    blobs.keep_only("area", "kept")

    assert staged(blobs, "kept") == b"x"
    for name in ("kept.attempt-1", "other"):
        with pytest.raises(NotFound):
            blobs.open_staged("area", name)
    with blobs.open_staged("elsewhere", "file") as stream:
        assert stream.read() == b"x"


def test_keep_only_makes_no_area(blobs):
    blobs.keep_only("area", "kept")

    assert blobs.areas() == ()


def test_keep_only_leaves_the_area_to_who_has_it(blobs):
    with blobs.exclusive("area"):
        blobs.keep_only("area", "kept")

        with pytest.raises(Conflict), blobs.exclusive("area"):
            raise AssertionError("two have it")


def test_discard_keeps_what_was_adopted(blobs):
    ref = adopted(blobs, b"content")

    blobs.discard("area")

    blobs.verify(ref.id)


def test_areas_names_every_owner(blobs):
    stage_in(blobs, "upload-1")
    stage_in(blobs, "job-1")

    assert sorted(blobs.areas()) == ["job-1", "upload-1"]


def test_remove_is_idempotent(blobs):
    ref = adopted(blobs, b"content")
    blobs.remove(ref.id)

    blobs.remove(ref.id)

    assert list(blobs.stored()) == []


def test_remove_does_not_disturb_a_reader_when_the_content_is_open(blobs):
    ref = adopted(blobs, b"content")

    with blobs.open(ref.id) as stream:
        blobs.remove(ref.id)

        assert stream.read() == b"content"


@pytest.mark.parametrize("method", ["open", "verify"])
def test_content_is_not_found_when_nobody_stored_it(blobs, method):
    with pytest.raises(NotFound):
        getattr(blobs, method)(ABSENT)


def test_stored_lists_all_content_with_its_length(blobs):
    refs = {adopted(blobs, bytes([value]) * value) for value in range(20)}

    assert set(blobs.stored()) == refs


def test_storage_tells_a_room_that_is_part_of_the_disk(blobs):
    facts = blobs.storage()

    assert 0 < facts.free_bytes <= facts.total_bytes


def test_append_keeps_what_was_there_when_the_stream_breaks(blobs):
    stage(blobs, b"0123")

    with pytest.raises(ConnectionResetError):
        blobs.append("area", "file", BrokenStream(), offset_bytes=4, limit_bytes=PLENTY)

    assert staged(blobs)[:4] == b"0123"


# -- one at a time ----------------------------------------------------------------------


def test_exclusive_refuses_a_second_one_until_the_first_is_over(blobs):
    with blobs.exclusive("area"), pytest.raises(Conflict), blobs.exclusive("area"):
        pytest.fail("two had it")

    with blobs.exclusive("area"):
        stage(blobs, b"x")


def test_exclusive_is_for_one_area(blobs):
    with blobs.exclusive("area"), blobs.exclusive("another"):
        stage(blobs, b"x")

    assert staged(blobs) == b"x"


def test_exclusive_is_over_when_its_block_fails(blobs):
    with pytest.raises(ZeroDivisionError), blobs.exclusive("area"):
        raise ZeroDivisionError

    with blobs.exclusive("area"):
        pass


def test_exclusive_goes_with_its_area(blobs):
    with blobs.exclusive("area"):
        stage(blobs, b"x")
        blobs.discard("area")

    assert blobs.areas() == ()


def test_exclusive_refuses_when_an_area_is_not_an_id(blobs):
    with pytest.raises(InvalidInput), blobs.exclusive("../area"):
        pytest.fail("it was taken")


HOLDER = """
import sys
from pathlib import Path
from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory
with DiskBlobs(DataDirectory(Path(sys.argv[1]))).exclusive("area"):
    print("taken", flush=True)
    sys.stdin.readline()
print("over", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has an area on the same disk to itself, until it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "data")],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_exclusive_on_disk_keeps_other_processes_out(tmp_path, holder):
    blobs = DiskBlobs(DataDirectory(tmp_path / "data"))
    with pytest.raises(Conflict), blobs.exclusive("area"):
        pytest.fail("two processes had it")

    holder.stdin.write("go\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "over\n"

    with blobs.exclusive("area"):
        stage(blobs, b"x")


def test_exclusive_on_disk_is_over_when_its_process_is_killed(tmp_path, holder):
    blobs = DiskBlobs(DataDirectory(tmp_path / "data"))

    holder.kill()
    holder.wait(timeout=10)

    with blobs.exclusive("area"):
        stage(blobs, b"x")
