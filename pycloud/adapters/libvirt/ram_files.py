# SPDX-License-Identifier: Apache-2.0
"""The files that are guests' RAM: made for templates, opened for clones.

A template's RAM must never change while clones run. QEMU opens the file for writing
even when it maps it privately, until version 8.2; its owner therefore needs the
permission to write, and what keeps the file whole is that no clone has a device that
could punch holes into it.
"""

import os
from pathlib import Path

from pycloud.errors import HypervisorError, InsufficientStorage, StateUnusable

_OWNER_READS_AND_WRITES = 0o600


def make_ram_file(path: Path, *, memory_mib: int) -> None:
    """Make a sparse file of the guest's memory size; one that is there is replaced."""
    path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _OWNER_READS_AND_WRITES)
        try:
            os.truncate(descriptor, memory_mib << 20)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise InsufficientStorage(f"the memory file of a template cannot be made: {exc}") from exc


def prepare_private_mapping(path: Path, *, memory_mib: int) -> None:
    """Make sure that QEMU can map stored RAM privately.

    Raises StateUnusable when the file has another size than the guest's memory.
    """
    try:
        status = path.stat()
        if status.st_size != memory_mib << 20:
            raise StateUnusable("the stored memory has another size than the guest")
        if status.st_uid == os.geteuid() and not status.st_mode & 0o200:
            path.chmod(_OWNER_READS_AND_WRITES)
    except OSError as exc:
        raise HypervisorError(f"the stored memory cannot be used: {exc}") from exc
