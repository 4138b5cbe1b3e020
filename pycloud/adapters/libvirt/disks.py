# SPDX-License-Identifier: Apache-2.0
"""The copy-on-write disk of each guest, and what qemu-img does with disks of ours.

No layer names the layer below it: chains are put together in the domain XML, so content
never depends on a path. Must not touch an image that came from outside; those pass the
image gate first.
"""

import json
import logging
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pycloud.adapters.data_directory import DataDirectory
from pycloud.adapters.disk_errors import disk_errors
from pycloud.adapters.images.conversion import (
    ENDS_WITH_SERVER,
    Conversion,
    Limits,
    Source,
    convert,
    one_attempt,
)
from pycloud.adapters.libvirt.domain_plan import DiskFiles
from pycloud.core.model.catalog import DiskFormat, StoredDisk
from pycloud.core.model.identifiers import BlobId, InstanceId, checked_id
from pycloud.core.ports import Report
from pycloud.errors import HypervisorError, InsufficientStorage, ToolFailed

_log = logging.getLogger(__name__)
_OVERLAY = "disk.qcow2"
_SERIAL_LOG = "serial.log"
_EARLIER = ".old"
_SERIAL_LIMIT_BYTES = 4 << 20
_SERIAL_KEPT_BYTES = 256 << 10
_CREATE_TIMEOUT_S = 60.0


class InstanceFiles:
    """The directory of each guest and the read-only content it runs on."""

    def __init__(self, data: DataDirectory, *, tool_timeout_s: int) -> None:
        self._data = data
        self._tool_timeout_s = tool_timeout_s

    def make_disk(self, owner: InstanceId, disk: StoredDisk) -> DiskFiles:
        """Make a guest's empty copy-on-write layer; an earlier one of the owner is replaced.

        Raises HypervisorError when a layer is missing, InsufficientStorage.
        """
        layers = self.layers(disk)
        overlay = self._data.instance_dir(owner) / _OVERLAY
        overlay.unlink(missing_ok=True)
        try:
            overlay.write_bytes(_empty_layer(disk.virtual_size_bytes))
            overlay.chmod(0o600)
        except OSError as exc:
            raise InsufficientStorage(f"the disk of the guest cannot be made: {exc}") from exc
        return DiskFiles(overlay=overlay, layers=layers)

    def layers(self, disk: StoredDisk) -> tuple[Path, ...]:
        """Return the files of a stored disk, topmost first. Raises HypervisorError."""
        blobs = (disk.blob,) if disk.backing is None else (disk.blob, disk.backing)
        return tuple(self.content(blob.id) for blob in blobs)

    def content(self, blob_id: BlobId) -> Path:
        """Return the file of stored content. Raises HypervisorError when it is missing."""
        path = self._data.blob_path(blob_id)
        if not path.is_file():
            raise HypervisorError(f"the stored content {blob_id} is missing")
        return path

    def overlay(self, owner: InstanceId) -> Path:
        """Return where a guest's copy-on-write layer lies."""
        return self._directory(owner) / _OVERLAY

    def serial_log(self, owner: InstanceId) -> Path:
        """Return where a guest's serial output is kept."""
        return self._directory(owner) / _SERIAL_LOG

    def serial_tail(self, owner: InstanceId, *, limit_bytes: int) -> bytes:
        """Return the end of a guest's serial output, b"" if there is none."""
        log = self.serial_log(owner)
        recent = _end_of(log, limit_bytes)
        earlier = _end_of(log.with_suffix(_EARLIER), limit_bytes - len(recent))
        return earlier + recent

    def trim_serial_logs(self) -> None:
        """Cut back the serial output of guests that print without end."""
        for log in self._data.instances_dir().glob(f"*/{_SERIAL_LOG}"):
            try:
                if log.stat().st_size > _SERIAL_LIMIT_BYTES:
                    log.with_suffix(_EARLIER).write_bytes(_end_of(log, _SERIAL_KEPT_BYTES))
                    # QEMU appends, so what comes next is written at the new beginning.
                    os.truncate(log, 0)
            except FileNotFoundError:
                # The guest ended meanwhile, and its directory with it.
                continue
            except OSError as exc:
                _log.warning("serial_log_not_trimmed log=%s reason=%s", log, exc)

    def scratch(self, owner: InstanceId, name: str) -> Path:
        """Return a path for something that lives as long as the guest at most."""
        return self._directory(owner) / name

    def remove(self, owner: InstanceId) -> None:
        """Remove all files of a guest; idempotent."""
        shutil.rmtree(self._directory(owner), ignore_errors=True)

    def owners(self) -> tuple[InstanceId, ...]:
        """Return the owners of all directories, complete or not."""
        return tuple(
            sorted(InstanceId(entry.name) for entry in self._data.instances_dir().iterdir())
        )

    def keep_two_layers(self, overlay: Path, layers: tuple[Path, ...]) -> None:
        """Merge the layer below into the overlay if the chain would become too long.

        A stored disk has two layers at most. Works in place on the overlay.
        """
        if len(layers) < 2:
            return
        above, base = layers
        options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(above)}}
        chain = {**options, "backing": _node(base)}
        name = str(overlay)
        self._run(
            "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", f"json:{json.dumps(chain)}", name
        )
        self._run("rebase", "-f", "qcow2", "-F", "qcow2", "-b", str(base), name)
        self._run("rebase", "-u", "-f", "qcow2", "-b", "", name)

    def flatten(
        self, owner: InstanceId, disk: StoredDisk, target: Path, *, report: Report | None = None
    ) -> None:
        """Write a guest's own layer and all that are below it as one plain qcow2 file.

        Nothing may write to the layer any more. Progress is in bytes of the virtual disk;
        the target is gone after any error. Raises ToolFailed, InsufficientStorage.
        """
        size_bytes = disk.virtual_size_bytes
        paths = (self.overlay(owner), *self.layers(disk))
        with one_attempt(target, report, size_bytes) as draft:
            convert(
                Conversion(
                    source=Source(paths=paths, format=DiskFormat.QCOW2),
                    target=draft,
                    limits=Limits.for_disk(size_bytes, timeout_s=self._tool_timeout_s),
                    virtual_size_bytes=size_bytes,
                ),
                report,
            )
            with disk_errors("the merged disk cannot be put into place"):
                draft.replace(target)

    def _directory(self, owner: InstanceId) -> Path:
        """Return a guest's directory without making it: looking must leave nothing behind."""
        return self._data.instances_dir() / checked_id(owner, pointer="owner")

    def _run(self, *arguments: str) -> None:
        _qemu_img(*arguments, timeout_s=self._tool_timeout_s)


