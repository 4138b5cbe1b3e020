# SPDX-License-Identifier: Apache-2.0
"""The MongoDB store beyond the contract: absent servers, versions, abandoned writes."""

import socket

import pymongo
import pytest
from pymongo.errors import AutoReconnect, OperationFailure, WTimeoutError

from pycloud.adapters.store import mongo_database
from pycloud.adapters.store.documents import codec_for
from pycloud.adapters.store.mongo import MongoStore
from pycloud.adapters.store.mongo_database import CURRENT, Schema, connect, translated
from pycloud.adapters.store.mongo_revisions import Revision
from pycloud.core.model.fleet import UNTOLD
from pycloud.core.model.runtime import Event
from pycloud.errors import (
    InsufficientStorage,
    InvalidSettings,
    SchemaTooNew,
    StoreError,
    StoreUnavailable,
)
from testing.factories import a_job, a_service, an_event, an_instance


@pytest.fixture
def url(mongo_database_url):
    """Address of an empty database."""
    return mongo_database_url


@pytest.fixture
def store(url):
    """An open store."""
    opened = MongoStore(url)
    yield opened
    opened.close()


@pytest.fixture
def database(url):
    """The same database, seen by the driver."""
    with pymongo.MongoClient(url) as client:
        yield client.get_default_database()


# -- connecting -----------------------------------------------------------------------------


def test_store_is_unavailable_when_no_server_listens(monkeypatch):
    monkeypatch.setattr(mongo_database, "SELECTION_TIMEOUT_MS", 100)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"mongodb://somebody:secret@127.0.0.1:{reserved.getsockname()[1]}/cloudlet"

        with pytest.raises(StoreUnavailable) as caught:
            MongoStore(address)

    assert "pycloud.store" in caught.value.message
    assert "secret" not in caught.value.message


def test_store_is_unavailable_when_the_server_is_silent(monkeypatch):
    monkeypatch.setattr(mongo_database, "SELECTION_TIMEOUT_MS", 100)
    monkeypatch.setattr(mongo_database, "ANSWER_TIMEOUT_MS", 100)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"mongodb://127.0.0.1:{silent.getsockname()[1]}/cloudlet"

        with pytest.raises(StoreUnavailable):
            MongoStore(address)


@pytest.mark.parametrize(
    "address",
    ["mongodb://user:se@cret@host/db", "mongodb://host:port/db", "mongodb:///", "mongodb://h/a b"],
)
def test_unusable_url_is_an_error_of_the_setting_that_does_not_quote_it(address):
    with pytest.raises(InvalidSettings) as caught:
        MongoStore(address)

    assert caught.value.key == "pycloud.store"
    assert "cret" not in caught.value.message


def test_writes_wait_for_a_journaled_majority(url):
    database = connect(url)

    assert database.write_concern.document == {"w": "majority", "j": True, "wtimeout": 5000}
    assert database.client.options.retry_writes
    database.client.close()


def test_database_is_called_pycloud_when_the_url_names_none(mongo_url):
    database = connect(mongo_url)

    assert database.name == "pycloud"
    database.client.close()


# -- versions ---------------------------------------------------------------------------------


def _paint(database):
    database["service"].update_many({"colour": {"$exists": False}}, {"$set": {"colour": "red"}})


def _strip(database):
    database["service"].update_many({}, {"$unset": {"colour": ""}})


NOW = CURRENT.version
NEXT = Schema(version=NOW + 2, steps={NOW: _paint, NOW + 1: _strip})


def test_new_database_has_the_current_version_and_its_indices(store, database):
    assert database["meta"].find_one({"_id": "schema"})["version"] == CURRENT.version
    keys = {tuple(index["key"]) for index in database["instance"].list_indexes()}
    assert ("created_at", "_id") in keys
    assert ("state", "created_at", "_id") in keys


def test_newer_database_is_refused(url, store, database):
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": NOW + 1}})

    with pytest.raises(SchemaTooNew):
        MongoStore(url)
    with pytest.raises(SchemaTooNew):
        store.ping()


