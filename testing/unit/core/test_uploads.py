# SPDX-License-Identifier: Apache-2.0
"""Uploads: in pieces, at the right offset, within bounds, and not for ever."""

from functools import partial
from io import BytesIO

import pytest

from pycloud.core.access import ADMIN
from pycloud.core.model.runtime import FINAL_JOB_STATES, JobState
from pycloud.errors import (
    CloudletError,
    Conflict,
    InsufficientStorage,
    InvalidInput,
    NotFound,
    QuotaExceeded,
)
from testing.composed import a_core
from testing.factories import a_job
from testing.unit.core.races import at_once, later, wait_until


@pytest.fixture
def composed():
    return a_core()


@pytest.fixture
def uploads(composed):
    return composed.core.uploads


class SlowStream:
    """A client that sends one byte and then waits until the test lets it go on."""

    def __init__(self):
        self.read_once = False
        self.may_end = False

    def read(self, _size):
        if not self.read_once:
            self.read_once = True
            return b"x"
        wait_until(lambda: self.may_end)
        return b""


def test_upload_in_pieces_is_complete_at_its_size(composed, uploads):
    upload = uploads.create("disk", 6, by=ADMIN)
    uploads.append(upload.id, 0, BytesIO(b"abc"))
    uploads.append(upload.id, 3, BytesIO(b"def"))

    assert uploads.complete(upload.id).offset_bytes == 6
    assert composed.blobs.open_staged(upload.id, "content").read() == b"abcdef"


@pytest.mark.parametrize("offset", [0, 2, 4, -1])
def test_piece_at_another_offset_is_refused_and_told_which(composed, uploads, offset):
    upload = uploads.create("disk", 6, by=ADMIN)
    uploads.append(upload.id, 0, BytesIO(b"abc"))

    with pytest.raises(Conflict, match="starts at 3"):
        uploads.append(upload.id, offset, BytesIO(b"def"))

    assert composed.blobs.open_staged(upload.id, "content").read() == b"abc"


def test_piece_beyond_the_size_is_refused_and_forgotten(composed, uploads):
    upload = uploads.create("disk", 6, by=ADMIN)
    uploads.append(upload.id, 0, BytesIO(b"abc"))

    with pytest.raises(QuotaExceeded):
        uploads.append(upload.id, 3, BytesIO(b"defg"))

    assert uploads.upload(upload.id).offset_bytes == 3
    assert uploads.append(upload.id, 3, BytesIO(b"def")).offset_bytes == 6


def test_piece_that_fills_the_disk_is_refused_and_can_be_sent_again(composed, uploads):
    upload = uploads.create("disk", 6, by=ADMIN)
    composed.blobs.set_free_bytes(2)
    with pytest.raises(InsufficientStorage):
        uploads.append(upload.id, 0, BytesIO(b"abcdef"))
    composed.blobs.set_free_bytes(100)

    assert uploads.append(upload.id, 0, BytesIO(b"abcdef")).offset_bytes == 6


def test_second_piece_is_refused_while_one_is_written(uploads):
    upload = uploads.create("disk", 6, by=ADMIN)
    slow = SlowStream()
    first = later(lambda: uploads.append(upload.id, 0, slow))
    wait_until(lambda: slow.read_once)

    with pytest.raises(Conflict, match="being written"):
        uploads.append(upload.id, 0, BytesIO(b"abc"))
    slow.may_end = True

    assert first.result(5).offset_bytes == 1


def test_racing_pieces_write_one_of_them(composed, uploads):
    upload = uploads.create("disk", 1000, by=ADMIN)
    pieces = [bytes([number]) * 100 for number in range(8)]

    results = at_once([partial(uploads.append, upload.id, 0, BytesIO(piece)) for piece in pieces])

    won = [
        piece
        for piece, result in zip(pieces, results, strict=True)
        if not isinstance(result, Exception)
    ]
    assert all(isinstance(one, Conflict) for one in results if isinstance(one, CloudletError))
    assert [composed.blobs.open_staged(upload.id, "content").read()] == won


def test_piece_for_an_unknown_upload_is_refused_and_remembered_nowhere(composed, uploads):
    with pytest.raises(NotFound):
        uploads.append("nothing", 0, BytesIO(b"x"))

    assert composed.blobs.areas() == ()


