# SPDX-License-Identifier: Apache-2.0
"""What a request gets whose body finds no room on the disk: an answer, not a closed connection.

waitress keeps large bodies in files while they arrive. It must not know anything of
the application, which has not seen the request yet.
"""

import contextlib
import errno
import json
from typing import Any

from waitress.parser import HTTPRequestParser
from waitress.receiver import FixedStreamReceiver
from waitress.utilities import Error

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk and a full quota are called."""
_CODE = "insufficient_storage"


class NoRoomForBody(Error):
    """The answer, in the form of all problems of the API."""

    code = 507
    reason = "Insufficient Storage"

    def __init__(self) -> None:
        super().__init__("the disk of the server is full; make room and send the request again")

    def to_response(self, ident: Any = None) -> Any:  # noqa: ARG002  # Any: as waitress has it
        """Return status line, headers and body."""
        content = {
            "type": f"/docs/api#error-{_CODE}",
            "title": self.reason,
            "status": self.code,
            "detail": self.body,
            "code": _CODE,
        }
        headers = [("Content-Type", "application/problem+json")]
        return f"{self.code} {self.reason}", headers, json.dumps(content).encode()


class Parser(HTTPRequestParser):
    """A parser that survives a full disk.

    A client that is still sending would lose an answer that came too early with the
    reset connection, so the rest of a body is read and dropped.
    """

    _has_no_room = False

    def received(self, data: bytes) -> int:
        """Take bytes in and return how many of them belonged to this request."""
        try:
            consumed: int = super().received(data)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            consumed = self._drop(data)
        if self._has_no_room and self.completed:
            self.error = NoRoomForBody()
        return consumed

    def _drop(self, data: bytes) -> int:
        self._has_no_room = True
        receiver = self.body_rcv
        if not isinstance(receiver, FixedStreamReceiver):
            # How much of a body in chunks is still to come is not known.
            self.completed = True
            return len(data)
        # What was kept is given back at once: others need the room more. Closing writes out
        # what still waits in memory, and so may find no room again.
        with contextlib.suppress(OSError):
            receiver.buf.close()
        receiver.buf = _Nowhere()  # type: ignore[assignment]  # it has all that is called
        consumed: int = super().received(data)
        return consumed


class _Nowhere:
    """Takes the place of a buffer and keeps nothing."""

    def append(self, data: bytes) -> None:
        """Drop bytes."""

    def close(self) -> None:
        """Have nothing to give back."""

    def __len__(self) -> int:
        """Be empty."""
        return 0
