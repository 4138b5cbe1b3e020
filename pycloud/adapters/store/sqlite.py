# SPDX-License-Identifier: Apache-2.0
"""The store in one SQLite file, for one or several servers on one machine.

A write puts the record and the revision of its kind into one transaction, so whoever
sees the revision sees the record. Compare-and-swap is the WHERE clause of the write.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic

from pycloud.adapters.store.documents import Document, checked_text, clamped, codec_for
from pycloud.adapters.store.kinds import D, Kind
from pycloud.adapters.store.pages import checked_limit, cut_page, read_cursor
from pycloud.adapters.store.records import Records, lost_race
from pycloud.adapters.store.sqlite_database import Database
from pycloud.adapters.store.sqlite_schema import CURRENT, Schema
from pycloud.core.model.runtime import Event
from pycloud.core.ports import Slice
from pycloud.errors import DuplicateRecord, NotFound

_dumps: Callable[[Document], str] = json.JSONEncoder(separators=(",", ":")).encode
_loads: Callable[[str], Document] = json.JSONDecoder().decode


class SqliteStore(Records):
    """All records of a cloudlet in the file `path`, which is made if it is missing."""

    def __init__(self, path: Path, *, schema: Schema = CURRENT) -> None:
        """Open the store.

        Raises SchemaTooNew, StoreUnavailable, StoreError, InsufficientStorage.
        """
        self._database = Database(path, schema)
        super().__init__(self._repository, SqliteEventLog(self._database))

    def _repository(self, kind: Kind[D], /) -> "SqliteRepository[D]":
        return SqliteRepository(kind, self._database)

    def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable, SchemaTooNew."""
        self._database.check()

    def close(self) -> None:
        """Close the connections of all threads; idempotent."""
        self._database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statements:
    """The SQL of one kind, written once so that SQLite prepares it once."""

    insert: str
    select: str
    exists: str
    update: str
    delete: str
    delete_if: str
    touch: str
    revision: str


def _statements(kind: Kind[D]) -> _Statements:
    # Names of tables and columns come from the list of kinds, values are always bound.
    table = kind.name
    columns = ("created_at", "generation", *kind.indexed, "body")
    assignments = ", ".join(f"{column} = ?" for column in columns)
    return _Statements(
        insert=f"INSERT INTO {table} ({', '.join(columns)}, id)"  # noqa: S608
        f" VALUES ({', '.join('?' * (len(columns) + 1))})",
        select=f"SELECT body FROM {table} WHERE id = ?",  # noqa: S608
        exists=f"SELECT 1 FROM {table} WHERE id = ?",  # noqa: S608
        update=f"UPDATE {table} SET {assignments} WHERE id = ? AND generation = ?",  # noqa: S608
        delete=f"DELETE FROM {table} WHERE id = ?",  # noqa: S608
        delete_if=f"DELETE FROM {table} WHERE id = ? AND generation = ?",  # noqa: S608
        touch=f"UPDATE revision SET number = number + 1 WHERE kind = '{table}'",  # noqa: S608
        revision=f"SELECT number FROM revision WHERE kind = '{table}'",  # noqa: S608
    )


