# SPDX-License-Identifier: Apache-2.0
"""Where each thing lies in the data directory, and the only place that knows it.

    ROOT/blobs/<first two digits>/<sha256>   immutable content
    ROOT/blobs/.lock                         locked while content comes in or goes
    ROOT/staging/<area>/<name>               files in the making, one area per owner
    ROOT/staging/<area>/.lock                locked by who has the area to itself
    ROOT/instances/<owner>/                  what one domain writes: disk, serial output
    ROOT/relay/                              which ports of domains are open to clients

Every component is checked here before it becomes part of a path. Directories are made
when they are first needed, for their owner alone. Must not read, write or remove files.
"""

import re
from pathlib import Path

from pycloud.adapters.disk_errors import disk_errors
from pycloud.core.model.identifiers import BlobId, InstanceId, checked_id
from pycloud.errors import InvalidInput

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OWNER_ONLY = 0o700


class DataDirectory:
    """The layout under one root; paths it returns have an existing parent directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The root itself, made if it is missing."""
        return _made(self._root)

    def blobs_dir(self) -> Path:
        """Return the directory of the content store."""
        return _made(self.root / "blobs")

    def blob_path(self, blob_id: BlobId) -> Path:
        """Return where content with this digest lies. Raises InvalidInput."""
        digest = checked_blob_id(blob_id)
        return _made(self.blobs_dir() / digest[:2]) / digest

    def content_lock_path(self) -> Path:
        """Return the file that is locked while content comes in or goes."""
        return self.blobs_dir() / ".lock"

    def staging_dir(self) -> Path:
        """Return the directory that holds all staging areas."""
        return _made(self.root / "staging")

    def area_path(self, area: str) -> Path:
        """Return where a staging area lies or would lie; does not make it. Raises InvalidInput."""
        return self.staging_dir() / checked_id(area, pointer="area")

    def staged_path(self, area: str, name: str) -> Path:
        """Return the path of a staged file; its area is made. Raises InvalidInput."""
        checked = checked_id(name, pointer="name")
        return _made(self.area_path(area)) / checked

    def area_lock_path(self, area: str) -> Path:
        """Return the file that is locked; its area is made. No staged file has such a name."""
        return _made(self.area_path(area)) / ".lock"

    def instances_dir(self) -> Path:
        """Return the directory that holds the directories of all domains."""
        return _made(self.root / "instances")

    def instance_dir(self, owner: InstanceId) -> Path:
        """Return the directory of a domain's own files, made if missing. Raises InvalidInput."""
        return _made(self.instances_dir() / checked_id(owner, pointer="owner"))

    def relay_path(self) -> Path:
        """Return where the relay's directory lies or would lie; does not make it."""
        return self._root / "relay"


def checked_blob_id(value: str) -> BlobId:
    """Return `value` as a BlobId if it is a lower-case SHA-256. Raises InvalidInput."""
    if _DIGEST.fullmatch(value) is None:
        raise InvalidInput("a content id has 64 lower-case hexadecimal digits", pointer="blob")
    return BlobId(value)


def _made(path: Path) -> Path:
    with disk_errors(f"the directory {path} cannot be made"):
        path.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
    return path
