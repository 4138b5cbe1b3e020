# SPDX-License-Identifier: Apache-2.0
"""A phone that knows nothing but the service type: finds a cloudlet and lists its services.

It reads the announcement as old clients do and uses python-zeroconf by itself, without
anything of ours. Prints what it found as JSON.

    python -m testing.system.newcomer
"""

import ipaddress
import json
import sys
import threading
import urllib.request

from zeroconf import ServiceBrowser, ServiceStateChange, Zeroconf

SERVICE_TYPE = "_cloudlet._tcp.local."
PATIENCE_S = 30.0


def main() -> int:
    """Find, ask, print."""
    names: list[str] = []
    found = threading.Event()

    def changed(
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Added:
            names.append(name)
            found.set()

    with Zeroconf() as zeroconf:
        ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[changed])
        if not found.wait(PATIENCE_S):
            return 1
        info = zeroconf.get_service_info(SERVICE_TYPE, names[0])
    assert info is not None
    address = str(ipaddress.ip_address(info.addresses[0]))
    base = f"http://{address}:{info.port}/api"
    print(
        json.dumps(
            {
                "name": names[0].removesuffix("." + SERVICE_TYPE),
                "address": address,
                "encryption": info.text[1:].decode().split("=")[1],
                "strings": len(info.text) - 1 == info.text[0],
                "services": _get(f"{base}/services")["services"],
                "max_cores": _get(f"{base}/system")["cpu_info"]["max_cores"],
            }
        )
    )
    return 0


def _get(url: str) -> dict[str, list[dict[str, str]] | dict[str, int]]:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:  # noqa: S310  # always http
        content: dict[str, list[dict[str, str]] | dict[str, int]] = json.load(reply)
    return content


if __name__ == "__main__":
    sys.exit(main())
