# SPDX-License-Identifier: Apache-2.0
"""The composition root: from Settings to a Core. The only importer of adapters.

A URL scheme in the settings chooses each adapter. `assemble` puts any set of
ports together, which is also how tests get a Core on fakes.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pycloud import __version__
from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.clock import SystemClock
from pycloud.adapters.csvm import CsvmPackages
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.diagnosis import diagnose as examine_machine
from pycloud.adapters.discovery import discovery_for
from pycloud.adapters.discovery import find_cloudlets as look_around
from pycloud.adapters.fakes import FakeHypervisor, FakeProbe
from pycloud.adapters.host_identity import host_id_of
from pycloud.adapters.images import QemuImages
from pycloud.adapters.libvirt import libvirt_adapters
from pycloud.adapters.probe import SocketProbe
from pycloud.adapters.security.token_files import TokenFiles
from pycloud.adapters.sensors import PsutilSensors
from pycloud.adapters.store.memory import MemoryStore
from pycloud.adapters.store.mongo import MongoStore
from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.core.access import Access
from pycloud.core.apps import Apps
from pycloud.core.catalog import Catalog
from pycloud.core.exports import Exports
from pycloud.core.facade import Background, Core
from pycloud.core.guests import GuestOptions, Guests
from pycloud.core.health import Health
from pycloud.core.instances import Instances, Starting, Stopping
from pycloud.core.instances.lifecycle import InstanceOptions
from pycloud.core.instances.records import InstanceRecords
from pycloud.core.intake import Intake
from pycloud.core.jobs import JobRunner, Jobs, Lane, Procedure
from pycloud.core.jobs.runner import RunnerOptions, StepObserver
from pycloud.core.machines import NetworkOptions
from pycloud.core.mailbox import Mailbox
from pycloud.core.model.diagnosis import Finding
from pycloud.core.model.fleet import Cloudlet, Peer, ThisHost
from pycloud.core.model.identifiers import HostId
from pycloud.core.placement import Placement, PlacementOptions
from pycloud.core.ports import (
    Blobs,
    Clock,
    Discovery,
    GuestView,
    HostSensors,
    Hypervisor,
    Images,
    MemoryCapture,
    Packages,
    Probe,
    Secrets,
    Store,
)
from pycloud.core.reconcile import ReconcileOptions, Reconciler
from pycloud.core.removal import Removal
from pycloud.core.system import System
from pycloud.core.templates import Templates
from pycloud.core.uploads import UploadOptions, Uploads
from pycloud.core.warm_pool import WarmOptions, WarmPool
from pycloud.settings import Settings

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_STALE_ROUNDS = 4
_LEAST_STALE_S = 15.0
"""A busy libvirt may well take seconds for a round, however fast rounds are set to come."""
_MOST_AT_WORK = 256
"""Starts and stops mostly wait for a guest: they need threads, not processors. So each Instance
that there may be has a worker, up to this many."""
_REFUSALS = 8
"""More workers than Instances: a start that finds no room is told so at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """One adapter for each port, and the Host on which they work."""

    host_id: HostId
    store: Store
    clock: Clock
    blobs: Blobs
    images: Images
    packages: Packages
    hypervisor: Hypervisor
    capture: MemoryCapture
    view: GuestView
    probe: Probe
    sensors: HostSensors
    discovery: Discovery
    secrets: Secrets


def build_core(settings: Settings, *, observers: Iterable[StepObserver] = ()) -> Core:
    """Build the Core that the settings describe; nothing runs in the background yet.

    Raises InvalidSettings, StoreError, HypervisorUnavailable is left for the first use.
    """
    clock = SystemClock()
    sensors = PsutilSensors(settings, clock)
    return assemble(settings, _adapters(settings, clock, sensors), observers=observers)


def cloudlet_of(settings: Settings, sensors: HostSensors) -> Cloudlet:
    """Return who this cloudlet is."""
    return Cloudlet(
        name=settings.name or socket.gethostname().split(".", maxsplit=1)[0],
        fqdn=settings.fqdn or None,
        address=sensors.published_address(),
        port=settings.api_port,
        version=__version__,
    )


def admin_token_path(settings: Settings) -> Path:
    """Return the file that holds the administrator's token, readable by its owner."""
    return settings.data_dir / "admin.token"


def diagnose(settings: Settings) -> Iterator[Finding]:
    """Examine this machine without a server; yields each finding when it is made."""
    return examine_machine(settings)


def find_cloudlets(settings: Settings, *, timeout_s: float) -> tuple[Peer, ...]:
    """Return the cloudlets around, as a stranger sees them. Raises DiscoveryError."""
    return look_around(settings, SystemClock(), timeout_s=timeout_s)


