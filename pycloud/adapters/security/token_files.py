# SPDX-License-Identifier: Apache-2.0
"""Secrets as files of the data directory that only their owner can read."""

import secrets
from pathlib import Path

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.written_once import read_or_write_once
from pycloud.core.model.identifiers import checked_id


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
        return read_or_write_once(self.path(name), _new_token)


def _new_token() -> str:
    return f"clt_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
