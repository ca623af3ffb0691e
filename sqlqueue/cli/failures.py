"""What went wrong, as one line for people and a number for scripts.

Every expected error of the framework, the transport and the command line itself ends here. What is
not expected is a bug and is shown with its traceback.
"""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqlqueue import errors
from sqlqueue.text import escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CommandFailed", "ExitCode", "explain", "one_line"]


class ExitCode(IntEnum):
    """What the numbers mean to whoever called us."""

    OK = 0
    FAILED = 1  # something did not work, or is unhealthy
    USAGE = 2  # usage or configuration: another command line would help
    NOT_FOUND = 3  # no such job or queue, or nothing matched
    PARTLY = 4  # some of it was done
    BUSY = 5  # the database was busy for too long
    SCHEMA = 6  # the file's schema is too old or too new for this software
    INTERRUPTED = 130


class CommandFailed(Exception):
    """End the command with an error line and an exit code; `details` are lines to print below it."""

    def __init__(
        self, text: str, code: ExitCode = ExitCode.FAILED, *, details: Sequence[str] = ()
    ) -> None:
        super().__init__(text)
        self.code = code
        self.details = tuple(details)


def explain(error: BaseException) -> tuple[ExitCode, str] | None:
    """Return the exit code and the line for an expected error; None for one that is a bug."""
    if isinstance(error, CommandFailed):
        return error.code, str(error)
    if isinstance(error, click.ClickException):
        return ExitCode.USAGE, _usage(error)
    if isinstance(error, errors.SqlQueueError):
        return _of_the_framework(error), str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        # How Python has bytes of the command line that are none; only paths may be such.
        return ExitCode.USAGE, f"{quoted(error.object)} is not UTF-8. Write names and ids as UTF-8."
    return _of_the_transport(error)


def one_line(text: str) -> str:
    """Return a text as one harmless line."""
    return escaped(" ".join(part.strip() for part in text.splitlines() if part.strip()))


def _usage(error: click.ClickException) -> str:
    text = error.format_message()
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    end = "" if text.endswith((".", "?", "!")) else "."
    return f"{text}{end} See '{context.command_path} --help'."


def _of_the_framework(error: errors.SqlQueueError) -> ExitCode:
    not_found = errors.JobNotFound | errors.QueueNotFound | errors.ScheduleNotFound
    if isinstance(error, not_found):
        return ExitCode.NOT_FOUND
    if isinstance(error, errors.JobFailed | errors.ResultTimeout):
        return ExitCode.FAILED
    return ExitCode.USAGE


def _of_the_system(error: OSError) -> tuple[ExitCode, str]:
    where = f"{error.filename}: " if error.filename else ""
    return ExitCode.FAILED, f"{where}{error.strerror or error}"


def _of_the_transport(error: BaseException) -> tuple[ExitCode, str] | None:
    transport = sys.modules.get("sqlqueue_transport.errors")
    if transport is None or not isinstance(error, transport.TransportError):
        return None  # what was never imported cannot have raised
    if isinstance(error, transport.DatabaseMissing):
        return ExitCode.USAGE, _missing(str(error))
    if isinstance(error, transport.Busy):
        return ExitCode.BUSY, f"the database is busy: {error}"
    if isinstance(error, transport.SchemaTooNew | transport.SchemaTooOld | transport.SchemaChanged):
        return ExitCode.SCHEMA, str(error)
    if isinstance(error, transport.CannotOpen | transport.InvalidMessage | transport.BackupRefused):
        return ExitCode.USAGE, str(error)
    return ExitCode.FAILED, str(error)


def _missing(text: str) -> str:
    path = Path(text.removeprefix("no database at "))
    try:
        shown = f".{os.sep}{path.relative_to(Path.cwd())}"
    except (ValueError, OSError):
        shown = str(path)
    return (
        f"no database at {shown}. A worker, a beat or the first 'sqlqueue call' makes it; or set"
        " --db / SQLQUEUE_DB."
    )
