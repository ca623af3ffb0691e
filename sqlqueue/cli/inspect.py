"""`sqlqueue inspect …`: looking, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqlqueue.cli import documents, showing
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.filters import filter_options, job_filter
from sqlqueue.cli.invocation import Group, Invocation, pass_invocation
from sqlqueue.cli.opening import inspecting
from sqlqueue.cli.output import Output

if TYPE_CHECKING:
    from sqlqueue.inspection import Inspection, JobFilter

__all__ = ["inspect"]


@click.group(cls=Group)
def inspect() -> None:
    """Look at jobs, queues, workers and the schedule. Changes nothing."""


@inspect.command()
@pass_invocation
def stats(invocation: Invocation) -> None:
    """Count jobs by state, and who works on them."""
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        found = inspection.stats()
    if output.is_table:
        showing.stats(output, found)
    else:
        output.document(documents.stats_document(found))


@inspect.command()
@filter_options
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on where a page ended: the 'next' of its JSON.")
@pass_invocation
def jobs(invocation: Invocation, /, *, limit: int, cursor: str | None, **filters: Any) -> None:
    """List jobs, newest first."""
    _list_jobs(invocation, job_filter(**filters), limit=limit, cursor=cursor)


@inspect.command()
@click.option("--by", type=click.Choice(["error"]), help="Group them by their error.")
@click.option("--task", help="Jobs of this task.")
@click.option("--queue", help="Jobs in this queue.")
@click.option("--error", help="Jobs whose newest error, 'Type: message', contains this.")
@click.option("--since", help="Jobs that ended since: 1h ago, or an ISO time.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on where a page ended: the 'next' of its JSON.")
@pass_invocation
def dead(
    invocation: Invocation,
    /,
    *,
    by: str | None,
    limit: int,
    cursor: str | None,
    **filters: Any,
) -> None:
    """List the dead letters: jobs that are permanently_failed until somebody requeues them."""
    chosen = job_filter(states=[["permanently_failed"]], **filters)
    if by is None:
        _list_jobs(invocation, chosen, limit=limit, cursor=cursor)
        return
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        groups = inspection.dead_groups(chosen)
        if not output.is_table:
            output.items(documents.dead_item(group) for group in groups)
        elif groups:
            showing.dead_groups(output, groups, now_ms=inspection.now_ms)
        else:
            output.empty(showing.nothing_found(inspection, chosen))


def _list_jobs(
    invocation: Invocation, chosen: JobFilter, *, limit: int, cursor: str | None
) -> None:
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        try:
            page = inspection.jobs(chosen, limit=limit, cursor=cursor)
        except ValueError as error:
            raise click.UsageError(f"--cursor: {error}") from None
        if not output.is_table:
            output.items(
                (documents.job_item(row, inspection) for row in page.items), following=page.next
            )
        elif page.items:
            showing.jobs(output, page.items, inspection)
        elif cursor is None:
            output.empty(showing.nothing_found(inspection, chosen))
    if page.next is not None and invocation.output != "json":
        output.note(f"There are more: --cursor {page.next}, or --limit up to 1000.")


@inspect.command()
@click.argument("job_id", metavar="ID")
@click.option(
    "--traceback",
    "tracebacks",
    type=click.Choice(["last", "all", "none"]),
    default="last",
    show_default=True,
    help="Which attempts' tracebacks to show.",
)
@pass_invocation
def job(invocation: Invocation, job_id: str, tracebacks: str) -> None:
    """Show one job whole: arguments, result, attempts, and what operators did to it.

    ID is the job's id; '#12' means message 12, where several messages share an id.
    """
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        found = inspection.job(job_id)
        if output.is_table:
            showing.job(
                output, found, now_ms=inspection.now_ms, utc=invocation.utc, tracebacks=tracebacks
            )
        else:
            output.document(documents.job_document(found))


@inspect.command()
@pass_invocation
def queues(invocation: Invocation) -> None:
    """List queues: how deep, how old, and who serves them."""
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        found = inspection.queues()
    if not output.is_table:
        output.items(map(documents.queue_item, found))
    elif found:
        showing.queues(output, found, now_ms=inspection.now_ms)
    else:
        output.empty("No queues yet. The first job, or the first worker, makes one.")


@inspect.command()
@pass_invocation
def workers(invocation: Invocation) -> None:
    """List the living processes, and what each of them runs."""
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        found = inspection.workers()
        if not output.is_table:
            output.items(map(documents.worker_item, found))
        elif found:
            showing.workers(output, found, now_ms=inspection.now_ms)
        else:
            output.empty("No worker is running. Start one: sqlqueue worker -A MODULE:ATTR")


@inspect.command()
@click.option(
    "--next",
    "count",
    type=click.IntRange(1, 100),
    help="Show the next so many due times of each entry, by its own clocks and in UTC.",
)
@pass_invocation
def schedule(invocation: Invocation, count: int | None) -> None:
    """List the schedule's entries: what they enqueue, how they stand, last and next time."""
    list_schedule(invocation, count)


def list_schedule(invocation: Invocation, count: int | None) -> None:
    """Print the schedule, and with `count` its next due times."""
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        found = inspection.schedule()
        now_ms = inspection.now_ms
    if not output.is_table:
        output.items(documents.entry_item(one, count=count or 1, now_ms=now_ms) for one in found)
    elif not found:
        output.empty(
            "No schedule yet. A beat writes it down: sqlqueue beat -A MODULE:ATTR; or add an entry:"
            " sqlqueue schedule add"
        )
    elif count is None:
        showing.schedule(output, found, now_ms=now_ms)
    else:
        showing.next_ticks(output, found, count=count, now_ms=now_ms)


@inspect.command()
@pass_invocation
def ping(invocation: Invocation) -> None:
    """Say which workers are alive; exit 1 when none is."""
    output = Output(invocation)
    with inspecting(invocation, read_only=True) as inspection:
        found = _pinged(inspection)
    if output.is_table:
        for item in found:
            output.line(f"{item['name']}: alive, sign of life {item['heartbeat_age_s']:.1f}s ago")
    else:
        output.items(found)
    if not found:
        raise CommandFailed(
            "no worker is alive. Start one: sqlqueue worker -A MODULE:ATTR, or Celery's own",
            ExitCode.FAILED,
        )


def _pinged(inspection: Inspection) -> list[dict[str, Any]]:
    limit_s = inspection.settings.visibility_timeout
    return [
        {"name": row.name, "pid": row.pid, "heartbeat_age_s": row.heartbeat_age_s or 0.0}
        for row in inspection.backend.workers()
        if row.is_serving and row.is_known_alive and (row.heartbeat_age_s or 0.0) <= limit_s
    ]
