# SPDX-License-Identifier: Apache-2.0
"""Two machines joined by a cable, made of network namespaces.

An ordinary user makes them inside a user namespace; root needs none.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Machine:
    """A network namespace: how to run something in it, and the process that keeps it."""

    enter: tuple[str, ...]
    keeper_pid: int

    def run(self, *command: str) -> None:
        """Run a command in it and fail if it fails."""
        subprocess.run([*self.enter, *command], check=True, timeout=TIMEOUT_S)


@dataclass
class Segment:
    """Two machines, left and right; each has one end of a cable that `plug_in` makes."""

    left: Machine
    right: Machine

    def plug_in(self) -> None:
        """Make the cable with an address at each end."""
        self.left.run(
            *("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable"),
            *("netns", str(self.right.keeper_pid)),
        )
        for machine, address in ((self.left, "10.77.0.1/24"), (self.right, "10.77.0.2/24")):
            machine.run("ip", "address", "add", address, "dev", "cable")
            machine.run("ip", "link", "set", "cable", "up")


@dataclass
class Agent:
    """A cloudlet's discovery in a machine; see `discovery_agent`."""

    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)

    def ask(self, command: str) -> object:
        """Give it a command and return what it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def until(self, command: str, condition) -> object:
        """Ask again and again until the answer is as wanted."""
        end_s = time.monotonic() + TIMEOUT_S
        while not condition(answer := self.ask(command)):
            assert time.monotonic() < end_s, f"{command} stays {answer}"
            time.sleep(0.1)
        return answer


@contextlib.contextmanager
def segment() -> Iterator[Segment]:
    """Make two machines without a cable; they are gone afterwards with all in them."""
    own = () if os.geteuid() == 0 else ("--map-root-user",)
    share = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
    with _keeper(["unshare", *own, "--net"]) as left_pid:
        left = Machine(("nsenter", "--target", str(left_pid), *share, "--net", "--"), left_pid)
        with _keeper([*left.enter, "unshare", "--net"]) as right_pid:
            right = Machine(
                ("nsenter", "--target", str(right_pid), *share, "--net", "--"), right_pid
            )
            for machine in (left, right):
                machine.run("ip", "link", "set", "lo", "up")
            yield Segment(left, right)


@contextlib.contextmanager
def agent(machine: Machine, name: str, *settings: str) -> Iterator[Agent]:
    """Run a cloudlet's discovery in a machine until the block ends."""
    process = subprocess.Popen(
        [*machine.enter, sys.executable, "-m", "testing.system.discovery_agent", name, *settings],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Agent(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=TIMEOUT_S)


@contextlib.contextmanager
def _keeper(command: Sequence[str]) -> Iterator[int]:
    """Run `cat` in a new namespace, which lives as long as it does."""
    outside = _namespace("self")
    process = subprocess.Popen([*command, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    with process:
        try:
            _wait_for_cat(process, outside)
            yield process.pid
        finally:
            process.kill()


def _wait_for_cat(process: "subprocess.Popen[bytes]", outside: Path) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end_s:
        assert process.poll() is None, "network namespaces cannot be made here"
        with contextlib.suppress(OSError):
            is_inside = _namespace(str(process.pid)) != outside
            if is_inside and Path(f"/proc/{process.pid}/comm").read_text() == "cat\n":
                return
        time.sleep(0.01)
    raise TimeoutError("the namespace was not made in time")


def _namespace(process: str) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()
