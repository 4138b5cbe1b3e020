# SPDX-License-Identifier: Apache-2.0
"""A cloudlet in a data directory of its own, on real libvirt, quick to notice a death."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pycloud.core.facade import Core
from pycloud.core.intake import AddRequest
from pycloud.core.jobs.runner import StepObserver
from pycloud.core.model.catalog import ServiceDraft, Upload
from pycloud.core.model.identifiers import Principal, ServiceId
from pycloud.settings import Settings, from_mapping
from pycloud.wiring import build_core

OPERATOR = Principal("admin")
SERVICE = ServiceId("demo")
PORT = 8080
WAIT_S = 60.0
_PORTS = 200
# Each of the processes that run tests side by side has ports of its own.
_FIRST_PORT = 24000 + _PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def settings_for(data_dir: Path, *, warm_total: int = 0) -> Settings:
    """Return settings under which a dead server is noticed within two seconds."""
    return from_mapping(
        {
            "pycloud.data_dir": str(data_dir),
            "pycloud.discovery": "off",
            "pycloud.job_lease_s": "1.0",
            "pycloud.reconcile_s": "0.3",
            "pycloud.port_range": f"{_FIRST_PORT}-{_FIRST_PORT + _PORTS - 1}",
            "pycloud.publish_bind": "127.0.0.1",
            "pycloud.reserved_memory_mib": "0",
            "pycloud.warm_total": str(warm_total),
        }
    ).settings


@contextmanager
def running_core(settings: Settings, *, observers: Iterable[StepObserver] = ()) -> Iterator[Core]:
    """Run a server without its HTTP side; its VMs outlive it, as they should."""
    core = build_core(settings, observers=observers)
    core.background.start()
    try:
        yield core
    finally:
        core.background.stop()


def upload(core: Core, path: Path) -> Upload:
    """Bring a file in as an operator would."""
    announced = core.uploads.create(path.name, path.stat().st_size, by=OPERATOR)
    with path.open("rb") as stream:
        return core.uploads.append(announced.id, 0, stream)


def add_request(announced: Upload, service_id: ServiceId = SERVICE) -> AddRequest:
    """Ask for the demo Service, without a memory state."""
    draft = ServiceDraft(id=service_id, port=PORT, min_memory_mib=128, ideal_memory_mib=160)
    return AddRequest(draft=draft, upload_id=announced.id, prepare=False)
