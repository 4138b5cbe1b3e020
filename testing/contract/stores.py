# SPDX-License-Identifier: Apache-2.0
"""Open a store by an address, in tests and in the processes that tests start."""

from pathlib import Path

from pycloud.adapters.store.mongo import MongoStore
from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.core.ports import Store


def open_store(address: str) -> Store:
    """Open `sqlite:///FILE` or `mongodb://...`."""
    scheme, _, rest = address.partition(":///")
    if scheme == "sqlite":
        return SqliteStore(Path(rest))
    return MongoStore(address)
