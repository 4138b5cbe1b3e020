# SPDX-License-Identifier: Apache-2.0
"""Leave a SQLite store while other threads are in the middle of statements, for tests.

Run as `python -m testing.contract.hasty ACTION FILE`, in a process of its own, because what
goes wrong here ends it. Prints one line per thread: the code of the error that ended its use
of the store.
"""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.errors import CloudletError
from testing.factories import a_message

_LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) SELECT max(i) FROM n"
"""A statement that takes a few tenths of a second."""
_PAUSE_S = 0.001
"""Locks know no order: without a pause, the thread that has one may get it again for long."""


def _read(store: SqliteStore) -> None:
    store._database.rows(_LONG)


def _read_one(store: SqliteStore) -> None:
    store._database.row(_LONG)


def _write(store: SqliteStore) -> None:
    with store._database.transaction() as connection:
        connection.execute(_LONG).fetchall()


def close(path: Path) -> None:
    """Close the store; return when all threads have noticed."""
    store = SqliteStore(path)
    users = _use(store)
    store.close()
    for user in users:
        user.join()


def leave(path: Path) -> None:
    """End the process as it is, with threads that nobody waits for."""
    _use(SqliteStore(path))


def _use(store: SqliteStore) -> list[threading.Thread]:
    """Return threads that use the store until they cannot; each is in the middle of it."""
    store.messages.add(a_message())
    users = []
    for work in (_read, _read_one, _write):
        begun = threading.Event()
        user = threading.Thread(target=_work, args=(store, work, begun), daemon=True)
        user.start()
        begun.wait()
        users.append(user)
    return users


def _work(store: SqliteStore, work: Callable[[SqliteStore], None], begun: threading.Event) -> None:
    store.messages.find()
    begun.set()
    try:
        while True:
            work(store)
            time.sleep(_PAUSE_S)
    except CloudletError as exc:
        # In one piece, as other threads write, too.
        sys.stdout.write(f"{exc.code}\n")


ACTIONS: dict[str, Callable[[Path], None]] = {"close": close, "leave": leave}

if __name__ == "__main__":
    ACTIONS[sys.argv[1]](Path(sys.argv[2]))
