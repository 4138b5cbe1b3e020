# SPDX-License-Identifier: Apache-2.0
"""Run a guest on a bridge, inside a network namespace made for it; print what was seen.

Run as `unshare --net --mount python -m testing.system.bridged_guest DIRECTORY`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

from pycloud.adapters.libvirt import session_daemon
from pycloud.core.ports import BridgedNetwork
from pycloud.errors import StateUnusable
from testing.real_host import RealHost, ignore_phase
from testing.serial_shell import run_in_guest

BRIDGE = BridgedNetwork(bridge="br-test", mac_address="52:54:00:00:77:77")
GUEST_ADDRESS = "192.0.2.77"
DEADLINE_S = 60.0


def main(directory: Path) -> None:
    """Make the bridge, run the guest, clean up."""
    for line in (
        "link set dev lo up",
        "link add name br-test type bridge",
        "address add 192.0.2.1/24 dev br-test",
        "link set dev br-test up",
    ):
        subprocess.run(["ip", *line.split()], check=True, timeout=10)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True, timeout=10)
    with tempfile.TemporaryDirectory(prefix="pycloud-") as runtime:
        session_daemon.RUNTIME_DIR = Path(runtime)
        host = RealHost(directory)
        try:
            print(json.dumps(observe(host)))
        finally:
            host.end_all()
            daemon = Path(runtime) / "libvirt" / "libvirtd.pid"
            os.kill(int(daemon.read_text(encoding="ascii")), signal.SIGTERM)


def observe(host: RealHost) -> dict[str, object]:
    """Run a guest and return what can be seen of it."""
    spec = replace(host.spec(), network=BRIDGE)
    host.adapters.hypervisor.start(spec, on_phase=ignore_phase)
    # Its DHCP client takes all addresses away before it sets the card up.
    is_up = '[ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" = 1 ]'
    run_in_guest(
        spec.domain_id,
        f"until {is_up}; do sleep 0.1; done; ip address add {GUEST_ADDRESS}/24 dev eth0",
    )
    address = wait_for_address(host, spec.domain_id)
    with closing(HTTPConnection(address, 8080, timeout=DEADLINE_S)) as connection:
        connection.request("GET", "/")
        document = json.loads(connection.getresponse().read())
    host.end(spec)
    return {
        "address": address,
        "service": document["service"],
        "ports_left": [path.name for path in Path("/sys/class/net").glob("pyc*")],
        "with_memory": refusal_of_memory(host),
    }


def wait_for_address(host: RealHost, domain_id: object) -> str:
    """Return the guest's address once the host knows it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        address = host.adapters.guest_view.address(domain_id)
        if address is not None:
            return address
        time.sleep(0.1)
    raise AssertionError("the guest's address never became known")


def refusal_of_memory(host: RealHost) -> str:
    """Return why a template on a bridge is refused."""
    try:
        host.adapters.memory_capture.start_template(replace(host.spec(), network=BRIDGE), "area")
    except StateUnusable as refusal:
        return refusal.code
    return "accepted"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
