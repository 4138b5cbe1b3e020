# SPDX-License-Identifier: Apache-2.0
"""A virtual machine run by plain QEMU, without libvirt and without pycloud.

It shows what a guest image does by itself. Instances of a Cloudlet are started through pycloud,
never through this.
"""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

POLL_S = 0.05
BOOT_DEADLINE_S = 90
EXIT_DEADLINE_S = 30
# User-mode networking accepts before the guest listens; an answer to a probe is due soon.
PROBE_TIMEOUT_S = 0.3
REQUEST_TIMEOUT_S = 60
FORWARDED = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the guest's service answered."""

    status: int
    body: Any  # Any JSON document.


class PlainMachine:
    """One running QEMU process and the ways into its guest."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Take over a started process whose sockets and logs lie in `folder`."""
        self.process = process
        self._folder = folder
        self._monitor = _connect(folder / "monitor")
        self._monitor_lines = self._monitor.makefile("r", encoding="utf-8")
        self._monitor_lines.readline()
        self.monitor("qmp_capabilities")

    def monitor(self, command: str, arguments: Mapping[str, str | int] | None = None) -> Any:
        """Run a QEMU monitor command and return its result; events in between are dropped."""
        request = {"execute": command, "arguments": dict(arguments or {})}
        self._monitor.sendall(json.dumps(request).encode())
        while "return" not in (reply := json.loads(self._monitor_lines.readline())):
            assert "error" not in reply, reply
        return reply["return"]

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Return the next event of that name."""
        while True:
            message: dict[str, Any] = json.loads(self._monitor_lines.readline())
            if message.get("event") == name:
                return message

    @property
    def service_port(self) -> int:
        """The port on 127.0.0.1 that QEMU chose for the guest's service."""
        text = self.monitor("human-monitor-command", {"command-line": "info usernet"})
        found = FORWARDED.search(text)
        assert found, text
        return int(found[1])

    @property
    def serial_output(self) -> str:
        """Everything the guest has printed on its serial port."""
        return (self._folder / "serial.log").read_text(encoding="utf-8", errors="replace")

    def type_on_serial(self, text: str, *, until: str) -> str:
        """Send keystrokes to the serial port; return what is printed, up to `until` and on."""
        # What the guest has not read yet is lost on closing, and it stops when it cannot print,
        # so the connection stays open and is read until the answer has come.
        printed = ""
        with _connect(self._folder / "serial") as serial:
            serial.sendall(text.encode())
            while until not in printed:
                block = serial.recv(4096)
                assert block, f"QEMU ended before {until!r}:\n{self.serial_output}"
                printed += block.decode(errors="replace")
        return printed

    def wait_for_serial(self, text: str) -> None:
        """Return when the guest has printed this text."""
        self._wait(lambda: text in self.serial_output, f"{text!r} on the serial port")

    def wait_for_service(self) -> None:
        """Return when the guest's service has answered."""
        self._wait(self.answers, "an answer of the service")

    def wait_for_exit(self) -> int:
        """Return QEMU's exit status, once it has ended by itself."""
        return self.process.wait(timeout=EXIT_DEADLINE_S)

    def answers(self) -> bool:
        """Tell whether the service answers a request now."""
        try:
            return self._request("GET", "/health", timeout_s=PROBE_TIMEOUT_S).status == 200
        except (OSError, HTTPException):
            return False

    def get(self, path: str) -> Answer:
        """Ask the service for a resource."""
        return self._request("GET", path)

    def post(self, path: str, body: bytes) -> Answer:
        """Send a body to the service."""
        return self._request("POST", path, body)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.service_port, timeout=timeout_s)
        try:
            connection.request(method, path, body)
            with connection.getresponse() as response:
                return Answer(status=response.status, body=json.loads(response.read()))
        finally:
            connection.close()

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + BOOT_DEADLINE_S
        while not happened():
            assert self.process.poll() is None, f"QEMU ended before {what}:\n{self.serial_output}"
            assert time.monotonic() < deadline_s, f"waited for {what}:\n{self.serial_output}"
            time.sleep(POLL_S)

    def inflate_balloon(self, *, to_mib: int) -> None:
        """Take memory from the guest until it has this much left."""
        self.monitor("balloon", {"value": to_mib << 20})
        self._wait(
            lambda: self.monitor("query-balloon")["actual"] == to_mib << 20,
            f"a balloon that leaves {to_mib} MiB",
        )

    def close(self) -> None:
        """End the machine at once. Idempotent."""
        self.process.kill()
        self.process.wait()
        self._monitor_lines.close()
        self._monitor.close()


@contextmanager
def running_machine(
    image: Path, folder: Path, *, port: int = 8080, options: tuple[str, ...] = ()
) -> Iterator[PlainMachine]:
    """Boot an image and forward a free local port to the given port of the guest.

    The guest writes to `image` itself; logs and sockets go into `folder`, which must be short
    enough for socket paths. `options` are further arguments of QEMU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu, "qemu-system-x86_64 is missing; run: sudo apt-get install qemu-system-x86"
    log_option = f"logfile={folder}/serial.log"
    argv = [
        qemu,
        *("-accel", "tcg,tb-size=128", "-m", "256", "-display", "none", "-nodefaults"),
        *("-chardev", f"socket,id=serial,path={folder}/serial,server=on,wait=off,{log_option}"),
        *("-serial", "chardev:serial"),
        *("-qmp", f"unix:{folder}/monitor,server=on,wait=off"),
        *("-drive", f"file={image},if=none,id=disk,format=qcow2"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:{port}"),
        *("-device", "virtio-net-pci,netdev=net"),
        *options,
    ]  # fmt: skip
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        machine = PlainMachine(process, folder)
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield machine
    finally:
        machine.close()


def copy_on_write(base: Path, layer: Path) -> Path:
    """Make a disk that starts as `base` and keeps its own changes."""
    qemu_img = shutil.which("qemu-img")
    assert qemu_img, "qemu-img is missing; run: sudo apt-get install qemu-utils"
    subprocess.run(
        [qemu_img, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(layer)],
        check=True,
        timeout=60,
    )
    return layer


def _connect(path: Path) -> socket.socket:
    deadline_s = time.monotonic() + EXIT_DEADLINE_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(BOOT_DEADLINE_S)
        try:
            connection.connect(str(path))
        except OSError as exc:
            connection.close()
            if time.monotonic() > deadline_s:
                log = (path.parent / "qemu.log").read_text(encoding="utf-8", errors="replace")
                message = f"QEMU did not start: {log}"
                raise AssertionError(message) from exc
            time.sleep(POLL_S)
        else:
            return connection
