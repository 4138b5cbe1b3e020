# SPDX-License-Identifier: Apache-2.0
"""Fake content store, images, packages, clock and probe behave like the real ones."""

import threading
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest

from pycloud.adapters.fakes import (
    Answer,
    FakeClock,
    FakeImages,
    FakePackages,
    FakeProbe,
    MemoryBlobs,
    fake_qcow2,
    fake_raw,
)
from pycloud.core.model.catalog import DiskFormat, Readiness, ServiceDraft, StoredDisk
from pycloud.core.model.identifiers import DomainId, ServiceId
from pycloud.core.ports import ProbeTarget, UnpackedPackage
from pycloud.errors import (
    BlobCorrupt,
    GuestFailed,
    ImageRefused,
    InsufficientStorage,
    InvalidInput,
    NotFound,
    PackageRefused,
    QuotaExceeded,
    ServiceNotReady,
)

PLENTY = 1 << 30


@pytest.fixture
def blobs():
    return MemoryBlobs()


def stage(blobs, content, *, name="file", offset_bytes=0, limit_bytes=PLENTY):
    return blobs.append(
        "area", name, BytesIO(content), offset_bytes=offset_bytes, limit_bytes=limit_bytes
    )


def staged(blobs, name="file"):
    with blobs.open_staged("area", name) as stream:
        return stream.read()


def test_append_cuts_what_lies_behind_when_the_offset_is_inside(blobs):
    stage(blobs, b"0123456789")

    written = stage(blobs, b"xy", offset_bytes=4)

    assert written == 2
    assert staged(blobs) == b"0123xy"


def test_append_refuses_a_hole_when_the_offset_is_behind_the_end(blobs):
    with pytest.raises(InvalidInput):
        stage(blobs, b"x", offset_bytes=1)


def test_append_keeps_what_was_there_when_the_limit_is_passed(blobs):
    stage(blobs, b"0123")

    with pytest.raises(QuotaExceeded):
        stage(blobs, b"456789", offset_bytes=4, limit_bytes=8)

    assert staged(blobs) == b"0123"


def test_append_removes_what_it_wrote_when_the_disk_is_full(blobs):
    blobs.set_free_bytes(100)

    with pytest.raises(InsufficientStorage):
        stage(blobs, b"x" * 101)

    assert blobs.storage().free_bytes == 100


def test_adopt_gives_one_blob_when_content_is_equal(blobs):
    stage(blobs, b"same", name="a")
    stage(blobs, b"same", name="b")

    first, second = blobs.adopt("area", "a"), blobs.adopt("area", "b")

    assert first == second
    assert list(blobs.stored()) == [first]


def test_adopt_fails_when_nothing_is_staged(blobs):
    with pytest.raises(NotFound):
        blobs.adopt("area", "file")


def test_discard_is_idempotent(blobs):
    stage(blobs, b"x")
    blobs.discard("area")

    blobs.discard("area")

    assert blobs.areas() == ()


def test_verify_notices_when_content_rots(blobs):
    ref = blobs.put(b"content")
    blobs.verify(ref.id)

    blobs.corrupt(ref.id)

    with pytest.raises(BlobCorrupt):
        blobs.verify(ref.id)


def test_append_refuses_when_a_name_is_a_path(blobs):
    with pytest.raises(InvalidInput):
        stage(blobs, b"x", name="../etc")


@pytest.mark.parametrize(
    ("content", "declared", "expected"),
    [
        (fake_qcow2(b"x", virtual_size_bytes=1 << 20), None, DiskFormat.QCOW2),
        (fake_qcow2(b"x"), DiskFormat.QCOW2, DiskFormat.QCOW2),
        (fake_raw(b"x"), DiskFormat.RAW, DiskFormat.RAW),
        (b"\0" * 1024, DiskFormat.RAW, DiskFormat.RAW),
    ],
)
def test_images_tell_the_format_when_the_header_is_good(blobs, content, declared, expected):
    stage(blobs, content)

    facts = FakeImages(blobs).inspect("area", "file", declared=declared)

    assert facts.format is expected
    assert facts.file_size_bytes == len(content)


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (b"", None),
        (b"VMDK and so on", None),
        (fake_raw(), None),
        (b"\0" * 1024, None),
        (fake_qcow2(), DiskFormat.RAW),
        (fake_raw(), DiskFormat.QCOW2),
        (fake_qcow2()[:20], None),
        (fake_qcow2()[:15] + b"\1" + fake_qcow2()[16:], None),
    ],
)
def test_images_refuse_when_the_header_is_bad(blobs, content, declared):
    stage(blobs, content)

    with pytest.raises(ImageRefused):
        FakeImages(blobs).inspect("area", "file", declared=declared)