def test_second_piece_is_refused_while_another_server_writes_one(composed, uploads):
    upload = uploads.create("disk", 6, by=ADMIN)
    slow = SlowStream()
    first = later(lambda: uploads.append(upload.id, 0, slow))
    wait_until(lambda: slow.read_once)

    with pytest.raises(Conflict, match="being written"):
        composed.another_server().core.uploads.append(upload.id, 0, BytesIO(b"abc"))
    slow.may_end = True

    assert first.result(5).offset_bytes == 1
    assert composed.blobs.open_staged(upload.id, "content").read() == b"x"


def test_piece_that_another_server_wrote_first_is_not_overwritten(composed, uploads, monkeypatch):
    """Its piece is acknowledged between our look at the record and our turn."""
    upload = uploads.create("disk", 6, by=ADMIN)
    exclusive = composed.blobs.exclusive

    def after_another(area):
        monkeypatch.undo()
        composed.another_server().core.uploads.append(upload.id, 0, BytesIO(b"abcdef"))
        return exclusive(area)

    monkeypatch.setattr(composed.blobs, "exclusive", after_another)

    with pytest.raises(Conflict, match="starts at 6"):
        uploads.append(upload.id, 0, BytesIO(b"xyz"))

    assert composed.blobs.open_staged(upload.id, "content").read() == b"abcdef"


@pytest.mark.parametrize("size", [0, -1])
def test_empty_upload_is_refused(uploads, size):
    with pytest.raises(InvalidInput):
        uploads.create("disk", size, by=ADMIN)


def test_upload_over_the_quota_is_refused(composed, uploads):
    limit_bytes = composed.core.settings.max_image_gib << 30

    with pytest.raises(QuotaExceeded, match="max_image_gib") as caught:
        uploads.create("disk", limit_bytes + 1, by=ADMIN)

    assert caught.value.limit_bytes == limit_bytes


def test_upload_for_which_there_is_no_room_is_refused(composed, uploads):
    composed.blobs.set_free_bytes(300 << 20)

    with pytest.raises(InsufficientStorage) as caught:
        uploads.create("disk", 100 << 20, by=ADMIN)

    assert caught.value.needed_bytes == 100 << 20


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("/etc/passwd", "passwd"),
        ("C:\\disks\\a.qcow2", "a.qcow2"),
        ("a\x00\n\x1b[31mb", "a[31mb"),
        ("x" * 300, "x" * 255),
    ],
)
def test_file_name_is_kept_for_people_only(uploads, sent, kept):
    assert uploads.create(sent, 1, by=ADMIN).file_name == kept


def test_forgotten_upload_is_dropped(composed, uploads):
    uploads.create("disk", 6, by=ADMIN)
    composed.clock.advance(composed.core.settings.upload_timeout_s)

    uploads.drop_expired()

    assert composed.store.uploads.count() == 0


def test_upload_that_goes_on_is_kept(composed, uploads):
    upload = uploads.create("disk", 6, by=ADMIN)
    composed.clock.advance(composed.core.settings.upload_timeout_s - 1)
    uploads.append(upload.id, 0, BytesIO(b"x"))
    composed.clock.advance(2)

    uploads.drop_expired()

    assert uploads.upload(upload.id).offset_bytes == 1


def test_upload_in_use_is_kept(composed, uploads):
    composed.request_service()
    composed.clock.advance(composed.core.settings.upload_timeout_s + 1)

    uploads.drop_expired()
    composed.run_jobs()

    assert composed.store.services.count() == 1


def test_discarding_what_a_job_uses_is_refused_with_its_name(composed, uploads):
    job = composed.request_service()
    (upload,) = uploads.uploads().items

    with pytest.raises(Conflict, match=job.id):
        uploads.discard(upload.id)

    composed.run_jobs()
    assert composed.store.services.count() == 1
    assert composed.store.uploads.count() == 0


@pytest.mark.parametrize("state", [state for state in JobState if state in FINAL_JOB_STATES])
def test_discarding_is_allowed_when_the_job_is_over(composed, uploads, state):
    upload = composed.upload()
    composed.store.jobs.add(a_job(state=state, resources=(f"upload/{upload.id}",)))

    uploads.discard(upload.id)

    assert (composed.store.uploads.count(), composed.blobs.areas()) == (0, ())


def test_discarding_is_idempotent(composed, uploads):
    upload = composed.upload()

    uploads.discard(upload.id)
    uploads.discard(upload.id)

    assert (composed.store.uploads.count(), composed.blobs.areas()) == (0, ())
