# SPDX-License-Identifier: Apache-2.0
"""Room for requests that wait, so that they never take the threads of those that do not.

A request that waits for a Job or an event holds a thread of the server. The room
bounds how many may do so, and tells the server each time their number changes,
so that it can put another thread in the place of one that sleeps.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENVIRON_KEY = "pycloud.wait_room"


class WaitRoom:
    """A bounded number of places; thread-safe."""

    def __init__(self, *, places: int, on_change: Callable[[int], None] | None = None) -> None:
        self._places = places
        self._on_change = on_change
        self._taken = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def closing(self) -> bool:
        """Whether the server is about to end, so that nobody should go on waiting."""
        return self._closing.is_set()

    def close(self) -> None:
        """Ask those who wait to come to an end; idempotent."""
        self._closing.set()

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Take a place for the duration of the block; yields False if there is none."""
        taken = self._change(+1)
        try:
            yield taken
        finally:
            if taken:
                self._change(-1)

    def _change(self, step: int) -> bool:
        with self._lock:
            if step > 0 and (self._taken >= self._places or self.closing):
                return False
            self._taken += step
            # Told under the lock: two changes must not reach the server in the wrong order.
            if self._on_change is not None:
                self._on_change(self._taken)
        return True
