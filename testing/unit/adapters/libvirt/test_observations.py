# SPDX-License-Identifier: Apache-2.0
"""What is read out of the host and of QEMU's words."""

from pathlib import Path

import pytest

from pycloud.adapters.libvirt.bridge_ports import port_name
from pycloud.adapters.libvirt.capabilities import acceleration, dotted, version_tuple
from pycloud.adapters.libvirt.domains import cloudlet_mark
from pycloud.adapters.libvirt.monitor import LISTENING, UserConnection, parse_connections
from pycloud.adapters.libvirt.neighbours import known_address
from pycloud.adapters.libvirt.ram_files import make_ram_file, prepare_private_mapping
from pycloud.core.model.identifiers import DomainId
from pycloud.errors import StateUnusable

USERNET = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]   31       127.0.0.1 20001       10.0.2.15  8080     0     0
  TCP[HOST_FORWARD]  29         0.0.0.0 20001       10.0.2.15  8080     0     0
  UDP[236 sec]       30       10.0.2.15    68        10.0.2.2    67     0     0
"""


def test_connections_are_read_from_what_qemu_prints():
    connections = parse_connections(USERNET)

    assert connections == (
        UserConnection(state="ESTABLISHED", host_port=20001, guest_port=8080),
        UserConnection(state=LISTENING, host_port=20001, guest_port=8080),
    )


@pytest.mark.parametrize(
    ("device_exists", "flags", "architecture", "kind"),
    [
        (True, "fpu vmx sse", "x86_64", "kvm"),
        (True, "fpu svm sse", "x86_64", "kvm"),
        (True, "fpu sse", "x86_64", "tcg"),
        (False, "fpu vmx", "x86_64", "tcg"),
        (True, "", "aarch64", "kvm"),
    ],
)
def test_acceleration_is_kvm_only_when_a_guest_would_run(
    tmp_path, device_exists, flags, architecture, kind
):
    device = tmp_path / "kvm"
    if device_exists:
        device.touch()

    found = acceleration(device=device, cpu_info=f"flags: {flags}", architecture=architecture)

    assert found.kind == kind
    assert str(device) in found.reason


ARP_TABLE = """IP address       HW type     Flags       HW address            Mask     Device
192.0.2.9        0x1         0x0         52:54:00:00:77:77     *        br0
192.0.2.77       0x1         0x2         52:54:00:00:77:77     *        br0
192.0.2.78       0x1         0x2         52:54:00:00:77:78     *        br0
"""


def test_address_is_that_of_the_station_once_it_answered():
    assert known_address("52:54:00:00:77:77".upper(), table=ARP_TABLE) == "192.0.2.77"
    assert known_address("52:54:00:00:00:00", table=ARP_TABLE) is None


def test_port_on_a_bridge_has_a_name_that_the_kernel_takes():
    names = {port_name(DomainId(f"{number}1111111-2222-4333-8444-555555555555")) for number in "12"}

    assert len(names) == 2
    assert all(len(name) <= 15 for name in names)


def test_versions_are_written_and_compared_as_numbers():
    assert dotted(7_002_022) == "7.2.22"
    assert version_tuple("10.0.1") > version_tuple("8.2.0")


def test_cloudlets_with_other_data_have_other_marks(tmp_path):
    assert cloudlet_mark(tmp_path) == cloudlet_mark(Path(str(tmp_path) + "/./"))
    assert cloudlet_mark(tmp_path) != cloudlet_mark(tmp_path / "other")


def test_ram_file_takes_no_room_when_it_is_made(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(b"from an earlier attempt")

    make_ram_file(path, memory_mib=64)

    status = path.stat()
    assert (status.st_size, status.st_blocks) == (64 << 20, 0)
    assert status.st_mode & 0o777 == 0o600


def test_stored_ram_is_unusable_when_its_size_is_not_the_guests(tmp_path):
    path = tmp_path / "ram"
    make_ram_file(path, memory_mib=2)

    with pytest.raises(StateUnusable):
        prepare_private_mapping(path, memory_mib=3)


def test_stored_ram_can_be_opened_by_its_owner_once_prepared(tmp_path):
    path = tmp_path / "ram"
    make_ram_file(path, memory_mib=1)
    path.chmod(0o444)

    prepare_private_mapping(path, memory_mib=1)

    assert path.stat().st_mode & 0o777 == 0o600
