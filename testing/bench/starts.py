# SPDX-License-Identifier: Apache-2.0
"""From the request to the first answer: cold boot, copied saved state, clone, waiting copy.

    python -m testing.bench starts [--quick] [--directory DIR]

The same demo guest in every way; two fifths of its memory are in use when it is saved. A
client asks the service as soon as it knows the port and waits for the first byte. The ways
take turns, so that whatever else the machine does meets all of them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pycloud.core.model.identifiers import ServiceId
from pycloud.core.model.runtime import Phase, StartMethod
from testing.bench.cloudlet import OurCloudlet, Start, our_cloudlet
from testing.bench.copy_restore import CopyingCloudlet, copying_cloudlet
from testing.bench.table import Effort, Table, ratio, ratio_of, seconds

COMPARED_MIB = (256, 1024)
CLONED_MIB = (256, 512, 1024, 2048, 4096)
ROUNDS = {Effort.FULL: 7, Effort.QUICK: 2}


@dataclass(slots=True, kw_only=True)
class Times:
    """Seconds from the request to the first byte, one entry per round."""

    cold: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)
    cloned: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)


def tables(directory: Path, effort: Effort) -> list[Table]:
    """Measure everything in directories made in `directory`."""
    with our_cloudlet(directory / "ours") as ours:
        phases: dict[StartMethod, list[tuple[Phase, ...]]] = {}
        with copying_cloudlet(directory / "copies") as copies:
            compared = {
                memory_mib: _compared(memory_mib, (ours, copies), phases, effort)
                for memory_mib in COMPARED_MIB
            }
        flat = _clones(ours, effort)
    return [_table(compared), _flat_table(flat), _phase_table(phases)]


def _compared(
    memory_mib: int,
    sides: tuple[OurCloudlet, CopyingCloudlet],
    phases: dict[StartMethod, list[tuple[Phase, ...]]],
    effort: Effort,
) -> Times:
    ours, copies = sides
    service_id = ours.add_service(memory_mib)
    cold_id = ours.add_cold_service(memory_mib)
    state = copies.save(memory_mib)
    times = Times()

    def start(chosen: ServiceId, method: StartMethod) -> float:
        done: Start = ours.start(chosen, method)
        phases.setdefault(method, []).append(done.instance.timeline)
        ours.stop(done.instance.id)
        return done.answer_s

    for _ in range(ROUNDS[effort]):
        times.cold.append(start(cold_id, StartMethod.COLD))
        copied = copies.start(state)
        times.copied.append(copied.answer_s)
        copies.stop(copied.spec)
        times.cloned.append(start(service_id, StartMethod.CLONE))
        ours.fill_pool(service_id, 1)
        times.waiting.append(start(service_id, StartMethod.WARM))
        ours.drain_pool(service_id)
    return times


def _clones(ours: OurCloudlet, effort: Effort) -> dict[int, list[float]]:
    """Clone guests of all sizes in turn; those compared before have their Service already."""
    services = {
        size: ServiceId(f"demo-{size}") if size in COMPARED_MIB else ours.add_service(size)
        for size in CLONED_MIB
    }
    times: dict[int, list[float]] = {size: [] for size in CLONED_MIB}
    for _ in range(ROUNDS[effort]):
        for size, service_id in services.items():
            done = ours.start(service_id, StartMethod.CLONE)
            times[size].append(done.answer_s)
            ours.stop(done.instance.id)
    return times


def _table(compared: dict[int, Times]) -> Table:
    rows: list[tuple[str, ...]] = []
    for memory_mib, times in compared.items():
        ways: tuple[tuple[str, Sequence[float]], ...] = (
            ("cold boot", times.cold),
            ("copied state, restored", times.copied),
            ("ours, clone", times.cloned),
            ("ours, waiting copy", times.waiting),
        )
        rows += [
            (f"{memory_mib} MiB, {name}", seconds(values), ratio(ratio_of(values, times.copied)))
            for name, values in ways
        ]
    return Table(
        title="Start to first answer",
        columns=("", "median (least-most)", "to copied state"),
        rows=tuple(rows),
        notes=("Two fifths of the guest's memory are in use when it is saved.",),
    )


def _flat_table(times: dict[int, list[float]]) -> Table:
    smallest = times[min(times)]
    return Table(
        title="Clones of guests of different sizes",
        columns=("guest memory", "median (least-most)", "to the smallest"),
        rows=tuple(
            (f"{size} MiB", seconds(values), ratio(ratio_of(values, smallest)))
            for size, values in times.items()
        ),
    )


def _phase_table(phases: dict[StartMethod, list[tuple[Phase, ...]]]) -> Table:
    rows: list[tuple[str, ...]] = []
    for method, timelines in phases.items():
        names = [phase.name for phase in timelines[0]]
        for name in names:
            spent = [
                phase.duration_ms for line in timelines for phase in line if phase.name == name
            ]
            rows.append((f"{method}, {name}", f"{statistics.median(spent):.1f} ms"))
    return Table(
        title="Where the time of a start goes",
        columns=("", "median"),
        rows=tuple(rows),
        notes=("From the timelines of our starts; the client's own request comes after them.",),
    )
