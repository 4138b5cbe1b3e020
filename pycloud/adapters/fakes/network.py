# SPDX-License-Identifier: Apache-2.0
"""Probe, sensors and discovery without sockets."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pycloud.core.model.fleet import Cloudlet, CpuInfo, HostMetadata, MemoryInfo, Peer
from pycloud.core.ports import Clock, ProbeTarget
from pycloud.errors import GuestFailed, NameTaken, ServiceNotReady

_ALIVE_INTERVAL_S = 0.25
_REAL_WAIT_S = 0.005
FAKE_API_VERSION = "2"


class Answer(StrEnum):
    """What the service behind the probe does."""

    READY = "ready"
    NEVER = "never"
    GUEST_DIES = "guest_dies"
    HELD = "held"
    """It answers when the test calls `let_go`, in real time."""


class FakeProbe:
    """Twin of the socket probe: `answer` rules, unless `answers` has the target's port."""

    def __init__(self, clock: Clock) -> None:
        self.answer = Answer.READY
        self.answers: dict[int, Answer] = {}
        self.answer_after_s = 0.0
        self._clock = clock
        self._gate = threading.Event()
        self._lock = threading.Lock()
        self._targets: list[ProbeTarget] = []

    def wait(self, target: ProbeTarget, *, timeout_s: float, is_alive: Callable[[], bool]) -> None:
        """Return at once, when let go, or raise as the answer says."""
        with self._lock:
            self._targets.append(target)
        answer = self.answers.get(target.port, self.answer)
        if answer is Answer.GUEST_DIES or not is_alive():
            raise GuestFailed("the guest stopped before its service answered")
        waited_s = 0.0
        while not self._has_answered(answer, waited_s):
            if waited_s >= timeout_s:
                raise ServiceNotReady(port=target.port, timeout_s=timeout_s)
            if answer is Answer.HELD:
                self._gate.wait(_REAL_WAIT_S)
            else:
                self._clock.sleep(_ALIVE_INTERVAL_S)
                waited_s += _ALIVE_INTERVAL_S
            if not is_alive():
                raise GuestFailed("the guest stopped before its service answered")

    def let_go(self) -> None:
        """Let all held services answer, now and later."""
        self._gate.set()

    def targets(self) -> tuple[ProbeTarget, ...]:
        """Return what was waited for, in order."""
        with self._lock:
            return tuple(self._targets)

    def _has_answered(self, answer: Answer, waited_s: float) -> bool:
        if answer is Answer.READY:
            return waited_s >= self.answer_after_s
        return answer is Answer.HELD and self._gate.is_set()


class FakeSensors:
    """Twin of the host's sensors; tests replace `figures` and `address`."""

    def __init__(self, *, address: str = "192.0.2.10", memory_mib: int = 16 * 1024) -> None:
        self.address = address
        self.figures = HostMetadata(
            memory=MemoryInfo(max_bytes=memory_mib << 20, free_bytes=memory_mib << 19),
            cpu=CpuInfo(max_cores=4, usage_percent=12.5, speed_mhz=2400.0, cache_kib=8192),
        )

    def metadata(self) -> HostMetadata:
        """Return the figures."""
        return self.figures

    def published_address(self) -> str:
        """Return the address."""
        return self.address


@dataclass(slots=True)
class FakeNetwork:
    """A network segment on which cloudlets with a FakeDiscovery see each other."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    announced: dict[str, Peer] = field(default_factory=dict)


class FakeDiscovery:
    """Twin of mDNS on a FakeNetwork; a taken name is reported and claimed once it is free."""

    def __init__(
        self, cloudlet: Cloudlet, clock: Clock, *, network: FakeNetwork | None = None
    ) -> None:
        self._cloudlet = cloudlet
        self._clock = clock
        self._network = network or FakeNetwork()
        self._running = False
        self._announced = False
        self._load_percent: int | None = None
        self._services: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin to announce, or wait for our name."""
        self._running = True
        self._announce()

    def update_load(self, *, load_percent: int, services: Sequence[str]) -> None:
        """Change what others see of us."""
        self._load_percent = load_percent
        self._services = tuple(services)
        if self._announced:
            with self._network.lock:
                self._network.announced[self._cloudlet.name] = self._as_peer()

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets on the network."""
        if not self._running:
            return ()
        with self._network.lock:
            return tuple(
                peer
                for name, peer in sorted(self._network.announced.items())
                if name != self._cloudlet.name or not self._announced
            )

    def problem(self) -> str | None:
        """Return that our name is taken, as long as it is."""
        if self._running and not self._announced:
            self._announce()
        return NameTaken(self._cloudlet.name).message if not self._is_well() else None

    def stop(self) -> None:
        """Leave the network; idempotent."""
        with self._network.lock:
            if self._announced:
                self._network.announced.pop(self._cloudlet.name, None)
        self._running = self._announced = False

    def _is_well(self) -> bool:
        return self._announced or not self._running

    def _announce(self) -> None:
        with self._network.lock:
            if not self._announced and self._cloudlet.name not in self._network.announced:
                self._network.announced[self._cloudlet.name] = self._as_peer()
                self._announced = True

    def _as_peer(self) -> Peer:
        return Peer(
            name=self._cloudlet.name,
            addresses=(self._cloudlet.address,),
            port=self._cloudlet.port,
            encryption=False,
            api_version=FAKE_API_VERSION,
            load_percent=self._load_percent,
            services=self._services,
            seen_at=self._clock.now(),
        )
