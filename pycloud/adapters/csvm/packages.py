# SPDX-License-Identifier: Apache-2.0
"""The Packages port: packs staged files into a `.csvm` and copies a package's members out.

Both ways stream with bounded memory. Nothing is ever extracted: members are known by exact
name, must be regular files, and are copied into new files of the staging area under caps on
their number, their size and how much they may grow. Disk images are not looked into here.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pycloud.adapters.blobs import data_runs, sync_directory, write_all
from pycloud.adapters.csvm import tar
from pycloud.adapters.csvm.description import (
    SIZE_LIMIT_BYTES,
    Description,
    format_description,
    parse_description,
)
from pycloud.adapters.csvm.gzip_stream import PIECE_BYTES, BoundedGzipReader, ParallelGzipWriter
from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.disk_errors import disk_errors
from pycloud.core.model.identifiers import ServiceId, checked_id
from pycloud.core.ports import Report, UnpackedPackage
from pycloud.errors import NotFound, QuotaExceeded, StoreError
from pycloud.settings import Settings

_GIB = 1 << 30
_ZEROS = bytes(PIECE_BYTES)
_DESCRIPTION = "service.json"
_DISK_SUFFIX = ".qcow2"
_STATE_SUFFIX = ".lqs"
_UNPACKED = {_DISK_SUFFIX: "unpacked-disk", _STATE_SUFFIX: "unpacked-state"}
_TRAILER_LIMIT_BYTES = 64 * tar.RECORD_BYTES

# Zeros become holes and do not count; what else a disk holds shrinks tenfold at the very best.
_GROWTH_LIMIT = 200
_GROWTH_ALLOWANCE_BYTES = 64 << 20


class CsvmPackages:
    """Packages in the staging areas of one data directory."""

    def __init__(self, data: DataDirectory, settings: Settings) -> None:
        self._data = data
        self._limit_bytes = settings.max_image_gib * _GIB

    def unpack(
        self,
        area: str,
        name: str,
        *,
        service_id: ServiceId | None = None,
        report: Report | None = None,
    ) -> UnpackedPackage:
        """Copy the members of a staged package beside it.

        Progress is in bytes of the package. Durable on return; after an error nothing but
        the package is left. Raises PackageRefused, QuotaExceeded, InsufficientStorage, NotFound.
        """
        source = self._data.area_path(area) / checked_id(name, pointer="name")
        targets = {key: self._data.staged_path(area, staged) for key, staged in _UNPACKED.items()}
        with contextlib.ExitStack() as undo:
            for path in targets.values():
                path.unlink(missing_ok=True)
                undo.callback(path.unlink, missing_ok=True)
            with _reading(source, f"{area}/{name}") as stream:
                unpacking = _Unpacking(
                    source=_Source(stream, report), targets=targets, limit_bytes=self._limit_bytes
                )
                unpacking.run()
            description = unpacking.checked_description(service_id)
            with disk_errors("what was unpacked cannot be made durable"):
                sync_directory(source.parent)
            undo.pop_all()
        return UnpackedPackage(
            draft=description.draft,
            disk=_UNPACKED[_DISK_SUFFIX],
            state=None if description.state_name is None else _UNPACKED[_STATE_SUFFIX],
        )

    def pack(
        self,
        area: str,
        target: str,
        *,
        content: UnpackedPackage,
        report: Report | None = None,
    ) -> None:
        """Write a package from staged files, readable by old cloudlets.

        They cannot start a Service without a state, but this one can. Progress is in bytes
        of the files. Nothing is left after an error. Raises InsufficientStorage, NotFound.
        """
        disk_name = content.draft.id + _DISK_SUFFIX
        state_name = disk_name + _STATE_SUFFIX if content.state is not None else None
        description = format_description(
            Description(draft=content.draft, disk_name=disk_name, state_name=state_name)
        )
        path = self._data.staged_path(area, target)
        with contextlib.ExitStack() as undo:
            path.unlink(missing_ok=True)
            undo.callback(path.unlink, missing_ok=True)
            with contextlib.ExitStack() as streams:
                files = [(disk_name, streams.enter_context(self._staged(area, content.disk)))]
                if state_name is not None and content.state is not None:
                    state = streams.enter_context(self._staged(area, content.state))
                    files.append((state_name, state))
                with disk_errors("the package cannot be written"):
                    _write_package(path, files, description, report)
            undo.pop_all()

    def _staged(self, area: str, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        path = self._data.area_path(area) / checked_id(name, pointer="name")
        return _reading(path, f"{area}/{name}")


@contextlib.contextmanager
def _reading(path: Path, identifier: str) -> Iterator[BinaryIO]:
    try:
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except FileNotFoundError as exc:
        raise NotFound("staged file", identifier) from exc
    with stream:
        yield stream


# -- unpacking ---------------------------------------------------------------------------


class _Source:
    """The uncompressed content of a package, in exact portions, with progress."""

    def __init__(self, stream: BinaryIO, report: Report | None) -> None:
        self._reader = BoundedGzipReader(stream)
        self._report = report
        self._size_bytes = os.fstat(stream.fileno()).st_size

    @property
    def consumed_bytes(self) -> int:
        """How much of the package was read."""
        return self._reader.consumed_bytes

    def read(self, size_bytes: int) -> bytes:
        """Return exactly this many bytes. Raises PackageRefused at an early end."""
        parts: list[bytes] = []
        missing = size_bytes
        while missing:
            part = self._reader.read(missing)
            if not part:
                raise tar.refused("truncated", "ends too early")
            parts.append(part)
            missing -= len(part)
        if self._report is not None:
            self._report(self.consumed_bytes, self._size_bytes)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Read to the end, where the check sum is; only zeros may follow the archive."""
        for _ in range(_TRAILER_LIMIT_BYTES // tar.BLOCK_BYTES):
            part = self._reader.read(tar.BLOCK_BYTES)
            if not part:
                return
            if any(part):
                break
        raise tar.refused("trailing_data", "goes on behind its end")


@dataclass(slots=True, kw_only=True)
class _Unpacking:
    """One pass over a package."""

    source: _Source
    targets: dict[str, Path]
    limit_bytes: int
    names: dict[str, str] = field(default_factory=dict)
    description: bytes | None = None
    written_bytes: int = 0

    def run(self) -> None:
        """Copy every member to where it belongs."""
        while (member := tar.read_member(self.source.read)) is not None:
            if member.name == _DESCRIPTION:
                self._take_description(member)
            else:
                self._take_file(member)
            self.source.read(member.padding_bytes)
        self.source.finish()

    def checked_description(self, service_id: ServiceId | None) -> Description:
        """Return the description, if it fits the members."""
        if self.description is None:
            raise tar.refused("description", "has no service.json")
        description = parse_description(self.description, service_id=service_id)
        found = (self.names.get(_DISK_SUFFIX), self.names.get(_STATE_SUFFIX))
        named = (description.disk_name, description.state_name)
        if found != named:
            raise tar.refused(
                "members", f"names the files {named} in its service.json but holds {found}"
            )
        return description

    def _take_description(self, member: tar.Member) -> None:
        if self.description is not None:
            raise tar.refused("members", f"holds two files {_DESCRIPTION}")
        if member.size_bytes > SIZE_LIMIT_BYTES:
            raise tar.refused("description", f"has a {_DESCRIPTION} that is too long")
        self.description = self.source.read(member.size_bytes)

    def _take_file(self, member: tar.Member) -> None:
        kind = next((suffix for suffix in self.targets if member.name.endswith(suffix)), None)
        if kind is None or "/" in member.name:
            raise tar.refused("members", f"holds {member.name[:200]!r}, which no package has")
        if kind in self.names:
            raise tar.refused("members", f"holds two files of the kind {kind}")
        if member.size_bytes > self.limit_bytes:
            raise QuotaExceeded(
                f"the package holds a file of {member.size_bytes / _GIB:.1f} GiB;"
                f" {self.limit_bytes // _GIB} GiB are allowed (pycloud.max_image_gib)",
                limit_bytes=self.limit_bytes,
            )
        self.names[kind] = member.name
        with disk_errors("a member of the package cannot be written"):
            fd = os.open(self.targets[kind], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                self._copy(fd, member.size_bytes)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _copy(self, fd: int, size_bytes: int) -> None:
        """Copy content, zeros as holes. Raises PackageRefused if it grows beyond reason."""
        for position in range(0, size_bytes, PIECE_BYTES):
            piece = self.source.read(min(PIECE_BYTES, size_bytes - position))
            if piece == _ZEROS[: len(piece)]:
                continue
            self.written_bytes += len(piece)
            grown = self.written_bytes - _GROWTH_ALLOWANCE_BYTES
            if grown > self.source.consumed_bytes * _GROWTH_LIMIT:
                raise tar.refused("bomb", "grows far more than disks and memory do")
            write_all(fd, piece, position)
        os.ftruncate(fd, size_bytes)


# -- packing -----------------------------------------------------------------------------


def _write_package(
    path: Path, files: list[tuple[str, BinaryIO]], description: bytes, report: Report | None
) -> None:
    total_bytes = sum(os.fstat(stream.fileno()).st_size for _, stream in files)
    done_bytes = 0
    with _created(path) as target, ParallelGzipWriter(target) as writer:
        for name, stream in files:
            size_bytes = os.fstat(stream.fileno()).st_size
            member = tar.Member(name=name, size_bytes=size_bytes)
            writer.write(tar.write_header(member))
            for piece in _pieces(stream.fileno(), size_bytes):
                if piece is None:
                    writer.write_zero_piece()
                else:
                    writer.write(piece)
                done_bytes += PIECE_BYTES if piece is None else len(piece)
                if report is not None:
                    report(done_bytes, total_bytes)
            writer.write(bytes(member.padding_bytes))
        member = tar.Member(name=_DESCRIPTION, size_bytes=len(description))
        end = bytes(member.padding_bytes + 2 * tar.BLOCK_BYTES)
        writer.write(tar.write_header(member) + description + end)
        writer.finish()


def _created(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _pieces(fd: int, size_bytes: int) -> Iterator[bytes | None]:
    """Yield a file in pieces; None stands for PIECE_BYTES zeros, and holes are not read."""
    runs = data_runs(fd, size_bytes)
    start, end = next(runs, (size_bytes, size_bytes))
    for position in range(0, size_bytes, PIECE_BYTES):
        stop = min(position + PIECE_BYTES, size_bytes)
        while end <= position and end < size_bytes:
            start, end = next(runs, (size_bytes, size_bytes))
        if start >= stop and stop - position == PIECE_BYTES:
            yield None
            continue
        piece = os.pread(fd, stop - position, position)
        if len(piece) != stop - position:
            raise StoreError("a file became shorter while it was packed")
        yield None if piece == _ZEROS else piece
