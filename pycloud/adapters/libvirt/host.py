# SPDX-License-Identifier: Apache-2.0
"""What the three ports of this package share: one libvirt, one data directory, one clock."""

import logging
import threading

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt.bridge_ports import has_port, remove_port
from pycloud.adapters.libvirt.capabilities import process_owner, read_facts
from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.disks import InstanceFiles
from pycloud.adapters.libvirt.domain_plan import ProcessOwner
from pycloud.adapters.libvirt.domains import DomainControl, cloudlet_mark, domain_name
from pycloud.adapters.libvirt.monitor import Monitor
from pycloud.adapters.libvirt.planner import Planner
from pycloud.adapters.libvirt.session_daemon import emulator_log, needs_own_daemon
from pycloud.adapters.libvirt.starting import Starter
from pycloud.adapters.relay.client import RelayClient
from pycloud.core.model.fleet import HypervisorFacts
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.core.model.runtime import PortMapping
from pycloud.core.ports import Clock
from pycloud.errors import CloudletError, HypervisorError, StoreError
from pycloud.settings import Settings

_log = logging.getLogger(__name__)


class LibvirtHost:
    """One host's libvirt and the parts that work on it."""

    def __init__(self, uri: str, *, data: DataDirectory, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._facts: HypervisorFacts | None = None
        self._owner: tuple[ProcessOwner | None] | None = None
        self.clock = clock
        self.data = data
        self.connection = Connection(uri)
        self.domains = DomainControl(self.connection, mark=cloudlet_mark(data.root))
        self.files = InstanceFiles(data, tool_timeout_s=settings.tool_timeout_s)
        self.planner = Planner(
            facts=self.facts,
            process_owner=self.process_owner,
            translation_cache_mib=settings.emulator_tb_mib,
        )
        self.relay = RelayClient(data.relay_path(), bind=settings.publish_bind)
        self.starter = Starter(
            connection=self.connection,
            domains=self.domains,
            files=self.files,
            planner=self.planner,
            clock=clock,
        )

    def facts(self) -> HypervisorFacts:
        """Return what libvirt and QEMU can do, read once."""
        with self._lock:
            if self._facts is None:
                self._facts = read_facts(
                    self.connection,
                    cpu_model=self._settings.cpu_model,
                    translation_cache_mib=self._settings.emulator_tb_mib,
                )
            return self._facts

    def process_owner(self) -> ProcessOwner | None:
        """Return under which account emulators must be put, read once."""
        with self._lock:
            if self._owner is None:
                self._owner = (process_owner(self.connection),)
            return self._owner[0]

    def monitor(self, domain_id: DomainId) -> Monitor:
        """Return the monitor of a domain that is known to be ours."""
        return Monitor(self.connection, domain_id)

    def publish(
        self, domain_id: DomainId, owner: InstanceId, forwards: tuple[PortMapping, ...]
    ) -> None:
        """Open a domain's host ports to this host and its clients.

        Raises PortInUse, HypervisorError, and then has taken back what it added.
        """
        if not forwards:
            return
        monitor = self.monitor(domain_id)
        added = monitor.add_forwards(forwards)
        try:
            self.relay.publish(owner, [mapping.host_port for mapping in forwards])
        except CloudletError:
            monitor.remove_forwards(added)
            raise

    def publish_locally(self, domain_id: DomainId, forwards: tuple[PortMapping, ...]) -> None:
        """Open a domain's host ports to this host alone. Raises PortInUse."""
        if forwards:
            self.monitor(domain_id).add_forwards(forwards)

    def ensure_relay(self) -> None:
        """Replace a relay that died; guests go on without one, unseen by clients."""
        try:
            self.relay.ensure()
        except (HypervisorError, StoreError) as exc:
            _log.error("relay_unavailable reason=%s", exc)

    def discard(self, domain_id: DomainId, owner: InstanceId) -> None:
        """End a domain of ours and remove its files; idempotent."""
        self.domains.destroy(domain_id)
        if needs_own_daemon(self.connection.uri) and has_port(domain_id):
            remove_port(domain_id)
        emulator_log(domain_name(owner)).unlink(missing_ok=True)
        # Before the directory, by which a discard that was cut short is recognised.
        self.relay.withdraw(owner)
        self.files.remove(owner)