class SqliteRepository(Generic[D]):
    """The records of one kind in their table."""

    def __init__(self, kind: Kind[D], database: Database) -> None:
        self._kind = kind
        self._codec = codec_for(kind.record_class)
        self._database = database
        self._sql = _statements(kind)

    def add(self, record: D) -> D:
        """Store a new record. Raises DuplicateRecord."""
        stored = replace(record, generation=record.generation + 1)
        values = self._values(stored)
        with self._database.transaction() as connection:
            try:
                connection.execute(self._sql.insert, values)
            except sqlite3.IntegrityError as exc:
                raise DuplicateRecord(self._kind.name, record.id) from exc
            connection.execute(self._sql.touch)
        return stored

    def get(self, record_id: str) -> D:
        """Return the record. Raises NotFound."""
        row = self._database.row(self._sql.select, (checked_text(record_id, pointer="id"),))
        if row is None:
            raise NotFound(self._kind.name, record_id)
        return self._codec.decode(_loads(row[0]))

    def replace(self, record: D) -> D:
        """Write if nobody was faster. Raises StaleRecord, NotFound."""
        stored = replace(record, generation=record.generation + 1)
        values = (*self._values(stored), record.generation)
        self._write_on_condition(self._sql.update, values, record_id=record.id)
        return stored

    def remove(self, record_id: str, *, generation: int | None = None) -> None:
        """Remove the record, if `generation` is given only that one."""
        checked_text(record_id, pointer="id")
        if generation is not None:
            values = (record_id, clamped(generation))
            self._write_on_condition(self._sql.delete_if, values, record_id=record_id)
            return
        with self._database.transaction() as connection:
            if connection.execute(self._sql.delete, (record_id,)).rowcount:
                connection.execute(self._sql.touch)

    def _write_on_condition(
        self, statement: str, values: Sequence[object], *, record_id: str
    ) -> None:
        with self._database.transaction() as connection:
            if not connection.execute(statement, values).rowcount:
                found = connection.execute(self._sql.exists, (record_id,)).fetchone()
                raise lost_race(self._kind.name, record_id, found=found)
            connection.execute(self._sql.touch)

    def _values(self, record: D) -> tuple[object, ...]:
        document = self._codec.encode(record)
        return (
            document["created_at"],
            document["generation"],
            *(document[name] for name in self._kind.indexed),
            _dumps(document),
            document["id"],
        )

    def find(
        self,
        where: Mapping[str, str] | None = None,
        *,
        limit: int = 500,
        cursor: str | None = None,
    ) -> Slice[D]:
        """Return one page of the records whose indexed fields equal `where`."""
        size = checked_limit(limit)
        behind = read_cursor(cursor)
        wanted = self._kind.checked_filter(where)
        conditions = [f"{name} = ?" for name in wanted]
        values: list[object] = list(wanted.values())
        if behind is not None:
            conditions.append("(created_at, id) > (?, ?)")
            values.extend(behind)
        rows = self._database.rows(
            f"SELECT body FROM {self._kind.name} {_where(conditions)}"  # noqa: S608 - as above
            " ORDER BY created_at, id LIMIT ?",
            (*values, size + 1),
        )
        return cut_page([_loads(body) for (body,) in rows], self._codec.decode, limit=size)

    def count(self, where: Mapping[str, str] | None = None) -> int:
        """Count the records whose indexed fields equal `where`."""
        wanted = self._kind.checked_filter(where)
        ((number,),) = self._database.rows(
            f"SELECT count(*) FROM {self._kind.name}"  # noqa: S608 - as above
            f" {_where([f'{name} = ?' for name in wanted])}",
            tuple(wanted.values()),
        )
        return int(number)

    def revision(self) -> int:
        """Return a number that changes with every write to this kind, by any process."""
        row = self._database.row(self._sql.revision)
        return 0 if row is None else int(row[0])


def _where(conditions: Sequence[str]) -> str:
    return "WHERE " + " AND ".join(conditions) if conditions else ""


class SqliteEventLog:
    """The events in their table; writers take turns, so numbers appear in order."""

    def __init__(self, database: Database) -> None:
        self._codec = codec_for(Event)
        self._database = database

    def append(self, event: Event) -> Event:
        """Store the event and return it with the next sequence number."""
        values = (event.kind, _dumps(self._codec.encode(event)))
        with self._database.transaction() as connection:
            cursor = connection.execute("INSERT INTO event (kind, body) VALUES (?, ?)", values)
            sequence = cursor.lastrowid or 0
        return replace(event, sequence=sequence)

    def after(self, sequence: int, *, limit: int, kinds: Sequence[str] = ()) -> tuple[Event, ...]:
        """Return events with a higher sequence number, oldest first."""
        chosen = f"AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        rows = self._database.rows(
            f"SELECT sequence, body FROM event WHERE sequence > ? {chosen}"  # noqa: S608 - bound
            " ORDER BY sequence LIMIT ?",
            (clamped(sequence), *kinds, checked_limit(limit)),
        )
        return tuple(self._read(number, body) for number, body in rows)

    def _read(self, sequence: int, body: str) -> Event:
        document = _loads(body)
        document["sequence"] = sequence
        return self._codec.decode(document)

    def latest(self) -> int:
        """Return the highest sequence number given so far, 0 if none."""
        row = self._database.row("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
        return 0 if row is None else int(row[0])

    def trim(self, *, keep: int) -> None:
        """Drop all but the newest `keep` events."""
        with self._database.transaction() as connection:
            connection.execute(
                "DELETE FROM event WHERE sequence <="
                " (SELECT sequence FROM event ORDER BY sequence DESC LIMIT 1 OFFSET ?)",
                (clamped(max(keep, 0)),),
            )
