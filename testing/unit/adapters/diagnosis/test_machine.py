# SPDX-License-Identifier: Apache-2.0
"""What doctor says of the processor, the memory, the clock and libvirt's speed."""

import types
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pycloud.adapters import diagnosis
from pycloud.adapters.diagnosis import hypervisor, machine
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.errors import StoreError
from pycloud.settings import Settings


def only(check, settings: Settings | None = None) -> Finding:
    (found,) = check(settings or Settings())
    return found


def test_processor_without_the_flag_is_told_to_switch_it_on() -> None:
    fix = machine._acceleration_fix(Path("/dev/null"), "flags : fpu sse")

    assert "VT-x or AMD-V" in fix


@pytest.mark.parametrize(("flag", "module"), [("svm", "kvm_amd"), ("vmx", "kvm_intel")])
def test_missing_device_is_made_by_loading_the_module(flag: str, module: str) -> None:
    assert machine._acceleration_fix(Path("/dev/no-such"), f"flags : {flag}") == (
        f"sudo modprobe {module}"
    )


def test_forbidden_device_needs_the_group() -> None:
    assert "--groups kvm" in machine._acceleration_fix(Path("/dev/null"), "flags : vmx")


@pytest.mark.parametrize(
    ("free_mib", "verdict"), [(4096, Verdict.OK), (1200, Verdict.WARN), (100, Verdict.FAIL)]
)
def test_memory_has_to_hold_a_guest(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, verdict: Verdict
) -> None:
    state = types.SimpleNamespace(available=free_mib << 20, total=8192 << 20)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: state)

    assert only(machine.memory, Settings(reserved_memory_mib=1024)).verdict is verdict


class Calendar:
    """Stands in for `datetime` with a year of choice."""

    def __init__(self, year: int) -> None:
        self._now = datetime(year, 3, 4, tzinfo=UTC)

    def now(self, _zone: object) -> datetime:
        return self._now


@pytest.mark.parametrize(
    ("year", "synchronised", "verdict"),
    [
        (1970, True, Verdict.FAIL),
        (2027, True, Verdict.OK),
        (2027, False, Verdict.WARN),
        (2027, None, Verdict.OK),
    ],
)
def test_clock_is_judged(
    monkeypatch: pytest.MonkeyPatch, year: int, synchronised: bool | None, verdict: Verdict
) -> None:
    monkeypatch.setattr(machine, "datetime", Calendar(year))
    monkeypatch.setattr(machine, "_is_synchronised", lambda: synchronised)

    assert only(machine.clock).verdict is verdict


def test_missing_qemu_img_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda _name: None)

    found = only(machine.image_tool)

    assert (found.verdict, "qemu-utils" in found.fix) == (Verdict.FAIL, True)


def test_libvirt_that_answers_from_its_memory_is_fine() -> None:
    assert hypervisor.probing(0.004, Path("/dev/null")).verdict is Verdict.OK


def test_libvirt_that_probes_anew_is_warned_of_with_the_fix() -> None:
    found = hypervisor.probing(4.2, Path("/dev/kvm"))

    assert found.verdict is Verdict.WARN
    assert found.fix == "sudo chown root:kvm /dev/kvm && sudo chmod 0660 /dev/kvm"


def test_fake_hypervisor_is_warned_of() -> None:
    assert only(hypervisor.examine, Settings(hypervisor="fake:")).verdict is Verdict.WARN


@pytest.mark.parametrize("error", [StoreError("gone"), OSError("gone"), ValueError("gone")])
def test_check_that_breaks_does_not_stop_the_others(error: Exception) -> None:
    def breaks(_settings: Settings):
        raise error
        yield

    def works(_settings: Settings):
        yield Finding(name="works", verdict=Verdict.OK, detail="")

    found = list(diagnosis.diagnose(Settings(), (("breaks", breaks), ("works", works))))

    assert [(one.name, one.verdict) for one in found] == [
        ("breaks", Verdict.FAIL),
        ("works", Verdict.OK),
    ]
