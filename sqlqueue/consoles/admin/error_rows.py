"""What the Errors page says: dead letters that died alike, and what failed lately. No Streamlit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlqueue.consoles import markup
from sqlqueue.consoles.admin.view import View
from sqlqueue.consoles.markup import Column
from sqlqueue.formats import ago, number, short
from sqlqueue.inspection import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlqueue.consoles.markup import Html
    from sqlqueue.inspection import DeadGroup, ErrorGroup

__all__ = [
    "JOBS",
    "MOST",
    "WINDOWS",
    "error_of",
    "facts",
    "key_of",
    "link_of",
    "nothing_dead",
    "nothing_failed",
    "recent",
    "summary",
]

MOST: Final = 50  # groups on the page; who has more kinds of errors begins with the largest
JOBS: Final = "./"  # the Jobs page: the first of a console has no path of its own
WINDOWS: Final[Mapping[str, float]] = {"15m": 900, "1h": 3600, "24h": 86_400, "7d": 7 * 86_400}
_LEFT_OUT: Final = "…"  # what a group's text has for numbers, ids and names


def key_of(group: DeadGroup) -> tuple[str, str]:
    """Return what makes a group itself, however many die meanwhile."""
    return group.type, group.text


def error_of(kind: str, text: str) -> str:
    """Return an error as one line."""
    return f"{kind}: {text}" if kind and text else kind or text or "no error kept"


def link_of(group: DeadGroup) -> dict[str, str]:
    """Return the query that shows a group's jobs on the Jobs page.

    By its text up to the first thing that was left out: that finds each of them, and perhaps more.
    """
    literal = group.text.partition(_LEFT_OUT)[0]
    error = f"{group.type}: {literal}" if literal and group.type else group.type or literal
    return View(states=(State.PERMANENTLY_FAILED.value,), error=error.strip()).params()


def facts(group: DeadGroup, *, now_ms: int) -> Html:
    """Return a group as a row of facts."""
    return markup.facts(
        [
            ("Error", markup.strong(error_of(group.type, group.text))),
            ("Jobs", markup.link(number(group.count), JOBS, link_of(group), title="Show them")),
            ("Newest", markup.text(ago(group.newest_at_ms, now_ms))),
            ("Task", markup.text(", ".join(filter(None, group.tasks)) or "–")),
            ("Example", markup.example(group.example)),
        ]
    )


def summary(groups: Sequence[DeadGroup]) -> str:
    """Return one line about all dead letters."""
    dead = number(sum(group.count for group in groups), "job")
    return f"{dead} in {number(len(groups), 'group')}" if groups else ""


def nothing_dead(*, done: int, kept_s: float) -> str:
    """Return what to say when there is no dead letter.

    `done` are the jobs that are, and `kept_s` how long these are kept, 0 for ever.
    """
    if not done:
        return "No dead letters."
    return (
        f"No dead letters. {number(done)} done{f' in the last {short(kept_s)}' if kept_s else ''}."
    )


def nothing_failed(window_s: float) -> str:
    """Return what to say when no attempt failed in a window."""
    return f"No attempt has failed in the last {short(window_s)}."


def recent(groups: Sequence[ErrorGroup], *, now_ms: int) -> Html:
    """Return the failed attempts of a window as a table, by error."""
    return markup.table(
        [
            Column("Attempts", 2, right=True),
            Column("Newest", 2, right=True),
            Column("Error", 10),
            Column("Example", 6),
        ],
        [
            [
                markup.text(number(group.count)),
                markup.text(ago(group.newest_at_ms, now_ms)),
                markup.text(error_of(group.type, group.text)),
                markup.example(group.example),
            ]
            for group in groups
        ],
    )
