# SPDX-License-Identifier: Apache-2.0
"""What a cloudlet says about itself over DNS-SD, and what of others is believed.

Two service types (RFC 6763) under one instance name, which is the cloudlet's:

    _cloudlet._tcp   for old clients. Its TXT record holds exactly one string,
                     `encryption=enabled` or `encryption=disabled`; old clients read what
                     follows the first '=' of the whole text, so a second string, or none,
                     breaks them.
    _pycloud._tcp    for new ones: `txtvers`, `api`, `tls`, `id`, `load`, `version` and
                     any number of `s=` strings, each a comma list of Service ids.

Everything that comes from the network is hostile until it passed this module: it is
cut, checked and never raises. This module opens no socket.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address

from pycloud.core.model.fleet import Peer

LEGACY_TYPE = "_cloudlet._tcp"
MODERN_TYPE = "_pycloud._tcp"
API_VERSION = "2"

_TXT_VERSION = "1"
_STRING_BYTES = 255
_SERVICES_BYTES = 900
"""With the other strings and the header a response stays within one Ethernet frame."""
_MAX_NAME_CHARACTERS = 63
_MAX_ADDRESSES = 8
_MAX_SERVICES = 64
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_PERCENT = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What we say about ourselves under the second type."""

    identity: str
    version: str
    load_percent: int = 0
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One resolved service of another machine, unchecked but for the shape."""

    service_type: str
    name: str
    addresses: tuple[str, ...]
    port: int
    txt: bytes


def legacy_txt() -> bytes:
    """Return the TXT record of the first type; the encrypted mode does not exist yet."""
    return b"".join(_strings([b"encryption=disabled"]))


def modern_txt(announcement: Announcement) -> bytes:
    """Return the TXT record of the second type; Services that do not fit are left out."""
    facts = [
        f"txtvers={_TXT_VERSION}",
        f"api={API_VERSION}",
        "tls=0",
        f"id={announcement.identity}",
        f"load={min(max(announcement.load_percent, 0), 100)}",
        f"version={announcement.version}",
    ]
    lists = _service_lists(announcement.services)
    return b"".join(_strings([fact.encode() for fact in facts] + lists))


def txt_strings(txt: bytes) -> tuple[bytes, ...]:
    """Split a TXT record into its strings; what is cut short at the end is dropped."""
    found: list[bytes] = []
    position = 0
    while position < len(txt):
        end = position + 1 + txt[position]
        if end > len(txt):
            break
        if end > position + 1:
            found.append(txt[position + 1 : end])
        position = end
    return tuple(found)


def txt_value(txt: bytes, key: str) -> str | None:
    """Return the value of the first string with this key, None if there is none."""
    return next(_values(txt, key), None)


def peer_name(instance: str) -> str | None:
    """Return the name of a cloudlet from its instance name as clients do: the last word.

    None if no printable character is left.
    """
    printable = "".join(character if character.isprintable() else " " for character in instance)
    words = printable.split()
    return words[-1][:_MAX_NAME_CHARACTERS] if words else None


def usable_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses at which a peer may be reached, IPv4 first, a bounded number."""
    parsed = [address for text in addresses if (address := _parse_address(text)) is not None]
    ordered = sorted(set(parsed), key=lambda address: (address.version, parsed.index(address)))
    return tuple(str(address) for address in ordered[:_MAX_ADDRESSES])


def make_peer(
    name: str, *, legacy: Sighting | None, modern: Sighting | None, seen_at: datetime
) -> Peer | None:
    """Join the sightings of a cloudlet under both types; None if it cannot be reached."""
    sightings = [sighting for sighting in (legacy, modern) if sighting is not None]
    addresses = usable_addresses(text for seen in sightings for text in seen.addresses)
    ports = [seen.port for seen in sightings if 0 < seen.port < 65536]
    if not addresses or not ports:
        return None
    txt = modern.txt if modern is not None else b""
    return Peer(
        name=name,
        addresses=addresses,
        port=ports[0],
        encryption=legacy is not None
        and (txt_value(legacy.txt, "encryption") or "").lower() == "enabled",
        api_version=_word(txt_value(txt, "api")),
        tls=txt_value(txt, "tls") == "1",
        load_percent=_percent(txt_value(txt, "load")),
        services=_services(txt),
        seen_at=seen_at,
    )


def host_label(name: str) -> str:
    """Return a DNS host label for a cloudlet's name, which old peers compare to skip themselves."""
    return re.sub(r"[^A-Za-z0-9-]", "-", name).strip("-") or "cloudlet"


def _strings(texts: Iterable[bytes]) -> Iterator[bytes]:
    for text in texts:
        yield bytes([len(text)]) + text


def _service_lists(services: Sequence[str]) -> list[bytes]:
    lists = [b"s="]
    used_bytes = 0
    for service in services[:_MAX_SERVICES]:
        item = service.encode()
        used_bytes += len(item) + 1
        if used_bytes > _SERVICES_BYTES or _WORD.fullmatch(service) is None:
            break
        if len(lists[-1]) + len(item) + 1 > _STRING_BYTES:
            lists.append(b"s=")
        lists[-1] += (b"" if lists[-1] == b"s=" else b",") + item
    return [] if lists == [b"s="] else lists


def _values(txt: bytes, key: str) -> Iterator[str]:
    for string in txt_strings(txt):
        name, equals, value = string.partition(b"=")
        if equals and name.lower() == key.encode():
            yield value.decode("utf-8", errors="replace")


def _word(text: str | None) -> str | None:
    return text if text is not None and _WORD.fullmatch(text) else None


def _percent(text: str | None) -> int | None:
    if text is None or _PERCENT.fullmatch(text) is None:
        return None
    return min(int(text), 100)


def _services(txt: bytes) -> tuple[str, ...]:
    names = (name for value in _values(txt, "s") for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if _WORD.fullmatch(name)))[:_MAX_SERVICES]


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address that is worth a try: not a group, not "any", not link-local IPv6."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if address.is_multicast or address.is_unspecified:
        return None
    if address.version == 6 and (address.is_link_local or address.is_loopback):
        return None
    if address == IPv4Address("255.255.255.255"):
        return None
    return address
