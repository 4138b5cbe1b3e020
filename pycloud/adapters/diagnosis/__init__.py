# SPDX-License-Identifier: Apache-2.0
"""Examines the machine for `pycloud doctor`: looks at everything, changes nothing.

No server has to run. What is slow runs with a deadline, and no check can stop the others:
whatever one raises becomes a finding.
"""

import logging
from collections.abc import Callable, Iterator

from pycloud.adapters.diagnosis import hypervisor, machine, network, storage
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.errors import CloudletError
from pycloud.settings import Settings

log = logging.getLogger(__name__)

Check = Callable[[Settings], Iterator[Finding]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("acceleration", machine.acceleration),
    ("hypervisor", hypervisor.examine),
    ("qemu-img", machine.image_tool),
    ("data directory", storage.data_directory),
    ("token", storage.token),
    ("disk space", storage.space),
    ("memory", machine.memory),
    ("store", storage.store),
    ("ports", network.server_ports),
    ("port range", network.port_range),
    ("address", network.address),
    ("bridge", network.bridge),
    ("discovery", network.discovery),
    ("clock", machine.clock),
)


def diagnose(
    settings: Settings, checks: tuple[tuple[str, Check], ...] = CHECKS
) -> Iterator[Finding]:
    """Yield the findings, each as soon as it is made."""
    for name, check in checks:
        try:
            yield from check(settings)
        except (CloudletError, OSError, ValueError) as exc:
            log.debug("check_failed", extra={"check": name}, exc_info=exc)
            yield Finding(name=name, verdict=Verdict.FAIL, detail=f"cannot be examined: {exc}")
