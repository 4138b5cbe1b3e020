# SPDX-License-Identifier: Apache-2.0
"""A clock that tests set; it must never wait for real."""

import threading
from datetime import UTC, datetime, timedelta


class FakeClock:
    """Twin of the system's clock: sleeping moves it on at once."""

    def __init__(self, now: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._now = now or datetime(2026, 1, 1, 12, tzinfo=UTC)
        self._elapsed_s = 0.0

    def now(self) -> datetime:
        """Return the time it was set to, plus all sleeps."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Return the seconds slept or advanced so far; `set` does not change it."""
        with self._lock:
            return self._elapsed_s

    def sleep(self, duration_s: float) -> None:
        """Move on without waiting. Raises ValueError for a negative duration."""
        if duration_s < 0:
            raise ValueError("sleep length must be non-negative")
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Let time pass."""
        with self._lock:
            self._now += timedelta(seconds=duration_s)
            self._elapsed_s += duration_s

    def set(self, now: datetime) -> None:
        """Set the wall clock, as an operator or NTP would; it may go back."""
        with self._lock:
            self._now = now
