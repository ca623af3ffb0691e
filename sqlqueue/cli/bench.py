"""`sqlqueue bench`: what this machine and this disk do, on a queue file that is thrown away."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue import config
from sqlqueue.cli.completing import directories
from sqlqueue.cli.demo_processes import Processes
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.invocation import Command, Invocation, pass_invocation, size
from sqlqueue.cli.output import Column, Output
from sqlqueue.cli.unwinding import ended_in_order, signals_held
from sqlqueue.formats import number
from sqlqueue.palette import MUTED
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlqueue.cli.bench_measuring import Bar, Figures

__all__ = ["bench"]

_APP: Final = "sqlqueue.cli.bench_app:app"
_MOST_PAYLOAD: Final = 1_000_000  # what a message may have, less its envelope


@click.command(cls=Command)
@click.option(
    "--jobs", type=click.IntRange(100), default=10_000, show_default=True, help="So many jobs."
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=4,
    show_default=True,
    help="Processes that run them.",
)
@click.option(
    "--payload", type=size, default="300B", show_default=True, help="The argument of each job."
)
@click.option(
    "--durability",
    type=click.Choice(["publish", "full", "process"]),
    default="publish",
    show_default=True,
    help="What survives a power cut: see docs/design.md.",
)
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    default=".",
    shell_complete=directories,
    help="On whose disk; default: here.",
)
@pass_invocation
def bench(
    invocation: Invocation,
    /,
    *,
    jobs: int,
    concurrency: int,
    payload: int,
    durability: str,
    directory: str,
) -> None:
    """Measure publishing, running and latency on this machine and disk, in about a quarter of a minute.

    It works on a file of its own, in a directory that it makes in --dir and removes at the end, also
    after ctrl-c. How fast publishing is depends on that disk. Figures compare with those of the same
    machine under the same load.
    """
    if payload > _MOST_PAYLOAD:
        raise click.UsageError(f"--payload: at most {number(_MOST_PAYLOAD, 'byte')}")
    output = Output(invocation)
    with ended_in_order(), _scratch(directory) as scratch:
        about = _machine(scratch)
        output.note(
            f"bench: {number(jobs, 'job')} of {number(payload, 'byte')}, {concurrency} processes,"
            f" durability {durability}, on {about['filesystem'] or 'a disk'} in {scratch.parent}"
        )
        figures = _measured(
            invocation,
            scratch,
            jobs=jobs,
            processes=concurrency,
            payload="x" * payload,
            durability=durability,
        )
    settings = {
        "jobs": jobs,
        "concurrency": concurrency,
        "payload_bytes": payload,
        "durability": durability,
    }
    if output.is_table:
        _show(output, figures, about)
    else:
        rounded = {key: round(value, 3) for key, value in asdict(figures).items()}
        output.document({"machine": about, "settings": settings, "figures": rounded})


@contextlib.contextmanager
def _scratch(directory: str) -> Iterator[Path]:
    """Make a directory in that one, and remove it with all that is in it."""
    where = Path(directory).resolve()
    if not where.is_dir():
        raise CommandFailed(f"--dir {quoted(directory)} is no directory.", ExitCode.USAGE)
    with tempfile.TemporaryDirectory(prefix="sqlqueue-bench-", dir=where) as name:
        yield Path(name)


def _measured(
    invocation: Invocation,
    scratch: Path,
    *,
    jobs: int,
    processes: int,
    payload: str,
    durability: str,
) -> Figures:
    from sqlqueue.cli.bench_app import new_app
    from sqlqueue.cli.bench_measuring import measure

    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SQLQUEUE_")},
        "SQLQUEUE_DB": config.database_url(str(scratch / "queue.db")),
        "SQLQUEUE_CONFIG": os.devnull,  # an empty file: nobody's settings count
        "SQLQUEUE_DURABILITY": durability,
        # A module in this directory may be called like one of the standard library's (Python 3.11).
        "PYTHONSAFEPATH": "1",
    }
    workers = Processes(scratch, environment, of="the bench")
    arguments = ["worker", "-A", _APP, "-c", str(processes), "--log-level", "warning"]

    def start_workers() -> None:
        with signals_held():  # a process that was just started is not ours to end yet
            workers.start("worker", arguments, log="worker.log")

    with _environment(environment):
        app = new_app()
        try:
            return measure(
                app,
                jobs=jobs,
                payload=payload,
                processes=processes,
                start_workers=start_workers,
                refuse_dead=lambda: workers.refuse_dead("worker"),
                shown=_progress(invocation),
            )
        finally:
            app.close()
            workers.bury()


@contextlib.contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    """Have this environment in this process, for settings that are resolved in here."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    config.set_command_line({})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _progress(invocation: Invocation) -> Callable[[str, int], AbstractContextManager[Bar]]:
    def shown(name: str, steps: int) -> AbstractContextManager[Bar]:
        bar: Any = click.progressbar(
            length=steps,
            label=f"  {name:<28}",
            file=sys.stderr,
            hidden=invocation.quiet,
            # Drawing must not be what is measured.
            update_min_steps=max(steps // 50, 1),
        )
        return bar  # type: ignore[no-any-return]

    return shown


def _machine(scratch: Path) -> dict[str, Any]:
    import kombu

    from sqlqueue_transport.files import filesystem_of

    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": str(kombu.Connection("sqlqueue:///").transport.driver_version()),
        "filesystem": filesystem_of(scratch),
        "directory": str(scratch.parent),
    }


def _show(output: Output, figures: Figures, about: dict[str, Any]) -> None:
    rows = [
        ("published, one by one", figures.published_one_by_one_per_s, "jobs/s"),
        ("published, in chunks", figures.published_in_chunks_per_s, "jobs/s"),
        ("claimed, run and settled", figures.run_per_s, "jobs/s"),
        ("published one by one and run", figures.end_to_end_per_s, "jobs/s"),
        ("enqueued to started, idle: p50", figures.start_p50_ms, "ms"),
        ("enqueued to started, idle: p95", figures.start_p95_ms, "ms"),
        ("enqueued to started, idle: p99", figures.start_p99_ms, "ms"),
    ]
    output.table(
        [Column("MEASURED"), Column("FIGURE", right=True), Column("UNIT")],
        [
            (what, f"{value:,.2f}" if unit == "ms" else f"{value:,.0f}", unit)
            for what, value, unit in rows
        ],
    )
    output.line(
        f"{about['platform']}, {about['cpus']} CPUs, Python {about['python']}, SQLite"
        f" {about['sqlite']}, {about['filesystem'] or 'unknown filesystem'}",
        style=MUTED,
    )
