# SPDX-License-Identifier: Apache-2.0
"""How the nouns of a cloudlet look in /api/v2, and how requests become core types.

Only shapes are made here; `openapi.yaml` has checked every request before, and
checks every reply afterwards.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Json = dict[str, Any]  # Any: JSON, checked against the API description on its way in and out.


def time_text(moment: datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def optional_time(moment: datetime | None) -> str | None:
    """Return `time_text` of a moment that may be missing."""
    return None if moment is None else time_text(moment)


def microseconds(moment: datetime) -> int:
    """Return a moment as a number, exact to the last digit that stores keep."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
