# SPDX-License-Identifier: Apache-2.0
"""`pycloud service`: what clients may ask for."""

import sys
from pathlib import Path
from typing import Any

import click

from pycloud.cli import packages, transfer
from pycloud.cli.api_client import Api, segment
from pycloud.cli.failures import ExitCode, Failure, Quiet
from pycloud.cli.following import follow, follow_with_sequel
from pycloud.cli.framework import (
    EXISTING_FILE,
    Commands,
    F,
    Ids,
    Null,
    Required,
    member_option,
    members_of,
    note_member,
    session_of,
)
from pycloud.cli.output import Column, Json, Printer, field, size_text
from pycloud.cli.session import Session

SERVICE_ID = Ids("/services")

_LIST = (
    field("id", "id"),
    field("version", "version"),
    field("port", "port"),
    Column("memory", lambda item: f"{item['ideal_memory_mib']} MiB"),
    field("shared by", "sharing_limit"),
    field("tags", "tags"),
    field("description", "description"),
)
_DETAILS = (
    field("id", "id"),
    field("version", "version"),
    field("description", "description"),
    field("tags", "tags"),
    field("port", "port"),
    field("ready when", "readiness"),
    field("shared by at most", "sharing_limit"),
    field("processors", "vcpus"),
    Column(
        "memory",
        lambda item: f"{item['ideal_memory_mib']} MiB (at least {item['min_memory_mib']} MiB)",
    ),
    field("operating system", "os_type"),
    Column("waiting copies", lambda item: _or_settings(item["warm_count"], "")),
    Column("stopped when idle for", lambda item: _or_settings(item["idle_timeout_s"], " s")),
    Column("stopped after", lambda item: _or_settings(item["max_lifetime_s"], " s")),
    field("created", "created_at"),
    field("changed", "updated_at"),
)
_STORED = (
    Column("stored VM", lambda item: item["stored"]["id"]),
    Column("made from", lambda item: item["stored"]["source"]),
    Column(
        "disk",
        lambda item: (
            size_text(item["stored"]["disk"]["size_bytes"])
            + f", {size_text(item['stored']['disk']['virtual_size_bytes'])} for the guest"
        ),
    ),
    Column(
        "made on",
        lambda item: "{machine} {cpu_model} {accelerator}, QEMU {emulator_version}".format(
            **item["stored"]["machine"]
        ),
    ),
    Column("instant start", lambda item: _memory(item["stored"]["memory"])),
)


@click.group(cls=Commands)
def service() -> None:
    """What clients may ask for: list, add, change, remove, import and export."""


@service.command("list")
@click.pass_obj
def list_services(session: Session) -> None:
    """List all services."""
    session.printer.items(
        session.api.pages("/services"),
        _LIST,
        empty="no services yet; add one with `pycloud service add IMAGE --id ID --port PORT`",
    )


@service.command("show")
@click.argument("service_id", type=SERVICE_ID)
@click.pass_obj
def show_service(session: Session, service_id: str) -> None:
    """Show a service and its stored VM."""
    api, printer = session.api, session.printer
    place = f"/services/{segment(service_id)}"
    found = api.get(place)
    stored = list(api.pages(f"{place}/service-vms"))
    if not printer.is_for_people:
        printer.document({**found, "service_vms": stored})
        return
    current = [one for one in stored if one["id"] == found["service_vm_id"]]
    if current:
        printer.item({**found, "stored": current[0]}, _DETAILS + _STORED)
    else:
        printer.item(found, _DETAILS)


