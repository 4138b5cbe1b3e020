# SPDX-License-Identifier: Apache-2.0
"""`pycloud app`: client packages that phones can fetch."""

import sys
from pathlib import Path

import click

from pycloud.cli import transfer
from pycloud.cli.api_client import Call, segment
from pycloud.cli.failures import ExitCode, Quiet
from pycloud.cli.framework import (
    EXISTING_FILE,
    Commands,
    Ids,
    member_option,
    members_of,
    session_of,
)
from pycloud.cli.output import Column, field, size_text
from pycloud.cli.session import Session

APP_ID = Ids("/apps")

_LIST = (
    field("id", "id"),
    field("name", "name"),
    field("version", "app_version"),
    field("service", "service_id"),
    Column("for", lambda item: f"{item['os_name']} {item['min_os_version']}".strip()),
    Column("size", lambda item: size_text(item["size_bytes"])),
    field("tags", "tags"),
)
_DETAILS = (
    field("id", "id"),
    field("name", "name"),
    field("version", "app_version"),
    field("package", "package_name"),
    field("description", "description"),
    field("service", "service_id"),
    field("runs on", "os_name"),
    field("from version", "min_os_version"),
    field("tags", "tags"),
    field("file", "file_name"),
    Column("size", lambda item: size_text(item["size_bytes"])),
    field("SHA-256", "sha256"),
    field("MD5", "md5sum"),
    field("created", "created_at"),
)


@click.group(cls=Commands)
def app() -> None:
    """Client packages that phones can fetch from this cloudlet."""


@app.command("list")
@click.pass_obj
def list_apps(session: Session) -> None:
    """List all client packages."""
    session.printer.items(
        session.api.pages("/apps"), _LIST, empty="no apps yet; add one with `pycloud app add FILE`"
    )


@app.command("show")
@click.argument("app_id", type=APP_ID)
@click.pass_obj
def show_app(session: Session, app_id: str) -> None:
    """Show a client package."""
    session.printer.item(session.api.get(f"/apps/{segment(app_id)}"), _DETAILS)


@app.command("add")
@click.argument("file", type=EXISTING_FILE)
@click.option("--name", help="What phones show. [default: the name of the file]")
@member_option("--service", "service_id", told="The service that it uses.")
@member_option("--description", told="One sentence for people.")
@member_option("--package", "package_name", told="Such as org.example.speech.")
@member_option("--version", "app_version", told="Free text.")
@member_option("--os", "os_name", told="[default: Android]")
@member_option("--min-os-version", told="The oldest it runs on, such as 8.1.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="May be repeated.")
@click.pass_context
def add_app(ctx: click.Context, *, file: Path, name: str | None, tags: tuple[str, ...]) -> None:
    """Add a client package FILE (an .apk, say)."""
    session = session_of(ctx)
    api, printer = session.api, session.printer
    upload_id = transfer.upload(api, file, printer)
    body = {"name": name or file.stem, "upload_id": upload_id, "tags": list(tags)}
    with transfer.using(api, upload_id):
        added = api.post("/apps", {**members_of(ctx), **body})
    printer.done(f"app {added['name']} was added as {added['id']}", added)


@app.command("remove")
@click.argument("app_id", type=APP_ID)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove_app(session: Session, *, app_id: str, yes: bool) -> None:
    """Remove a client package."""
    api = session.api
    place = f"/apps/{segment(app_id)}"
    if not yes and sys.stdin.isatty():
        found = api.get(place)
        if not click.confirm(f"Remove app {found['name']} for ever?", err=True):
            raise Quiet(ExitCode.FAILURE)
    api.send(Call(method="DELETE", path=place))
    session.printer.done(f"app {app_id} was removed", {"id": app_id})


@app.command("download")
@click.argument("app_id", type=APP_ID)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def download_app(session: Session, app_id: str, file: Path) -> None:
    """Fetch a client package into FILE."""
    api, printer = session.api, session.printer
    place = f"/apps/{segment(app_id)}"
    description = api.get(place)
    transfer.download(api, f"{place}/content", file, description, printer)
    printer.done(f"{file} holds {size_text(description['size_bytes'])}", description)
