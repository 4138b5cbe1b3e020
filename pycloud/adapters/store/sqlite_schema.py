# SPDX-License-Identifier: Apache-2.0
"""The tables of the SQLite store, their version, and the way from older versions.

Each kind has a table with the document as JSON text beside the columns it is found by;
`revision` holds one counter per kind, so that asking whether anything changed is one
point read. The version stands in `user_version` of the file. A file of an older version
is copied to `<file>.backup-v<N>` and migrated in one transaction; a file of a newer
version, or of another program, is refused and left alone.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from pycloud.adapters.store.kinds import KINDS, SCHEMA_VERSION
from pycloud.adapters.store.records import first_revision
from pycloud.errors import SchemaTooNew, StoreError

APPLICATION_ID = 0x70796364
"""Marks the file as ours, for us and for file(1): "pycd" in ASCII."""

Step = Callable[[sqlite3.Connection], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a file has to look like.

    `steps[n]` turns version n into n + 1, inside the transaction that it is given; a
    new file is made by `create` at once. Both must lead to the same tables.
    """

    version: int
    create: Step
    steps: Mapping[int, Step] = field(default_factory=dict)


def create_tables(connection: sqlite3.Connection) -> None:
    """Make all tables and indices in an empty file."""
    connection.execute(
        "CREATE TABLE revision (kind TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID"
    )
    for kind in KINDS:
        columns = "".join(f", {name} TEXT" for name in kind.indexed)
        connection.execute(
            f"CREATE TABLE {kind.name} (id TEXT NOT NULL PRIMARY KEY, created_at TEXT NOT NULL,"
            f" generation INTEGER NOT NULL{columns}, body TEXT NOT NULL)"
        )
        for index, fields in _indices(kind.name, kind.indexed):
            connection.execute(f"CREATE INDEX {index} ON {kind.name} ({', '.join(fields)})")
        connection.execute("INSERT INTO revision VALUES (?, ?)", (kind.name, first_revision()))
    # AUTOINCREMENT remembers the highest number even when all events were dropped.
    connection.execute(
        "CREATE TABLE event (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
        " kind TEXT NOT NULL, body TEXT NOT NULL)"
    )
    connection.execute("CREATE INDEX event_by_kind ON event (kind, sequence)")


def _indices(name: str, indexed: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """Name the indices of a kind; each ends in the order in which pages are read."""
    order = ("created_at", "id")
    return [
        (f"{name}_in_order", order),
        *((f"{name}_by_{column}", (column, *order)) for column in indexed),
    ]


def _tell_hosts_apart(connection: sqlite3.Connection) -> None:
    """Make what version 1 says is on `local`, as all was, everybody's; new fields have defaults."""
    for table in ("instance", "warm_domain"):
        connection.execute(
            f"UPDATE {table} SET body = json_set(body, '$.host_id', '')"  # noqa: S608  # constants
            " WHERE json_extract(body, '$.host_id') = 'local'"
        )


CURRENT = Schema(version=SCHEMA_VERSION, create=create_tables, steps={1: _tell_hosts_apart})


def check_version(connection: sqlite3.Connection, schema: Schema) -> int:
    """Return the version of the file. Raises SchemaTooNew if a newer pycloud changed it."""
    found = _pragma(connection, "user_version")
    if found > schema.version:
        raise SchemaTooNew(found=found, supported=schema.version)
    return found


def check_ours(connection: sqlite3.Connection, path: Path, *, schema: Schema) -> None:
    """Return if the file is empty or a store that we can bring up to date.

    Raises StoreError for the database of another program, SchemaTooNew.
    """
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(f"{path} belongs to another program; choose another file as pycloud.store")
    check_version(connection, schema)


def bring_up_to_date(connection: sqlite3.Connection, path: Path, *, schema: Schema) -> None:
    """Create or migrate the tables; nothing happens if they are current.

    All or nothing happens, and only one of several processes does it.
    Raises SchemaTooNew, sqlite3.Error, OSError.
    """
    if check_version(connection, schema) == schema.version:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been faster than the lock.
        found = check_version(connection, schema)
        if found == 0:
            schema.create(connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        elif found < schema.version:
            _back_up(path, version=found)
            for version in range(found, schema.version):
                schema.steps[version](connection)
        connection.execute(f"PRAGMA user_version = {schema.version}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _back_up(path: Path, *, version: int) -> None:
    """Copy the file as it was committed last; our transaction keeps all writers out."""
    target = path.with_name(f"{path.name}.backup-v{version}")
    staged = target.with_name(target.name + ".new")
    staged.unlink(missing_ok=True)
    with ExitStack() as undo:
        os.close(os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        undo.callback(staged.unlink)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(staged)) as copy:
            source.backup(copy)
            # The copy inherits WAL mode; without it, one file holds everything.
            copy.execute("PRAGMA journal_mode = DELETE")
        sync(staged)
        staged.rename(target)
        undo.pop_all()
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
