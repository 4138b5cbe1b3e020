# SPDX-License-Identifier: Apache-2.0
"""Connections and transactions of one SQLite file, shared by threads and processes.

Each thread keeps a connection of its own, because opening one costs ten times a read.
Every commit is on the disk when it returns (WAL, synchronous=FULL). All errors of
SQLite leave here as errors of pycloud; no statement about records stands here.
"""

import fcntl
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pycloud.adapters.store.sqlite_errors import (
    BUSY_TIMEOUT_S,
    CLOSED,
    busy,
    translated,
    translating,
)
from pycloud.adapters.store.sqlite_schema import (
    Schema,
    bring_up_to_date,
    check_ours,
    check_version,
    sync,
)
from pycloud.errors import StoreError, StoreUnavailable

JOURNAL_LIMIT_BYTES = 64 * 2**20

Row = tuple[Any, ...]  # Any: a column holds what its statement selects


class _Session:
    """The connection of one thread; closed when the thread, the database or the process ends.

    `lock` is held while the connection is used or closed: the process dies of a connection
    that is closed in the middle of a statement. Nearly always free, it costs 0.1 us.
    """

    __slots__ = ("__weakref__", "close", "connection", "lock")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lock = threading.RLock()
        self.close = weakref.finalize(self, _close, connection, self.lock)


def _close(connection: sqlite3.Connection, lock: threading.RLock) -> None:
    with lock:
        connection.close()


class Database:
    """One file, open for this process. Not to be carried over a fork."""

    def __init__(self, path: Path, schema: Schema) -> None:
        """Open the file, made or migrated if need be.

        Raises SchemaTooNew, StoreUnavailable, StoreError, InsufficientStorage.
        """
        self._path = path
        self._schema = schema
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._sessions_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._closed = False
        with ExitStack() as undo:
            undo.callback(self.close)
            with translating(path), _opening(path):
                _ensure_file(path)
                connection = self._session().connection
                check_ours(connection, path, schema=schema)
                _ensure_private(path)
                _ensure_wal(connection)
                bring_up_to_date(connection, path, schema=schema)
                self._identity = _identity(path)
            undo.pop_all()

    def row(self, statement: str, values: Sequence[object] = ()) -> Row | None:
        """Return the first row of a read."""
        session = self._session()
        lock = session.lock
        # This is on the path of every request: no context managers.
        lock.acquire()
        try:
            row: Row | None = session.connection.execute(statement, values).fetchone()
        except sqlite3.Error as exc:
            raise translated(exc, self._path) from exc
        finally:
            lock.release()
        return row

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Return all rows of a read."""
        session = self._session()
        with translating(self._path), session.lock:
            return session.connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that may write; durable at the end, undone by an error."""
        session = self._session()
        connection = session.connection
        # Threads of one process take turns here rather than poll SQLite's lock.
        if not self._write_lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise StoreUnavailable(busy(self._path))
        try:
            with translating(self._path), session.lock:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        finally:
            self._write_lock.release()

    def check(self) -> None:
        """Return if the file answers, is still in its place and not too new for us.

        Raises StoreUnavailable, SchemaTooNew.
        """
        session = self._session()
        with translating(self._path), session.lock:
            check_version(session.connection, self._schema)
            if _identity(self._path) != self._identity:
                raise StoreUnavailable(
                    f"{self._path} was replaced while it was in use; restart the server"
                )

    def close(self) -> None:
        """Close the connections of all threads, each after its statement; idempotent."""
        with self._sessions_lock:
            self._closed = True
            sessions = list(self._sessions)
        for session in sessions:
            session.close()

    def _session(self) -> _Session:
        # Who went on with statement after statement would hardly ever let `close` have its turn.
        if self._closed:
            raise StoreUnavailable(CLOSED)
        try:
            session: _Session = self._local.session
        except AttributeError:
            session = self._open_session()
        return session

    def _open_session(self) -> _Session:
        with translating(self._path), self._sessions_lock:
            if self._closed:
                raise StoreUnavailable(CLOSED)
            session = self._local.session = _Session(_connect(self._path))
            self._sessions.add(session)
        return session


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        cached_statements=512,
        # Only the thread that opened it uses it; another may close it.
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
    return connection


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Let one process at a time open the file.

    SQLite does not wait for others when it switches a file to WAL. The lock is on a file
    of its own: closing any descriptor of the database would drop SQLite's own locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ensure_file(path: Path) -> None:
    # An existing file is not opened here: closing it would drop SQLite's locks, too.
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        sync(path.parent)


def _ensure_private(path: Path) -> None:
    """See that nobody else may read the file; its journal takes on the same mode."""
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _ensure_wal(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"SQLite refuses write-ahead logging here (its journal mode is {mode});"
            " put the store on a local file system"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
