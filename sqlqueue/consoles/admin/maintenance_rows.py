"""What the Maintenance page says: the file, what a doctor finds, what operators did. No Streamlit."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from sqlqueue import plain_json
from sqlqueue.consoles import markup
from sqlqueue.consoles.admin.questions import MOST_WITHOUT_TYPING, Question
from sqlqueue.consoles.markup import Column
from sqlqueue.formats import ago, at, number, short, took
from sqlqueue.inspection import State
from sqlqueue.palette import LEVELS, TITLES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlqueue.consoles.markup import Html
    from sqlqueue.health import Check
    from sqlqueue.inspection import Size
    from sqlqueue.operations import BackupReport
    from sqlqueue_transport.reading import AuditRow

__all__ = [
    "ABOUT_BACKUP",
    "ABOUT_CHECK",
    "ABOUT_PRUNING",
    "ENDED",
    "NOTHING_DONE",
    "audit",
    "backed_up",
    "backup_name",
    "backup_question",
    "checks",
    "complaints",
    "file",
    "health",
    "prune_question",
    "pruned",
]

ENDED: Final = (State.DONE, State.PERMANENTLY_FAILED, State.CANCELLED, State.EXPIRED)
NOTHING_DONE: Final = (
    "Nothing yet. What somebody does here, or with the command line, is written down: who, when,"
    " what and why."
)
ABOUT_CHECK: Final = (
    "SQLite reads the file and says what is damaged. Workers go on meanwhile. No check sees a bit that"
    " flipped inside a value."
)
ABOUT_BACKUP: Final = (
    "A copy of the file, made while it is in use and then checked. It opens as a queue of its own."
)
ABOUT_PRUNING: Final = "Workers do so by themselves, as the settings of retention say."
_MOST_PROBLEMS: Final = 20  # lines of one check; 'sqlqueue doctor' has more


def file(path: Path, size: Size, versions: Sequence[tuple[str, str]]) -> Html:
    """Return where the file is, how large it and its surroundings are, and what versions are at work."""
    return markup.facts(
        [
            ("Size", markup.text(_bytes(size.file_bytes))),
            ("Write-ahead log", markup.text(_bytes(size.log_bytes))),
            ("Free on its disk", markup.text(_bytes(size.free_bytes))),
            *((name, markup.text(value)) for name, value in versions),
        ],
        below=[markup.muted(str(path))],
        even=True,
    )


def health(found: Sequence[Check], *, at_ms: int, now_ms: int) -> str:
    """Return one line about what the doctor found."""
    bad = [check.name for check in found if check.level.value == "fail"]
    said = f"Unhealthy: {', '.join(bad)}" if bad else "Healthy"
    return f"{said}. Examined {ago(at_ms, now_ms)}."


def checks(found: Sequence[Check]) -> Html:
    """Return what the doctor found, a row for each check."""
    return markup.table(
        [Column("Check", 3), Column("Level", 1), Column("Found", 10)],
        [
            [
                markup.text(check.name),
                markup.dotted(check.level.value, LEVELS[check.level.value]),
                _found(check),
            ]
            for check in found
        ],
    )


def complaints(found: Sequence[str], *, full: bool) -> tuple[str, str]:
    """Return the level and the sentence for what an integrity check said."""
    what = "Full check" if full else "Quick check"
    if not found:
        return "ok", f"{what}: the file is in order."
    said = "; ".join(found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "fail", (
        f"{what}: the file is damaged: {said}{more}. Stop everything, and restore a backup."
    )


def backup_name(path: Path, now_ms: int) -> str:
    """Return where a backup goes unless somebody says otherwise: beside the file, with the time."""
    moment = datetime.fromtimestamp(now_ms / 1000, timezone.utc)
    return str(path.with_name(f"{path.stem}-{moment:%Y%m%dT%H%M%SZ}{path.suffix}"))


def backup_question(destination: str, size: Size) -> Question:
    """Return what to ask before a backup is made."""
    return Question(
        title="Back up",
        label="Back up",
        lines=(
            f"A copy of {_bytes(size.file_bytes)} is written on the console’s machine and checked.",
            "Workers go on meanwhile.",
        ),
        samples=(destination,),
        asks_reason=False,
    )


def backed_up(report: BackupReport) -> str:
    """Return what became of a backup."""
    return (
        f"Backed up to {report.path}: {number(report.jobs, 'job')}, {_bytes(report.bytes)}, in"
        f" {took(report.took_s)}."
    )


def prune_question(count: int, *, older_than_s: float, states: Sequence[State]) -> Question:
    """Return what to ask before finished jobs are deleted; above 20 their number is typed."""
    names = ", ".join(TITLES[state.value] for state in states)
    asks_typing = count > MOST_WITHOUT_TYPING
    return Question(
        title=f"Prune {number(count, 'job')}",
        label=f"Delete {number(count, 'job')}",
        lines=(
            f"They ended more than {short(older_than_s)} ago as {names}.",
            "They are deleted for good, results and tracebacks as well.",
        ),
        typed=str(count) if asks_typing else "",
        typed_label=f"Type {number(count)} to confirm" if asks_typing else "",
    )


def pruned(count: int) -> str:
    """Return what became of a pruning."""
    return f"{number(count, 'job')} deleted. The file keeps its size and uses the room anew."


def audit(rows: Sequence[AuditRow], *, now_ms: int, utc: bool) -> Html:
    """Return what operators did, newest first."""
    return markup.table(
        [
            Column("When", 4),
            Column("Who", 5),
            Column("What", 4),
            Column("Job", 4),
            Column("Before and after", 4),
            Column("Why", 6),
        ],
        [
            [
                markup.joined(
                    [markup.text(at(row.at_ms, utc=utc)), markup.muted(ago(row.at_ms, now_ms))]
                ),
                markup.text(row.actor),
                markup.text(_what(row)),
                _job(row),
                markup.text(_change(row)),
                markup.text(row.reason or ""),
            ]
            for row in rows
        ],
    )


def _found(check: Check) -> Html:
    lines = [markup.text(check.summary), *map(markup.muted, check.problems[:_MOST_PROBLEMS])]
    if len(check.problems) > _MOST_PROBLEMS:
        lines.append(markup.muted(f"… and {len(check.problems) - _MOST_PROBLEMS} more"))
    if check.hint:
        lines.append(markup.muted(f"→ {check.hint}"))
    return markup.lines(lines)


def _job(row: AuditRow) -> Html:
    if row.message_id is None:
        return markup.NOTHING
    # By message: a job id means its newest message, which may be another by now.
    return markup.example(row.job_id or f"#{row.message_id}", f"#{row.message_id}")


def _what(row: AuditRow) -> str:
    """Return an action in words; of a schedule entry its name stands in what came after."""
    said = row.action.replace("_", " ")
    entry = _entry_of(row.after) or _entry_of(row.before)
    return f"{said} {entry}" if entry else said


def _change(row: AuditRow) -> str:
    if _entry_of(row.after) or _entry_of(row.before):
        return ""
    names = [TITLES.get(state, state) for state in (row.before, row.after) if state]
    return " → ".join(names)


def _entry_of(text: str | None) -> str:
    """Return the schedule entry that an audit row is about, "" for one about something else."""
    if not text or not text.startswith("{"):
        return ""
    try:
        found = plain_json.read(text.encode())
    except plain_json.Unreadable:
        return ""
    entry = found.get("entry") if isinstance(found, dict) else None
    return entry if isinstance(entry, str) else ""


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
