# SPDX-License-Identifier: Apache-2.0
"""Immutable content on disk, by its SHA-256, and the staging areas where it is made.

A staged file becomes content by a rename inside one file system, so a kill at any moment
leaves either the staged file or the whole blob, and files with holes keep them: the RAM
file of a guest is gigabytes long and mostly hole. Nothing here knows what content means.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.disk_errors import disk_errors, translated
from pycloud.core.model.catalog import BlobRef
from pycloud.core.model.fleet import StorageFacts
from pycloud.core.model.identifiers import BlobId, checked_id
from pycloud.core.ports import Report
from pycloud.errors import (
    BlobCorrupt,
    Conflict,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    StoreError,
)

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ZEROS = bytes(_CHUNK_BYTES)
_SECOND_NAME = ".shared"
_OWNER_ONLY = 0o600


class DiskBlobs:
    """The Blobs port on a data directory; `mode` is given to content when it is adopted."""

    def __init__(self, data: DataDirectory, *, mode: int = 0o444) -> None:
        self._data = data
        self._mode = mode

    @contextlib.contextmanager
    def exclusive(self, area: str) -> Iterator[None]:
        """Have a staging area to oneself, among all threads and processes on this disk.

        Ends with the process at the latest. Raises Conflict at once if another one has it.
        """
        path = self._data.area_lock_path(area)
        with disk_errors(f"the staging area {area} cannot be locked"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
        try:
            with disk_errors(f"the staging area {area} cannot be locked"):
                # Belongs to this opening of the file, and so keeps threads out as well.
                is_taken = not _locked(fd)
            if is_taken:
                raise Conflict(f"staging area {area} is being written by another")
            yield
        finally:
            os.close(fd)

    def append(
        self, area: str, name: str, stream: BinaryIO, *, offset_bytes: int, limit_bytes: int
    ) -> int:
        """Write the stream at `offset_bytes` of a staged file; return the bytes written.

        All or nothing: on any error the file ends at `offset_bytes` again, or is gone if
        it was not there. Errors of the stream itself pass unchanged. Raises QuotaExceeded,
        InsufficientStorage, InvalidInput for an offset behind the end of the file.
        """
        path = self._data.staged_path(area, name)
        with contextlib.ExitStack() as undo:
            with disk_errors(f"the staged file {name} cannot be opened"):
                existed = path.exists()
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, fd)
            if not existed:
                undo.callback(path.unlink, missing_ok=True)
            _cut(fd, offset_bytes)
            undo.callback(os.ftruncate, fd, offset_bytes)
            written = _copy_in(fd, stream, offset_bytes=offset_bytes, limit_bytes=limit_bytes)
            with disk_errors(f"the staged file {name} cannot be made durable"):
                os.fsync(fd)
                sync_directory(path.parent)
            undo.pop_all()
        os.close(fd)
        return written

    def open_staged(self, area: str, name: str) -> BinaryIO:
        """Open a staged file for reading; the caller closes it. Raises NotFound."""
        return os.fdopen(self._open_staged(area, name), "rb")

    def adopt(self, area: str, name: str, *, report: Report | None = None) -> BlobRef:
        """Hash a staged file and move it into the content store; idempotent by content.

        Durable on return. Raises NotFound when there is no such staged file.
        """
        fd = self._open_staged(area, name)
        try:
            with disk_errors(f"the staged file {name} cannot be adopted"):
                ref = _hashed(fd, report)
                os.fchmod(fd, self._mode)
                os.fsync(fd)
                self._move(self._data.staged_path(area, name), ref)
        finally:
            os.close(fd)
        return ref

    def share(self, area: str, name: str) -> BlobRef:
        """Adopt a staged file under a second name, so that the first one stays.

        Durable on return. Raises NotFound when there is no such staged file.
        """
        os.close(self._open_staged(area, name))
        staged = self._data.staged_path(area, name)
        second = staged.with_name(f"{name}{_SECOND_NAME}")
        with disk_errors(f"the staged file {name} cannot be shared"):
            second.unlink(missing_ok=True)
            second.hardlink_to(staged)
        return self.adopt(area, second.name)

    def discard(self, area: str) -> None:
        """Remove a staging area with all it holds; idempotent."""
        path = self._data.area_path(area)
        with (
            disk_errors(f"the staging area {area} cannot be removed"),
            contextlib.suppress(FileNotFoundError),
        ):
            shutil.rmtree(path)

    def keep_only(self, area: str, name: str) -> None:
        """Remove all other files of a staging area; idempotent, also without the area.

        Who has the area to itself keeps it: the file for that is no staged one.
        """
        path, kept = self._data.area_path(area), checked_id(name, pointer="name")
        with disk_errors(f"the staging area {area} cannot be tidied"):
            for staged in path.glob("[!.]*"):
                if staged.name != kept:
                    staged.unlink(missing_ok=True)

    def areas(self) -> tuple[str, ...]:
        """Return the owners of all staging areas."""
        with (
            disk_errors("the staging areas cannot be listed"),
            os.scandir(self._data.staging_dir()) as entries,
        ):
            return tuple(sorted(entry.name for entry in entries if entry.is_dir()))

    def open(self, blob_id: BlobId) -> BinaryIO:
        """Open content for reading; the caller closes it. Raises NotFound."""
        path = self._data.blob_path(blob_id)
        return os.fdopen(_opened(path, kind="blob", identifier=blob_id), "rb")

    def verify(self, blob_id: BlobId) -> None:
        """Hash the content again. Raises BlobCorrupt, NotFound."""
        fd = _opened(self._data.blob_path(blob_id), kind="blob", identifier=blob_id)
        try:
            with disk_errors(f"the content {blob_id} cannot be read"):
                if _hashed(fd, None).id != blob_id:
                    raise BlobCorrupt(blob_id)
        finally:
            os.close(fd)

    def adoption(self, blob_id: BlobId) -> str:
        """Return when the content came in last; empty while there is no such content."""
        with disk_errors(f"the content {blob_id} cannot be looked at"):
            return _adoption(self._data.blob_path(blob_id))

    def remove(self, blob_id: BlobId, *, adoption: str | None = None) -> None:
        """Remove content; idempotent. A process that has it open keeps what it has.

        With `adoption`, what came in again since that was read stays.
        """
        path = self._data.blob_path(blob_id)
        with disk_errors(f"the content {blob_id} cannot be removed"):
            with self._coming_and_going():
                if adoption is not None and _adoption(path) != adoption:
                    return
                path.unlink(missing_ok=True)
            sync_directory(path.parent)

    def stored(self) -> Iterator[BlobRef]:
        """Iterate over everything in the content store; foreign files are passed over."""
        with disk_errors("the content store cannot be listed"):
            prefixes = sorted(path for path in self._data.blobs_dir().iterdir() if path.is_dir())
            for prefix in prefixes:
                for path in sorted(prefix.iterdir()):
                    if _DIGEST.fullmatch(path.name) and path.name.startswith(prefix.name):
                        with contextlib.suppress(FileNotFoundError):
                            size_bytes = path.stat().st_size
                            yield BlobRef(id=BlobId(path.name), size_bytes=size_bytes)

    def storage(self) -> StorageFacts:
        """Return the room on the disk, as far as an ordinary user may fill it."""
        with disk_errors("the room on the disk cannot be read"):
            facts = os.statvfs(self._data.root)
        return StorageFacts(
            total_bytes=facts.f_blocks * facts.f_frsize,
            free_bytes=facts.f_bavail * facts.f_frsize,
        )

    def _open_staged(self, area: str, name: str) -> int:
        path = self._data.area_path(area) / checked_id(name, pointer="name")
        return _opened(path, kind="staged file", identifier=f"{area}/{name}")

    def _move(self, staged: Path, ref: BlobRef) -> None:
        """Make the staged file the content, unless the same content is there already."""
        target = self._data.blob_path(ref.id)
        with self._coming_and_going():
            try:
                present = target.stat().st_size == ref.size_bytes
            except FileNotFoundError:
                present = False
            # Either way it has come in now, which `adoption` tells.
            os.utime(target if present else staged)
            if present:
                staged.unlink()
            else:
                staged.rename(target)
        if not present:
            sync_directory(target.parent)
            sync_directory(target.parent.parent)
        sync_directory(staged.parent)

    @contextlib.contextmanager
    def _coming_and_going(self) -> Iterator[None]:
        """Let no content come in while some is removed, by any process; for moments only."""
        fd = os.open(
            self._data.content_lock_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _adoption(path: Path) -> str:
    try:
        return str(path.stat().st_mtime_ns)
    except FileNotFoundError:
        return ""


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def data_runs(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the parts of a file that are not holes, in order.

    On a file system that knows no holes there is one run over everything.
    """
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            # ENXIO: only a hole is left. Anything else was said of every byte by fstat already.
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        yield start, end
        position = end


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path, *, kind: str, identifier: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(kind, identifier) from exc
    except OSError as exc:
        raise translated(exc, f"the {kind} {identifier} cannot be opened") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFound(kind, identifier)
    return fd


