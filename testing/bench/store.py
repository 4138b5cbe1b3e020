# SPDX-License-Identifier: Apache-2.0
"""The SQLite store against raw sqlite3 doing the same work on the same tables.

    python -m testing.bench store [--quick] [--directory DIR]

Both sides work on files of their own with the same tables, indices and settings. The raw
side runs hand-written statements and turns dictionaries into JSON text and back; ours
works with records. They take turns in short rounds, so that whatever else the machine
does meets both; the table shows the median rates and their ratio.
"""

import json
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pycloud.adapters.store.documents import codec_for
from pycloud.adapters.store.kinds import INSTANCES
from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.adapters.store.sqlite_schema import create_tables
from pycloud.core.model.identifiers import InstanceId
from pycloud.core.model.runtime import Event, Instance, InstanceState, Phase, PortMapping
from testing.bench.table import Effort, Table, ratio, ratio_of
from testing.factories import an_event, an_instance

ROUNDS = {Effort.FULL: 15, Effort.QUICK: 3}
READS_PER_ROUND = 1000
PAGES_PER_ROUND = 40
WRITES_PER_ROUND = 100
RECORDS = 200
PAGE = 50
Work = Callable[[], object]


@dataclass(slots=True, kw_only=True)
class Row:
    """One kind of work: how often it was done in a second by each side, round by round."""

    name: str
    raw_per_s: list[float] = field(default_factory=list)
    ours_per_s: list[float] = field(default_factory=list)


def tables(directory: Path, effort: Effort) -> list[Table]:
    """Measure every kind of work in files in `directory`."""
    rows = run(directory, ROUNDS[effort])
    return [
        Table(
            title="SQLite store against raw sqlite3",
            columns=("", "raw sqlite3", "pycloud", "ratio"),
            rows=tuple(
                (
                    row.name,
                    f"{statistics.median(row.raw_per_s):,.0f}/s",
                    f"{statistics.median(row.ours_per_s):,.0f}/s",
                    ratio(ratio_of(row.ours_per_s, row.raw_per_s)),
                )
                for row in rows
            ),
            notes=("The same tables, indices and settings; the ratio is ours to raw.",),
        )
    ]


def run(directory: Path, rounds: int) -> list[Row]:
    """Measure every kind of work in files in `directory`."""
    with (
        closing(SqliteStore(directory / "ours.sqlite3")) as store,
        closing(_raw_connection(directory / "raw.sqlite3")) as connection,
    ):
        ours, raw = _Ours(store), _Raw(connection)
        for _ in range(RECORDS):
            instance = _a_running_instance()
            ours.add(instance)
            raw.add(instance)
        works: tuple[tuple[str, Work, Work, int], ...] = (
            ("read one record", raw.read, ours.read, READS_PER_ROUND),
            ("read a revision", raw.revision, ours.revision, READS_PER_ROUND),
            (f"read a page of {PAGE}", raw.page, ours.page, PAGES_PER_ROUND),
            ("commit a new record", raw.add_next, ours.add_next, WRITES_PER_ROUND),
            ("commit a change", raw.change, ours.change, WRITES_PER_ROUND),
            ("commit an event", raw.event, ours.event, WRITES_PER_ROUND),
        )
        rows = [Row(name=name) for name, *_ in works]
        for row, (_, raw_work, our_work, count) in zip(rows, works, strict=True):
            for _ in range(rounds):
                row.raw_per_s.append(_rate(raw_work, count))
                row.ours_per_s.append(_rate(our_work, count))
    return rows


def _rate(work: Work, count: int) -> float:
    begin_s = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - begin_s)


def _a_running_instance() -> Instance:
    phases = ("admit", "disk", "define", "resume", "ports", "answer")
    return an_instance(
        state=InstanceState.RUNNING,
        address="192.0.2.1",
        ports=(PortMapping(guest_port=8080, host_port=20000),),
        timeline=tuple(Phase(name=name, begin_ms=1.5, duration_ms=2.5) for name in phases),
    )


class _Ours:
    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._event = an_event()

    def add(self, instance: Instance) -> None:
        self._last = self._store.instances.add(instance)

    def add_next(self) -> None:
        number = int(self._last.id.rpartition("-")[2]) + 1
        self.add(replace(self._last, id=InstanceId(f"ours-{number:05d}")))

    def read(self) -> Instance:
        return self._store.instances.get(self._last.id)

    def revision(self) -> int:
        return self._store.instances.revision()

    def page(self) -> object:
        return self._store.instances.find({"state": "running"}, limit=PAGE)

    def change(self) -> None:
        changed = replace(self._last, users=self._last.users + 1)
        self._last = self._store.instances.replace(changed)

    def event(self) -> None:
        self._store.events.append(self._event)


def _raw_connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN")
    create_tables(connection)
    connection.execute("COMMIT")
    return connection


class _Raw:
    """The same work by hand; documents stay dictionaries."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._event = codec_for(Event).encode(an_event())

    def add(self, instance: Instance) -> None:
        document = codec_for(Instance).encode(replace(instance, generation=1))
        self._insert(document)

    def add_next(self) -> None:
        # A dictionary made of another one stands for whatever a program without records has.
        number = int(self._last["id"].rpartition("-")[2]) + 1
        self._insert({**self._last, "id": f"raw-{number:05d}", "generation": 1})

    def _insert(self, document: dict[str, Any]) -> None:  # Any: a JSON value
        self._last = document
        columns = ("id", "created_at", "generation", *INSTANCES.indexed)
        values = [document[name] for name in columns]
        self._commit(
            f"INSERT INTO instance ({', '.join(columns)}, body)"  # noqa: S608
            f" VALUES ({', '.join('?' * (len(columns) + 1))})",
            (*values, json.dumps(document)),
        )

    def _commit(self, statement: str, values: tuple[object, ...]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        execute(statement, values)
        execute("UPDATE revision SET number = number + 1 WHERE kind = 'instance'")
        execute("COMMIT")

    def read(self) -> object:
        statement = "SELECT body FROM instance WHERE id = ?"
        (body,) = self._connection.execute(statement, (self._last["id"],)).fetchone()
        return json.loads(body)

    def revision(self) -> object:
        statement = "SELECT number FROM revision WHERE kind = ?"
        return self._connection.execute(statement, ("instance",)).fetchone()

    def page(self) -> object:
        rows = self._connection.execute(
            "SELECT body FROM instance WHERE state = ? ORDER BY created_at, id LIMIT ?",
            ("running", PAGE + 1),
        )
        return [json.loads(body) for (body,) in rows]

    def change(self) -> None:
        generation = self._last["generation"]
        self._last = {
            **self._last,
            "users": self._last["users"] + 1,
            "generation": generation + 1,
        }
        columns = ("created_at", "generation", *INSTANCES.indexed)
        values = [self._last[name] for name in columns]
        self._commit(
            f"UPDATE instance SET {', '.join(f'{name} = ?' for name in columns)}, body = ?"  # noqa: S608
            " WHERE id = ? AND generation = ?",
            (*values, json.dumps(self._last), self._last["id"], generation),
        )

    def event(self) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        values = ("instance", json.dumps(self._event))
        execute("INSERT INTO event (kind, body) VALUES (?, ?)", values)
        execute("COMMIT")
