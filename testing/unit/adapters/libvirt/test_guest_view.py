# SPDX-License-Identifier: Apache-2.0
"""Who took a connection to a guest: the guest itself, or the emulator in its place."""

from types import SimpleNamespace

import pytest

from pycloud.adapters.libvirt.connection import LibvirtRefused
from pycloud.adapters.libvirt.guest_view import LibvirtGuestView
from pycloud.adapters.libvirt.monitor import parse_connections
from pycloud.core.model.identifiers import DomainId
from pycloud.errors import DomainNotFound

GUEST = DomainId("00000000-0000-4000-8000-000000000001")
LISTENS = "  TCP[HOST_FORWARD]  29  0.0.0.0 20001  10.0.2.15  8080     0     0\n"
TALKS = "  TCP[ESTABLISHED]   31  127.0.0.1 20001  10.0.2.15  8080     0     0\n"
KNOCKS = "  TCP[SYN_SENT]      31  127.0.0.1 20001  10.0.2.15  8080     0     0\n"
USER_MODE = "<domain><devices><serial type='file'/></devices></domain>"
BRIDGED = """<domain><devices><interface type='bridge'>
<mac address='52:54:00:00:00:01'/><target dev='vnet0'/></interface></devices></domain>"""


def a_view(description: str, printed: str = "") -> LibvirtGuestView:
    """Return a view of one guest, as libvirt describes it and as QEMU prints its network."""
    handle = SimpleNamespace(
        lookupByUUIDString=lambda _id: SimpleNamespace(XMLDesc=lambda _flags: description)
    )
    host = SimpleNamespace(
        domains=SimpleNamespace(require=lambda _id: None, find=lambda _id: None),
        connection=SimpleNamespace(run=lambda call: call(handle)),
        monitor=lambda _id: SimpleNamespace(connections=lambda: parse_connections(printed)),
    )
    return LibvirtGuestView(host)


def test_connection_to_a_bridged_guest_was_taken_by_the_guest() -> None:
    """There is no forward to look at, and nobody but the guest to connect to."""
    assert a_view(BRIDGED).accepts(GUEST, 8080)


@pytest.mark.parametrize(
    ("printed", "accepted"),
    [(LISTENS, False), (KNOCKS + LISTENS, False), (TALKS + LISTENS, True), ("", False)],
    ids=["only listens", "still knocks", "talks", "has no forwards yet"],
)
def test_connection_through_a_forward_counts_when_the_guest_took_it(
    printed: str, accepted: bool
) -> None:
    assert a_view(USER_MODE, printed).accepts(GUEST, 20001) is accepted


def test_connection_to_another_port_does_not_count() -> None:
    assert not a_view(USER_MODE, TALKS + LISTENS).accepts(GUEST, 20002)


@pytest.mark.parametrize("error", [DomainNotFound(GUEST), LibvirtRefused("no", libvirt_code=1)])
def test_guest_that_is_gone_took_nothing(error: Exception) -> None:
    view = a_view(BRIDGED)

    def refuse(_id: DomainId) -> None:
        raise error

    view._host.domains.require = refuse  # type: ignore[method-assign]  # a fake host

    assert not view.accepts(GUEST, 8080)
