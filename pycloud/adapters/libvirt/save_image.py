# SPDX-License-Identifier: Apache-2.0
"""Restore and rewrite save images without ever copying the guest's memory.

libvirt refuses to change a guest's name or UUID on restore, but it reads the image from
front to back: given a FIFO with a header and description of our own, followed by the
stored stream, it restores any number of guests from one read-only file.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt

from pycloud.adapters.libvirt.connection import START_TIMEOUT_S, Connection
from pycloud.adapters.libvirt.save_format import header_and_data, read_header
from pycloud.errors import HypervisorError, StateUnusable

_OPEN_POLL_S = 0.002
_JOIN_TIMEOUT_S = 10.0


def restore(connection: Connection, image: Path, description: str, *, fifo: Path) -> None:
    """Make a paused domain out of a stored image and a description of our own.

    `fifo` is a free path that is used meanwhile. Raises HypervisorError.
    """
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo, 0o600)
    feeder = _Feeder(image, description.encode(), fifo)
    feeder.start()
    try:
        connection.run(
            lambda handle: handle.restoreFlags(str(fifo), None, libvirt.VIR_DOMAIN_SAVE_PAUSED),
            timeout_s=START_TIMEOUT_S,
        )
    finally:
        feeder.stop()
        fifo.unlink(missing_ok=True)


def save(
    connection: Connection,
    domain_id: str,
    target: Path,
    *,
    heartbeat: Callable[[], None] | None = None,
) -> None:
    """Save a running domain to a file; the domain is gone afterwards.

    What `heartbeat` raises passes at once; libvirt gives up when the domain is destroyed.
    """
    # libvirt keeps the owner of a file that is there.
    target.touch(mode=0o600)

    def call(handle: Any) -> None:  # Any: libvirt ships no types.
        domain = handle.lookupByUUIDString(domain_id)
        domain.saveFlags(str(target), None, libvirt.VIR_DOMAIN_SAVE_RUNNING)

    connection.run(call, timeout_s=START_TIMEOUT_S, heartbeat=heartbeat)


def replace_description(image: Path, description: str) -> None:
    """Put another description into a staged image, in place. Raises HypervisorError."""
    content = description.encode()
    with image.open("r+b") as stream:
        try:
            header = read_header(stream)
        except StateUnusable as exc:
            raise HypervisorError(
                f"libvirt wrote a save image that cannot be used ({exc}); set"
                ' save_image_format = "raw" in its qemu.conf'
            ) from exc
        if len(content) >= header.data_bytes:
            raise HypervisorError("libvirt left no room for a description of our own")
        stream.seek(0)
        stream.write(header_and_data(content, data_bytes=header.data_bytes))
        stream.flush()
        os.fsync(stream.fileno())


class _Feeder:
    """Writes an image with another description into a FIFO, in a thread of its own."""

    def __init__(self, image: Path, description: bytes, fifo: Path) -> None:
        self._image = image
        self._description = description
        self._fifo = fifo
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="save-image", daemon=True)

    def start(self) -> None:
        """Begin to wait for the reader."""
        self._thread.start()

    def stop(self) -> None:
        """End, also when no reader came; the reader is finished by now."""
        self._stopped.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        descriptor = self._opened()
        if descriptor is None:
            return
        try:
            with self._image.open("rb") as source:
                self._feed(source.fileno(), descriptor, read_header(source).stream_offset)
        except (OSError, StateUnusable):
            # The reader sees the stream end early and says why in its own words.
            return
        finally:
            os.close(descriptor)

    def _opened(self) -> int | None:
        """Open the FIFO once there is a reader; waiting in open() could not be ended."""
        while not self._stopped.is_set():
            try:
                descriptor = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                time.sleep(_OPEN_POLL_S)
                continue
            os.set_blocking(descriptor, True)
            return descriptor
        return None

    def _feed(self, source: int, target: int, offset: int) -> None:
        front = header_and_data(self._description, data_bytes=len(self._description) + 1)
        view = memoryview(front)
        while view:
            view = view[os.write(target, view) :]
        length = os.fstat(source).st_size
        while offset < length:
            sent = os.sendfile(target, source, offset, length - offset)
            if sent == 0:
                return
            offset += sent
