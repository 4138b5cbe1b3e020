#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a cloudlet and uses it as a phone would; see scripts/demo.sh, which is how to start it."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from demo_parts.cloudlet import DemoCloudlet, Server
from demo_parts.guest import provide_image
from demo_parts.operating import PYCLOUD, Operator
from demo_parts.phone import PATIENCE_S, Analysis, Found, Phone
from demo_parts.story import DemoError, Stopwatch, Story

from pycloud.cli.failures import Failure

ROOT = Path(__file__).resolve().parents[1]
SERVICE_ID = "file-analysis"
SERVICE_PORT = 8080
SERVICE_MEMORY_MIB = 256
_METHODS = {
    "cold": "from cold",
    "restore": "from a restored state",
    "clone": "from the saved state",
    "warm": "from a waiting copy",
}
_SHOWN_BYTES = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    chosen = _parse(arguments)
    # As on Ctrl-C: an exception, after which everything is cleaned up.
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)
    story = Story(recording=chosen.record)
    cloudlet = DemoCloudlet(chosen.folder, story)
    try:
        with cloudlet.alone():
            if chosen.stop:
                return _stop(cloudlet, story)
            Demo(cloudlet, story, chosen).run()
    except DemoError as exc:
        print(f"\nerror: {exc.message}", file=sys.stderr)
        if exc.advice:
            print(f"  -> {exc.advice}", file=sys.stderr)
        return 1
    except Failure as exc:
        exc.show()
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what the demo had started was stopped", file=sys.stderr)
        return 130
    story.save()
    return 0


