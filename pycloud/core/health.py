# SPDX-License-Identifier: Apache-2.0
"""Whether this server is ready, as it was seen a moment ago.

Anybody may ask, so an answer costs nothing and waits for nothing: what has to be
looked at is looked at in the background, and a look that does not end, or that nobody
makes any more, shows in its age.
"""

from dataclasses import replace

from pycloud.core.jobs import JobRunner
from pycloud.core.ports import Clock
from pycloud.core.system import CHECKED, Check, System


class Health:
    """What the last look showed. `checks` is safe to use from any thread."""

    def __init__(self, system: System, runner: JobRunner, clock: Clock, *, stale_s: float) -> None:
        self._system = system
        self._runner = runner
        self._clock = clock
        self._stale_s = stale_s
        self._seen: tuple[float, tuple[Check, ...]] | None = None

    def look(self) -> None:
        """Look at everything a start depends on, which may take as long as libvirt lets it."""
        checks = self._system.checks()
        self._seen = self._clock.monotonic(), checks

    def checks(self) -> tuple[Check, ...]:
        """Return what was seen, nothing of it well if that is too long ago, and the worker."""
        return (*self._remembered(), self._worker())

    def _remembered(self) -> tuple[Check, ...]:
        if self._seen is None:
            detail = "nobody has looked yet"
            return tuple(Check(name=name, ok=False, detail=detail) for name in CHECKED)
        looked_s, checks = self._seen
        age_s = self._clock.monotonic() - looked_s
        if age_s <= self._stale_s:
            return checks
        return tuple(
            replace(check, ok=False, detail=f"{check.detail}, {age_s:.0f} s ago")
            for check in checks
        )

    def _worker(self) -> Check:
        silent_s = self._runner.silent_s()
        if silent_s is None:
            return Check(name="worker", ok=False, detail="no jobs are worked on here")
        ok = silent_s <= self._stale_s
        return Check(name="worker", ok=ok, detail=f"seen at work {silent_s:.0f} s ago")
