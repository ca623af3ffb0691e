"""The command line's own tree, walked: what tests of "every command" and "every option" go by."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sqlqueue.cli.invocation import _SHARED, Group
from sqlqueue.cli.root import root


def every_command(
    group: click.Command = root, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Yield ("inspect jobs", its command) for every command and group, the root first."""
    yield " ".join(path), group
    if isinstance(group, Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from every_command(command, (*path, name))


COMMANDS = dict(every_command())
# Those that do something, which a group does not.
LEAVES = {path: found for path, found in COMMANDS.items() if not isinstance(found, Group)}


def options_of(command: click.Command, *, shared: bool) -> list[click.Option]:
    """Return the options of a command: those that every command has, or its own."""
    return [
        param
        for param in command.params
        if isinstance(param, click.Option) and (param.name in _SHARED) is shared
    ]
