# SPDX-License-Identifier: Apache-2.0
"""`pycloud serve`: both apps in one process, for people who do not care about .ini files."""

import warnings
from collections.abc import Mapping

import click

from pycloud.cli.api_client import Api
from pycloud.cli.failures import Failure
from pycloud.cli.framework import Command, config_option
from pycloud.cli.session import Session
from pycloud.core.access import ADMIN_TOKEN
from pycloud.errors import InvalidSettings
from pycloud.settings import Settings

_LOOK_PATIENCE_S = 2.0
_EVERYWHERE = "0.0.0.0"  # noqa: S104  # compared with, not listened on


@click.command(cls=Command)
@config_option()
@click.pass_obj
def serve(session: Session) -> None:
    """Run the Cloudlet API and the Manager until Ctrl-C."""
    settings = session.settings
    # pyramid's own import of pkg_resources is no news for whoever starts a server.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    # The web framework takes half a second to load, which no other command should wait for.
    from pycloud.cli import server  # noqa: PLC0415

    try:
        server.run(settings, on_ready=lambda urls: _say_where(session, urls))
    except InvalidSettings as exc:
        if exc.key != "listen":
            raise
        raise _taken(exc.value, settings) from exc
    session.printer.remark("stopped; instances keep running and are found again at the next start")


def _say_where(session: Session, urls: Mapping[str, str]) -> None:
    printer = session.printer
    shown = {name: url.replace(_EVERYWHERE, "127.0.0.1") for name, url in urls.items()}
    if not printer.is_for_people:
        printer.document(shown)
        return
    settings = session.settings
    printer.line(f"Cloudlet API  {shown['api']}  (documentation: {shown['api']}/docs/api)")
    printer.line(f"Manager       {shown['manager']}")
    printer.line(f"Administrator's token: {settings.data_dir / ADMIN_TOKEN}")
    printer.line("Ctrl-C stops the server; instances keep running.")


def _taken(place: str, settings: Settings) -> Failure:
    host, _, port = place.rpartition(":")
    name = "manager" if int(port) == settings.manager_port else "api"
    if _cloudlet_answers(host, port):
        return Failure(
            f"a cloudlet is running at {place} already",
            advice="use it, stop it, or start this one with another data directory and port:"
            f" PYCLOUD_DATA_DIR=... PYCLOUD_{name.upper()}_PORT=... pycloud serve",
        )
    return Failure(
        f"cannot listen on {place}: another program does, or the address is not ours",
        advice=f"`ss -ltnp 'sport = :{port}'` names it; stop it, or choose another port with"
        f" PYCLOUD_{name.upper()}_PORT or pycloud.{name}_port",
    )


def _cloudlet_answers(host: str, port: str) -> bool:
    url = f"http://{'127.0.0.1' if host == _EVERYWHERE else host}:{port}"
    try:
        return "api_extensions" in Api(url, patience_s=_LOOK_PATIENCE_S).get("")
    except Failure:
        return False
