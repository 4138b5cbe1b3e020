# SPDX-License-Identifier: Apache-2.0
"""The operating system's clock; nothing else of pycloud may ask for the time."""

import time
from datetime import UTC, datetime


class SystemClock:
    """The Clock port on this machine."""

    def now(self) -> datetime:
        """Return the present as an aware UTC datetime."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment, never going back."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Wait."""
        time.sleep(duration_s)
