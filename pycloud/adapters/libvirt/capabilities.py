# SPDX-License-Identifier: Apache-2.0
"""What this host's libvirt and QEMU can do, and which machine new guests are given.

KVM counts only if it can really run a guest: device, permission and processor flag.
Must not start a domain.
"""

import os
import re
import xml.etree.ElementTree as ET  # parses what libvirt says of itself
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycloud.adapters.libvirt.connection import START_TIMEOUT_S, Connection, LibvirtRefused
from pycloud.adapters.libvirt.domain_plan import ProcessOwner
from pycloud.adapters.libvirt.domain_xml import HOST_CPU
from pycloud.core.model.fleet import HypervisorFacts
from pycloud.errors import HypervisorError

INSTANT_START_SINCE = (4, 0, 0)
"""QEMU can leave shared RAM out of the state since this version."""
SEALED_RAM_SINCE = (8, 2, 0)
"""QEMU can map a read-only RAM file privately (`rom=off`) since this version."""
_EMULATOR_MIB = 64
"""What QEMU takes for itself, with some to spare: 41 MiB were seen of QEMU 7.2 at a first answer."""
_DEFAULT_MACHINES = {"x86_64": "pc", "aarch64": "virt"}
# The newest models whose every feature QEMU can also emulate come first.
_CPU_MODELS = {"x86_64": ("Nehalem", "qemu64"), "aarch64": ("cortex-a57",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """`kvm` or `tcg`, and why."""

    kind: str
    reason: str


def acceleration(*, device: Path, cpu_info: str, architecture: str) -> Acceleration:
    """Decide whether guests run on the processor itself."""
    if not device.exists():
        return Acceleration(kind="tcg", reason=f"{device} does not exist")
    if not os.access(device, os.R_OK | os.W_OK):
        return Acceleration(kind="tcg", reason=f"{device} may not be opened; join the group kvm")
    flags = set(re.findall(r"\b(?:vmx|svm)\b", cpu_info))
    if architecture == "x86_64" and not flags:
        return Acceleration(
            kind="tcg",
            reason=f"{device} exists, but the processor shows neither vmx nor svm",
        )
    return Acceleration(kind="kvm", reason=f"{device} is usable")


def read_facts(
    connection: Connection, *, cpu_model: str, translation_cache_mib: int
) -> HypervisorFacts:
    """Ask libvirt and the host. Raises HypervisorUnavailable, HypervisorError."""
    architecture = os.uname().machine
    accelerator = acceleration(
        device=Path("/dev/kvm"),
        cpu_info=Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"),
        architecture=architecture,
    )
    libvirt_version, emulator_version, capabilities = connection.run(
        lambda handle: (
            handle.getLibVersion(),
            handle.getVersion(),
            _domain_capabilities(handle, architecture, accelerator.kind),
        ),
        timeout_s=START_TIMEOUT_S,
    )
    root = ET.fromstring(capabilities)  # noqa: S314  # libvirt wrote it
    machine = root.findtext("machine")
    if machine is None:
        raise HypervisorError("libvirt does not say which machine type it gives to guests")
    version = dotted(emulator_version)
    return HypervisorFacts(
        uri=connection.uri,
        libvirt_version=dotted(libvirt_version),
        emulator_version=version,
        architecture=architecture,
        accelerator=accelerator.kind,
        accelerator_reason=accelerator.reason,
        machine=machine,
        cpu_model=_cpu_model(root, architecture, cpu_model),
        instant_start=version_tuple(version) >= INSTANT_START_SINCE,
        overhead_mib=_EMULATOR_MIB + (translation_cache_mib if accelerator.kind == "tcg" else 0),
    )


def process_owner(connection: Connection) -> ProcessOwner | None:
    """Return under which account emulators must run, None if they run under ours anyway.

    A privileged libvirt would run them under an account of its own and give it our files.
    """
    root = ET.fromstring(  # noqa: S314  # libvirt wrote it
        connection.run(lambda handle: handle.getCapabilities(), timeout_s=START_TIMEOUT_S)
    )
    models = {element.text for element in root.iterfind("host/secmodel/model")}
    if "dac" not in models:
        return None
    return ProcessOwner(user_id=os.geteuid(), group_id=os.getegid())


def supports_machine(connection: Connection, *, architecture: str, machine: str) -> bool:
    """Return whether QEMU still knows a machine type."""

    def call(handle: Any) -> str:  # Any: libvirt ships no types.
        return str(handle.getDomainCapabilities(None, architecture, machine, "qemu", 0))

    try:
        connection.run(call, timeout_s=START_TIMEOUT_S)
    except LibvirtRefused:
        return False
    return True


def dotted(number: int) -> str:
    """Write a version as libvirt counts it (7002022) in the usual way (7.2.22)."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def version_tuple(version: str) -> tuple[int, ...]:
    """Return a dotted version as numbers that compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _domain_capabilities(handle: Any, architecture: str, accelerator: str) -> str:
    kind = "kvm" if accelerator == "kvm" else "qemu"
    machine = _DEFAULT_MACHINES.get(architecture)
    return str(handle.getDomainCapabilities(None, architecture, machine, kind, 0))


def _cpu_model(root: ET.Element, architecture: str, wanted: str) -> str:
    """Choose a model that a saved state can name; the host's own would not be repeatable."""
    if wanted != "auto":
        return wanted
    usable = {
        element.text
        for element in root.iterfind("cpu/mode[@name='custom']/model")
        if element.get("usable") != "no"
    }
    for candidate in _CPU_MODELS.get(architecture, ()):
        if candidate in usable:
            return candidate
    return HOST_CPU
