# SPDX-License-Identifier: Apache-2.0
"""libvirt and QEMU: reachable, how new, how fast to answer, and fit for instant starts."""

import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pycloud.adapters.diagnosis.machine import KVM_DEVICE
from pycloud.adapters.libvirt.capabilities import read_facts
from pycloud.adapters.libvirt.connection import START_TIMEOUT_S, Connection
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.core.model.fleet import HypervisorFacts
from pycloud.errors import HypervisorError, HypervisorUnavailable
from pycloud.settings import Settings

_SLOW_PROBE_S = 1.0
"""A cached answer takes 1-10 ms; libvirt that probes QEMU anew takes about 4 s."""
_SYSTEM_SOCKETS = (
    Path("/run/libvirt/libvirt-sock"),
    Path("/run/libvirt/virtqemud-sock"),
)


def examine(settings: Settings) -> Iterator[Finding]:
    """Say everything about the hypervisor of the settings."""
    if settings.hypervisor.startswith("fake:"):
        yield Finding(
            name="hypervisor",
            verdict=Verdict.WARN,
            detail="pycloud.hypervisor = fake: only pretends to run guests",
            fix="set pycloud.hypervisor = qemu:///session",
        )
        return
    connection = Connection(settings.hypervisor)
    try:
        facts = read_facts(
            connection,
            cpu_model=settings.cpu_model,
            translation_cache_mib=settings.emulator_tb_mib,
        )
        yield from _of(connection, facts)
    except HypervisorUnavailable as exc:
        yield Finding(
            name="libvirt",
            verdict=Verdict.FAIL,
            detail=exc.message,
            fix=_reach_fix(settings.hypervisor),
        )
    except HypervisorError as exc:
        yield Finding(
            name="libvirt",
            verdict=Verdict.FAIL,
            detail=f"{settings.hypervisor} answers, but cannot run guests: {exc.message}",
            fix=_emulator_fix(),
        )
    finally:
        connection.close()


def _of(connection: Connection, facts: HypervisorFacts) -> Iterator[Finding]:
    yield Finding(
        name="libvirt",
        verdict=Verdict.OK,
        detail=f"{facts.libvirt_version} at {facts.uri}, as {psutil.Process().username()}",
    )
    yield Finding(
        name="QEMU",
        verdict=Verdict.OK,
        detail=f"{facts.emulator_version} for {facts.architecture}; new guests get machine"
        f" {facts.machine}, processor {facts.cpu_model}",
    )
    yield probing(_probe_time_s(connection, facts), KVM_DEVICE)
    if facts.instant_start:
        detail = "services start from privately mapped memory, in a fraction of a second"
        yield Finding(name="instant start", verdict=Verdict.OK, detail=detail)
    else:
        yield Finding(
            name="instant start",
            verdict=Verdict.WARN,
            detail=f"QEMU {facts.emulator_version} cannot do it; services start from saved files",
            fix="install QEMU 4.0 or later",
        )


def probing(duration_s: float, device: Path) -> Finding:
    """Judge how long libvirt takes to say again what it has said just now."""
    if duration_s < _SLOW_PROBE_S:
        return Finding(
            name="libvirt answers",
            verdict=Verdict.OK,
            detail=f"in {1000 * duration_s:.0f} ms when asked again",
        )
    detail = (
        f"only after {duration_s:.1f} s, each time: it probes QEMU anew, so every start takes"
        " that much longer"
    )
    if _is_root_only(device):
        detail += f"; {device} is there but only root may open it"
    return Finding(
        name="libvirt answers",
        verdict=Verdict.WARN,
        detail=detail,
        fix=f"sudo chown root:kvm {device} && sudo chmod 0660 {device}",
    )


def _probe_time_s(connection: Connection, facts: HypervisorFacts) -> float:
    """Time a question that was answered before."""

    def ask(handle: Any) -> float:  # Any: libvirt ships no types.
        kind = "kvm" if facts.accelerator == "kvm" else "qemu"
        begin_s = time.monotonic()
        handle.getDomainCapabilities(None, facts.architecture, facts.machine, kind, 0)
        return time.monotonic() - begin_s

    connection.run(ask, timeout_s=START_TIMEOUT_S)
    return connection.run(ask, timeout_s=START_TIMEOUT_S)


def _is_root_only(device: Path) -> bool:
    try:
        status = device.stat()
    except OSError:
        return False
    return stat.S_IMODE(status.st_mode) & 0o066 == 0 and status.st_uid == 0


def _reach_fix(uri: str) -> str:
    if not any(
        shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
        for name in ("virtqemud", "libvirtd")
    ):
        return "sudo apt-get install --yes libvirt-daemon-system qemu-system-x86"
    if uri == "qemu:///system":
        if any(path.exists() and not os.access(path, os.W_OK) for path in _SYSTEM_SOCKETS):
            return "sudo usermod --append --groups libvirt $USER   # then log in again"
        return "sudo systemctl enable --now libvirtd"
    return f"virsh --connect {uri} version   # says more"


def _emulator_fix() -> str:
    packages = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
    return f"sudo apt-get install --yes {packages.get(os.uname().machine, 'qemu-system')}"
