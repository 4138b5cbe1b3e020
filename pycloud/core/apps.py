# SPDX-License-Identifier: Apache-2.0
"""The app store: client packages that phones list and download."""

import hashlib
import re
from dataclasses import dataclass, fields, replace
from typing import BinaryIO
from uuid import uuid4

from pycloud.core.apk import require_apk
from pycloud.core.model.catalog import App
from pycloud.core.model.changes import UNCHANGED, Unchanged, given_in
from pycloud.core.model.identifiers import AppId, BlobId, Principal, ServiceId, UploadId
from pycloud.core.model.runtime import Event
from pycloud.core.ports import Blobs, Clock, Slice, Store, every
from pycloud.core.uploads import CONTENT, Uploads
from pycloud.errors import InvalidInput, QuotaExceeded, StaleRecord

_NAME = re.compile(r"[A-Za-z0-9 ._-]{1,64}")
_TEXT = re.compile(r"[^\x00-\x08\x0b-\x1f]{0,4096}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_READ_BYTES = 1024 * 1024
_ANDROID = "android"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppDraft:
    """What an operator says about an App."""

    name: str
    service_id: ServiceId | None = None
    description: str = ""
    package_name: str = ""
    app_version: str = ""
    os_name: str = "Android"
    min_os_version: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppChanges:
    """What an operator may change of an App; with `service_id` None it uses no Service."""

    name: str | Unchanged = UNCHANGED
    service_id: ServiceId | Unchanged | None = UNCHANGED
    description: str | Unchanged = UNCHANGED
    package_name: str | Unchanged = UNCHANGED
    app_version: str | Unchanged = UNCHANGED
    os_name: str | Unchanged = UNCHANGED
    min_os_version: str | Unchanged = UNCHANGED
    tags: tuple[str, ...] | Unchanged = UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFilter:
    """Which Apps a client can use; empty fields match everything.

    An App matches `tags` if it has at least one of them, `os_version` if it asks for
    no newer one.
    """

    os_name: str = ""
    os_version: str = ""
    tags: tuple[str, ...] = ()

    def matches(self, app: App) -> bool:
        """Return whether the App passes."""
        if self.os_name and self.os_name.lower() != app.os_name.lower():
            return False
        if self.tags and not set(self.tags) & set(app.tags):
            return False
        wanted, offered = _version(app.min_os_version), _version(self.os_version)
        return not wanted or not offered or wanted <= offered


class Apps:
    """The Apps of this cloudlet. Safe to use from several threads."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        clock: Clock,
        uploads: Uploads,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._uploads = uploads
        self._host = uploads.host
        self._max_bytes = max_bytes

    def apps(self, *, limit: int = 50, cursor: str | None = None) -> Slice[App]:
        """Return a page of Apps, oldest first."""
        return self._store.apps.find(limit=limit, cursor=cursor)

    def matching(self, wanted: AppFilter) -> tuple[App, ...]:
        """Return all Apps that a client can use."""
        return tuple(app for app in every(self._store.apps) if wanted.matches(app))

    def app(self, app_id: AppId) -> App:
        """Return an App. Raises NotFound."""
        return self._store.apps.get(app_id)

    def revision(self) -> int:
        """Return a number that changes whenever any App changes."""
        return self._store.apps.revision()

    def open(self, app: App) -> BinaryIO:
        """Open the package for reading; the caller closes it. Raises OnAnotherHost."""
        self._host.require("app", app.id, app.host_id)
        return self._blobs.open(app.blob.id)

    def add(self, draft: AppDraft, upload_id: UploadId, *, by: Principal) -> App:
        """Take an uploaded package into the store.

        Raises InvalidInput, PackageRefused, QuotaExceeded, OnAnotherHost; the upload stays
        then, and after any other failure, so that it can be tried again.
        """
        upload = self._uploads.complete(upload_id)
        self._host.require("upload", upload_id, upload.host_id)
        _check(draft)
        if upload.size_bytes > self._max_bytes:
            raise QuotaExceeded(
                f"an app has at most {self._max_bytes} bytes (pycloud.max_app_mib)",
                limit_bytes=self._max_bytes,
            )
        md5sum = self._inspect(upload_id, draft)
        now = self._clock.now()
        given = {item.name: getattr(draft, item.name) for item in fields(draft)}
        app = self._store.apps.add(
            App(
                id=AppId(uuid4().hex),
                **given,
                file_name=_file_name(draft),
                # Until the record stands, the upload has to be whole for another try.
                blob=self._blobs.share(upload_id, CONTENT),
                md5sum=md5sum,
                host_id=self._host.id,
                created_at=now,
                updated_at=now,
            )
        )
        self._uploads.drop(upload_id)
        self._record(app.id, "added", by)
        return app

    def update(
        self, app_id: AppId, changes: AppChanges, *, generation: int | None, by: Principal
    ) -> App:
        """Change what is said about an App. Raises NotFound, StaleRecord, InvalidInput."""
        app = self.app(app_id)
        if generation is not None and generation != app.generation:
            raise StaleRecord("app", app_id)
        changed = replace(app, **given_in(changes), updated_at=self._clock.now())
        draft = AppDraft(**{item.name: getattr(changed, item.name) for item in fields(AppDraft)})
        _check(draft)
        stored = self._store.apps.replace(replace(changed, file_name=_file_name(draft)))
        self._record(app_id, "updated", by)
        return stored

    def remove(self, app_id: AppId, *, generation: int | None, by: Principal) -> None:
        """Remove an App; its content goes when nothing else uses it. Raises NotFound."""
        app = self.app(app_id)
        self._store.apps.remove(
            app_id, generation=app.generation if generation is None else generation
        )
        self._record(app_id, "removed", by)

    def referenced_blobs(self) -> frozenset[BlobId]:
        """Return all content that any App needs."""
        return frozenset(app.blob.id for app in every(self._store.apps))

    def _inspect(self, upload_id: UploadId, draft: AppDraft) -> str:
        with self._blobs.open_staged(upload_id, CONTENT) as stream:
            if draft.os_name.lower() == _ANDROID:
                require_apk(stream)
            stream.seek(0)
            digest = hashlib.md5(usedforsecurity=False)
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def _record(self, app_id: AppId, action: str, by: Principal) -> None:
        self._store.events.append(
            Event(
                time=self._clock.now(),
                kind="app",
                action=action,
                resource=f"app/{app_id}",
                actor=by,
            )
        )


def _check(draft: AppDraft) -> None:
    if _NAME.fullmatch(draft.name) is None or not draft.name.strip(" ."):
        raise InvalidInput(
            "name has 1 to 64 characters out of letters, digits, space, '.', '_' and '-':"
            " phones use it as a file name",
            pointer="/name",
        )
    for item in fields(draft):
        value = getattr(draft, item.name)
        texts = value if isinstance(value, tuple) else (value or "",)
        if any(_TEXT.fullmatch(text) is None for text in texts):
            raise InvalidInput(
                f"{item.name} is plain text of at most 4096 characters", pointer=f"/{item.name}"
            )


def _file_name(draft: AppDraft) -> str:
    suffix = ".apk" if draft.os_name.lower() == _ANDROID else ""
    return draft.name if draft.name.lower().endswith(suffix) else draft.name + suffix


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _NUMBER.findall(text)[:4])
