# SPDX-License-Identifier: Apache-2.0
"""Packages as the original pycloud wrote them, and others that it never would."""

import io
import json
import tarfile

DISK = b"disk content " * 1000
STATE = b"state content " * 2000
OLD_DESCRIPTION = {
    "service_id": "speech",
    "vm_image": {"disk_image": "speech.qcow2", "state_image": "speech.qcow2.lqs"},
    "description": "Speech recognition",
    "version": "1.0",
    "tags": ["speech", "audio"],
    "port": "10191",
    "num_users": 0,
    "ideal_memory": "1024",
    "min_memory": "512",
}


def old_package(description=OLD_DESCRIPTION, disk=DISK, state=STATE, **options):
    """Write a package as the original export did: GNU tar, files by name, the description last."""
    buffer = io.BytesIO()
    options = {"format": tarfile.GNU_FORMAT} | options
    with tarfile.open(fileobj=buffer, mode="w:gz", **options) as archive:
        for name, content in (
            ("speech.qcow2", disk),
            ("speech.qcow2.lqs", state),
            ("service.json", json.dumps(description).encode()),
        ):
            if content is not None:
                _add(archive, name, content)
    return buffer.getvalue()


def _add(archive, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mtime = 1423000000.25
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def built(*members, **options):
    """Return a package with these (name, content, fields) members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", **options) as archive:
        for name, content, *fields in members:
            _add(archive, name, content, **(fields[0] if fields else {}))
    return buffer.getvalue()
