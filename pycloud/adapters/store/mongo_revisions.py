# SPDX-License-Identifier: Apache-2.0
"""A number per kind that changes with every write, without transactions.

A record and the counter of its kind are two documents, and a server may die between
the writes to them. Counting after the write alone would let readers keep what they
cached for ever if the count never comes; counting before it lets them cache the old
record under the new number. So a write is announced first and counted afterwards:

1. a token of this write is added to `pending` in the counter document;
2. the record is written;
3. in one update the token is removed and the number raised.

While any token is pending, readers get a number that nobody ever gets again, and so
find nothing they cached before and cache nothing for later. A token whose writer died
is removed, and the number raised, by the first reader that has seen it for longer
than any write can take; it measures with its own clock, so clocks need not agree.
"""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, WriteConcernError

from pycloud.adapters.store.mongo_database import REVISIONS, Mongo, MongoDocument, translating
from pycloud.errors import StoreError

ABANDONED_S = 60.0
"""Well above the time after which the driver gives up a write."""
_ONCE = 2**62
"""Numbers from here on are drawn by lot and mean "not the same as before"."""


class Revision:
    """The counter of one kind."""

    def __init__(self, database: Mongo, kind: str, *, abandoned_s: float = ABANDONED_S) -> None:
        self._counters: Collection[MongoDocument] = database[REVISIONS]
        self._kind = kind
        self._abandoned_s = abandoned_s
        self._first_seen: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Announce a write to this kind, and count it afterwards.

        If the fate of the write is unknown the token stays, until it is found abandoned.
        """
        token = secrets.token_hex(8)
        self._counters.update_one({"_id": self._kind}, {"$push": {"pending": token}})
        try:
            yield
        except (ConnectionFailure, WriteConcernError):
            raise
        except BaseException:
            self._settle([token])
            raise
        self._settle([token])

    def read(self) -> int:
        """Return the number. Raises StoreUnavailable, StoreError."""
        with translating():
            counter = self._counters.find_one({"_id": self._kind})
            if counter is None:
                raise StoreError(f"the counter of {self._kind} is missing; restart the server")
            pending = counter["pending"]
            # The lock-free way out is the usual one.
            if not pending and not self._first_seen:
                return int(counter["number"])
            abandoned = self._abandoned(pending)
            if abandoned:
                self._settle(abandoned)
            if not pending:
                return int(counter["number"])
            return _ONCE + secrets.randbelow(_ONCE)

    def _abandoned(self, pending: list[str]) -> list[str]:
        """Remember since when tokens are seen; return those seen for too long."""
        now = time.monotonic()
        with self._lock:
            self._first_seen = {token: self._first_seen.get(token, now) for token in pending}
            return [
                token for token, seen in self._first_seen.items() if now - seen > self._abandoned_s
            ]

    def _settle(self, tokens: list[str]) -> None:
        self._counters.update_one(
            {"_id": self._kind},
            {"$pull": {"pending": {"$in": tokens}}, "$inc": {"number": 1}},
        )
