"""The outermost command, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Final

import click

from sqlqueue.cli import output
from sqlqueue.cli.failures import CommandFailed, ExitCode, explain, one_line
from sqlqueue.cli.invocation import Group, Invocation
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "root"]

_HOMES: Final = {
    "demo": "sqlqueue.cli.demo:demo",
    "worker": "sqlqueue.cli.processes:worker",
    "beat": "sqlqueue.cli.processes:beat",
    "call": "sqlqueue.cli.call:call",
    "inspect": "sqlqueue.cli.inspect:inspect",
    "requeue": "sqlqueue.cli.act:requeue",
    "cancel": "sqlqueue.cli.act:cancel",
    "fail": "sqlqueue.cli.act:fail",
    "pause": "sqlqueue.cli.queues:pause",
    "resume": "sqlqueue.cli.queues:resume",
    "purge": "sqlqueue.cli.deleting:purge",
    "prune": "sqlqueue.cli.deleting:prune",
    "schedule": "sqlqueue.cli.schedule:schedule",
    "doctor": "sqlqueue.cli.doctor:doctor",
    "console": "sqlqueue.cli.console:console",
    "db": "sqlqueue.cli.database:db",
    "config": "sqlqueue.cli.configuration:config",
}


@click.group(
    cls=Group,
    homes=_HOMES,
    is_root=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def root() -> None:
    """Run jobs from one SQLite file, without a server.

    Start with 'sqlqueue demo'. Every option can also be set in the environment, as SQLQUEUE_ and
    the names of command and option: SQLQUEUE_INSPECT_JOBS_LIMIT=10.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; never raises.

    `arguments` None means those of the process.
    """
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Nobody's job should be impossible to look at because a terminal speaks Latin-1.
            stream.reconfigure(errors="backslashreplace")
    invocation = Invocation(arguments=tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        code = root.main(
            args=None if arguments is None else list(arguments),
            prog_name="sqlqueue",
            standalone_mode=False,
            auto_envvar_prefix="SQLQUEUE",
            obj=invocation,
        )
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the one place where errors become exit codes
        return _told(error, invocation)
    return code if isinstance(code, int) else ExitCode.OK


def _open_missing_streams() -> None:
    """Give a process that was started with closed streams (`>&-`) something to write to.

    Otherwise the next file it opens, such as the writer lock, would take their number, and every
    print would go into that.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _told(error: BaseException, invocation: Invocation) -> int:
    if isinstance(error, BrokenPipeError):
        # `sqlqueue inspect jobs | head` has what it wants. The interpreter would complain when it
        # flushes at exit, so there is nothing left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo("interrupted", err=True)
        return ExitCode.INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.FAILED
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer
        click.echo(str(error), err=True)
        return ExitCode.USAGE
    known = explain(error)
    if known is None or invocation.verbose:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        click.echo(escaped(trace.rstrip(), keep_newlines=True), err=True)
    if known is None:
        code, text = ExitCode.FAILED, f"this is a bug: {type(error).__name__}: {error}"
    else:
        code, text = known
    is_colored = output.is_colored(sys.stderr, invocation)
    label = click.style("error:", fg="red", bold=True) if is_colored else "error:"
    click.echo(f"{label} {one_line(text)}", err=True)
    for line in error.details if isinstance(error, CommandFailed) else ():
        click.echo(f"  {one_line(line)}", err=True)
    return code
