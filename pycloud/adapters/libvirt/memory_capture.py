# SPDX-License-Identifier: Apache-2.0
"""The MemoryCapture port: memory states from guests whose service answers.

A template is a guest whose RAM is a shared file. Stopped, its RAM, the stream of its
devices and its disk are one moment of one machine; together they are what clones start
from. A save image is libvirt's own format, for packages that other cloudlets read.
"""

import os
from contextlib import ExitStack
from pathlib import Path

from pycloud.adapters.libvirt.domain_plan import Role
from pycloud.adapters.libvirt.domain_xml import render
from pycloud.adapters.libvirt.domains import RUNNING, OwnDomain
from pycloud.adapters.libvirt.driver import forwards_of, undone_on_failure
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.adapters.libvirt.ram_files import make_ram_file
from pycloud.core.model.catalog import BlobRef, MemoryKind, MemoryState, StoredDisk
from pycloud.core.ports import Blobs, DomainSpec
from pycloud.errors import HypervisorError, InsufficientStorage

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
            self._host.publish(spec.domain_id, forwards_of(spec))
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
        files = self._host.files.disk_files(spec.owner, spec.disk)
        self._host.files.keep_two_layers(files)
        files.overlay.replace(self._host.data.staged_path(area, _DISK))
        base: BlobRef = spec.disk.backing or spec.disk.blob
        return StoredDisk(
            blob=self._blobs.adopt(area, _DISK),
            virtual_size_bytes=spec.disk.virtual_size_bytes,
            backing=base,
        )


def _is_template(domain: OwnDomain, spec: DomainSpec, area: str) -> bool:
    tag = domain.tag
    wanted = (spec.owner, Role.TEMPLATE, area)
    return (tag.owner, tag.role, tag.area) == wanted and domain.state == RUNNING
