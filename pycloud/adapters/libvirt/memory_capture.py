# SPDX-License-Identifier: Apache-2.0
"""The MemoryCapture port: memory states from guests whose service answers.

A template is a guest whose RAM is a shared file. Stopped, its RAM, the stream of its
devices and its disk are one moment of one machine; together they are what clones start
from. A save image is libvirt's own format, for packages that other cloudlets read.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pycloud.adapters.libvirt.capabilities import supports_machine
from pycloud.adapters.libvirt.domain_plan import Role
from pycloud.adapters.libvirt.domain_xml import render
from pycloud.adapters.libvirt.domains import RUNNING, OwnDomain
from pycloud.adapters.libvirt.driver import forwards_of, undone_on_failure
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.adapters.libvirt.ram_files import make_ram_file
from pycloud.adapters.libvirt.save_format import read_header
from pycloud.adapters.libvirt.save_image import replace_description, save
from pycloud.adapters.libvirt.saved_hardware import read_saved_guest
from pycloud.core.model.catalog import (
    BlobRef,
    MachineSpec,
    MemoryKind,
    MemoryState,
    StoredDisk,
)
from pycloud.core.ports import Blobs, BridgedNetwork, DomainSpec, Report
from pycloud.errors import HypervisorError, InsufficientStorage, StateUnusable

_RAM, _DEVICES, _DISK = "ram", "devices", "disk"
_WRITE_TIMEOUT_S = 120.0


class LibvirtMemoryCapture:
    """Makes memory states on one host."""

    def __init__(self, host: LibvirtHost, blobs: Blobs) -> None:
        self._host = host
        self._blobs = blobs

    def start_template(self, spec: DomainSpec, area: str) -> None:
        """Boot a guest whose RAM is the staged file `ram`; one that runs already is kept."""
        if spec.memory is not None:
            raise HypervisorError("a template boots cold")
        present = self._host.domains.find(spec.domain_id)
        if present is not None and _is_template(present, spec, area):
            return
        with undone_on_failure(self._host, spec):
            self._host.discard(spec.domain_id, spec.owner)
            self._host.planner.check(spec)
            ram = self._host.data.staged_path(area, _RAM)
            make_ram_file(ram, memory_mib=spec.memory_mib)
            tag = self._host.domains.tag(spec.owner, role=Role.TEMPLATE, area=area)
            placement = self._host.starter.place(spec, tag)
            self._host.domains.create(render(self._host.planner.template(spec, placement, ram)))
            self._host.publish_locally(spec.domain_id, forwards_of(spec))
            self._host.domains.resume(spec.domain_id)

    def capture_template(self, spec: DomainSpec, area: str) -> MemoryState:
        """Stop a template and adopt its memory, its devices and its disk."""
        domain = self._host.domains.require(spec.domain_id)
        if not _is_template(domain, spec, area):
            raise HypervisorError(f"domain {spec.domain_id} is no running template in {area}")
        with ExitStack() as stack:
            stack.callback(self._host.discard, spec.domain_id, spec.owner)
            self._host.domains.suspend(spec.domain_id)
            self._write_devices(spec, self._host.data.staged_path(area, _DEVICES))
            # Only the end of the emulator closes the disk for good.
            self._host.domains.destroy(spec.domain_id)
            disk = self._adopt_disk(spec, area)
            return MemoryState(
                kind=MemoryKind.TEMPLATE,
                memory=self._blobs.adopt(area, _RAM),
                devices=self._blobs.adopt(area, _DEVICES),
                disk=disk,
                memory_mib=spec.memory_mib,
                vcpus=spec.vcpus,
                machine=spec.machine,
            )

    def save_image(
        self,
        spec: DomainSpec,
        area: str,
        *,
        state: str,
        disk: str,
        report: Report | None = None,
    ) -> None:
        """Save a running guest and stage its state and its disk, all layers merged."""
        domain = self._host.domains.require(spec.domain_id)
        if isinstance(spec.network, BridgedNetwork):
            raise StateUnusable("a guest on a bridge cannot be saved for others")
        wanted = (spec.owner, Role.INSTANCE, RUNNING)
        if (domain.tag.owner, domain.tag.role, domain.state) != wanted or spec.memory is not None:
            raise HypervisorError(f"domain {spec.domain_id} is no plain running guest")
        with ExitStack() as stack:
            stack.callback(self._host.discard, spec.domain_id, spec.owner)
            target = self._host.data.staged_path(area, state)
            heartbeat = _heartbeat(report, spec.disk.virtual_size_bytes)
            save(self._host.connection, spec.domain_id, target, heartbeat=heartbeat)
            replace_description(target, render(self._host.planner.portable(spec)))
            flat = self._host.data.staged_path(area, disk)
            self._host.files.flatten(spec.owner, spec.disk, flat, report=report)

    def adopt_save_image(
        self, area: str, name: str, *, disk: StoredDisk, report: Report | None = None
    ) -> MemoryState:
        """Adopt a save image whose guest our own builder can rebuild."""
        with self._blobs.open_staged(area, name) as stream:
            saved = read_saved_guest(read_header(stream).description)
        self._check_runnable(saved.machine)
        return MemoryState(
            kind=MemoryKind.SAVE_IMAGE,
            memory=self._blobs.adopt(area, name, report=report),
            disk=disk,
            memory_mib=saved.memory_mib,
            vcpus=saved.vcpus,
            machine=saved.machine,
        )

    def _check_runnable(self, machine: MachineSpec) -> None:
        """Raise StateUnusable if the emulator here cannot be that machine."""
        facts = self._host.facts()
        if machine.accelerator != facts.accelerator:
            raise StateUnusable(
                f"the guest was saved with {machine.accelerator}, guests run with"
                f" {facts.accelerator} here: {facts.accelerator_reason}"
            )
        if machine.architecture.value != facts.architecture or not supports_machine(
            self._host.connection,
            architecture=machine.architecture.value,
            machine=machine.machine,
        ):
            raise StateUnusable(f"QEMU knows no machine {machine.machine!r} here")

    def _write_devices(self, spec: DomainSpec, target: Path) -> None:
        monitor = self._host.monitor(spec.domain_id)
        try:
            with target.open("wb") as stream:
                monitor.write_devices(stream, clock=self._host.clock, timeout_s=_WRITE_TIMEOUT_S)
                os.fsync(stream.fileno())
        except OSError as exc:
            raise InsufficientStorage(f"the device state cannot be written: {exc}") from exc

    def _adopt_disk(self, spec: DomainSpec, area: str) -> StoredDisk:
        """Move what the guest wrote into the content store, as a layer on its base."""
        files = self._host.files
        overlay = files.overlay(spec.owner)
        files.keep_two_layers(overlay, files.layers(spec.disk))
        overlay.replace(self._host.data.staged_path(area, _DISK))
        base: BlobRef = spec.disk.backing or spec.disk.blob
        return StoredDisk(
            blob=self._blobs.adopt(area, _DISK),
            virtual_size_bytes=spec.disk.virtual_size_bytes,
            backing=base,
        )


def _heartbeat(report: Report | None, total: int) -> Callable[[], None] | None:
    """Return what asks now and then whether to go on, before there is any progress."""
    if report is None:
        return None
    return lambda: report(0, total)


def _is_template(domain: OwnDomain, spec: DomainSpec, area: str) -> bool:
    tag = domain.tag
    wanted = (spec.owner, Role.TEMPLATE, area)
    return (tag.owner, tag.role, tag.area) == wanted and domain.state == RUNNING
