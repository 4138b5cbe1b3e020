# SPDX-License-Identifier: Apache-2.0
"""Use a SQLite store in a process that may write no file beyond a limit, for tests.

Run as `python -m testing.contract.cramped ACTION FILE LIMIT_BYTES`. Prints one line per
success and, at the end, the code of the error that it ran into.
"""

import resource
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.adapters.store.sqlite_schema import CURRENT, Schema
from pycloud.errors import CloudletError
from testing.factories import a_message


def fill(path: Path, limit_bytes: int) -> None:
    """Add messages of 20 kB for ever; print their ids."""
    store = SqliteStore(path)
    _limit(limit_bytes)
    while True:
        print(store.messages.add(a_message(message="x" * 20_000)).id, flush=True)


def migrate(path: Path, limit_bytes: int) -> None:
    """Open the file with a newer schema."""
    steps = {CURRENT.version: _add_colour}
    schema = Schema(version=CURRENT.version + 1, create=CURRENT.create, steps=steps)
    _limit(limit_bytes)
    SqliteStore(path, schema=schema).close()


def _add_colour(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE service ADD COLUMN colour TEXT")


def _limit(limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


ACTIONS: dict[str, Callable[[Path, int], None]] = {"fill": fill, "migrate": migrate}


def main() -> None:
    """Carry out the action named on the command line."""
    action, path, limit_bytes = sys.argv[1:]
    try:
        ACTIONS[action](Path(path), int(limit_bytes))
    except CloudletError as exc:
        print(exc.code, flush=True)


if __name__ == "__main__":
    main()
