# SPDX-License-Identifier: Apache-2.0
"""A host keeps its id, whatever it is called, and two hosts never share one."""

import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.host_identity import host_id_of
from pycloud.core.model.identifiers import checked_id
from pycloud.errors import StoreError


def test_host_id_begins_with_the_machines_name_and_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "edge-7.example.org")

    host_id = host_id_of(DataDirectory(tmp_path))

    assert host_id.startswith("edge-7-")
    assert stat.S_IMODE((tmp_path / "host.id").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["host.id"]


def test_host_id_stays_when_the_machine_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host_id_of(DataDirectory(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")

    assert host_id_of(DataDirectory(tmp_path)) == before


def test_two_data_directories_on_one_machine_are_two_hosts(tmp_path: Path) -> None:
    assert host_id_of(DataDirectory(tmp_path / "a")) != host_id_of(DataDirectory(tmp_path / "b"))


def test_servers_that_start_at_once_agree_on_one_id(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: host_id_of(DataDirectory(tmp_path)), range(32)))

    assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["", "ümläut", "-", "a b/c", "x" * 64, "_under.dots"])
def test_any_machine_name_makes_a_well_formed_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)

    assert checked_id(host_id_of(DataDirectory(tmp_path)))


@pytest.mark.parametrize("text", ["", "two words", "../up"])
def test_file_that_holds_no_id_is_reported_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.id").write_text(text, encoding="ascii")

    with pytest.raises(StoreError, match=r"host\.id"):
        host_id_of(DataDirectory(tmp_path))
