# SPDX-License-Identifier: Apache-2.0
"""What doctor says of data directories, tokens, room and stores."""

import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest

from pycloud.adapters.diagnosis import storage
from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.settings import Settings

Usage = namedtuple("Usage", "total used free")  # as shutil returns it


def only(check, settings: Settings) -> Finding:
    (found,) = check(settings)
    return found


def test_missing_data_directory_will_be_made(tmp_path: Path) -> None:
    found = only(storage.data_directory, Settings(data_dir=tmp_path / "a" / "b"))

    assert (found.verdict, "will be made" in found.detail) == (Verdict.OK, True)
    assert not (tmp_path / "a").exists()


def test_data_directory_that_cannot_be_made_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.os, "access", lambda *_: False)

    found = only(storage.data_directory, Settings(data_dir=tmp_path / "a b"))

    assert found.verdict is Verdict.FAIL
    assert f"'{tmp_path}/a b'" in found.fix


def test_data_directory_of_somebody_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.os, "access", lambda *_: False)

    assert only(storage.data_directory, Settings(data_dir=tmp_path)).verdict is Verdict.FAIL


def test_data_directory_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")

    assert (
        only(storage.data_directory, Settings(data_dir=tmp_path / "data")).verdict is Verdict.FAIL
    )


@pytest.mark.parametrize(("mode", "verdict"), [(0o700, Verdict.OK), (0o750, Verdict.WARN)])
def test_data_directory_is_for_its_owner_alone(tmp_path: Path, mode: int, verdict: Verdict) -> None:
    tmp_path.chmod(mode)

    assert only(storage.data_directory, Settings(data_dir=tmp_path)).verdict is verdict


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, Verdict.OK), (0o640, Verdict.FAIL)])
def test_token_has_to_be_a_secret(tmp_path: Path, mode: int, verdict: Verdict) -> None:
    token = tmp_path / "admin.token"
    token.write_text("clt_x", encoding="ascii")
    token.chmod(mode)

    assert only(storage.token, Settings(data_dir=tmp_path)).verdict is verdict


@pytest.mark.parametrize(
    ("free_bytes", "verdict"),
    [(50 << 30, Verdict.OK), (1 << 30, Verdict.WARN), (1 << 20, Verdict.FAIL)],
)
def test_room_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, verdict: Verdict
) -> None:
    usage = Usage(100 << 30, 0, free_bytes)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _place: usage)

    assert only(storage.space, Settings(data_dir=tmp_path / "later")).verdict is verdict


def test_store_in_memory_is_warned_of() -> None:
    assert only(storage.store, Settings(store="memory:")).verdict is Verdict.WARN


def test_missing_store_will_be_made(tmp_path: Path) -> None:
    found = only(storage.store, Settings(data_dir=tmp_path))

    assert (found.verdict, list(tmp_path.iterdir())) == (Verdict.OK, [])


def test_store_of_this_version_is_read_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    SqliteStore(path).close()
    before = path.read_bytes()

    found = storage.sqlite_file(path)

    assert (found.verdict, path.read_bytes()) == (Verdict.OK, before)


def changed(path: Path, pragma: str) -> Finding:
    SqliteStore(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA {pragma}")
    return storage.sqlite_file(path)


@pytest.mark.parametrize(
    ("pragma", "told"),
    [
        ("user_version = 9999", "schema version 9999"),
        ("application_id = 77", "belongs to another program"),
    ],
)
def test_store_of_others_fails(tmp_path: Path, pragma: str, told: str) -> None:
    found = changed(tmp_path / "store.sqlite3", pragma)

    assert (found.verdict, told in found.detail) == (Verdict.FAIL, True)


def test_broken_store_fails(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    path.write_bytes(b"no database" * 100)

    assert storage.sqlite_file(path).verdict is Verdict.FAIL
