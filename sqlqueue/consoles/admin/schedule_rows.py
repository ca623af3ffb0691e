"""What the Schedule page says: how each entry stands, its last and next time, and recent ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlqueue.consoles import markup
from sqlqueue.consoles.admin.questions import Question
from sqlqueue.consoles.markup import Column
from sqlqueue.formats import ago, at, number, took
from sqlqueue.palette import LEVELS, MUTED
from sqlqueue.scheduled import Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlqueue.consoles.markup import Html
    from sqlqueue.inspection import Scheduled
    from sqlqueue_transport.schedules import TickRow

__all__ = ["EMPTY", "facts", "is_paused", "pause_question", "resume_question", "summary", "ticks"]

EMPTY: Final = (
    "No schedule yet. A beat writes it down: sqlqueue beat -A MODULE:ATTR; or add an entry:"
    " sqlqueue schedule add"
)
_COLOURS: Final = {
    Standing.RUNNING: LEVELS["ok"],
    Standing.FAILING: LEVELS["fail"],
    Standing.OVER: MUTED,
}
_WORDS: Final = {
    Standing.NO_BEAT: "no beat runs",
    Standing.ORPHANED: "in no beat’s application",
}


def is_paused(entry: Scheduled) -> bool:
    """Say whether an operator paused it; one that is over can be resumed as well."""
    return entry.row.paused_at_ms is not None


def facts(entry: Scheduled, *, now_ms: int) -> Html:
    """Return an entry as a row of facts, with what is wrong below it."""
    row = entry.row
    last = ago(row.last_due_ms, now_ms) or "never"
    return markup.facts(
        [
            ("Entry", markup.strong(row.entry)),
            ("When", markup.text(row.description)),
            ("Enqueues", markup.text(row.target)),
            ("Standing", _standing(entry)),
            ("Last", markup.joined([markup.text(last), markup.muted(_late(entry))])),
            ("Next", _next(entry, now_ms)),
            ("Ticks in 30d", markup.text(number(row.ticks))),
        ],
        below=[_problem(entry), _pause(entry, now_ms)],
    )


def summary(found: Sequence[Scheduled], newest: Sequence[TickRow], *, now_ms: int) -> str:
    """Return one line about all of them: above all, when something was last enqueued."""
    said = [number(len(found), "entry") if len(found) == 1 else f"{number(len(found))} entries"]
    beats = {name for one in found for name in one.row.beats}
    said.append(f"{number(len(beats), 'beat')} alive" if beats else "no beat is running")
    enqueued = [one for one in newest if one.jobs]
    if enqueued:
        last = max(enqueued, key=lambda one: one.at_ms)
        said.append(f"last enqueued {ago(last.at_ms, now_ms)} by {last.entry}")
    else:
        said.append("nothing enqueued yet")
    return ", ".join(said)


def ticks(found: Sequence[TickRow], *, now_ms: int, utc: bool, most: int) -> Html:
    """Return the newest ticks of all entries as a table."""
    return markup.table(
        [
            Column("Due", 4),
            Column("Entry", 4),
            Column("Enqueued", 2, right=True),
            Column("Late", 2, right=True),
            Column("Jobs", right=True),
            Column("Beat", 4),
            Column("Left out", 3),
        ],
        [
            [
                markup.text(at(one.due_ms, utc=utc)),
                markup.text(one.entry),
                markup.text(ago(one.at_ms, now_ms)),
                markup.text(took(max(one.at_ms - one.due_ms, 0) / 1000)),
                markup.text(number(one.jobs)),
                markup.text(one.beat),
                markup.warned(one.skipped or ""),
            ]
            for one in found[:most]
        ],
    )


def pause_question(name: str) -> Question:
    """Return what to ask before an entry is paused."""
    return Question(
        title=f"Pause entry {name}",
        label="Pause",
        lines=("No beat enqueues for it until it is resumed. What is enqueued already runs.",),
    )


def resume_question(name: str) -> Question:
    """Return what to ask before an entry is resumed."""
    return Question(
        title=f"Resume entry {name}",
        label="Resume",
        lines=("It goes on with its next tick. What was due meanwhile is given up.",),
    )


def _standing(entry: Scheduled) -> Html:
    said = _WORDS.get(entry.standing, entry.standing.value.replace("_", " "))
    return markup.dotted(said, _COLOURS.get(entry.standing, LEVELS["warn"]))


def _late(entry: Scheduled) -> str:
    if entry.row.last_skipped:
        return f"left out: {entry.row.last_skipped}"
    # Every tick is late by some milliseconds; only what one would notice is worth a word.
    late_s = entry.late_s
    return f"{took(late_s)} late" if late_s is not None and late_s >= 1 else ""


def _next(entry: Scheduled, now_ms: int) -> Html:
    due_ms = entry.row.next_due_ms
    if due_ms is None or entry.standing is Standing.PAUSED:
        return markup.text("–")
    if due_ms < now_ms - 1000:
        return markup.warned(f"overdue for {took((now_ms - due_ms) / 1000)}")
    return markup.text(ago(due_ms, now_ms))


def _problem(entry: Scheduled) -> Html:
    return (
        markup.warned(entry.row.error.strip().split("\n", 1)[0], "fail")
        if entry.row.error
        else markup.NOTHING
    )


def _pause(entry: Scheduled, now_ms: int) -> Html:
    if entry.row.paused_at_ms is None:
        return markup.NOTHING
    return markup.warned(
        f"Paused {ago(entry.row.paused_at_ms, now_ms)}. What is due meanwhile is given up."
    )
