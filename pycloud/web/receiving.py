# SPDX-License-Identifier: Apache-2.0
"""How waitress takes bodies in: no further than the gate allows, and not onto a full disk.

waitress keeps large bodies in files while they arrive. A request whose body is refused is
complete at once, without a body, so that the application can answer it.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser
from waitress.task import WSGITask
from waitress.utilities import RequestEntityTooLarge

from pycloud.errors import CloudletError, InsufficientStorage
from pycloud.web.body_gate import REFUSAL_KEY, Allowance, BodyGate, Head

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk and a full quota are called."""
_LOOK_EVERY_BYTES = 1024 * 1024
"""How much of one body may arrive between two looks at the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRules:
    """Which bodies are taken, and how much of the disk is left to everything else."""

    gate: BodyGate
    reserve_bytes: int = 0

    def has_room(self, wanted_bytes: int = 0) -> bool:
        """Return whether the disk on which bodies are kept can hold this much more."""
        usage = os.statvfs(tempfile.gettempdir())
        return usage.f_bavail * usage.f_frsize - wanted_bytes >= self.reserve_bytes


def no_room() -> CloudletError:
    """Return the error for a body that cannot be kept."""
    return InsufficientStorage(
        "the disk of the server is full; make room and send the request again"
    )


class Parser(HTTPRequestParser):
    """One request while it arrives."""

    refusal: CloudletError | None = None
    """Why the body was refused."""
    _allowance: Allowance | None = None

    # The stub of waitress has these three wrong.
    command: str  # type: ignore[assignment]
    path: str
    headers: dict[str, str]

    def __init__(
        self, adj: Adjustments, *, rules: BodyRules, on_refusal: Callable[[], None]
    ) -> None:
        super().__init__(adj)
        self._rules = rules
        self._on_refusal = on_refusal
        # Up to there waitress keeps a body in memory.
        self._look_at_bytes: int = adj.inbuf_overflow

    def received(self, data: bytes) -> int:
        """Take bytes in and return how many of them belonged to this request."""
        is_head = not self.headers_finished
        try:
            consumed: int = super().received(data)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            refusal: CloudletError | None = no_room()
        else:
            refusal = self._refusal_of_head() if is_head else self._refusal_of_body()
        if refusal is None:
            return consumed
        self._refuse(refusal)
        # What follows the head is the body, however it goes on.
        return len(data)

    def _refusal_of_head(self) -> CloudletError | None:
        if self.body_rcv is None or not self.headers_finished:
            return None
        head = Head(self.command, self.path, self.headers.get("AUTHORIZATION", ""))
        self._allowance = self._rules.gate.allowance(head)
        if self.content_length > self._allowance.limit_bytes:
            return self._allowance.excess
        is_kept_on_disk = self.content_length > self._look_at_bytes
        if is_kept_on_disk and not self._rules.has_room(self.content_length):
            return no_room()
        return None

    def _refusal_of_body(self) -> CloudletError | None:
        arrived_bytes: int = self.body_bytes_received
        allowance = self._allowance
        is_too_large = isinstance(self.error, RequestEntityTooLarge)
        if allowance is not None and (is_too_large or arrived_bytes > allowance.limit_bytes):
            # Only a body in chunks can turn out so; what is between its chunks counts as well.
            return allowance.excess
        if self.completed or arrived_bytes < self._look_at_bytes:
            return None
        self._look_at_bytes = arrived_bytes + _LOOK_EVERY_BYTES
        return None if self._rules.has_room() else no_room()

    def _refuse(self, refusal: CloudletError) -> None:
        self.refusal = refusal
        self._on_refusal()
        self.error = None
        self.completed = True
        self.expect_continue = False
        # Nothing that follows on this connection could be told from the rest of the body.
        self.headers["CONNECTION"] = "close"
        self.headers["CONTENT_LENGTH"] = "0"
        receiver, self.body_rcv = self.body_rcv, None
        # What was kept is given back at once. Closing writes out what still waits in memory,
        # and so may find no room again.
        if receiver is not None:
            with contextlib.suppress(OSError):
                receiver.getbuf().close()


class Task(WSGITask):
    """A request that the application answers, be it without the body that was refused."""

    request: Parser  # type: ignore[assignment]  # its stub has the wrong class

    def get_environment(self) -> dict[str, Any]:
        """Return the environ, with the refusal if there is one."""
        environ: dict[str, Any] = super().get_environment()
        if self.request.refusal is not None:
            environ[REFUSAL_KEY] = self.request.refusal
        return environ
