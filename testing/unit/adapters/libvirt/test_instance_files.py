# SPDX-License-Identifier: Apache-2.0
"""The files of one guest: made, bounded, removed, and never made by looking."""

import errno

import pytest

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt.disks import InstanceFiles
from pycloud.core.model.identifiers import InstanceId
from pycloud.errors import HypervisorError, InsufficientStorage, InvalidInput
from testing.factories import a_disk

OWNER = InstanceId("one")


@pytest.fixture
def data(tmp_path):
    return DataDirectory(tmp_path)


@pytest.fixture
def files(data):
    return InstanceFiles(data, tool_timeout_s=60)


@pytest.fixture
def disk(data):
    disk = a_disk()
    data.blob_path(disk.blob.id).write_bytes(b"content")
    return disk


def test_disk_is_an_empty_layer_that_names_no_other_file(files, disk):
    made = files.make_disk(OWNER, disk)

    header = made.overlay.read_bytes()
    assert header[:4] == b"QFI\xfb"
    assert int.from_bytes(header[8:16], "big") == 0
    assert int.from_bytes(header[24:32], "big") == disk.virtual_size_bytes
    assert made.overlay.stat().st_mode & 0o777 == 0o600
    assert files.owners() == (OWNER,)


def test_disk_is_refused_when_a_layer_is_missing(files):
    with pytest.raises(HypervisorError):
        files.make_disk(OWNER, a_disk())

    assert files.owners() == ()


def test_disk_replaces_what_an_earlier_attempt_left(files, disk, data):
    target = data.root / "elsewhere"
    target.write_bytes(b"untouched")
    (data.instance_dir(OWNER) / "disk.qcow2").symlink_to(target)

    files.make_disk(OWNER, disk)

    assert target.read_bytes() == b"untouched"


def test_full_disk_is_named_as_such(files, disk, monkeypatch):
    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.make_disk(OWNER, disk)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)

    with pytest.raises(InsufficientStorage):
        files.make_disk(OWNER, disk)


def test_looking_at_a_guest_leaves_nothing_behind(files):
    assert files.serial_tail(OWNER, limit_bytes=10) == b""
    files.remove(OWNER)

    assert files.owners() == ()


def test_owner_cannot_lead_out_of_the_directory(files):
    with pytest.raises(InvalidInput):
        files.remove(InstanceId("../blobs"))


def test_serial_output_is_cut_back_and_its_end_is_kept(files, data):
    log = data.instance_dir(OWNER) / "serial.log"
    log.write_bytes(b"x" * (5 << 20) + b"the end")

    files.trim_serial_logs()

    with log.open("ab") as stream:
        stream.write(b", and more")
    assert log.stat().st_size == len(b", and more")
    assert files.serial_tail(OWNER, limit_bytes=17) == b"the end, and more"
    assert files.serial_tail(OWNER, limit_bytes=4) == b"more"


def test_serial_output_of_usual_length_is_left_alone(files, data):
    log = data.instance_dir(OWNER) / "serial.log"
    log.write_bytes(b"x" * 1000)

    files.trim_serial_logs()

    assert log.stat().st_size == 1000
