# SPDX-License-Identifier: Apache-2.0
"""Our domains on a libvirt that others may use, too: found by their tag, and only those.

A domain belongs to us if its metadata carry our tag with the mark of this cloudlet.
Every order to libvirt about a domain goes through here, so a foreign one gets none.
"""

import hashlib
import xml.etree.ElementTree as ET  # parses what libvirt wrote of our own tag
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from pycloud.adapters.libvirt.connection import START_TIMEOUT_S, Connection, LibvirtRefused
from pycloud.adapters.libvirt.domain_plan import Role, Tag
from pycloud.adapters.libvirt.domain_xml import TAG_NAMESPACE
from pycloud.core.model.identifiers import DomainId, InstanceId
from pycloud.errors import DomainNotFound

NAME_PREFIX = "pycloud-"
RUNNING, PAUSED, SHUT_OFF, CRASHED = "running", "paused", "shutoff", "crashed"
STALLED = "stalled"

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PAUSED,
    libvirt.VIR_DOMAIN_CRASHED: CRASHED,
}
_PAUSES = {
    # Nothing is lost: resumed when the disk has room again, the guest's write is repeated.
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: STALLED,
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: CRASHED,
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: CRASHED,
}
"""What QEMU stopped by itself, by the reason that libvirt gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnDomain:
    """A domain of ours, as it was a moment ago."""

    id: DomainId
    tag: Tag
    state: str


def cloudlet_mark(root: Path) -> str:
    """Return what tells this cloudlet's domains from those of another on the same libvirt."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def domain_name(owner: InstanceId) -> str:
    """Return the name under which libvirt lists an owner's domain."""
    return NAME_PREFIX + owner


class DomainControl:
    """Orders to libvirt about domains of this cloudlet."""

    def __init__(self, connection: Connection, *, mark: str) -> None:
        self._connection = connection
        self._mark = mark

    def tag(self, owner: InstanceId, *, role: Role = Role.INSTANCE, area: str = "") -> Tag:
        """Return the tag for a new domain."""
        return Tag(cloudlet=self._mark, owner=owner, role=role, area=area)

    def all(self) -> tuple[OwnDomain, ...]:
        """Return all domains of ours."""

        def call(handle: Any) -> list[OwnDomain | None]:  # Any: libvirt ships no types.
            return [
                self._seen(domain)
                for domain in handle.listAllDomains(0)
                if domain.name().startswith(NAME_PREFIX)
            ]

        return tuple(domain for domain in self._connection.run(call) if domain is not None)

    def find(self, domain_id: DomainId) -> OwnDomain | None:
        """Return a domain of ours, None if there is none (or it is not ours)."""

        def call(handle: Any) -> OwnDomain | None:  # Any: libvirt ships no types.
            return self._seen(handle.lookupByUUIDString(domain_id))

        try:
            return self._connection.run(call)
        except LibvirtRefused as exc:
            if exc.libvirt_code == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def require(self, domain_id: DomainId) -> OwnDomain:
        """Return a domain of ours. Raises DomainNotFound."""
        domain = self.find(domain_id)
        if domain is None:
            raise DomainNotFound(domain_id)
        return domain

    def create(self, description: str) -> None:
        """Make a transient domain, paused. `description` carries our tag."""
        self._connection.run(
            lambda handle: handle.createXML(description, libvirt.VIR_DOMAIN_START_PAUSED),
            timeout_s=START_TIMEOUT_S,
        )

    def resume(self, domain_id: DomainId) -> None:
        """Let the processors run. Raises DomainNotFound."""
        self._order(domain_id, "resume")

    def suspend(self, domain_id: DomainId) -> None:
        """Stop the processors. Raises DomainNotFound."""
        self._order(domain_id, "suspend")

    def press_power_button(self, domain_id: DomainId) -> None:
        """Send the ACPI request to power off. Raises DomainNotFound."""
        self._order(domain_id, "shutdown")

    def destroy(self, domain_id: DomainId) -> None:
        """End a domain of ours; idempotent. The emulator is gone on return."""
        try:
            self._order(domain_id, "destroy")
        except DomainNotFound:
            return

    def _order(self, domain_id: DomainId, method: str) -> None:
        def call(handle: Any) -> None:  # Any: libvirt ships no types.
            domain = handle.lookupByUUIDString(domain_id)
            if self._seen(domain) is None:
                raise DomainNotFound(domain_id)
            getattr(domain, method)()

        try:
            self._connection.run(call, timeout_s=START_TIMEOUT_S)
        except LibvirtRefused as exc:
            if exc.libvirt_code == libvirt.VIR_ERR_NO_DOMAIN:
                raise DomainNotFound(domain_id) from exc
            # A domain that ended while the order was on its way is reported in several ways.
            if self.find(domain_id) is None:
                raise DomainNotFound(domain_id) from exc
            raise

    def _seen(self, domain: Any) -> OwnDomain | None:  # Any: libvirt ships no types.
        """Read a domain inside an action; None if it is foreign or just ended."""
        try:
            text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, TAG_NAMESPACE, 0)
            state, reason = domain.state(0)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() in {
                libvirt.VIR_ERR_NO_DOMAIN_METADATA,
                libvirt.VIR_ERR_NO_DOMAIN,
            }:
                return None
            raise
        tag = _parsed_tag(text)
        if tag is None or tag.cloudlet != self._mark:
            return None
        return OwnDomain(
            id=DomainId(domain.UUIDString()), tag=tag, state=_state_word(state, reason)
        )


def _state_word(state: int, reason: int) -> str:
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in _PAUSES:
        return _PAUSES[reason]
    return _STATES.get(state, SHUT_OFF)


def _parsed_tag(text: str) -> Tag | None:
    try:
        element = ET.fromstring(text)  # noqa: S314  # libvirt wrote it, and nothing expands
        return Tag(
            cloudlet=element.attrib["cloudlet"],
            owner=InstanceId(element.attrib["owner"]),
            role=Role(element.attrib["role"]),
            area=element.attrib["area"],
        )
    except (ET.ParseError, KeyError, ValueError):
        return None
