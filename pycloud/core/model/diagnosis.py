# SPDX-License-Identifier: Apache-2.0
"""What an examination of a machine finds, in words for the person who can mend it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """OK: as it should be. WARN: works, but less well. FAIL: keeps a cloudlet from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `fix` is the command that mends it, empty if none does."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""
