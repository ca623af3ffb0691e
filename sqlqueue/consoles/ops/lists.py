"""The tables of the ops page, worked out from one look at the queue."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from sqlqueue.consoles.ops.figures import SILENT_S, above, amount
from sqlqueue.consoles.ops.pieces import Cell, Column, Level, Table
from sqlqueue.formats import ago, number, short, took
from sqlqueue.scheduled import Standing
from sqlqueue.text import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlqueue.consoles.ops.snapshot import Snapshot
    from sqlqueue.inspection import Arguments, Queue, Scheduled, Worker
    from sqlqueue_transport.reading import JobRow

__all__ = ["active", "arguments_text", "errors", "facts", "queues", "schedule", "workers"]

_MOST_CHARS: Final = 200  # of a cell; the page cuts further where it is narrow
_NOTHING: Final = Cell("")
_KINDS: Final = {"worker": 0, "child": 1, "client": 2, "beat": 3}  # the order they are shown in
_STANDINGS: Final[dict[Standing, Level]] = {
    Standing.FAILING: "fail",
    Standing.NO_BEAT: "warn",
    Standing.ORPHANED: "warn",
    Standing.PAUSED: "warn",
}


def active(seen: Snapshot) -> Table:
    """Return what runs now, the longest running first."""
    running = sum(queue.processing for queue in seen.queues)
    count = number(running, "job")
    if len(seen.active) < running:
        count = f"the {number(len(seen.active))} longest running of {count}"
    return Table(
        "Active now",
        count,
        (
            Column("Job", 15),
            Column("Task", 22),
            Column("Arguments", 30, rank=2),
            Column("Worker", 16, rank=2),
            Column("Elapsed", 12, right=True),
            Column("Progress", 17, rank=1),
            Column("Lease left", 14, rank=1),
        ),
        tuple(_active_row(seen, row) for row in seen.active),
        "Nothing runs at this moment.",
    )


def errors(seen: Snapshot) -> Table:
    """Return what went wrong in the window, what did so most often first."""
    attempts = sum(one.count for one in seen.errors)
    return Table(
        "Errors",
        f"{number(attempts, 'attempt')} in {seen.window.name}",
        (Column("Count", 17, right=True), Column("Error", 60), Column("Last", 23, right=True)),
        tuple(
            (
                Cell(number(one.count)),
                Cell(_cut(f"{one.type}: {one.text}" if one.text else one.type)),
                Cell(_since(one.newest_at_ms, seen.now_ms), muted=True),
            )
            for one in seen.errors
        ),
        f"No attempt failed in the last {seen.window.name}.",
    )


def workers(seen: Snapshot) -> Table:
    """Return the processes that work or enqueue, children counted with their worker."""
    found = [one for one in seen.workers if not _is_child_of_known(one, seen.workers)]
    found.sort(key=lambda one: (_KINDS.get(one.row.kind, 0), one.row.name))
    kinds = Counter(_kind(one) for one in found if one.row.is_known_alive)
    return Table(
        "Workers",
        ", ".join(number(count, kind) for kind, count in kinds.items()) or "none alive",
        (
            Column("Name", 26),
            Column("Kind", 12, rank=2),
            Column("Busy", 11, right=True),
            Column("Runs", 32, rank=1),
            Column("Queues", 18, rank=2),
            Column("Sign of life", 18, right=True),
            Column("Up", 10, right=True, rank=2),
        ),
        tuple(_worker_row(seen, one) for one in found),
        "No worker is alive. Start one: sqlqueue worker -A module:app",
    )


def queues(seen: Snapshot) -> Table:
    """Return the queues, those with the oldest waiting job first."""
    ordered = sorted(seen.queues, key=lambda one: (-(one.oldest_pending_s or -1.0), one.name))
    return Table(
        "Queues",
        number(len(ordered)),
        (
            Column("Queue", 30),
            Column("Pending", 19, right=True),
            Column("Later", 14, right=True, rank=1),
            Column("Oldest", 19, right=True),
            Column("Workers", 19, right=True),
        ),
        tuple(_queue_row(one) for one in ordered),
        "No queue yet: the first job makes one.",
    )


def schedule(seen: Snapshot) -> Table:
    """Return the entries of the schedule, and when each has last made jobs."""
    return Table(
        "Schedule",
        _newest_tick(seen),
        (
            Column("Entry", 34),
            Column("When", 24, rank=1),
            Column("Last", 18, right=True),
            Column("Next", 18, right=True),
        ),
        tuple(_schedule_row(seen, one) for one in seen.schedule),
        "No schedule: an application's beat_schedule, or sqlqueue schedule add, makes one.",
    )


def facts(seen: Snapshot) -> tuple[tuple[str, Cell], ...]:
    """Return what is to be known of the file."""
    size = seen.size
    return (
        ("File", Cell(seen.path)),
        ("Size", Cell(amount(size.file_bytes))),
        (
            "Write-ahead log",
            Cell(amount(size.log_bytes), "warn" if seen.stats.log_has_grown else ""),
        ),
        ("Free on disk", Cell(amount(size.free_bytes))),
        ("SQLite", Cell(seen.sqlite_version)),
    )


def arguments_text(found: Arguments) -> str:
    """Return a call's arguments in one line, a text as it is; "" for one that has none."""
    if found.is_hidden:
        return HIDDEN
    if found.problem:
        return f"cannot be read: {found.problem}"
    values = [_value(value) for value in found.args or ()]
    values += [f"{name}={_value(value)}" for name, value in (found.kwargs or {}).items()]
    return _cut(", ".join(values))


