# SPDX-License-Identifier: Apache-2.0
"""Everything a cloudlet can do, as one typed object that both apps are given."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pycloud.core.access import Access
from pycloud.core.apps import Apps
from pycloud.core.catalog import Catalog
from pycloud.core.exports import Exports
from pycloud.core.health import Health
from pycloud.core.instances import Instances
from pycloud.core.intake import Intake
from pycloud.core.jobs import JobRunner, Jobs
from pycloud.core.mailbox import Mailbox
from pycloud.core.model.fleet import Cloudlet, HypervisorFacts, Peer
from pycloud.core.model.runtime import IdempotentReply
from pycloud.core.ports import Clock, Discovery, EventLog, Repository, Store
from pycloud.core.reconcile import Reconciler
from pycloud.core.removal import Removal
from pycloud.core.system import System
from pycloud.core.templates import Templates
from pycloud.core.uploads import Uploads
from pycloud.errors import CloudletError
from pycloud.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The capabilities of this cloudlet. Safe to use from several threads."""

    settings: Settings
    cloudlet: Cloudlet
    clock: Clock
    catalog: Catalog
    intake: Intake
    exports: Exports
    removal: Removal
    templates: Templates
    instances: Instances
    apps: Apps
    uploads: Uploads
    jobs: Jobs
    mailbox: Mailbox
    access: Access
    system: System
    health: Health
    events: EventLog
    replies: Repository[IdempotentReply]
    background: "Background"

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets seen on the network."""
        return self.system.peers()

    def hypervisor_facts(self) -> HypervisorFacts:
        """Return what the hypervisor can do. Raises HypervisorUnavailable."""
        return self.system.hypervisor()


@dataclass(slots=True, kw_only=True)
class Background:
    """What runs beside the requests: Jobs, reconciliation, discovery, looks at our health.

    One per process.
    """

    store: Store
    runner: JobRunner
    reconciler: Reconciler
    discovery: Discovery
    access: Access
    system: System
    health: Health
    clock: Clock
    reconcile_s: float
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin to work, to repair what a crash left, and to announce; return at once."""
        self.access.prepare()
        self.system.placement.refresh_host()
        self._thread = threading.Thread(target=self._loop, name="reconcile", daemon=True)
        self.runner.start()
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye, let Jobs end, close the store. VMs keep running; idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.discovery.stop()
        self.runner.stop()
        if self._thread is not None:
            self._thread.join()
        self.store.close()

    def _loop(self) -> None:
        _logged(self.health.look)
        _logged(self.discovery.start)
        while True:
            self.reconciler.run()
            _logged(self._tell_load)
            if self._stopping.wait(self.reconcile_s):
                return
            _logged(self.health.look)

    def _tell_load(self) -> None:
        metadata = self.system.metadata()
        used_bytes = metadata.memory.max_bytes - metadata.memory.free_bytes
        memory_percent = 100 * used_bytes // max(metadata.memory.max_bytes, 1)
        load_percent = max(int(metadata.cpu.usage_percent), memory_percent)
        services = [service.id for service in self.store.services.find(limit=200).items]
        self.discovery.update_load(load_percent=load_percent, services=services)


def _logged(action: Callable[[], None]) -> None:
    try:
        action()
    except CloudletError as exc:
        log.warning(
            "background_action_failed",
            extra={"action": action.__name__, "code": exc.code, "reason": exc.message},
        )
    except Exception:  # Without this thread nothing would ever be looked at or repaired again.
        log.exception("background_action_crashed", extra={"action": action.__name__})