class _OrSettings(click.ParamType[int | Null]):
    """A number from 0, or the word that leaves it to the settings of the server."""

    name = "number"
    word = "auto"

    def convert(
        self,
        value: Any,  # Any: what click read, or was given as a default
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int | Null:
        """Return the number, or NULL for the word."""
        return Null.NULL if value == self.word else click.IntRange(0).convert(value, param, ctx)


_DESCRIPTION = (
    member_option("--version", told="Free text."),
    member_option("--description", told="One sentence for people."),
    member_option("--tag", "tags", metavar="TAG", told="May be repeated."),
    member_option(
        "--sharing-limit", kind=click.IntRange(1), told="How many users share one instance."
    ),
    member_option("--vcpus", kind=click.IntRange(1), told="Virtual processors."),
    member_option(
        "--memory",
        "ideal_memory_mib",
        kind=click.IntRange(16),
        metavar="MIB",
        told="Memory of an instance.",
    ),
    member_option(
        "--min-memory",
        "min_memory_mib",
        kind=click.IntRange(16),
        metavar="MIB",
        told="What the guest cannot do without.",
    ),
    member_option(
        "--os", "os_type", kind=click.Choice(["linux", "windows"]), told="The guest's family."
    ),
    member_option(
        "--ready",
        "readiness",
        kind=click.Choice(["auto", "http", "tcp"]),
        told="What counts as an answer: any byte, an HTTP status line, an accepted connection.",
    ),
    member_option(
        "--warm-count",
        kind=_OrSettings(),
        metavar="COPIES|auto",
        told="Copies kept waiting for the next start; auto: as the settings say.",
    ),
    member_option(
        "--idle-timeout",
        "idle_timeout_s",
        kind=_OrSettings(),
        metavar="SECONDS|auto",
        told="An unused instance is stopped after this; 0: never, auto: as the settings say.",
    ),
    member_option(
        "--max-lifetime",
        "max_lifetime_s",
        kind=_OrSettings(),
        metavar="SECONDS|auto",
        told="Any instance is stopped after this; 0: never, auto: as the settings say.",
    ),
)

_LEFT_TO_SETTINGS = {
    "warm-count": "warm_count",
    "idle-timeout": "idle_timeout_s",
    "max-lifetime": "max_lifetime_s",
}


def _described(command: F) -> F:
    """Add the options that describe a service."""
    for option in reversed(_DESCRIPTION):
        command = option(command)
    return command


_wait = click.option(
    "--wait/--no-wait", "waits", default=True, help="Follow the job to its end, or only ask."
)
_prepare = click.option(
    "--prepare/--no-prepare",
    default=True,
    callback=note_member,
    expose_value=False,
    help="Boot it once and keep its memory, so that starts take fractions of a second.",
)
_resume = click.option("--resume", metavar="UPLOAD", help="Go on with an upload that broke off.")


@service.command("add")
@click.argument("image", type=EXISTING_FILE)
@member_option("--id", required=Required.YES, told="The name that clients ask for.")
@member_option(
    "--port",
    kind=click.IntRange(1, 65535),
    required=Required.YES,
    told="Where the guest serves.",
)
@member_option(
    "--format",
    kind=click.Choice(["qcow2", "raw"]),
    told="Needed for raw images, which look like anything.",
)
@_described
@_prepare
@_resume
@_wait
@click.pass_context
def add_service(ctx: click.Context, *, image: Path, resume: str | None, waits: bool) -> None:
    """Add a service from a disk IMAGE (qcow2 or raw).

    The image is sent in pieces, checked, converted and stored; then the service is booted
    once to keep its memory for instant starts.
    """
    session, body = session_of(ctx), members_of(ctx)
    api, printer = session.api, session.printer
    _require_free(api, body["id"])
    upload_id = transfer.upload(api, image, printer, resume=resume)
    with transfer.using(api, upload_id):
        job = api.post("/services", {**body, "upload_id": upload_id})
    _finish(session, job, waits=waits, done=f"service {body['id']} was added")


@service.command("import")
@click.argument("package", type=EXISTING_FILE)
@member_option("--id", "service_id", told="Another id than the one in the package.")
@_prepare
@_resume
@_wait
@click.pass_context
def import_service(ctx: click.Context, *, package: Path, resume: str | None, waits: bool) -> None:
    """Add a service from a PACKAGE (.csvm), also one of the original pycloud."""
    session, body = session_of(ctx), members_of(ctx)
    api, printer = session.api, session.printer
    if "service_id" in body:
        _require_free(api, body["service_id"])
    upload_id = transfer.upload(api, package, printer, resume=resume)
    with transfer.using(api, upload_id):
        job = api.post("/imports", {**body, "upload_id": upload_id})
    _finish(session, job, waits=waits, done=f"{package.name} was imported")


@service.command("export")
@click.argument("service_id", type=SERVICE_ID)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--keep", is_flag=True, help="Leave the package on the cloudlet for a while, too.")
@click.pass_obj
def export_service(session: Session, *, service_id: str, file: Path, keep: bool) -> None:
    """Write a service as a package FILE (.csvm) that other cloudlets can import.

    The cloudlet makes the package; once it has arrived here, whole and checked, it is
    removed there, unless with --keep.
    """
    api, printer = session.api, session.printer
    if not file.parent.is_dir():
        raise Failure(f"there is no folder {file.parent}", exit_code=ExitCode.USAGE)
    job = follow(api, api.post("/packages", {"service_id": service_id}), printer)
    package_id = job["result"]["package_id"]
    try:
        description = packages.fetch(api, package_id, file, printer)
    except (Failure, KeyboardInterrupt):
        printer.remark(
            "the cloudlet keeps the package for a while:"
            f" `pycloud package download {package_id} FILE` fetches it"
        )
        raise
    if not keep:
        _remove_exported(api, package_id, printer)
    printer.done(f"{file} holds {size_text(description['size_bytes'])}", description)


def _remove_exported(api: Api, package_id: str, printer: Printer) -> None:
    """Remove a package of which there is a copy here; that it stays is no failure."""
    try:
        packages.remove(api, package_id)
    except Failure as exc:
        printer.remark(
            f"the package stays on the cloudlet for a while ({exc.message});"
            f" see `pycloud package remove {package_id}`"
        )


@service.command("update")
@click.argument("service_id", type=SERVICE_ID)
@member_option("--port", kind=click.IntRange(1, 65535), told="Where the guest serves.")
@click.option("--no-tags", is_flag=True, help="Remove all tags.")
@click.option(
    "--unset",
    type=click.Choice(list(_LEFT_TO_SETTINGS)),
    multiple=True,
    help="Leave this to the settings again. May be repeated.",
)
@_described
@click.pass_context
def update_service(
    ctx: click.Context, *, service_id: str, no_tags: bool, unset: tuple[str, ...]
) -> None:
    """Change a service. With other memory or processors it is prepared again by itself."""
    session = session_of(ctx)
    changes = members_of(ctx) | ({"tags": []} if no_tags else {})
    changes |= {_LEFT_TO_SETTINGS[option]: None for option in unset}
    if not changes:
        raise click.UsageError("say what to change; see --help")
    changed = session.api.change(f"/services/{segment(service_id)}", changes)
    session.printer.done(f"service {service_id} was changed", changed)
    if changed.get("prepare_job"):
        session.printer.remark(
            f"job {changed['prepare_job']} prepares it again; until then it starts more slowly"
        )


@service.command("prepare")
@click.argument("service_id", type=SERVICE_ID)
@_wait
@click.pass_obj
def prepare_service(session: Session, *, service_id: str, waits: bool) -> None:
    """Boot a service once and keep its memory for instant starts."""
    job = session.api.post(f"/services/{segment(service_id)}/prepare")
    _finish(session, job, waits=waits, done=f"service {service_id} starts instantly from now on")


@service.command("remove")
@click.argument("service_id", type=SERVICE_ID)
@click.option("--stop-instances", is_flag=True, help="Stop its running instances first.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_wait
@click.pass_obj
def remove_service(
    session: Session, *, service_id: str, stop_instances: bool, yes: bool, waits: bool
) -> None:
    """Remove a service with its disk and memory state."""
    api = session.api
    place = f"/services/{segment(service_id)}"
    if not yes and sys.stdin.isatty():
        api.get(place)
        if not click.confirm(f"Remove service {service_id} for ever?", err=True):
            raise Quiet(ExitCode.FAILURE)
    job = api.delete(place, {"instances": "stop" if stop_instances else "refuse"})
    _finish(session, job or {}, waits=waits, done=f"service {service_id} was removed")


def _finish(session: Session, job: Json, *, waits: bool, done: str) -> None:
    printer = session.printer
    if not waits:
        printer.done(f"job {job['id']} was begun; see `pycloud job wait {job['id']}`", job)
        return
    job = follow_with_sequel(session.api, job, printer)
    for remark in _remarks(job):
        printer.remark(remark)
    printer.done(done, job)


def _remarks(job: Json) -> list[str]:
    memory = job["result"].get("memory", "")
    return (
        [f"the memory state in the package was {memory}"] if memory.startswith("not used") else []
    )


def _require_free(api: Api, service_id: str) -> None:
    """Refuse before a large file is sent in vain; the server checks again."""
    if any(found["id"] == service_id for found in api.pages("/services")):
        raise Failure(
            f"a service {service_id!r} exists already",
            exit_code=ExitCode.CONFLICT,
            advice="choose another --id, or `pycloud service remove` the old one first",
        )


def _or_settings(value: object, unit: str) -> str:
    return "as the settings say" if value is None else f"{value}{unit}"


def _memory(memory: Json | None) -> str:
    if memory is None:
        return "no (run `pycloud service prepare`)"
    kind = "yes" if memory["kind"] == "template" else "from a restored state"
    return f"{kind}, {memory['memory_mib']} MiB of memory kept"
