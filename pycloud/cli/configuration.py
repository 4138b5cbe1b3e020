# SPDX-License-Identifier: Apache-2.0
"""`pycloud config`: the settings as they are read, without a server."""

from pathlib import Path

import click

from pycloud.cli.framework import Commands, config_option
from pycloud.cli.output import field
from pycloud.cli.session import Session
from pycloud.settings import ORIGIN_DEFAULT, PREFIX, describe, load

_SHOWN = (
    field("setting", "name"),
    field("value", "value"),
    field("from", "origin"),
    field("what it is", "help"),
)


@click.group("config", cls=Commands)
def config_group() -> None:
    """The settings: what they are, where they come from, whether a file is right."""


@config_group.command("show")
@config_option()
@click.option("--changed", is_flag=True, help="Only what differs from the defaults.")
@click.pass_obj
def show_config(session: Session, *, changed: bool) -> None:
    """Show every setting, its value and where that comes from."""
    origins = session.loaded.origins
    rows = [
        {"name": PREFIX + name, "value": _masked(value), "origin": origins[name], "help": meaning}
        for name, value, meaning in describe(session.settings)
        if not changed or origins[name] != ORIGIN_DEFAULT
    ]
    session.printer.items(rows, _SHOWN, empty="everything is as the defaults say")


@config_group.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def check_config(session: Session, file: Path) -> None:
    """Read FILE as the server would, and say what is wrong with it."""
    loaded = load(file)
    set_here = sorted(name for name, origin in loaded.origins.items() if origin == str(file))
    overridden = {
        name: origin
        for name, origin in loaded.origins.items()
        if origin not in {ORIGIN_DEFAULT, str(file)}
    }
    printer = session.printer
    for name, origin in overridden.items():
        printer.remark(f"{PREFIX}{name} is taken from the {origin}")
    result = {"file": str(file), "settings": [PREFIX + name for name in set_here]}
    printer.done(
        f"{file} is right; it sets {len(set_here)} of {len(loaded.origins)} settings", result
    )


def _masked(value: str) -> str:
    """Hide the password of a URL."""
    scheme, separator, rest = value.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not separator or not at or ":" not in credentials:
        return value
    return f"{scheme}://{credentials.partition(':')[0]}:***@{place}"
