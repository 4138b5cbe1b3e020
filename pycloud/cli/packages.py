# SPDX-License-Identifier: Apache-2.0
"""`pycloud package`: exported services that wait on the cloudlet for being fetched."""

import sys
from pathlib import Path

import click

from pycloud.cli import transfer
from pycloud.cli.api_client import Api, Call, segment
from pycloud.cli.failures import ExitCode, Quiet
from pycloud.cli.framework import Commands, Ids
from pycloud.cli.output import Column, Json, Printer, field, size_text
from pycloud.cli.session import Session

PACKAGE_ID = Ids("/packages")

_LIST = (
    field("id", "id"),
    field("service", "service_id"),
    Column("size", lambda item: size_text(item["size_bytes"])),
    field("created", "created_at"),
    field("kept until", "expires_at"),
)


@click.group(cls=Commands)
def package() -> None:
    """Exported services that the cloudlet keeps for a while: fetch or remove them."""


@package.command("list")
@click.pass_obj
def list_packages(session: Session) -> None:
    """List all packages."""
    session.printer.items(
        session.api.pages("/packages"),
        _LIST,
        empty="no packages; `pycloud service export ID FILE` makes and fetches one",
    )


@package.command("download")
@click.argument("package_id", type=PACKAGE_ID)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def download_package(session: Session, package_id: str, file: Path) -> None:
    """Fetch a package into FILE; it also stays on the cloudlet."""
    description = fetch(session.api, package_id, file, session.printer)
    session.printer.done(f"{file} holds {size_text(description['size_bytes'])}", description)


@package.command("remove")
@click.argument("package_id", type=PACKAGE_ID)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove_package(session: Session, *, package_id: str, yes: bool) -> None:
    """Remove a package from the cloudlet; the service stays."""
    api = session.api
    if not yes and sys.stdin.isatty():
        found = api.get(_place(package_id))
        if not click.confirm(f"Remove this package of {found['service_id']}?", err=True):
            raise Quiet(ExitCode.FAILURE)
    remove(api, package_id)
    session.printer.done(f"package {package_id} was removed", {"id": package_id})


def fetch(api: Api, package_id: str, file: Path, printer: Printer) -> Json:
    """Write a package to a file, checked, and return its description."""
    place = _place(package_id)
    description = api.get(place)
    transfer.download(api, f"{place}/content", file, description, printer)
    return description


def remove(api: Api, package_id: str) -> None:
    """Remove a package from the server. Raises Refused, Unreachable."""
    api.send(Call(method="DELETE", path=_place(package_id)))


def _place(package_id: str) -> str:
    return f"/packages/{segment(package_id)}"
