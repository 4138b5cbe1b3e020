# SPDX-License-Identifier: Apache-2.0
"""A guest that writes while the disk under it is full."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycloud.core.machines import domain_id_of
from testing.guest import guest_image
from testing.serial_shell import run_in_guest
from testing.system.callers import Operator, require_right_checksums
from testing.system.cloudlet import Server, wait_until
from testing.system.full_disk import full_disk
from testing.system.own_daemon import own_daemon, server_on
from testing.system.own_mounts import small_disk

MIB = 1 << 20
DISK_MIB = 360
CONTENT = b"still here\n" * 500
DEADLINE_S = 60.0
WRITE = "dd if=/dev/urandom of=/dev/vda bs=1M seek=96 count=12 conv=fsync"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A cloudlet on a small disk, whose emulators see that disk, too."""
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    mount = small_disk(data_dir, DISK_MIB)
    with own_daemon() as runtime_dir, server_on(runtime_dir, tmp_path, mount) as server:
        yield server


def test_guest_waits_for_room_and_goes_on_when_its_disk_was_full(server: Server) -> None:
    operator = Operator(server.url, server.token)
    operator.add_service("demo", guest_image())
    instance = operator.start("demo")
    with ThreadPoolExecutor() as pool:
        with full_disk(server, but_bytes=2 * MIB):
            written = pool.submit(run_in_guest, domain_id_of(instance["id"]), WRITE)
            wait_until(
                lambda: len(server.log("guest_needs_disk_space")) > 3,
                DEADLINE_S,
                lambda: f"the guest does not wait: {server.log_text()}",
            )
            assert operator.instance(instance["id"])["state"] == "running"

        assert "status=0" in written.result(DEADLINE_S)
    require_right_checksums(instance["port"], CONTENT)
    assert operator.stop(instance["id"])["state"] == "stopped"
    server.require_agreement()
