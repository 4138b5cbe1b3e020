# SPDX-License-Identifier: Apache-2.0
"""Identifiers: one type per noun, and the one rule for ids that come from outside.

An id that passed `checked_id` is safe as a path component, a domain name and
an argument of a command; nothing else may reach those places.
"""

import re
from typing import NewType

from pycloud.errors import InvalidInput

ServiceId = NewType("ServiceId", str)
ServiceVMId = NewType("ServiceVMId", str)
AppId = NewType("AppId", str)
InstanceId = NewType("InstanceId", str)
JobId = NewType("JobId", str)
HostId = NewType("HostId", str)
"""The machine and data directory on which disks lie and guests run."""
UploadId = NewType("UploadId", str)
PackageId = NewType("PackageId", str)
BlobId = NewType("BlobId", str)
"""Lower-case hexadecimal SHA-256 of the content."""
DomainId = NewType("DomainId", str)
"""UUID of a domain, in its canonical text form."""
DeviceId = NewType("DeviceId", str)
Principal = NewType("Principal", str)
"""Who asks: `admin`, `device:<id>`, `address:<ip>` or `system`."""

_OUTSIDE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked_id(value: str, *, pointer: str = "id") -> str:
    """Return `value` unchanged if it is a well-formed id.

    Raises InvalidInput, naming `pointer`, otherwise.
    """
    if _OUTSIDE_ID.fullmatch(value) is None:
        raise InvalidInput(
            "an id starts with a letter or digit and has at most 64 characters"
            " out of letters, digits, '.', '_' and '-'",
            pointer=pointer,
        )
    return value
