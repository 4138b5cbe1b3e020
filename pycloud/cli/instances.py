# SPDX-License-Identifier: Apache-2.0
"""`pycloud instance`: running copies of services."""

import sys

import click

from pycloud.cli.api_client import Call, segment
from pycloud.cli.failures import printable
from pycloud.cli.following import follow
from pycloud.cli.framework import Commands, Ids
from pycloud.cli.output import Column, Json, Printer, field, state_text
from pycloud.cli.services import SERVICE_ID
from pycloud.cli.session import Session

INSTANCE_ID = Ids("/instances")
_OVER = frozenset({"stopped", "failed"})


def _endpoint(item: Json) -> str | None:
    if item["address"] is None or item["port"] is None:
        return None
    return f"{item['address']}:{item['port']}"


_LIST = (
    field("id", "id"),
    field("service", "service_id"),
    Column("state", lambda item: state_text(item["state"])),
    Column("reached at", _endpoint),
    Column("users", lambda item: f"{item['users']}/{item['sharing_limit']}"),
    Column("memory", lambda item: f"{item['memory_mib']} MiB"),
    field("started", "start_method"),
    field("since", "created_at"),
)
_DETAILS = (
    field("id", "id"),
    field("service", "service_id"),
    Column("state", lambda item: state_text(item["state"])),
    Column("why", lambda item: item["failure"]["message"] if item["failure"] else None),
    Column("reached at", _endpoint),
    Column("users", lambda item: f"{item['users']} of at most {item['sharing_limit']}"),
    Column("machine", lambda item: f"{item['vcpus']} processors, {item['memory_mib']} MiB"),
    field("started from", "start_method"),
    field("owner", "owner"),
    field("stopped when unused at", "idle_at"),
    field("stopped at", "expires_at"),
    field("created", "created_at"),
    field("job", "job_id"),
)
_TIMELINE = (
    field("phase", "name"),
    Column("begins", lambda phase: f"{phase['begin_ms']:9.1f} ms"),
    Column("takes", lambda phase: f"{phase['duration_ms']:9.1f} ms"),
)
_wait = click.option(
    "--wait/--no-wait", "waits", default=True, help="Follow the job to its end, or only ask."
)


@click.group(cls=Commands)
def instance() -> None:
    """Running copies of services: start, look at, pause and stop."""


@instance.command("list")
@click.option("--service", "service_id", type=SERVICE_ID, help="Only those of one service.")
@click.option("--all", "shows_all", is_flag=True, help="Also those that have ended.")
@click.pass_obj
def list_instances(session: Session, *, service_id: str | None, shows_all: bool) -> None:
    """List instances."""
    query: dict[str, str | int] = {"service_id": service_id} if service_id else {}
    found = session.api.pages("/instances", query)
    session.printer.items(
        (item for item in found if shows_all or item["state"] not in _OVER),
        _LIST,
        empty="nothing runs; start a service with `pycloud instance start SERVICE`",
    )


@instance.command("show")
@click.argument("instance_id", type=INSTANCE_ID)
@click.pass_obj
def show_instance(session: Session, instance_id: str) -> None:
    """Show an instance and where the time of its start went."""
    _show(session.printer, session.api.get(f"/instances/{segment(instance_id)}"))


@instance.command("start")
@click.argument("service_id", type=SERVICE_ID)
@click.option("--share", is_flag=True, help="Use a running instance if one has room.")
@_wait
@click.pass_obj
def start_instance(session: Session, *, service_id: str, share: bool, waits: bool) -> None:
    """Start a service, and wait until it answers."""
    api, printer = session.api, session.printer
    body = {"service_id": service_id, "join": "share" if share else "fresh"}
    begun = api.post("/instances", body)
    if begun["job"] is not None and waits:
        follow(api, begun["job"], printer)
    found = api.get(f"/instances/{segment(begun['instance']['id'])}")
    if printer.is_for_people and not waits:
        printer.line(f"instance {found['id']} is {found['state']}")
    else:
        _show(printer, found)


@instance.command("stop")
@click.argument("instance_id", type=INSTANCE_ID)
@click.option("--graceful", is_flag=True, help="Let the guest power off first.")
@_wait
@click.pass_obj
def stop_instance(session: Session, *, instance_id: str, graceful: bool, waits: bool) -> None:
    """Stop an instance, whoever uses it; its disk is thrown away."""
    api, printer = session.api, session.printer
    mode = "graceful" if graceful else "at_once"
    job = api.delete(f"/instances/{segment(instance_id)}", {"mode": mode})
    if job is not None and waits:
        job = follow(api, job, printer)
    printer.done(f"instance {instance_id} {'was stopped' if waits else 'is being stopped'}", job)


@instance.command("renew")
@click.argument("instance_id", type=INSTANCE_ID)
@click.pass_obj
def renew_instance(session: Session, instance_id: str) -> None:
    """Count the idle time of an instance anew."""
    found = session.api.post(f"/instances/{segment(instance_id)}/renew")
    until = found["idle_at"] or "it is stopped"
    session.printer.done(f"instance {instance_id} stays until {until}", found)


@instance.command("pause")
@click.argument("instance_id", type=INSTANCE_ID)
@click.pass_obj
def pause_instance(session: Session, instance_id: str) -> None:
    """Stop the processors of an instance; its memory stays."""
    found = session.api.post(f"/instances/{segment(instance_id)}/pause")
    session.printer.done(f"instance {instance_id} is {found['state']}", found)


@instance.command("resume")
@click.argument("instance_id", type=INSTANCE_ID)
@click.pass_obj
def resume_instance(session: Session, instance_id: str) -> None:
    """Let a paused instance go on."""
    found = session.api.post(f"/instances/{segment(instance_id)}/resume")
    session.printer.done(f"instance {instance_id} is {found['state']}", found)


@instance.command("log")
@click.argument("instance_id", type=INSTANCE_ID)
@click.option(
    "--bytes",
    "limit_bytes",
    type=click.IntRange(1, 65536),
    default=8192,
    show_default=True,
    help="How much of the end.",
)
@click.pass_obj
def log_instance(session: Session, instance_id: str, limit_bytes: int) -> None:
    """Print the end of what the guest wrote to its serial console."""
    path = f"/instances/{segment(instance_id)}/serial"
    answer = session.api.send(
        Call(method="GET", path=path, query={"bytes": limit_bytes}, repeatable=True)
    )
    text = answer.content.decode("utf-8", errors="replace").replace("\r\n", "\n")
    printer = session.printer
    if not printer.is_for_people:
        printer.document({"id": instance_id, "serial": text})
    elif not text:
        printer.remark("the guest has written nothing")
    else:
        # A guest is not trusted: on a terminal, what could steer it is left out.
        shown = printable(text) if sys.stdout.isatty() else text
        click.echo(shown, nl=not shown.endswith("\n"))


def _show(printer: Printer, found: Json) -> None:
    printer.item(found, _DETAILS)
    if printer.is_for_people and found["timeline"]:
        printer.items(found["timeline"], _TIMELINE, empty="")
