# SPDX-License-Identifier: Apache-2.0
"""`service.json`, the part of a package that says what the Service is.

Old cloudlets wrote what people had typed into a form: numbers as text, empty text, null.
All of that is understood; nonsense is refused with the name of the key. What only new
cloudlets know stands under one key of its own, which old ones carry along unread. Turns
bytes into a ServiceDraft and back; touches no file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pycloud.adapters.csvm.tar import refused
from pycloud.core.model.catalog import OsType, Readiness, ServiceDraft
from pycloud.core.model.identifiers import ServiceId, checked_id
from pycloud.errors import InvalidInput, PackageRefused

SIZE_LIMIT_BYTES = 64 * 1024

_EXTENSION_KEY = "pycloud"
_MAX_TEXT = 4096
_MAX_TAGS = 64
_UNLIMITED_SHARING = 10_000
"""Old cloudlets wrote 0 for "any number of users"; this is as many as a Service may have."""
_MAX_MEMORY_MIB = 16_777_216
_MIN_MEMORY_MIB = 16
_MAX_DURATION_S = 31_536_000

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What `service.json` says: the Service, and the names of the other members."""

    draft: ServiceDraft
    disk_name: str
    state_name: str | None


def parse_description(content: bytes, *, service_id: ServiceId | None = None) -> Description:
    """Read `service.json` of an old or a new cloudlet. Raises PackageRefused.

    `service_id` stands in for the one in it, which old cloudlets did not check.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise refused("description", "has a service.json that is not JSON") from exc
    if not isinstance(document, dict):
        raise refused("description", "has a service.json that is no object")
    image = _object(document, "vm_image")
    disk_name = _text(image, "disk_image", default="")
    if not disk_name:
        raise refused("description", "has a service.json that names no disk_image")
    return Description(
        draft=_draft(document, service_id or _service_id(document)),
        disk_name=disk_name,
        state_name=_text(image, "state_image", default="") or None,
    )


def format_description(description: Description) -> bytes:
    """Write `service.json` so that old and new cloudlets understand it."""
    draft = description.draft
    shared_by_all = draft.sharing_limit >= _UNLIMITED_SHARING
    document = {
        "service_id": draft.id,
        "vm_image": {
            "disk_image": description.disk_name,
            "state_image": description.state_name,
        },
        "description": draft.description,
        "version": draft.version,
        "tags": list(draft.tags),
        "port": draft.port,
        "num_users": 0 if shared_by_all else draft.sharing_limit,
        "ideal_memory": draft.ideal_memory_mib,
        "min_memory": draft.min_memory_mib,
        _EXTENSION_KEY: {
            "vcpus": draft.vcpus,
            "os_type": draft.os_type,
            "readiness": draft.readiness,
            "warm_count": draft.warm_count,
            "idle_timeout_s": draft.idle_timeout_s,
            "max_lifetime_s": draft.max_lifetime_s,
        },
    }
    return json.dumps(document, indent=2).encode("ascii") + b"\n"


def _draft(document: Mapping[str, object], service_id: ServiceId) -> ServiceDraft:
    ours = _object(document, _EXTENSION_KEY)
    defaults = ServiceDraft(id=ServiceId("defaults"), port=1)
    memory = (_MIN_MEMORY_MIB, _MAX_MEMORY_MIB)
    # An old form asked for one of the two only, and nobody checked the order.
    least_mib = _number(document, "min_memory", memory)
    ideal_mib = _number(document, "ideal_memory", memory)
    if ideal_mib is None:
        ideal_mib = max(least_mib or 0, defaults.ideal_memory_mib)
    if least_mib is None:
        least_mib = min(ideal_mib, defaults.min_memory_mib)
    port = _number(document, "port", (1, 65535))
    if port is None:
        raise refused("description", "has a service.json without a port")
    return ServiceDraft(
        id=service_id,
        version=_text(document, "version", default=defaults.version) or defaults.version,
        description=_text(document, "description", default=""),
        tags=_tags(document.get("tags")),
        port=port,
        sharing_limit=_sharing_limit(document),
        vcpus=_number(ours, "vcpus", (1, 256)) or defaults.vcpus,
        min_memory_mib=min(least_mib, ideal_mib),
        ideal_memory_mib=ideal_mib,
        os_type=_word(ours, "os_type", OsType.LINUX),
        readiness=_word(ours, "readiness", Readiness.AUTO),
        warm_count=_number(ours, "warm_count", (0, 256)),
        idle_timeout_s=_number(ours, "idle_timeout_s", (0, _MAX_DURATION_S)),
        max_lifetime_s=_number(ours, "max_lifetime_s", (0, _MAX_DURATION_S)),
    )


def _service_id(document: Mapping[str, object]) -> ServiceId:
    try:
        return ServiceId(checked_id(_text(document, "service_id", default="")))
    except InvalidInput as exc:
        raise refused(
            "description",
            f"has a service_id that cannot be used here: {exc.message};"
            " give it another one (service_id, or --id on the command line)",
        ) from exc


def _sharing_limit(document: Mapping[str, object]) -> int:
    users = _number(document, "num_users", (0, _UNLIMITED_SHARING))
    return 1 if users is None else users or _UNLIMITED_SHARING


def _object(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _unexpected(key, "an object")
    return value


def _text(document: Mapping[str, object], key: str, *, default: str) -> str:
    value = document.get(key)
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool):
        # "version": 2 instead of "2".
        return str(value)
    if not isinstance(value, str) or not _is_plain(value):
        raise _unexpected(key, f"plain text of at most {_MAX_TEXT} characters")
    return value


def _is_plain(text: str) -> bool:
    unprintable = any(ord(char) < 32 and char not in "\n\t" for char in text)
    surrogate = any(0xD800 <= ord(char) <= 0xDFFF for char in text)
    return len(text) <= _MAX_TEXT and not unprintable and not surrogate


def _number(document: Mapping[str, object], key: str, limits: tuple[int, int]) -> int | None:
    """Return a whole number within limits; None if the key is missing, null or empty."""
    low, high = limits
    value = document.get(key)
    if isinstance(value, str):
        value = value.strip()
        if value.isascii() and value.isdigit() and len(value) <= 12:
            value = int(value)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _unexpected(key, f"a whole number from {low} to {high}")
    return value


def _word(document: Mapping[str, object], key: str, default: E) -> E:
    value = document.get(key)
    if value is None:
        return default
    kind = type(default)
    if not isinstance(value, str) or value not in {item.value for item in kind}:
        raise _unexpected(key, "one of " + ", ".join(item.value for item in kind))
    return kind(value)


def _tags(value: object) -> tuple[str, ...]:
    """Return the tags; old cloudlets wrote a list, or a text with commas."""
    if value is None:
        return ()
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > _MAX_TAGS:
        raise _unexpected("tags", f"a list of at most {_MAX_TAGS} texts")
    tags: list[str] = []
    for item in items:
        if not isinstance(item, str) or not _is_plain(item):
            raise _unexpected("tags", "a list of plain texts")
        tags.extend(part.strip() for part in item.split(",") if part.strip())
    return tuple(dict.fromkeys(tags))


def _unexpected(key: str, wanted: str) -> PackageRefused:
    return refused("description", f"has a service.json whose {key!r} is not {wanted}")
