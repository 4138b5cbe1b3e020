# SPDX-License-Identifier: Apache-2.0
"""The data directory: who may read it, how much fits, and the store of records in it."""

import os
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pycloud.adapters.store.kinds import SCHEMA_VERSION
from pycloud.adapters.store.mongo_database import stored_version
from pycloud.adapters.store.sqlite_schema import APPLICATION_ID
from pycloud.core.access import ADMIN_TOKEN
from pycloud.core.model.diagnosis import Finding, Verdict
from pycloud.errors import SchemaTooNew, StoreError
from pycloud.settings import Settings

_GIB = 1024**3
_LEAST_BYTES = 256 * 1024 * 1024
"""Below this the server says that it is not ready."""
_LITTLE_BYTES = 5 * _GIB
_OTHERS = 0o077


def data_directory(settings: Settings) -> Iterator[Finding]:
    """Say whether the data directory can be used, and by nobody else."""
    root = settings.data_dir
    quoted = shlex.quote(str(root))
    name = "data directory"
    if not root.exists():
        parent = _nearest(root)
        if os.access(parent, os.W_OK | os.X_OK):
            detail = f"{root} will be made at the first start"
            yield Finding(name=name, verdict=Verdict.OK, detail=detail)
        else:
            yield Finding(
                name=name,
                verdict=Verdict.FAIL,
                detail=f"{root} is missing and {parent} may not be written to",
                fix=f"sudo install --directory --mode=0700 --owner=$USER {quoted}",
            )
        return
    status = root.stat()
    if not root.is_dir() or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            name=name,
            verdict=Verdict.FAIL,
            detail=f"{root} is not a directory that user {os.geteuid()} may write to",
            fix=f"sudo chown --recursive $USER {quoted}",
        )
    elif stat.S_IMODE(status.st_mode) & _OTHERS:
        yield Finding(
            name=name,
            verdict=Verdict.WARN,
            detail=f"{root} is open to other users (mode {stat.S_IMODE(status.st_mode):04o})",
            fix=f"chmod 0700 {quoted}",
        )
    else:
        yield Finding(name=name, verdict=Verdict.OK, detail=f"{root}, for its owner alone")


def token(settings: Settings) -> Iterator[Finding]:
    """Say whether the administrator's token is a secret."""
    path = settings.data_dir / ADMIN_TOKEN
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        detail = "will be made at the first start"
        yield Finding(name="token", verdict=Verdict.OK, detail=detail)
        return
    except PermissionError:
        yield Finding(
            name="token",
            verdict=Verdict.WARN,
            detail=f"{path} belongs to another user; commands that change the cloudlet need it",
            fix="run pycloud as that user, or give --token",
        )
        return
    if mode & _OTHERS:
        yield Finding(
            name="token",
            verdict=Verdict.FAIL,
            detail=f"other users can read the administrator's token (mode {mode:04o})",
            fix=f"rm {shlex.quote(str(path))}   # and restart the server, which makes a new one",
        )
    else:
        yield Finding(name="token", verdict=Verdict.OK, detail=f"{path}, for its owner alone")


def space(settings: Settings) -> Iterator[Finding]:
    """Say how much room there is for disks and memory states."""
    place = _nearest(settings.data_dir)
    usage = shutil.disk_usage(place)
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB are free below {place}"
    if usage.free >= _LITTLE_BYTES:
        yield Finding(name="disk space", verdict=Verdict.OK, detail=detail)
        return
    yield Finding(
        name="disk space",
        verdict=Verdict.WARN if usage.free >= _LEAST_BYTES else Verdict.FAIL,
        detail=detail + "; each service takes its disk, its memory and room to convert them",
        fix="pycloud service list   # remove what is not used, or set pycloud.data_dir to a"
        " larger disk",
    )


def store(settings: Settings) -> Iterator[Finding]:
    """Say whether the records can be read, without making or changing a store."""
    if settings.store == "memory:":
        yield Finding(
            name="store",
            verdict=Verdict.WARN,
            detail="pycloud.store = memory: forgets everything when the server ends",
            fix="set pycloud.store = sqlite:///",
        )
    elif settings.store.startswith("mongodb"):
        yield _mongo(settings.store)
    else:
        named = settings.store.removeprefix("sqlite:///")
        yield sqlite_file(
            Path(named).expanduser() if named else settings.data_dir / "store.sqlite3"
        )


def sqlite_file(path: Path) -> Finding:
    """Judge a file of the embedded store; it is opened for reading only."""
    if not path.exists():
        detail = f"{path} will be made at the first start"
        return Finding(name="store", verdict=Verdict.OK, detail=detail)
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as exc:
        return Finding(
            name="store",
            verdict=Verdict.FAIL,
            detail=f"{path} cannot be read: {exc}",
            fix="see who owns it and whether its disk is sound; restore it from a backup if need be",
        )
    if application not in {0, APPLICATION_ID}:
        return Finding(
            name="store",
            verdict=Verdict.FAIL,
            detail=f"{path} belongs to another program",
            fix="set pycloud.store = sqlite:////PATH/OF/ANOTHER_FILE",
        )
    if version > SCHEMA_VERSION:
        return Finding(
            name="store",
            verdict=Verdict.FAIL,
            detail=SchemaTooNew(found=version, supported=SCHEMA_VERSION).message,
            fix=f"ls {shlex.quote(str(path))}.backup-v*",
        )
    told = f"SQLite file {path}, schema {version}"
    if 0 < version < SCHEMA_VERSION:
        told += f"; the next start brings it to {SCHEMA_VERSION} and keeps a backup"
    return Finding(name="store", verdict=Verdict.OK, detail=told)


def _mongo(url: str) -> Finding:
    try:
        version = stored_version(url)
    except SchemaTooNew as exc:
        return Finding(
            name="store",
            verdict=Verdict.FAIL,
            detail=exc.message,
            fix=f"look in the database for collections named backup_v{SCHEMA_VERSION}_...",
        )
    except StoreError as exc:
        return Finding(
            name="store",
            verdict=Verdict.FAIL,
            detail=exc.message,
            fix="see whether the MongoDB server runs and the URL in pycloud.store is right",
        )
    told = "the MongoDB server answers"
    if version == 0:
        told += "; its database will be filled at the first start"
    else:
        told += f", schema {version}"
    if 0 < version < SCHEMA_VERSION:
        told += f"; the next start brings it to {SCHEMA_VERSION} and keeps a backup,"
        told += " and servers of an older version have to be stopped before"
    return Finding(name="store", verdict=Verdict.OK, detail=told)


def _nearest(path: Path) -> Path:
    """Return the path itself or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
