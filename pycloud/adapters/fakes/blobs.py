# SPDX-License-Identifier: Apache-2.0
"""Content and staging areas in memory; what a test stores is gone with the object."""

import hashlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

from pycloud.core.model.catalog import BlobRef
from pycloud.core.model.fleet import StorageFacts
from pycloud.core.model.identifiers import BlobId, checked_id
from pycloud.core.ports import Report
from pycloud.errors import (
    BlobCorrupt,
    Conflict,
    InsufficientStorage,
    InvalidInput,
    NotFound,
    QuotaExceeded,
)

_PIECE_BYTES = 64 * 1024


class MemoryBlobs:
    """Twin of the content store on disk, with a disk whose size a test chooses."""

    def __init__(self, *, capacity_bytes: int = 1 << 40) -> None:
        self._lock = threading.RLock()
        self._areas: dict[str, dict[str, bytearray]] = {}
        self._taken: set[str] = set()
        self._content: dict[BlobId, bytes] = {}
        self._adopted: dict[BlobId, str] = {}
        self._adoptions = itertools.count(1)
        self._capacity_bytes = capacity_bytes

    @contextmanager
    def exclusive(self, area: str) -> Iterator[None]:
        """Have a staging area to oneself."""
        with self._lock:
            self._areas.setdefault(checked_id(area), {})
            if area in self._taken:
                raise Conflict(f"staging area {area} is being written by another")
            self._taken.add(area)
        try:
            yield
        finally:
            with self._lock:
                self._taken.discard(area)

    def append(
        self, area: str, name: str, stream: BinaryIO, *, offset_bytes: int, limit_bytes: int
    ) -> int:
        """Write the stream at an offset; a refused stream leaves the file cut at the offset."""
        with self._lock:
            staged = self._staged_for_writing(area, name)
            if not 0 <= offset_bytes <= len(staged):
                raise InvalidInput("an offset cannot lie behind the end of what has arrived")
            del staged[offset_bytes:]
        while piece := stream.read(_PIECE_BYTES):
            with self._lock:
                self._extend(staged, piece, offset_bytes=offset_bytes, limit_bytes=limit_bytes)
        with self._lock:
            return len(staged) - offset_bytes

    def open_staged(self, area: str, name: str) -> BinaryIO:
        """Open a staged file as it is now."""
        with self._lock:
            return BytesIO(bytes(self._staged(area, name)))

    def adopt(self, area: str, name: str, *, report: Report | None = None) -> BlobRef:
        """Move a staged file into the content store."""
        with self._lock:
            content = bytes(self._staged(area, name))
        if report is not None:
            report(len(content), len(content))
        with self._lock:
            self._areas[area].pop(name, None)
            return self.put(content)

    def share(self, area: str, name: str) -> BlobRef:
        """Copy a staged file into the content store."""
        with self._lock:
            return self.put(bytes(self._staged(area, name)))

    def discard(self, area: str) -> None:
        """Remove a staging area."""
        with self._lock:
            self._areas.pop(checked_id(area), None)

    def keep_only(self, area: str, name: str) -> None:
        """Remove all other files of a staging area."""
        kept = checked_id(name)
        with self._lock:
            files = self._areas.get(checked_id(area), {})
            for other in set(files) - {kept}:
                del files[other]

    def areas(self) -> tuple[str, ...]:
        """Return the owners of all staging areas."""
        with self._lock:
            return tuple(self._areas)

    def open(self, blob_id: BlobId) -> BinaryIO:
        """Open content for reading."""
        with self._lock:
            return BytesIO(self._stored_content(blob_id))

    def verify(self, blob_id: BlobId) -> None:
        """Hash the content again."""
        with self._lock:
            content = self._stored_content(blob_id)
        if hashlib.sha256(content).hexdigest() != blob_id:
            raise BlobCorrupt(blob_id)

    def adoption(self, blob_id: BlobId) -> str:
        """Return which adoption of all that there were brought it in last."""
        with self._lock:
            return self._adopted.get(blob_id, "")

    def remove(self, blob_id: BlobId, *, adoption: str | None = None) -> None:
        """Remove content; idempotent."""
        with self._lock:
            if adoption is not None and self._adopted.get(blob_id, "") != adoption:
                return
            self._content.pop(blob_id, None)
            self._adopted.pop(blob_id, None)

    def stored(self) -> Iterator[BlobRef]:
        """Iterate over the content there was when the iteration began."""
        with self._lock:
            refs = [BlobRef(id=key, size_bytes=len(data)) for key, data in self._content.items()]
        yield from refs

    def storage(self) -> StorageFacts:
        """Return the room on the imaginary disk."""
        with self._lock:
            return StorageFacts(total_bytes=self._capacity_bytes, free_bytes=self._free_bytes())

    # What only tests do.

    def set_free_bytes(self, free_bytes: int) -> None:
        """Grow or shrink the imaginary disk so that this much room is left."""
        with self._lock:
            self._capacity_bytes += free_bytes - self._free_bytes()

    def put(self, content: bytes) -> BlobRef:
        """Store content at once, without a staging area."""
        digest = BlobId(hashlib.sha256(content).hexdigest())
        with self._lock:
            self._content[digest] = content
            self._adopted[digest] = str(next(self._adoptions))
        return BlobRef(id=digest, size_bytes=len(content))

    def corrupt(self, blob_id: BlobId) -> None:
        """Flip a bit of stored content, as a failing disk would."""
        with self._lock:
            content = bytearray(self._stored_content(blob_id))
            content[len(content) // 2] ^= 1
            self._content[blob_id] = bytes(content)

    def staged_names(self, area: str) -> tuple[str, ...]:
        """Return the names of the files in a staging area."""
        with self._lock:
            return tuple(self._areas.get(area, {}))

    def _extend(
        self, staged: bytearray, piece: bytes, *, offset_bytes: int, limit_bytes: int
    ) -> None:
        if len(staged) + len(piece) > limit_bytes:
            del staged[offset_bytes:]
            raise QuotaExceeded(
                f"the file is larger than {limit_bytes} bytes", limit_bytes=limit_bytes
            )
        if len(piece) > self._free_bytes():
            del staged[offset_bytes:]
            raise InsufficientStorage("the disk is full", needed_bytes=len(piece))
        staged += piece

    def _staged_for_writing(self, area: str, name: str) -> bytearray:
        files = self._areas.setdefault(checked_id(area), {})
        return files.setdefault(checked_id(name), bytearray())

    def _staged(self, area: str, name: str) -> bytearray:
        try:
            return self._areas[checked_id(area)][checked_id(name)]
        except KeyError as exc:
            raise NotFound("staged file", f"{area}/{name}") from exc

    def _stored_content(self, blob_id: BlobId) -> bytes:
        try:
            return self._content[blob_id]
        except KeyError as exc:
            raise NotFound("blob", blob_id) from exc

    def _free_bytes(self) -> int:
        staged = sum(len(data) for files in self._areas.values() for data in files.values())
        return self._capacity_bytes - staged - sum(len(data) for data in self._content.values())
