"""`sqlqueue doctor`: is everything in order, and if not, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sqlqueue.cli import documents, showing
from sqlqueue.cli.failures import ExitCode, explain
from sqlqueue.cli.invocation import Command, Invocation, pass_invocation
from sqlqueue.cli.opening import apply_command_line, inspecting, load, resolved
from sqlqueue.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.health import Check

__all__ = ["doctor"]

_WAIT_S = 10.0  # for the writer lock: who asks for a doctor does not want to wait half a minute


@click.command(cls=Command)
@click.option(
    "--strict", is_flag=True, help="Check every page of the file; warnings count as unhealthy, too."
)
@pass_invocation
def doctor(invocation: Invocation, strict: bool) -> int:
    """Examine the queue: file, filesystem, SQLite, leases, workers, queues.

    With -A the application's own checks run, too. Exit code 1 means unhealthy.
    """
    output = Output(invocation)
    found = list(_checks(invocation, strict=strict))
    bad = {"fail", "warn"} if strict else {"fail"}
    healthy = not any(check.level.value in bad for check in found)
    if output.is_table:
        showing.checks(output, found)
        output.line("")
        failed = [check.name for check in found if check.level.value in bad]
        warned = [check.name for check in found if check.level.value == "warn"]
        if not healthy:
            output.line(f"Unhealthy: {', '.join(failed)}.")
        elif warned:
            output.line(f"Healthy, with warnings: {', '.join(warned)}.")
        else:
            output.line("Healthy.")
    elif invocation.output == "jsonl":
        output.items(map(documents.check_item, found))
    else:
        output.document(
            {"healthy": healthy, "items": [documents.check_item(check) for check in found]}
        )
    return ExitCode.OK if healthy else ExitCode.FAILED


def _checks(invocation: Invocation, *, strict: bool) -> Iterator[Check]:
    from sqlqueue import health

    apply_command_line(invocation)
    app = load(invocation)
    path = health.database_path(resolved(app).settings.broker_url)
    if path is not None and path.parent.exists():
        lock = health.check_writer_lock(path)
        if lock.level is health.Level.FAIL:
            yield lock  # opening the file would only wait behind the holder
            return
    told = set()
    try:
        with inspecting(invocation, app=app, wait_s=_WAIT_S) as inspection:
            for check in health.examine(
                inspection, strict=strict, app_checks=None if app is None else app.checks
            ):
                told.add(check.name)
                yield check
    except Exception as error:
        # A file that is not there, is busy, or is of another version is told as by every command;
        # a file that cannot be used is what a doctor was called for.
        name = _ailment(error)
        known = explain(error)
        if name is None or known is None:
            raise
        if path is not None:
            # The disk that is full, for one, is found there.
            told.add(name)
            yield from (one for one in health.surroundings(path) if one.name not in told)
        yield health.Check(name, health.Level.FAIL, known[1])


def _ailment(error: Exception) -> str | None:
    """Return the check that would have found what keeps the file from being opened; None: no check."""
    from sqlqueue_transport import errors

    if isinstance(error, errors.NetworkFilesystem):
        return "filesystem"
    if isinstance(error, errors.SqliteTooOld):
        return "sqlite"
    of_the_file = (
        errors.DatabaseEmpty
        | errors.UnsafeFile
        | errors.ForeignDatabase
        | errors.DiskFault
        | errors.FileReplaced
    )
    return "database" if isinstance(error, of_the_file) else None
