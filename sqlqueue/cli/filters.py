"""The filter options that listing and acting share, and what they mean."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.errors import ConfigError
from sqlqueue.text import did_you_mean, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.inspection import JobFilter

__all__ = ["STATE_NAMES", "filter_options", "job_filter", "moment_ms"]

STALLED: Final = "stalled"
STATE_NAMES: Final = (
    "pending",
    "scheduled",
    "processing",
    "done",
    "failed",
    "permanently_failed",
    "cancelled",
    "expired",
)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `job_filter` to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def states(text: str) -> list[str]:
    """Read ``a,b``: a type for options. Case and dashes are forgiven."""
    known = (*STATE_NAMES, STALLED)
    found = []
    for part in text.split(","):
        name = part.strip().lower().replace("-", "_")
        if name not in known:
            raise click.BadParameter(
                f"there is no state {quoted(part.strip())}.{did_you_mean(name, known)} Choose from:"
                f" {', '.join(known)}"
            )
        found.append(name)
    return found


_OPTIONS: Final = (
    click.option(
        "--state",
        "states",
        type=states,
        multiple=True,
        metavar="STATE[,STATE]",
        help=f"Jobs in these states: {', '.join((*STATE_NAMES, STALLED))}.",
    ),
    click.option("--task", help="Jobs of this task."),
    click.option("--queue", help="Jobs in this queue."),
    click.option("--error", help="Jobs whose newest error, 'Type: message', contains this."),
    click.option(
        "--since", help="Jobs that ended (or started, or came) since: 1h ago, or an ISO time."
    ),
    click.option("--until", help="Jobs that ended (or started, or came) until then: the same."),
    click.option(
        "--search",
        metavar="TEXT",
        help="Jobs with this id, or one that begins so (4 characters or more), or '#' and a message"
        " id; if there are none, jobs whose task or body contains this.",
    ),
    click.option(
        "--celery-state",
        metavar="STATE",
        help="Jobs of which Celery's results say this: FAILURE, SUCCESS, RETRY, …",
    ),
    click.option("--worker", help="Jobs that this worker (or a child of it) had last."),
)


def job_filter(
    *,
    states: Sequence[Sequence[str]] = (),
    task: str | None = None,
    queue: str | None = None,
    error: str | None = None,
    since: str | None = None,
    worker: str | None = None,
    celery_state: str | None = None,
    search: str | None = None,
    until: str | None = None,
) -> JobFilter:
    """Return what the options mean. Raises a usage error for a time that is none."""
    from sqlqueue.inspection import JobFilter, State

    names = list(dict.fromkeys(name for some in states for name in some))
    stalled = STALLED in names
    if stalled and len(names) > 1:
        raise click.UsageError("'stalled' is no state beside others: ask for it alone")
    return JobFilter(
        states=() if stalled else tuple(State(name) for name in names),
        queue=queue,
        task=task,
        worker=worker,
        error=error,
        since_ms=None if since is None else moment_ms(since, name="--since", past=True),
        stalled=stalled,
        celery_state=None if celery_state is None else celery_state.upper(),
        search=search,
        until_ms=None if until is None else moment_ms(until, name="--until", past=True),
    )


def moment_ms(text: str, *, name: str, past: bool = False) -> int:
    """Return UTC milliseconds for an ISO time, or for a duration from now (`past`: before now).

    A time without a zone is UTC. Raises a usage error.
    """
    from sqlqueue.config import duration_s

    now = datetime.now(timezone.utc)
    if moment := _iso_moment(text):
        return round(moment.timestamp() * 1000)
    try:
        distance_s = duration_s(text.removesuffix("ago").strip() if past else text, name=name)
    except ConfigError:
        raise click.UsageError(
            f"{name} {quoted(text)} is no time. Write 1h, 30m, or an ISO time such as"
            f" {now:%Y-%m-%dT%H:%M}Z (UTC where no zone is given)."
        ) from None
    return round((now.timestamp() + (-distance_s if past else distance_s)) * 1000)


def _iso_moment(text: str) -> datetime | None:
    given = f"{text[:-1]}+00:00" if text[-1:] in "zZ" else text  # Python 3.10 does not know "Z"
    try:
        moment = datetime.fromisoformat(given)
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    except ValueError:
        return None
