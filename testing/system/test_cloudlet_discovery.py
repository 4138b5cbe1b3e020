# SPDX-License-Identifier: Apache-2.0
"""A phone on another machine finds a real server with nothing but the service type."""

import json
import subprocess
import sys
from pathlib import Path

from testing.guest import guest_image
from testing.system.callers import Operator
from testing.system.cloudlet import running_server
from testing.system.network_segment import REPOSITORY, TIMEOUT_S, segment

FAKE = {"hypervisor": "fake:"}


def test_phone_on_the_same_cable_finds_the_cloudlet_and_lists_its_services(tmp_path: Path) -> None:
    with running_server(tmp_path / "before", FAKE) as server:
        Operator(server.url, server.token).add_service("demo", guest_image())
    announced = {
        "discovery": "zeroconf",
        "publish_address": "auto",
        "publish_bind": "0.0.0.0",
        "api_host": "0.0.0.0",
        "api_port": "9999",
        "data_dir": server.texts["data_dir"],
    }
    with segment() as machines:
        machines.plug_in()
        with running_server(tmp_path / "after", FAKE | announced, wrapper=machines.left.enter):
            phone = subprocess.run(
                [*machines.right.enter, sys.executable, "-m", "testing.system.newcomer"],
                cwd=REPOSITORY,
                capture_output=True,
                timeout=2 * TIMEOUT_S,
                check=False,
            )
    assert phone.returncode == 0, phone.stderr.decode()
    found = json.loads(phone.stdout)
    assert (found["name"], found["address"]) == ("corner", "10.77.0.1")
    assert (found["encryption"], found["strings"]) == ("disabled", True)
    assert [service["service_id"] for service in found["services"]] == ["demo"]
    assert found["max_cores"] >= 1
