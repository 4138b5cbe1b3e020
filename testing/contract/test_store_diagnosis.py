# SPDX-License-Identifier: Apache-2.0
"""What doctor says of a store on a MongoDB server, which it leaves as it found it."""

import socket
from collections.abc import Iterator

import pymongo
import pytest

from pycloud.adapters.diagnosis import storage
from pycloud.adapters.store import mongo_database
from pycloud.adapters.store.mongo import MongoStore
from pycloud.adapters.store.mongo_database import CURRENT, Mongo
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.settings import Settings


@pytest.fixture
def database(mongo_database_url: str) -> Iterator[Mongo]:
    """An empty database, seen by the driver."""
    with pymongo.MongoClient(mongo_database_url) as client:
        yield client.get_default_database()


def judged(url: str) -> Finding:
    (found,) = storage.store(Settings(store=url))
    return found


def content(database: Mongo) -> dict[str, list[object]]:
    return {name: list(database[name].find()) for name in database.list_collection_names()}


def test_empty_database_is_left_alone(mongo_database_url: str, database: Mongo) -> None:
    found = judged(mongo_database_url)

    assert (found.verdict, content(database)) == (Verdict.OK, {})
    assert "at the first start" in found.detail


def test_database_of_this_version_is_read_and_left_alone(
    mongo_database_url: str, database: Mongo
) -> None:
    MongoStore(mongo_database_url).close()
    before = content(database)

    found = judged(mongo_database_url)

    assert (found.verdict, content(database)) == (Verdict.OK, before)
    assert f"schema {CURRENT.version}" in found.detail


def test_older_database_is_left_alone_for_the_servers_that_use_it(
    mongo_database_url: str, database: Mongo
) -> None:
    MongoStore(mongo_database_url).close()
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}})
    before = content(database)

    found = judged(mongo_database_url)

    assert (found.verdict, content(database)) == (Verdict.OK, before)
    assert f"the next start brings it to {CURRENT.version}" in found.detail


def test_newer_database_fails_and_its_backup_is_named(
    mongo_database_url: str, database: Mongo
) -> None:
    MongoStore(mongo_database_url).close()
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 9999}})

    found = judged(mongo_database_url)

    assert found.verdict is Verdict.FAIL
    assert "schema version 9999" in found.detail
    assert "backup_v" in found.fix


def test_server_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_database, "SELECTION_TIMEOUT_MS", 100)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))

        found = judged(f"mongodb://127.0.0.1:{reserved.getsockname()[1]}/cloudlet")

    assert found.verdict is Verdict.FAIL
    assert "does not answer" in found.detail
