# SPDX-License-Identifier: Apache-2.0
"""Translation of what the operating system says about a disk into our own errors.

Used by every adapter that writes files; must not touch a file itself.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pycloud.errors import InsufficientStorage, StoreError

# EFBIG is what a file size limit of the process or of the file system gives.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Translate every OSError of the block; `action` says what was being done.

    Raises InsufficientStorage when there is no room, StoreError otherwise.
    """
    try:
        yield
    except OSError as exc:
        raise translated(exc, action) from exc


def translated(exc: OSError, action: str) -> InsufficientStorage | StoreError:
    """Return our own error for `exc`."""
    if exc.errno in _NO_ROOM:
        return InsufficientStorage(f"the disk is full: {action}")
    return StoreError(f"{action}: {exc.strerror or exc}; check pycloud.data_dir")
