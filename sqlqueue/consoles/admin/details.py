"""What the page of one job says: facts, timeline, arguments, commands to copy. Knows no Streamlit.

HTML is made here, of escaped text only; Streamlit cleans it once more before it is shown.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from sqlqueue.consoles.admin.questions import LABELS, legal_states
from sqlqueue.consoles.admin.rows import error_line, ran
from sqlqueue.formats import ago, at, took
from sqlqueue.inspection import Call
from sqlqueue.operations import Action
from sqlqueue.palette import STATES
from sqlqueue.text import HIDDEN, escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlqueue.app import SqlQueue
    from sqlqueue.inspection import Arguments, History, Job
    from sqlqueue_transport.reading import JobRow

__all__ = [
    "MOST_CHARS",
    "Attempt",
    "arguments_text",
    "attempts",
    "command_of",
    "commands",
    "facts",
    "facts_html",
    "legal_actions",
    "pretty",
    "tail",
    "timeline_html",
    "views",
]

MOST_CHARS: Final = 20_000  # of arguments, a result, a traceback or a file
_MOST_ATTEMPTS: Final = 50  # of the timeline, the newest ones; max_attempts may be without limit
_OUTCOMES: Final = {
    "done": STATES["done"],
    "running": STATES["processing"],
    "cancelled": STATES["cancelled"],
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """Be a line of the timeline. `from_part` and `to_part` are its place on the time axis, 0 to 1.

    `outcome` is one of a History's, or `running`. Texts are escaped for eyes, not for HTML.
    """

    label: str
    outcome: str
    worker: str
    started: str
    took: str
    error: str
    from_part: float
    to_part: float
    traceback: str = ""


def facts(job: Job, *, now_ms: int, utc: bool) -> tuple[tuple[str, str], ...]:
    """Return what there is to say about a job, as pairs of a word and a text; nothing empty."""
    row = job.row

    def when(at_ms: int | None) -> str:
        return "" if at_ms is None else f"{at(at_ms, utc=utc)} · {ago(at_ms, now_ms)}"

    since_ms = max(row.enqueued_at_ms, row.due_at_ms or 0)
    waited_until = row.started_at_ms if row.started_at_ms is not None else now_ms
    is_waiting = row.started_at_ms is None and row.state.value not in {"pending", "scheduled"}
    pairs = (
        ("Task", escaped(row.task or "")),
        ("Queue", escaped(row.queue)),
        ("Attempts", f"{row.attempts} of {job.max_attempts or '∞'}"),
        ("Enqueued", when(row.enqueued_at_ms)),
        ("Due", when(row.due_at_ms)),
        ("Started", when(row.started_at_ms)),
        ("Finished", when(row.finished_at_ms)),
        ("Waited", "" if is_waiting else took(max(waited_until - since_ms, 0) / 1000)),
        ("Ran", took(ran(row, now_ms))),
        ("Worker", escaped(row.worker or "") if row.started_at_ms is not None else ""),
        ("Lease", _lease(row)),
        ("Asked to stop", when(row.stop_asked_at_ms)),
        ("By force from", when(row.kill_at_ms)),
        ("Expires", when(row.expires_at_ms)),
        ("Priority", str(row.priority)),
        ("Message", f"#{row.message_id}"),
        ("Delivery", str(row.delivery) if row.delivery else ""),
        ("Run", str(row.run) if row.run > 1 else ""),
    )
    return tuple((name, text) for name, text in pairs if text)


def facts_html(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the facts as a list that breaks into as many columns as fit."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs
    )
    return f'<dl class="sq-facts">{items}</dl>'


def attempts(job: Job, *, now_ms: int, utc: bool) -> tuple[Attempt, ...]:
    """Return the attempts of a job in their order, the one that runs now at the end."""
    row = job.row
    history = job.history[-_MOST_ATTEMPTS:]
    is_running = row.state.value == "processing" and row.started_at_ms is not None
    starts = [one.started_at_ms for one in history if one.started_at_ms is not None]
    ends = [one.ended_at_ms for one in history if one.ended_at_ms is not None]
    if is_running and row.started_at_ms is not None:
        starts.append(row.started_at_ms)
        ends.append(now_ms)
    axis_ms = (min(starts, default=0), max([*starts, *ends], default=1))
    has_runs = row.run > 1 or any(one.run > 1 for one in history)
    found = [_ended(one, axis_ms, utc=utc, has_runs=has_runs) for one in history]
    if is_running and row.started_at_ms is not None:
        found.append(
            Attempt(
                label=f"{row.run}.{row.attempts}" if has_runs else f"{row.attempts}",
                outcome="running",
                worker=escaped(row.worker or ""),
                started=at(row.started_at_ms, utc=utc),
                took=took(ran(row, now_ms)),
                error="",
                from_part=_part(row.started_at_ms, axis_ms),
                to_part=1.0,
            )
        )
    return tuple(found)


def _ended(one: History, axis_ms: tuple[int, int], *, utc: bool, has_runs: bool) -> Attempt:
    start_ms, end_ms = one.started_at_ms, one.ended_at_ms
    duration_s = None if start_ms is None or end_ms is None else max(end_ms - start_ms, 0) / 1000
    return Attempt(
        label=f"{one.run}.{one.attempt}" if has_runs else f"{one.attempt}",
        outcome=one.outcome,
        worker=escaped(one.worker or ""),
        started=at(start_ms, utc=utc),
        took=took(duration_s),
        error=error_line(one.error.type, one.error.message) if one.error else "",
        from_part=_part(start_ms if start_ms is not None else end_ms, axis_ms),
        to_part=_part(end_ms if end_ms is not None else start_ms, axis_ms),
        traceback=tail(one.error.traceback) if one.error and one.error.traceback else "",
    )


def _part(at_ms: int | None, axis_ms: tuple[int, int]) -> float:
    first, last = axis_ms
    if at_ms is None or last <= first:
        return 0.0
    return min(max((at_ms - first) / (last - first), 0.0), 1.0)


def timeline_html(found: Sequence[Attempt]) -> str:
    """Return the timeline: a line for each attempt, with a bar where it lies between first and last."""
    lines = []
    for one in found:
        colour = _OUTCOMES.get(one.outcome, STATES["permanently_failed"])
        left = one.from_part * 100
        width = max((one.to_part - one.from_part) * 100, 0.6)
        lines.append(
            f'<li style="--sq:{colour}"><b>{escape(one.label)}</b>'
            f'<span class="sq-badge">{escape(one.outcome.replace("_", " "))}</span>'
            f'<span class="sq-track"><i style="left:{min(left, 99.4):.2f}%;width:{width:.2f}%">'
            f"</i></span><span>{escape(one.started)}</span>"
            f'<span class="sq-right">{escape(one.took)}</span>'
            f'<span class="sq-muted">{escape(one.worker)}</span>'
            f'<span class="sq-error">{escape(one.error)}</span></li>'
        )
    return f'<ol class="sq-timeline">{"".join(lines)}</ol>'


def arguments_text(arguments: Arguments) -> str:
    """Return the arguments of a call as JSON on several lines; "" for a call without any."""
    if arguments.is_hidden:
        return HIDDEN
    if not arguments.args and not arguments.kwargs:
        return ""
    if not arguments.kwargs:
        return pretty(list(arguments.args or ()))
    if not arguments.args:
        return pretty(dict(arguments.kwargs))
    return pretty({"args": list(arguments.args), "kwargs": dict(arguments.kwargs)})


def pretty(value: object) -> str:
    """Return a value as JSON on several lines, cut where it is long, with a note that says so."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    left = len(text) - MOST_CHARS
    shown = escaped(text[:MOST_CHARS], keep_newlines=True)
    return shown if left <= 0 else f"{shown}\n… {left:,} more characters"


