# SPDX-License-Identifier: Apache-2.0
"""Small files that are written by whoever needs them first and never change afterwards.

Nothing here knows what they hold.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pycloud.adapters.blobs import sync_directory
from pycloud.adapters.disk_errors import disk_errors

_OWNER_ONLY = 0o600


def read_or_write_once(path: Path, make: Callable[[], str]) -> str:
    """Return the line in a file; if it is missing, one that `make` returns is written first.

    Of several processes that write it at once one wins and all return the same. The file
    is readable by its owner alone, and durable. Raises InsufficientStorage, StoreError.
    """
    with disk_errors(f"the file {path} cannot be read or written"):
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            _write(path, make())
        return path.read_text(encoding="ascii").strip()


def _write(path: Path, line: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link, unlike a rename, never replaces the file of a faster process.
            path.hardlink_to(draft)
            sync_directory(path.parent)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
