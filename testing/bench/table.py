# SPDX-License-Identifier: Apache-2.0
"""Tables of measurements, for a terminal and for a document, and the statistics in them.

Must not measure anything. A ratio belongs to one pair of measurements made right after each
other, so that whatever else the machine does meets both; the median of such ratios is shown.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

GAP = "  "


class Effort(StrEnum):
    """FULL measures what the documents show; QUICK shows that the measurement works."""

    FULL = "full"
    QUICK = "quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table; every row has as many cells as there are columns.

    The first column is a name, the others are figures. `notes` are sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the table for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [self.title, _aligned(self.columns, widths)]
        lines += [_aligned(row, widths) for row in self.rows]
        return "\n".join([*lines, *self.notes]) + "\n"

    def markdown(self) -> str:
        """Return the table as a section of a document."""
        marks = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, marks, *self.rows)]
        notes = [line for note in self.notes for line in ("", note)]
        return "\n".join([f"## {self.title}", "", *lines, *notes]) + "\n"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return GAP.join(padded).rstrip()


def ratio_of(ours: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of the ratios of measurements made in pairs."""
    pairs = zip(ours, baseline, strict=True)
    return statistics.median(mine / other for mine, other in pairs)


def seconds(values: Sequence[float]) -> str:
    """Return median, least and most of durations in seconds."""
    middle = statistics.median(values)
    return f"{middle:.3f} s ({min(values):.3f}-{max(values):.3f})"


def ratios(values: Sequence[float]) -> str:
    """Return the median of ratios, and between which the middle half of them lies."""
    if len(values) == 1:
        return ratio(values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{ratio(middle)} ({ratio(low)}-{ratio(high)})"


def ratio(value: float) -> str:
    """Return a ratio with as many digits as it is worth."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
