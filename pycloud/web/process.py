# SPDX-License-Identifier: Apache-2.0
"""What a process that serves needs of its surroundings: signals, descriptors, room for bodies."""

import logging
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pycloud.errors import InvalidSettings
from pycloud.settings import Settings

logger = logging.getLogger(__name__)

_SPARE_FILES = 256
"""File descriptors for everything that is neither a connection nor at work for an Instance."""
_FILES_OF_AN_INSTANCE = 5
"""Its start and its stop each have a worker with a database open, which takes two; one more
asks whether its service answers."""


def prepare_process(settings: Settings) -> None:
    """Give this process the file descriptors it may need, and a place for large bodies.

    Raises InvalidSettings for a data directory that cannot be written.
    """
    at_work = _FILES_OF_AN_INSTANCE * settings.max_instances
    _raise_file_limit(settings.connection_limit + at_work + _SPARE_FILES)
    bodies = settings.data_dir / "bodies"
    try:
        bodies.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidSettings(
            "pycloud.data_dir", str(settings.data_dir), allowed=f"a writable directory ({exc})"
        ) from exc
    _keep_bodies_in(bodies)


def stop_at_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM and SIGINT; only from the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's signature
        logger.info("server_stopping", extra={"signal": signal.Signals(number).name})
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _keep_bodies_in(directory: Path) -> None:
    # waitress asks `tempfile` where to put a body that outgrows memory; the usual answer
    # is a RAM disk or a small partition.
    tempfile.tempdir = str(directory)


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    if reachable < wanted:
        logger.warning("file_limit_low", extra={"limit": reachable, "wanted": wanted})
