"""`sqlqueue pause | resume`: whether anybody may claim from a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqlqueue.actor import actor
from sqlqueue.cli import documents
from sqlqueue.cli.completing import queue_names
from sqlqueue.cli.invocation import Command, Invocation, pass_invocation
from sqlqueue.cli.opening import inspecting
from sqlqueue.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["pause", "resume"]


def _on_queues(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the two commands have in common."""
    function = click.option("--reason", help="Why; kept in the audit table.")(function)
    return click.argument(
        "queues", nargs=-1, required=True, metavar="QUEUE...", shell_complete=queue_names
    )(function)


@click.command(cls=Command)
@_on_queues
@pass_invocation
def pause(invocation: Invocation, /, *, queues: tuple[str, ...], reason: str | None) -> None:
    """Pause queues: no consumer takes anything from them, Celery's included.

    What runs may finish, and publishing goes on. 'sqlqueue resume' ends it.
    """
    _mark("pause", invocation, queues, reason)


@click.command(cls=Command)
@_on_queues
@pass_invocation
def resume(invocation: Invocation, /, *, queues: tuple[str, ...], reason: str | None) -> None:
    """Let paused queues be worked on again, at once."""
    _mark("resume", invocation, queues, reason)


def _mark(action: str, invocation: Invocation, queues: tuple[str, ...], reason: str | None) -> None:
    output = Output(invocation)
    with inspecting(invocation) as inspection:
        from sqlqueue.operations import Operations

        operations = Operations(inspection)
        apply = operations.pause if action == "pause" else operations.resume
        changes = apply(tuple(dict.fromkeys(queues)), actor=actor("cli"), reason=reason)
    if not output.is_table:
        output.document(documents.queue_action_document(action, changes))
        return
    for change in changes:
        state = "paused" if action == "pause" else "running"
        output.line(f"{change.queue}: {state}" + ("" if change.changed else ", as before"))