def tail(text: str) -> str:
    """Return the end of a text, with a note where its beginning is left out."""
    left = len(text) - MOST_CHARS
    shown = escaped(text[-MOST_CHARS:], keep_newlines=True).rstrip("\n")
    return shown if left <= 0 else f"… {left:,} characters before\n{shown}"


def legal_actions(row: JobRow) -> tuple[Action, ...]:
    """Return what a console may do to this job as it stands."""
    return tuple(action for action in LABELS if row.state in legal_states(action))


def command_of(action: Action, job: Job, *, db: str) -> str:
    """Return the same action as a command to copy. `db` is what --db takes, "" to leave it out."""
    row = job.row
    # An id means the newest message that carries it; an older one has only its own number, and so
    # has one whose id cannot be typed.
    is_newest = row.job_id is not None and all(other < row.message_id for other in job.others)
    name = row.name
    if not is_newest or name.startswith("-") or escaped(name) != name:
        name = f"#{row.message_id}"
    verb = "cancel" if action is Action.TERMINATE else action.value
    option = ["--terminate"] if action is Action.TERMINATE else []
    where = ["--db", db] if db else []
    return shlex.join(["sqlqueue", verb, name, *option, *where])


def commands(job: Job, *, db: str) -> str:
    """Return the commands of all that can be done to a job, a line each."""
    lines = [command_of(action, job, db=db) for action in legal_actions(job.row)]
    return escaped("\n".join(lines), keep_newlines=True)


def views(app: SqlQueue | None, job: Job) -> tuple[tuple[str, str], ...]:
    """Return what an application has to say about a job, as pairs of a title and a text."""
    row = job.row
    if app is None or not app.job_views:
        return ()
    call = Call(
        id=row.name,
        message_id=row.message_id,
        state=row.state.value,
        args=job.arguments.args or (),
        kwargs=job.arguments.kwargs or {},
    )
    found = []
    for (task, title), function in app.job_views.items():
        if task != row.task:
            continue
        try:
            text = function(call)
        except Exception as error:  # noqa: BLE001 - a view is user code; the page still has its word
            text = f"the view itself failed: {type(error).__name__}: {quoted(str(error))}"
        if text is not None:
            found.append((escaped(title), tail(str(text))))
    return tuple(found)


def _lease(row: JobRow) -> str:
    if row.lease_left_ms is None:
        return ""
    left_s = row.lease_left_ms / 1000
    return f"{took(left_s)} left" if left_s > 0 else f"over for {took(-left_s)}"
