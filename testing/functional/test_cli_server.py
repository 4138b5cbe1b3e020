# SPDX-License-Identifier: Apache-2.0
"""`pycloud serve` as a process of its own, and the command line that talks to it over HTTP."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from pycloud.cli.failures import ExitCode

PYCLOUD = Path(sys.executable).with_name("pycloud")
DEADLINE_S = 60
QCOW2_SIZE = "16M"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that runs, and its configuration."""

    process: subprocess.Popen[str]
    config: Path
    urls: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [str(PYCLOUD), "--config", str(self.config), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(*self.command(*arguments)[1:])


def environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("PYCLOUD_")}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PYCLOUD), *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def a_config(folder: Path, **settings: object) -> Path:
    chosen = {
        "data_dir": folder / "data",
        "hypervisor": "fake:",
        "store": "memory:",
        "discovery": "off",
        "api_host": "127.0.0.1",
        "api_port": free_port(),
        "manager_port": free_port(),
        "warm_total": 0,
        **settings,
    }
    path = folder / "cloudlet.ini"
    lines = [f"pycloud.{name} = {text}" for name, text in chosen.items()]
    path.write_text("\n".join(["[app:main]", *lines, ""]), encoding="utf-8")
    return path


def serve(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(PYCLOUD), "serve", "--config", str(config), "--output", "json"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    config = a_config(tmp_path)
    process = serve(config)
    assert process.stdout is not None
    document = ""
    while not document.endswith("}\n"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        document += line
    yield Served(process=process, config=config, urls=json.loads(document))
    process.terminate()
    process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), QCOW2_SIZE]
    subprocess.run(create, check=True, timeout=DEADLINE_S)
    return path


def test_both_apps_answer_where_serve_says(served: Served) -> None:
    answers = {
        name: requests.get(f"{url}/healthz", timeout=10) for name, url in served.urls.items()
    }

    assert {name: answer.text for name, answer in answers.items()} == {
        "api": "ok\n",
        "manager": "ok\n",
    }


def test_server_ends_cleanly_when_asked(served: Served) -> None:
    served.process.send_signal(signal.SIGINT)

    _, said = served.process.communicate(timeout=DEADLINE_S)

    assert served.process.returncode == 0
    assert "Traceback" not in said
    assert "instances keep running" in said


def test_commands_use_the_token_of_their_cloudlet_by_themselves(
    served: Served, image: Path
) -> None:
    added = served.run("service", "add", str(image), "--id", "speech", "--port", "8080")

    assert (added.returncode, added.stdout) == (0, "service speech was added\n")
    listed = json.loads(served.run("service", "list", "--output", "json").stdout)
    assert [service["id"] for service in listed] == ["speech"]


def test_nothing_is_coloured_in_a_pipe(served: Served, image: Path) -> None:
    results = [
        served.run("service", "add", str(image), "--id", "speech", "--port", "8080"),
        served.run("service", "show", "speech"),
        served.run("doctor"),
    ]

    assert not any("\x1b" in result.stdout + result.stderr for result in results)


def test_terminal_gets_a_table_with_colours_and_bars(served: Served, image: Path) -> None:
    leader, follower = pty.openpty()
    with closing(os.fdopen(leader, "rb", buffering=0)) as screen:
        process = subprocess.Popen(
            served.command("service", "add", str(image), "--id", "speech", "--port", "8080"),
            env={**environment(), "TERM": "xterm-256color"},
            stdin=follower,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        shown = b""
        try:
            while piece := screen.read(4096):
                shown += piece
        except OSError:
            pass  # The way in which a terminal tells that its other end is closed.
        process.wait(timeout=DEADLINE_S)

    assert process.returncode == 0
    assert b"\x1b[" in shown
    assert b"Sending disk.qcow2" in shown


def test_second_server_on_the_port_is_told_who_is_there(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    port = served.urls["api"].rpartition(":")[2]

    second = run("--config", str(a_config(folder, api_port=port)), "serve")

    assert second.returncode == ExitCode.FAILURE
    assert "a cloudlet is running at 127.0.0.1:" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("setting", ["api_port", "manager_port"])
def test_port_of_another_program_is_told_with_the_way_out(tmp_path: Path, setting: str) -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        result = run("--config", str(a_config(tmp_path, **{setting: port})), "serve")

    assert result.returncode == ExitCode.FAILURE
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"PYCLOUD_{setting.upper()}" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_server_ends_with_unreachable(tmp_path: Path) -> None:
    result = run("--config", str(a_config(tmp_path)), "service", "list")

    assert (result.returncode, result.stdout) == (ExitCode.UNREACHABLE, "")
    assert "pycloud serve" in result.stderr


def test_wrong_setting_is_named(tmp_path: Path) -> None:
    result = run("serve", "--config", str(a_config(tmp_path, api_port="many")))

    assert result.returncode == ExitCode.USAGE
    assert "pycloud.api_port = 'many'" in result.stderr


def test_doctor_knows_a_running_cloudlet_from_another_program(served: Served) -> None:
    document = json.loads(served.run("doctor", "--output", "json").stdout)

    told = {finding["name"]: finding for finding in document["findings"]}
    assert told["API port"]["detail"].startswith("a Cloudlet API is running on")
    assert told["Manager port"]["detail"].startswith("a Manager is running on")
    assert all(finding["fix"] for finding in document["findings"] if finding["verdict"] != "ok")


def test_doctor_fails_when_a_port_is_taken(tmp_path: Path) -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = a_config(tmp_path, api_port=other.getsockname()[1])

        result = run("--config", str(config), "doctor")

    assert result.returncode == ExitCode.FAILURE
    assert "another program listens on" in result.stdout
