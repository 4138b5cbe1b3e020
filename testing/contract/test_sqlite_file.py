# SPDX-License-Identifier: Apache-2.0
"""The file of the SQLite store: private, versioned, durable, and honest about trouble."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from pycloud.adapters.store import sqlite_database
from pycloud.adapters.store.sqlite import SqliteStore
from pycloud.adapters.store.sqlite_schema import CURRENT, Schema
from pycloud.core.model.fleet import UNTOLD
from pycloud.core.model.identifiers import HostId
from pycloud.errors import (
    CloudletError,
    InsufficientStorage,
    NotFound,
    SchemaTooNew,
    StoreError,
    StoreUnavailable,
)
from testing.contract.processes import CHECKOUT, contender
from testing.factories import a_job, a_message, a_service, an_event, an_instance


@pytest.fixture
def path(tmp_path):
    """Where the file will be, in a folder that is not there yet."""
    return tmp_path / "data" / "store.sqlite3"


@pytest.fixture
def store(path):
    """An open store."""
    opened = SqliteStore(path)
    yield opened
    opened.close()


def _query(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def _change(path, statement):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def _modes(path):
    return {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}


# -- the file -------------------------------------------------------------------------


def test_files_are_private_to_their_owner_when_they_are_made(store, path):
    store.services.add(a_service())

    assert set(_modes(path).values()) == {0o600}
    assert f"{path.name}-wal" in _modes(path)


def test_file_becomes_private_when_it_was_readable_for_others(path):
    SqliteStore(path).close()
    path.chmod(0o644)

    SqliteStore(path).close()

    assert _modes(path)[path.name] == 0o600


def test_commits_reach_the_disk_before_they_return(store, path):
    assert store._database.row("PRAGMA synchronous") == (2,)
    assert store._database.row("PRAGMA journal_mode") == ("wal",)


def test_one_file_holds_everything_when_the_store_was_closed(path):
    store = SqliteStore(path)
    store.services.add(a_service())
    store.close()

    copy = path.with_name("copy.sqlite3")
    shutil.copy(path, copy)

    reopened = SqliteStore(copy)
    assert reopened.services.count() == 1
    reopened.close()


def test_each_index_is_used_when_pages_are_read(store):
    where = "WHERE state = 'running' AND (created_at, id) > ('a', 'b')"
    plan = store._database.rows(
        f"EXPLAIN QUERY PLAN SELECT body FROM instance {where} ORDER BY created_at, id LIMIT 9"  # noqa: S608
    )

    assert [row[3] for row in plan] == [
        "SEARCH instance USING INDEX instance_by_state (state=? AND (created_at,id)>(?,?))"
    ]


def test_connections_of_finished_threads_are_closed(store):
    thread = threading.Thread(target=store.ping)

    thread.start()
    thread.join()

    assert len(store._database._sessions) == 1


def _hasty(action, path):
    """Leave the store while threads use it; return what they were told."""
    child = subprocess.run(
        [sys.executable, "-m", "testing.contract.hasty", action, str(path)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
        text=True,
    )
    return child.stdout.split()


def test_threads_in_the_middle_of_statements_are_told_when_the_store_is_closed(path):
    assert _hasty("close", path) == ["store_unavailable"] * 3


def test_process_may_end_while_threads_are_in_the_middle_of_statements(path):
    _hasty("leave", path)

    assert _query(path, "PRAGMA integrity_check") == [("ok",)]


# -- versions -----------------------------------------------------------------------------


def _add_colour(connection):
    connection.execute("ALTER TABLE service ADD COLUMN colour TEXT")


def _paint(connection):
    connection.execute("UPDATE service SET colour = 'red'")


NOW = CURRENT.version
NEXT = Schema(version=NOW + 2, create=CURRENT.create, steps={NOW: _add_colour, NOW + 1: _paint})


def test_new_file_has_the_current_version(store, path):
    assert _query(path, "PRAGMA user_version") == [(CURRENT.version,)]


def test_newer_file_is_refused_and_left_alone(path):
    SqliteStore(path).close()
    SqliteStore(path, schema=NEXT).close()
    path.chmod(0o640)
    before = path.read_bytes()

    with pytest.raises(SchemaTooNew) as caught:
        SqliteStore(path)

    assert (caught.value.found, caught.value.supported) == (NOW + 2, NOW)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o640


def test_ping_tells_when_a_newer_pycloud_changed_the_file_meanwhile(store, path):
    SqliteStore(path, schema=NEXT).close()

    with pytest.raises(SchemaTooNew):
        store.ping()


def test_older_file_is_migrated_after_a_backup_was_made(path):
    older = SqliteStore(path)
    added = older.services.add(a_service())
    older.close()

    newer = SqliteStore(path, schema=NEXT)

    backup = path.with_name(f"store.sqlite3.backup-v{NOW}")
    assert newer.services.get(added.id) == added
    assert _query(path, "SELECT colour FROM service") == [("red",)]
    assert _query(path, "PRAGMA user_version") == [(NOW + 2,)]
    newer.close()
    assert backup.stat().st_mode & 0o777 == 0o600
    restored = SqliteStore(backup)
    assert restored.services.get(added.id) == added
    restored.close()


def test_records_of_version_1_are_everybodys_when_it_is_migrated(path):
    older = SqliteStore(path, schema=Schema(version=1, create=CURRENT.create))
    instance = older.instances.add(an_instance(host_id=HostId("local")))
    job = older.jobs.add(a_job())
    older.close()
    _change(path, "UPDATE job SET body = json_remove(body, '$.host_id')")

    newer = SqliteStore(path)

    assert newer.instances.get(instance.id).host_id == UNTOLD
    assert newer.jobs.get(job.id).host_id == UNTOLD
    newer.close()
    assert path.with_name("store.sqlite3.backup-v1").exists()


def test_older_file_with_an_unmerged_journal_is_backed_up_whole(path):
    older = SqliteStore(path)
    added = older.services.add(a_service())

    SqliteStore(path, schema=NEXT).close()

    older.close()
    restored = SqliteStore(path.with_name(f"store.sqlite3.backup-v{NOW}"))
    assert restored.services.get(added.id) == added
    restored.close()


def test_migration_changes_nothing_when_a_step_fails(path):
    SqliteStore(path).close()

    def fail(connection):
        connection.execute("SELECT * FROM no_such_table")

    broken = Schema(version=NOW + 2, create=CURRENT.create, steps={NOW: _add_colour, NOW + 1: fail})
    with pytest.raises(StoreError):
        SqliteStore(path, schema=broken)

    assert _query(path, "PRAGMA user_version") == [(NOW,)]
    SqliteStore(path).close()
    SqliteStore(path, schema=NEXT).close()


def test_migration_happens_once_when_several_threads_open_the_file(path):
    SqliteStore(path).close()
    errors = []

    def open_and_close():
        try:
            SqliteStore(path, schema=NEXT).close()
        except CloudletError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=open_and_close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert _query(path, "PRAGMA user_version") == [(NOW + 2,)]


def test_database_of_another_program_is_refused_and_left_alone(path):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmark (url TEXT)")
    path.chmod(0o644)
    before = path.read_bytes()

    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)

    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644


# -- trouble ------------------------------------------------------------------------------


def test_damaged_file_is_reported_with_what_to_do(path):
    path.parent.mkdir()
    path.write_bytes(b"This is not a database, but it is long enough to be one. " * 100)

    with pytest.raises(StoreError, match="put a backup in its place"):
        SqliteStore(path)


def test_damaged_page_is_reported_when_it_is_read(path):
    store = SqliteStore(path)
    for _ in range(200):
        store.messages.add(a_message(message="x" * 500))
    store.close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xa5" * (len(content) - 4096 * 2)
    path.write_bytes(content)

    with pytest.raises(StoreError), closing(SqliteStore(path)) as damaged:
        damaged.messages.find()


def test_document_of_another_version_is_reported_when_it_is_read(store, path):
    added = store.services.add(a_service())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE service SET body = json_set(body, '$.colour', 'red')")

    with pytest.raises(StoreError, match="unknown field 'colour'"):
        store.services.get(added.id)


def test_folder_in_place_of_the_file_is_reported(path):
    path.mkdir(parents=True)

    with pytest.raises(StoreUnavailable, match="check that it is a file"):
        SqliteStore(path)


def test_file_in_place_of_the_folder_is_reported(path):
    path.parent.write_text("in the way")

    with pytest.raises(StoreUnavailable, match="check its folder"):
        SqliteStore(path)


def test_ping_tells_when_the_file_was_removed_under_the_server(store, path):
    path.unlink()

    with pytest.raises(StoreUnavailable):
        store.ping()


def test_ping_tells_when_the_file_was_replaced_under_the_server(store, path):
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)

    with pytest.raises(StoreUnavailable, match="restart the server"):
        store.ping()


def test_write_says_that_the_store_is_locked_when_another_program_keeps_it(path, monkeypatch):
    monkeypatch.setattr(sqlite_database, "BUSY_TIMEOUT_S", 0.05)
    store = SqliteStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnavailable, match="which other program holds it"):
            store.services.add(a_service())

        assert store.services.find().items == ()
    assert store.services.add(a_service()).generation == 1
    store.close()


# -- a full disk --------------------------------------------------------------------------


def test_write_says_that_the_disk_is_full_and_leaves_nothing_behind(store):
    store.services.add(a_service())
    (pages,) = store._database.row("PRAGMA page_count")
    store._database.row(f"PRAGMA max_page_count = {pages}")
    revision = store.messages.revision()

    with pytest.raises(InsufficientStorage):
        store.messages.add(a_message(id="large", message="x" * 100_000))

    with pytest.raises(NotFound):
        store.messages.get("large")
    assert store.messages.revision() == revision
    assert store.services.count() == 1


def test_store_works_again_when_there_is_room_again(store):
    (pages,) = store._database.row("PRAGMA page_count")
    store._database.row(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(InsufficientStorage):
        store.events.append(an_event(data={"large": "x" * 100_000}))

    store._database.row("PRAGMA max_page_count = 1000000")

    assert store.events.append(an_event()).sequence == 1


def _cramped(action, path, *, limit_bytes):
    """Run an action in a process that may write no more than this into one file."""
    child = subprocess.run(
        [sys.executable, "-m", "testing.contract.cramped", action, str(path), str(limit_bytes)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
        text=True,
    )
    return child.stdout.split()


def test_acknowledged_records_survive_when_the_system_refuses_to_write_more(path):
    *acknowledged, last = _cramped("fill", path, limit_bytes=600_000)

    assert last == "insufficient_storage"
    assert len(acknowledged) > 5
    with closing(SqliteStore(path)) as store:
        assert [message.id for message in store.messages.find().items] == acknowledged
        store.messages.add(a_message())
    assert _query(path, "PRAGMA integrity_check") == [("ok",)]


def test_migration_is_refused_and_changes_nothing_when_the_backup_does_not_fit(path):
    with closing(SqliteStore(path)) as store:
        for _ in range(40):
            store.messages.add(a_message(message="x" * 20_000))

    printed = _cramped("migrate", path, limit_bytes=300_000)

    assert printed == ["insufficient_storage"]
    assert list(path.parent.glob("*.backup-*")) == []
    with closing(SqliteStore(path)) as store:
        assert store.messages.count() == 40


# -- a killed writer ------------------------------------------------------------------------


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
def test_store_is_whole_when_its_writer_was_killed(path, acknowledged):
    with contender("write_until_killed", f"sqlite:///{path}", name="w") as writer:
        writer.stdin.write("go\n")
        writer.stdin.flush()
        ids = [writer.stdout.readline().strip() for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split("\n")
        # The last line may be cut off; what it was about to say is not claimed.
        ids.extend(line for line in rest[:-1])

    with closing(SqliteStore(path)) as store:
        found = {message.id: message for message in store.messages.find(limit=10_000).items}
        removed = {f"w-{number - 1:06d}" for number in range(2, len(ids), 3)}
        assert set(ids) - removed <= found.keys()
        assert all(found[name].message == "changed" for name in set(ids) - removed)
        # At most one round was under way.
        assert len(found.keys() - set(ids)) <= 1
        assert 0 <= store.events.latest() - len(ids) <= 1
        store.messages.add(a_message())
    assert _query(path, "PRAGMA integrity_check") == [("ok",)]


def test_other_servers_go_on_when_one_is_killed_while_it_writes(path):
    with (
        closing(SqliteStore(path)) as store,
        contender("write_until_killed", f"sqlite:///{path}", name="w") as writer,
    ):
        writer.stdin.write("go\n")
        writer.stdin.flush()
        writer.stdout.readline()

        writer.kill()
        writer.wait()

        added = store.instances.add(an_instance())
        assert store.instances.replace(replace(added, users=2)).generation == 2


def test_tables_hold_the_document_as_json_that_people_can_read(store, path):
    added = store.jobs.add(a_job())

    ((body,),) = _query(path, "SELECT body FROM job")

    assert json.loads(body)["id"] == added.id
