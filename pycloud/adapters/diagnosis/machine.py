# SPDX-License-Identifier: Apache-2.0
"""The machine itself: processor, memory, clock, and the tool that converts images."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pycloud.adapters.libvirt.capabilities import acceleration as chosen_acceleration
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.settings import Settings

KVM_DEVICE = Path("/dev/kvm")
_MIB = 1024 * 1024
_TOOL_TIMEOUT_S = 10.0
_SMALL_GUEST_MIB = 256
_BUILT_IN_YEAR = 2026
"""No clock that is right shows an earlier year to this program."""


def acceleration(_settings: Settings) -> Iterator[Finding]:
    """Say whether guests run on the processor itself, and why not."""
    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    chosen = chosen_acceleration(
        device=KVM_DEVICE, cpu_info=cpu_info, architecture=os.uname().machine
    )
    if chosen.kind == "kvm":
        yield Finding(name="acceleration", verdict=Verdict.OK, detail=f"KVM: {chosen.reason}")
        return
    yield Finding(
        name="acceleration",
        verdict=Verdict.WARN,
        detail=f"TCG, guests are emulated and several times slower: {chosen.reason}",
        fix=_acceleration_fix(KVM_DEVICE, cpu_info),
    )


def _acceleration_fix(device: Path, cpu_info: str) -> str:
    flags = set(cpu_info.split())
    if not flags & {"vmx", "svm"} and os.uname().machine == "x86_64":
        return (
            "switch on VT-x or AMD-V in the firmware; inside a virtual machine, nested"
            " virtualisation on its host"
        )
    if not device.exists():
        return f"sudo modprobe {'kvm_amd' if 'svm' in flags else 'kvm_intel'}"
    return "sudo usermod --append --groups kvm $USER   # then log in again"


def image_tool(_settings: Settings) -> Iterator[Finding]:
    """Say which qemu-img converts images."""
    if shutil.which("qemu-img") is None:
        yield Finding(
            name="qemu-img",
            verdict=Verdict.FAIL,
            detail="is not installed; no disk image can be added",
            fix="sudo apt-get install --yes qemu-utils",
        )
        return
    version = tool_output(["qemu-img", "--version"]).splitlines()
    yield Finding(
        name="qemu-img", verdict=Verdict.OK, detail=version[0] if version else "is installed"
    )


def memory(settings: Settings) -> Iterator[Finding]:
    """Say how much memory guests can have now."""
    state = psutil.virtual_memory()
    free_mib, total_mib = state.available // _MIB, state.total // _MIB
    for_guests_mib = free_mib - settings.reserved_memory_mib
    detail = (
        f"{free_mib} of {total_mib} MiB are free; {max(for_guests_mib, 0)} MiB of that for guests"
        f" (pycloud.reserved_memory_mib = {settings.reserved_memory_mib})"
    )
    if for_guests_mib >= _SMALL_GUEST_MIB:
        yield Finding(name="memory", verdict=Verdict.OK, detail=detail)
        return
    # What is promised to guests counts all memory, so a start is not refused for this.
    yield Finding(
        name="memory",
        verdict=Verdict.WARN if free_mib >= _SMALL_GUEST_MIB else Verdict.FAIL,
        detail=detail + "; a small guest does not fit",
        fix="end what uses the memory (ps aux --sort=-rss | head), or lower"
        " pycloud.reserved_memory_mib",
    )


def clock(_settings: Settings) -> Iterator[Finding]:
    """Say whether the time can be right: certificates, leases and logs depend on it."""
    now = datetime.now(UTC)
    shown = now.strftime("%Y-%m-%d %H:%M UTC")
    if now.year < _BUILT_IN_YEAR:
        yield Finding(
            name="clock",
            verdict=Verdict.FAIL,
            detail=f"it is {shown}, they say; that is long over",
            fix="sudo timedatectl set-ntp true   # or: sudo date --set 'YYYY-MM-DD HH:MM:SS'",
        )
        return
    match _is_synchronised():
        case True:
            yield Finding(name="clock", verdict=Verdict.OK, detail=f"{shown}, kept by NTP")
        case False:
            yield Finding(
                name="clock",
                verdict=Verdict.WARN,
                detail=f"{shown}, but nobody keeps it right",
                fix="sudo timedatectl set-ntp true",
            )
        case None:
            yield Finding(
                name="clock",
                verdict=Verdict.OK,
                detail=f"{shown}; whether NTP keeps it is not known without systemd",
            )


def _is_synchronised() -> bool | None:
    """Return whether NTP keeps the clock, None where systemd does not run to say so."""
    if shutil.which("timedatectl") is None or not Path("/run/systemd/system").is_dir():
        return None
    said = tool_output(["timedatectl", "show", "--property=NTPSynchronized", "--value"]).strip()
    return {"yes": True, "no": False}.get(said)


def tool_output(command: list[str]) -> str:
    """Return what a tool prints, "" if it fails or hangs."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            check=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
