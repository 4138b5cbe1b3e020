# SPDX-License-Identifier: Apache-2.0
"""The image gate with real images, made by qemu-img, and a real qemu-img behind it."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.images import QemuImages
from pycloud.core.model.catalog import BlobRef, DiskFormat, StoredDisk
from pycloud.core.model.fleet import StorageFacts
from pycloud.errors import (
    CloudletError,
    ImageRefused,
    InsufficientStorage,
    JobCancelled,
    NotFound,
    QuotaExceeded,
    ToolFailed,
)
from pycloud.settings import Settings

MIB = 1 << 20
GIB = 1 << 30
AREA = "area"


class Workshop:
    """Makes images in a staging area and looks into disks."""

    def __init__(self, tmp_path):
        self.outside = tmp_path
        self.data = DataDirectory(tmp_path / "data, with: odd 'name'")
        self.blobs = DiskBlobs(self.data)
        self.settings = Settings(max_image_gib=2)
        self.images = QemuImages(self.data, self.blobs, self.settings)

    def path(self, name="image"):
        return self.data.staged_path(AREA, name)

    def staged(self):
        return sorted(path.name for path in self.data.area_path(AREA).iterdir())

    def create_encrypted(self, *options, image_format="qcow2"):
        # To choose the cost of a key, qemu-img times the processor, and gives up when it
        # cannot do so well enough, as on virtual machines, every other time.
        secret = ("--object", "secret,id=key,data=123456")
        for attempt in range(40):
            try:
                self.create(*secret, *options, image_format=image_format)
            except subprocess.CalledProcessError:
                if attempt == 39:
                    raise
            else:
                return

    def create(self, *options, name="image", size="64M", image_format="qcow2"):
        run("qemu-img", "create", "-q", "-f", image_format, *options, "--", self.path(name), size)

    def write(self, *commands, name="image", image_format="qcow2"):
        arguments = [part for command in commands for part in ("-c", command)]
        run("qemu-io", "-f", image_format, *arguments, self.path(name))

    def pattern(self, blob: BlobRef, start, length):
        """Return bytes of a stored disk as a guest would read them."""
        raw = self.outside / "raw"
        run(
            "qemu-img",
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            "--",
            self.data.blob_path(blob.id),
            raw,
        )
        with raw.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)


def run(*argv):
    subprocess.run([str(part) for part in argv], check=True, timeout=120, stdout=subprocess.DEVNULL)


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def refusal_of(workshop, **arguments):
    with pytest.raises(ImageRefused) as refusal:
        workshop.images.inspect(AREA, "image", **arguments)
    return refusal.value.reason


def test_inspect_refuses_when_an_image_has_a_backing_file(workshop):
    (workshop.outside / "secret").write_bytes(bytes(MIB))
    workshop.create("-b", workshop.outside / "secret", "-F", "raw")

    assert refusal_of(workshop) == "backing_file"


def test_inspect_refuses_when_an_image_has_an_external_data_file(workshop):
    workshop.create("-o", f"data_file={workshop.outside}/data,data_file_raw=on")

    assert refusal_of(workshop) == "data_file"


@pytest.mark.parametrize(
    "options",
    [
        "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
        "encrypt.format=aes,encrypt.key-secret=key",
    ],
)
def test_inspect_refuses_when_an_image_is_encrypted(workshop, options):
    workshop.create_encrypted("-o", options)

    assert refusal_of(workshop) == "encryption"


def test_inspect_refuses_when_an_encrypted_volume_claims_to_be_raw(workshop):
    workshop.create_encrypted("-o", "key-secret=key,iter-time=10", image_format="luks")
    os.truncate(workshop.path(), -(-workshop.path().stat().st_size // 512) * 512)

    assert refusal_of(workshop, declared=DiskFormat.RAW) == "format"


def test_inspect_refuses_when_an_image_has_internal_snapshots(workshop):
    workshop.create()
    run("qemu-img", "snapshot", "-c", "before", workshop.path())

    assert refusal_of(workshop) == "snapshots"


def test_inspect_passes_when_the_snapshots_were_deleted(workshop):
    workshop.create()
    run("qemu-img", "snapshot", "-c", "before", workshop.path())
    run("qemu-img", "snapshot", "-d", "before", workshop.path())

    facts = workshop.images.inspect(AREA, "image")

    assert facts.virtual_size_bytes == 64 * MIB


def test_inspect_refuses_when_an_image_has_bitmaps(workshop):
    workshop.create()
    run("qemu-img", "bitmap", "--add", workshop.path(), "changes")

    assert refusal_of(workshop) == "bitmaps"


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx", "vpc", "qed"])
def test_inspect_refuses_when_another_format_claims_to_be_raw(workshop, image_format):
    workshop.create(image_format=image_format)
    os.truncate(workshop.path(), -(-workshop.path().stat().st_size // 512) * 512)

    assert refusal_of(workshop, declared=DiskFormat.RAW) == "format"


def test_inspect_refuses_when_a_fixed_hyper_v_disk_claims_to_be_raw(workshop):
    workshop.create("-o", "subformat=fixed", size="4M", image_format="vpc")

    assert refusal_of(workshop, declared=DiskFormat.RAW) == "format"


@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx", "raw"])
def test_inspect_refuses_when_a_format_is_not_declared(workshop, image_format):
    workshop.create(image_format=image_format)

    assert refusal_of(workshop) == "undeclared_format"


def test_inspect_refuses_when_an_image_is_larger_than_allowed(workshop):
    workshop.create(size="3G")

    with pytest.raises(QuotaExceeded) as refusal:
        workshop.images.inspect(AREA, "image")

    assert refusal.value.limit_bytes == 2 * GIB


def test_inspect_refuses_when_a_file_is_larger_than_allowed(workshop):
    workshop.create(size="3G", image_format="raw")

    with pytest.raises(QuotaExceeded):
        workshop.images.inspect(AREA, "image", declared=DiskFormat.RAW)


def test_inspect_refuses_when_a_download_broke_off(workshop):
    workshop.create()
    workshop.write("write -P 1 0 8M")
    os.truncate(workshop.path(), workshop.path().stat().st_size - MIB)

    assert refusal_of(workshop) == "truncated"


@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "preallocation=metadata",
        "preallocation=full",
    ],
)
def test_normalise_keeps_the_content_when_the_image_is_unusual(workshop, options):
    workshop.create("-o", options)
    workshop.write("write -P 7 0 3M", "write -P 9 20M 64k", "write -z 40M 1M", "write -P 3 63M 1M")

    disk = workshop.images.normalise(AREA, "image", "fresh")

    assert disk.virtual_size_bytes == 64 * MIB
    assert workshop.pattern(disk.blob, 3 * MIB - 2, 4) == b"\7\7\0\0"
    assert workshop.pattern(disk.blob, 20 * MIB, 2) == b"\t\t"
    assert workshop.pattern(disk.blob, 64 * MIB - 2, 9) == b"\3\3"


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_normalise_unpacks_when_clusters_are_compressed(workshop, compression):
    workshop.create(name="plain")
    workshop.write("write -P 7 0 20M", name="plain")
    run(
        "qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2",
        "-o", f"compression_type={compression}", "--", workshop.path("plain"), workshop.path(),
    )  # fmt: skip

    disk = workshop.images.normalise(AREA, "image", "fresh")

    assert disk.blob.size_bytes > 20 * MIB > workshop.path().stat().st_size
    assert workshop.pattern(disk.blob, 20 * MIB - 2, 4) == b"\7\7\0\0"


def test_normalise_takes_a_raw_disk_when_it_is_declared(workshop):
    workshop.create(image_format="raw")
    workshop.write("write -P 5 1M 1M", image_format="raw")

    disk = workshop.images.normalise(AREA, "image", "fresh", declared=DiskFormat.RAW)

    assert workshop.pattern(disk.blob, 2 * MIB - 2, 4) == b"\5\5\0\0"


def test_normalise_gives_equal_content_when_the_images_are_equal(workshop):
    workshop.create()
    workshop.write("write -P 5 1M 1M")

    first = workshop.images.normalise(AREA, "image", "fresh")
    second = workshop.images.normalise(AREA, "image", "fresh")

    assert first == second


def test_normalise_reports_up_to_the_whole_disk(workshop):
    workshop.create()
    workshop.write("write -P 5 0 64M")
    seen = []

    workshop.images.normalise(
        AREA, "image", "fresh", report=lambda done, total: seen.append((done, total))
    )

    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (64 * MIB, 64 * MIB)


def test_normalise_leaves_nothing_when_it_is_cancelled(workshop):
    workshop.create()
    workshop.write("write -P 5 0 64M")

    def cancel(done, total):
        raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        workshop.images.normalise(AREA, "image", "fresh", report=cancel)

    assert workshop.staged() == ["image"]
    assert list(workshop.blobs.stored()) == []
    assert not children()


def test_normalise_leaves_nothing_when_it_is_cancelled_at_the_very_end(workshop):
    workshop.create()
    workshop.write("write -P 5 0 1M")

    def cancel_the_hashing(done, total):
        if done == total and not children():
            raise JobCancelled("asked for")

    with pytest.raises(JobCancelled):
        workshop.images.normalise(AREA, "image", "fresh", report=cancel_the_hashing)

    assert workshop.staged() == ["image"]


def children(of=None):
    """Return the process ids and names of the tools that a process, or this one, has started."""
    listed = subprocess.run(
        ["ps", "--ppid", str(of or os.getpid()), "-o", "pid=,comm="],
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())
    tools = {"qemu-img", "prlimit", "nice", "setpriv"}
    return {process_id: name for process_id, name in found.items() if name in tools}


def test_normalise_leaves_nothing_when_the_disk_is_full(workshop, monkeypatch):
    workshop.create()
    message = "qemu-img: error while writing at byte 6291456: No space left on device"
    pretend_qemu_img(
        workshop, monkeypatch, f'{TARGET}; echo partial > "$target"; echo {message} >&2'
    )

    with pytest.raises(InsufficientStorage):
        workshop.images.normalise(AREA, "image", "fresh")

    assert workshop.staged() == ["image"]
    assert list(workshop.blobs.stored()) == []


def test_normalise_does_not_begin_when_there_is_no_room(workshop, monkeypatch):
    workshop.create()
    workshop.write("write -P 5 0 8M")
    monkeypatch.setattr(
        DiskBlobs, "storage", lambda self: StorageFacts(total_bytes=GIB, free_bytes=4 * MIB)
    )

    with pytest.raises(InsufficientStorage) as failure:
        workshop.images.normalise(AREA, "image", "fresh")

    assert failure.value.needed_bytes == 8 * MIB


TARGET = "for target; do :; done"
"""Takes the last word of a command line, in which qemu-img is told where to write."""


def pretend_qemu_img(workshop, monkeypatch, commands):
    """Put a script before the real tool; what it prints was seen of the real one."""
    directory = workshop.outside / "bin"
    directory.mkdir()
    (directory / "qemu-img").write_text(f"#!/bin/sh\n{commands}\nexit 1\n")
    (directory / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_normalise_refuses_when_the_tool_writes_more_than_the_disk_holds(workshop, monkeypatch):
    workshop.create()
    pretend_qemu_img(
        workshop, monkeypatch, f'{TARGET}; exec dd if=/dev/zero of="$target" bs=1M count=99'
    )

    with pytest.raises(ImageRefused) as refusal:
        workshop.images.normalise(AREA, "image", "fresh")

    assert refusal.value.reason == "geometry"
    assert workshop.staged() == ["image"]


def test_flatten_merges_the_layers_though_no_header_names_the_lower_one(workshop):
    workshop.create(name="base")
    workshop.write("write -P 1 0 2M", name="base")
    base = workshop.images.normalise(AREA, "base", "fresh")
    workshop.create(name="delta")
    workshop.write("write -P 2 1M 2M", name="delta")
    delta = workshop.blobs.adopt(AREA, "delta")
    disk = StoredDisk(blob=delta, backing=base.blob, virtual_size_bytes=64 * MIB)

    workshop.images.flatten(disk, AREA, "flat")

    flat = workshop.blobs.adopt(AREA, "flat")
    assert workshop.pattern(flat, MIB - 2, 4) == b"\1\1\2\2"
    assert workshop.pattern(flat, 3 * MIB - 2, 4) == b"\2\2\0\0"


def test_flatten_fails_when_a_layer_is_missing(workshop):
    workshop.create()
    disk = workshop.images.normalise(AREA, "image", "fresh")
    workshop.blobs.remove(disk.blob.id)

    with pytest.raises(NotFound):
        workshop.images.flatten(disk, AREA, "flat")


def test_normalise_says_so_when_qemu_img_is_missing(workshop, monkeypatch):
    workshop.create()
    monkeypatch.setenv("PATH", str(workshop.outside))

    with pytest.raises(ToolFailed) as failure:
        workshop.images.normalise(AREA, "image", "fresh")

    assert "installed" in failure.value.message


def test_normalise_ends_the_tool_when_it_takes_too_long(workshop, monkeypatch):
    workshop.create()
    pretend_qemu_img(workshop, monkeypatch, "exec sleep 600")
    images = QemuImages(workshop.data, workshop.blobs, replace(workshop.settings, tool_timeout_s=1))

    with pytest.raises(ToolFailed) as failure:
        images.normalise(AREA, "image", "fresh")

    assert "tool_timeout_s" in failure.value.message
    assert workshop.staged() == ["image"]


def test_normalise_limits_the_tool_when_it_runs(workshop, monkeypatch):
    workshop.create()
    seen = workshop.outside / "limits"
    pretend_qemu_img(workshop, monkeypatch, f"cat /proc/self/limits > '{seen}'")

    with pytest.raises(ToolFailed):
        workshop.images.normalise(AREA, "image", "fresh")

    limits = {line[:26].strip(): line[26:].split()[0] for line in seen.read_text().splitlines()}
    assert int(limits["Max file size"]) < 70 * MIB
    assert int(limits["Max address space"]) == 2 * GIB
    assert int(limits["Max cpu time"]) == workshop.settings.tool_timeout_s


def slow_qemu_img(workshop, monkeypatch):
    """Let the real tool write 2 MiB a second, so that it can be caught in the middle."""
    real = shutil.which("qemu-img")
    pretend_qemu_img(workshop, monkeypatch, f'shift; exec {real} convert -r 2M "$@"')


def test_attempt_that_stood_still_and_the_one_in_its_place_do_not_meet(workshop, monkeypatch):
    workshop.create()
    workshop.write("write -P 5 1M 4M")
    slow_qemu_img(workshop, monkeypatch)
    reports, second = [], []

    def stand_still(done, total):
        reports.append(done)
        # The first report comes before the tool runs, the second one while it does.
        if len(reports) == 2:
            assert children()
            second.append(workshop.images.normalise(AREA, "image", "fresh"))

    with pytest.raises(CloudletError):
        workshop.images.normalise(AREA, "image", "fresh", report=stand_still)

    (disk,) = second
    workshop.blobs.verify(disk.blob.id)
    assert workshop.pattern(disk.blob, 5 * MIB - 2, 4) == b"\5\5\0\0"
    assert [blob.id for blob in workshop.blobs.stored()] == [disk.blob.id]
    assert workshop.staged() == ["image"]


def test_normalise_removes_what_a_killed_attempt_left(workshop, monkeypatch):
    workshop.create()
    workshop.write("write -P 5 0 16M")
    slow_qemu_img(workshop, monkeypatch)
    killed_in_the_middle(workshop)
    assert len(workshop.staged()) == 2
    monkeypatch.undo()

    workshop.images.normalise(AREA, "image", "fresh")

    assert workshop.staged() == ["image"]


def test_server_that_is_killed_takes_its_tool_along(workshop, monkeypatch):
    workshop.create()
    workshop.write("write -P 5 0 64M")
    slow_qemu_img(workshop, monkeypatch)

    tool_id = killed_in_the_middle(workshop)

    wait_until(lambda: not Path(f"/proc/{tool_id}").exists())


def killed_in_the_middle(workshop):
    """Kill a server that converts the image; return the process id of its tool."""
    code = f"""if True:
        from pathlib import Path
        from pycloud.adapters.blobs import DiskBlobs
        from pycloud.adapters.data_directory import DataDirectory
        from pycloud.adapters.images import QemuImages
        from pycloud.settings import Settings
        data = DataDirectory(Path({str(workshop.data.root)!r}))
        QemuImages(data, DiskBlobs(data), Settings()).normalise({AREA!r}, "image", "fresh")
        """
    server = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: "qemu-img" in children(server.pid).values())
        (tool_id,) = children(server.pid)
        wait_until(lambda: len(workshop.staged()) == 2)
    finally:
        server.kill()
        server.wait()
    return tool_id


def wait_until(holds):
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
