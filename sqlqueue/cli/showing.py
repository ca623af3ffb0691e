"""How jobs, queues and workers look to people, as tables and pages.

Everything goes through `Output`, which escapes it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from sqlqueue.cli.output import Cell, Column
from sqlqueue.formats import ago, at, number, short, took
from sqlqueue.palette import HEADING, LEVELS, MUTED, STATES
from sqlqueue.text import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.cli.output import Output
    from sqlqueue.health import Check
    from sqlqueue.inspection import (
        CeleryResult,
        DeadGroup,
        Failure,
        Inspection,
        Job,
        JobFilter,
        Queue,
        Scheduled,
        Stats,
        Worker,
    )
    from sqlqueue.operations import Target
    from sqlqueue_transport.reading import JobRow

__all__ = [
    "checks",
    "dead_groups",
    "job",
    "jobs",
    "next_ticks",
    "nothing_found",
    "queues",
    "schedule",
    "state_cell",
    "stats",
    "targets",
    "workers",
]

_MOST_ERROR_CHARS: Final = 160  # of the one line a list has for it
_MOST_VALUE_CHARS: Final = 2000  # of arguments and results; JSON output has them whole
_NO_LIMIT: Final = "∞"
_BAR_CELLS: Final = 20
_STANDING_LEVELS: Final = {
    "failing": "fail",
    "no_beat": "warn",
    "orphaned": "warn",
    "paused": "warn",
}  # of those that stand out


def state_cell(state: str) -> Cell:
    """Return a state in its colour."""
    return Cell(state, STATES.get(state, ""))


def stats(output: Output, found: Stats) -> None:
    """Show the counts, and below them what is not a state."""
    total = sum(found.states.values())
    rows: list[list[Cell | str]] = [
        [state_cell(state.value), number(count)] for state, count in found.states.items()
    ]
    rows.append([Cell("all", HEADING), Cell(number(total), HEADING)])
    output.table([Column("STATE"), Column("JOBS", right=True)], rows)
    output.line("")
    if found.stalled:
        output.line(
            f"{number(found.stalled)} stalled: in processing, but their lease is over",
            STATES["stalled"],
        )
    for queue, count in found.paused.items():
        output.line(
            f"paused          {queue}, with {number(count, 'message')} waiting",
            LEVELS["warn"] if count else MUTED,
        )
    waiting = "nothing waits" if found.oldest_pending_s is None else took(found.oldest_pending_s)
    output.line(f"oldest pending  {waiting}")
    output.line(f"workers         {found.alive} alive, {found.slots} slots")
    log = f"log             {found.log_bytes / 1e6:.1f} MB"
    if found.log_has_grown:
        output.line(f"{log}: a program reads for long; 'sqlqueue doctor' names it", LEVELS["warn"])
    else:
        output.line(log)


def jobs(output: Output, rows: Sequence[JobRow], inspection: Inspection) -> None:
    """Show a page of jobs."""
    now_ms = inspection.now_ms
    output.table(
        [
            Column("ID"),
            Column("STATE"),
            Column("TASK", rank=1, flexible=True),
            Column("TRY", rank=2, right=True),
            Column("ENQUEUED", rank=4, right=True),
            Column("TOOK", rank=5, right=True),
            Column("QUEUE", rank=6, flexible=True),
            Column("WORKER", rank=7, flexible=True),
            Column("ERROR", rank=3, flexible=True),
        ],
        [
            [
                row.name,
                _standing(row),
                row.task or "",
                _tries(row.attempts, inspection.max_attempts_of(row)),
                Cell(ago(row.enqueued_at_ms, now_ms), MUTED),
                _duration(row, now_ms),
                row.queue,
                _last_worker(row),
                _error_line(row.error_type, row.error_message),
            ]
            for row in rows
        ],
    )


def nothing_found(inspection: Inspection, chosen: JobFilter) -> str:
    """Say that no job matches, and what there is instead."""
    found = inspection.stats().states
    total = sum(found.values())
    if not total:
        return "No jobs yet. Enqueue one: sqlqueue call TASK, or task.delay(…) in Python."
    wanted = " or ".join(state.value for state in chosen.states)
    texts = (
        chosen.task,
        chosen.queue,
        chosen.worker,
        chosen.error,
        chosen.celery_state,
        chosen.search,
    )
    narrowed = any((*texts, chosen.since_ms, chosen.until_ms))
    what = f"No {wanted} jobs" if wanted else "No stalled jobs" if chosen.stalled else "No jobs"
    kept_s = inspection.settings.retention_done
    since = f" in the last {short(kept_s)}" if kept_s else ""
    there = ", ".join(
        f"{number(count)} {state.value}{since if state.value == 'done' else ''}"
        for state, count in found.items()
        if count and (narrowed or state not in chosen.states)
    )
    return f"{what}{' match' if narrowed else ''}. {there}."


def dead_groups(output: Output, groups: Sequence[DeadGroup], *, now_ms: int) -> None:
    """Show the dead letters by error, with a job to look at for each."""
    output.table(
        [
            Column("JOBS", right=True),
            Column("NEWEST", right=True),
            Column("ERROR", flexible=True),
            Column("TASKS", rank=2, flexible=True),
            Column("EXAMPLE", rank=1),
        ],
        [
            [
                Cell(number(group.count), HEADING),
                Cell(ago(group.newest_at_ms, now_ms), MUTED),
                _error_line(group.type, group.text),
                ", ".join(group.tasks),
                group.example,
            ]
            for group in groups
        ],
    )


def queues(output: Output, found: Sequence[Queue], *, now_ms: int) -> None:
    """Show queues; a queue with pending jobs that nobody serves stands out."""
    output.table(
        [
            Column("QUEUE"),
            Column("PENDING", right=True),
            Column("LATER", rank=1, right=True),
            Column("PROCESSING", right=True),
            Column("OLDEST", right=True),
            Column("WORKERS", right=True),
            Column("PAUSED", rank=2, flexible=True),
        ],
        [
            [
                queue.name,
                number(queue.pending),
                number(queue.later),
                number(queue.processing),
                took(queue.oldest_pending_s),
                Cell(
                    number(queue.servers),
                    LEVELS["fail"] if queue.pending and not queue.servers else "",
                ),
                Cell(_pause(queue, now_ms), LEVELS["warn"]),
            ]
            for queue in found
        ],
    )


def workers(output: Output, found: Sequence[Worker], *, now_ms: int) -> None:
    """Show processes, children indented below their worker."""
    known = {worker.row.id for worker in found}
    output.table(
        [
            Column("NAME"),
            Column("KIND"),
            Column("PID", rank=2, right=True),
            Column("SLOTS", rank=3, right=True),
            Column("UP", right=True),
            Column("SIGN OF LIFE", right=True),
            Column("QUEUES", rank=4, flexible=True),
            Column("RUNS", rank=1, flexible=True),
        ],
        [
            [
                f"  {worker.row.name}" if worker.row.parent_id in known else worker.row.name,
                worker.row.kind,
                str(worker.row.pid),
                str(worker.row.slots) if worker.row.slots else "",
                took((now_ms - worker.row.started_at_ms) / 1000),
                _sign_of_life(worker),
                ", ".join(worker.row.queues) if worker.row.parent_id not in known else "",
                ", ".join(
                    f"{one.task} {one.job_id or one.message_id} for {_duration(one, now_ms)}"
                    f"{_percent(one, ', ')}"
                    for one in worker.jobs
                ),
            ]
            for worker in found
        ],
    )


def schedule(output: Output, found: Sequence[Scheduled], *, now_ms: int) -> None:
    """Show schedule entries."""
    output.table(
        [
            Column("ENTRY"),
            Column("WHEN"),
            Column("WHAT", flexible=True),
            Column("STATE"),
            Column("LAST", right=True),
            Column("LATE", rank=2, right=True),
            Column("NEXT", right=True),
            Column("TICKS", rank=1, right=True),
            Column("ERROR", rank=3, flexible=True),
        ],
        [
            [
                one.row.entry,
                one.row.description,
                one.row.target,
                _entry_state(one),
                ago(one.row.last_due_ms, now_ms) or "never",
                one.row.last_skipped or took(one.late_s),
                ago(one.row.next_due_ms, now_ms),
                number(one.row.ticks),
                Cell(_one_line(one.problem), LEVELS["fail"]),
            ]
            for one in found
        ],
    )


def next_ticks(output: Output, found: Sequence[Scheduled], *, count: int, now_ms: int) -> None:
    """Show the next due times of each entry, by its own clocks and in UTC."""
    output.table(
        [
            Column("ENTRY"),
            Column("STATE"),
            Column("DUE"),
            Column("ZONE", rank=1, flexible=True),
            Column("UTC", rank=2),
            Column("IN", right=True),
        ],
        [
            [
                one.row.entry,
                _entry_state(one),
                "" if at_ms is None else f"{one.local(at_ms):%Y-%m-%d %H:%M:%S}",
                one.zone_name,
                at(at_ms, utc=True).removesuffix(" UTC"),
                ago(at_ms, now_ms),
            ]
            for one in found
            for at_ms in (*one.next_ms(count, now_ms=now_ms),) or (None,)
        ],
    )


def _entry_state(one: Scheduled) -> Cell:
    level = _STANDING_LEVELS.get(one.standing.value)
    return Cell(one.standing.value.replace("_", " "), LEVELS[level] if level else "")


def targets(output: Output, found: Sequence[Target]) -> None:
    """Show the jobs an action is about."""
    output.table(
        [
            Column("ID"),
            Column("STATE"),
            Column("TASK", rank=1, flexible=True),
            Column("QUEUE", rank=2, flexible=True),
        ],
        [
            [target.name, state_cell(target.state.value), target.task or "", target.queue]
            for target in found
        ],
    )


def checks(output: Output, found: Sequence[Check]) -> None:
    """Show what the doctor found: a line each, and problems and ways out below it."""
    width = max(len(check.name) for check in found)
    for check in found:
        output.pieces(
            [
                (f"{check.level.value:<4}", LEVELS[check.level.value]),
                f"  {check.name:<{width}}  ",
                check.summary,
            ]
        )
        for problem in check.problems[:20]:
            output.pieces([f"{'':<{width + 8}}", problem])
        if len(check.problems) > 20:
            output.pieces([f"{'':<{width + 8}}", f"… and {len(check.problems) - 20} more"])
        if check.hint:
            output.pieces([f"{'':<{width + 8}}", (f"→ {check.hint}", MUTED)])


# -- one job ---------------------------------------------------------------------------------------------


def job(output: Output, found: Job, *, now_ms: int, utc: bool, tracebacks: str) -> None:
    """Show one job as a page."""
    row = found.row

    def when(at_ms: int | None) -> str:
        return f"{at(at_ms, utc=utc)} ({ago(at_ms, now_ms)})" if at_ms is not None else ""

    pairs: list[tuple[str, Cell | str]] = [
        ("id", row.job_id or ""),
        ("message", f"#{row.message_id}"),
        ("task", row.task or ""),
        ("queue", row.queue),
        ("state", _standing(row)),
        ("attempts", _tries(row.attempts, found.max_attempts)),
        ("priority", str(row.priority)),
        ("enqueued", when(row.enqueued_at_ms)),
        ("due", when(row.due_at_ms)),
        ("expires", when(row.expires_at_ms)),
        ("started", when(row.started_at_ms)),
        ("finished", when(row.finished_at_ms)),
        ("took", _duration(row, now_ms)),
        ("worker", _last_worker(row)),
        ("lease", _lease(row)),
        ("progress", _progress(row, now_ms)),
        ("stop", _stop(row, when)),
        *_contents(found),
    ]
    for name, value in pairs:
        text, style = (value.text, value.style) if isinstance(value, Cell) else (value, "")
        if text:
            output.pieces([(f"{name:<10}", MUTED), (text, style)])
    if found.others:
        output.pieces(
            [
                (f"{'others':<10}", MUTED),
                f"older messages with this id: {', '.join(f'#{other}' for other in found.others)}",
            ]
        )
    _history(output, found, utc=utc, tracebacks=tracebacks)
    if found.celery is not None and found.celery.error is not None and tracebacks != "none":
        _traceback(output, "Celery's traceback", found.celery.error)
    if found.audit:
        output.line("")
        output.line("What operators did", HEADING)
        for one in found.audit:
            reason = f": {one.reason}" if one.reason else ""
            output.line(
                f"  {at(one.at_ms, utc=utc)}  {one.action} by {one.actor},"
                f" {one.before} → {one.after}{reason}"
            )


def _contents(found: Job) -> list[tuple[str, Cell | str]]:
    if found.arguments.problem:
        call: tuple[str, Cell | str] = (
            "arguments",
            Cell(f"cannot be read: {found.arguments.problem}", LEVELS["fail"]),
        )
    elif found.is_sensitive:
        call = ("arguments", Cell(HIDDEN, MUTED))
    else:
        call = ("arguments", _call_text(found))
    error = found.error
    shown_error = Cell(_error_text(error), STATES["failed"]) if error else ""
    if found.celery is not None:
        return [call, ("error", shown_error), ("celery", _celery_text(found.celery))]
    result: Cell | str = "" if found.row.state.value != "done" else _value_text(found.result)
    if result and found.is_sensitive:
        result = Cell(HIDDEN, MUTED)
    return [call, ("result", result), ("error", shown_error)]


def _celery_text(found: CeleryResult) -> Cell:
    """Say what Celery says of a job: a task that raised has been acknowledged all the same."""
    if found.error is not None:
        return Cell(f"{found.state}: {_error_text(found.error)}", STATES["failed"])
    if found.result is None:
        return Cell(found.state)
    return Cell(f"{found.state}: {_value_text(found.result)}")


def _call_text(found: Job) -> str:
    args = [_value_text(value) for value in found.arguments.args or ()]
    kwargs = [
        f"{key}={_value_text(value)}" for key, value in (found.arguments.kwargs or {}).items()
    ]
    return f"({', '.join([*args, *kwargs])})"


def _history(output: Output, found: Job, *, utc: bool, tracebacks: str) -> None:
    if not found.history:
        return
    output.line("")
    output.line("Attempts", HEADING)
    runs = len({one.run for one in found.history}) > 1
    output.table(
        [
            Column("  RUN" if runs else "  TRY"),
            Column("OUTCOME"),
            Column("STARTED"),
            Column("TOOK", right=True),
            Column("WORKER", rank=1, flexible=True),
            Column("ERROR", rank=2, flexible=True),
        ],
        [
            [
                f"  {one.run}.{one.attempt}" if runs else f"  {one.attempt}",
                Cell(one.outcome, STATES["done" if one.outcome == "done" else "failed"]),
                at(one.started_at_ms, utc=utc),
                _between(one.started_at_ms, one.ended_at_ms),
                one.worker or "",
                _error_line(one.error.type, one.error.message) if one.error else "",
            ]
            for one in found.history
        ],
    )
    wanted = {"all": found.history, "last": found.history[-1:], "none": ()}[tracebacks]
    for one in wanted:
        if one.error is not None:
            _traceback(output, f"Traceback of attempt {one.attempt}", one.error)


def _traceback(output: Output, heading: str, error: Failure) -> None:
    if not error.traceback:
        return
    output.line("")
    output.line(heading, HEADING)
    # Indented, so that no line of it can pass for one of ours.
    for line in error.traceback.rstrip("\n").split("\n"):
        output.line(f"  {line}")


# -- pieces -----------------------------------------------------------------------------------------------


def _standing(row: JobRow) -> Cell:
    if row.lease_left_ms is not None and row.lease_left_ms <= 0:
        return Cell(f"{row.state.value} (stalled)", STATES["stalled"])
    if row.stop_asked_at_ms is not None and row.state.value == "processing":
        return Cell(f"{row.state.value} (asked to stop)", STATES["processing"])
    return Cell(f"{row.state.value}{_percent(row, ' ')}", STATES.get(row.state.value, ""))


def _pause(queue: Queue, now_ms: int) -> str:
    if queue.pause is None:
        return ""
    who = f" by {queue.pause.actor}" if queue.pause.actor else ""
    why = f": {queue.pause.reason}" if queue.pause.reason else ""
    return f"{ago(queue.pause.since_ms, now_ms)}{who}{why}"


def _percent(row: JobRow, before: str) -> str:
    """Return how much of a running job is done, behind `before`; "" where nobody knows."""
    part = row.progress.part if row.progress and row.state.value == "processing" else None
    return "" if part is None else f"{before}{part:.0%}"


def _progress(row: JobRow, now_ms: int) -> str:
    said = row.progress
    if said is None:
        return ""
    amount = f"{said.done:g}" if said.total is None else f"{said.done:g} of {said.total:g}"
    if said.part is not None:
        full = round(said.part * _BAR_CELLS)
        bar = "█" * full + "░" * (_BAR_CELLS - full)
        amount = f"{bar} {said.part:.0%}, {amount}"
    note = f": {_one_line(said.note)}" if said.note else ""
    return f"{amount}{note} ({ago(said.at_ms, now_ms)})"


def _stop(row: JobRow, when: Callable[[int | None], str]) -> Cell | str:
    if row.stop_asked_at_ms is None:
        return ""
    by_force = f", by force from {when(row.kill_at_ms)}" if row.kill_at_ms is not None else ""
    return Cell(f"asked {when(row.stop_asked_at_ms)}{by_force}", LEVELS["warn"])


def _last_worker(row: JobRow) -> str:
    return (row.worker or "") if row.started_at_ms is not None else ""


def _tries(attempts: int, most: int) -> str:
    return f"{attempts}/{most or _NO_LIMIT}"


def _duration(row: JobRow, now_ms: int) -> str:
    if row.started_at_ms is None:
        return ""
    if row.state.value == "processing":
        return took(max(now_ms - row.started_at_ms, 0) / 1000)
    return _between(row.started_at_ms, row.finished_at_ms)


def _between(start_ms: int | None, end_ms: int | None) -> str:
    if start_ms is None or end_ms is None:
        return ""
    return took(max(end_ms - start_ms, 0) / 1000)


def _lease(row: JobRow) -> str:
    if row.lease_left_ms is None:
        return ""
    left_s = row.lease_left_ms / 1000
    return f"{took(left_s)} left" if left_s > 0 else f"over for {took(-left_s)}"


def _sign_of_life(worker: Worker) -> Cell | str:
    if not worker.row.is_known_alive or worker.row.heartbeat_age_s is None:
        return Cell("unknown", LEVELS["warn"])
    return f"{took(max(worker.row.heartbeat_age_s, 0))} ago"


def _error_line(kind: str | None, message: str | None) -> str:
    if not kind:
        return ""
    return _one_line(f"{kind}: {message}" if message else kind)


def _error_text(error: Failure) -> str:
    return _one_line(f"{error.type}: {error.message}" if error.message else error.type, 500)


def _one_line(text: str, limit: int = _MOST_ERROR_CHARS) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= limit else f"{line[:limit]}…"


def _value_text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_VALUE_CHARS else f"{text[:_MOST_VALUE_CHARS]}…"
