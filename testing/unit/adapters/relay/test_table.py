# SPDX-License-Identifier: Apache-2.0
"""The table of forwards on a real file system."""

import os
import stat

import pytest

from pycloud.adapters.relay.table import ForwardTable
from pycloud.errors import InvalidInput, StoreError


@pytest.fixture
def table(tmp_path):
    return ForwardTable(tmp_path / "forwards")


def test_table_is_empty_when_it_was_never_written(table):
    assert table.all_ports() == frozenset()


def test_table_holds_the_ports_of_all_owners(table):
    table.put("a", [1001, 1002])
    table.put("b", [1003])

    assert table.all_ports() == {1001, 1002, 1003}


def test_table_replaces_an_owners_ports_when_they_are_put_again(table):
    table.put("a", [1001])

    table.put("a", [1002])

    assert table.ports_of("a") == (1002,)


def test_table_says_whether_an_owner_had_ports_when_they_are_removed(table):
    table.put("a", [1001])

    assert [table.remove("a"), table.remove("a")] == [True, False]
    assert table.all_ports() == frozenset()


def test_table_is_the_same_when_another_server_opens_it(table, tmp_path):
    table.put("a", [1001])

    assert ForwardTable(tmp_path / "forwards").ports_of("a") == (1001,)


def test_table_ignores_what_an_interrupted_write_left(table, tmp_path):
    table.put("a", [1001])
    (tmp_path / "forwards" / ".unfinished").write_text("1002")

    assert table.all_ports() == {1001}


def test_table_reads_no_ports_out_of_a_damaged_entry(table, tmp_path):
    table.put("a", [1001])
    (tmp_path / "forwards" / "b").write_bytes(b"\xff\x00 -7 \xc2\xb2 x")

    assert table.all_ports() == {1001}


def test_table_refuses_an_owner_that_is_no_plain_name(table):
    with pytest.raises(InvalidInput):
        table.put("../a", [1001])


def test_table_is_its_owners_alone(table, tmp_path):
    table.put("a", [1001])

    assert stat.S_IMODE((tmp_path / "forwards").stat().st_mode) == 0o700


def test_table_says_what_to_check_when_its_place_is_taken(tmp_path):
    (tmp_path / "forwards").write_text("a file")

    with pytest.raises(StoreError, match=r"pycloud\.data_dir"):
        ForwardTable(tmp_path / "forwards").put("a", [1001])


def test_table_gives_ports_up_without_needing_room(table, tmp_path, monkeypatch):
    table.put("a", [1001])

    def no_room(*_arguments, **_options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pathlib.Path.write_text", no_room)
    monkeypatch.setattr("pathlib.Path.open", no_room)

    assert table.remove("a")
