"""`sqlqueue config show | validate`: the settings in force, where each came from, and all mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import click

from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.invocation import Group, Invocation, pass_invocation
from sqlqueue.cli.opening import apply_command_line, load, resolved
from sqlqueue.cli.output import Cell, Column, Output
from sqlqueue.formats import number
from sqlqueue.palette import MUTED
from sqlqueue.signing import is_key_for_path
from sqlqueue.text import without_passwords

__all__ = ["config"]

_SECRET: Final = re.compile(
    r"passw|secret|token|credential|api_?key|private|signing_keys?(?!_file)", re.IGNORECASE
)


@click.group(cls=Group)
def config() -> None:
    """Look at the settings, and have them examined."""


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@pass_invocation
def show(invocation: Invocation, origin: bool) -> None:
    """Show the settings in force; with -A those of the application.

    Later wins: code, settings file, environment, command line. Passwords are not shown.
    """
    output = Output(invocation)
    apply_command_line(invocation)
    found = resolved(load(invocation))
    rows = [
        {"name": name, "value": value, "origin": found.origins.get(name, "default")}
        for field in dataclasses.fields(found.settings)
        for name, value in _values(field.name, getattr(found.settings, field.name))
    ]
    if not output.is_table:
        output.items(rows)
        return
    columns = [Column("SETTING"), Column("VALUE", flexible=True)]
    if origin:
        columns.append(Column("ORIGIN", rank=1))
    output.table(
        columns,
        [
            [
                Cell(str(row["name"]), MUTED if row["origin"] == "default" else ""),
                _shown(row["value"]),
                *([str(row["origin"])] if origin else []),
            ]
            for row in rows
        ],
    )


@config.command()
@pass_invocation
def validate(invocation: Invocation) -> None:
    """Examine settings and broker, with -A the application and its schedule; tell every mistake.

    Exit 2 where there is one. Nothing is made, migrated or enqueued; a queue file that is missing, and
    could be made, is no mistake.
    """
    from sqlqueue.cli.validating import examined

    output = Output(invocation)
    apply_command_line(invocation)
    found = examined(invocation)
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    if not output.is_table:
        output.document(
            {
                "valid": not found.mistakes,
                "mistakes": found.mistakes,
                "warnings": found.warnings,
                "examined": found.subjects,
            }
        )
    elif not found.mistakes:
        output.line(f"ok: {', '.join(found.subjects)}")
    if found.mistakes:
        raise CommandFailed(
            f"{number(len(found.mistakes), 'mistake')} in the configuration:",
            ExitCode.USAGE,
            details=found.mistakes,
        )


def _values(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return a setting as one line, a table as a line for each of its keys."""
    if isinstance(value, Mapping) and value:
        return [(f"{name}.{key}", _harmless(key, inner)) for key, inner in value.items()]
    return [(name, _harmless(name, value))]


def _harmless(name: str, value: Any) -> Any:
    """Return a value as JSON has it, without passwords."""
    if _SECRET.search(name) and value:
        return "**"
    if name == "signing_key_file" and is_key_for_path(value):
        return "**"
    if isinstance(value, str):
        return without_passwords(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {str(key): _harmless(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(name, inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
