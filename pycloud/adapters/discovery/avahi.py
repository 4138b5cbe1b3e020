# SPDX-License-Identifier: Apache-2.0
"""Discovery on hosts where avahi-daemon owns UDP port 5353.

avahi-daemon announces us from two files that `discovery/install.sh` puts into its
directory; `avahi_file` keeps the second one up to date. This module runs `avahi-browse`,
to see others and to check that we are seen.
"""

import logging
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence

from pycloud.adapters.discovery.announcement import LEGACY_TYPE, MODERN_TYPE, Sighting
from pycloud.adapters.discovery.avahi_file import AvahiFile
from pycloud.adapters.discovery.peer_table import PeerTable
from pycloud.adapters.interfaces import interface_addresses
from pycloud.core.model.fleet import Cloudlet, Peer
from pycloud.core.ports import Clock
from pycloud.errors import DiscoveryError, NameTaken, ToolFailed

Browse = Callable[[str], str]
"""Runs `avahi-browse` for one service type and returns what it printed."""

_BROWSE_TIMEOUT_S = 10.0
_INTERVAL_S = 30.0
_MAX_OUTPUT_CHARACTERS = 1 << 20
_FIELDS = 10
_ESCAPE = re.compile(rb"\\([0-9]{3}|.)", re.DOTALL)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)

log = logging.getLogger(__name__)


class AvahiDiscovery:
    """The Discovery port on avahi-daemon. Thread-safe."""

    def __init__(
        self,
        cloudlet: Cloudlet,
        clock: Clock,
        *,
        file: AvahiFile,
        browse: Browse | None = None,
    ) -> None:
        self._cloudlet = cloudlet
        self._browse = browse or run_avahi_browse
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._peers: tuple[Peer, ...] = ()
        self._problem: str | None = None
        self._file_problem: str | None = None

    def start(self) -> None:
        """Begin to look around in the background."""
        with self._lock:
            if self._thread is not None:
                return
            self._stopping.clear()
            self._problem = "avahi-daemon has not been asked yet"
            self._thread = threading.Thread(target=self._keep, name="discovery", daemon=True)
            self._thread.start()

    def update_load(self, *, load_percent: int, services: Sequence[str]) -> None:
        """Note what to announce; a later call makes up for one that came too soon."""
        with self._lock:
            problem = self._file.tell(load_percent=load_percent, services=tuple(services))
            is_new = problem not in {None, self._file_problem}
            self._file_problem = problem
        if is_new:
            log.warning("discovery.problem", extra={"problem": problem})

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets seen in the last round."""
        with self._lock:
            return self._peers

    def problem(self) -> str | None:
        """Return why avahi-daemon does not announce us as it should, None if it does."""
        with self._lock:
            return self._problem or self._file_problem

    def stop(self) -> None:
        """Stop to look around; avahi-daemon goes on to announce us. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            thread.join(timeout=3 * _BROWSE_TIMEOUT_S)
        with self._lock:
            self._peers, self._problem, self._file_problem = (), None, None

    def look(self) -> None:
        """Ask avahi-daemon once, now."""
        try:
            sightings = list(browse_avahi(self._browse))
        except (DiscoveryError, ToolFailed) as exc:
            self._tell((), exc.message)
            return
        own_addresses = {item.address for item in interface_addresses()}
        ours = [
            seen
            for seen in sightings
            # Under whatever name: avahi-daemon takes another one if ours is taken.
            if seen.port == self._cloudlet.port and own_addresses.intersection(seen.addresses)
        ]
        table = PeerTable(self._clock)
        for seen in sightings:
            if seen not in ours:
                table.see(seen)
        self._tell(table.peers(), self._what_is_wrong(ours, table.peers()))

    def _keep(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(_INTERVAL_S)

    def _what_is_wrong(self, ours: Sequence[Sighting], peers: Sequence[Peer]) -> str | None:
        names = [seen.name for seen in ours if seen.service_type == LEGACY_TYPE]
        if self._cloudlet.name in names:
            return None
        if any(peer.name == self._cloudlet.name for peer in peers):
            return NameTaken(self._cloudlet.name).message
        if names:
            return (
                f"avahi-daemon announces us as {names[0]!r}; run discovery/install.sh with the"
                f" name {self._cloudlet.name!r}, which may have been taken before"
            )
        return (
            f"avahi-daemon does not announce {self._cloudlet.name!r} on port"
            f" {self._cloudlet.port}; run discovery/install.sh with this name and port"
        )

    def _tell(self, peers: tuple[Peer, ...], problem: str | None) -> None:
        with self._lock:
            is_new = problem != self._problem
            self._peers, self._problem = peers, problem
        if is_new and problem is not None:
            log.warning("discovery.problem", extra={"problem": problem})


def browse_avahi(browse: Browse) -> Iterator[Sighting]:
    """Return what avahi-daemon sees of both types, IPv4 and IPv6 joined.

    Raises DiscoveryError if avahi is missing or not running, ToolFailed if it hangs.
    """
    joined: dict[tuple[str, str], Sighting] = {}
    for service_type in (LEGACY_TYPE, MODERN_TYPE):
        for seen in parse_avahi_browse(browse(service_type)[:_MAX_OUTPUT_CHARACTERS]):
            if seen.service_type != service_type:
                continue
            known = joined.get((service_type, seen.name))
            addresses = (*(known.addresses if known else ()), *seen.addresses)
            outside = [text for text in addresses if not text.startswith("127.")]
            joined[service_type, seen.name] = Sighting(
                service_type=service_type,
                name=seen.name,
                addresses=tuple(dict.fromkeys(outside or addresses)),
                port=seen.port,
                txt=seen.txt,
            )
    yield from joined.values()


def run_avahi_browse(service_type: str) -> str:
    """Run `avahi-browse` until it has seen all there is. Raises DiscoveryError, ToolFailed."""
    command = ["avahi-browse", "--parsable", "--resolve", "--terminate", "--no-db-lookup"]
    try:
        result = subprocess.run(
            [*command, "--", service_type],
            capture_output=True,
            check=True,
            timeout=_BROWSE_TIMEOUT_S,
        )
    except FileNotFoundError as exc:
        raise DiscoveryError("avahi-browse is missing; install the package avahi-utils") from exc
    except subprocess.TimeoutExpired as exc:
        raise ToolFailed(f"avahi-browse did not end within {_BROWSE_TIMEOUT_S:g} s") from exc
    except (OSError, subprocess.CalledProcessError) as exc:
        raise DiscoveryError("avahi-daemon does not answer; is it running?") from exc
    return result.stdout.decode("utf-8", errors="surrogateescape")


def parse_avahi_browse(output: str) -> Iterator[Sighting]:
    """Read the resolved services (lines that begin with '=') of `avahi-browse --parsable`.

    Lines that are not as avahi writes them are passed over.
    """
    for line in output.splitlines():
        fields = line.encode("utf-8", errors="surrogateescape").split(b";", _FIELDS - 1)
        if len(fields) != _FIELDS or fields[0] != b"=" or not fields[8].isdigit():
            continue
        strings = [_unescaped(match[1]) for match in _QUOTED.finditer(fields[9])]
        yield Sighting(
            service_type=_text(fields[4]),
            name=_text(_unescaped(fields[3])),
            addresses=(_text(fields[7]),),
            port=int(fields[8][:6]),
            txt=b"".join(bytes([len(text)]) + text for text in strings if len(text) < 256),
        )


def _unescaped(text: bytes) -> bytes:
    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code)]) if len(code) == 3 and int(code) < 256 else code

    return _ESCAPE.sub(plain, text)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