def test_images_refuse_when_the_disk_is_too_large(blobs):
    stage(blobs, fake_qcow2(virtual_size_bytes=1 << 40))

    with pytest.raises(QuotaExceeded):
        FakeImages(blobs).inspect("area", "file")


def test_flatten_makes_an_image_that_passes_when_there_are_layers(blobs):
    images = FakeImages(blobs)
    disk = StoredDisk(
        blob=blobs.put(fake_qcow2(b"upper")),
        backing=blobs.put(fake_qcow2(b"lower")),
        virtual_size_bytes=1 << 20,
    )

    images.flatten(disk, "area", "flat")

    assert staged(blobs, "flat") == fake_qcow2(b"lowerupper", virtual_size_bytes=1 << 20)


def test_normalise_adopts_a_fresh_image_when_the_source_is_raw(blobs):
    stage(blobs, fake_raw(b"x" * 600))

    disk = FakeImages(blobs).normalise("area", "file", "fresh", declared=DiskFormat.RAW)

    assert disk.virtual_size_bytes == 1024
    assert disk.backing is None
    assert disk.blob in list(blobs.stored())
    assert blobs.staged_names("area") == ("file",)


@pytest.mark.parametrize("state", [None, "state"])
def test_package_comes_back_whole_when_unpacked(blobs, state):
    stage(blobs, b"disk\ncontent", name="disk")
    stage(blobs, b"state content", name="state")
    draft = ServiceDraft(
        id=ServiceId("speech"), port=8080, tags=("a", "b"), readiness=Readiness.TCP
    )
    packages = FakePackages(blobs)
    packages.pack("area", "package", content=UnpackedPackage(draft=draft, disk="disk", state=state))

    unpacked = packages.unpack("area", "package")

    assert unpacked.draft == draft
    assert staged(blobs, unpacked.disk) == b"disk\ncontent"
    assert (unpacked.state is None) == (state is None)


@pytest.mark.parametrize("content", [b"", b"not json\n", b"{}\n", b'{"service": {"id": 1}}\n'])
def test_package_is_refused_when_it_is_none(blobs, content):
    stage(blobs, content, name="package")

    with pytest.raises(PackageRefused):
        FakePackages(blobs).unpack("area", "package")


def test_package_is_refused_when_it_is_cut_short(blobs):
    stage(blobs, b"disk", name="disk")
    packages = FakePackages(blobs)
    content = UnpackedPackage(
        draft=ServiceDraft(id=ServiceId("s"), port=1), disk="disk", state=None
    )
    packages.pack("area", "package", content=content)
    stage(blobs, staged(blobs, "package")[:-1], name="package")

    with pytest.raises(PackageRefused):
        packages.unpack("area", "package")


def test_clock_moves_on_when_somebody_sleeps():
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))

    clock.sleep(90)

    assert clock.now() == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)
    assert clock.monotonic() == 90


def test_clock_keeps_monotonic_time_when_the_wall_clock_is_set_back():
    clock = FakeClock()
    clock.advance(5)

    clock.set(clock.now() - timedelta(days=1))

    assert clock.monotonic() == 5


TARGET = ProbeTarget(
    address="127.0.0.1", port=20000, readiness=Readiness.AUTO, domain_id=DomainId("d")
)


def test_probe_returns_when_the_service_is_ready():
    probe = FakeProbe(FakeClock())

    probe.wait(TARGET, timeout_s=5, is_alive=lambda: True)

    assert probe.targets() == (TARGET,)


def test_probe_gives_up_at_the_deadline_when_the_service_never_answers():
    clock = FakeClock()
    probe = FakeProbe(clock)
    probe.answer = Answer.NEVER

    with pytest.raises(ServiceNotReady):
        probe.wait(TARGET, timeout_s=5, is_alive=lambda: True)

    assert clock.monotonic() == 5


@pytest.mark.parametrize("answer", [Answer.GUEST_DIES, Answer.NEVER])
def test_probe_fails_when_the_guest_dies(answer):
    probe = FakeProbe(FakeClock())
    probe.answers[TARGET.port] = answer

    with pytest.raises(GuestFailed):
        probe.wait(TARGET, timeout_s=5, is_alive=lambda: False)


def test_probe_returns_when_a_held_service_is_let_go():
    probe = FakeProbe(FakeClock())
    probe.answer = Answer.HELD
    waiter = threading.Thread(
        target=probe.wait, args=(TARGET,), kwargs={"timeout_s": 5, "is_alive": lambda: True}
    )
    waiter.start()

    probe.let_go()

    waiter.join(timeout=10)
    assert not waiter.is_alive()
