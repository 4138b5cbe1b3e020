# SPDX-License-Identifier: Apache-2.0
"""The demo Service VM: built once, and again when what it is made of changes."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from demo_parts.story import DemoError, Story

SCRIPTS = Path(__file__).resolve().parents[1]
_SOURCES = ("build_guest.py", "guest_build", "guest_root")
_BUILD_LINES = 6
"""About as many lines as the builder prints; they move the bar."""
_LINE = re.compile(r"\[ *[0-9.]+ s\] (.*)")


def provide_image(folder: Path, story: Story) -> tuple[Path, bool]:
    """Return the image, and whether it was there already. Raises DemoError."""
    image = folder / "file-analysis.qcow2"
    stamp = folder / "file-analysis.sources"
    wanted = _digest()
    if image.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return image, True
    stamp.unlink(missing_ok=True)
    _build(image, story)
    stamp.write_text(wanted, encoding="ascii")
    return image, False


def _build(image: Path, story: Story) -> None:
    command = [sys.executable, str(SCRIPTS / "build_guest.py"), "--output", str(image)]
    last = ""
    with (
        story.working("Building") as bar,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as builder,
    ):
        try:
            for number, line in enumerate(builder.stdout or ()):
                last = line.strip() or last
                told = _LINE.match(line)
                if told is not None:
                    bar.show(told[1], done=min(number, _BUILD_LINES), total=_BUILD_LINES)
        except BaseException:
            builder.terminate()
            raise
    if builder.returncode != 0:
        raise DemoError(
            f"the demo Service VM could not be built: {last}",
            advice=f"run {SCRIPTS / 'build_guest.py'} --output {image} to see all it says",
        )


def _digest() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        source = SCRIPTS / name
        files = [source] if source.is_file() else sorted(source.rglob("*"))
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(SCRIPTS)} {path.stat().st_mode:o}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
