# SPDX-License-Identifier: Apache-2.0
"""scripts/demo.sh from end to end: real libvirt, real guests, real multicast DNS."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "scripts" / "demo.sh"
DEADLINE_S = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a run of the demo printed, and its folder."""

    folder: Path
    status: int
    output: str

    def has(self, expression: str) -> bool:
        """Return whether a line matches."""
        return re.search(expression, self.output, re.MULTILINE) is not None


def environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("PYCLOUD_")}


def command(folder: Path, *arguments: str) -> list[str]:
    return [str(DEMO), "--folder", str(folder), *arguments]


def run(folder: Path, *arguments: str) -> Told:
    done = subprocess.run(
        command(folder, *arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Told(folder=folder, status=done.returncode, output=done.stdout)


def processes_of(folder: Path) -> list[list[str]]:
    """Return the command lines of all processes that name the folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process.cmdline())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A demo folder; whatever happens, nothing of it is left running."""
    path = tmp_path_factory.mktemp("demo")
    yield path
    run(path, "--stop")


@pytest.fixture(scope="module")
def first(folder: Path) -> Told:
    """The first run, while another program has the usual port of the API."""
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Another cloudlet of this machine would do as well.
        with suppress(OSError):
            other.bind(("0.0.0.0", 9999))
            other.listen()
        told = run(folder)
    assert told.status == 0, told.output
    return told


@pytest.fixture(scope="module")
def kept(first: Told) -> Iterator[Told]:
    """A later run that leaves its servers up."""
    told = run(first.folder, "--keep")
    assert told.status == 0, told.output
    yield told
    run(first.folder, "--stop")


def test_phone_finds_the_cloudlet_over_multicast_dns(first: Told) -> None:
    assert first.has(r"found demo-\S+ at \d+\.\d+\.\d+\.\d+:\d+ after .* encryption disabled")


def test_first_start_is_from_cold_and_the_next_from_the_saved_state(first: Told) -> None:
    methods = re.findall(r"of it to start (.*)\)", first.output)

    assert methods == ["from cold", "from the saved state", "from a waiting copy"]
    assert first.has(r"^    from cold +\d+\.\d\d s$")
    assert first.has(r"^    from the saved state +\d+\.\d\d s$")


def test_answer_is_right(first: Told) -> None:
    size_bytes = (ROOT / "LICENSE").stat().st_size

    assert first.has(rf"LICENSE: {size_bytes} bytes, \d+ lines")
    assert first.has("SHA-256 .* the same as computed here")


def test_taken_port_is_avoided(first: Told) -> None:
    assert first.has(r"API http://127\.0\.0\.1:\d+")
    assert not first.has(r"API http://127\.0\.0\.1:9999\b")


def test_log_of_the_demo_is_plain_text(first: Told) -> None:
    assert "\x1b" not in first.output


def test_end_says_what_to_try_next(first: Told) -> None:
    assert first.has("^What to try next:$")


def test_nothing_is_left_running(first: Told) -> None:
    record = first.folder / "server.json"

    assert (processes_of(first.folder), record.exists()) == ([], False)


def test_later_run_makes_nothing_anew_and_remembers_the_cold_start(kept: Told) -> None:
    assert kept.has("built earlier")
    assert kept.has("in the catalogue since an earlier run")
    assert not kept.has("of it to start from cold")
    assert kept.has(r"from cold +\d+\.\d\d s +measured ")


def test_kept_servers_answer_where_the_demo_says(kept: Told) -> None:
    urls = re.findall(r"^    (?:Cloudlet API|Manager) +(http://\S+)", kept.output, re.MULTILINE)

    answers = [requests.get(f"{url}/healthz", timeout=30).text for url in urls]

    assert answers == ["ok\n", "ok\n"]


def test_interrupted_run_ends_what_it_had_started(tmp_path: Path, first: Told) -> None:
    folder = tmp_path / "interrupted"
    folder.mkdir()
    # With its image built and its service in the catalogue, it is soon at the interesting part.
    for name in ("file-analysis.qcow2", "file-analysis.sources"):
        (folder / name).hardlink_to(first.folder / name)
    process = subprocess.Popen(
        command(folder),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Start file-analysis" in line:
                process.send_signal(signal.SIGINT)

    assert process.returncode == 130, said
    assert "what the demo had started was stopped" in said
    assert processes_of(folder) == []


def test_second_demo_waits_its_turn(kept: Told) -> None:
    lock = kept.folder / "lock"
    with subprocess.Popen(
        ["flock", str(lock), "sh", "-c", "echo locked; read -r _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        told = run(kept.folder)
        holder.communicate("end\n")

    assert (told.status, told.has("another demo is running")) == (1, True)


def test_stop_ends_the_servers_that_were_kept(kept: Told) -> None:
    told = run(kept.folder, "--stop")

    assert (told.status, told.has("was stopped, and its guests with it")) == (0, True)
    assert processes_of(kept.folder) == []
