# SPDX-License-Identifier: Apache-2.0
"""Files that clients send in pieces: resumable, bounded, and dropped when forgotten."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import BinaryIO
from uuid import uuid4

from pycloud.core.model.catalog import Upload
from pycloud.core.model.fleet import ThisHost
from pycloud.core.model.identifiers import JobId, Principal, UploadId
from pycloud.core.model.runtime import JobState
from pycloud.core.ports import Blobs, Clock, Slice, Store, every
from pycloud.errors import Conflict, InsufficientStorage, InvalidInput, QuotaExceeded

CONTENT = "content"
"""The name of the uploaded file in the staging area named by the upload."""
_RESOURCE = "upload/"
KEEP_FREE_BYTES = 256 * 1024 * 1024
"""Room that no upload may take, so that records can still be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """Bounds on what comes from outside; see the settings."""

    max_bytes: int
    timeout_s: int


class Uploads:
    """The unfinished and the finished but unused uploads.

    Safe to use from several threads, and from several servers on one data directory. The
    bytes are on the Host whose server the upload was announced to.
    """

    def __init__(
        self, *, host: ThisHost, store: Store, blobs: Blobs, clock: Clock, options: UploadOptions
    ) -> None:
        self.host = host
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._options = options

    def create(self, file_name: str, size_bytes: int, *, by: Principal) -> Upload:
        """Announce a file. Raises InvalidInput, QuotaExceeded, InsufficientStorage.

        `file_name` is kept for people only; it never becomes a path.
        """
        if size_bytes <= 0:
            raise InvalidInput("size_bytes has to be above 0", pointer="/size_bytes")
        if size_bytes > self._options.max_bytes:
            raise QuotaExceeded(
                f"{size_bytes} bytes are more than the {self._options.max_bytes} allowed"
                " (pycloud.max_image_gib)",
                limit_bytes=self._options.max_bytes,
            )
        free_bytes = self._blobs.storage().free_bytes - KEEP_FREE_BYTES
        if size_bytes > free_bytes:
            raise InsufficientStorage(
                f"the disk of the cloudlet has room for {max(free_bytes, 0)} bytes, the file has"
                f" {size_bytes}; remove services or packages first",
                needed_bytes=size_bytes,
            )
        now = self._clock.now()
        return self._store.uploads.add(
            Upload(
                id=UploadId(uuid4().hex),
                file_name=_for_people(file_name),
                size_bytes=size_bytes,
                created_by=by,
                host_id=self.host.id,
                created_at=now,
                expires_at=now + timedelta(seconds=self._options.timeout_s),
            )
        )

    def upload(self, upload_id: UploadId) -> Upload:
        """Return an upload. Raises NotFound."""
        return self._store.uploads.get(upload_id)

    def uploads(self, *, limit: int = 50, cursor: str | None = None) -> Slice[Upload]:
        """Return a page of uploads, oldest first."""
        return self._store.uploads.find(limit=limit, cursor=cursor)

    def append(self, upload_id: UploadId, offset_bytes: int, stream: BinaryIO) -> Upload:
        """Add a piece at exactly the offset that has arrived; durable on return.

        Raises NotFound, Conflict (another offset is expected, or a second piece is
        being written), QuotaExceeded beyond the announced size, InsufficientStorage,
        OnAnotherHost.
        """
        announced = self.upload(upload_id)
        self.host.require("upload", upload_id, announced.host_id)
        with _one_piece_at_a_time(self._blobs, upload_id):
            # Again, because another server may have added a piece until it was our turn.
            upload = self.upload(upload_id)
            if offset_bytes != upload.offset_bytes:
                raise Conflict(f"the next piece starts at {upload.offset_bytes}")
            written = self._blobs.append(
                upload_id,
                CONTENT,
                stream,
                offset_bytes=offset_bytes,
                limit_bytes=upload.size_bytes,
            )
            expires_at = self._clock.now() + timedelta(seconds=self._options.timeout_s)
            return self._store.uploads.replace(
                replace(upload, offset_bytes=offset_bytes + written, expires_at=expires_at)
            )

    def complete(self, upload_id: UploadId) -> Upload:
        """Return the upload if all of it has arrived. Raises NotFound, Conflict."""
        upload = self.upload(upload_id)
        if upload.offset_bytes != upload.size_bytes:
            raise Conflict(
                f"only {upload.offset_bytes} of {upload.size_bytes} bytes of upload"
                f" {upload_id} have arrived"
            )
        return upload

    def discard(self, upload_id: UploadId) -> None:
        """Drop an upload that nobody needs, with its bytes; idempotent.

        Raises Conflict while a Job uses it.
        """
        job_id = self._users().get(upload_id)
        if job_id is not None:
            raise Conflict(f"upload {upload_id} is being used by job {job_id}; cancel it first")
        self.drop(upload_id)

    def drop(self, upload_id: UploadId) -> None:
        """Drop an upload of which everything was taken that is needed; idempotent.

        Bytes on another Host go when that one finds that they belong to nobody.
        """
        self._store.uploads.remove(upload_id)
        self._blobs.discard(upload_id)

    def strip(self, upload_id: UploadId) -> None:
        """Remove what was made of an upload beside it; the upload itself stays. Idempotent."""
        self._blobs.keep_only(upload_id, CONTENT)

    def drop_expired(self) -> None:
        """Drop uploads on this Host that nobody continued or used in time."""
        now = self._clock.now()
        users = self._users()
        for upload in every(self._store.uploads):
            over = upload.expires_at <= now and self.host.has(upload.host_id)
            if over and upload.id not in users:
                self.drop(upload.id)

    def _users(self) -> dict[UploadId, JobId]:
        """Return which upload is used by which Job at present."""
        return {
            UploadId(resource.removeprefix(_RESOURCE)): job.id
            for state in (JobState.QUEUED, JobState.RUNNING)
            for job in every(self._store.jobs, {"state": state})
            for resource in job.resources
            if resource.startswith(_RESOURCE)
        }


@contextmanager
def _one_piece_at_a_time(blobs: Blobs, upload_id: UploadId) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(blobs.exclusive(upload_id))
        except Conflict as exc:
            raise Conflict("another piece of this upload is being written") from exc
        yield


def _for_people(file_name: str) -> str:
    base = file_name.replace("\\", "/").rsplit("/", maxsplit=1)[-1]
    return "".join(char for char in base if char.isprintable())[:255]
