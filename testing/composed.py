# SPDX-License-Identifier: Apache-2.0
"""A whole Core on fakes and the store in memory, put together as the servers do it.

Nothing runs in the background unless a test starts it: `run_jobs` works on everything
that is queued in the calling thread, and `reconcile` lets time pass between two rounds.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from pycloud.adapters.fakes import (
    FakeClock,
    FakeDiscovery,
    FakeHypervisor,
    FakeImages,
    FakePackages,
    FakeProbe,
    FakeSensors,
    MemoryBlobs,
    fake_qcow2,
)
from pycloud.adapters.store.memory import MemoryStore
from pycloud.core.access import ADMIN
from pycloud.core.facade import Core
from pycloud.core.instances import Join, Started, StartRequest
from pycloud.core.intake import AddRequest
from pycloud.core.jobs.runner import StepObserver
from pycloud.core.model.catalog import Service, ServiceDraft, Upload
from pycloud.core.model.identifiers import DeviceId, HostId, InstanceId, ServiceId
from pycloud.core.model.runtime import Instance, Job, JobState
from pycloud.core.ports import Store
from pycloud.settings import Settings
from pycloud.wiring import Ports, assemble, cloudlet_of
from testing.factories import THIS_HOST, a_service_draft

BASE_SETTINGS = Settings(
    data_dir=Path("/nonexistent"),
    store="memory:",
    hypervisor="fake:",
    name="cloudlet-under-test",
    discovery="off",
)
ROUND_S = 4.0
"""Time between two rounds of reconciliation, as in the settings."""


class MemorySecrets:
    """Twin of the secrets on disk: each name has one constant token."""

    def read_or_create(self, name: str) -> str:
        """Return the secret of this name."""
        return f"clt_test_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A Core and the fakes under it, for tests that steer and look at both."""

    core: Core
    ports: Ports
    clock: FakeClock
    blobs: MemoryBlobs
    hypervisor: FakeHypervisor
    probe: FakeProbe
    sensors: FakeSensors
    discovery: FakeDiscovery

    @property
    def store(self) -> Store:
        """The store under the Core."""
        return self.ports.store

    # -- time and work -------------------------------------------------------------

    def run_jobs(self) -> None:
        """Work on every queued Job in this thread."""
        self.core.background.runner.run_pending()

    def reconcile(self, rounds: int = 1) -> None:
        """Make rounds of reconciliation, each a while after the one before."""
        for _ in range(rounds):
            self.clock.advance(ROUND_S)
            self.core.background.reconciler.run()

    def another_server(self, *, settings: Settings | None = None) -> "Composed":
        """Return a second server process on the same store, disk and hypervisor."""
        core = assemble(settings or self.core.settings, self.ports)
        return replace(self, core=core)

    def on_another_host(self) -> "Composed":
        """Return a server on the same store whose disk and hypervisor are others."""
        return a_core(
            settings=self.core.settings,
            store=self.store,
            clock=self.clock,
            host_id=HostId("next-door"),
        )

    # -- the catalogue ----------------------------------------------------------------

    def upload(self, content: bytes = b"", *, file_name: str = "disk.qcow2") -> Upload:
        """Send a whole file; without content, a qcow2 image."""
        sent = content or fake_qcow2(b"a guest")
        uploads = self.core.uploads
        upload = uploads.create(file_name, len(sent), by=ADMIN)
        return uploads.append(upload.id, 0, BytesIO(sent))

    def request_service(self, draft: ServiceDraft | None = None, *, prepare: bool = False) -> Job:
        """Ask for a Service from an uploaded image; nothing is worked on yet."""
        request = AddRequest(
            draft=draft or a_service_draft(), upload_id=self.upload().id, prepare=prepare
        )
        return self.core.intake.request_add(request, by=ADMIN)

    def add_service(self, draft: ServiceDraft | None = None, *, prepare: bool = False) -> Service:
        """Add a Service, with a memory state if it is to be prepared."""
        wanted = draft or a_service_draft()
        self.request_service(wanted, prepare=prepare)
        self.run_jobs()
        return self.core.catalog.service(wanted.id)

    # -- instances ----------------------------------------------------------------------

    def request_start(
        self,
        service_id: ServiceId,
        join: Join = Join.FRESH,
        *,
        device_id: DeviceId | None = None,
    ) -> Started:
        """Ask for an Instance; nothing is worked on yet."""
        request = StartRequest(service_id=service_id, join=join, device_id=device_id)
        return self.core.instances.request_start(request, by=ADMIN)

    def start(
        self,
        service_id: ServiceId,
        join: Join = Join.FRESH,
        *,
        device_id: DeviceId | None = None,
    ) -> Instance:
        """Start or join an Instance and return it as it is afterwards, whatever came out."""
        started = self.request_start(service_id, join, device_id=device_id)
        self.run_jobs()
        return self.core.instances.instance(started.instance.id)

    def stop(self, instance_id: InstanceId) -> Instance:
        """Stop an Instance."""
        self.core.instances.request_stop(instance_id, by=ADMIN)
        self.run_jobs()
        return self.core.instances.instance(instance_id)

    # -- what is left -------------------------------------------------------------------

    def leftovers(self) -> tuple[str, ...]:
        """Name every domain, disk, claim, lease and staging area there is."""
        placement = self.core.system.placement
        return (
            *(f"domain of {domain.owner}" for domain in self.hypervisor.domains()),
            *(f"disk of {owner}" for owner in self.hypervisor.disk_owners()),
            *(f"holder {holder}" for holder in sorted(placement.holders())),
            *(f"area {area}" for area in self.blobs.areas()),
        )

    def jobs(self, state: JobState) -> tuple[Job, ...]:
        """Return all Jobs in a state, oldest first."""
        return self.store.jobs.find({"state": state}).items


def a_core(
    *,
    settings: Settings = BASE_SETTINGS,
    store: Store | None = None,
    clock: FakeClock | None = None,
    host_id: HostId = THIS_HOST,
    observers: tuple[StepObserver, ...] = (),
) -> Composed:
    """Return a Core on fresh fakes."""
    clock = clock or FakeClock()
    blobs = MemoryBlobs()
    hypervisor = FakeHypervisor(blobs, clock=clock)
    probe = FakeProbe(clock)
    sensors = FakeSensors()
    discovery = FakeDiscovery(cloudlet_of(settings, sensors), clock)
    ports = Ports(
        host_id=host_id,
        store=store or MemoryStore(),
        clock=clock,
        blobs=blobs,
        images=FakeImages(blobs),
        packages=FakePackages(blobs),
        hypervisor=hypervisor,
        capture=hypervisor,
        view=hypervisor,
        probe=probe,
        sensors=sensors,
        discovery=discovery,
        secrets=MemorySecrets(),
    )
    return Composed(
        core=assemble(settings, ports, observers=observers),
        ports=ports,
        clock=clock,
        blobs=blobs,
        hypervisor=hypervisor,
        probe=probe,
        sensors=sensors,
        discovery=discovery,
    )
