# SPDX-License-Identifier: Apache-2.0
"""The store in a MongoDB database, for servers on several machines.

One collection per kind, with the id of a record as `_id`; compare-and-swap is the
filter of the write. Nothing here needs a transaction, so a single server will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from pycloud.adapters.store.documents import Document, checked_text, clamped, codec_for
from pycloud.adapters.store.kinds import D, Kind
from pycloud.adapters.store.mongo_database import (
    CURRENT,
    EVENTS,
    META,
    Mongo,
    MongoDocument,
    Schema,
    bring_up_to_date,
    check_version,
    connect,
    translating,
)
from pycloud.adapters.store.mongo_revisions import Revision
from pycloud.adapters.store.pages import checked_limit, cut_page, read_cursor
from pycloud.adapters.store.records import Records, lost_race
from pycloud.core.model.runtime import Event
from pycloud.core.ports import Slice
from pycloud.errors import CloudletError, DuplicateRecord, NotFound, StoreUnavailable


class MongoStore(Records):
    """All records of a cloudlet in the database that a `mongodb://` URL names."""

    def __init__(self, url: str, *, schema: Schema = CURRENT) -> None:
        """Connect and prepare the database.

        Raises InvalidSettings, SchemaTooNew, StoreUnavailable.
        """
        self._database = connect(url)
        self._schema = schema
        try:
            bring_up_to_date(self._database, schema=schema)
        except BaseException:
            self.close()
            raise
        super().__init__(self._repository, MongoEventLog(self._database))

    def _repository(self, kind: Kind[D], /) -> "MongoRepository[D]":
        return MongoRepository(kind, self._database)

    def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable, SchemaTooNew."""
        with translating():
            check_version(self._database, self._schema)

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._database.client.close()


def _to_mongo(document: Document) -> MongoDocument:
    return {"_id": document.pop("id"), **document}


def _from_mongo(document: MongoDocument) -> Document:
    return {"id": document.pop("_id"), **document}


class MongoRepository(Generic[D]):
    """The records of one kind in their collection."""

    def __init__(self, kind: Kind[D], database: Mongo) -> None:
        self._kind = kind
        self._codec = codec_for(kind.record_class)
        self._collection = database[kind.name]
        self._revision = Revision(database, kind.name)

    def add(self, record: D) -> D:
        """Store a new record. Raises DuplicateRecord."""
        stored = replace(record, generation=record.generation + 1)
        document = _to_mongo(self._codec.encode(stored))
        with translating(), self._revision.change():
            try:
                self._collection.insert_one(document)
            except DuplicateKeyError as exc:
                raise DuplicateRecord(self._kind.name, record.id) from exc
        return stored

    def get(self, record_id: str) -> D:
        """Return the record. Raises NotFound."""
        with translating():
            document = self._collection.find_one({"_id": checked_text(record_id, pointer="id")})
        if document is None:
            raise NotFound(self._kind.name, record_id)
        return self._codec.decode(_from_mongo(document))

    def replace(self, record: D) -> D:
        """Write if nobody was faster. Raises StaleRecord, NotFound."""
        stored = replace(record, generation=record.generation + 1)
        document = _to_mongo(self._codec.encode(stored))
        expected = {"_id": record.id, "generation": record.generation}
        with translating(), self._revision.change():
            if not self._collection.replace_one(expected, document).matched_count:
                raise self._lost_race(record.id)
        return stored

    def remove(self, record_id: str, *, generation: int | None = None) -> None:
        """Remove the record, if `generation` is given only that one."""
        expected: MongoDocument = {"_id": checked_text(record_id, pointer="id")}
        if generation is not None:
            expected["generation"] = clamped(generation)
        with translating(), self._revision.change():
            gone = self._collection.delete_one(expected).deleted_count
            if generation is not None and not gone:
                raise self._lost_race(record_id)

    def _lost_race(self, record_id: str) -> CloudletError:
        found = self._collection.find_one({"_id": record_id}, {"_id": 1})
        return lost_race(self._kind.name, record_id, found=found)

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
        wanted: dict[str, Any] = {**self._kind.checked_filter(where)}  # Any: a condition
        if behind is not None:
            later = {"created_at": {"$gt": behind.created_at}}
            same_time = {"created_at": behind.created_at, "_id": {"$gt": behind.id}}
            wanted["$or"] = [later, same_time]
        order = [("created_at", ASCENDING), ("_id", ASCENDING)]
        with translating():
            documents = list(self._collection.find(wanted).sort(order).limit(size + 1))
        return cut_page(list(map(_from_mongo, documents)), self._codec.decode, limit=size)

    def count(self, where: Mapping[str, str] | None = None) -> int:
        """Count the records whose indexed fields equal `where`."""
        with translating():
            return self._collection.count_documents(self._kind.checked_filter(where))

    def revision(self) -> int:
        """Return a number that changes with every write to this kind, by any server."""
        return self._revision.read()


