# SPDX-License-Identifier: Apache-2.0
"""Many starts at once: time to ready and memory of the host; a template after many clones.

    python -m testing.bench crowd [--quick] [--directory DIR]

N clients ask in the same moment. Memory is the sum of the proportional set sizes of the
emulators while all guests run: a page that several map counts for each by its share.
"""

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pycloud.adapters.blobs import DiskBlobs
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt.connection import Connection
from pycloud.adapters.libvirt.monitor import Monitor
from pycloud.core.machines import domain_id_of
from pycloud.core.model.catalog import MemoryState
from pycloud.core.model.identifiers import InstanceId, ServiceId
from pycloud.core.model.runtime import StartMethod
from pycloud.errors import HypervisorError
from testing.bench.cloudlet import OurCloudlet, our_cloudlet
from testing.bench.copy_restore import CopyingCloudlet, copying_cloudlet
from testing.bench.phone import touch_memory
from testing.bench.table import Effort, Table, ratio, ratio_of, seconds

MEMORY_MIB = 512
CROWDS = (1, 4, 8)
ROUNDS = {Effort.FULL: 5, Effort.QUICK: 1}
CLONES = {Effort.FULL: 100, Effort.QUICK: 8}
CLONES_AT_ONCE = 4
DIRTIED_MIB = 64
BALLOON_TO_MIB = 128
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Crowd:
    """One way to start N guests: per round the median time and the memory of all."""

    ready_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def add(self, answers_s: Sequence[float], memory_mib: float) -> None:
        """Add what one round gave."""
        self.ready_s.append(statistics.median(answers_s))
        self.memory_mib.append(memory_mib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowds:
    """The ways to start N guests."""

    copied: Crowd = field(default_factory=Crowd)
    cloned: Crowd = field(default_factory=Crowd)
    waiting: Crowd = field(default_factory=Crowd)


def tables(directory: Path, effort: Effort) -> list[Table]:
    """Measure everything in directories made in `directory`."""
    with our_cloudlet(directory / "ours") as ours:
        service_id = ours.add_service(MEMORY_MIB)
        with copying_cloudlet(directory / "copies") as copies:
            state = copies.save(MEMORY_MIB)
            crowds = {count: Crowds() for count in CROWDS}
            for _ in range(ROUNDS[effort]):
                for count, found in crowds.items():
                    _copy(copies, state, count, found.copied)
                    _start(ours, (service_id, StartMethod.CLONE), count, found.cloned)
                    ours.fill_pool(service_id, count)
                    _start(ours, (service_id, StartMethod.WARM), count, found.waiting)
                    ours.drain_pool(service_id)
        worn = _wear(ours, service_id, CLONES[effort])
    return [_table(crowds), worn]


def _copy(copies: CopyingCloudlet, state: MemoryState, count: int, crowd: Crowd) -> None:
    done = _at_once(count, lambda: copies.start(state))
    owners = [each.spec.owner for each in done]
    crowd.add([each.answer_s for each in done], _memory_mib_of(owners))
    copies.stop(*(each.spec for each in done))


def _start(
    ours: OurCloudlet, chosen: tuple[ServiceId, StartMethod], count: int, crowd: Crowd
) -> None:
    done = _at_once(count, lambda: ours.start(*chosen))
    owners = [each.instance.id for each in done]
    crowd.add([each.answer_s for each in done], _memory_mib_of(owners))
    ours.stop(*owners)


def _at_once(count: int, action: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(action) for _ in range(count)]]


def _memory_mib_of(owners: Sequence[InstanceId]) -> float:
    """Return the proportional set size of the emulators of these guests."""
    names = {f"guest=pycloud-{owner}" for owner in owners}
    total_kib, found = 0, 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text(encoding="utf-8", errors="replace")
            if names.isdisjoint(arguments.replace(",", "\0").split("\0")):
                continue
            total_kib += _pss_kib((process / "smaps_rollup").read_text(encoding="ascii"))
        except (FileNotFoundError, ProcessLookupError):
            # Another process, that ended while we looked.
            continue
        found += 1
    assert found == len(owners), (found, owners)
    return total_kib / 1024


def _pss_kib(rollup: str) -> int:
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


# -- a template after many clones ------------------------------------------------------


def _wear(ours: OurCloudlet, service_id: ServiceId, count: int) -> Table:
    """Let clones dirty their memory and try to balloon, and look at the template."""
    connection = Connection(ours.core.settings.hypervisor)
    refused = 0
    for _ in range(count // CLONES_AT_ONCE):
        done = _at_once(CLONES_AT_ONCE, lambda: ours.start(service_id, StartMethod.CLONE))
        for each in done:
            touch_memory(each.instance.ports[0].host_port, DIRTIED_MIB)
        refused += _refuses_to_balloon(connection, done[0].instance.id)
        ours.stop(*(each.instance.id for each in done))
    connection.close()
    memory = ours.memory_of(service_id)
    # Content is named after its digest; this reads all of it again and compares.
    DiskBlobs(DataDirectory(ours.core.settings.data_dir)).verify(memory.memory.id)
    tried = count // CLONES_AT_ONCE
    return Table(
        title="A template after many clones",
        columns=("", "result"),
        rows=(
            (f"clones that wrote {DIRTIED_MIB} MiB each", f"{tried * CLONES_AT_ONCE}"),
            ("clones told to balloon, and refusals", f"{tried}, {refused}"),
            ("digest of the template's memory", "unchanged"),
        ),
        notes=("Clones have no balloon device, so QEMU refuses the command.",),
    )


def _refuses_to_balloon(connection: Connection, instance_id: InstanceId) -> bool:
    monitor = Monitor(connection, domain_id_of(instance_id))
    try:
        monitor.execute("balloon", {"value": BALLOON_TO_MIB << 20})
    except HypervisorError:
        return True
    return False


# -- tables ----------------------------------------------------------------------------


def _table(crowds: dict[int, Crowds]) -> Table:
    rows: list[tuple[str, ...]] = []
    for count, found in crowds.items():
        ways = (
            ("copied state", found.copied),
            ("ours, clones", found.cloned),
            ("ours, waiting copies", found.waiting),
        )
        rows += [_row(f"{count} at once, {name}", way, found.copied) for name, way in ways]
    return Table(
        title=f"Starts at once, {MEMORY_MIB} MiB each",
        columns=("", "median time to ready", "ratio", "memory of all", "ratio"),
        rows=tuple(rows),
        notes=("Ratios are to the copied state; memory is the sum of proportional set sizes.",),
    )


def _row(name: str, way: Crowd, baseline: Crowd) -> tuple[str, ...]:
    return (
        name,
        seconds(way.ready_s),
        ratio(ratio_of(way.ready_s, baseline.ready_s)),
        f"{statistics.median(way.memory_mib):,.0f} MiB",
        ratio(ratio_of(way.memory_mib, baseline.memory_mib)),
    )
