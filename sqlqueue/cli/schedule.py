"""`sqlqueue schedule add | remove | pause | resume | list`: the schedule, changed while beats run.

Works with and without the application: with `-A` its tasks are known, and its time zone counts.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from sqlqueue.actor import actor
from sqlqueue.cli.call import application, read_json, refuse_more
from sqlqueue.cli.completing import queue_names, task_names
from sqlqueue.cli.inspect import list_schedule
from sqlqueue.cli.invocation import Group, Invocation, duration, pass_invocation
from sqlqueue.cli.opening import apply_command_line, inspecting, load
from sqlqueue.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.app import SqlQueue

__all__ = ["schedule"]


@click.group(cls=Group)
def schedule() -> None:
    """Change the schedule while beats run: they take it up at once."""


@schedule.command(context_settings={"allow_extra_args": True})
@click.argument("name")
@click.argument("task", shell_complete=task_names)
@click.argument("args", required=False, metavar="[JSON_ARGS]")
@click.option("--kwargs", metavar="JSON", help="""Keyword arguments: '{"name": "a"}'.""")
@click.option("--every", metavar="DURATION", help="Each 5s, 10m, 7d, counted from 1970.")
@click.option("--cron", metavar="EXPRESSION", help="Such as '30 2 * * MON-FRI'.")
@click.option("--at", metavar="TIME", help="Once, at this ISO time.")
@click.option("--timezone", metavar="ZONE", help="Of --cron and --at; default: the setting.")
@click.option("--catch-up", metavar="POLICY", help="Of missed ticks: one, skip, all or all(20).")
@click.option("--jitter", metavar="DURATION", help="Its jobs become due up to so much later.")
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip"]),
    help="skip: nothing while jobs of the last tick are unfinished.",
)
@click.option("--queue", help="Default: the task's own queue.", shell_complete=queue_names)
@click.option("--expires", type=duration, help="Do not start later than 1h after its time.")
@click.option("--priority", type=click.IntRange(0, 9), help="9 goes first; default: the task's.")
@click.option("--force", is_flag=True, help="Take a task that the application does not have.")
@pass_invocation
def add(
    invocation: Invocation,
    /,
    *,
    name: str,
    task: str,
    args: str | None,
    kwargs: str | None,
    force: bool,
    queue: str | None,
    expires: float | None,
    priority: int | None,
    **options: Any,
) -> None:
    """Have every beat enqueue a job of TASK again and again, or once.

    The entry lives in the queue file under NAME until it is removed.
    """
    from sqlqueue.task import Signature

    refuse_more(click.get_current_context())
    positional = read_json(args, list, what="JSON_ARGS", example="'[1, \"a\"]'")
    named = read_json(kwargs, dict, what="--kwargs", example="""'{"name": "a"}'""")
    of_call = {"queue": queue, "expires": expires, "priority": priority}
    call = Signature(
        task,
        tuple(positional),
        named,
        {key: value for key, value in of_call.items() if value is not None},
    )
    apply_command_line(invocation)
    app = application(invocation, task, force=force)
    given: Any = {key: value for key, value in options.items() if value is not None}
    with _closing(app):
        app.schedules.add(name, call, actor=actor("cli"), **given)
    _tell(invocation, name, "added")


@schedule.command()
@click.argument("name")
@click.option("--reason", help="Why; kept in the audit table.")
@pass_invocation
def remove(invocation: Invocation, name: str, reason: str | None) -> None:
    """Remove an entry. One of the code goes once no running beat has it."""
    with _opened(invocation) as app:
        app.schedules.remove(name, actor=actor("cli"), reason=reason)
    _tell(invocation, name, "removed")


@schedule.command()
@click.argument("name")
@click.option("--reason", help="Why; kept in the audit table.")
@pass_invocation
def pause(invocation: Invocation, name: str, reason: str | None) -> None:
    """Let an entry rest, also one of the code or the settings."""
    with _opened(invocation) as app:
        is_new = app.schedules.pause(name, actor=actor("cli"), reason=reason)
    _tell(invocation, name, "paused" if is_new else "paused already")


@schedule.command()
@click.argument("name")
@click.option("--reason", help="Why; kept in the audit table.")
@pass_invocation
def resume(invocation: Invocation, name: str, reason: str | None) -> None:
    """Let a paused entry go on with its next tick; what it missed is given up."""
    with _opened(invocation) as app:
        is_new = app.schedules.resume(name, actor=actor("cli"), reason=reason)
        is_over = any(
            row.entry == name and row.next_due_ms is None and row.error is None
            for row in app.schedules.list()
        )
    if is_new and is_over:
        more = "nothing comes any more. What was due during the pause is given up"
        _tell(invocation, name, "resumed, but over", more)
    else:
        _tell(invocation, name, "resumed" if is_new else "not paused")


@schedule.command("list")
@click.option(
    "--next", "count", type=click.IntRange(1, 100), help="Show the next so many due times."
)
@pass_invocation
def list_entries(invocation: Invocation, count: int | None) -> None:
    """List the entries: the same as 'inspect schedule'."""
    list_schedule(invocation, count)


@contextlib.contextmanager
def _opened(invocation: Invocation) -> Iterator[SqlQueue]:
    """Hand out the application, or one without tasks, on a queue file that must be there."""
    from sqlqueue.app import SqlQueue

    apply_command_line(invocation)
    app = load(invocation) or SqlQueue("sqlqueue schedule")
    # Opened for looking first: that refuses to make a missing file.
    with inspecting(invocation, app=app), _closing(app):
        yield app


@contextlib.contextmanager
def _closing(app: SqlQueue) -> Iterator[None]:
    try:
        yield
    finally:
        app.close()


def _tell(invocation: Invocation, name: str, what: str, more: str = "") -> None:
    output = Output(invocation)
    if output.is_table:
        output.line(f"{name}: {what}{': ' if more else ''}{more}.")
    else:
        output.document({"entry": name, "result": what})
