# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `.csvm`: one line of JSON, then the disk, then the state."""

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

from pycloud.core.model.catalog import OsType, Readiness, ServiceDraft
from pycloud.core.model.identifiers import ServiceId, checked_id
from pycloud.core.ports import Blobs, Report, UnpackedPackage
from pycloud.errors import InvalidInput, PackageRefused

_NO_LIMIT = 1 << 62
DISK_NAME = "unpacked-disk"
STATE_NAME = "unpacked-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manifest:
    draft: ServiceDraft
    disk_bytes: int
    state_bytes: int | None


class FakePackages:
    """Twin of the package format: what it packs it unpacks, all else it refuses."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def unpack(
        self,
        area: str,
        name: str,
        *,
        service_id: ServiceId | None = None,
        report: Report | None = None,
    ) -> UnpackedPackage:
        """Copy disk and state of a staged package beside it."""
        with self._blobs.open_staged(area, name) as stream:
            manifest = _parse_manifest(stream.readline(), service_id)
            disk = stream.read(manifest.disk_bytes)
            state = stream.read()
        if len(disk) != manifest.disk_bytes or len(state) != (manifest.state_bytes or 0):
            raise PackageRefused("the package is cut short", reason="truncated")
        self._stage(area, DISK_NAME, disk)
        if manifest.state_bytes is not None:
            self._stage(area, STATE_NAME, state)
        if report is not None:
            report(len(disk) + len(state), len(disk) + len(state))
        state_name = STATE_NAME if manifest.state_bytes is not None else None
        return UnpackedPackage(draft=manifest.draft, disk=DISK_NAME, state=state_name)

    def pack(
        self,
        area: str,
        target: str,
        *,
        content: UnpackedPackage,
        report: Report | None = None,
    ) -> None:
        """Write a package from staged files."""
        disk = self._read(area, content.disk)
        state = self._read(area, content.state) if content.state is not None else None
        manifest = {
            "service": asdict(content.draft),
            "disk_bytes": len(disk),
            "state_bytes": None if state is None else len(state),
        }
        whole = json.dumps(manifest).encode() + b"\n" + disk + (state or b"")
        self._stage(area, target, whole)
        if report is not None:
            report(len(whole), len(whole))

    def _read(self, area: str, name: str) -> bytes:
        with self._blobs.open_staged(area, name) as stream:
            return stream.read()

    def _stage(self, area: str, name: str, content: bytes) -> None:
        self._blobs.append(area, name, BytesIO(content), offset_bytes=0, limit_bytes=_NO_LIMIT)


def _parse_manifest(line: bytes, service_id: ServiceId | None) -> _Manifest:
    try:
        document: dict[str, Any] = json.loads(line)  # Any: JSON has no type yet
        fields: dict[str, Any] = document["service"]  # Any: as above
        draft = ServiceDraft(
            **fields
            | {
                "id": service_id or checked_id(fields["id"]),
                "tags": tuple(fields["tags"]),
                "os_type": OsType(fields["os_type"]),
                "readiness": Readiness(fields["readiness"]),
            }
        )
        return _Manifest(
            draft=draft,
            disk_bytes=document["disk_bytes"],
            state_bytes=document["state_bytes"],
        )
    except (InvalidInput, ValueError, KeyError, TypeError) as exc:
        raise PackageRefused("this is not a package", reason="manifest") from exc
