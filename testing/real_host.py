# SPDX-License-Identifier: Apache-2.0
"""The real libvirt with a data directory of its own, for tests that run guests.

What a test leaves behind is ended and counted at the end of the run: a domain or disk
that nobody removed fails it.
"""

import contextlib
import itertools
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.clock import SystemClock
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt import LibvirtAdapters, libvirt_adapters
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
from pycloud.settings import Settings
from testing.guest import GuestVariant, guest_image

SESSION_URI = "qemu:///session"
GUEST_PORT = 8080
MEMORY_MIB = 128
GUEST_DISK_BYTES = 128 << 20
ANSWER_DEADLINE_S = 60.0
_POLL_S = 0.02
_REQUEST_TIMEOUT_S = 1.0
_FIRST_PORT, _LAST_PORT = 21000, 21999
_numbers = itertools.count(1)
# Test processes begin at different places, so that they do not try the same ports.
_candidates = itertools.islice(
    itertools.cycle(range(_FIRST_PORT, _LAST_PORT + 1)), uuid.uuid4().int % 1000, None
)


def ignore_phase(_name: str) -> None:
    """Take no note of a phase."""


@dataclass(slots=True, kw_only=True)
class Phases:
    """A phase sink that keeps the names."""

    names: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> None:
        """Note a phase."""
        self.names.append(name)


class RealHost:
    """The adapters on the real libvirt, and what tests do with them."""

    def __init__(self, root: Path, *, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(publish_bind="127.0.0.1")
        self.data = DataDirectory(root)
        self.blobs = DiskBlobs(self.data)
        self.adapters: LibvirtAdapters = self.another()

    def another(self) -> LibvirtAdapters:
        """Return adapters as a second server on the same data would have them."""
        return libvirt_adapters(
            SESSION_URI,
            data=self.data,
            blobs=self.blobs,
            settings=self.settings,
            clock=SystemClock(),
        )

    @cached_property
    def machine(self) -> MachineSpec:
        """The machine that new guests are given here."""
        facts = self.adapters.hypervisor.facts()
        return MachineSpec(
            architecture=Architecture(facts.architecture),
            machine=facts.machine,
            cpu_model=facts.cpu_model,
            accelerator=facts.accelerator,
            emulator_version=facts.emulator_version,
        )

    def put_blob(self, path: Path) -> BlobRef:
        """Copy a file into the content store."""
        area = f"put-{next(_numbers)}"
        with path.open("rb") as stream:
            self.blobs.append(area, "content", stream, offset_bytes=0, limit_bytes=1 << 34)
        blob = self.blobs.adopt(area, "content")
        self.blobs.discard(area)
        return blob

    def guest_disk(self, variant: GuestVariant = GuestVariant.NORMAL) -> StoredDisk:
        """Return a stored test guest."""
        blob = self.put_blob(guest_image(variant))
        return StoredDisk(blob=blob, virtual_size_bytes=GUEST_DISK_BYTES)

    @cached_property
    def disk(self) -> StoredDisk:
        """The plain test guest."""
        return self.guest_disk()

    @cached_property
    def template(self) -> MemoryState:
        """The memory of the plain test guest whose service answers, made once."""
        spec, area = self.spec(), f"template-{next(_numbers)}"
        capture = self.adapters.memory_capture
        capture.start_template(spec, area)
        answer_of(published_port(spec))
        state = capture.capture_template(spec, area)
        self.blobs.discard(area)
        return state

    def spec(
        self,
        *,
        disk: StoredDisk | None = None,
        memory: MemoryState | None = None,
        network: UserNetwork | None = None,
        memory_mib: int = MEMORY_MIB,
    ) -> DomainSpec:
        """Return a new guest that publishes its service on a free port."""
        chosen = disk or (self.disk if memory is None else memory.disk)
        return DomainSpec(
            # Other test runs may use the same daemon, where names are unique.
            owner=InstanceId(f"test-{uuid.uuid4().hex[:12]}"),
            domain_id=DomainId(str(uuid.uuid4())),
            machine=self.machine,
            os_type=OsType.LINUX,
            vcpus=1,
            memory_mib=memory_mib if memory is None else memory.memory_mib,
            disk=chosen,
            network=network or UserNetwork(forwards=(a_forward(),)),
            memory=memory,
        )

    def clone(self) -> DomainSpec:
        """Start a copy of the template and return its spec."""
        spec = self.spec(memory=self.template)
        self.adapters.hypervisor.start(spec, on_phase=ignore_phase)
        return spec

    def end(self, *specs: DomainSpec) -> None:
        """End guests."""
        for spec in specs:
            self.adapters.hypervisor.destroy(spec.domain_id, spec.owner)

    def leftovers(self) -> list[str]:
        """Return the owners of all domains and disks that are there."""
        hypervisor = self.adapters.hypervisor
        owners = {domain.owner for domain in hypervisor.domains()}
        return sorted(owners | set(hypervisor.disk_owners()))

    def end_all(self) -> None:
        """End whatever is there."""
        hypervisor = self.adapters.hypervisor
        for domain in hypervisor.domains():
            hypervisor.destroy(domain.id, domain.owner)
        for owner in hypervisor.disk_owners():
            hypervisor.destroy(DomainId(str(uuid.uuid4())), owner)


@contextmanager
def running_real_host(root: Path, *, settings: Settings | None = None) -> Iterator[RealHost]:
    """Provide a host for a while; raises AssertionError if a test left a guest behind."""
    host = RealHost(root, settings=settings)
    try:
        yield host
        assert host.leftovers() == []
    finally:
        host.end_all()


def a_forward() -> PortMapping:
    """Return a forward of the guest's service to a port that is free now."""
    return PortMapping(guest_port=GUEST_PORT, host_port=free_port())


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on; each call returns another one."""
    for port in _candidates:
        with contextlib.suppress(OSError), occupied(port):
            return port
    raise AssertionError("no port is free")


@contextmanager
def occupied(port: int) -> Iterator[int]:
    """Listen on a port of 127.0.0.1 for a while, as another program would."""
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield port


def published_port(spec: DomainSpec) -> int:
    """Return the host port of a guest's service."""
    assert isinstance(spec.network, UserNetwork)
    return spec.network.forwards[0].host_port


def answer_of(
    port: int,
    path: str = "/",
    *,
    address: str = "127.0.0.1",
    request_timeout_s: float = _REQUEST_TIMEOUT_S,
) -> bytes:
    """Return the body of the service's first answer. Raises AssertionError at the deadline."""
    deadline_s = ANSWER_DEADLINE_S
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, HTTPException):
            return _get(address, port, path, request_timeout_s)
        time.sleep(_POLL_S)
    raise AssertionError(f"no answer on port {port} within {deadline_s} s")


def _get(address: str, port: int, path: str, timeout_s: float) -> bytes:
    with closing(HTTPConnection(address, port, timeout=timeout_s)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()
