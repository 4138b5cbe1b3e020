# SPDX-License-Identifier: Apache-2.0
"""How a command ends: the exit codes, and errors that say what to do next.

Everything that is told here goes to standard error, so that standard output holds
results alone.
"""

from enum import IntEnum
from typing import IO, Any

import click

from pycloud.errors import CloudletError, InvalidSettings


class ExitCode(IntEnum):
    """What scripts may rely on. 2 is also what click uses for a wrong command line."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    CONFLICT = 5
    INTERRUPTED = 130


ADVICE = {
    "unauthenticated": "give the administrator's token with --token, or run this as the owner"
    " of the cloudlet's data directory (its admin.token is then read by itself)",
    "permission_denied": "this belongs to somebody else; give the administrator's token with"
    " --token",
    "already_exists": "choose another id, or remove the old one first",
    "service_in_use": "see `pycloud instance list`, or ask with --stop-instances",
    "precondition_failed": "somebody else changed it meanwhile; look at it and try again",
    "capacity_exceeded": "stop an instance (`pycloud instance list`) or lower the service's memory",
    "no_free_port": "stop an instance, or widen pycloud.port_range",
    "insufficient_storage": "make room on the cloudlet's disk: `pycloud package list`,"
    " `pycloud service list`; `pycloud cloudlet status` shows the room",
    "quota_exceeded": "the limit is pycloud.max_image_gib (pycloud.max_app_mib for apps)",
    "image_refused": "a raw disk needs --format raw; what refers to other files has to be"
    " converted first: qemu-img convert -O qcow2 IMAGE NEW.qcow2",
    "package_refused": "a .csvm is a gzip tar of a disk, maybe a memory state, and service.json",
    "service_not_ready": "see what the guest said: `pycloud instance list --all`, then"
    " `pycloud instance log ID`; is the port right?",
    "address_unknown": "run `pycloud doctor` on the cloudlet",
    "guest_failed": "see what the guest said: `pycloud instance list --all`, then"
    " `pycloud instance log ID`",
    "hypervisor_error": "run `pycloud doctor` on the cloudlet",
    "hypervisor_unavailable": "run `pycloud doctor` on the cloudlet",
    "store_unavailable": "run `pycloud doctor` on the cloudlet",
    "internal": "the server's log says more under the request id",
}


class Failure(click.ClickException):
    """End the command with a message, what to do next, and an exit code."""

    def __init__(
        self, message: str, *, exit_code: ExitCode = ExitCode.FAILURE, advice: str = ""
    ) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)  # type: ignore[misc]  # click reads it from the instance
        self.advice = advice

    def show(self, file: IO[Any] | None = None) -> None:  # Any: as click has it
        """Print both to standard error."""
        click.echo(f"error: {printable(self.message)}", file=file, err=True)
        if self.advice:
            click.echo(f"  -> {printable(self.advice)}", file=file, err=True)


class Quiet(click.ClickException):
    """End the command with an exit code; everything was said already."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__("")
        self.exit_code = int(exit_code)  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:  # Any: as click has it
        """Print nothing."""


def failure_of(exc: CloudletError) -> Failure:
    """Translate an error of pycloud's own that was raised in this process."""
    exit_code = ExitCode.USAGE if isinstance(exc, InvalidSettings) else ExitCode.FAILURE
    return Failure(exc.message, exit_code=exit_code, advice=ADVICE.get(exc.code, ""))


def printable(text: str) -> str:
    """Return the text without characters that could steer a terminal."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "�" for character in text
    )
