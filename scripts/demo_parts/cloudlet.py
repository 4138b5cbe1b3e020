# SPDX-License-Identifier: Apache-2.0
"""The cloudlet's side: a server of the demo's own, in a folder of its own.

A user's real cloudlet is not touched: everything lies in the demo's folder, ports that are
taken are avoided, and only processes that the demo started are ended.
"""

import contextlib
import fcntl
import json
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

import psutil
import requests

from demo_parts.operating import PYCLOUD, Operator, environment
from demo_parts.story import DemoError, Story

_PORTS = {"api": 9999, "manager": 9998}
_PORT_RANGE = "21000-21099"
"""Not the range of a user's own cloudlet."""
_RECONCILE_S = 1
"""A waiting copy is made at the next comparison; nobody wants to watch that for 4 s."""
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that the demo started; `created_at_s` tells it from a later process of its id."""

    pid: int
    created_at_s: float
    name: str
    api_url: str
    manager_url: str
    kept: bool

    @property
    def process(self) -> psutil.Process | None:
        """The process, None if it is gone."""
        try:
            process = psutil.Process(self.pid)
            is_ours = abs(process.create_time() - self.created_at_s) < 1
        except psutil.Error:
            return None
        return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None


class DemoCloudlet:
    """The server and its folder."""

    def __init__(self, folder: Path, story: Story) -> None:
        self.folder = folder
        self.config = folder / "demo.ini"
        self.log = folder / "server.log"
        self._data_dir = folder / "cloudlet"
        self._story = story
        self._record = folder / "server.json"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second demo of this user out. Raises DemoError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w", encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise DemoError(
                    "another demo is running", advice="wait until it has ended"
                ) from exc
            yield

    # -- the server --------------------------------------------------------------------

    def running(self) -> Server | None:
        """Return the server that an earlier run left up, None if there is none."""
        try:
            server = Server(**json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return server if server.process is not None and _is_healthy(server) else None

    def start(self) -> Server:
        """Start the server and return when it is ready. Raises DemoError."""
        name = self._name()
        ports = {app: _free_port(port) for app, port in _PORTS.items()}
        self._write_config(name, ports)
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [str(PYCLOUD), "--config", str(self.config), "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                # Ctrl-C is for the demo, which stops the server when it is done with it.
                start_new_session=True,
            )
        server = Server(
            pid=process.pid,
            created_at_s=psutil.Process(process.pid).create_time(),
            name=name,
            api_url=f"http://127.0.0.1:{ports['api']}",
            manager_url=f"http://127.0.0.1:{ports['manager']}",
            kept=False,
        )
        self._write_record(server)
        try:
            self._await_ready(server, process)
        except BaseException:
            self.stop(server)
            raise
        return server

    def operator(self, server: Server) -> Operator:
        """Return who manages the server."""
        return Operator(
            server.api_url, data_dir=self._data_dir, config=self.config, story=self._story
        )

    def keep(self, server: Server) -> None:
        """Note that the server is to stay when the demo ends."""
        self._write_record(Server(**{**asdict(server), "kept": True}))

    def stop(self, server: Server) -> None:
        """End the server by its process id; its instances must be gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            process = server.process
            if process is None:
                break
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
            _await_end(server)
        self._record.unlink(missing_ok=True)

    def _await_ready(self, server: Server, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not _is_ready(server):
            if process.poll() is not None or time.monotonic() > deadline_s:
                tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
                raise DemoError(
                    "the server did not get ready; the end of its log:\n  " + "\n  ".join(tail),
                    advice=f"{PYCLOUD} --config {self.config} doctor",
                )
            time.sleep(_POLL_S)

    # -- files -------------------------------------------------------------------------

    def _name(self) -> str:
        """Return the name under which the cloudlet is announced, the same in every run."""
        kept = self.folder / "name"
        if not kept.exists():
            host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0])[:40]
            _write(kept, f"demo-{host.strip('-') or 'host'}-{secrets.token_hex(2)}")
        return kept.read_text(encoding="ascii").strip()

    def _write_config(self, name: str, ports: Mapping[str, int]) -> None:
        _write(
            self.config,
            "\n".join(
                (
                    "# Written by scripts/demo.sh at every run.",
                    "[app:main]",
                    f"pycloud.data_dir = {self._data_dir}",
                    "pycloud.store = sqlite:///",
                    f"pycloud.name = {name}",
                    f"pycloud.api_port = {ports['api']}",
                    f"pycloud.manager_port = {ports['manager']}",
                    f"pycloud.port_range = {_PORT_RANGE}",
                    f"pycloud.reconcile_s = {_RECONCILE_S}",
                    "",
                )
            ),
        )

    def _write_record(self, server: Server) -> None:
        _write(self._record, json.dumps(asdict(server)))


def _await_end(server: Server) -> None:
    """Wait until the process is gone, or dead and not yet buried by whoever has to."""
    deadline_s = time.monotonic() + _STOP_TIMEOUT_S
    while server.process is not None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("0.0.0.0", port))  # noqa: S104  # as the server will
                return int(probe.getsockname()[1])
    raise DemoError("no port is free on this machine")


def _is_healthy(server: Server) -> bool:
    return _status(f"{server.api_url}/healthz") == HTTPStatus.OK


def _is_ready(server: Server) -> bool:
    return _status(f"{server.api_url}/readyz") == HTTPStatus.OK


def _status(url: str) -> int:
    with requests.Session() as session:
        session.trust_env = False
        try:
            return int(session.get(url, timeout=30).status_code)
        except requests.RequestException:
            return 0


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