class Demo:
    """One run."""

    def __init__(self, cloudlet: DemoCloudlet, story: Story, chosen: argparse.Namespace) -> None:
        self._cloudlet = cloudlet
        self._story = story
        self._chosen = chosen
        self._phone = Phone()
        self._operator: Operator
        self._times: dict[str, float] = {}
        self._has_shown = False

    def run(self) -> None:
        """Tell the whole story."""
        story = self._story
        story.line("A cloudlet is a server near mobile devices: they find it by themselves, start")
        story.line("services on it and offload work to them. Here this machine plays both parts.")
        content = self._read_file()
        image = self._build_image()
        with ExitStack() as undo:
            server = self._start_server(undo)
            self._operator = self._cloudlet.operator(server)
            is_first = self._add_service(image)
            found = self._find(server)
            self._look_around(found)
            if is_first:
                self._use(found, content, "boots it from its disk, as nothing is saved yet")
                self._prepare()
            self._operator.keep_copies(SERVICE_ID, 0)
            self._use(
                found, content, "continues from the memory that was saved at its first answer"
            )
            if self._wait_for_copy():
                self._use(found, content, "takes a copy that was loaded in advance")
            self._summarize()
            if self._chosen.keep or server.kept:
                self._cloudlet.keep(server)
                undo.pop_all()
                self._say_kept(server)
            else:
                self._story.line()
                self._story.line("The demo is over; its servers and guests are being stopped.")
        self._what_next(server)

    # -- before the phone comes ----------------------------------------------------------

    def _read_file(self) -> bytes:
        path: Path = self._chosen.file
        try:
            content = path.read_bytes()
        except OSError as exc:
            raise DemoError(f"cannot read {path}: {exc.strerror}") from exc
        if not content:
            raise DemoError(f"{path} is empty", advice="name another file with --file")
        return content

    def _build_image(self) -> Path:
        watch = Stopwatch()
        self._story.step(
            "Build the demo Service VM",
            "a bootable disk with a Linux kernel and a small HTTP service that analyses files",
        )
        image, was_there = provide_image(self._cloudlet.folder, self._story)
        size_mib = image.stat().st_size / 2**20
        origin = "built earlier" if was_there else f"built in {watch}"
        self._story.result(f"{image} ({size_mib:.0f} MiB, {origin})")
        return image

    def _start_server(self, undo: ExitStack) -> Server:
        self._story.step(
            "Start the cloudlet", "the Cloudlet API for devices and the Manager for people"
        )
        watch = Stopwatch()
        server = self._cloudlet.running()
        if server is None:
            with self._story.working("Starting"):
                server = self._cloudlet.start()
            told = f"ready after {watch}"
        else:
            told = "was left up by an earlier run"
        if not server.kept:
            undo.callback(self._end, server)
        self._story.result(f"{server.name}: API {server.api_url}, Manager {server.manager_url}")
        self._story.result(f"{told}; its files: {self._cloudlet.folder}")
        return server

    def _end(self, server: Server) -> None:
        """Leave nothing behind, however the demo ends; every wait in here has a deadline."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with self._story.working("Cleaning up"):
            try:
                if server.process is not None:
                    self._cloudlet.operator(server).clear()
            finally:
                self._cloudlet.stop(server)

    def _add_service(self, image: Path) -> bool:
        """Return whether the service has to start from cold at first."""
        self._story.step(
            "Offer the service", "an operator adds the disk to the catalogue, which checks it first"
        )
        has_service = self._operator.has_service(SERVICE_ID)
        if has_service and (self._chosen.fresh or self._is_outdated(image)):
            self._operator.remove_service(SERVICE_ID)
            has_service = False
        if not has_service:
            self._operator.show(
                *("service", "add", str(image), "--id", SERVICE_ID),
                *("--port", str(SERVICE_PORT), "--memory", str(SERVICE_MEMORY_MIB)),
                *("--tag", "demo", "--warm-count", "0", "--no-prepare"),
            )
            self._remember(image)
            return True
        self._story.result(f"{SERVICE_ID} is in the catalogue since an earlier run")
        return not self._operator.is_prepared(SERVICE_ID)

    def _prepare(self) -> None:
        self._story.step(
            "Prepare the service",
            "the cloudlet boots it once more and keeps its memory for instant starts",
        )
        self._operator.show("service", "prepare", SERVICE_ID)

    # -- the phone -------------------------------------------------------------------------

    def _find(self, server: Server) -> Found:
        self._story.step(
            "Find the cloudlet", "the phone asks the network for _cloudlet._tcp (multicast DNS)"
        )
        watch = Stopwatch()
        with self._story.working("Looking"):
            found, others = self._phone.find(server.name)
        if found is None:
            reason = self._operator.discovery_problem() or "no answer came"
            self._story.remark(f"not found within {PATIENCE_S:g} s: {reason}")
            self._story.remark("going on with the address that the server printed")
            host, _, port = server.api_url.removeprefix("http://").rpartition(":")
            return Found(name=server.name, address=host, port=int(port), encryption="unknown")
        beside = f", and {others} more" if others else ""
        self._story.result(
            f"found {found.name} at {found.address}:{found.port} after {watch},"
            f" encryption {found.encryption}{beside}"
        )
        return found

    def _look_around(self, found: Found) -> None:
        self._story.step("Look at it", "the phone reads the cloudlet's load and its services")
        system = self._phone.ask(found, "/system")
        memory, cpu = system["memory_info"], system["cpu_info"]
        self._story.result(
            f"{cpu['max_cores']} processors, {cpu['usage']:.0f} % in use;"
            f" {memory['free_memory'] / 2**30:.1f} of {memory['max_memory'] / 2**30:.1f} GiB free"
        )
        for service in self._phone.ask(found, "/services")["services"]:
            tags = ", ".join(service["tags"])
            self._story.result(f"service {service['service_id']} (tags: {tags or 'none'})")

    def _use(self, found: Found, content: bytes, how: str) -> None:
        self._story.step(f"Start {SERVICE_ID}", f"the cloudlet {how}")
        watch = Stopwatch()
        with ExitStack() as undo:
            with self._story.working("Waiting for the first answer"):
                started = self._phone.start(found, SERVICE_ID)
                undo.callback(self._phone.stop, found, started)
                analysis = self._phone.analyse(started, content, watch)
            method = self._operator.start_method(started.instance_id)
            self._times[method] = analysis.first_answer_s
            self._story.result(f"it listens at {started.address}:{started.port}")
            self._show(analysis)
            self._story.result(
                f"first answer {analysis.first_answer_s:.2f} s after the request"
                f" ({analysis.start_s:.2f} s of it to start {_METHODS.get(method, method)})"
            )
        self._story.result("stopped")

    def _show(self, analysis: Analysis) -> None:
        told = analysis.answer
        if self._has_shown:
            self._story.result(
                f"{self._chosen.file.name}: the same answer as before, checksum right"
            )
            return
        self._has_shown = True
        top = ", ".join(
            f"{_byte_text(one['byte'])} ({one['count']})"
            for one in told["top_bytes"][:_SHOWN_BYTES]
        )
        self._story.result(
            f"{self._chosen.file.name}: {told['size_bytes']} bytes, {told['lines']} lines,"
            f" {told['words']} words, {told['entropy_bits_per_byte']:.2f} bits of information per byte"
        )
        self._story.result(f"most frequent bytes: {top}")
        self._story.result(f"SHA-256 {told['sha256'][:32]}..., the same as computed here")

    def _wait_for_copy(self) -> bool:
        self._story.step(
            "Keep a copy waiting",
            "for popular services the cloudlet loads a copy before anybody asks",
        )
        watch = Stopwatch()
        with self._story.working("Loading"):
            is_there = self._operator.keep_copies(SERVICE_ID, 1)
        if is_there:
            self._story.result(f"a copy waits, {watch} after it was asked for")
        else:
            self._story.remark("no copy waits; the cloudlet keeps none while memory is short")
        return is_there

    # -- the end ----------------------------------------------------------------------------

    def _summarize(self) -> None:
        kept = self._cloudlet.folder / "measured.json"
        try:
            earlier = json.loads(kept.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {}
        rows = []
        for method, name in _METHODS.items():
            if method in self._times:
                rows.append((name, f"{self._times[method]:.2f} s", ""))
                moment = datetime.now(UTC).isoformat(timespec="minutes")
                earlier[method] = {"seconds": self._times[method], "at": moment}
            elif method in earlier:
                when = earlier[method]["at"].replace("T", " ").replace("+00:00", " UTC")
                rows.append((name, f"{earlier[method]['seconds']:.2f} s", f"measured {when}"))
        draft = kept.with_name(".measured.new")
        draft.write_text(json.dumps(earlier), encoding="utf-8")
        draft.replace(kept)
        self._story.table("From the phone's request to the service's first answer", rows)

    def _say_kept(self, server: Server) -> None:
        self._story.line()
        self._story.line("The servers stay up:")
        self._story.line(f"    Cloudlet API   {server.api_url}  (documentation at /docs/api)")
        self._story.line(f"    Manager        {server.manager_url}")
        self._story.line("    stop them      scripts/demo.sh --stop")

    def _what_next(self, server: Server) -> None:
        pycloud = os.path.relpath(PYCLOUD)
        ideas = {
            "scripts/demo.sh --keep": "leave the servers up to play with them",
            "scripts/demo.sh --file FILE": "analyse a file of yours",
            "scripts/demo.sh --fresh": "see the start from cold again",
            f"{pycloud} doctor": "what this machine can do",
            f"{pycloud} serve": "a cloudlet of your own",
            f"{pycloud} service add DISK --id ID --port PORT": "with a service of your own",
        }
        if self._chosen.keep or server.kept:
            at = f"--config {self._cloudlet.config}"
            del ideas["scripts/demo.sh --keep"]
            ideas |= {
                f"{pycloud} {at} instance start {SERVICE_ID}": "",
                f"{pycloud} {at} cloudlet status": "",
            }
        self._story.line()
        self._story.line("What to try next:")
        width = max(len(command) for command, why in ideas.items() if why)
        for command, why in ideas.items():
            self._story.line(f"    {command.ljust(width)}  {why}".rstrip())

    # -- which image is in the catalogue -----------------------------------------------------

    def _is_outdated(self, image: Path) -> bool:
        try:
            return (self._cloudlet.folder / "added").read_text("ascii") != _version(image)
        except OSError:
            return True

    def _remember(self, image: Path) -> None:
        (self._cloudlet.folder / "added").write_text(_version(image), encoding="ascii")


def _stop(cloudlet: DemoCloudlet, story: Story) -> int:
    server = cloudlet.running()
    if server is None:
        story.line("no server of the demo is up")
        return 0
    with story.working("Stopping"):
        try:
            cloudlet.operator(server).clear()
        finally:
            cloudlet.stop(server)
    story.line(f"{server.name} was stopped, and its guests with it")
    return 0


def _version(image: Path) -> str:
    status = image.stat()
    return f"{status.st_mtime_ns} {status.st_size}"


def _byte_text(value: int) -> str:
    character = chr(value)
    return f"'{character}'" if 32 <= value < 127 else f"0x{value:02x}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", add_help=False)
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--keep", action="store_true")
    after.add_argument("--stop", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--file", type=Path, default=ROOT / "LICENSE")
    parser.add_argument("--folder", type=Path, default=_default_folder())
    parser.add_argument("--record", type=Path)
    return parser.parse_args(arguments)


def _default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pycloud" / "demo"


if __name__ == "__main__":
    sys.exit(main())