def assemble(settings: Settings, ports: Ports, *, observers: Iterable[StepObserver] = ()) -> Core:
    """Put the capabilities of the core together on these ports."""
    base = _base(settings, ports, observers)
    machines = _machines(settings, ports, base)
    content = _content(settings, ports, base, machines)
    base.runner.register(_procedures(base, machines, content))
    system = System(
        cloudlet=cloudlet_of(settings, ports.sensors),
        store=ports.store,
        hypervisor_port=ports.hypervisor,
        blobs=ports.blobs,
        sensors=ports.sensors,
        placement=base.guests.placement,
        discovery=ports.discovery,
    )
    health = Health(system, base.runner, ports.clock, stale_s=_stale_s(settings))
    access = Access(ports.secrets)
    background = Background(
        store=ports.store,
        runner=base.runner,
        reconciler=_reconciler(settings, ports, base, machines, content),
        discovery=ports.discovery,
        access=access,
        system=system,
        health=health,
        clock=ports.clock,
        reconcile_s=settings.reconcile_s,
    )
    return Core(
        settings=settings,
        cloudlet=system.cloudlet,
        clock=ports.clock,
        catalog=base.catalog,
        intake=content.intake,
        exports=content.exports,
        removal=content.removal,
        templates=machines.templates,
        instances=machines.instances,
        apps=content.apps,
        uploads=base.uploads,
        jobs=base.jobs,
        mailbox=Mailbox(store=ports.store, clock=ports.clock),
        access=access,
        system=system,
        health=health,
        events=ports.store.events,
        replies=ports.store.idempotent_replies,
        background=background,
    )


