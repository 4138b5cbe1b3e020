# SPDX-License-Identifier: Apache-2.0
"""The `pycloud` command: its options and the groups of commands below it."""

import click

from pycloud import __version__
from pycloud.cli.apps import app
from pycloud.cli.cloudlet import cloudlet
from pycloud.cli.completion import completion
from pycloud.cli.configuration import config_group
from pycloud.cli.doctor import doctor
from pycloud.cli.framework import FORMATS, Commands, config_option, session_of
from pycloud.cli.instances import instance
from pycloud.cli.jobs import job
from pycloud.cli.output import Format
from pycloud.cli.packages import package
from pycloud.cli.services import service
from pycloud.cli.serving import serve


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="pycloud %(version)s")
@config_option(envvar="PYCLOUD_CONFIG")
@click.option(
    "--url",
    envvar="PYCLOUD_URL",
    show_envvar=True,
    metavar="URL",
    help="The Cloudlet API to talk to. [default: the one on this machine]",
)
@click.option(
    "--token",
    envvar="PYCLOUD_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="The administrator's token. [default: that of the cloudlet on this machine, if readable]",
)
@click.option("--output", "-o", "form", type=FORMATS, help="Form of results. [default: table]")
@click.pass_context
def cli(ctx: click.Context, url: str | None, token: str | None, form: str | None) -> None:
    """Offer services to nearby devices, and manage what a cloudlet offers.

    \b
    First steps:
      pycloud doctor              what this machine can do, and how to mend the rest
      pycloud serve               run a cloudlet until Ctrl-C
      pycloud service add         offer a disk image to devices, from another terminal
      pycloud cloudlet discover   see what devices see

    Settings come from an .ini file or from PYCLOUD_* variables; `pycloud config show`
    explains each of them.

    Exit codes: 0 done, 1 failed, 2 wrong command line or settings, 3 server unreachable,
    4 not found, 5 conflict with the present state, 130 interrupted.
    """
    session = session_of(ctx)
    session.url = url or session.url
    session.token = token or session.token
    session.form = Format(form) if form else session.form


for command in (
    serve,
    service,
    instance,
    app,
    package,
    job,
    cloudlet,
    config_group,
    doctor,
    completion,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    cli(prog_name="pycloud")
