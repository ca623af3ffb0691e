"""How a job looks as a line of the table, and its arguments as one line. Knows no Streamlit.

Cells show text as it is, without mark-up; what is invisible or turns text around is spelled out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sqlqueue.formats import ago, took
from sqlqueue.palette import TITLES
from sqlqueue.text import HIDDEN, escaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlqueue.inspection import Arguments
    from sqlqueue_transport.reading import JobRow

__all__ = [
    "COLUMNS",
    "GONE",
    "call_text",
    "cells",
    "error_line",
    "link",
    "ran",
    "standing",
]

GONE: Final = "removed"
COLUMNS: Final = (
    "Job",
    "Open",
    "State",
    "Task",
    "Queue",
    "Try",
    "Enqueued",
    "Started",
    "Ran",
    "Worker",
    "Last error",
    "Arguments",
)
_NO_LIMIT: Final = "∞"
_LINE: Final = 200  # characters of a cell; the rest is on the job's page
_EMPTY: Final[Mapping[str, object]] = dict.fromkeys(COLUMNS, "")


def cells(
    row: JobRow | None, message_id: int, *, now_ms: int, max_attempts: int, call: str
) -> dict[str, object]:
    """Return the cells of a line by column. `row` None: the job was removed since.

    `max_attempts` 0 means no limit; `call` is `call_text` of its arguments.
    """
    if row is None:
        return {**_EMPTY, "Job": f"#{message_id}", "Open": None, "State": [GONE]}
    name = row.name
    return {
        "Job": escaped(name),
        "Open": link(name),
        "State": [TITLES[standing(row)]],
        "Task": _line(row.task or ""),
        "Queue": _line(row.queue),
        "Try": f"{row.attempts}/{max_attempts or _NO_LIMIT}",
        "Enqueued": _ago(row.enqueued_at_ms, now_ms),
        "Started": _ago(row.started_at_ms, now_ms),
        "Ran": took(ran(row, now_ms)),
        "Worker": _line(row.worker or "") if row.started_at_ms is not None else "",
        "Last error": error_line(row.error_type, row.error_message),
        "Arguments": call,
    }


def link(name: str) -> str:
    """Return the address of a job's page, from any other page."""
    return f"job?id={quote(name, safe='', errors='replace')}"


def standing(row: JobRow) -> str:
    """Return the state to show: `stalled` is computed, the others are stored."""
    return (
        "stalled" if row.lease_left_ms is not None and row.lease_left_ms <= 0 else row.state.value
    )


def ran(row: JobRow, now_ms: int) -> float | None:
    """Return for how many seconds the newest attempt runs or ran; None where nobody knows."""
    if row.started_at_ms is None:
        return None
    until_ms = now_ms if row.state.value == "processing" else row.finished_at_ms
    return None if until_ms is None else max(until_ms - row.started_at_ms, 0) / 1000


def error_line(kind: str | None, message: str | None) -> str:
    """Return an error as one line; "" for none."""
    if not kind:
        return ""
    first = (message or "").strip().split("\n", 1)[0]
    return _line(f"{kind}: {first}" if first else kind)


def call_text(arguments: Arguments) -> str:
    """Return arguments as one line: ``"job-1.txt", copy=true``; why not, where they cannot be read."""
    if arguments.is_hidden:
        return HIDDEN
    if arguments.problem:
        return _line(f"cannot be read: {arguments.problem}")
    args = [_value(one) for one in arguments.args or ()]
    kwargs = [f"{key}={_value(one)}" for key, one in (arguments.kwargs or {}).items()]
    return _line(", ".join([*args, *kwargs]))


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(text: str) -> str:
    return escaped(text if len(text) <= _LINE else f"{text[:_LINE]}…")


def _ago(at_ms: int | None, now_ms: int) -> str:
    # Two clocks may differ by a moment: what has happened is never in the future.
    return ago(None if at_ms is None else min(at_ms, now_ms), now_ms)
