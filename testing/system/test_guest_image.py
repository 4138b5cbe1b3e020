# SPDX-License-Identifier: Apache-2.0
"""The demo Service VM and the variants that tests use, booted by plain QEMU."""

import hashlib
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.guest import BUILDER, GuestVariant, guest_image
from testing.guest.machine import PlainMachine, copy_on_write, running_machine

TEXT = b"a cloudlet is near\nand a cloud is far\n" * 500 + b"no line end here"
SAMPLE_BYTES = 4 * 65536
UPLOAD_MAX_BYTES = 32 << 20


@pytest.fixture(scope="module", params=["pc", "q35"])
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlainMachine]:
    """A booted demo guest, shared by the tests that only talk to it."""
    folder = tmp_path_factory.mktemp(request.param)
    disk = copy_on_write(guest_image(), folder / "disk.qcow2")
    with running_machine(disk, folder, options=("-machine", request.param)) as machine:
        machine.wait_for_service()
        yield machine


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A private disk of the demo guest."""
    return copy_on_write(guest_image(), tmp_path / "disk.qcow2")


def variant_disk(folder: Path, variant: GuestVariant, *, late_s: int = 8) -> Path:
    """Return a private disk of a guest variant."""
    return copy_on_write(guest_image(variant, late_s=late_s), folder / "disk.qcow2")


def entropy(data: bytes) -> float:
    """Return the bits of information per byte."""
    shares = (count / len(data) for count in Counter(data).values())
    return -sum(share * math.log2(share) for share in shares)


def build(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the builder with the options."""
    return subprocess.run(
        [sys.executable, str(BUILDER), *options],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_guest_tells_about_itself(machine: PlainMachine) -> None:
    about = machine.get("/").body
    assert about["hostname"] == "pycloud-demo"
    assert about["memory_mib"] > 128
    assert about["uptime_s"] > 0
    assert len(about["boot_id"]) == 36


def test_guest_answers_the_same_statistics_as_python_when_text_is_posted(
    machine: PlainMachine,
) -> None:
    answer = machine.post("/analyse", TEXT)
    assert answer.status == 200
    statistics = answer.body
    assert statistics.pop("time_taken_s") >= 0
    assert statistics.pop("entropy_bits_per_byte") == pytest.approx(entropy(TEXT), abs=1e-3)
    ranking = sorted(Counter(TEXT).items(), key=lambda item: (-item[1], item[0]))
    assert statistics == {
        "size_bytes": len(TEXT),
        "lines": TEXT.count(b"\n"),
        "words": len(TEXT.split()),
        "md5": hashlib.md5(TEXT, usedforsecurity=False).hexdigest(),
        "sha256": hashlib.sha256(TEXT).hexdigest(),
        "sampled_bytes": len(TEXT),
        "distinct_bytes": len(set(TEXT)),
        "top_bytes": [{"byte": byte, "count": count} for byte, count in ranking[:5]],
    }


def test_guest_computes_checksums_of_all_and_samples_the_histogram_when_the_file_is_large(
    machine: PlainMachine,
) -> None:
    data = random.Random(1).randbytes((5 << 20) + 123)
    statistics = machine.post("/analyse", data).body
    assert statistics["size_bytes"] == len(data)
    assert statistics["sha256"] == hashlib.sha256(data).hexdigest()
    assert statistics["md5"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert statistics["sampled_bytes"] == SAMPLE_BYTES
    assert statistics["entropy_bits_per_byte"] > 7.9


def test_guest_analyses_an_empty_file(machine: PlainMachine) -> None:
    statistics = machine.post("/analyse", b"").body
    assert statistics["size_bytes"] == 0
    assert statistics["sha256"] == hashlib.sha256().hexdigest()
    assert statistics["top_bytes"] == []


def test_guest_holds_as_much_memory_as_it_is_told(machine: PlainMachine) -> None:
    machine.get("/memory?touch_mib=0")
    free_before_mib = machine.get("/memory").body["available_mib"]
    answer = machine.get("/memory?touch_mib=50").body
    assert answer["held_mib"] == 50
    assert 45 <= free_before_mib - answer["available_mib"] <= 60
    assert machine.get("/memory?touch_mib=0").body["held_mib"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing-here", b"", 404),
        ("GET", "/analyse", b"", 405),
        ("POST", "/health", b"body", 405),
        ("POST", "/analyse", bytes(UPLOAD_MAX_BYTES + 1), 413),
        ("GET", "/memory?touch_mib=08", b"", 400),
        ("GET", "/memory?touch_mib=$(reboot)", b"", 400),
        ("GET", "/memory?touch_mib=100000", b"", 507),
    ],
)
def test_guest_refuses_with_a_reason(
    machine: PlainMachine, method: str, path: str, body: bytes, status: int
) -> None:
    answer = machine.post(path, body) if method == "POST" else machine.get(path)
    assert answer.status == status
    assert answer.body["error"]


def test_guest_runs_commands_that_are_typed_on_its_serial_port(machine: PlainMachine) -> None:
    printed = machine.type_on_serial("echo product=$((6 * 7))\n", until="product=42")
    assert "product=42" in printed


def test_guest_counts_visits_on_its_own_disk(tmp_path: Path) -> None:
    counts = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        disk = copy_on_write(guest_image(), folder / "disk.qcow2")
        with running_machine(disk, folder) as machine:
            machine.wait_for_service()
            counts.append([machine.get("/visits").body["visits"] for _ in range(2)])
    assert counts == [[1, 2], [1, 2]]


def test_guest_remembers_visits_and_has_a_new_boot_id_when_it_boots_again(
    disk: Path, tmp_path: Path
) -> None:
    boots = []
    for name in ("first", "again"):
        with running_machine(disk, tmp_path / name) as machine:
            machine.wait_for_service()
            visits = machine.get("/visits").body["visits"]
            boots.append((visits, machine.get("/").body["boot_id"]))
    assert [visits for visits, _ in boots] == [1, 2]
    assert boots[0][1] != boots[1][1]


@pytest.mark.parametrize("machine_type", ["pc", "q35"])
def test_guest_powers_off_cleanly_when_the_power_button_is_pressed(
    disk: Path, tmp_path: Path, machine_type: str
) -> None:
    options = ("-machine", machine_type, "-smp", "2")
    with running_machine(disk, tmp_path / "run", options=options) as machine:
        machine.wait_for_service()
        machine.monitor("system_powerdown")
        assert machine.wait_for_exit() == 0
        assert "power button, shutting down" in machine.serial_output
        assert "reboot: Power down" in machine.serial_output


def test_guest_gives_memory_back_when_a_balloon_inflates(disk: Path, tmp_path: Path) -> None:
    options = ("-device", "virtio-balloon-pci", "-device", "virtio-rng-pci")
    with running_machine(disk, tmp_path / "run", options=options) as machine:
        machine.wait_for_service()
        total_before_mib = machine.get("/memory").body["total_mib"]
        machine.inflate_balloon(to_mib=192)
        assert machine.get("/memory").body["total_mib"] == pytest.approx(
            total_before_mib - 64, abs=2
        )


def test_guest_serves_another_port_when_it_was_built_for_it(tmp_path: Path) -> None:
    disk = copy_on_write(guest_image(port=9090), tmp_path / "disk.qcow2")
    with running_machine(disk, tmp_path / "run", port=9090) as machine:
        machine.wait_for_service()
        assert machine.get("/health").body == {"status": "ok"}


def test_late_guest_answers_only_after_its_delay(tmp_path: Path) -> None:
    disk = variant_disk(tmp_path, GuestVariant.LATE, late_s=5)
    with running_machine(disk, tmp_path / "run") as machine:
        machine.wait_for_serial("service waits 5 s")
        assert not machine.answers()
        machine.wait_for_service()
        assert "service listens on port 8080" in machine.serial_output
        assert machine.get("/").body["uptime_s"] > 5


def test_never_guest_boots_and_gets_an_address_but_does_not_answer(tmp_path: Path) -> None:
    disk = variant_disk(tmp_path, GuestVariant.NEVER)
    with running_machine(disk, tmp_path / "run") as machine:
        machine.wait_for_serial("service will never start")
        machine.wait_for_serial("address 10.0.2.15 on eth0")
        assert not machine.answers()
        assert "service listens" not in machine.serial_output


def test_panic_guest_panics_visibly_and_tells_the_hypervisor(tmp_path: Path) -> None:
    disk = variant_disk(tmp_path, GuestVariant.PANIC)
    options = ("-device", "pvpanic", "-action", "panic=none")
    with running_machine(disk, tmp_path / "run", options=options) as machine:
        event = machine.wait_for_event("GUEST_PANICKED")
        assert event["data"]["action"] == "run"
        machine.wait_for_serial("end Kernel panic - not syncing")
        assert machine.monitor("query-status")["status"] == "running"


def test_panic_loop_guest_resets_after_its_panic(tmp_path: Path) -> None:
    disk = variant_disk(tmp_path, GuestVariant.PANIC_LOOP)
    with running_machine(disk, tmp_path / "run", options=("-no-reboot",)) as machine:
        assert machine.wait_for_exit() == 0
        assert "Kernel panic - not syncing" in machine.serial_output


def test_builder_makes_the_same_bytes_when_it_runs_again(tmp_path: Path) -> None:
    output = tmp_path / "again.qcow2"
    done = build(f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == guest_image().read_bytes()
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    "option", ["--port=0", "--port=65536", "--name=A_b", "--late-s=-1", "--name=x;reboot"]
)
def test_builder_refuses_an_option_and_keeps_the_old_image(tmp_path: Path, option: str) -> None:
    output = tmp_path / "guest.qcow2"
    output.write_bytes(b"old")
    done = build(f"--output={output}", option)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert output.read_bytes() == b"old"


def test_builder_tells_what_to_do_when_packages_are_out_of_reach(tmp_path: Path) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.write_bytes(b"")
    done = build(f"--output={tmp_path / 'guest.qcow2'}", f"--cache={not_a_folder / 'cache'}")
    assert done.returncode == 1
    assert "cannot make the cache folder" in done.stderr
    assert list(tmp_path.iterdir()) == [not_a_folder]
