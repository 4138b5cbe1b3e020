# SPDX-License-Identifier: Apache-2.0
"""Ports for content: blobs by digest, the gate for disk images, packages."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pycloud.core.model.catalog import (
    BlobRef,
    DiskFormat,
    ServiceDraft,
    StoredDisk,
)
from pycloud.core.model.fleet import (
    StorageFacts,
)
from pycloud.core.model.identifiers import BlobId, ServiceId

Report = Callable[[int, int], None]
"""Progress callback `(done, total)` in the unit of the operation; it may raise
JobCancelled, which every adapter lets pass after cleaning up."""


class Blobs(Protocol):
    """Immutable content by its SHA-256, and staging areas where it is made.

    A staging area belongs to one owner (the id of a Job or an Upload) and is made
    at its first use; names in it are ids. `adopt` moves a finished file into the
    content store atomically and durably. Raises InsufficientStorage on a full disk.
    """

    def exclusive(self, area: str) -> AbstractContextManager[None]:
        """Have a staging area to oneself, among all servers of this Host.

        Only who asks for it is kept out. Raises Conflict at once if another one has it; ends
        with its process at the latest.
        """
        ...

    def append(
        self, area: str, name: str, stream: BinaryIO, *, offset_bytes: int, limit_bytes: int
    ) -> int:
        """Write the stream at `offset_bytes` of a staged file; return the bytes written.

        What lies behind the offset is cut off first. Durable on return. Raises
        QuotaExceeded beyond `limit_bytes` (of the whole file).
        """
        ...

    def open_staged(self, area: str, name: str) -> BinaryIO:
        """Open a staged file for reading; the caller closes it. Raises NotFound."""
        ...

    def adopt(self, area: str, name: str, *, report: Report | None = None) -> BlobRef:
        """Hash a staged file and move it into the content store; idempotent by content."""
        ...

    def share(self, area: str, name: str) -> BlobRef:
        """Make a staged file content as `adopt` does, but leave it staged as well.

        It takes no room twice, and must not be written to any more.
        """
        ...

    def discard(self, area: str) -> None:
        """Remove a staging area with all it holds; idempotent."""
        ...

    def keep_only(self, area: str, name: str) -> None:
        """Remove all other files of a staging area; idempotent, also without the area."""
        ...

    def areas(self) -> tuple[str, ...]:
        """Return the owners of all staging areas."""
        ...

    def open(self, blob_id: BlobId) -> BinaryIO:
        """Open content for reading; the caller closes it. Raises NotFound."""
        ...

    def verify(self, blob_id: BlobId) -> None:
        """Hash the content again. Raises BlobCorrupt, NotFound."""
        ...

    def adoption(self, blob_id: BlobId) -> str:
        """Return a word that changes whenever the content comes in, also if it is there.

        Empty while there is no such content.
        """
        ...

    def remove(self, blob_id: BlobId, *, adoption: str | None = None) -> None:
        """Remove content; idempotent. The caller knows that nothing refers to it.

        With `adoption`, what came in again since that was read stays.
        """
        ...

    def stored(self) -> Iterator[BlobRef]:
        """Iterate over everything in the content store."""
        ...

    def storage(self) -> StorageFacts:
        """Return the room on the disk."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the header of a disk image says, read by our own parser."""

    format: DiskFormat
    virtual_size_bytes: int
    file_size_bytes: int


class Images(Protocol):
    """The gate for disk images: nothing from outside reaches a tool unparsed."""

    def inspect(self, area: str, name: str, *, declared: DiskFormat | None = None) -> ImageFacts:
        """Parse the header of a staged image.

        Raises ImageRefused (backing file, external data file, encryption, unknown
        feature, absurd geometry, format other than declared) or QuotaExceeded.
        """
        ...

    def normalise(
        self,
        area: str,
        name: str,
        target: str,
        *,
        declared: DiskFormat | None = None,
        report: Report | None = None,
    ) -> StoredDisk:
        """Convert a staged image that passes `inspect` into fresh qcow2 and adopt it.

        Inspects again; raw has to be declared. Runs under resource limits, and no longer
        than this server. With `target` begins the name of the intermediate file in the same
        area; what an earlier attempt left of it is removed. Raises ImageRefused, ToolFailed,
        InsufficientStorage.
        """
        ...

    def flatten(
        self, disk: StoredDisk, area: str, target: str, *, report: Report | None = None
    ) -> None:
        """Write a stored disk, all layers merged, as plain qcow2 into a staging area."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedPackage:
    """What a `.csvm` holds: files in the staging area and what it says of itself.

    `draft` is validated; `disk` and `state` are names in the area, `state` None if
    the package has no memory state.
    """

    draft: ServiceDraft
    disk: str
    state: str | None


class Packages(Protocol):
    """The `.csvm` format: a gzip tar of a disk image, a saved state and `service.json`."""

    def unpack(
        self,
        area: str,
        name: str,
        *,
        service_id: ServiceId | None = None,
        report: Report | None = None,
    ) -> UnpackedPackage:
        """Copy the members of a staged package, by exact name and with caps, beside it.

        `service_id` stands in for that of the package, whatever that is.
        Durable on return. Raises PackageRefused, QuotaExceeded, InsufficientStorage.
        """
        ...

    def pack(
        self,
        area: str,
        target: str,
        *,
        content: UnpackedPackage,
        report: Report | None = None,
    ) -> None:
        """Write a package from staged files, readable by old cloudlets."""
        ...
