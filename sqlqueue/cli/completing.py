"""What TAB offers for values: states, and what stands in the queue file. For `shell_complete=`.

Completing must never disturb: no word but the names, no error, no file made, no waiting. Where there is
no queue file here, nothing heavy is even imported; of brokers on a network nothing is asked. Names come
from strangers and end on somebody's command line, where a `$(…)` would be run: only those are offered
that mean nothing to a shell.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from sqlqueue.cli.invocation import Invocation
from sqlqueue.cli.opening import apply_command_line, inspecting, resolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import click
    from click.shell_completion import CompletionItem

    from sqlqueue.inspection import Inspection

__all__ = ["directories", "queue_names", "state_names", "task_names"]

_HARMLESS: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:/+-]*")
_NEWEST_JOBS: Final = 200


def queue_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
    """Offer the queues in the file."""
    return _in_the_file(
        ctx, incomplete, lambda inspection: (row.name for row in inspection.backend.queues())
    )


def task_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
    """Offer the tasks of the newest jobs in the file. The application is not imported for it."""
    return _in_the_file(ctx, incomplete, _newest_tasks)


def state_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
    """Offer states; of several, parted by commas, the last one is completed."""
    from sqlqueue.cli.filters import STALLED, STATE_NAMES

    before, comma, last = incomplete.rpartition(",")
    given = before.split(",") if comma else []
    known = STATE_NAMES if comma else (*STATE_NAMES, STALLED)  # which stands alone
    return [
        f"{before}{comma}{state}"
        for state in known
        if state.startswith(last) and state not in given
    ]


def directories(
    ctx: click.Context,  # noqa: ARG001 - click's signature
    param: click.Parameter,  # noqa: ARG001 - click's signature
    incomplete: str,
) -> list[CompletionItem[str]]:
    """Let the shell offer its directories."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def _in_the_file(
    ctx: click.Context, incomplete: str, names: Callable[[Inspection], Iterable[str]]
) -> list[str]:
    """Return the harmless ones of some names, sorted; none where anything is wrong."""
    invocation = ctx.find_object(Invocation) or Invocation()
    invocation.app = None  # importing it may print, wait or fail
    # A completion that cannot be had is no reason to disturb somebody who is typing a command.
    with contextlib.suppress(Exception):
        apply_command_line(invocation)
        if not _is_there(resolved(None).settings.broker_url):
            return []
        with inspecting(invocation, read_only=True) as inspection:
            found = {name for name in names(inspection) if _HARMLESS.fullmatch(name)}
        return sorted(name for name in found if name.startswith(incomplete))
    return []


def _is_there(broker_url: str) -> bool:
    """Say whether the URL is one file of ours that exists."""
    scheme, _, path = broker_url.partition(":///")
    return scheme == "sqlqueue" and Path(unquote(path.partition("?")[0])).exists()


def _newest_tasks(inspection: Inspection) -> Iterable[str]:
    from sqlqueue.inspection import JobFilter

    return (row.task for row in inspection.jobs(JobFilter(), limit=_NEWEST_JOBS).items if row.task)
