# SPDX-License-Identifier: Apache-2.0
"""Tap devices on a bridge, for the session daemon that cannot make them itself.

An ordinary user's libvirt has QEMU's set-user-id helper for that, a privileged one its
own powers. Root's session daemon has neither, but whoever started it is root. A port's
name follows from its domain's id, so that it is found again after a crash.
"""

import hashlib
import subprocess
from pathlib import Path

from pycloud.core.model.identifiers import DomainId
from pycloud.errors import HypervisorError

_TIMEOUT_S = 10.0
_INTERFACES = Path("/sys/class/net")


def port_name(domain_id: DomainId) -> str:
    """Return the name of a domain's tap device; names have 15 characters at most."""
    return "pyc" + hashlib.sha256(domain_id.encode()).hexdigest()[:12]


def make_port(domain_id: DomainId, *, bridge: str) -> str:
    """Make a domain's tap device on a bridge and return its name. Raises HypervisorError."""
    name = port_name(domain_id)
    remove_port(domain_id)
    for arguments in (
        ("tuntap", "add", "dev", name, "mode", "tap", "user", "0"),
        ("link", "set", "dev", name, "master", bridge),
        ("link", "set", "dev", name, "up"),
    ):
        finished = _ip(*arguments)
        if finished.returncode != 0:
            remove_port(domain_id)
            said = finished.stderr.decode(errors="replace").strip()
            raise HypervisorError(f"the guest cannot join the bridge {bridge!r}: {said}")
    return name


def has_port(domain_id: DomainId) -> bool:
    """Return whether a domain's tap device is there."""
    return (_INTERFACES / port_name(domain_id)).exists()


def remove_port(domain_id: DomainId) -> None:
    """Remove a domain's tap device; idempotent."""
    _ip("link", "delete", "dev", port_name(domain_id))


def _ip(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            ["ip", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise HypervisorError(f"the program ip failed: {exc}") from exc