def test_older_database_is_migrated_after_a_copy_was_made(url, store, database):
    added = store.services.add(a_service())
    store.events.append(an_event())
    copied = database["service"].find_one()

    newer = MongoStore(url, schema=Schema(version=NOW + 1, steps={NOW: _paint}))

    assert database["service"].find_one()["colour"] == "red"
    assert database[f"backup_v{NOW}_service"].find_one() == copied
    assert database[f"backup_v{NOW}_event"].count_documents({}) == 1
    assert database["meta"].find_one({"_id": "schema"})["version"] == NOW + 1
    newer.close()
    assert added.id == copied["_id"]


def test_migration_goes_through_every_step_and_may_be_repeated(url, store, database):
    added = store.services.add(a_service())

    for _ in range(2):
        newer = MongoStore(url, schema=NEXT)
        assert newer.services.get(added.id) == added
        newer.close()

    assert database["meta"].find_one({"_id": "schema"})["version"] == NOW + 2


def test_records_of_version_1_are_read_when_it_is_migrated(url, store, database):
    job, instance = store.jobs.add(a_job()), store.instances.add(an_instance(host_id="local"))
    database["job"].update_one({}, {"$unset": {"host_id": ""}})
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}})

    newer = MongoStore(url)

    assert newer.jobs.get(job.id).host_id == UNTOLD
    assert newer.instances.get(instance.id) == instance
    newer.close()


def test_copy_of_the_older_database_is_kept_when_migration_starts_again(url, store, database):
    store.services.add(a_service())
    database[f"backup_v{NOW}_service"].insert_one({"_id": "histogram", "from": "first attempt"})

    MongoStore(url, schema=NEXT).close()

    assert database[f"backup_v{NOW}_service"].find_one()["from"] == "first attempt"


# -- revisions --------------------------------------------------------------------------------


def _abandon(revision):
    """Begin a write whose server dies before it says how it ended."""
    with pytest.raises(AutoReconnect), revision.change():
        raise AutoReconnect("the server died")


def test_revision_never_repeats_while_a_write_is_under_way(store, url):
    database = connect(url)
    revision = Revision(database, "service")
    before = revision.read()

    with revision.change():
        seen = [revision.read() for _ in range(5)]

    after = [revision.read() for _ in range(2)]
    database.client.close()
    assert len({before, *seen, after[0]}) == 7
    assert after[0] == after[1]


def test_revision_never_repeats_when_a_writer_died(store, url):
    database = connect(url)
    revision = Revision(database, "service")
    before = revision.read()

    _abandon(revision)

    seen = [revision.read() for _ in range(5)]
    database.client.close()
    assert len({before, *seen}) == 6


def test_revision_settles_at_a_new_number_when_a_dead_writer_is_given_up(store, url):
    database = connect(url)
    revision = Revision(database, "service", abandoned_s=0.0)
    before = revision.read()
    _abandon(revision)

    # The first look remembers the token, the second finds it too old, the third is calm.
    unsettled = [revision.read() for _ in range(2)]
    settled = [revision.read() for _ in range(2)]

    database.client.close()
    assert len({before, *unsettled, settled[0]}) == 4
    assert settled[0] == settled[1]


def test_revision_reports_a_missing_counter(store, database):
    database["revision"].delete_many({})

    with pytest.raises(StoreError, match="restart the server"):
        store.services.revision()


# -- events -----------------------------------------------------------------------------------


def test_number_of_a_dropped_event_is_not_given_again_when_a_server_was_slow(store, database):
    for _ in range(3):
        store.events.append(an_event())
    store.events.trim(keep=0)
    document = codec_for(Event).encode(an_event())
    del document["sequence"]

    # What a server does that looked up the latest number before the others went on.
    taken = store.events._take(2, document)

    assert taken is False
    assert database["event"].count_documents({}) == 0


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (AutoReconnect("gone"), StoreUnavailable),
        (WTimeoutError("slow", 64), StoreUnavailable),
        (OperationFailure("who are you", 18), StoreUnavailable),
        (OperationFailure("not you", 13), StoreUnavailable),
        (OperationFailure("no room", 14031), InsufficientStorage),
        (OperationFailure("what", 59), StoreError),
    ],
)
def test_errors_of_the_driver_become_ours(raised, expected):
    assert type(translated(raised)) is expected


def test_document_of_another_version_is_reported_when_it_is_read(store, database):
    added = store.services.add(a_service())
    database["service"].update_one({"_id": added.id}, {"$set": {"colour": "red"}})

    with pytest.raises(StoreError, match="unknown field 'colour'"):
        store.services.get(added.id)
