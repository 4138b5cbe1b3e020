# SPDX-License-Identifier: Apache-2.0
"""`pycloud cloudlet`: this cloudlet and those around it."""

from dataclasses import asdict

import click

from pycloud.cli.framework import Commands
from pycloud.cli.output import Column, Json, field, size_text
from pycloud.cli.session import Session

_STATUS = (
    Column("name", lambda item: item["cloudlet"]["name"]),
    Column("reached at", lambda item: f"{item['cloudlet']['address']}:{item['cloudlet']['port']}"),
    Column("host name", lambda item: item["cloudlet"]["fqdn"]),
    Column("version", lambda item: item["cloudlet"]["version"]),
    Column("announced", lambda item: item["discovery_problem"] or "yes"),
    Column(
        "instances",
        lambda item: "{instances} of at most {max_instances} (waiting copies included)".format(
            **item["host"]
        ),
    ),
    Column(
        "promised to guests",
        lambda item: "{claimed_memory_mib} of {memory_mib} MiB".format(**item["host"]),
    ),
    Column("memory", lambda item: _free_of(item["memory"], "max_bytes")),
    Column("disk", lambda item: _free_of(item["storage"], "total_bytes")),
    Column(
        "processors",
        lambda item: "{max_cores} at {speed_mhz:.0f} MHz, {usage_percent:.0f} % in use".format(
            **item["cpu"]
        ),
    ),
    Column("hypervisor", lambda item: _hypervisor(item["hypervisor"])),
    Column(
        "instant start",
        lambda item: bool(item["hypervisor"]) and item["hypervisor"]["instant_start"],
    ),
)
_PEERS = (
    field("name", "name"),
    Column("reached at", lambda item: [f"{one}:{item['port']}" for one in item["addresses"]]),
    Column(
        "load", lambda item: None if item["load_percent"] is None else f"{item['load_percent']} %"
    ),
    field("services", "services"),
    field("encrypted", "encryption"),
    Column("API", lambda item: item["api_version"] or "legacy"),
    field("seen", "seen_at"),
)


@click.group(cls=Commands)
def cloudlet() -> None:
    """This cloudlet, and those around it."""


@cloudlet.command("status")
@click.pass_obj
def status(session: Session) -> None:
    """Show who this cloudlet is, how loaded it is and what it can do."""
    session.printer.item(session.api.get("/system"), _STATUS)


@cloudlet.command("discover")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.5, 60),
    default=6.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for answers.",
)
@click.option("--from-server", is_flag=True, help="List those that the server sees instead.")
@click.pass_obj
def discover(session: Session, *, timeout_s: float, from_server: bool) -> None:
    """Find cloudlets on the network as a phone does; no server has to run here."""
    printer = session.printer
    with printer.waiting("looking around"):
        found = list(
            session.api.get("/peers")["items"]
            if from_server
            else _looked_around(session, timeout_s)
        )
    printer.items(found, _PEERS, empty="no cloudlet answers on this network")


def _looked_around(session: Session, timeout_s: float) -> list[Json]:
    # The adapters take a quarter of a second to load, which no other command should wait for.
    from pycloud import wiring  # noqa: PLC0415

    return [
        {**asdict(peer), "seen_at": peer.seen_at.isoformat().replace("+00:00", "Z")}
        for peer in wiring.find_cloudlets(session.settings, timeout_s=timeout_s)
    ]


def _free_of(room: Json, whole: str) -> str:
    return f"{size_text(room['free_bytes'])} free of {size_text(room[whole])}"


def _hypervisor(facts: Json | None) -> str:
    if facts is None:
        return "cannot be reached; run `pycloud doctor`"
    return (
        "libvirt {libvirt_version}, QEMU {emulator_version}, {accelerator}"
        " ({accelerator_reason})".format(**facts)
    )
