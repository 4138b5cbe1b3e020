# SPDX-License-Identifier: Apache-2.0
"""A real server process with a data directory of its own, and an eye on what it leaves behind.

The server is `pycloud serve`, told everything through its environment, on ports that the
kernel chooses. Tests speak to it as strangers do, over sockets; only the comparison of
records and reality looks into its data directory.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pycloud.core.facade import Core
from pycloud.settings import Settings, from_mapping
from pycloud.wiring import admin_token_path, build_core
from testing.system.crash.agreement import await_agreement

T = TypeVar("T")
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 40.0
POLL_S = 0.05
_COMMAND = Path(sys.executable).with_name("pycloud")
_PORTS_EACH = 40
# Blocks of ports that no other kind of test uses; test runs begin at different places.
_blocks = itertools.islice(
    itertools.cycle(range(22000, 24000, _PORTS_EACH)), random.SystemRandom().randrange(50), None
)
BASE = {
    "api_host": "127.0.0.1",
    "api_port": "0",
    "manager_port": "0",
    "discovery": "off",
    "name": "corner",
    "publish_address": "127.0.0.1",
    "publish_bind": "127.0.0.1",
    "reserved_memory_mib": "0",
    "job_lease_s": "2",
    "reconcile_s": "0.3",
    "warm_total": "0",
    "stop_timeout_s": "20",
    "log_format": "json",
}
"""Settings under which a test learns of everything soon."""


class Server:
    """One `pycloud serve`; may be started again after it ended, on the same ports."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], *, wrapper: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        block = next(_blocks)
        self.folder = folder
        self.texts = {
            **BASE,
            "data_dir": str(folder / "data"),
            "port_range": f"{block}-{block + _PORTS_EACH - 1}",
            **settings,
        }
        self._wrapper = tuple(wrapper)
        self._process: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self.url = ""

    @property
    def settings(self) -> Settings:
        """The settings as the server reads them."""
        return from_mapping({f"pycloud.{name}": text for name, text in self.texts.items()}).settings

    @property
    def port(self) -> int:
        """The port of the Cloudlet API."""
        return int(self.url.rpartition(":")[2])

    @property
    def token(self) -> str:
        """The administrator's token, which the server wrote at its first start."""
        return self.seen(admin_token_path(self.settings)).read_text().strip()

    @property
    def pid(self) -> int:
        """The process that serves."""
        assert self._process is not None
        return self._process.pid

    def seen(self, path: Path) -> Path:
        """Return how to reach a file that the server sees under this path."""
        return Path(f"/proc/{self.pid}/root{path}") if self._wrapper else path

    # -- life ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process and return when it listens."""
        self._runs += 1
        outer = {name: text for name, text in os.environ.items() if not name.startswith("PYCLOUD_")}
        outer["PYTHONPATH"] = os.pathsep.join(sys.path)
        told = {f"PYCLOUD_{name.upper()}": text for name, text in self.texts.items()}
        with self._output("out").open("wb") as out, self._output("log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self._wrapper, str(_COMMAND), "--output", "json", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=outer | told,
                cwd=self.folder,
            )
        urls = wait_until(self._urls, START_DEADLINE_S, lambda: f"no server: {self.log_text()}")
        self.url = urls["api"]
        self.texts |= {
            "api_port": urls["api"].rpartition(":")[2],
            "manager_port": urls["manager"].rpartition(":")[2],
        }

    def stop(self) -> int:
        """End the process as an operator would; returns its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """End the process without a warning."""
        return self._end(signal.SIGKILL)

    def is_running(self) -> bool:
        """Return whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            return process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_DEADLINE_S)
            raise AssertionError(f"the server did not end: {self.log_text()}") from None

    def _urls(self) -> dict[str, str] | None:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended: {self.log_text()}"
        try:
            urls: dict[str, str] = json.loads(self._output("out").read_text())
        except ValueError:
            return None
        return urls

    def _output(self, kind: str) -> Path:
        return self.folder / f"server-{self._runs}.{kind}"

    # -- what it says ----------------------------------------------------------------

    def log_text(self) -> str:
        """Return what the present process has logged."""
        return self._output("log").read_text(errors="replace")

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event, in order."""
        lines = (line for line in self.log_text().splitlines() if line.startswith("{"))
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    # -- what it leaves --------------------------------------------------------------

    @contextmanager
    def core(self) -> Iterator[Core]:
        """Look into the data directory through a core that does nothing by itself."""
        core = build_core(self.settings)
        try:
            yield core
        finally:
            core.background.stop()

    def require_agreement(self) -> None:
        """Fail unless records, domains, disks, ports, room and staging come to agree."""
        with self.core() as core:
            await_agreement(core)

    def end_guests(self) -> None:
        """End every VM of this data directory."""
        with self.core() as core:
            hypervisor = core.instances.guests.hypervisor
            for domain in hypervisor.domains():
                hypervisor.destroy(domain.id, domain.owner)


@contextmanager
def running_server(
    folder: Path, settings: Mapping[str, str] | None = None, *, wrapper: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a server for a while; its VMs end with it."""
    server = Server(folder, settings or {}, wrapper=wrapper)
    try:
        server.start()
        yield server
    finally:
        if server.is_running():
            server.stop()
        if not server.settings.hypervisor.startswith("fake:"):
            server.end_guests()


def wait_until(look: Callable[[], T | None], deadline_s: float, complaint: Callable[[], str]) -> T:
    """Return the first answer of `look` that is neither None nor False."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {deadline_s:g} s: {complaint()}")
        time.sleep(POLL_S)
