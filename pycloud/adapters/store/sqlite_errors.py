# SPDX-License-Identifier: Apache-2.0
"""What errors of SQLite and of its file mean to pycloud, and what to do about them."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pycloud.errors import CloudletError, InsufficientStorage, StoreError, StoreUnavailable

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for those of others, who need less than a millisecond each."""

CLOSED = "the store was closed"


@contextmanager
def translating(path: Path) -> Iterator[None]:
    """Raise errors of pycloud for those of SQLite and of the file system."""
    try:
        yield
    except sqlite3.Error as exc:
        raise translated(exc, path) from exc
    except OSError as exc:
        raise StoreUnavailable(f"cannot use {path}: {exc.strerror}; check its folder") from exc


def translated(exc: sqlite3.Error, path: Path) -> CloudletError:
    """Return what an error of SQLite means to pycloud."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        # The module itself raised it: a connection used after close, or a bad parameter.
        closed = isinstance(exc, sqlite3.ProgrammingError) and "closed" in str(exc)
        return StoreUnavailable(CLOSED) if closed else StoreError(f"SQLite: {exc}")
    # An extended code holds the primary code in its lowest byte.
    error_class, advice = _MEANINGS.get(code) or _MEANINGS.get(code & 0xFF) or _OTHER
    return error_class(f"the store {path}: {exc}; {advice}")


def busy(path: Path) -> str:
    """Return the message for a store that others do not let go of."""
    return f"the store {path} was busy for {BUSY_TIMEOUT_S:g} s; {_FIND_HOLDER}"


_Meaning = tuple[type[CloudletError], str]

_FIND_HOLDER = "find out (with fuser, say) which other program holds it, and end that"
_OTHER: _Meaning = (StoreError, "this is unexpected and worth a report")
_WRITE_FAILED: _Meaning = (
    InsufficientStorage,
    "check the room on its disk, the quota of this user and the health of the disk",
)
_NOT_ACCESSIBLE: _Meaning = (
    StoreUnavailable,
    "check that it is a file and that this user may write to it and to its folder",
)
_DAMAGED: _Meaning = (
    StoreError,
    "it is damaged: stop all servers, move it and its -wal away and put a backup in its place",
)
_MEANINGS: dict[int, _Meaning] = {
    sqlite3.SQLITE_FULL: (InsufficientStorage, "make room and try again"),
    # SQLite says FULL for a full disk only; a quota or a limit fails the write itself.
    sqlite3.SQLITE_IOERR_WRITE: _WRITE_FAILED,
    sqlite3.SQLITE_IOERR_SHMSIZE: _WRITE_FAILED,
    sqlite3.SQLITE_IOERR_TRUNCATE: _WRITE_FAILED,
    sqlite3.SQLITE_IOERR_FSYNC: _WRITE_FAILED,
    sqlite3.SQLITE_IOERR: (StoreUnavailable, "check the health of its disk"),
    sqlite3.SQLITE_BUSY: (StoreUnavailable, _FIND_HOLDER),
    sqlite3.SQLITE_LOCKED: (StoreUnavailable, _FIND_HOLDER),
    sqlite3.SQLITE_CANTOPEN: _NOT_ACCESSIBLE,
    sqlite3.SQLITE_PERM: _NOT_ACCESSIBLE,
    sqlite3.SQLITE_READONLY: _NOT_ACCESSIBLE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
