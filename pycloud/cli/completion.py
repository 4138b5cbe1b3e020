# SPDX-License-Identifier: Apache-2.0
"""`pycloud completion`: the script that makes a shell complete commands, options and ids."""

import click
from click.shell_completion import get_completion_class

from pycloud.cli.failures import Failure
from pycloud.cli.framework import Command

_VARIABLE = "_PYCLOUD_COMPLETE"
_WHERE = {
    "bash": 'eval "$(pycloud completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(pycloud completion zsh)" in ~/.zshrc',
    "fish": "pycloud completion fish > ~/.config/fish/completions/pycloud.fish",
}


@click.command(
    cls=Command,
    epilog="Switch it on with: " + "; ".join(f"{name}: {how}" for name, how in _WHERE.items()),
)
@click.argument("shell", type=click.Choice(list(_WHERE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL."""
    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"click cannot complete in {shell}")
    root = ctx.find_root().command
    try:
        script = kind(root, {}, "pycloud", _VARIABLE).source()
    except RuntimeError as exc:
        raise Failure(f"{shell} completion is not possible here: {exc}") from exc
    click.echo(script)
