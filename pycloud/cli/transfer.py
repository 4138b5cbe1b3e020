# SPDX-License-Identifier: Apache-2.0
"""Files to and from the server, in pieces that survive a broken connection, with a bar."""

import base64
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import requests
from rich.progress import Progress
from rich.text import Text

from pycloud.cli.api_client import Api, Call, Refused, Unreachable, segment
from pycloud.cli.failures import ExitCode, Failure, Quiet
from pycloud.cli.following import bar_columns
from pycloud.cli.output import Json, Printer, size_text

PIECE_BYTES = 8 * 1024 * 1024
_LEAST_PIECE_BYTES = 256 * 1024
_BLOCK_BYTES = 1024 * 1024
_TUS = {"Tus-Resumable": "1.0.0"}
_RETRIES = 8
_RETRY_PAUSE_S = 1.0
_LOG_LINE_S = 10.0

Moved = Callable[[int], None]
"""Told how many bytes have arrived."""


def upload(api: Api, path: Path, printer: Printer, *, resume: str | None = None) -> str:
    """Send a file and return the id of the upload; `resume` names one that was broken off.

    Ctrl-C discards what was sent. After a lasting loss of the connection it stays for a
    while, and the error says how to go on.
    """
    try:
        stream = path.open("rb")
    except OSError as exc:
        raise Failure(
            f"cannot read {path}: {exc.strerror}", advice="check the name and its permissions"
        ) from exc
    with stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        if not path.is_file() or size_bytes == 0:
            raise Failure(f"{path} is empty or no file", advice="name a file with something in it")
        upload_id = _resumed(api, resume, size_bytes) if resume else _created(api, path, size_bytes)
        with _moving(printer, f"Sending {path.name}", size_bytes) as moved:
            _send(api, upload_id, stream, moved)
    return upload_id


def download(api: Api, path: str, target: Path, description: Json, printer: Printer) -> None:
    """Fetch a file whose description names its size and SHA-256; all of it appears, or nothing."""
    try:
        with ExitStack() as undo:
            draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
            stream = draft.open("xb")
            undo.callback(draft.unlink, missing_ok=True)
            with (
                stream,
                _moving(printer, f"Fetching {target.name}", description["size_bytes"]) as m,
            ):
                digest = _receive(api, path, stream, m)
                stream.flush()
                os.fsync(stream.fileno())
            if digest != description["sha256"]:
                raise Failure("what arrived does not match its checksum", advice="try again")
            draft.replace(target)
    except OSError as exc:
        raise Failure(
            f"cannot write {target}: {exc.strerror or exc}", advice="choose another place"
        ) from exc


def discard(api: Api, upload_id: str) -> None:
    """Drop an upload that nobody will use."""
    api.send(Call(method="DELETE", path=_place(upload_id), headers=_TUS))


@contextmanager
def using(api: Api, upload_id: str) -> Iterator[str]:
    """Discard the upload if the server refuses what was asked to be made of it."""
    try:
        yield upload_id
    except Refused:
        discard(api, upload_id)
        raise


def _created(api: Api, path: Path, size_bytes: int) -> str:
    name = base64.b64encode(path.name.encode("utf-8", "replace")).decode("ascii")
    answer = api.send(
        Call(
            method="POST",
            path="/uploads",
            headers={
                **_TUS,
                "Upload-Length": str(size_bytes),
                "Upload-Metadata": f"filename {name}",
                "Idempotency-Key": uuid4().hex,
            },
            repeatable=True,
        )
    )
    return str(answer.json()["id"])


def _resumed(api: Api, upload_id: str, size_bytes: int) -> str:
    present = api.get(_place(upload_id))
    if present["size_bytes"] != size_bytes:
        raise Failure(
            f"upload {upload_id} is of a file with {present['size_bytes']} bytes,"
            f" this one has {size_bytes}",
            exit_code=ExitCode.CONFLICT,
            advice="leave --resume out to send it anew",
        )
    return upload_id


def _send(api: Api, upload_id: str, stream: BinaryIO, moved: Moved) -> None:
    try:
        offset = _offset(api, upload_id)
        piece_bytes = PIECE_BYTES
        failures = 0
        while True:
            moved(offset)
            stream.seek(offset)
            piece = stream.read(piece_bytes)
            if not piece:
                return
            try:
                offset = _append(api, upload_id, piece, offset)
                failures = 0
            except Unreachable:
                failures += 1
                if failures > _RETRIES:
                    raise
                time.sleep(_RETRY_PAUSE_S)
                offset = _offset_after_loss(api, upload_id, offset)
            except Refused as exc:
                if exc.code == "offset_mismatch":
                    # A piece whose answer was lost has arrived all the same.
                    offset = _offset(api, upload_id)
                elif exc.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and (
                    exc.code == "body_too_large" and piece_bytes > _LEAST_PIECE_BYTES
                ):
                    piece_bytes //= 2
                else:
                    raise
    except KeyboardInterrupt as exc:
        discard(api, upload_id)
        raise Quiet(ExitCode.INTERRUPTED) from exc
    except Unreachable as exc:
        raise Unreachable(
            exc.message,
            advice=f"what was sent is kept for a while; go on with --resume {upload_id}",
        ) from exc


def _append(api: Api, upload_id: str, piece: bytes, offset: int) -> int:
    answer = api.send(
        Call(
            method="PATCH",
            path=_place(upload_id),
            content=piece,
            headers={**_TUS, "Upload-Offset": str(offset)},
        )
    )
    return int(answer.headers["Upload-Offset"])


def _offset(api: Api, upload_id: str) -> int:
    return int(api.get(_place(upload_id))["offset_bytes"])


def _offset_after_loss(api: Api, upload_id: str, known: int) -> int:
    try:
        return _offset(api, upload_id)
    except Unreachable:
        return known


def _receive(api: Api, path: str, stream: BinaryIO, moved: Moved) -> str:
    digest = hashlib.sha256()
    received = 0
    with api.send(Call(method="GET", path=path, streams=True, repeatable=True)) as answer:
        try:
            for block in answer.iter_content(_BLOCK_BYTES):
                stream.write(block)
                digest.update(block)
                received += len(block)
                moved(received)
        except requests.RequestException as exc:
            raise Unreachable("the connection broke off", advice="try again") from exc
    return digest.hexdigest()


def _place(upload_id: str) -> str:
    return f"/uploads/{segment(upload_id)}"


@contextmanager
def _moving(printer: Printer, title: str, size_bytes: int) -> Iterator[Moved]:
    """Show a bar on a terminal, and elsewhere a line now and then."""
    console = printer.progress_console
    begin_s = time.monotonic()
    if console.is_terminal:
        with Progress(*bar_columns(), console=console, transient=True) as progress:
            task = progress.add_task(title, total=size_bytes, stage="", amount="")

            def show(done: int) -> None:
                amount = f"{size_text(done)} of {size_text(size_bytes)}"
                progress.update(task, completed=done, amount=amount)

            yield show
        console.print(Text(f"{title}: {time.monotonic() - begin_s:.1f} s", style="dim"))
        return
    printer.remark(f"{title}: {size_text(size_bytes)}")
    line_s = begin_s

    def tell(done: int) -> None:
        nonlocal line_s
        now_s = time.monotonic()
        if now_s - line_s >= _LOG_LINE_S:
            line_s = now_s
            printer.remark(f"{title}: {size_text(done)} of {size_text(size_bytes)}")

    yield tell
