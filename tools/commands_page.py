"""Write docs/commands.md from the command line itself: `make docs`.

What a command and an option mean is said once, in their help, and read from there. A test fails
when the page is not what this script would write.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqlqueue.cli.invocation import _SHARED, variable_of
from sqlqueue.cli.root import root

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
SCHEMAS = ROOT / "docs" / "json-schema"
HEAD = """# Commands and options

<!-- Written by `make docs`. Change the help texts in sqlqueue/cli, not this page. -->

Each command with all of its options, as `--help` has them. What they are about, exit codes and JSON
stand in [the command line](cli.md).
"""
SHARED_HEAD = """## Options of every command

Before or after the command's name; said twice, the later one wins.
"""
# A variable that an option is read from stands at the end of its help.
VARIABLES = re.compile(r"\s*\[(SQLQUEUE_\w+)\]")


def page() -> str:
    """Return the page."""
    commands = [*_commands(root, ())]
    return "\n".join(
        [
            HEAD,
            *(_entry(path, command) for path, command in commands),
            "",
            SHARED_HEAD,
            *_table(root, (), shared=True),
            "",
            *(line for path, command in commands for line in _section(path, command)),
        ]
    )


def _commands(
    group: click.Group, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


def _entry(path: tuple[str, ...], command: click.Command) -> str:
    """Return a command's line in the table of contents."""
    anchor = "-".join(("sqlqueue", *path))
    first = _text(command.help).split("\n\n")[0].replace("\n", " ")
    return f"{'  ' * (len(path) - 1)}- [`{' '.join(path)}`](#{anchor}): {first}"


def _section(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    usage = ["sqlqueue", *path, "[OPTIONS]", *map(_argument, arguments)]
    if isinstance(command, click.Group):
        usage.append("COMMAND")
    yield f"## sqlqueue {' '.join(path)}\n"
    yield f"`{' '.join(usage)}`\n"
    yield f"{_text(command.help)}\n"
    table = [*_table(command, path, shared=False)]
    if table:
        yield from table
        yield ""
    if schemas := _schemas(" ".join(path)):
        yield f"JSON: {', '.join(schemas)}.\n"


def _table(command: click.Command, path: tuple[str, ...], *, shared: bool) -> Iterator[str]:
    """Yield the options of a command, or those that every command has."""
    options = [
        param
        for param in command.params
        if isinstance(param, click.Option)
        and not param.hidden
        and (param.name in _SHARED) is shared
    ]
    if not options:
        return
    yield "| option | means | environment |"
    yield "|---|---|---|"
    for option in options:
        cells = (_names(option), _meaning(option), _variable(option, path))
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _names(option: click.Option) -> str:
    value = _value(option)
    names = [*option.opts, *option.secondary_opts]
    return ", ".join(f"`{name}`" for name in names[:-1]) + (
        f"{', ' if len(names) > 1 else ''}`{names[-1]}{f' {value}' if value else ''}`"
    )


def _value(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    kind = option.type.name.removesuffix(" range")
    return {"text": "TEXT", "integer": "N"}.get(kind, kind.upper())


def _meaning(option: click.Option) -> str:
    parts = [_text(VARIABLES.sub("", option.help or ""))]
    if isinstance(option.type, click.IntRange) and not option.count:
        low, high = option.type.min, option.type.max
        parts.append(f"At least {low}." if high is None else f"{low} to {high}.")
    if option.multiple:
        parts.append("May be given several times.")
    if option.show_default:
        parts.append(f"Default: {option.default}.")
    return " ".join(parts)


def _variable(option: click.Option, path: tuple[str, ...]) -> str:
    named = VARIABLES.findall(option.help or "")
    if not named and option.allow_from_autoenv:
        named = [variable_of(option, "_".join(("sqlqueue", *path)))]
    return ", ".join(f"`{name}`" for name in named)


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def _schemas(command: str) -> list[str]:
    """Return links to what a command's JSON is like."""
    found = []
    for path in sorted(SCHEMAS.glob("*.json")):
        for one in json.loads(path.read_text())["x-commands"]:
            name, _, options = one.partition(" --")
            if name == command:
                with_options = f" with `--{options}`" if options else ""
                found.append(f"[{path.stem}](json-schema/{path.name}){with_options}")
    return sorted(found, key=lambda link: " with " in link)


def _text(help_text: str | None) -> str:
    """Return a help text as Markdown, in which an angle bracket would begin a tag."""
    return inspect.cleandoc(help_text or "").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE.relative_to(ROOT)}")
