# SPDX-License-Identifier: Apache-2.0
"""A cloudlet that does nothing but discovery; commands on standard input, JSON on output.

python -m testing.system.discovery_agent NAME [KEY=VALUE ...]
"""

import json
import sys
from dataclasses import asdict

from pycloud.adapters.clock import SystemClock
from pycloud.adapters.discovery import discovery_for, find_cloudlets
from pycloud.adapters.interfaces import preferred_address
from pycloud.core.model.fleet import Cloudlet
from pycloud.settings import from_mapping


def main() -> None:
    """Serve until standard input ends."""
    name, *pairs = sys.argv[1:]
    settings = from_mapping(
        {f"pycloud.{key}": value for key, _, value in (pair.partition("=") for pair in pairs)}
    ).settings
    clock = SystemClock()
    cloudlet = Cloudlet(
        name=name, fqdn=None, address=preferred_address(), port=9999, version="1.2.3"
    )
    discovery = discovery_for(settings, cloudlet, clock)
    discovery.start()
    try:
        for line in sys.stdin:
            command, *words = line.split()
            answer: object = None
            if command == "peers":
                answer = [asdict(peer) for peer in discovery.peers()]
            elif command == "problem":
                answer = discovery.problem()
            elif command == "find":
                found = find_cloudlets(settings, clock, timeout_s=6.0)
                answer = [asdict(peer) for peer in found]
            elif command == "load":
                discovery.update_load(load_percent=int(words[0]), services=words[1:])
            print(json.dumps(answer, default=str), flush=True)
    finally:
        discovery.stop()


if __name__ == "__main__":
    main()
