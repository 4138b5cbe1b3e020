# SPDX-License-Identifier: Apache-2.0
"""Discovery by python-zeroconf, for hosts on which nobody else owns UDP port 5353.

One thread keeps everything going: it opens the sockets, claims the name, follows
interfaces that come and go, asks after silent peers, and says goodbye at the end. What
goes wrong is told by `problem` and tried again; it never stops the server.
"""

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from zeroconf import Error, Zeroconf

from pycloud.adapters.discovery.announcement import Announcement
from pycloud.adapters.discovery.announcer import Announcer
from pycloud.adapters.discovery.browser import CloudletBrowser
from pycloud.adapters.discovery.peer_table import OwnName, PeerTable
from pycloud.adapters.interfaces import InterfaceAddress, preferred_address
from pycloud.core.model.fleet import Cloudlet, Peer
from pycloud.core.ports import Clock
from pycloud.errors import NameTaken

_STOP_TIMEOUT_S = 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """How often the keeper does what, in seconds."""

    look_s: float = 2.0
    """Interfaces are compared this often."""
    load_s: float = 10.0
    """Changes of load are announced at most this often."""
    refresh_s: float = 60.0
    """Peers that have said nothing new are asked this often whether they are still there."""
    retry_s: float = 30.0
    """A name or a port that was taken is tried again after this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Where we announce: on which interfaces, and which address we tell.

    `published_address` None leaves the choice to `preferred_address`. Only one address
    is told, because clients take the first of several in no certain order, and because
    the ports of Instances are published on one.
    """

    addresses: Callable[[], tuple[InterfaceAddress, ...]]
    published_address: str | None = None
    none_of: str = "no interface"

    def address_to_tell(self, found: Sequence[InterfaceAddress]) -> str:
        """Return the IPv4 address for our record."""
        return self.published_address or preferred_address(found)


