# SPDX-License-Identifier: Apache-2.0
"""Memory states of guests that never ran: a few bytes in the real staging areas."""

import json
from io import BytesIO

from pycloud.adapters.fakes.images import fake_qcow2
from pycloud.core.model.catalog import (
    Architecture,
    MachineSpec,
    MemoryKind,
    MemoryState,
    StoredDisk,
)
from pycloud.core.ports import Blobs, DomainSpec, Report
from pycloud.errors import NotFound, StateUnusable

_NO_LIMIT = 1 << 62
_RAM, _DEVICES, _DISK = "ram", "devices", "disk"
_SAVE_MAGIC = b"LibvirtQemudSave"


def fake_save_image(*, memory_mib: int, vcpus: int, machine: str = "pc-i440fx-7.2") -> bytes:
    """Return bytes that FakeHypervisor adopts as a save image."""
    document = {"memory_mib": memory_mib, "vcpus": vcpus, "machine": machine}
    return _SAVE_MAGIC + json.dumps(document).encode()


class FakeMemoryStates:
    """Makes and checks the blobs that stand for a guest's memory."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def stage_ram(self, spec: DomainSpec, area: str) -> None:
        """Make the RAM file of a template."""
        self._stage(area, _RAM, f"ram of {spec.owner}, {spec.memory_mib} MiB".encode())

    def adopt_template(self, spec: DomainSpec, area: str) -> MemoryState:
        """Adopt RAM, device state and the delta of the disk."""
        self._stage(area, _DEVICES, f"devices of {spec.owner}".encode())
        self._stage(area, _DISK, self._disk_content(spec))
        disk_blob = self._blobs.adopt(area, _DISK)
        # A chain has two layers at most: on a disk that is a delta already, the new
        # layer would be merged with it.
        disk = StoredDisk(
            blob=disk_blob,
            virtual_size_bytes=spec.disk.virtual_size_bytes,
            backing=spec.disk.backing or spec.disk.blob,
        )
        return MemoryState(
            kind=MemoryKind.TEMPLATE,
            memory=self._blobs.adopt(area, _RAM),
            devices=self._blobs.adopt(area, _DEVICES),
            disk=disk,
            memory_mib=spec.memory_mib,
            vcpus=spec.vcpus,
            machine=spec.machine,
        )

    def stage_save_image(self, spec: DomainSpec, area: str, *, state: str, disk: str) -> None:
        """Make a save image and a flattened disk."""
        image = fake_save_image(
            memory_mib=spec.memory_mib, vcpus=spec.vcpus, machine=spec.machine.machine
        )
        self._stage(area, state, image)
        self._stage(area, disk, self._disk_content(spec))

    def adopt_save_image(
        self, area: str, name: str, *, disk: StoredDisk, report: Report | None = None
    ) -> MemoryState:
        """Read a save image made by `fake_save_image` and adopt it."""
        with self._blobs.open_staged(area, name) as stream:
            content = stream.read()
        if not content.startswith(_SAVE_MAGIC):
            raise StateUnusable("this is not a save image of libvirt")
        try:
            document = json.loads(content.removeprefix(_SAVE_MAGIC))
            memory_mib, vcpus = int(document["memory_mib"]), int(document["vcpus"])
            machine = str(document["machine"])
        except (ValueError, KeyError, TypeError) as exc:
            raise StateUnusable("the guest in the save image cannot be rebuilt here") from exc
        return MemoryState(
            kind=MemoryKind.SAVE_IMAGE,
            memory=self._blobs.adopt(area, name, report=report),
            disk=disk,
            memory_mib=memory_mib,
            vcpus=vcpus,
            machine=MachineSpec(
                architecture=Architecture.X86_64,
                machine=machine,
                cpu_model="qemu64",
                accelerator="tcg",
            ),
        )

    def check_present(self, memory: MemoryState) -> None:
        """Raise StateUnusable if a part of a memory state is not in the content store."""
        for ref in (memory.memory, memory.devices, memory.disk.blob, memory.disk.backing):
            if ref is None:
                continue
            try:
                self._blobs.open(ref.id).close()
            except NotFound as exc:
                raise StateUnusable(f"{ref.id} of the memory state is missing") from exc

    def _disk_content(self, spec: DomainSpec) -> bytes:
        return fake_qcow2(
            f"written by {spec.owner}".encode(), virtual_size_bytes=spec.disk.virtual_size_bytes
        )

    def _stage(self, area: str, name: str, content: bytes) -> None:
        self._blobs.append(area, name, BytesIO(content), offset_bytes=0, limit_bytes=_NO_LIMIT)