def _end_of(path: Path, limit_bytes: int) -> bytes:
    if limit_bytes <= 0:
        return b""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit_bytes))
            return stream.read(limit_bytes)
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise HypervisorError(f"the serial output cannot be read: {exc}") from exc


def _node(path: Path) -> dict[str, object]:
    """Describe one qcow2 file to QEMU so that no name inside it is ever followed."""
    return {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(path), "locking": "off"},
        "read-only": True,
    }


@lru_cache(maxsize=64)
def _empty_layer(virtual_size_bytes: int) -> bytes:
    """Return an empty qcow2 image; making one with qemu-img takes 20 ms, writing it 0.2 ms."""
    with TemporaryDirectory(prefix="pycloud-") as directory:
        path = Path(directory) / "empty.qcow2"
        _qemu_img(
            "create", "-q", "-f", "qcow2", "--", str(path), str(virtual_size_bytes),
            timeout_s=_CREATE_TIMEOUT_S,
        )  # fmt: skip
        return path.read_bytes()


def _qemu_img(*arguments: str, timeout_s: float) -> None:
    command = [*ENDS_WITH_SERVER, "qemu-img", *arguments]
    try:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ToolFailed(f"qemu-img {arguments[0]} failed: {exc}") from exc
    if finished.returncode == 0:
        return
    said = finished.stderr.decode(errors="replace").strip()[-400:]
    if "No space left on device" in said:
        raise InsufficientStorage(f"qemu-img {arguments[0]}: {said}")
    raise ToolFailed(f"qemu-img {arguments[0]} failed: {said}")
