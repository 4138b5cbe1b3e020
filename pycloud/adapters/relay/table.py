# SPDX-License-Identifier: Apache-2.0
"""Which owner's ports are to be relayed: one small file each, named after the owner.

A file each, because giving up ports has to work on a full disk, too. Callers hold the
lock of `client.py`. Nothing is flushed to the disk, because no guest survives what would
lose it, and publishing is part of a start that takes a few milliseconds.
"""

from collections.abc import Sequence
from pathlib import Path

from pycloud.adapters.disk_errors import disk_errors
from pycloud.core.model.identifiers import InstanceId, checked_id

_UNFINISHED = ".unfinished"


class ForwardTable:
    """The forwards of one data directory, shared by all its servers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ports_of(self, owner: InstanceId) -> tuple[int, ...]:
        """Return an owner's ports, none if it has none."""
        return _read(self._path(owner))

    def put(self, owner: InstanceId, ports: Sequence[int]) -> None:
        """Let an owner have these ports and no others. Raises InsufficientStorage, StoreError."""
        path = self._path(owner)
        unfinished = self._directory / _UNFINISHED
        with disk_errors("the table of forwards cannot be written"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.write_text(" ".join(map(str, ports)) + "\n", encoding="ascii")
            unfinished.replace(path)

    def remove(self, owner: InstanceId) -> bool:
        """Take an owner's ports away; return whether it had any."""
        with disk_errors("the table of forwards cannot be changed"):
            try:
                self._path(owner).unlink()
            except FileNotFoundError:
                return False
        return True

    def all_ports(self) -> frozenset[int]:
        """Return the ports of all owners. Raises StoreError."""
        with disk_errors("the table of forwards cannot be read"):
            if not self._directory.is_dir():
                return frozenset()
            paths = [path for path in self._directory.iterdir() if path.name != _UNFINISHED]
        return frozenset(port for path in paths for port in _read(path))

    def _path(self, owner: InstanceId) -> Path:
        return self._directory / checked_id(owner, pointer="owner")


def _read(path: Path) -> tuple[int, ...]:
    with disk_errors("the table of forwards cannot be read"):
        try:
            words = path.read_text(encoding="ascii", errors="replace").split()
        except FileNotFoundError:
            return ()
    return tuple(int(word) for word in words if word.isascii() and word.isdigit())