# -- the capabilities, from the bottom up -----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What most capabilities are built on."""

    jobs: Jobs
    runner: JobRunner
    catalog: Catalog
    uploads: Uploads
    guests: Guests
    records: InstanceRecords


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machines:
    """The capabilities that run guests for clients."""

    warm_pool: WarmPool
    templates: Templates
    instances: Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The capabilities that bring Services and Apps in and out."""

    intake: Intake
    exports: Exports
    removal: Removal
    apps: Apps


def _base(settings: Settings, ports: Ports, observers: Iterable[StepObserver]) -> _Base:
    host = ThisHost(id=ports.host_id)
    jobs = Jobs(ports.store, ports.clock, host=host)
    return _Base(
        jobs=jobs,
        runner=JobRunner(
            jobs,
            store=ports.store,
            clock=ports.clock,
            options=_runner_options(settings, host),
            observers=observers,
        ),
        catalog=Catalog(store=ports.store, clock=ports.clock),
        uploads=Uploads(
            host=host,
            store=ports.store,
            blobs=ports.blobs,
            clock=ports.clock,
            options=UploadOptions(
                max_bytes=settings.max_image_gib * _GIB, timeout_s=settings.upload_timeout_s
            ),
        ),
        guests=_guests(settings, ports),
        records=InstanceRecords(store=ports.store, clock=ports.clock),
    )


def _machines(settings: Settings, ports: Ports, base: _Base) -> _Machines:
    warm_pool = WarmPool(
        store=ports.store,
        catalog=base.catalog,
        jobs=base.jobs,
        guests=base.guests,
        options=_warm_options(settings),
    )
    templates = Templates(
        catalog=base.catalog,
        jobs=base.jobs,
        guests=base.guests,
        blobs=ports.blobs,
        warm_pool=warm_pool,
    )
    instances = Instances(
        records=base.records,
        catalog=base.catalog,
        jobs=base.jobs,
        guests=base.guests,
        warm_pool=warm_pool,
        options=InstanceOptions(
            idle_timeout_s=settings.idle_timeout_s, max_lifetime_s=settings.max_lifetime_s
        ),
    )
    return _Machines(warm_pool=warm_pool, templates=templates, instances=instances)


def _content(settings: Settings, ports: Ports, base: _Base, machines: _Machines) -> _Content:
    return _Content(
        intake=Intake(
            catalog=base.catalog,
            jobs=base.jobs,
            uploads=base.uploads,
            templates=machines.templates,
            images=ports.images,
            packages=ports.packages,
            hypervisor=ports.hypervisor,
            capture=ports.capture,
        ),
        exports=Exports(
            store=ports.store,
            catalog=base.catalog,
            jobs=base.jobs,
            guests=base.guests,
            blobs=ports.blobs,
            packages=ports.packages,
            warm_pool=machines.warm_pool,
            keep_s=settings.upload_timeout_s,
        ),
        removal=Removal(
            catalog=base.catalog,
            jobs=base.jobs,
            instances=machines.instances,
            warm_pool=machines.warm_pool,
        ),
        apps=Apps(
            store=ports.store,
            blobs=ports.blobs,
            clock=ports.clock,
            uploads=base.uploads,
            max_bytes=settings.max_app_mib * _MIB,
        ),
    )


def _procedures(base: _Base, machines: _Machines, content: _Content) -> tuple[Procedure, ...]:
    starting = Starting(
        records=base.records,
        catalog=base.catalog,
        guests=base.guests,
        warm_pool=machines.warm_pool,
        templates=machines.templates,
    )
    return (
        starting.procedure(),
        Stopping(records=base.records, guests=base.guests).procedure(),
        *machines.templates.procedures(),
        *machines.warm_pool.procedures(),
        *content.intake.procedures(),
        *content.exports.procedures(),
        *content.removal.procedures(),
    )


def _reconciler(
    settings: Settings, ports: Ports, base: _Base, machines: _Machines, content: _Content
) -> Reconciler:
    return Reconciler(
        store=ports.store,
        runner=base.runner,
        catalog=base.catalog,
        apps=content.apps,
        uploads=base.uploads,
        exports=content.exports,
        instances=machines.instances,
        warm_pool=machines.warm_pool,
        guests=base.guests,
        blobs=ports.blobs,
        options=ReconcileOptions(
            keep_finished_s=settings.keep_finished_s, keep_events=settings.keep_events
        ),
    )


# -- adapters by URL ---------------------------------------------------------------


def _adapters(settings: Settings, clock: Clock, sensors: HostSensors) -> Ports:
    data = DataDirectory(settings.data_dir)
    blobs = DiskBlobs(data)
    hypervisor: Hypervisor
    capture: MemoryCapture
    view: GuestView
    probe: Probe
    if settings.hypervisor.startswith("fake:"):
        fake = FakeHypervisor(blobs, clock=clock)
        hypervisor, capture, view, probe = fake, fake, fake, FakeProbe(clock)
    else:
        libvirt = libvirt_adapters(
            settings.hypervisor, data=data, blobs=blobs, settings=settings, clock=clock
        )
        hypervisor, capture, view = libvirt.hypervisor, libvirt.memory_capture, libvirt.guest_view
        probe = SocketProbe(clock, view.accepts)
    return Ports(
        host_id=host_id_of(data),
        store=_store(settings, data),
        clock=clock,
        blobs=blobs,
        images=QemuImages(data, blobs, settings),
        packages=CsvmPackages(data, settings),
        hypervisor=hypervisor,
        capture=capture,
        view=view,
        probe=probe,
        sensors=sensors,
        discovery=discovery_for(settings, cloudlet_of(settings, sensors), clock),
        secrets=TokenFiles(data),
    )


def _store(settings: Settings, data: DataDirectory) -> Store:
    if settings.store == "memory:":
        return MemoryStore()
    if settings.store.startswith("mongodb"):
        return MongoStore(settings.store)
    named = settings.store.removeprefix("sqlite:///")
    return SqliteStore(Path(named).expanduser() if named else data.root / "store.sqlite3")


# -- options -------------------------------------------------------------------------


def _runner_options(settings: Settings, host: ThisHost) -> RunnerOptions:
    at_work = min(settings.max_instances, _MOST_AT_WORK)
    return RunnerOptions(
        server_id=f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}",
        host=host,
        lease_s=settings.job_lease_s,
        workers={
            Lane.STARTS: at_work + _REFUSALS,
            Lane.STOPS: at_work,
            Lane.CONTENT: settings.job_workers,
            Lane.BACKGROUND: 1,
        },
    )


def _stale_s(settings: Settings) -> float:
    """Return the age of a look at our health that says that something hangs."""
    return max(_STALE_ROUNDS * settings.reconcile_s, _LEAST_STALE_S)


def _guests(settings: Settings, ports: Ports) -> Guests:
    placement = Placement(
        store=ports.store,
        clock=ports.clock,
        sensors=ports.sensors,
        overhead_mib=lambda: ports.hypervisor.facts().overhead_mib,
        options=PlacementOptions(
            host_id=ports.host_id,
            max_instances=settings.max_instances,
            reserved_memory_mib=settings.reserved_memory_mib,
            memory_overcommit=settings.memory_overcommit,
            port_range=settings.port_range,
        ),
    )
    return Guests(
        hypervisor=ports.hypervisor,
        capture=ports.capture,
        view=ports.view,
        probe=ports.probe,
        sensors=ports.sensors,
        placement=placement,
        clock=ports.clock,
        options=GuestOptions(
            network=NetworkOptions(bridge=settings.network_bridge),
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
        ),
    )


def _warm_options(settings: Settings) -> WarmOptions:
    return WarmOptions(
        total=settings.warm_total,
        per_service=settings.warm_per_service,
        popular_s=settings.warm_popular_s,
        min_free_mib=settings.warm_min_free_mib,
    )
