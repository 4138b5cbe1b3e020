# SPDX-License-Identifier: Apache-2.0
"""A whole cloudlet in memory: the real core and both real apps on behaving twins of the ports."""

from dataclasses import dataclass
from pathlib import Path
from wsgiref.types import WSGIApplication

from webtest import TestApp, TestResponse

from pycloud import api, manager, wiring
from pycloud.adapters.clock import SystemClock
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.fakes import (
    FakeDiscovery,
    FakeHypervisor,
    FakeImages,
    FakePackages,
    FakeProbe,
    FakeSensors,
    MemoryBlobs,
    fake_qcow2,
)
from pycloud.adapters.security.token_files import TokenFiles
from pycloud.adapters.store.memory import MemoryStore
from pycloud.core.facade import Core
from pycloud.core.model.catalog import Service
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.ports import Clock
from pycloud.settings import Settings, from_mapping
from testing.factories import THIS_HOST, a_service, a_service_vm

PHONE = {"X-Device-ID": "phone-1"}
OTHER_PHONE = {"X-Device-ID": "phone-2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """The cloudlet, the twins it stands on, and clients for its apps."""

    core: Core
    settings: Settings
    blobs: MemoryBlobs
    hypervisor: FakeHypervisor
    probe: FakeProbe
    sensors: FakeSensors
    store: MemoryStore
    token: str

    @property
    def admin(self) -> dict[str, str]:
        """The headers of an administrator."""
        return {"Authorization": f"Bearer {self.token}"}

    def api(self, *, address: str = "192.0.2.77") -> TestApp:
        """Return a client of the Cloudlet API that calls from an address."""
        return client_of(api.make_app(self.core, self.settings), address)

    def manager(self, *, address: str = "127.0.0.1") -> TestApp:
        """Return a client of the Manager that calls from an address."""
        return client_of(manager.make_app(self.core, self.settings), address)

    def add_service(self, service_id: str = "echo", *, sharing_limit: int = 1) -> Service:
        """Store a startable Service."""
        disk_blob = self.blobs.put(fake_qcow2(service_id.encode()))
        service_vm = a_service_vm(service_id=ServiceId(service_id))
        disk = type(service_vm.disk)(blob=disk_blob, virtual_size_bytes=8 << 20)
        stored = self.store.service_vms.add(
            a_service_vm(id=service_vm.id, service_id=ServiceId(service_id), disk=disk)
        )
        return self.store.services.add(
            a_service(
                id=ServiceId(service_id),
                sharing_limit=sharing_limit,
                service_vm_id=stored.id,
                ideal_memory_mib=128,
                min_memory_mib=64,
            )
        )

    def upload(self, client: TestApp, content: bytes, *, name: str = "ZGlzay5xY293Mg==") -> str:
        """Send content as an upload, and return its id."""
        created = client.post(
            "/api/v2/uploads",
            headers=self.admin
            | {"Upload-Length": str(len(content)), "Upload-Metadata": f"filename {name}"},
            status=201,
        )
        client.patch(
            created.headers["Location"],
            content,
            headers=self.admin
            | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
            status=204,
        )
        upload_id: str = created.json["id"]
        return upload_id


def make_stand(directory: Path, *, clock: Clock | None = None, **texts: str) -> Stand:
    """Build a cloudlet; `texts` are settings as they would be written."""
    values = {f"pycloud.{name}": text for name, text in texts.items()}
    settings = from_mapping(
        {
            "pycloud.data_dir": str(directory),
            "pycloud.name": "stand",
            "pycloud.publish_address": "192.0.2.10",
            "pycloud.warm_total": "0",
            **values,
        }
    ).settings
    clock = clock or SystemClock()
    blobs, store, sensors = MemoryBlobs(), MemoryStore(), FakeSensors()
    hypervisor, probe = FakeHypervisor(blobs, clock=clock), FakeProbe(clock)
    secrets = TokenFiles(DataDirectory(directory))
    core = wiring.assemble(
        settings,
        wiring.Ports(
            host_id=THIS_HOST,
            store=store,
            clock=clock,
            blobs=blobs,
            images=FakeImages(blobs),
            packages=FakePackages(blobs),
            hypervisor=hypervisor,
            capture=hypervisor,
            view=hypervisor,
            probe=probe,
            sensors=sensors,
            discovery=FakeDiscovery(wiring.cloudlet_of(settings, sensors), clock),
            secrets=secrets,
        ),
    )
    core.system.placement.refresh_host()
    return Stand(
        core=core,
        settings=settings,
        blobs=blobs,
        hypervisor=hypervisor,
        probe=probe,
        sensors=sensors,
        store=store,
        token=secrets.read_or_create("admin.token"),
    )


def client_of(application: WSGIApplication, address: str) -> TestApp:
    """Return a client that calls from an address."""
    return TestApp(application, extra_environ={"REMOTE_ADDR": address})


def problem_of(response: TestResponse) -> str:
    """Return the code of a problem, after a look at its form."""
    assert response.content_type == "application/problem+json"
    assert response.json["status"] == response.status_int
    assert response.json["request_id"] == response.headers["X-Request-ID"]
    code: str = response.json["code"]
    return code
