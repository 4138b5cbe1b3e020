# SPDX-License-Identifier: Apache-2.0
"""Bring a domain from a plan to a loaded, paused guest: cold, cloned or restored.

Each way ends with a domain that is paused, complete and without forwards. What fails is
left for the caller to undo.
"""

from pycloud.adapters.libvirt.bridge_ports import make_port
from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.disks import InstanceFiles
from pycloud.adapters.libvirt.domain_plan import Tag
from pycloud.adapters.libvirt.domain_xml import render
from pycloud.adapters.libvirt.domains import DomainControl
from pycloud.adapters.libvirt.monitor import Monitor
from pycloud.adapters.libvirt.planner import Placement, Planner
from pycloud.adapters.libvirt.ram_files import prepare_private_mapping
from pycloud.adapters.libvirt.save_format import read_header
from pycloud.adapters.libvirt.save_image import restore
from pycloud.adapters.libvirt.saved_hardware import read_saved_guest
from pycloud.adapters.libvirt.session_daemon import needs_own_daemon
from pycloud.core.model.catalog import MemoryKind, MemoryState
from pycloud.core.ports import BridgedNetwork, Clock, DomainSpec, PhaseSink
from pycloud.errors import (
    HypervisorError,
    HypervisorUnavailable,
    InsufficientStorage,
    StateUnusable,
)

_LOAD_TIMEOUT_S = 60.0
_FIFO = "state.fifo"


class Starter:
    """Makes paused domains."""

    def __init__(
        self,
        *,
        connection: Connection,
        domains: DomainControl,
        files: InstanceFiles,
        planner: Planner,
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._domains = domains
        self._files = files
        self._planner = planner
        self._clock = clock

    def load(self, spec: DomainSpec, tag: Tag, *, on_phase: PhaseSink) -> None:
        """Make disk and domain and load the memory state, if there is one.

        Raises StateUnusable, HypervisorError, InsufficientStorage.
        """
        self._planner.check(spec)
        if spec.memory is not None:
            self._require_parts(spec.memory)
        placement = self.place(spec, tag)
        on_phase("disk")
        match spec.memory:
            case None:
                self._domains.create(render(self._planner.fresh(spec, placement)))
                on_phase("domain")
            case MemoryState(kind=MemoryKind.TEMPLATE):
                self._clone(spec, spec.memory, placement, on_phase)
            case MemoryState():
                self._restore(spec, spec.memory, placement, on_phase)

    def _require_parts(self, memory: MemoryState) -> None:
        """Raise StateUnusable if something of a memory state is missing, its own disk included."""
        try:
            self._files.layers(memory.disk)
            for part in (memory.memory, memory.devices):
                if part is not None:
                    self._files.content(part.id)
        except HypervisorError as exc:
            raise StateUnusable(f"the memory state is not whole: {exc}") from exc

    def place(self, spec: DomainSpec, tag: Tag) -> Placement:
        """Make what a new domain has of its own: disk, tap device, serial log."""
        disk = self._files.make_disk(spec.owner, spec.disk)
        tap = None
        if isinstance(spec.network, BridgedNetwork) and needs_own_daemon(self._connection.uri):
            tap = make_port(spec.domain_id, bridge=spec.network.bridge)
        serial_log = self._files.serial_log(spec.owner)
        return Placement(tag=tag, disk=disk, serial_log=serial_log, tap=tap)

    def _clone(
        self, spec: DomainSpec, memory: MemoryState, placement: Placement, on_phase: PhaseSink
    ) -> None:
        if memory.devices is None:
            raise StateUnusable("the memory state has no device state")
        ram = self._files.content(memory.memory.id)
        devices = self._files.content(memory.devices.id)
        prepare_private_mapping(ram, memory_mib=spec.memory_mib)
        try:
            self._domains.create(render(self._planner.clone(spec, placement, ram)))
            on_phase("domain")
            with devices.open("rb") as stream:
                monitor = Monitor(self._connection, spec.domain_id)
                monitor.read_devices(stream, clock=self._clock, timeout_s=_LOAD_TIMEOUT_S)
        except (HypervisorUnavailable, InsufficientStorage):
            raise
        except (HypervisorError, OSError) as exc:
            raise StateUnusable(f"the memory state cannot be resumed here: {exc}") from exc
        on_phase("state")

    def _restore(
        self, spec: DomainSpec, memory: MemoryState, placement: Placement, on_phase: PhaseSink
    ) -> None:
        image = self._files.content(memory.memory.id)
        try:
            with image.open("rb") as stream:
                saved = read_saved_guest(read_header(stream).description)
            if (saved.memory_mib, saved.vcpus) != (spec.memory_mib, spec.vcpus):
                raise StateUnusable("the save image holds another amount of memory or processors")
            description = render(self._planner.restored(spec, placement, saved.hardware))
            fifo = self._files.scratch(spec.owner, _FIFO)
            restore(self._connection, image, description, fifo=fifo)
        except (HypervisorUnavailable, InsufficientStorage):
            raise
        except (HypervisorError, OSError) as exc:
            raise StateUnusable(f"the save image cannot be resumed here: {exc}") from exc
        # libvirt makes the domain and loads its memory in one call.
        on_phase("state")
