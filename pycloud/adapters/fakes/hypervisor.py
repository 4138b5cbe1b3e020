# SPDX-License-Identifier: Apache-2.0
"""A hypervisor without machines: domains are records, memory is a few bytes.

It refuses what the real one refuses (a port twice, a state on the wrong disk, a
domain that is not there) and forgets nothing between two servers that share it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pycloud.adapters.fakes.memory_states import FakeMemoryStates
from pycloud.core.model.catalog import MemoryKind, MemoryState, StoredDisk
from pycloud.core.model.fleet import DomainInfo, HypervisorFacts
from pycloud.core.model.identifiers import BlobId, DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping, StartMethod
from pycloud.core.ports import Blobs, Clock, DomainSpec, PhaseSink, Report, UserNetwork
from pycloud.errors import (
    CloudletError,
    DomainNotFound,
    HypervisorError,
    HypervisorUnavailable,
    NotFound,
    PortInUse,
    StateUnusable,
)

FAKE_FACTS = HypervisorFacts(
    uri="fake:",
    libvirt_version="9.0.0",
    emulator_version="7.2.0",
    architecture="x86_64",
    accelerator="tcg",
    accelerator_reason="this hypervisor is a fake",
    machine="pc-i440fx-7.2",
    cpu_model="qemu64",
    instant_start=True,
    overhead_mib=0,
)
RUNNING, PAUSED, STALLED, CRASHED = "running", "paused", "stalled", "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeDomain:
    """A domain as the fake keeps it; `template_area` is set while it is a template."""

    spec: DomainSpec
    method: StartMethod
    state: str = RUNNING
    held: bool = False
    forwards: tuple[PortMapping, ...] = ()
    template_area: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeStart:
    """One start that succeeded, for tests that ask how a guest came to run."""

    domain_id: DomainId
    owner: InstanceId
    method: StartMethod


class FakeHypervisor:
    """Twin of libvirt and QEMU: Hypervisor, MemoryCapture and GuestView in one object.

    Tests steer it through `available`, `ignores_shut_down`, `accepting` and the
    methods of the last section. With a clock, a shutdown that is ignored takes its time.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        facts: HypervisorFacts = FAKE_FACTS,
        clock: Clock | None = None,
    ) -> None:
        self.available = True
        self.ignores_shut_down = False
        self.accepting = True
        self._lock = threading.RLock()
        self._blobs = blobs
        self._states = FakeMemoryStates(blobs)
        self._facts = facts
        self._clock = clock
        self._domains: dict[DomainId, FakeDomain] = {}
        self._disks: set[InstanceId] = set()
        self._taken_ports: set[int] = set()
        self._unusable: set[BlobId] = set()
        self._failures: dict[str, list[CloudletError]] = {}
        self._starts: list[FakeStart] = []
        self._serial: dict[InstanceId, bytes] = {}
        self._addresses: dict[DomainId, str | None] = {}
        self._connected: set[DomainId] = set()

    # Hypervisor

    def facts(self) -> HypervisorFacts:
        """Return the facts given to the constructor."""
        self._enter("facts")
        return self._facts

    def start(self, spec: DomainSpec, *, on_phase: PhaseSink) -> None:
        """Run a domain; nothing happens if it was started before."""
        with self._lock:
            self._enter("start")
            if self._is_started(spec):
                return
            forwards = spec.network.forwards if isinstance(spec.network, UserNetwork) else ()
            method = _method(spec.memory)
            self._check_memory(spec)
            self._make_disk(spec)
            try:
                on_phase("disk")
                self._check_ports(forwards)
                on_phase("domain")
            except CloudletError:
                self._disks.discard(spec.owner)
                raise
            domain = FakeDomain(spec=spec, method=method, forwards=forwards)
            self._domains[spec.domain_id] = domain
            self._record_start(domain)

    def start_held(self, spec: DomainSpec) -> None:
        """Load a domain from memory and leave it paused."""
        with self._lock:
            self._enter("start_held")
            if self._is_started(spec):
                return
            if spec.memory is None or spec.memory.kind is not MemoryKind.TEMPLATE:
                raise StateUnusable("only a template's memory can wait")
            self._check_memory(spec)
            self._make_disk(spec)
            self._domains[spec.domain_id] = FakeDomain(
                spec=spec, method=StartMethod.WARM, state=PAUSED, held=True
            )

    def release(
        self, domain_id: DomainId, forwards: Sequence[PortMapping], *, on_phase: PhaseSink
    ) -> None:
        """Publish the ports of a held domain and let it run; nothing happens a second time."""
        with self._lock:
            self._enter("release")
            domain = self._domain(domain_id)
            if not domain.held:
                if domain.forwards == tuple(forwards):
                    return
                raise HypervisorError(f"domain {domain_id} does not wait to be released")
            if domain.forwards != tuple(forwards):
                self._check_ports(forwards)
            released = replace(domain, held=False, state=RUNNING, forwards=tuple(forwards))
            self._domains[domain_id] = released
            self._record_start(released)
        on_phase("ports")
        on_phase("resume")

    def hold(self, domain_id: DomainId) -> None:
        """Let a domain that was released wait again."""
        with self._lock:
            self._enter("hold")
            domain = self._executable(domain_id)
            if domain.method is not StartMethod.WARM:
                raise HypervisorError(f"domain {domain_id} was not made to wait")
            self._domains[domain_id] = replace(domain, held=True, state=PAUSED)

    def shut_down(self, domain_id: DomainId, *, timeout_s: float) -> bool:
        """Power off a running guest; a paused one cannot hear the request."""
        with self._lock:
            self._enter("shut_down")
            domain = self._domains.get(domain_id)
            if domain is None:
                return True
            if domain.state == RUNNING and not self.ignores_shut_down:
                del self._domains[domain_id]
                return True
        if self._clock is not None:
            self._clock.sleep(timeout_s)
        return False

    def destroy(self, domain_id: DomainId, owner: InstanceId) -> None:
        """End a domain and remove its disk; idempotent."""
        with self._lock:
            self._enter("destroy")
            domain = self._domains.get(domain_id)
            if domain is not None and domain.spec.owner != owner:
                raise HypervisorError(f"domain {domain_id} does not belong to {owner}")
            self._domains.pop(domain_id, None)
            self._disks.discard(owner)

    def pause(self, domain_id: DomainId) -> None:
        """Stop the guest's processors; idempotent."""
        with self._lock:
            self._enter("pause")
            self._domains[domain_id] = replace(self._executable(domain_id), state=PAUSED)

    def resume(self, domain_id: DomainId) -> None:
        """Let a paused guest go on; idempotent."""
        with self._lock:
            self._enter("resume")
            domain = self._executable(domain_id)
            if domain.held:
                raise HypervisorError(f"domain {domain_id} has to be released first")
            self._domains[domain_id] = replace(domain, state=RUNNING)

    def domains(self) -> tuple[DomainInfo, ...]:
        """Return all domains."""
        with self._lock:
            self._enter("domains")
            return tuple(
                DomainInfo(id=key, owner=domain.spec.owner, state=domain.state)
                for key, domain in self._domains.items()
            )

    def disk_owners(self) -> tuple[InstanceId, ...]:
        """Return the owners of all disks."""
        with self._lock:
            self._enter("disk_owners")
            return tuple(sorted(self._disks))

    # MemoryCapture

    def start_template(self, spec: DomainSpec, area: str) -> None:
        """Boot a domain whose RAM is a staged file."""
        with self._lock:
            self._enter("start_template")
            if spec.memory is not None:
                raise HypervisorError("a template boots cold")
            if self._is_started(spec):
                return
            self.start(spec, on_phase=_ignore_phase)
            self._states.stage_ram(spec, area)
            self._domains[spec.domain_id] = replace(
                self._domains[spec.domain_id], template_area=area
            )

    def capture_template(self, spec: DomainSpec, area: str) -> MemoryState:
        """Adopt the memory, devices and disk of a running template."""
        with self._lock:
            self._enter("capture_template")
            domain = self._running(spec.domain_id)
            if domain.template_area != area:
                raise HypervisorError(f"domain {spec.domain_id} is no template in {area}")
            state = self._states.adopt_template(spec, area)
            self.destroy(spec.domain_id, spec.owner)
            return state

    def save_image(
        self,
        spec: DomainSpec,
        area: str,
        *,
        state: str,
        disk: str,
        report: Report | None = None,
    ) -> None:
        """Stage a save image and a flattened disk of a running plain domain."""
        with self._lock:
            self._enter("save_image")
            domain = self._running(spec.domain_id)
            if domain.template_area is not None:
                raise HypervisorError("a template is captured, not saved")
            try:
                if report is not None:
                    report(spec.disk.virtual_size_bytes, spec.disk.virtual_size_bytes)
                self._states.stage_save_image(spec, area, state=state, disk=disk)
            finally:
                self.destroy(spec.domain_id, spec.owner)

    def adopt_save_image(
        self, area: str, name: str, *, disk: StoredDisk, report: Report | None = None
    ) -> MemoryState:
        """Check a staged save image and adopt it."""
        self._enter("adopt_save_image")
        return self._states.adopt_save_image(area, name, disk=disk, report=report)

    # GuestView

    def serial_tail(self, owner: InstanceId, *, limit_bytes: int) -> bytes:
        """Return the end of what `write_serial` wrote."""
        with self._lock:
            return self._serial.get(owner, b"")[-limit_bytes:] if limit_bytes > 0 else b""

    def is_alive(self, domain_id: DomainId) -> bool:
        """Return whether the domain is there and has not crashed."""
        with self._lock:
            self._enter("is_alive")
            domain = self._domains.get(domain_id)
            return domain is not None and domain.state != CRASHED

    def accepts(self, domain_id: DomainId, port: int) -> bool:
        """Return whether a running guest takes connections: a bridged one on any port."""
        with self._lock:
            self._enter("accepts")
            domain = self._domains.get(domain_id)
            if not self.accepting or domain is None or domain.state != RUNNING:
                return False
            return not isinstance(domain.spec.network, UserNetwork) or any(
                mapping.host_port == port for mapping in domain.forwards
            )

    def is_connected(self, domain_id: DomainId) -> bool:
        """Return whether a test let a client connect."""
        with self._lock:
            self._enter("is_connected")
            return domain_id in self._connected and domain_id in self._domains

    def address(self, domain_id: DomainId) -> str | None:
        """Return the address of a bridged guest, made up unless a test set one."""
        with self._lock:
            self._enter("address")
            domain = self._domains.get(domain_id)
            if domain is None or isinstance(domain.spec.network, UserNetwork):
                return None
            return self._addresses.get(domain_id, "192.0.2.100")

    # What only tests do.

    def take_port(self, port: int) -> None:
        """Let another program hold a port of the host."""
        with self._lock:
            self._taken_ports.add(port)

    def free_port(self, port: int) -> None:
        """Let the other program give the port back."""
        with self._lock:
            self._taken_ports.discard(port)

    def make_unusable(self, memory: BlobId) -> None:
        """Let every resume from this memory fail, as after an upgrade of QEMU."""
        with self._lock:
            self._unusable.add(memory)

    def fail_next(self, operation: str, error: CloudletError) -> None:
        """Raise `error` at the next call of the method `operation`, before it does anything."""
        with self._lock:
            self._failures.setdefault(operation, []).append(error)

    def crash(self, domain_id: DomainId) -> None:
        """Let a guest panic: the domain stays, nothing in it runs."""
        with self._lock:
            self._domains[domain_id] = replace(self._domain(domain_id), state=CRASHED)

    def stall(self, domain_id: DomainId) -> None:
        """Let a write of a guest find no room on the disk of the Host."""
        with self._lock:
            self._domains[domain_id] = replace(self._domain(domain_id), state=STALLED)

    def power_off(self, domain_id: DomainId) -> None:
        """Let a guest switch itself off: the domain is gone, its disk stays."""
        with self._lock:
            self._domain(domain_id)
            del self._domains[domain_id]

    def reboot_host(self) -> None:
        """Lose all domains and keep all disks."""
        with self._lock:
            self._domains.clear()

    def write_serial(self, owner: InstanceId, output: bytes) -> None:
        """Let a guest print something."""
        with self._lock:
            self._serial[owner] = self._serial.get(owner, b"") + output

    def connect(self, domain_id: DomainId) -> None:
        """Let a client open a connection to a published port."""
        with self._lock:
            self._connected.add(domain_id)

    def disconnect(self, domain_id: DomainId) -> None:
        """Let the clients of a guest close their connections."""
        with self._lock:
            self._connected.discard(domain_id)

    def set_address(self, domain_id: DomainId, address: str | None) -> None:
        """Give a bridged guest an address, or None while it has none."""
        with self._lock:
            self._addresses[domain_id] = address

    def domain(self, domain_id: DomainId) -> FakeDomain:
        """Return what the fake knows about a domain. Raises DomainNotFound."""
        with self._lock:
            return self._domain(domain_id)

    def starts(self) -> tuple[FakeStart, ...]:
        """Return all starts and releases that succeeded, in order."""
        with self._lock:
            return tuple(self._starts)

    def _enter(self, operation: str) -> None:
        with self._lock:
            if not self.available:
                raise HypervisorUnavailable("libvirt cannot be reached; is libvirtd running?")
            waiting = self._failures.get(operation)
            if waiting:
                raise waiting.pop(0)

    def _domain(self, domain_id: DomainId) -> FakeDomain:
        try:
            return self._domains[domain_id]
        except KeyError as exc:
            raise DomainNotFound(domain_id) from exc

    def _executable(self, domain_id: DomainId) -> FakeDomain:
        domain = self._domain(domain_id)
        if domain.state == CRASHED:
            raise HypervisorError(f"domain {domain_id} has crashed")
        return domain

    def _running(self, domain_id: DomainId) -> FakeDomain:
        domain = self._domain(domain_id)
        if domain.state != RUNNING:
            raise HypervisorError(f"domain {domain_id} is {domain.state}")
        return domain

    def _is_started(self, spec: DomainSpec) -> bool:
        domain = self._domains.get(spec.domain_id)
        if domain is not None and domain.spec.owner != spec.owner:
            raise HypervisorError(f"domain {spec.domain_id} belongs to somebody else")
        return domain is not None

    def _make_disk(self, spec: DomainSpec) -> None:
        layers = (spec.disk.blob, *((spec.disk.backing,) if spec.disk.backing else ()))
        for layer in layers:
            try:
                self._blobs.open(layer.id).close()
            except NotFound as exc:
                raise HypervisorError(f"disk layer {layer.id} is missing") from exc
        self._disks.add(spec.owner)

    def _check_memory(self, spec: DomainSpec) -> None:
        memory = spec.memory
        if memory is None:
            return
        if memory.disk != spec.disk:
            raise HypervisorError("a memory state may only be resumed on its own disk")
        if (memory.memory_mib, memory.vcpus) != (spec.memory_mib, spec.vcpus):
            raise StateUnusable("the memory state was made with other memory or processors")
        if memory.memory.id in self._unusable:
            raise StateUnusable("the memory state cannot be resumed by this emulator")
        self._states.check_present(memory)

    def _check_ports(self, forwards: Sequence[PortMapping]) -> None:
        used = {
            mapping.host_port for domain in self._domains.values() for mapping in domain.forwards
        }
        for mapping in forwards:
            if mapping.host_port in self._taken_ports | used:
                raise PortInUse(mapping.host_port)

    def _record_start(self, domain: FakeDomain) -> None:
        self._starts.append(
            FakeStart(
                domain_id=domain.spec.domain_id, owner=domain.spec.owner, method=domain.method
            )
        )


def _method(memory: MemoryState | None) -> StartMethod:
    if memory is None:
        return StartMethod.COLD
    return StartMethod.CLONE if memory.kind is MemoryKind.TEMPLATE else StartMethod.RESTORE


def _ignore_phase(_name: str) -> None:
    """Take no note of a phase."""
