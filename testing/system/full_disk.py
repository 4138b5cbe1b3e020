# SPDX-License-Identifier: Apache-2.0
"""A disk that something else fills for a while."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from testing.system.cloudlet import POLL_S, Server

_SETTLING_ROUNDS = 10


@contextmanager
def full_disk(server: Server, *, but_bytes: int) -> Iterator[None]:
    """Let something else fill the disk of a server for a while."""
    filler = server.seen(server.settings.data_dir / "lost+found")
    with filler.open("wb") as stream:
        # Bodies of earlier requests leave the disk a moment after their answer.
        for _ in range(_SETTLING_ROUNDS):
            usage = os.fstatvfs(stream.fileno())
            spare = usage.f_bavail * usage.f_frsize - but_bytes
            if spare > 0:
                os.posix_fallocate(stream.fileno(), os.fstat(stream.fileno()).st_size, spare)
            time.sleep(POLL_S)
    try:
        yield
    finally:
        filler.unlink()
