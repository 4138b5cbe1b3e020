# SPDX-License-Identifier: Apache-2.0
"""Both apps as real processes: under pserve and as one, up, answering, and down again."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60


def environment(directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYCLOUD_DATA_DIR": str(directory),
        "PYCLOUD_HYPERVISOR": "fake:",
        "PYCLOUD_DISCOVERY": "off",
        "PYCLOUD_API_HOST": "127.0.0.1",
        "PYCLOUD_API_PORT": "0",
        "PYCLOUD_MANAGER_PORT": "0",
        "PYTHONWARNINGS": "ignore",
    }


@contextlib.contextmanager
def process(
    argv: list[str], directory: Path, **variables: str
) -> Iterator[tuple[subprocess.Popen, dict]]:
    """Run a server; yields it and the URL of each app as its log says."""
    apps = 1 if "pserve" in argv[0] else 2
    env = environment(directory) | variables
    with subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as running:
        try:
            urls: dict[str, str] = {}
            while len(urls) < apps:
                line = running.stderr.readline()
                assert line, "the server ended early"
                if found := re.search(r"server_listening app=(\w+) url=(\S+)", line):
                    urls[found[1]] = found[2]
            yield running, urls
        finally:
            running.kill()


def ends_cleanly(running: subprocess.Popen) -> bool:
    running.send_signal(signal.SIGTERM)
    return running.wait(timeout=DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("name", "path"), [("api", "/api/services"), ("manager", "/")], ids=["api", "manager"]
)
def test_app_runs_under_pserve(tmp_path: Path, name: str, path: str) -> None:
    pserve = str(Path(sys.executable).with_name("pserve"))
    argv = [pserve, f"development_{name}.ini"]
    with process(argv, tmp_path) as (running, urls):
        status = requests.get(urls[name] + path, timeout=DEADLINE_S).status_code
        ended = ends_cleanly(running)
    assert status == 200
    assert ended


def test_manager_under_pserve_does_not_judge_the_announcement_of_another_process(
    tmp_path: Path,
) -> None:
    pserve = str(Path(sys.executable).with_name("pserve"))
    argv = [pserve, "development_manager.ini"]
    with process(argv, tmp_path, PYCLOUD_DISCOVERY="zeroconf") as (_, urls):
        page = requests.get(urls["manager"], timeout=DEADLINE_S).text
    assert "the Cloudlet API announces this cloudlet" in page
    assert "no problem known" not in page


def test_pserve_is_hardened_too(tmp_path: Path) -> None:
    pserve = str(Path(sys.executable).with_name("pserve"))
    with process([pserve, "development_api.ini"], tmp_path) as (_, urls):
        port = int(urls["api"].rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for _ in range(120):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                sock.sendall(b"GET / HTTP/1.1\r\nX: ")
            answer = requests.get(urls["api"] + "/healthz", timeout=DEADLINE_S)
    assert answer.text == "ok\n"


def test_both_apps_run_in_one_process(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from pycloud import api, manager, wiring
from pycloud.settings import load
from pycloud.web.logs import set_up_logging
from pycloud.web.running import Listener, serve
settings = load(None).settings
set_up_logging(settings)
core = wiring.build_core(settings)
core.background.start()
try:
    serve([
        Listener(name="api", application=api.make_app(core, settings), host="127.0.0.1", port=0),
        Listener(name="manager", application=manager.make_app(core, settings),
                 host="127.0.0.1", port=0),
    ], settings)
finally:
    core.background.stop()
"""
    with process([sys.executable, "-c", script], tmp_path) as (running, urls):
        token = (tmp_path / "admin.token").read_text().strip()
        index = requests.get(
            urls["api"] + "/api/v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=DEADLINE_S,
        )
        page = requests.get(urls["manager"], timeout=DEADLINE_S)
        ended = ends_cleanly(running)
    assert index.json()["auth"] == "trusted"
    assert page.status_code == 200
    assert ended


def test_large_body_lies_in_the_data_directory(tmp_path: Path) -> None:
    pserve = str(Path(sys.executable).with_name("pserve"))
    with process([pserve, "development_api.ini"], tmp_path) as (running, urls):
        port = int(urls["api"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            token = (tmp_path / "admin.token").read_text().strip()
            sock.sendall(
                b"PATCH /api/v2/uploads/x HTTP/1.1\r\nContent-Length: 4000000\r\n"
                b"Authorization: Bearer " + token.encode() + b"\r\n\r\n"
            )
            sock.sendall(b"x" * 3_000_000)
            found = False
            while not found:
                links = Path(f"/proc/{running.pid}/fd").iterdir()
                with contextlib.suppress(FileNotFoundError):
                    found = any(str(tmp_path / "bodies") in str(link.readlink()) for link in links)
    assert found


def test_port_that_is_taken_is_said_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        pserve = str(Path(sys.executable).with_name("pserve"))
        done = subprocess.run(
            [pserve, "development_api.ini"],
            check=False,
            cwd=ROOT,
            env=environment(tmp_path) | {"PYCLOUD_API_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert done.returncode != 0
    assert f"127.0.0.1:{port}" in done.stderr
