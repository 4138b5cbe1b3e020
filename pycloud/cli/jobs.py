# SPDX-License-Identifier: Apache-2.0
"""`pycloud job`: work that takes longer than a second."""

import click

from pycloud.cli.api_client import segment
from pycloud.cli.following import cancel, follow
from pycloud.cli.framework import Commands, Ids
from pycloud.cli.output import Column, Json, field, span_text, state_text
from pycloud.cli.session import Session

JOB_ID = Ids("/jobs")


def _share(item: Json) -> str | None:
    progress = item["progress"]
    if not progress["total"]:
        return None
    return f"{100 * progress['done'] // progress['total']} %"


_LIST = (
    field("id", "id"),
    field("kind", "kind"),
    Column("state", lambda item: state_text(item["state"])),
    field("stage", "stage"),
    Column("done", _share),
    field("works on", "resources"),
    field("created", "created_at"),
)
_DETAILS = (
    *_LIST,
    field("began", "started_at"),
    Column("time left, about", lambda item: span_text(item.get("eta_s"))),
    field("ended", "finished_at"),
    field("asked for by", "created_by"),
    field("may be cancelled", "may_cancel"),
    field("cancellation asked for", "cancel_requested"),
    field("result", "result"),
    Column("error", lambda item: item["error"]["message"] if item["error"] else None),
)


@click.group(cls=Commands)
def job() -> None:
    """Work that takes longer than a second: follow it, cancel it."""


@job.command("list")
@click.option(
    "--state", type=click.Choice(["queued", "running", "succeeded", "failed", "cancelled"])
)
@click.pass_obj
def list_jobs(session: Session, state: str | None) -> None:
    """List jobs."""
    query: dict[str, str | int] = {"state": state} if state else {}
    session.printer.items(session.api.pages("/jobs", query), _LIST, empty="no such jobs")


@job.command("show")
@click.argument("job_id", type=JOB_ID)
@click.pass_obj
def show_job(session: Session, job_id: str) -> None:
    """Show a job."""
    session.printer.item(session.api.get(f"/jobs/{segment(job_id)}"), _DETAILS)


@job.command("wait")
@click.argument("job_id", type=JOB_ID)
@click.pass_obj
def wait_job(session: Session, job_id: str) -> None:
    """Follow a job to its end; Ctrl-C asks it to cancel."""
    api, printer = session.api, session.printer
    ended = follow(api, api.job(job_id, hold_s=0), printer)
    printer.done(f"job {job_id} has {ended['state']}", ended)


@job.command("cancel")
@click.argument("job_id", type=JOB_ID)
@click.pass_obj
def cancel_job(session: Session, job_id: str) -> None:
    """Ask a job to stop and to undo what it did."""
    found = cancel(session.api, job_id)
    told = "was cancelled" if found["state"] == "cancelled" else "was asked to cancel"
    session.printer.done(f"job {job_id} {told}", found)