class MongoEventLog:
    """The events in their collection, with the sequence number as `_id`.

    A number is taken by inserting the event under the one after the highest there is,
    and trying again if another server was faster. With a counter, a reader could see
    number 6 before 5 is inserted, go on from 6, and never see 5.
    """

    def __init__(self, database: Mongo) -> None:
        self._codec = codec_for(Event)
        self._events = database[EVENTS]
        self._meta = database[META]

    def append(self, event: Event) -> Event:
        """Store the event and return it with the next sequence number."""
        document = self._codec.encode(event)
        del document["sequence"]
        for _ in range(_ATTEMPTS):
            sequence = self.latest() + 1
            if self._take(sequence, document):
                return replace(event, sequence=sequence)
        raise StoreUnavailable("too many servers write events at once; try again")

    def _take(self, sequence: int, document: Document) -> bool:
        """Insert an event under this number; return False if it was given before."""
        with translating():
            try:
                self._events.insert_one({"_id": sequence, **document})
            except DuplicateKeyError:
                # Another server took it, so the log as a whole went on.
                return False
            # While we were slow, others may have taken the number and dropped the event.
            if self._dropped() < sequence:
                return True
            self._events.delete_one({"_id": sequence})
            return False

    def after(self, sequence: int, *, limit: int, kinds: Sequence[str] = ()) -> tuple[Event, ...]:
        """Return events with a higher sequence number, oldest first."""
        wanted: dict[str, Any] = {"_id": {"$gt": clamped(sequence)}}  # Any: a condition
        if kinds:
            wanted["kind"] = {"$in": list(kinds)}
        with translating():
            found = self._events.find(wanted).sort("_id", ASCENDING).limit(checked_limit(limit))
            documents = list(found)
        return tuple(map(self._read, documents))

    def _read(self, document: MongoDocument) -> Event:
        return self._codec.decode({"sequence": document.pop("_id"), **document})

    def latest(self) -> int:
        """Return the highest sequence number given so far, 0 if none."""
        with translating():
            newest = self._events.find_one({}, {"_id": 1}, sort=[("_id", DESCENDING)])
            # Read after the events, written before they are dropped: never too low.
            return max(int(newest["_id"]) if newest else 0, self._dropped())

    def _dropped(self) -> int:
        """Return the highest number that was dropped, 0 if none."""
        floor = self._meta.find_one({"_id": "events"})
        return int(floor["dropped"]) if floor else 0

    def trim(self, *, keep: int) -> None:
        """Drop all but the newest `keep` events."""
        with translating():
            newest_first = self._events.find({}, {"_id": 1}).sort("_id", DESCENDING)
            surplus = list(newest_first.skip(clamped(max(keep, 0))).limit(1))
            if not surplus:
                return
            last = surplus[0]["_id"]
            self._meta.update_one({"_id": "events"}, {"$max": {"dropped": last}}, upsert=True)
            self._events.delete_many({"_id": {"$lte": last}})


_ATTEMPTS = 1000
