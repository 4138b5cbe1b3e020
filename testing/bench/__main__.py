# SPDX-License-Identifier: Apache-2.0
"""All measurements with one command, as tables of ratios to baselines of the same run.

    python -m testing.bench [starts crowd api granian store packages] [--quick] [--write docs/benchmarks.md]

Without names everything is measured, which takes about half an hour; --quick takes a few
minutes and shows little more than that the measurements work.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pycloud.adapters.clock import SystemClock
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.libvirt.host import LibvirtHost
from pycloud.settings import Settings
from testing.bench import api, api_granian, crowd, packages, starts, store
from testing.bench.table import Effort, Table

TOPICS: dict[str, Callable[[Path, Effort], list[Table]]] = {
    "starts": starts.tables,
    "crowd": crowd.tables,
    "api": api.tables,
    "granian": api_granian.tables,
    "store": store.tables,
    "packages": packages.tables,
}
DOCUMENT_HEAD = """# Benchmarks

Written by `./scripts/bench.sh --write docs/benchmarks.md`. Every ratio compares two things that
were measured in turn in the same run on the same machine; the times themselves say as much about
the machine as about pycloud.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen topics, print the tables, write them where that is asked for."""
    options = _parser().parse_args(arguments)
    effort = Effort.QUICK if options.quick else Effort.FULL
    machine = _machine(options.directory)
    print(f"{machine}\n", flush=True)
    tables: list[Table] = []
    for topic in options.topics or TOPICS:
        tables += _measured(topic, options.directory, effort)
    if options.write is not None:
        _write(options.write, machine, tables)
    return 0


def _measured(topic: str, directory: Path | None, effort: Effort) -> list[Table]:
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory, prefix=f"pycloud-{topic}-") as root:
        tables = TOPICS[topic](Path(root), effort)
    for table in tables:
        print(table.text(), flush=True)
    print(f"{topic} took {time.monotonic() - begin_s:.0f} s\n", file=sys.stderr, flush=True)
    return tables


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testing.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("topics", nargs="*", metavar="topic", type=_topic, help=", ".join(TOPICS))
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--directory", type=Path, default=None, help="where to work; 8 GiB free")
    parser.add_argument("--write", type=Path, default=None, help="a Markdown file for the tables")
    return parser


def _topic(name: str) -> str:
    if name not in TOPICS:
        message = f"{name!r} is not one of {', '.join(TOPICS)}"
        raise argparse.ArgumentTypeError(message)
    return name


def _machine(directory: Path | None) -> str:
    """Describe what the figures depend on."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="pycloud-facts-") as root:
        settings = Settings(data_dir=Path(root))
        data = DataDirectory(settings.data_dir)
        host = LibvirtHost(settings.hypervisor, data=data, settings=settings, clock=SystemClock())
        facts = host.facts()
        host.connection.close()
    return (
        f"{os.cpu_count()} processors ({platform.machine()}), load {os.getloadavg()[0]:.1f} at the"
        f" beginning; guests run with {facts.accelerator}, QEMU {facts.emulator_version};"
        f" Python {platform.python_version()}."
    )


def _write(path: Path, machine: str, tables: Sequence[Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = [DOCUMENT_HEAD, f"{machine}\n", *(table.markdown() for table in tables)]
    new = path.with_name(f"{path.name}.new")
    new.write_text("\n".join(sections), encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
