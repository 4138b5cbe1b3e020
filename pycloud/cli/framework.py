# SPDX-License-Identifier: Apache-2.0
"""What all groups of commands have in common: --output, error messages and exit codes.

`--output` may stand before or after the command's name. Errors that pycloud raises on
purpose end a command with a message; a bug keeps its traceback.
"""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from click.shell_completion import CompletionItem

from pycloud.cli.failures import ExitCode, Failure, Quiet, failure_of
from pycloud.cli.output import Format, Json
from pycloud.cli.session import Session
from pycloud.errors import CloudletError

FORMATS = click.Choice([form.value for form in Format])
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COMPLETED_ITEMS = 200
_COMPLETION_PATIENCE_S = 1.0
_MEMBERS = "pycloud.members"


F = TypeVar("F", bound=Callable[..., Any])  # Any: click hands over what the options say


class Required(Enum):
    """Whether an option has to be given."""

    YES = "yes"
    NO = "no"


class Null(Enum):
    """What an option says that goes into the request's body as null."""

    NULL = "null"


class Command(click.Command):
    """A command that takes --output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: whatever click passes on
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--output", "-o", "form"],
                type=FORMATS,
                expose_value=False,
                callback=_choose_format,
                help="Form of the result.",
            )
        )


class Commands(click.Group):
    """A group whose commands end with the exit codes of `ExitCode`."""

    command_class = Command
    group_class = type

    def invoke(self, ctx: click.Context) -> Any:  # Any: what a command returns
        """Run the command, and turn errors into messages."""
        try:
            return super().invoke(ctx)
        except CloudletError as exc:
            raise failure_of(exc) from exc
        except KeyboardInterrupt as exc:
            click.echo("interrupted", err=True)
            raise Quiet(ExitCode.INTERRUPTED) from exc


def session_of(ctx: click.Context) -> Session:
    """Return what the commands of this invocation share."""
    return ctx.ensure_object(Session)


class Decorator(Protocol):
    """Adds something to a command."""

    def __call__(self, command: F, /) -> F:
        """Return the command with it."""
        ...


def config_option(*, envvar: str | None = None) -> Decorator:
    """Return a --config, which names the `.ini` file of this invocation."""
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar=envvar,
        show_envvar=envvar is not None,
        callback=_use_config,
        expose_value=False,
        help="An .ini file with pycloud.* settings.",
    )


def _use_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        session_of(ctx).config = value


def member_option(
    *names: str,
    kind: click.ParamType[Any] | None = None,  # Any: the values of any kind
    told: str = "",
    metavar: str | None = None,
    required: Required = Required.NO,
) -> Decorator:
    """Return an option that goes into the request's body as it is; see `members_of`."""
    return click.option(
        *names,
        type=kind,
        help=told,
        metavar=metavar,
        required=required is Required.YES,
        multiple=names[-1] == "tags",
        callback=note_member,
        expose_value=False,
    )


def note_member(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Note a member of the request's body; the callback of options that are nothing else."""
    if value is not None and value != ():
        members = ctx.meta.setdefault(_MEMBERS, {})
        members[param.name] = _member(value)


def _member(value: object) -> object:
    if value is Null.NULL:
        return None
    return list(value) if isinstance(value, tuple) else value


def members_of(ctx: click.Context) -> Json:
    """Return what `note_member` noted."""
    members: Json = ctx.meta.get(_MEMBERS, {})
    return members


class Ids(click.ParamType[str]):
    """An id of something on the server, which the shell can complete."""

    name = "id"

    def __init__(self, place: str, *, member: str = "id") -> None:
        self._place = place
        self._member = member

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002  # click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the ids that begin like this; nothing if the server does not say."""
        root = ctx.find_root()
        session = session_of(ctx)
        session.url = session.url or root.params.get("url")
        session.token = session.token or root.params.get("token")
        session.config = session.config or root.params.get("config")
        session.patience_s = _COMPLETION_PATIENCE_S
        try:
            page = session.api.get(self._place, {"limit": _COMPLETED_ITEMS})
        except (Failure, CloudletError):
            return []
        found = [str(item[self._member]) for item in page["items"]]
        return [CompletionItem(one) for one in found if one.startswith(incomplete)]


def _choose_format(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        session_of(ctx).form = Format(value)
