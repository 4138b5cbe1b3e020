# SPDX-License-Identifier: Apache-2.0
"""What commands print: tables for people, JSON and YAML for scripts.

Results go to standard output; progress and remarks go to standard error. Colours and
moving bars appear on a terminal only, and nothing that a server sends can steer it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import click
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pycloud.cli.failures import printable

Json = dict[str, Any]  # Any: a decoded JSON object; the API's description says what it holds
_UNCUT_COLUMNS = 10_000
"""The width of lines that nobody looks at on a screen, so that no cell is cut."""


class Format(StrEnum):
    """The form of results."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its title and what it shows of an item."""

    title: str
    show: Callable[[Json], object]


def field(title: str, key: str) -> Column:
    """Return a column that shows one member of the item."""
    return Column(title, lambda item: item.get(key))


class Printer:
    """Prints results in one format."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self.console = make_console(to_stderr=False)
        self.progress_console = make_console(to_stderr=True)

    @property
    def is_for_people(self) -> bool:
        """Whether a person reads the result."""
        return self.form is Format.TABLE

    def items(self, items: Iterable[Json], columns: Sequence[Column], *, empty: str) -> None:
        """Print a list; `empty` is what people are told when there is nothing in it."""
        found = list(items)
        if not self.is_for_people:
            self.document(found)
        elif not found:
            self.remark(empty)
        elif self.console.is_terminal:
            self.console.print(_table(found, columns))
        else:
            self._plain_table(found, columns)

    def item(self, item: Json, columns: Sequence[Column]) -> None:
        """Print one thing: a line for each column, all of it for scripts."""
        if not self.is_for_people:
            self.document(item)
            return
        width = max(len(column.title) for column in columns)
        for column in columns:
            title = Text(column.title.ljust(width), style="bold")
            line = Text.assemble(title, "  ", text_of(column.show(item)))
            self.console.print(line, soft_wrap=True)

    def document(self, value: object) -> None:
        """Print a value for scripts."""
        if self.form is Format.YAML:
            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")
        else:
            text = _escaped(json.dumps(value, indent=2, ensure_ascii=False))
        click.echo(text)

    def done(self, message: str, result: object) -> None:
        """Tell people that something was done; scripts get the result."""
        if self.is_for_people:
            self.line(message)
        else:
            self.document(result)

    def line(self, message: str) -> None:
        """Print one line of plain text."""
        self.console.print(Text(printable(message)), soft_wrap=True)

    def remark(self, message: str) -> None:
        """Say something that is no result."""
        self.progress_console.print(Text(printable(message)), soft_wrap=True)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show on a terminal that something goes on; results may be printed meanwhile."""
        if not (self.is_for_people and self.console.is_terminal):
            yield
            return
        with self.console.status(Text(what)):
            yield

    def _plain_table(self, items: Sequence[Json], columns: Sequence[Column]) -> None:
        """Print aligned columns and nothing else, for pipes and logs."""
        rows = [[column.title.upper() for column in columns]]
        rows += [
            [" ".join(text_of(column.show(item)).plain.split()) for column in columns]
            for item in items
        ]
        widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())


def _table(items: Sequence[Json], columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.title.upper(), overflow="fold")
    for item in items:
        table.add_row(*(text_of(column.show(item)) for column in columns))
    return table


def _escaped(document: str) -> str:
    """Write the few characters that JSON leaves alone and a terminal obeys as JSON escapes."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else json.dumps(character).strip('"')
        for character in document
    )


def make_console(*, to_stderr: bool) -> Console:
    """Return a console that writes to the present standard output or error."""
    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    return Console(
        stderr=to_stderr,
        highlight=False,
        markup=False,
        emoji=False,
        width=_UNCUT_COLUMNS,
        no_color=True,
        color_system=None,
    )


def text_of(value: object) -> Text:
    """Return how a value looks in a table."""
    match value:
        case Text():
            return value
        case None | "":
            return Text("-", style="dim")
        case bool():
            shown = "yes" if value else "no"
        case float():
            shown = f"{value:g}"
        case list() | tuple():
            return text_of(", ".join(str(part) for part in value))
        case Mapping():
            return text_of(", ".join(f"{key}={part}" for key, part in value.items()))
        case _:
            shown = str(value)
    return Text(printable(shown))


def size_text(size_bytes: int | None) -> str:
    """Write a size with the unit in which it is easy to read."""
    if size_bytes is None:
        return ""
    amount, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):  # the last one is used
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def span_text(span_s: int | None) -> str:
    """Write a span of time as exactly as an estimate is."""
    if span_s is None:
        return ""
    if span_s < 100:
        return f"{span_s} s"
    minutes = round(span_s / 60)
    return f"{minutes} min" if minutes < 100 else f"{round(minutes / 60)} h"


def state_text(state: object) -> Text:
    """Colour a state by what it means; the word says it, too."""
    styles = {
        "running": "green",
        "succeeded": "green",
        "failed": "red",
        "cancelled": "yellow",
        "paused": "yellow",
    }
    return Text(printable(str(state)), style=styles.get(str(state), ""))
