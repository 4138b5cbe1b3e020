# SPDX-License-Identifier: Apache-2.0
"""Claims our name with python-zeroconf, announces under it, and watches over it.

A name that somebody else has is never changed into another one: phones keep their
credentials under it. It is refused, reported, and claimed again once it is free.
"""

from concurrent.futures import ThreadPoolExecutor

from zeroconf import RecordUpdate, RecordUpdateListener, ServiceInfo, Zeroconf

from pycloud.adapters.discovery.announcement import (
    LEGACY_TYPE,
    MODERN_TYPE,
    Announcement,
    host_label,
    legacy_txt,
    modern_txt,
    txt_value,
)
from pycloud.adapters.discovery.dns import (
    DOMAIN,
    QUESTION_FOR_ALL,
    DNSService,
    DNSText,
    RecordType,
    send_question,
)
from pycloud.core.model.fleet import Cloudlet
from pycloud.errors import NameTaken

_ANSWER_TIMEOUT_MS = 1500
"""A responder may hold back for a second what it just sent (RFC 6762 section 6)."""


class Announcer:
    """Our two services on one Zeroconf. Its methods block for up to two seconds."""

    def __init__(self, zeroconf: Zeroconf, cloudlet: Cloudlet, announcement: Announcement) -> None:
        self._zeroconf = zeroconf
        self._cloudlet = cloudlet
        self._announcement = announcement
        self._address = ""
        self._watch = _ConflictWatch(
            legacy=self._legacy_info(), modern=self._modern_info(), identity=announcement.identity
        )
        zeroconf.add_listener(self._watch, None)

    def claim(self, announcement: Announcement, *, address: str) -> None:
        """Probe for our name and announce it with this address. Raises NameTaken."""
        self._announcement = announcement
        self._address = address
        infos = (self._legacy_info(), self._modern_info())
        with ThreadPoolExecutor(max_workers=len(infos)) as pool:
            if any(pool.map(self._is_taken, infos)):
                raise NameTaken(self._cloudlet.name)
            tuple(pool.map(self._register, infos))
        # What was seen before belongs to the decision that was just made.
        self._watch.seen_foreign = False

    def update(self, announcement: Announcement) -> None:
        """Announce other facts under the second type."""
        self._announcement = announcement
        self._zeroconf.update_service(self._modern_info())

    def move(self, address: str) -> None:
        """Announce another address under both types."""
        self._address = address
        self._zeroconf.update_service(self._legacy_info())
        self._zeroconf.update_service(self._modern_info())

    def was_contested(self) -> bool:
        """Return whether somebody else announced our name since the last question."""
        return self._watch.seen_foreign

    def question_name(self) -> None:
        """Ask the network who has our name, and forget who had it before."""
        self._watch.seen_foreign = False
        send_question(
            self._zeroconf,
            [
                (self._legacy_info().name, RecordType.SERVER),
                (self._modern_info().name, RecordType.TEXT),
            ],
        )

    def _is_taken(self, info: ServiceInfo) -> bool:
        """Ask for the very name; the library only asks for the list of names.

        Answers to that may be held back longer than it waits, and its cache still lists a
        cloudlet that died without a goodbye.
        """
        holder = ServiceInfo(info.type, info.name)
        answered = holder.request(
            self._zeroconf, _ANSWER_TIMEOUT_MS, question_type=QUESTION_FOR_ALL
        )
        return answered or holder.port is not None

    def _register(self, info: ServiceInfo) -> None:
        self._zeroconf.register_service(info, cooperating_responders=True)

    def _legacy_info(self) -> ServiceInfo:
        return self._info(LEGACY_TYPE, legacy_txt())

    def _modern_info(self) -> ServiceInfo:
        return self._info(MODERN_TYPE, modern_txt(self._announcement))

    def _info(self, service_type: str, txt: bytes) -> ServiceInfo:
        return ServiceInfo(
            f"{service_type}.{DOMAIN}",
            f"{self._cloudlet.name}.{service_type}.{DOMAIN}",
            port=self._cloudlet.port,
            properties=txt,
            server=f"{host_label(self._cloudlet.name)}.{DOMAIN}",
            parsed_addresses=[self._address] if self._address else [],
        )


class _ConflictWatch(RecordUpdateListener):
    """Notices records under our name that are not ours; called in the library's thread."""

    def __init__(self, *, legacy: ServiceInfo, modern: ServiceInfo, identity: str) -> None:
        super().__init__()
        self.seen_foreign = False
        self._legacy = legacy
        self._modern = modern
        self._identity = identity

    def async_update_records(
        self,
        zc: Zeroconf,  # noqa: ARG002  (the library's signature)
        now: float,  # noqa: ARG002
        records: list[RecordUpdate],
    ) -> None:
        """Look at every record that arrived."""
        if any(self._is_foreign(update.new) for update in records):
            self.seen_foreign = True

    def _is_foreign(self, record: object) -> bool:
        if isinstance(record, DNSText) and record.key == self._modern.key and record.ttl > 1:
            return txt_value(record.text, "id") != self._identity
        if isinstance(record, DNSService) and record.key == self._legacy.key and record.ttl > 1:
            return (record.server_key, record.port) != (
                self._legacy.server_key,
                self._legacy.port,
            )
        return False