# -- rows --------------------------------------------------------------------------------------------


def _active_row(seen: Snapshot, row: JobRow) -> tuple[Cell, ...]:
    name = row.name
    since_ms = row.started_at_ms
    elapsed_s = None if since_ms is None else max(seen.now_ms - since_ms, 0) / 1000
    said = seen.arguments.get(row.message_id, "")
    return (
        Cell(_short(name), whole=name),
        Cell(_cut(row.task or "")),
        Cell(said, muted=True),
        Cell(row.worker or ""),
        Cell(took(elapsed_s), "warn" if row in seen.long else ""),
        _progress(row),
        _lease(row, seen.lease_s),
    )


def _progress(row: JobRow) -> Cell:
    if row.progress is None:
        return _NOTHING
    said = row.progress
    part = said.part
    amount_done = f"{said.done:g}" if part is None else f"{part:.0%}"
    return Cell(amount_done, part=part, whole=f"{amount_done} {said.note}".strip())


def _lease(row: JobRow, lease_s: float) -> Cell:
    if row.lease_left_ms is None:
        return _NOTHING
    left_s = row.lease_left_ms / 1000
    if left_s <= 0:
        return Cell(f"over {short(-left_s)} ago", "fail")
    return Cell(short(left_s), part=left_s / lease_s if lease_s > 0 else None)


def _worker_row(seen: Snapshot, one: Worker) -> tuple[Cell, ...]:
    row = one.row
    family = [one, *(other for other in seen.workers if other.row.parent_id == row.id)]
    jobs = [job for other in family for job in other.jobs]
    ages = [other.row.heartbeat_age_s for other in family]
    # The stillest of them: a worker is as alive as the child that hangs.
    known = [age for age in ages if age is not None]
    age_s = max(known) if known else None
    if not row.is_known_alive:
        life = Cell("unknown", "warn", whole="its presence file was lost: restart it")
    elif age_s is None:
        life = Cell("alive", muted=True)
    else:
        life = Cell(f"{short(max(age_s, 0))} ago", above(age_s, SILENT_S))
    tasks = Counter(job.task or "?" for job in jobs)
    runs = ", ".join(
        name if count == 1 else f"{name} ×{count}" for name, count in tasks.most_common()
    )
    return (
        Cell(row.name, whole=f"{row.name}, process {row.pid} on {row.host}"),
        Cell(_kind(one), muted=True),
        Cell(f"{len(jobs)}/{row.slots}" if row.slots else ""),
        Cell(_cut(runs)),
        Cell(", ".join(row.queues), muted=True),
        life,
        Cell(short(max(seen.now_ms - row.started_at_ms, 0) / 1000), muted=True),
    )


def _queue_row(one: Queue) -> tuple[Cell, ...]:
    if one.pause is not None:
        why = f", {one.pause.reason}" if one.pause.reason else ""
        name = Cell(
            f"{one.name} (paused)", "warn", whole=f"paused by {one.pause.actor or 'somebody'}{why}"
        )
    else:
        name = Cell(one.name)
    lonely: Level = "fail" if one.pending and not one.servers else ""
    return (
        name,
        Cell(number(one.pending)),
        Cell(number(one.later), muted=not one.later),
        Cell(took(one.oldest_pending_s)),
        Cell(number(one.servers), lonely),
    )


def _schedule_row(seen: Snapshot, one: Scheduled) -> tuple[Cell, ...]:
    standing = one.standing.value.replace("_", " ")
    level = _STANDINGS.get(one.standing, "")
    upcoming = ago(one.row.next_due_ms, seen.now_ms)
    return (
        Cell(
            f"{one.row.entry} ({standing})" if level else one.row.entry,
            level,
            whole=f"{one.row.entry}: {one.problem or one.row.target}",
        ),
        Cell(one.row.description, muted=True),
        Cell(_since(one.row.last_at_ms, seen.now_ms) or "never"),
        Cell(standing if level or not upcoming else upcoming, muted=True),
    )


def _newest_tick(seen: Snapshot) -> str:
    """Say when a producer last made something: the first sign of one that stands still."""
    newest = max((one.row.last_at_ms or 0 for one in seen.schedule), default=0)
    if not newest:
        return "no tick yet" if seen.schedule else ""
    return f"last tick {_since(newest, seen.now_ms)}"


def _kind(one: Worker) -> str:
    # Celery's workers, and whatever else consumes through Kombu.
    return "consumer" if one.row.kind == "client" else one.row.kind


def _is_child_of_known(one: Worker, all_of_them: Sequence[Worker]) -> bool:
    return any(other.row.id == one.row.parent_id for other in all_of_them)


# -- texts -------------------------------------------------------------------------------------------


def _since(at_ms: int | None, now_ms: int) -> str:
    """Return how long ago something was; what a clock that was set back has ahead of us is now."""
    return ago(None if at_ms is None else min(at_ms, now_ms), now_ms)


def _short(name: str) -> str:
    """Return the end of an id: ids of one hour begin alike (UUIDv7)."""
    return name if len(name) <= 13 else f"…{name[-12:]}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…"


def _value(value: object) -> str:
    if isinstance(value, str):
        return value[: _MOST_CHARS + 1]
    return json.dumps(value, ensure_ascii=False, default=str)
