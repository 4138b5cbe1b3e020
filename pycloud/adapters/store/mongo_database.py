# SPDX-License-Identifier: Apache-2.0
"""The connection to a MongoDB server, and the schema version kept in its database.

Writes are acknowledged by a majority and journaled before they return; the driver
repeats them after a lost connection where the server can tell a repeat. A server that
does not answer is an error within seconds. All errors of the driver leave here as
errors of pycloud, which never contain the URL, because it may hold a password.

Migrations run while other servers may start, too, and MongoDB has no transaction over
many documents everywhere: so each step must do no harm when it runs twice or in two
servers at once. Servers of an older version have to be stopped before the newer starts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bson.errors import BSONError
from pymongo import ASCENDING, MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from pycloud.adapters.store.kinds import KINDS, SCHEMA_VERSION
from pycloud.adapters.store.records import first_revision
from pycloud.errors import (
    CloudletError,
    InsufficientStorage,
    InvalidSettings,
    SchemaTooNew,
    StoreError,
    StoreUnavailable,
)

MongoDocument = dict[str, Any]  # Any: a BSON value
Mongo = Database[MongoDocument]
Step = Callable[[Mongo], None]

DEFAULT_DATABASE = "pycloud"
META = "meta"
REVISIONS = "revision"
EVENTS = "event"
SELECTION_TIMEOUT_MS = 3_000
ANSWER_TIMEOUT_MS = 10_000
MAJORITY_TIMEOUT_MS = 5_000
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The version a database has to have; `steps[n]` turns version n into n + 1."""

    version: int = SCHEMA_VERSION
    steps: Mapping[int, Step] = field(default_factory=dict)


def _tell_hosts_apart(_database: Mongo) -> None:
    """Leave version 1 as it is: new fields have defaults, and no server can tell whose it was."""


CURRENT = Schema(steps={1: _tell_hosts_apart})


def connect(url: str) -> Mongo:
    """Return the database that the URL names; nothing is sent yet.

    Raises InvalidSettings for a URL that the driver does not understand.
    """
    try:
        client: MongoClient[MongoDocument] = MongoClient(
            url,
            serverSelectionTimeoutMS=SELECTION_TIMEOUT_MS,
            connectTimeoutMS=SELECTION_TIMEOUT_MS,
            socketTimeoutMS=ANSWER_TIMEOUT_MS,
            retryWrites=True,
            retryReads=True,
            tz_aware=True,
            appname="pycloud",
        )
        return client.get_default_database(
            DEFAULT_DATABASE,
            # Without a limit, a majority that is down would block writers for ever.
            write_concern=WriteConcern(w="majority", j=True, wtimeout=MAJORITY_TIMEOUT_MS),
            read_preference=ReadPreference.PRIMARY,
        )
    except (InvalidURI, ConfigurationError, ValueError) as exc:
        # What the driver says may quote parts of the URL, such as its password.
        raise InvalidSettings(
            "pycloud.store",
            "mongodb://...",
            allowed="mongodb://[USER:PASSWORD@]HOST[:PORT]/DATABASE with %-encoded special characters",
        ) from exc


# -- schema -----------------------------------------------------------------------


def stored_version(url: str) -> int:
    """Return the version of the database that the URL names, 0 if it is new; change nothing.

    Raises InvalidSettings, StoreUnavailable, and SchemaTooNew as a server would.
    """
    database = connect(url)
    try:
        with translating():
            return check_version(database, CURRENT)
    finally:
        database.client.close()


def bring_up_to_date(database: Mongo, *, schema: Schema) -> None:
    """Make indices and counters, or migrate an older database after copying it.

    Safe to run in several servers at once. Raises SchemaTooNew, StoreUnavailable.
    """
    with translating():
        found = check_version(database, schema)
        for version in range(found or schema.version, schema.version):
            _back_up(database, version=version)
            schema.steps[version](database)
            _write_version(database, version + 1)
        _make_indices(database)
        if not found:
            _write_version(database, schema.version)


def check_version(database: Mongo, schema: Schema) -> int:
    """Return the version of the database, 0 if it is new. Raises SchemaTooNew."""
    stored = database[META].find_one({"_id": "schema"})
    found = int(stored["version"]) if stored else 0
    if found > schema.version:
        raise SchemaTooNew(found=found, supported=schema.version)
    return found


def _write_version(database: Mongo, version: int) -> None:
    insert_or_keep(database[META], {"_id": "schema", "version": version})
    # A server that comes late with the same step must not lower it.
    database[META].update_one({"_id": "schema"}, {"$max": {"version": version}})


def _make_indices(database: Mongo) -> None:
    order = [("created_at", ASCENDING), ("_id", ASCENDING)]
    for kind in KINDS:
        collection = database[kind.name]
        collection.create_index(order)
        for name in kind.indexed:
            collection.create_index([(name, ASCENDING), *order])
        counter = {"_id": kind.name, "number": first_revision(), "pending": []}
        insert_or_keep(database[REVISIONS], counter)
    database[EVENTS].create_index([("kind", ASCENDING), ("_id", ASCENDING)])


def _back_up(database: Mongo, *, version: int) -> None:
    """Copy every collection beside itself, once; an interrupted copy is gone on with."""
    done = {"_id": f"backup_v{version}"}
    if database[META].find_one(done):
        return
    for name in (*(kind.name for kind in KINDS), EVENTS, REVISIONS, META):
        target = database[f"backup_v{version}_{name}"]
        batch: list[MongoDocument] = []
        for document in database[name].find():
            batch.append(document)
            if len(batch) == _BATCH:
                _copy(target, batch)
                batch = []
        _copy(target, batch)
    insert_or_keep(database[META], done)


def _copy(target: Collection[MongoDocument], batch: list[MongoDocument]) -> None:
    for document in batch:
        insert_or_keep(target, document)


def insert_or_keep(collection: Collection[MongoDocument], document: MongoDocument) -> None:
    """Insert a document unless there is one with its id."""
    try:
        collection.insert_one(document)
    except DuplicateKeyError:
        return


# -- errors -----------------------------------------------------------------------


@contextmanager
def translating() -> Iterator[None]:
    """Raise errors of pycloud for those of the driver."""
    try:
        yield
    except (PyMongoError, BSONError) as exc:
        raise translated(exc) from exc


def translated(exc: PyMongoError | BSONError) -> CloudletError:
    """Return what an error of the driver means to pycloud and what to do about it."""
    if isinstance(exc, ConnectionFailure):
        return StoreUnavailable(
            f"the MongoDB server does not answer ({exc});"
            " check that it runs and that pycloud.store names it"
        )
    if isinstance(exc, InvalidOperation):
        return StoreUnavailable("the store was closed")
    if isinstance(exc, WriteConcernError):
        return StoreUnavailable(
            f"the MongoDB servers did not confirm a write by a majority ({exc});"
            " check the members of the replica set"
        )
    if isinstance(exc, OperationFailure) and not isinstance(exc, BulkWriteError):
        return _refused(exc)
    return StoreError(f"MongoDB: {exc}")


def _refused(exc: OperationFailure) -> CloudletError:
    if exc.code in _OUT_OF_DISK:
        return InsufficientStorage("the disk of the MongoDB server is full; make room there")
    if exc.code in _NOT_ALLOWED:
        return StoreUnavailable(
            f"the MongoDB server refuses us ({exc}); check user and password in pycloud.store"
        )
    return StoreError(f"the MongoDB server refuses an operation: {exc}")


_OUT_OF_DISK = frozenset({14031})  # OutOfDiskSpace
_NOT_ALLOWED = frozenset({13, 18})  # Unauthorized, AuthenticationFailed
