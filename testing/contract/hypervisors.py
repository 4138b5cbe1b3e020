# SPDX-License-Identifier: Apache-2.0
"""The fake and the real hypervisor behind one face, for tests that must not know which."""

import socket
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pycloud.adapters.fakes import FakeClock, FakeHypervisor, MemoryBlobs, fake_qcow2
from pycloud.core.model.catalog import MachineSpec, MemoryState, OsType, StoredDisk
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.ports import (
    Blobs,
    DomainSpec,
    GuestView,
    Hypervisor,
    MemoryCapture,
    UserNetwork,
)
from testing.real_host import RealHost, answer_of, ignore_phase, occupied, published_port


class Bench(Protocol):
    """A hypervisor with everything that a test of it needs."""

    hypervisor: Hypervisor
    capture: MemoryCapture
    view: GuestView
    blobs: Blobs

    @property
    def template(self) -> MemoryState:
        """The memory of a guest whose service answers."""
        ...

    def spec(self, *, memory: MemoryState | None = None) -> DomainSpec:
        """Return a new guest that publishes its service."""
        ...

    def occupied(self, port: int) -> "contextmanager[None]":
        """Let another program hold a port for a while."""
        ...

    def wait_for_service(self, spec: DomainSpec) -> None:
        """Return when the guest's service answers."""
        ...

    def client(self, spec: DomainSpec) -> "AbstractContextManager[None]":
        """Let a client be connected to the guest's service for a while."""
        ...

    def end_all(self) -> None:
        """End whatever is there."""
        ...


class FakeBench:
    """The fake."""

    def __init__(self) -> None:
        self._memory = MemoryBlobs()
        self.blobs: Blobs = self._memory
        fake = FakeHypervisor(self.blobs, clock=FakeClock())
        self._fake = fake
        self.hypervisor: Hypervisor = fake
        self.capture: MemoryCapture = fake
        self.view: GuestView = fake
        self._disk = StoredDisk(blob=self._memory.put(fake_qcow2()), virtual_size_bytes=64 << 20)
        self._next_port = 20000

    @property
    def template(self) -> MemoryState:
        """The memory of a guest that never ran."""
        spec = self.spec()
        self._fake.start_template(spec, "template")
        return self._fake.capture_template(spec, "template")

    def spec(self, *, memory: MemoryState | None = None) -> DomainSpec:
        """Return a new guest."""
        self._next_port += 1
        return DomainSpec(
            owner=InstanceId(f"fake-{self._next_port}"),
            domain_id=DomainId(str(uuid.uuid4())),
            machine=MachineSpec(machine="pc-i440fx-7.2", cpu_model="qemu64", accelerator="tcg"),
            os_type=OsType.LINUX,
            vcpus=1,
            memory_mib=128,
            disk=self._disk if memory is None else memory.disk,
            network=UserNetwork(forwards=(PortMapping(guest_port=80, host_port=self._next_port),)),
            memory=memory,
        )

    @contextmanager
    def occupied(self, port: int) -> Iterator[None]:
        """Take a port and give it back."""
        self._fake.take_port(port)
        yield
        self._fake.free_port(port)

    def wait_for_service(self, spec: DomainSpec) -> None:
        """Return; a fake service is always there."""

    @contextmanager
    def client(self, spec: DomainSpec) -> Iterator[None]:
        """Tell the fake that somebody is connected."""
        self._fake.connect(spec.domain_id)
        yield
        self._fake.disconnect(spec.domain_id)

    def end_all(self) -> None:
        """End whatever is there."""
        for domain in self._fake.domains():
            self._fake.destroy(domain.id, domain.owner)


class RealBench:
    """The real libvirt."""

    def __init__(self, host: RealHost) -> None:
        self._host = host
        self.blobs: Blobs = host.blobs
        self.hypervisor: Hypervisor = host.adapters.hypervisor
        self.capture: MemoryCapture = host.adapters.memory_capture
        self.view: GuestView = host.adapters.guest_view

    @property
    def template(self) -> MemoryState:
        """The memory of a guest that was booted once in the test run."""
        return self._host.template

    def spec(self, *, memory: MemoryState | None = None) -> DomainSpec:
        """Return a new guest."""
        return self._host.spec(memory=memory)

    @contextmanager
    def occupied(self, port: int) -> Iterator[None]:
        """Listen on the port."""
        with occupied(port):
            yield

    def wait_for_service(self, spec: DomainSpec) -> None:
        """Return at the service's first answer."""
        answer_of(published_port(spec))

    @contextmanager
    def client(self, spec: DomainSpec) -> Iterator[None]:
        """Be connected to the published port."""
        with socket.create_connection(("127.0.0.1", published_port(spec)), timeout=10):
            yield

    def end_all(self) -> None:
        """End whatever is there."""
        self._host.end_all()


__all__ = ["Bench", "FakeBench", "RealBench", "ignore_phase"]
