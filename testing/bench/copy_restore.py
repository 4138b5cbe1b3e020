# SPDX-License-Identifier: Apache-2.0
"""The baseline: a saved state started the way the first pycloud started one.

For each Instance the saved state is copied, the name and the identity in the header of the
copy are rewritten, and libvirt restores the copy. Nothing is slowed down: the copy is made
inside the kernel, from and to the page cache, never forced to the disk, and the guest's disk
is the same empty copy-on-write layer that our own starts use.
"""

import itertools
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.clock import SystemClock
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt import LibvirtHypervisor, LibvirtMemoryCapture
from pycloud.adapters.libvirt.connection import START_TIMEOUT_S
from pycloud.adapters.libvirt.domain_xml import render
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.adapters.libvirt.save_format import header_and_data, read_header
from pycloud.adapters.libvirt.saved_hardware import read_saved_guest
from pycloud.core.model.catalog import (
    Architecture,
    BlobRef,
    MachineSpec,
    MemoryState,
    OsType,
    StoredDisk,
)
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.ports import DomainSpec, UserNetwork
from testing.bench.cloudlet import GUEST_PORT, settings_for, used_mib
from testing.bench.phone import await_first_byte, touch_memory
from testing.guest import guest_image
from testing.real_host import free_port

DISK_BYTES = 128 << 20
_STATE = "state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """One start; times in seconds since the request."""

    spec: DomainSpec
    """The guest ran, and the client was told the port."""
    answer_s: float
    """The client had the first byte of an answer."""


class CopyingCloudlet:
    """Starts guests from copies of saved states. Starts may come from several threads."""

    def __init__(self, data_dir: Path) -> None:
        settings = settings_for(data_dir)
        self._data = DataDirectory(data_dir)
        self._blobs = DiskBlobs(self._data)
        self._host = LibvirtHost(
            settings.hypervisor, data=self._data, settings=settings, clock=SystemClock()
        )
        self._hypervisor = LibvirtHypervisor(self._host)
        self._capture = LibvirtMemoryCapture(self._host, self._blobs)
        self._numbers = itertools.count(1)

    def save(self, memory_mib: int) -> MemoryState:
        """Boot a guest, let it use its memory, and keep its state in libvirt's format."""
        spec = self._spec(memory_mib, self._stored(guest_image()))
        area = f"save-{memory_mib}"
        self._hypervisor.start(spec, on_phase=_ignore)
        await_first_byte(_port(spec))
        touch_memory(_port(spec), used_mib(memory_mib))
        self._capture.save_image(spec, area, state=_STATE, disk="disk")
        blob = self._blobs.adopt(area, "disk")
        disk = StoredDisk(blob=blob, virtual_size_bytes=spec.disk.virtual_size_bytes)
        state = self._capture.adopt_save_image(area, _STATE, disk=disk)
        self._blobs.discard(area)
        return state

    def start(self, state: MemoryState) -> Restored:
        """Start an Instance and ask it as a client does."""
        begin_s = time.perf_counter()
        spec = self._spec(state.memory_mib, state.disk, state)
        copy = self._host.files.scratch(spec.owner, _STATE)
        placement = self._host.starter.place(spec, self._host.domains.tag(spec.owner))
        shutil.copyfile(self._host.files.content(state.memory.id), copy)
        with copy.open("rb") as stream:
            hardware = read_saved_guest(read_header(stream).description).hardware
        rewrite(copy, render(self._host.planner.restored(spec, placement, hardware)))
        self._restore(copy)
        # The first pycloud had no relay, and the client of a benchmark calls from this host.
        self._host.publish_locally(spec.domain_id, _forwards(spec))
        self._host.domains.resume(spec.domain_id)
        await_first_byte(_port(spec))
        answer_s = time.perf_counter() - begin_s
        return Restored(spec=spec, answer_s=answer_s)

    def stop(self, *specs: DomainSpec) -> None:
        """End guests, all at the same time, and remove their files."""
        with ThreadPoolExecutor(len(specs)) as pool:
            ends = [
                pool.submit(self._hypervisor.destroy, spec.domain_id, spec.owner) for spec in specs
            ]
        for end in ends:
            end.result()

    def close(self) -> None:
        """End all guests."""
        for domain in self._hypervisor.domains():
            self._hypervisor.destroy(domain.id, domain.owner)

    def _restore(self, image: Path) -> None:
        def call(handle: Any) -> None:  # Any: libvirt ships no types.
            handle.restoreFlags(str(image), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)

        self._host.connection.run(call, timeout_s=START_TIMEOUT_S)

    def _spec(
        self, memory_mib: int, disk: StoredDisk, memory: MemoryState | None = None
    ) -> DomainSpec:
        mapping = PortMapping(guest_port=GUEST_PORT, host_port=free_port())
        facts = self._hypervisor.facts()
        return DomainSpec(
            owner=InstanceId(f"copy-{next(self._numbers)}"),
            domain_id=DomainId(str(uuid.uuid4())),
            machine=MachineSpec(
                architecture=Architecture(facts.architecture),
                machine=facts.machine,
                cpu_model=facts.cpu_model,
                accelerator=facts.accelerator,
                emulator_version=facts.emulator_version,
            ),
            os_type=OsType.LINUX,
            vcpus=1,
            memory_mib=memory_mib,
            disk=disk,
            network=UserNetwork(forwards=(mapping,)),
            memory=memory,
        )

    def _stored(self, image: Path) -> StoredDisk:
        area = f"disk-{next(self._numbers)}"
        with image.open("rb") as stream:
            self._blobs.append(area, "disk", stream, offset_bytes=0, limit_bytes=1 << 32)
        blob: BlobRef = self._blobs.adopt(area, "disk")
        self._blobs.discard(area)
        return StoredDisk(blob=blob, virtual_size_bytes=DISK_BYTES)


@contextmanager
def copying_cloudlet(data_dir: Path) -> Iterator[CopyingCloudlet]:
    """Provide the baseline for a while; none of its guests outlives it."""
    cloudlet = CopyingCloudlet(data_dir)
    try:
        yield cloudlet
    finally:
        cloudlet.close()


def rewrite(image: Path, description: str) -> None:
    """Put another description into the header of a copy, in place, and let the kernel write."""
    with image.open("r+b") as stream:
        data_bytes = read_header(stream).data_bytes
        stream.seek(0)
        stream.write(header_and_data(description.encode(), data_bytes=data_bytes))


def _forwards(spec: DomainSpec) -> tuple[PortMapping, ...]:
    assert isinstance(spec.network, UserNetwork)
    return spec.network.forwards


def _port(spec: DomainSpec) -> int:
    return _forwards(spec)[0].host_port


def _ignore(_phase: str) -> None:
    """Take no note of a phase."""