class ZeroconfDiscovery:
    """The Discovery port; thread-safe. A stopped one can be started again."""

    def __init__(
        self,
        cloudlet: Cloudlet,
        clock: Clock,
        *,
        identity: str,
        reach: Reach,
        intervals: Intervals | None = None,
    ) -> None:
        self._cloudlet = cloudlet
        self._clock = clock
        self._reach = reach
        self._intervals = intervals or Intervals()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._table = PeerTable(clock, own=OwnName(name=cloudlet.name, identity=identity))
        self._wanted = Announcement(identity=identity, version=cloudlet.version)
        self._problem: str | None = None

    def start(self) -> None:
        """Begin to announce and browse in the background; `problem` tells how it goes."""
        with self._lock:
            if self._thread is not None:
                return
            self._stopping.clear()
            self._problem = "the announcement is being prepared"
            self._thread = threading.Thread(target=self._keep, name="discovery", daemon=True)
            self._thread.start()

    def update_load(self, *, load_percent: int, services: Sequence[str]) -> None:
        """Note what to announce; the keeper sends it when its time has come."""
        with self._lock:
            self._wanted = replace(
                self._wanted, load_percent=load_percent, services=tuple(services)
            )

    def peers(self) -> tuple[Peer, ...]:
        """Return the other cloudlets seen at present."""
        return self._table.peers()

    def problem(self) -> str | None:
        """Return why we are not announced, None if all is well."""
        with self._lock:
            return self._problem

    def stop(self) -> None:
        """Say goodbye and stop; idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            thread.join(timeout=_STOP_TIMEOUT_S)

    def _keep(self) -> None:
        try:
            while not self._stopping.is_set():
                self._keep_open()
        finally:
            self._table.clear()
            self._tell(
                None
                if self._stopping.is_set()
                else "discovery has failed, as the log tells; restart"
            )

    def _keep_open(self) -> None:
        found = self._reach.addresses()
        try:
            with Zeroconf(interfaces=[item.address for item in found]) as zeroconf:
                self._keep_announced(zeroconf, found)
        except (OSError, Error) as exc:
            self._tell(_explain(exc))
            self._stopping.wait(self._intervals.retry_s)

    def _keep_announced(self, zeroconf: Zeroconf, found: tuple[InterfaceAddress, ...]) -> None:
        keeper = _Keeper(zeroconf, self._cloudlet, self._announcement(), table=self._table)
        try:
            while not self._stopping.is_set():
                keeper.follow(self._reach, found, now_s=self._clock.monotonic())
                keeper.tend(self._announcement(), self._intervals, self._clock.monotonic())
                self._tell(keeper.problem)
                self._stopping.wait(self._intervals.look_s)
                found = self._reach.addresses()
        finally:
            keeper.close()

    def _announcement(self) -> Announcement:
        with self._lock:
            return self._wanted

    def _tell(self, problem: str | None) -> None:
        with self._lock:
            is_new = problem != self._problem
            self._problem = problem
        if is_new and problem is not None:
            log.warning("discovery.problem", extra={"problem": problem})
        elif is_new:
            log.info("discovery.announced", extra={"cloudlet": self._cloudlet.name})


class _Keeper:
    """What the thread keeps between two rounds on one Zeroconf."""

    def __init__(
        self,
        zeroconf: Zeroconf,
        cloudlet: Cloudlet,
        announcement: Announcement,
        *,
        table: PeerTable,
    ) -> None:
        self.problem: str | None = None
        self._zeroconf = zeroconf
        self._cloudlet = cloudlet
        self._announced = announcement
        self._announcer = Announcer(zeroconf, cloudlet, announcement)
        self._browser = CloudletBrowser(zeroconf, table)
        self._found: tuple[InterfaceAddress, ...] | None = None
        self._address = ""
        self._is_claimed = False
        self._claim_at_s = 0.0
        self._load_at_s = 0.0
        self._refresh_at_s: float | None = None
        self._questioned = False

    def close(self) -> None:
        """Say goodbye."""
        self._browser.close()
        self._zeroconf.unregister_all_services()

    def follow(self, reach: Reach, found: tuple[InterfaceAddress, ...], *, now_s: float) -> None:
        """Use the interfaces there are now."""
        if not found:
            self.problem = f"{reach.none_of} is up with an IPv4 address; nothing can be announced"
        if found == self._found:
            return
        is_first = self._found is None
        self._found = found
        self._browser.on_loopback = any(item.is_loopback for item in found)
        address = reach.address_to_tell(found)
        moved, self._address = address != self._address, address
        if is_first:
            return
        self._zeroconf.update_interfaces([item.address for item in found])
        log.info("discovery.interfaces_changed", extra={"addresses": [i.address for i in found]})
        if found and self._is_claimed and moved:
            self._announcer.move(address)
        # A name that was free on the old network may be taken on the new one.
        self._claim_at_s = now_s
        self._browser.ask()

    def tend(self, wanted: Announcement, intervals: Intervals, now_s: float) -> None:
        """Do what is due: claim the name, announce the load, ask after peers."""
        if not self._found:
            return
        if now_s >= self._claim_at_s:
            self._claim_at_s = now_s + intervals.retry_s
            self._claim_or_check(wanted)
        elif self._is_claimed and self._announcer.was_contested():
            self.problem = NameTaken(self._cloudlet.name).message
        if self._is_claimed and wanted != self._announced and now_s >= self._load_at_s:
            self._load_at_s = now_s + intervals.load_s
            self._announced = wanted
            self._announcer.update(wanted)
        if self._refresh_at_s is None:
            self._refresh_at_s = now_s + intervals.refresh_s
        elif now_s >= self._refresh_at_s:
            self._refresh_at_s = now_s + intervals.refresh_s
            self._browser.refresh()

    def _claim_or_check(self, wanted: Announcement) -> None:
        if "." in self._cloudlet.name:
            self.problem = (
                f"the name {self._cloudlet.name!r} cannot be announced because of its dots;"
                " choose another pycloud.name"
            )
        elif not self._is_claimed:
            try:
                self._announcer.claim(wanted, address=self._address)
            except NameTaken as exc:
                self.problem = exc.message
                return
            self._is_claimed = True
            self._announced = wanted
            self.problem = None
        elif self._announcer.was_contested():
            # Whether it is still so is known when the answers to this question are in.
            self.problem = NameTaken(self._cloudlet.name).message
            self._announcer.question_name()
        else:
            self.problem = None


def _explain(exc: OSError | Error) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        return (
            "another program owns UDP port 5353 for itself; if it is avahi-daemon, set"
            " pycloud.discovery = avahi and run discovery/install.sh"
        )
    return f"multicast DNS does not work: {str(exc) or type(exc).__name__}"
