# SPDX-License-Identifier: Apache-2.0
"""The store that forgets: records in dictionaries of this process, for tests and trials.

It keeps documents, not records, so that whatever cannot be stored elsewhere cannot be
stored here, and no caller shares a mutable value with another. Safe for threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Generic

from pycloud.adapters.store.documents import Document, checked_text, clamped, codec_for
from pycloud.adapters.store.kinds import D, Kind
from pycloud.adapters.store.pages import checked_limit, cut_page, position_of, read_cursor
from pycloud.adapters.store.records import Records, first_revision, lost_race
from pycloud.core.model.runtime import Event
from pycloud.core.ports import Slice
from pycloud.errors import DuplicateRecord, NotFound, StoreUnavailable


class MemoryStore(Records):
    """All records of a cloudlet for as long as this process lives."""

    def __init__(self) -> None:
        self._closed = False
        super().__init__(self._repository, MemoryEventLog(self.ping))

    def _repository(self, kind: Kind[D], /) -> "MemoryRepository[D]":
        return MemoryRepository(kind, self.ping)

    def ping(self) -> None:
        """Return unless the store was closed. Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("the store was closed")

    def close(self) -> None:
        """Refuse further calls; idempotent."""
        self._closed = True


class MemoryRepository(Generic[D]):
    """The records of one kind."""

    def __init__(self, kind: Kind[D], check_open: Callable[[], None]) -> None:
        self._kind = kind
        self._codec = codec_for(kind.record_class)
        self._check_open = check_open
        self._documents: dict[str, Document] = {}
        self._revision = first_revision()
        self._lock = Lock()

    def add(self, record: D) -> D:
        """Store a new record. Raises DuplicateRecord."""
        self._check_open()
        stored = replace(record, generation=record.generation + 1)
        document = self._codec.encode(stored)
        with self._lock:
            if record.id in self._documents:
                raise DuplicateRecord(self._kind.name, record.id)
            self._documents[record.id] = document
            self._revision += 1
        return stored

    def get(self, record_id: str) -> D:
        """Return the record. Raises NotFound."""
        self._check_open()
        document = self._documents.get(checked_text(record_id, pointer="id"))
        if document is None:
            raise NotFound(self._kind.name, record_id)
        return self._codec.decode(document)

    def replace(self, record: D) -> D:
        """Write if nobody was faster. Raises StaleRecord, NotFound."""
        self._check_open()
        stored = replace(record, generation=record.generation + 1)
        document = self._codec.encode(stored)
        with self._lock:
            self._check_generation(record.id, record.generation)
            self._documents[record.id] = document
            self._revision += 1
        return stored

    def remove(self, record_id: str, *, generation: int | None = None) -> None:
        """Remove the record, if `generation` is given only that one."""
        self._check_open()
        checked_text(record_id, pointer="id")
        with self._lock:
            if generation is not None:
                self._check_generation(record_id, generation)
            if self._documents.pop(record_id, None) is not None:
                self._revision += 1

    def _check_generation(self, record_id: str, generation: int) -> None:
        found = self._documents.get(record_id)
        if found is None or found["generation"] != clamped(generation):
            raise lost_race(self._kind.name, record_id, found=found)

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
        matching = self._matching(where)
        if behind is not None:
            matching = [document for document in matching if position_of(document) > behind]
        matching.sort(key=position_of)
        return cut_page(matching[: size + 1], self._codec.decode, limit=size)

    def count(self, where: Mapping[str, str] | None = None) -> int:
        """Count the records whose indexed fields equal `where`."""
        return len(self._matching(where))

    def _matching(self, where: Mapping[str, str] | None) -> list[Document]:
        self._check_open()
        wanted = self._kind.checked_filter(where).items()
        with self._lock:
            documents = list(self._documents.values())
        return [
            document
            for document in documents
            if all(document[name] == value for name, value in wanted)
        ]

    def revision(self) -> int:
        """Return a number that changes with every write."""
        self._check_open()
        return self._revision


class MemoryEventLog:
    """The events of this process, oldest first."""

    def __init__(self, check_open: Callable[[], None]) -> None:
        self._codec = codec_for(Event)
        self._check_open = check_open
        self._documents: list[Document] = []
        self._latest = 0
        self._lock = Lock()

    def append(self, event: Event) -> Event:
        """Store the event and return it with the next sequence number."""
        self._check_open()
        document = self._codec.encode(event)
        with self._lock:
            self._latest += 1
            sequence = document["sequence"] = self._latest
            self._documents.append(document)
        return replace(event, sequence=sequence)

    def after(self, sequence: int, *, limit: int, kinds: Sequence[str] = ()) -> tuple[Event, ...]:
        """Return events with a higher sequence number, oldest first."""
        self._check_open()
        with self._lock:
            later = [
                document
                for document in self._documents
                if document["sequence"] > sequence and (not kinds or document["kind"] in kinds)
            ]
        return tuple(map(self._codec.decode, later[: checked_limit(limit)]))

    def latest(self) -> int:
        """Return the highest sequence number given so far, 0 if none."""
        self._check_open()
        return self._latest

    def trim(self, *, keep: int) -> None:
        """Drop all but the newest `keep` events."""
        self._check_open()
        with self._lock:
            del self._documents[: max(len(self._documents) - max(keep, 0), 0)]
