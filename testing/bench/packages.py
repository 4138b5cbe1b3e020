# SPDX-License-Identifier: Apache-2.0
"""Export and import of packages against `tar` and `gzip` doing the same work.

    python -m testing.bench.packages [--mib 4096] [--directory DIR]

The disk image is made of what a server's disk holds: two fifths programs and texts of this
machine, a tenth of packed data, the rest holes. Each task runs in a process of its own, so
that its peak memory is its own; the table shows ratios to the baseline of the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pycloud.adapters.csvm import CsvmPackages
from pycloud.adapters.data_directory import DataDirectory
from pycloud.core.model.catalog import ServiceDraft
from pycloud.core.model.identifiers import ServiceId
from pycloud.core.ports import UnpackedPackage
from pycloud.settings import Settings
from testing.bench.table import Effort, Table, ratio

MIB = 1 << 20
AREA = "bench"
NAME = "speech"
TASKS = ("export", "import")
SIZE_MIB = {Effort.FULL: 4096, Effort.QUICK: 256}
CONTENT_ROOTS = (Path("/usr/lib"), Path("/usr/share"), Path("/usr/bin"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One task: its duration, and its peak memory with that of its children."""

    seconds: float
    peak_mib: float


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=4096, help="size of the disk image")
    parser.add_argument("--directory", type=Path, default=None, help="where to work")
    parser.add_argument("--task", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        run_task(arguments.task, arguments.directory)
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="bench-packages-") as name:
        print(measure(Path(name), arguments.mib).text())


def tables(directory: Path, effort: Effort) -> list[Table]:
    """Measure with an image of the size that the effort allows."""
    return [measure(directory, SIZE_MIB[effort])]


def measure(root: Path, size_mib: int) -> Table:
    """Make the content, run every task, return the ratios."""
    data = DataDirectory(root)
    disk = data.staged_path(AREA, "disk")
    make_disk(disk, size_mib)
    make_disk(data.staged_path(AREA, "state"), size_mib // 16)
    os.sync()
    found = {
        task: measured(task, root) for task in ("tar-export", "export", "tar-import", "import")
    }
    subprocess.run(["cmp", str(disk), str(data.staged_path(AREA, "unpacked-disk"))], check=True)
    state_mib = size_mib // 16
    total_mib = size_mib + state_mib
    rows = [_row(task, total_mib, found[f"tar-{task}"], found[task]) for task in TASKS]
    base_mib, our_mib = (
        data.staged_path(AREA, name).stat().st_size / MIB for name in ("tar.csvm", "ours.csvm")
    )
    sizes = (f"{base_mib:.0f} MiB", f"{our_mib:.0f} MiB")
    rows.append(("size of the package", *sizes, ratio(our_mib / base_mib), ""))
    return Table(
        title="Export and import of packages against tar and gzip",
        columns=("", "tar and gzip", "pycloud", "ratio", "peak memory"),
        rows=tuple(rows),
        notes=(
            f"A disk image of {size_mib} MiB and a memory state of {state_mib} MiB.",
            "The ratio is of the rates, ours to theirs; of the sizes in the last row.",
        ),
    )


def _row(
    task: str, total_mib: int, base: Measurement, ours: Measurement
) -> tuple[str, str, str, str, str]:
    return (
        task,
        f"{total_mib / base.seconds:.0f} MB/s",
        f"{total_mib / ours.seconds:.0f} MB/s",
        ratio(base.seconds / ours.seconds),
        f"{ours.peak_mib:.0f} MiB",
    )


def make_disk(path: Path, size_mib: int) -> None:
    """Write a sparse image with the content of a real disk, in stretches of 8 MiB."""
    texts = real_content()
    with path.open("wb") as stream:
        for start in range(0, size_mib, 8):
            kind = start // 8 % 10
            stream.seek(start * MIB)
            for _ in range(min(8, size_mib - start)):
                if kind < 4:
                    stream.write(next(texts))
                elif kind == 4:
                    stream.write(os.urandom(MIB))
        stream.truncate(size_mib * MIB)


def real_content() -> Iterator[bytes]:
    """Yield files of this machine as one endless stream of pieces of one MiB."""
    buffer = bytearray()
    while True:
        for root in CONTENT_ROOTS:
            for path in sorted(root.rglob("*")):
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    buffer += path.read_bytes()
                while len(buffer) >= MIB:
                    yield bytes(buffer[:MIB])
                    del buffer[:MIB]


def measured(task: str, root: Path) -> Measurement:
    """Run a task in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-m", "testing.bench.packages", "--task", task, "--directory", str(root)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=3600,
    )
    return Measurement(**json.loads(answer.stdout))


def run_task(task: str, root: Path) -> None:
    """Do one task and print its Measurement as JSON."""
    data = DataDirectory(root)
    draft = ServiceDraft(id=ServiceId(NAME), port=8080)
    packages = CsvmPackages(data, replace(Settings(), max_image_gib=1024))
    area = data.area_path(AREA)
    started = time.monotonic()
    if task == "export":
        content = UnpackedPackage(draft=draft, disk="disk", state="state")
        packages.pack(AREA, "ours.csvm", content=content)
    elif task == "import":
        packages.unpack(AREA, "ours.csvm")
    elif task == "tar-export":
        piped(["tar", "-cf", "-", "disk", "state"], ["gzip", "-6"], area, "tar.csvm")
    else:
        target = area / "extracted"
        target.mkdir()
        piped(["gzip", "-dc", "tar.csvm"], ["tar", "-xf", "-", "-C", str(target)], area, os.devnull)
    seconds = time.monotonic() - started
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))


def piped(first: list[str], second: list[str], directory: Path, output: str) -> None:
    """Run two programs, the output of one the input of the other."""
    with (
        (directory / output).open("wb") as target,
        subprocess.Popen(first, cwd=directory, stdout=subprocess.PIPE) as source,
        subprocess.Popen(second, cwd=directory, stdin=source.stdout, stdout=target) as sink,
    ):
        if sink.wait() or source.wait():
            raise RuntimeError(f"{first[0]} or {second[0]} failed")


def peak_mib() -> float:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
