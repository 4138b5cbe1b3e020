# SPDX-License-Identifier: Apache-2.0
"""The MongoDB-protocol server of the tests does what the store relies on."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo
import pytest
from pymongo.errors import DuplicateKeyError, ServerSelectionTimeoutError

from testing.mongo_server import running_mongo_server

ROOT = Path(__file__).resolve().parents[2]
Collection = pymongo.collection.Collection[dict[str, Any]]


@pytest.fixture
def collection(mongo_url: str) -> Iterator[Collection]:
    name = f"pycloud-test-{uuid4().hex}"
    with pymongo.MongoClient[dict[str, Any]](mongo_url, w="majority", journal=True) as client:
        yield client[name]["records"]
        client.drop_database(name)


def test_mongo_server_replaces_once_when_two_writers_know_the_same_generation(
    collection: Collection,
) -> None:
    collection.insert_one({"_id": "a", "generation": 1})

    first = collection.replace_one({"_id": "a", "generation": 1}, {"generation": 2, "by": 1})
    second = collection.replace_one({"_id": "a", "generation": 1}, {"generation": 2, "by": 2})

    assert (first.modified_count, second.modified_count) == (1, 0)
    assert collection.find_one({}) == {"_id": "a", "generation": 2, "by": 1}


def test_mongo_server_refuses_a_second_record_when_an_index_is_unique(
    collection: Collection,
) -> None:
    collection.create_index("port", unique=True)
    collection.insert_one({"port": 20000})

    with pytest.raises(DuplicateKeyError):
        collection.insert_one({"port": 20000})


def test_mongo_server_is_gone_when_the_block_ends() -> None:
    with running_mongo_server() as url:
        pass

    with (
        pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=200) as client,
        pytest.raises(ServerSelectionTimeoutError),
    ):
        client.admin.command("ping")


def test_mongo_server_ends_when_its_test_run_is_killed() -> None:
    program = (
        "from testing.mongo_server import running_mongo_server\n"
        "with running_mongo_server() as url:\n"
        "    print(url, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        url = run.stdout.readline().strip()
        run.kill()

    assert _stops_answering(url, deadline_s=30)


def _stops_answering(url: str, *, deadline_s: float) -> bool:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        with pymongo.MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=200) as client:
            try:
                client.admin.command("ping")
            except ServerSelectionTimeoutError:
                return True
    return False