def _cut(fd: int, offset_bytes: int) -> None:
    if not 0 <= offset_bytes <= os.fstat(fd).st_size:
        raise InvalidInput("the offset lies behind the end of what was received", pointer="offset")
    with disk_errors("a staged file cannot be cut"):
        os.ftruncate(fd, offset_bytes)


def _copy_in(fd: int, stream: BinaryIO, *, offset_bytes: int, limit_bytes: int) -> int:
    position = offset_bytes
    while chunk := stream.read(_CHUNK_BYTES):
        if position + len(chunk) > limit_bytes:
            raise QuotaExceeded(
                f"the file is larger than the {limit_bytes} bytes allowed", limit_bytes=limit_bytes
            )
        with disk_errors("what was received cannot be written"):
            write_all(fd, chunk, position)
        position += len(chunk)
    return position - offset_bytes


def write_all(fd: int, chunk: bytes | memoryview, position: int) -> None:
    """Write a whole chunk at a position. Raises OSError."""
    view = memoryview(chunk)
    while view:
        count = os.pwrite(fd, view, position)
        view = view[count:]
        position += count


def _hashed(fd: int, report: Report | None) -> BlobRef:
    size_bytes = os.fstat(fd).st_size
    digest = hashlib.sha256()
    position = 0
    for chunk in _chunks(fd, size_bytes):
        digest.update(chunk)
        position += len(chunk)
        if report is not None:
            report(position, size_bytes)
    return BlobRef(id=BlobId(digest.hexdigest()), size_bytes=size_bytes)


def _chunks(fd: int, size_bytes: int) -> Iterator[bytes | memoryview]:
    """Yield a file from start to end; holes as the zeros they read as, without reading them."""
    position = 0
    for start, end in chain(data_runs(fd, size_bytes), [(size_bytes, size_bytes)]):
        for at in range(position, start, _CHUNK_BYTES):
            yield memoryview(_ZEROS)[: start - at]
        for at in range(start, end, _CHUNK_BYTES):
            wanted = min(end - at, _CHUNK_BYTES)
            chunk = os.pread(fd, wanted, at)
            if len(chunk) != wanted:
                raise StoreError("a file became shorter while it was read")
            yield chunk
        position = end
