# SPDX-License-Identifier: Apache-2.0
"""Secrets as files of the data directory that only their owner can read."""

import os
import secrets
from pathlib import Path

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.disk_errors import disk_errors
from pycloud.core.model.identifiers import checked_id

_OWNER_ONLY = 0o600


class TokenFiles:
    """The Secrets port: one file for each secret. Safe to use from several processes."""

    def __init__(self, data: DataDirectory) -> None:
        self._data = data

    def path(self, name: str) -> Path:
        """Return where the secret lies or would lie. Raises InvalidInput."""
        return self._data.root / checked_id(name, pointer="name")

    def read_or_create(self, name: str) -> str:
        """Return the secret; a new one is written at the first call.

        Of several processes that create it at once one wins and all return the same.
        Raises InsufficientStorage, StoreError.
        """
        path = self.path(name)
        with disk_errors(f"the secret {path} cannot be read or written"):
            try:
                return path.read_text(encoding="ascii").strip()
            except FileNotFoundError:
                self._create(path)
            return path.read_text(encoding="ascii").strip()

    def _create(self, path: Path) -> None:
        token = f"clt_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(token + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            try:
                # A link, unlike a rename, never replaces the secret of a faster process.
                path.hardlink_to(draft)
            except FileExistsError:
                return
        finally:
            draft.unlink(missing_ok=True)
