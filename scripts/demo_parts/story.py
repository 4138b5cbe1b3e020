# SPDX-License-Identifier: Apache-2.0
"""How the demo speaks: numbered steps, a bar on what takes time, plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_RECORDED_COLUMNS = 112
# The fields are those of rich's own template, which would load a font from the internet.
_PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="{unique_id}">
<!-- SPDX-License-Identifier: Apache-2.0. A real run, recorded by scripts/demo.sh itself. -->
<style>
.{unique_id}-matrix {{ font: 20px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
_LOG_COLUMNS = 200
_MARGIN = "    "


class DemoError(Exception):
    """End the demo with a message and what to do next."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice


class Bar:
    """What goes on at present; `show` says how far it is."""

    def __init__(self, progress: Progress | None, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, detail="") if progress else None

    def show(self, detail: str, *, done: int | None = None, total: int | None = None) -> None:
        """Say what is being done; without a total, only that something is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, detail=detail, completed=done, total=total)


class Story:
    """Tells the demo step by step. With `recording`, what was told can be saved as a picture."""

    def __init__(self, *, recording: Path | None) -> None:
        self._recording = recording
        self._console = Console(
            record=recording is not None,
            force_terminal=True if recording is not None else None,
            width=_RECORDED_COLUMNS if recording is not None else _log_width(),
            highlight=False,
            markup=False,
            emoji=False,
        )
        # Bars move, so they are kept out of the picture.
        self._moving = Console(stderr=True, highlight=False, markup=False)
        self._number = 0

    def step(self, title: str, why: str) -> None:
        """Begin the next step."""
        self._number += 1
        self._print(Text.assemble("\n", (f"{self._number:2}. {title}: ", "bold"), why))

    def result(self, text: str) -> None:
        """Tell what came out."""
        self._print(Text.assemble(_MARGIN, ("-> ", "green"), text))

    def command(self, line: str) -> None:
        """Show a command that is run."""
        self._print(Text.assemble(_MARGIN, ("$ ", "dim"), (line, "cyan")))

    def remark(self, text: str) -> None:
        """Tell something beside the point."""
        self._print(Text.assemble(_MARGIN, (text, "yellow")))

    def line(self, text: str = "") -> None:
        """Print a line as it is."""
        self._print(Text(text))

    def table(self, title: str, rows: list[tuple[str, str, str]]) -> None:
        """Print measurements: what, how long, how come."""
        self.line()
        self._print(Text(title, style="bold"))
        widths = [max(len(row[index]) for row in rows) for index in range(2)]
        for what, how_long, why in rows:
            time_text = how_long.rjust(widths[1])
            cells = ((what.ljust(widths[0]), "cyan"), "  ", (time_text, "bold"), "  ", (why, "dim"))
            line = Text.assemble(_MARGIN, *cells)
            line.rstrip()
            self._print(line)

    @contextmanager
    def working(self, title: str) -> Iterator[Bar]:
        """Show a bar while something takes its time; nothing of it stays."""
        if not self._moving.is_terminal:
            yield Bar(None, title)
            return
        columns = (
            TextColumn(_MARGIN[:-1]),
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._moving, transient=True) as progress:
            yield Bar(progress, title)

    def save(self) -> None:
        """Save what was told as an SVG, if that was asked for."""
        if self._recording is not None:
            self._recording.parent.mkdir(parents=True, exist_ok=True)
            draft = self._recording.with_name(f".{self._recording.name}")
            self._console.save_svg(str(draft), title="scripts/demo.sh", code_format=_PICTURE)
            draft.replace(self._recording)

    def _print(self, text: Text) -> None:
        text = _from_home(text)
        self._console.print(text, soft_wrap=self._recording is None)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the time so far."""
        return time.monotonic() - self._begin_s

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s"


def _from_home(text: Text) -> Text:
    """Write paths below the home directory as a shell understands them, and shorter."""
    home = f"{Path.home()}/"
    if home not in text.plain:
        return text
    parts = text.split(home, allow_blank=True)
    return Text("~/").join(parts)


def _log_width() -> int | None:
    """Return None on a terminal, which knows its width; a log has none."""
    return None if Console().is_terminal else _LOG_COLUMNS
