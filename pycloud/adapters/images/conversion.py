# SPDX-License-Identifier: Apache-2.0
"""Run `qemu-img convert` on files that passed the gate, under limits that bind it.

The tool gets every format by name and probes none, may follow no backing file but those
given here, and runs with bounded address space, file size, processor time and duration, at
low priority, and no longer than this server. It must never be handed a path that was not
made by the data directory.
"""

import json
import logging
import os
import re
import resource
import selectors
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from pycloud.core.model.catalog import DiskFormat
from pycloud.core.ports import Report
from pycloud.errors import CloudletError, ImageRefused, InsufficientStorage, ToolFailed

_LOG = logging.getLogger(__name__)
_MIB = 1 << 20

# qemu-img 7.2 aborts below some 400 MiB, most of it stacks and arenas that it never touches.
_ADDRESS_SPACE_BYTES = 2048 * _MIB
_TARGET_OPTIONS = "compat=1.1,lazy_refcounts=off,cluster_size=65536,preallocation=off"
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_HEARTBEAT_S = 0.5
_ATTEMPT = ".attempt-"
_MESSAGE_BYTES = 4096
_BROKEN_IMAGE = re.compile(
    r"error while reading|could not open|corrupt|invalid|unsupported|not in .* format",
    re.IGNORECASE,
)

ENDS_WITH_SERVER = ("setpriv", "--pdeathsig", "KILL", "--")
"""Put before a command so that a server that is killed takes it along.

The kernel sends the signal when the thread ends that started the command (prctl(2)), so that
thread has to wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Layers of one disk, the uppermost first, all of one format."""

    paths: tuple[Path, ...]
    format: DiskFormat

    def as_json(self) -> str:
        """Return the disk as QEMU's `json:` file name, which names every driver itself."""
        node: dict[str, object] | None = None
        for path in reversed(self.paths):
            layer: dict[str, object] = {
                "driver": self.format.value,
                "file": {"driver": "file", "filename": str(path)},
            }
            if self.format is DiskFormat.QCOW2:
                # None overrides a backing file that a header names.
                layer["backing"] = node
            node = layer
        return "json:" + json.dumps(node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use."""

    file_bytes: int
    timeout_s: int

    @staticmethod
    def for_disk(virtual_size_bytes: int, *, timeout_s: int) -> "Limits":
        """Return limits for a disk of this size: its data, its tables, and a little more."""
        return Limits(
            file_bytes=virtual_size_bytes + virtual_size_bytes // 1024 + 4 * _MIB,
            timeout_s=timeout_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One run: from `source` to a fresh file at `target`."""

    source: Source
    target: Path
    limits: Limits
    virtual_size_bytes: int


@contextmanager
def one_attempt(target: Path, report: Report | None, total: int) -> Iterator[Path]:
    """Provide a path beside `target` to write to; what is not moved from there is removed.

    No two attempts write to one file: that of a server which merely stands still may go on
    while another server tries again. What earlier attempts left is removed first, once
    `report` has confirmed that it is still our turn.
    """
    if report is not None:
        report(0, total)
    target.unlink(missing_ok=True)
    for left in target.parent.glob(f"{target.name}{_ATTEMPT}*"):
        left.unlink(missing_ok=True)
    draft = target.with_name(f"{target.name}{_ATTEMPT}{uuid4().hex[:12]}")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def convert(conversion: Conversion, report: Report | None) -> None:
    """Run the tool to its end; the caller removes the target after an error.

    What `report` raises ends the tool and passes. Raises ImageRefused, ToolFailed,
    InsufficientStorage.
    """
    with tempfile.TemporaryFile() as messages:
        with _running(_argv(conversion), messages) as process:
            watchdog = threading.Timer(conversion.limits.timeout_s, _kill, [process])
            watchdog.daemon = True
            watchdog.start()
            try:
                _follow(process, conversion.virtual_size_bytes, report)
                returncode = process.wait()
            finally:
                watchdog.cancel()
        if returncode:
            raise _failure(returncode, _tail(messages), conversion.limits)


def _argv(conversion: Conversion) -> list[str]:
    limits = conversion.limits
    return [
        *ENDS_WITH_SERVER,
        "prlimit",
        f"--as={_allowed(resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES)}",
        f"--fsize={_allowed(resource.RLIMIT_FSIZE, limits.file_bytes)}",
        f"--cpu={_allowed(resource.RLIMIT_CPU, limits.timeout_s)}",
        "--core=0",
        "--",
        *("nice", "-n", "10", "--"),
        *("qemu-img", "convert", "-p", "-O", "qcow2", "-o", _TARGET_OPTIONS, "--"),
        conversion.source.as_json(),
        str(conversion.target),
    ]


def _allowed(kind: int, wanted: int) -> int:
    """Return the limit wanted, or a lower one under which this process itself has to live."""
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


@contextmanager
def _running(argv: list[str], messages: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the tool in a session of its own and leave no part of it behind.

    The thread that enters this has to stay until the end, see ENDS_WITH_SERVER.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as exc:
        raise ToolFailed(f"{argv[0]} cannot be run: {exc}; is it installed?") from exc
    with process:
        try:
            yield process
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()


def _follow(
    process: subprocess.Popen[bytes], virtual_size_bytes: int, report: Report | None
) -> None:
    """Pass the tool's progress on until it closes its output, at least every half second."""
    if process.stdout is None:
        raise ToolFailed("qemu-img was started without an output")
    done_bytes = 0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_HEARTBEAT_S):
                output = os.read(process.stdout.fileno(), 65536)
                if not output:
                    return
                percents = _PERCENT.findall(output)
                if percents:
                    done_bytes = int(virtual_size_bytes * float(percents[-1]) / 100)
            if report is not None:
                report(min(done_bytes, virtual_size_bytes), virtual_size_bytes)


def _tail(messages: IO[bytes]) -> str:
    size_bytes = messages.seek(0, os.SEEK_END)
    messages.seek(max(0, size_bytes - _MESSAGE_BYTES))
    return messages.read().decode("utf-8", errors="replace").strip()


def _failure(returncode: int, text: str, limits: Limits) -> CloudletError:
    """Say in our own words why the tool failed; its own words go to the log."""
    _LOG.warning("qemu_img_failed", extra={"returncode": returncode, "tool_message": text})
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return InsufficientStorage("the disk is full: the image cannot be converted")
    if returncode in {-signal.SIGXFSZ, 128 + signal.SIGXFSZ} or "File too large" in text:
        return ImageRefused("the image holds more than its size allows", reason="geometry")
    if returncode in {-signal.SIGKILL, -signal.SIGXCPU}:
        return ToolFailed(
            f"qemu-img was ended; it may run for {limits.timeout_s} s (pycloud.tool_timeout_s)"
        )
    if returncode == 127:
        return ToolFailed("qemu-img cannot be run; install the package qemu-utils")
    if _BROKEN_IMAGE.search(text):
        return ImageRefused("the image cannot be read; it is damaged", reason="damaged")
    return ToolFailed(f"qemu-img failed with exit status {returncode}; the log has its message")
