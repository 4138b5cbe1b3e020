# SPDX-License-Identifier: Apache-2.0
"""The Images port: what passes is parsed here first and rewritten by `qemu-img` afterwards.

Whatever comes from outside stays in its staging area; only a fresh qcow2 file that
`qemu-img` wrote and this module parsed again becomes content.
"""

import os
from pathlib import Path

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.disk_errors import disk_errors
from pycloud.adapters.images.conversion import Conversion, Limits, Source, convert, one_attempt
from pycloud.adapters.images.qcow2_header import HEAD_BYTES as QCOW2_HEAD_BYTES
from pycloud.adapters.images.qcow2_header import MAGIC, parse_header
from pycloud.adapters.images.qcow2_mapping import walk_mapping
from pycloud.adapters.images.signatures import HEAD_BYTES, TAIL_BYTES, foreign_format
from pycloud.core.model.catalog import DiskFormat, StoredDisk
from pycloud.core.ports import Blobs, ImageFacts, Report
from pycloud.errors import ImageRefused, InsufficientStorage, QuotaExceeded, ToolFailed
from pycloud.settings import Settings

_GIB = 1 << 30
_SECTOR_BYTES = 512


class QemuImages:
    """The gate for disk images in the staging areas of one data directory."""

    def __init__(self, data: DataDirectory, blobs: Blobs, settings: Settings) -> None:
        self._data = data
        self._blobs = blobs
        self._limit_bytes = settings.max_image_gib * _GIB
        self._timeout_s = settings.tool_timeout_s

    def inspect(self, area: str, name: str, *, declared: DiskFormat | None = None) -> ImageFacts:
        """Parse a staged image without running anything.

        qcow2 is known by its magic; raw has to be declared. Raises ImageRefused (its
        `reason` is a stable word), QuotaExceeded, NotFound.
        """
        return self._examine(area, name, declared)[0]

    def normalise(
        self,
        area: str,
        name: str,
        target: str,
        *,
        declared: DiskFormat | None = None,
        report: Report | None = None,
    ) -> StoredDisk:
        """Convert a staged image into fresh qcow2 and adopt it; the original stays staged.

        Progress is in bytes of the virtual disk. Raises what `inspect` raises, and
        ToolFailed, InsufficientStorage; the target is gone after any error.
        """
        facts, data_bytes = self._examine(area, name, declared)
        self._require_room(data_bytes)
        source = Source(paths=(self._data.staged_path(area, name),), format=facts.format)
        size_bytes = facts.virtual_size_bytes
        with one_attempt(self._data.staged_path(area, target), report, size_bytes) as draft:
            self._convert(source, draft, size_bytes, report)
            blob = self._blobs.adopt(area, draft.name, report=_heartbeat(report, size_bytes))
        return StoredDisk(blob=blob, virtual_size_bytes=size_bytes)

    def flatten(
        self, disk: StoredDisk, area: str, target: str, *, report: Report | None = None
    ) -> None:
        """Write a stored disk, all layers merged, as plain qcow2 into a staging area.

        Raises ToolFailed, InsufficientStorage, NotFound; the target is gone after any error.
        """
        layers = [disk.blob] if disk.backing is None else [disk.blob, disk.backing]
        for layer in layers:
            self._blobs.open(layer.id).close()
        self._require_room(sum(layer.size_bytes for layer in layers))
        paths = tuple(self._data.blob_path(layer.id) for layer in layers)
        source = Source(paths=paths, format=DiskFormat.QCOW2)
        path = self._data.staged_path(area, target)
        with one_attempt(path, report, disk.virtual_size_bytes) as draft:
            self._convert(source, draft, disk.virtual_size_bytes, report)
            with disk_errors(f"the staged file {target} cannot be put into place"):
                draft.rename(path)

    def _examine(self, area: str, name: str, declared: DiskFormat | None) -> tuple[ImageFacts, int]:
        """Return the facts, and how many bytes a conversion has to write at most."""
        with self._blobs.open_staged(area, name) as stream:
            head = stream.read(max(QCOW2_HEAD_BYTES, HEAD_BYTES))
            file_size_bytes = stream.seek(0, os.SEEK_END)
            self._check_quota("file", file_size_bytes)
            # Where the file has holes there is nothing to write, whatever the tables say.
            present_bytes = self._data.staged_path(area, name).stat().st_blocks * 512
            found = _format(head, declared)
            if found is DiskFormat.QCOW2:
                header = parse_header(head, file_size_bytes)
                virtual_size_bytes = header.virtual_size_bytes
                self._check_quota("disk", virtual_size_bytes)
                mapped = walk_mapping(stream, header, file_size_bytes)
                data_bytes = mapped.compressed_bytes + min(mapped.plain_bytes, present_bytes)
            else:
                stream.seek(max(0, file_size_bytes - TAIL_BYTES))
                _check_raw(head, stream.read(TAIL_BYTES), file_size_bytes)
                virtual_size_bytes = file_size_bytes
                data_bytes = min(file_size_bytes, present_bytes)
        facts = ImageFacts(
            format=found, virtual_size_bytes=virtual_size_bytes, file_size_bytes=file_size_bytes
        )
        return facts, data_bytes

    def _check_quota(self, what: str, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise QuotaExceeded(
                f"the image is a {what} of {size_bytes / _GIB:.1f} GiB;"
                f" {self._limit_bytes // _GIB} GiB are allowed (pycloud.max_image_gib)",
                limit_bytes=self._limit_bytes,
            )

    def _require_room(self, needed_bytes: int) -> None:
        free_bytes = self._blobs.storage().free_bytes
        if needed_bytes > free_bytes:
            raise InsufficientStorage(
                f"the disk in the image may need {needed_bytes / _GIB:.1f} GiB;"
                f" {free_bytes / _GIB:.1f} GiB are free",
                needed_bytes=needed_bytes,
            )

    def _convert(
        self, source: Source, target: Path, virtual_size_bytes: int, report: Report | None
    ) -> None:
        convert(
            Conversion(
                source=source,
                target=target,
                limits=Limits.for_disk(virtual_size_bytes, timeout_s=self._timeout_s),
                virtual_size_bytes=virtual_size_bytes,
            ),
            report,
        )
        _check_result(target, virtual_size_bytes)


def _check_result(path: Path, virtual_size_bytes: int) -> None:
    """Parse what the tool wrote with the same eyes as what came from outside."""
    with disk_errors("what qemu-img wrote cannot be read"), path.open("rb") as stream:
        head = stream.read(QCOW2_HEAD_BYTES)
        file_size_bytes = stream.seek(0, os.SEEK_END)
        try:
            written = parse_header(head, file_size_bytes)
            walk_mapping(stream, written, file_size_bytes)
        except ImageRefused as exc:
            raise ToolFailed(f"qemu-img wrote an unusable file: {exc.message}") from exc
    if written.virtual_size_bytes != virtual_size_bytes:
        raise ToolFailed(
            f"qemu-img wrote a disk of {written.virtual_size_bytes} bytes"
            f" instead of {virtual_size_bytes}"
        )


def _format(head: bytes, declared: DiskFormat | None) -> DiskFormat:
    found = DiskFormat.QCOW2 if head.startswith(MAGIC) else None
    if declared is None and found is None:
        raise ImageRefused(
            "the image is not qcow2; if it is a raw disk, say so by declaring its format as raw",
            reason="undeclared_format",
        )
    if declared is DiskFormat.QCOW2 and found is None:
        raise ImageRefused("the image is declared as qcow2 but is none", reason="format")
    if declared is DiskFormat.RAW and found is not None:
        raise ImageRefused("the image is declared as raw but is qcow2", reason="format")
    return declared or DiskFormat.QCOW2


def _check_raw(head: bytes, tail: bytes, file_size_bytes: int) -> None:
    if not file_size_bytes or file_size_bytes % _SECTOR_BYTES:
        raise ImageRefused(
            f"a raw disk is a whole number of sectors of {_SECTOR_BYTES} bytes;"
            f" this file has {file_size_bytes} bytes",
            reason="geometry",
        )
    foreign = foreign_format(head, tail)
    if foreign is not None:
        raise ImageRefused(
            f"the image is declared as raw but is {foreign}; convert or unpack it first",
            reason="format",
        )


def _heartbeat(report: Report | None, total: int) -> Report | None:
    """Return a callback for the hashing after a conversion, whose progress is complete."""
    if report is None:
        return None
    return lambda _done, _total: report(total, total)
