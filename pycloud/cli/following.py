# SPDX-License-Identifier: Apache-2.0
"""Follows a Job to its end: a bar on a terminal, a line for each stage elsewhere.

Ctrl-C asks the server to cancel the Job and waits until what it did is undone. A second
Ctrl-C leaves at once; the server goes on by itself either way.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from pycloud.cli.api_client import Api, Refused, segment
from pycloud.cli.failures import ADVICE, ExitCode, Failure, Quiet
from pycloud.cli.output import Json, Printer, size_text, span_text

_HOLD_S = 1
"""How long the server holds each answer: so often does a bar move."""
_FINAL = frozenset({"succeeded", "failed", "cancelled"})
_TITLES = {
    "service.add": "Adding",
    "service.prepare": "Preparing",
    "service.import": "Importing",
    "service.export": "Exporting",
    "service.remove": "Removing",
    "instance.start": "Starting",
    "instance.stop": "Stopping",
}
_STAGES = {
    "inspect": "checking the image",
    "unpack": "unpacking",
    "normalise": "converting the disk",
    "publish": "recording",
    "memory": "checking the memory state",
    "finish": "finishing",
    "reserve": "reserving memory and a port",
    "boot": "booting",
    "ready": "waiting for the service to answer",
    "capture": "saving the memory state",
    "save": "saving disk and memory",
    "pack": "packing",
    "free": "cleaning up",
    "hide": "hiding it from clients",
    "stop": "stopping instances",
    "sweep": "removing files",
    "power_off": "powering the guest off",
    "destroy": "removing its disk",
    "record": "recording",
}


def follow(api: Api, job: Json, printer: Printer) -> Json:
    """Return the Job at its successful end.

    Raises Failure if it fails or is cancelled by somebody else, Quiet after Ctrl-C.
    """
    title = f"{_TITLES.get(job['kind'], job['kind'])} {_subject(job)}".rstrip()
    ended: Json | None = None
    with _view(printer.progress_console, title) as view:
        try:
            while not is_final(job):
                view.show(job)
                job = api.job(job["id"], hold_s=_HOLD_S)
            view.show(job)
        except KeyboardInterrupt:
            view.say("interrupted; asking the server to cancel and undo (Ctrl-C again: leave now)")
            ended = _cancel(api, job)
    if ended is not None:
        printer.remark(_told_after_cancel(ended))
        raise Quiet(ExitCode.INTERRUPTED)
    return _checked(job)


def follow_with_sequel(api: Api, job: Json, printer: Printer) -> Json:
    """Follow a Job and the preparation that it may have begun; return the first Job.

    What was added stays if only its preparation fails; that is said and is no failure.
    """
    finished = follow(api, job, printer)
    sequel = finished["result"].get("prepare_job")
    if sequel:
        try:
            follow(api, api.job(sequel, hold_s=0), printer)
        except Refused as exc:
            if exc.code != "not_found":
                raise
    return finished


def is_final(job: Json) -> bool:
    """Return whether nothing will change any more."""
    return job["state"] in _FINAL


def cancel(api: Api, job_id: str) -> Json:
    """Ask the server to cancel a Job; return the Job as it is then."""
    api.delete(f"/jobs/{segment(job_id)}")
    return api.job(job_id, hold_s=0)


def _cancel(api: Api, job: Json) -> Json:
    try:
        job = cancel(api, job["id"])
    except Refused as exc:
        if exc.code in {"unauthenticated", "permission_denied"}:
            raise
        # Too late, or over meanwhile: how it ended is what counts.
        job = api.job(job["id"], hold_s=0)
    try:
        while not is_final(job):
            job = api.job(job["id"], hold_s=_HOLD_S)
    except KeyboardInterrupt:
        return job
    return job


def _told_after_cancel(job: Json) -> str:
    match job["state"]:
        case "cancelled":
            return "cancelled; what it did so far was undone"
        case "succeeded":
            return "it was too late to cancel: the job had succeeded"
        case "failed":
            return f"the job had failed: {job['error']['message'] if job['error'] else '?'}"
        case _:
            return f"the server goes on by itself; see `pycloud job show {job['id']}`"


def _checked(job: Json) -> Json:
    if job["state"] == "succeeded":
        return job
    if job["state"] == "cancelled":
        raise Failure(f"job {job['id']} was cancelled; what it did was undone")
    error = job["error"] or {"code": "internal", "message": "the job failed"}
    exit_code = {
        "not_found": ExitCode.NOT_FOUND,
        "conflict": ExitCode.CONFLICT,
        "already_exists": ExitCode.CONFLICT,
        "service_in_use": ExitCode.CONFLICT,
    }.get(error["code"], ExitCode.FAILURE)
    raise Failure(
        f"{error['message']} (job {job['id']}, stage {job['stage'] or 'none'})",
        exit_code=exit_code,
        advice=ADVICE.get(error["code"], ""),
    )


def _subject(job: Json) -> str:
    """Return the id of what people would say the Job is about."""
    by_kind = dict(reversed([resource.partition("/")[::2] for resource in job["resources"]]))
    return str(by_kind.get("service") or by_kind.get("instance") or "")


def _stage(job: Json) -> str:
    return _STAGES.get(job["stage"], job["stage"]) or "waiting for its turn"


# -- on a terminal, and elsewhere ------------------------------------------------------


class _Bar:
    """A moving bar that goes away at the end, leaving one line with the time taken."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def show(self, job: Json) -> None:
        done, total = job["progress"]["done"], job["progress"]["total"]
        self._progress.update(
            self._task,
            stage=_stage(job),
            completed=done,
            total=total or None,
            amount=_amount(job),
        )

    def say(self, remark: str) -> None:
        self._progress.console.print(Text(remark))


class _Lines:
    """A line for each stage, for logs."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._last = ""

    def show(self, job: Json) -> None:
        stage = job["state"] if is_final(job) else _stage(job)
        if stage != self._last:
            self._last = stage
            self._console.print(Text(f"{self._title}: {stage}"), soft_wrap=True)

    def say(self, remark: str) -> None:
        self._console.print(Text(remark), soft_wrap=True)


class AmountColumn(ProgressColumn):
    """How much is done, if that is known."""

    def render(self, task: Task) -> Text:
        """Return what the task was last told."""
        return Text(str(task.fields.get("amount", "")), style="progress.download")


def bar_columns() -> tuple[ProgressColumn, ...]:
    """Return what the bars of all commands consist of."""
    return (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        AmountColumn(),
        TextColumn("{task.fields[stage]}", style="dim", markup=False),
        TimeElapsedColumn(),
    )


@contextmanager
def _view(console: Console, title: str) -> Iterator[_Bar | _Lines]:
    if not console.is_terminal:
        yield _Lines(console, title)
        return
    begin_s = time.monotonic()
    with Progress(*bar_columns(), console=console, transient=True) as progress:
        yield _Bar(progress, progress.add_task(title, total=None, stage="", amount=""))
    console.print(Text(f"{title}: {time.monotonic() - begin_s:.1f} s", style="dim"))


def _amount(job: Json) -> str:
    left = span_text(job.get("eta_s"))
    return ", about ".join(filter(None, [_done(job), left and f"{left} left"]))


def _done(job: Json) -> str:
    progress = job["progress"]
    if not progress["total"]:
        return ""
    if progress["unit"] == "bytes":
        return f"{size_text(progress['done'])} of {size_text(progress['total'])}"
    return f"{progress['done']} of {progress['total']} {progress['unit']}"
