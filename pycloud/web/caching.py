# SPDX-License-Identifier: Apache-2.0
"""Bodies kept as bytes until what they were made from changes.

Making JSON of a catalogue costs more than everything else in answering for it,
and phones ask every few seconds. A body is kept under the revision that was
read before its content was, so a kept body is never older than its revision.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_KEPT_QUERY = 256
"""Characters of a query that may be remembered; longer ones cost clients nothing to vary."""


@dataclass(frozen=True, slots=True)
class KeptBody:
    """A serialised body, its strong entity tag, and the page that follows it, if any."""

    content: bytes
    etag: str
    next_cursor: str | None = None


def etag_of(content: bytes) -> str:
    """Return a strong entity tag for a body: equal bytes, equal tag."""
    return f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


class BodyCache:
    """At most `capacity` bodies by key, each valid for one revision; thread-safe."""

    def __init__(self, *, capacity: int = 256) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, tuple[int, KeptBody]] = OrderedDict()
        self._lock = threading.Lock()

    def body(self, key: str, *, revision: int, make: Callable[[], KeptBody]) -> KeptBody:
        """Return the body kept under `key` for this revision, or make and keep it."""
        found = self._kept.get(key)
        if found is not None and found[0] == revision:
            return found[1]
        made = make()
        with self._lock:
            self._kept[key] = (revision, made)
            self._kept.move_to_end(key)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return made
