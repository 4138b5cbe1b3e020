# SPDX-License-Identifier: Apache-2.0
"""A machine of a segment on which a real avahi-daemon announces and looks around.

It has a configuration directory and a D-Bus of its own, which nothing else sees.
"""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from testing.avahi import environment
from testing.system.network_segment import REPOSITORY, TIMEOUT_S, Machine
from testing.system.own_mounts import bound, small_disk, wrapper

_INSTALL = REPOSITORY / "discovery" / "install.sh"
_NEEDED_OF_ETC = ("hosts", "ld.so.cache", "localtime", "machine-id", "nsswitch.conf")
# avahi-daemon insists on its user, and an ordinary user's namespace has no account but root's.
_PASSWD = "root:x:0:0::/root:/bin/sh\navahi:x:0:0::/:/bin/false\n"
_GROUP = "root:x:0:\navahi:x:0:\n"
_AVAHI_CONFIG = """\
[server]
use-ipv4=yes
use-ipv6=no
host-name={host_name}
allow-interfaces=cable
disallow-other-stacks=yes
enable-dbus=yes

[publish]
publish-workstation=no
publish-hinfo=no
"""
_BUS_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@dataclass(frozen=True)
class AvahiHost:
    """The machine as programs see it that speak to its avahi-daemon."""

    machine: Machine
    services: Path
    log: Path

    def install(self, name: str, port: int = 9999) -> None:
        """Announce a cloudlet as an operator would."""
        place = ("--directory", str(self.services))
        subprocess.run(
            ["bash", str(_INSTALL), "--name", name, "--port", str(port), *place],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )

    def await_lines(self, *texts: str) -> None:
        """Return once avahi-daemon has logged these, one after the other."""
        wanted = re.compile(".*".join(map(re.escape, texts)), re.DOTALL)
        _until(
            lambda: wanted.search(self.log_text()) is not None,
            lambda: f"no {texts} in:\n{self.log_text()}",
        )

    def log_text(self) -> str:
        """Return what avahi-daemon has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def avahi_host(machine: Machine, folder: Path, host_name: str) -> Iterator[AvahiHost]:
    """Run avahi-daemon on a machine until the block ends; it announces nothing yet."""
    services = _make_etc(folder / "etc", host_name)
    socket = folder / "bus"
    (folder / "bus.conf").write_text(_BUS_CONFIG.format(socket=socket), encoding="ascii")
    variables = {**environment(), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={socket}"}
    mounts = wrapper(bound(folder / "etc", Path("/etc")), small_disk(Path("/run"), 1))
    host = AvahiHost(
        machine=replace(
            machine,
            enter=(
                *machine.enter,
                *mounts,
                "env",
                *(f"{name}={value}" for name, value in variables.items()),
            ),
        ),
        services=services,
        log=folder / "log",
    )
    bus = ["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--nopidfile"]
    avahi = ["avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits", "--debug"]
    with _running(host, bus):
        _until(socket.exists, lambda: f"no D-Bus: {host.log_text()}")
        with _running(host, avahi):
            host.await_lines("Server startup complete")
            yield host


def _make_etc(etc: Path, host_name: str) -> Path:
    """Make what is seen as /etc; returns its directory of service files."""
    services = etc / "avahi" / "services"
    services.mkdir(parents=True)
    for name in _NEEDED_OF_ETC:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(Path("/etc") / name, etc)
    (etc / "passwd").write_text(_PASSWD, encoding="ascii")
    (etc / "group").write_text(_GROUP, encoding="ascii")
    config = _AVAHI_CONFIG.format(host_name=host_name)
    (etc / "avahi" / "avahi-daemon.conf").write_text(config, encoding="ascii")
    return services


@contextlib.contextmanager
def _running(host: AvahiHost, command: list[str]) -> Iterator[None]:
    with host.log.open("ab") as log:
        process = subprocess.Popen(
            [*host.machine.enter, *command],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=TIMEOUT_S)


def _until(condition: Callable[[], bool], why: Callable[[], str]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, why()
        time.sleep(0.02)
