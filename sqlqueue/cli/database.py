"""`sqlqueue db path | check | backup | migrate | recount`: the file itself."""

from __future__ import annotations

from pathlib import Path

import click

from sqlqueue.cli import documents
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.gauge import Gauge, broken_off_by_sigterm
from sqlqueue.cli.invocation import Group, Invocation, pass_invocation
from sqlqueue.cli.opening import apply_command_line, inspecting, load, resolved
from sqlqueue.cli.output import Output
from sqlqueue.formats import number, took

__all__ = ["db"]

_MOST_TOLD = 100  # complaints; where there are more, the first tell enough


@click.group(cls=Group)
def db() -> None:
    """Look after the queue file: where it is, whether it is sound, a copy of it, its schema."""


@db.command()
@pass_invocation
def path(invocation: Invocation) -> None:
    """Print the absolute path of the queue file; it need not exist."""
    output = Output(invocation)
    found = _path(invocation)
    if output.is_table:
        # For "$(sqlqueue db path)": as it is, not as it would be shown.
        click.echo(str(found))
    else:
        output.document(documents.path_document(found))


@db.command()
@click.option("--full", is_flag=True, help="Compare every index with its table, too.")
@pass_invocation
def check(invocation: Invocation, full: bool) -> None:
    """Have SQLite examine the file; exit 1 with what it complains of. Workers go on meanwhile.

    It finds a broken structure, and almost no bit rot inside of values.
    """
    output = Output(invocation)
    with (
        inspecting(invocation, read_only=True) as inspection,
        Gauge(invocation, "checking") as gauge,
    ):
        from sqlqueue.operations import Operations

        found = Operations(inspection).check(full=full, tell=lambda _: gauge.is_at(""))
    if not output.is_table:
        output.document(documents.check_document(found, full=full))
    elif not found:
        output.line("Full check: in order." if full else "Quick check: in order.")
    if found:
        raise CommandFailed(
            f"the file is damaged: {number(len(found), 'complaint')}. Stop everything and restore a"
            " backup, or '.recover' a copy in the sqlite3 shell.",
            ExitCode.FAILED,
            details=found[:_MOST_TOLD],
        )


@db.command()
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@pass_invocation
def backup(invocation: Invocation, destination: Path, force: bool) -> None:
    """Copy the queue to DEST while it is in use.

    The copy is of one moment, is examined, and has its name only when it is whole. Nobody waits for
    it. Restore it by putting it in the place of the queue file, when nothing has that open.
    """
    output = Output(invocation)
    _warn_of_network(output, destination)
    with (
        inspecting(invocation, read_only=True) as inspection,
        broken_off_by_sigterm(),
        Gauge(invocation, "copying") as gauge,
    ):
        from sqlqueue.operations import Operations

        report = Operations(inspection).backup(destination, force=force, tell=gauge.bytes)
    if output.is_table:
        output.line(
            f"{report.path}: {number(report.jobs, 'job')}, {report.bytes / 1e6:.1f} MB, checked, in"
            f" {took(report.took_s)}."
        )
    else:
        output.document(documents.backup_document(report))


@db.command()
@click.option("--dry-run", is_flag=True, help="Say from which version to which, and do nothing.")
@pass_invocation
def migrate(invocation: Invocation, dry_run: bool) -> None:
    """Bring the file to the schema of this software, after a backup beside it.

    Whatever opens the file for writing does so by itself; here you choose the moment. Older software
    that has the file open stops then.
    """
    output = Output(invocation)
    from sqlqueue.operations import migration_of

    found = migration_of(_path(invocation))
    is_done = found.is_needed and not dry_run
    if is_done:
        with inspecting(invocation):
            pass  # to open it for writing is to migrate it
    if not output.is_table:
        output.document(documents.migration_document(found, is_done=is_done))
        return
    if not found.is_needed:
        output.line(f"{found.path} is already at version {found.to_version}.")
        return
    versions = f"from version {found.from_version} to {found.to_version}"
    if is_done:
        output.line(f"{found.path}: migrated {versions}. Backup: {found.backup}")
    else:
        output.line(f"{found.path}: would be migrated {versions}. Backup: {found.backup}")


@db.command()
@pass_invocation
def recount(invocation: Invocation) -> None:
    """Count anew where 'doctor --strict' tells that counts differ from what is there.

    Another program has written to the file then. Jobs are as they were; workers go on meanwhile.
    """
    output = Output(invocation)
    with inspecting(invocation) as inspection, Gauge(invocation, "counting") as gauge:
        from sqlqueue.operations import Operations

        found = Operations(inspection).recount(gauge.count)
    if output.is_table:
        what = f"{number(found.wrong, 'block')} of {found.blocks:,}"
        output.line(f"Counted anew; {what} had been wrong.")
    else:
        output.document(documents.recount_document(found))


def _path(invocation: Invocation) -> Path:
    """Return the file of the settings. Raises NotAvailable for a broker that is no file."""
    from sqlqueue import health
    from sqlqueue.errors import NotAvailable

    apply_command_line(invocation)
    found = health.database_path(resolved(load(invocation)).settings.broker_url)
    if found is None:
        raise NotAvailable("a file")
    return found


def _warn_of_network(output: Output, destination: Path) -> None:
    from sqlqueue_transport import files

    parent = destination.absolute().parent
    kind = files.filesystem_of(parent) if parent.is_dir() else None
    if kind is not None and files.is_network(kind):
        output.note(
            f"warning: {parent} is on {kind}. The backup is good there, but no queue: copy it to a"
            " local disk before you open it."
        )
