"""`sqlqueue purge | prune`: deleting what waits in a queue, and what ended long ago.

What is deleted cannot be requeued. So the count is told first, and somebody has to mean it: by
typing the queue's name, by answering, or by `--yes`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from sqlqueue.actor import actor
from sqlqueue.cli import documents
from sqlqueue.cli.completing import queue_names
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.gauge import Gauge
from sqlqueue.cli.invocation import Command, Invocation, duration, pass_invocation
from sqlqueue.cli.opening import inspecting
from sqlqueue.cli.output import Output
from sqlqueue.formats import at, number
from sqlqueue.text import did_you_mean, escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlqueue.operations import Operations

__all__ = ["prune", "purge"]

_ENDED: Final = ("done", "permanently_failed", "cancelled", "expired")


def _ended_states(text: str) -> list[str]:
    """Read ``done,cancelled``: a type for options. Case and dashes are forgiven."""
    found = []
    for part in text.split(","):
        name = part.strip().lower().replace("-", "_")
        if name not in _ENDED:
            raise click.BadParameter(
                f"{quoted(part.strip())} is no state in which a job has ended."
                f"{did_you_mean(name, _ENDED)} Choose from: {', '.join(_ENDED)}"
            )
        found.append(name)
    return found


@click.command(cls=Command)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...", shell_complete=queue_names)
@click.option("--reason", help="Why; kept in the audit table.")
@click.option("--dry-run", is_flag=True, help="Say how many messages, and delete nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_invocation
def purge(
    invocation: Invocation,
    /,
    *,
    queues: tuple[str, ...],
    reason: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete what waits in queues: pending, scheduled and failed messages.

    What runs may finish, and what has ended stays. On a terminal you type the queue's name. To keep
    the jobs as cancelled ones, which can be requeued: 'sqlqueue cancel --queue QUEUE'.
    """
    output = Output(invocation)
    with inspecting(invocation) as inspection:
        from sqlqueue.operations import Operations

        operations = Operations(inspection)
        waiting = {queue: operations.purgeable(queue) for queue in queues}
        deleted: dict[str, int] | None = None
        if not dry_run:
            if not yes:
                _agree_to_purge(waiting)
            deleted = {
                queue: _purge(operations, invocation, queue, count, reason)
                for queue, count in waiting.items()
            }
    if not output.is_table:
        output.document(documents.purge_document(waiting, deleted))
        return
    for queue, count in waiting.items():
        if deleted is None:
            output.line(f"{queue}: {number(count, 'message')} would be deleted")
        else:
            output.line(f"{queue}: {number(deleted[queue], 'message')} deleted")
    if deleted is None:
        output.note("Nothing was changed.")


@click.command(cls=Command)
@click.option(
    "--older-than",
    "older_than_s",
    type=duration,
    required=True,
    metavar="DURATION",
    help="Jobs that ended before: 7d, 12h, 0s for all.",
)
@click.option(
    "--state",
    "states",
    type=_ended_states,
    multiple=True,
    metavar="STATE[,STATE]",
    help=f"In these states: {', '.join(_ENDED)}. Default: done.",
)
@click.option("--reason", help="Why; kept in the audit table.")
@click.option("--dry-run", is_flag=True, help="Say how many jobs, and delete nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_invocation
def prune(
    invocation: Invocation,
    /,
    *,
    older_than_s: float,
    states: tuple[list[str], ...],
    reason: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete jobs that have ended, with their history.

    Workers do so by themselves, as the settings retention_done and retention_dead say; this is for
    now. Space in the file is used again, and given back when much of it is free.
    """
    output = Output(invocation)
    with inspecting(invocation) as inspection:
        from sqlqueue.inspection import State
        from sqlqueue.operations import Operations

        operations = Operations(inspection)
        named = dict.fromkeys(name for some in states for name in some) or ["done"]
        chosen = tuple(State(name) for name in named)
        matched = operations.prunable(older_than_s=older_than_s, states=chosen)
        before = at(inspection.now_ms - round(older_than_s * 1000), utc=invocation.utc)
        what = f"{number(matched, 'job')} in {' or '.join(named)} that ended before {before}"
        deleted: int | None = None
        if not dry_run:
            if not yes and matched:
                _agree_to_prune(what)
            with Gauge(invocation, "pruning") as gauge:
                deleted = operations.prune(
                    older_than_s=older_than_s,
                    states=chosen,
                    actor=actor("cli"),
                    reason=reason,
                    tell=lambda done: gauge.count(done, matched),
                )
    if not output.is_table:
        output.document(documents.prune_document(chosen, older_than_s, matched, deleted))
    elif deleted is None:
        output.line(f"{what} would be deleted")
        output.note("Nothing was changed.")
    else:
        output.line(f"{number(deleted, 'job')} deleted.")


def _purge(
    operations: Operations, invocation: Invocation, queue: str, count: int, reason: str | None
) -> int:
    with Gauge(invocation, f"purging {queue}") as gauge:
        return operations.purge(
            queue, actor=actor("cli"), reason=reason, tell=lambda done: gauge.count(done, count)
        )


def _agree_to_purge(waiting: Mapping[str, int]) -> None:
    """Have the name of each queue typed that would lose something."""
    filled = {queue: number(count, "message") for queue, count in waiting.items() if count}
    if not filled:
        return
    what = ", ".join(f"{count} in queue {queue}" for queue, count in filled.items())
    _refuse_without_terminal(f"{what} would be deleted")
    for queue, count in filled.items():
        question = f"{count} in queue {queue} would be deleted. Type the queue's name to do it"
        answer = click.prompt(escaped(question), default="", show_default=False, err=True)
        if answer != queue:
            raise CommandFailed(
                f"that is not {quoted(queue)}; nothing was deleted", ExitCode.FAILED
            )


def _agree_to_prune(what: str) -> None:
    _refuse_without_terminal(f"{what} would be deleted")
    if not click.confirm(f"Delete {what}?", err=True):
        raise CommandFailed("nothing was deleted", ExitCode.FAILED)


def _refuse_without_terminal(what: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandFailed(
            f"{what}, and there is no terminal to ask on. Say --yes to do it, or --dry-run to look.",
            ExitCode.USAGE,
        )
