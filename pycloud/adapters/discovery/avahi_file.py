# SPDX-License-Identifier: Apache-2.0
"""The service file from which avahi-daemon announces what newer clients want to know.

The file of the first service type is static. This one changes with the Services and the
load, and apart from it, because avahi-daemon withdraws what stands in a file that changed
and probes for it anew, which old clients would take for a cloudlet that left.
`discovery/install.sh` makes the file and gives it to the account of the server, which may
not write to avahi-daemon's directory otherwise. Only the server knows what goes into it.
"""

import os
from pathlib import Path
from xml.sax.saxutils import escape

from pycloud.adapters.discovery.announcement import (
    MODERN_TYPE,
    Announcement,
    modern_txt,
    txt_strings,
)
from pycloud.core.model.fleet import Cloudlet
from pycloud.core.ports import Clock

LEGACY_FILE = Path("/etc/avahi/services/pycloud.service")
MODERN_FILE = Path("/etc/avahi/services/pycloud-facts.service")
_INTERVAL_S = 60.0
"""The second service is away for about a second after each change of the file."""
_LOAD_STEP_PERCENT = 10
"""The load wavers all the time; every change is a write to /etc and a line in a log."""
_BLOCK_BYTES = 4096
"""The longest record makes 2.1 kB. Files of one size are replaced by one write, so neither
avahi-daemon nor a crash can meet half a file."""


class AvahiFile:
    """Keeps the file up to date. Not thread-safe."""

    def __init__(
        self, cloudlet: Cloudlet, clock: Clock, *, identity: str, path: Path = MODERN_FILE
    ) -> None:
        self._cloudlet = cloudlet
        self._clock = clock
        self._identity = identity
        self._path = path
        self._due_at_s = 0.0

    def tell(self, *, load_percent: int, services: tuple[str, ...]) -> str | None:
        """Write this unless it is too soon; return what is wrong with the file, if anything."""
        now_s = self._clock.monotonic()
        if now_s < self._due_at_s:
            return None
        wanted = Announcement(
            identity=self._identity,
            version=self._cloudlet.version,
            load_percent=round(load_percent / _LOAD_STEP_PERCENT) * _LOAD_STEP_PERCENT,
            services=services,
        )
        try:
            _overwrite(self._path, service_file(self._cloudlet, wanted))
        except OSError as exc:
            return (
                f"newer clients are not told our identity, load and services: {self._path} cannot"
                f" be written ({exc.strerror}); run discovery/install.sh with --owner"
            )
        self._due_at_s = now_s + _INTERVAL_S
        return None


def service_file(cloudlet: Cloudlet, announcement: Announcement) -> bytes:
    """Return the file that announces these facts under the second type."""
    records = "".join(
        f"    <txt-record>{escape(string.decode())}</txt-record>\n"
        for string in txt_strings(modern_txt(announcement))
    )
    return f"""\
<?xml version="1.0" standalone="no"?>
<!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group>
  <name replace-wildcards="no">{escape(cloudlet.name)}</name>
  <service protocol="ipv4">
    <type>{MODERN_TYPE}</type>
    <port>{cloudlet.port}</port>
{records}  </service>
</service-group>
""".encode().ljust(_BLOCK_BYTES)


def _overwrite(path: Path, content: bytes) -> None:
    """Replace the content of a file that exists, if it is another. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "r+b", buffering=0) as stream:
        if stream.read(len(content) + 1) == content:
            return
        before_s = int(os.fstat(descriptor).st_mtime)
        stream.seek(0)
        stream.write(content)
        stream.truncate()
        # avahi-daemon looks at nothing else than the second of the change.
        if int(os.fstat(descriptor).st_mtime) <= before_s:
            os.utime(descriptor, (before_s + 1, before_s + 1))
