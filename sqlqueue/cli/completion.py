"""`sqlqueue completion SHELL`: the script that makes a shell complete our commands.

The script is click's own. At each TAB it calls `sqlqueue` with `_SQLQUEUE_COMPLETE` set, and
`root.main` answers; values come from `completing`.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from sqlqueue.cli.invocation import Command

__all__ = ["completion"]

_SHELLS: Final = ("bash", "zsh", "fish", "powershell")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, queues, tasks and states in a SHELL.

    \b
    bash        eval "$(sqlqueue completion bash)"        in ~/.bashrc; bash 4.4 or newer
    zsh         eval "$(sqlqueue completion zsh)"         in ~/.zshrc, after compinit
    fish        sqlqueue completion fish | source         in ~/.config/fish/config.fish
    powershell  sqlqueue completion powershell | Out-String | Invoke-Expression
                                                          in the file $PROFILE names

    Queues and tasks are those in the queue file, where there is one.
    """  # noqa: D301 - \b is click's: do not fill these lines
    kind = get_completion_class(shell)
    if kind is None:  # setup.cfg asks for a click that has all four
        raise AssertionError(shell)
    click.echo(kind(ctx.find_root().command, {}, "sqlqueue", "_SQLQUEUE_COMPLETE").source())
