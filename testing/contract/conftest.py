# SPDX-License-Identifier: Apache-2.0
"""Fresh stores of every sort for the contract of `pycloud.core.ports.Store`."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest

from pycloud.adapters.store.memory import MemoryStore
from pycloud.core.ports import Store
from testing.contract.stores import open_store


@pytest.fixture
def mongo_database_url(mongo_url: str) -> Iterator[str]:
    """Address of an empty database that is dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    yield f"{mongo_url}/{name}"
    with pymongo.MongoClient(mongo_url) as client:
        client.drop_database(name)


@pytest.fixture(params=["sqlite", "mongo"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty store that several processes can open."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.sqlite3"
    return request.getfixturevalue("mongo_database_url")


@pytest.fixture(params=["memory", "sqlite", "mongo"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each sort."""
    if request.param == "memory":
        opened: Store = MemoryStore()
    elif request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path}/store.sqlite3")
    else:
        opened = open_store(request.getfixturevalue("mongo_database_url"))
    yield opened
    opened.close()
