"""The figures of the ops page: its cards and its status line, worked out from one look at the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlqueue.consoles.ops.pieces import Card, Level, Status
from sqlqueue.formats import number, took
from sqlqueue.inspection import State
from sqlqueue.scheduled import Standing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlqueue.consoles.ops.snapshot import Snapshot
    from sqlqueue.inspection import Spread

__all__ = [
    "FREE_BYTES",
    "OLDEST_PENDING_S",
    "PART_FAILED",
    "SILENT_S",
    "above",
    "amount",
    "cards",
    "status",
]

# From where on a figure is amber, and from where on red. docs/consoles.md has them in a table.
OLDEST_PENDING_S: Final = (60.0, 300.0)
PART_FAILED: Final = (0.05, 0.20)
SILENT_S: Final = (30.0, 120.0)  # a worker shows a sign of life each few seconds
FREE_BYTES: Final = (2_000_000_000, 500_000_000)  # red at or below the second

_NONE: Final = "–"


def cards(seen: Snapshot) -> tuple[Card, ...]:
    """Return the cards, what hurts first at the left."""
    return (
        _oldest(seen),
        _pending(seen),
        _processing(seen),
        _done(seen),
        _failed(seen),
        _run(seen),
        _wait(seen),
        _dead(seen),
    )


def status(seen: Snapshot) -> Status:
    """Say how all stands, the worst first."""
    problems = sorted(_problems(seen), key=lambda one: one[0] != "fail")
    if problems:
        return Status(problems[0][0], "", tuple(text for _, text in problems))
    serving = [one for one in seen.serving if one.is_known_alive]
    if not serving:
        return Status("", "No worker is alive, and nothing waits.")
    slots = sum(one.slots for one in serving)
    return Status(
        "ok",
        f"{number(len(serving), 'worker')} with {number(slots, 'slot')} on"
        f" {number(len(seen.queues), 'queue')}; nothing waits for long.",
    )


def above(value: float | None, limits: tuple[float, float]) -> Level:
    """Return the level of a value that is better small."""
    if value is None or value < limits[0]:
        return ""
    return "warn" if value < limits[1] else "fail"


def amount(size_bytes: int) -> str:
    """Return ``812 kB``, ``12.4 MB``, ``34.0 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= size:
            return f"{size_bytes / size:,.1f} {unit}"
    return f"{size_bytes / 1000:.0f} kB"


# -- cards -------------------------------------------------------------------------------------------


def _oldest(seen: Snapshot) -> Card:
    age_s = seen.stats.oldest_pending_s
    where = max(seen.queues, key=lambda queue: queue.oldest_pending_s or -1.0, default=None)
    note = "nothing waits"
    if age_s is not None:
        note = f"in {where.name}" if where and where.oldest_pending_s is not None else "waits"
    level = above(age_s, OLDEST_PENDING_S)
    if level:
        limit_s = OLDEST_PENDING_S[level == "fail"]
        note = f"over {took(limit_s).removesuffix(' 00s')}, {note}"
    return Card(
        "oldest",
        "Oldest pending",
        _NONE if age_s is None else took(age_s),
        note,
        level,
        help="how long the job that has waited longest could have run already",
    )


def _pending(seen: Snapshot) -> Card:
    later = seen.stats.states[State.SCHEDULED]
    again = seen.stats.states[State.FAILED]
    return Card(
        "pending",
        "Pending",
        number(seen.stats.states[State.PENDING]),
        f"{number(later)} later, {number(again)} to retry",
        help="jobs that could run now; beside them those due later, and failed ones due again",
    )


def _processing(seen: Snapshot) -> Card:
    stats = seen.stats
    running = stats.states[State.PROCESSING]
    if stats.stalled:
        note, level = f"{number(stats.stalled)} stalled", "fail"
    elif stats.slots:
        note, level = f"of {number(stats.slots, 'slot')}, {running / stats.slots:.0%} busy", ""
    else:
        note, level = "no slots", ""
    return Card(
        "processing",
        "Processing",
        number(running),
        note,
        "fail" if level else "",
        help="jobs that run, of how many the living workers run at once; stalled: their lease is over",
    )


def _done(seen: Snapshot) -> Card:
    rate = seen.activity.done_per_minute
    return Card(
        "done",
        "Done per minute",
        f"{rate:,.1f}" if rate < 999.95 else f"{rate:,.0f}",
        f"{number(seen.activity.done)} in {seen.window.name}",
        help=_UP_TO,
    )


def _failed(seen: Snapshot) -> Card:
    part = seen.activity.failure_rate
    attempts = seen.activity.done + seen.activity.failed
    return Card(
        "failed",
        "Failure rate",
        _NONE if part is None else _percent(part),
        f"{number(seen.activity.failed)} of {number(attempts, 'attempt')}",
        above(part, PART_FAILED),
        help=f"attempts that failed, were lost or ran out of time; {_UP_TO}",
    )


def _run(seen: Snapshot) -> Card:
    return _spread(
        "run", "Run p50", seen.activity.run, first="p50", help="how long the newest done jobs ran"
    )


def _wait(seen: Snapshot) -> Card:
    return _spread(
        "wait",
        "Wait p95",
        seen.activity.wait,
        first="p95",
        help="how long the newest done jobs were due before they started",
    )


def _dead(seen: Snapshot) -> Card:
    new = seen.activity.dead
    return Card(
        "dead",
        "Dead letters",
        number(seen.stats.states[State.PERMANENTLY_FAILED]),
        f"{number(new)} new in {seen.window.name}" if new else f"none new in {seen.window.name}",
        "fail" if new else "",
        help="jobs that failed for good, and wait for an operator",
    )


_UP_TO: Final = "up to the end of the newest bar of the chart"


def _spread(name: str, title: str, spread: Spread | None, *, first: str, help: str) -> Card:  # noqa: A002
    if spread is None:
        return Card(name, title, _NONE, "nothing was done", help=help)
    values = {"p50": spread.p50_s, "p95": spread.p95_s}
    value = values.pop(first)
    [(other, other_s)] = values.items()
    note = f"{other} {took(other_s)}, max {took(spread.max_s)}"
    return Card(name, title, took(value), note, help=help)


def _percent(part: float) -> str:
    """Return a share such that only nothing is 0%, and only all is 100%."""
    if part in {0, 1}:
        return f"{part:.0%}"
    shown = min(max(part, 0.0001), 0.999)
    return f"{shown:.2%}" if shown < 0.0995 else f"{shown:.1%}"


# -- status ------------------------------------------------------------------------------------------


def _problems(seen: Snapshot) -> Iterator[tuple[Level, str]]:
    yield from _of_jobs(seen)
    yield from _of_schedule(seen)
    yield from _of_file(seen)


def _of_jobs(seen: Snapshot) -> Iterator[tuple[Level, str]]:
    stats = seen.stats
    pending = stats.states[State.PENDING]
    unserved = [queue for queue in seen.queues if queue.pending and not queue.servers]
    if pending and not any(one.is_known_alive for one in seen.serving):
        waits = "1 job waits" if pending == 1 else f"{number(pending)} jobs wait"
        yield "fail", f"No worker is alive, and {waits}: start one with sqlqueue worker"
    elif unserved:
        names = ", ".join(f"{queue.name} ({number(queue.pending)} pending)" for queue in unserved)
        yield "fail", f"No worker serves {names}"
    level = above(stats.oldest_pending_s, OLDEST_PENDING_S)
    if level:
        yield level, f"The oldest pending job waits for {took(stats.oldest_pending_s)}"
    if stats.stalled:
        yield "fail", f"{number(stats.stalled, 'job')} stalled: processing, but their lease is over"
    if seen.long:
        jobs = "1 job runs" if len(seen.long) == 1 else f"{len(seen.long)} jobs run"
        yield "warn", f"{jobs} for longer than the visibility timeout of {took(seen.lease_s)}"
    level = above(seen.activity.failure_rate, PART_FAILED)
    if level:
        part = _percent(seen.activity.failure_rate or 0.0)
        yield level, f"{part} of the attempts in {seen.window.name} failed"
    if seen.activity.dead:
        letters = number(seen.activity.dead, "new dead letter")
        yield "warn", f"{letters} in {seen.window.name}"
    for name, count in stats.paused.items():
        yield "warn", f"Queue {name} is paused, {number(count, 'message')} waiting"


def _of_schedule(seen: Snapshot) -> Iterator[tuple[Level, str]]:
    for one in seen.schedule:
        if one.standing is Standing.FAILING:
            yield "fail", f"Schedule entry {one.row.entry} fails: {one.problem}"
    idle = [one for one in seen.schedule if one.standing is Standing.NO_BEAT]
    if idle:
        needed = "1 entry of the schedule needs" if len(idle) == 1 else f"{len(idle)} entries need"
        yield "warn", f"No beat is alive, which {needed}"


def _of_file(seen: Snapshot) -> Iterator[tuple[Level, str]]:
    free = seen.size.free_bytes
    if free <= FREE_BYTES[0]:
        level: Level = "warn" if free > FREE_BYTES[1] else "fail"
        yield level, f"Only {amount(free)} of disk are free"
    if seen.stats.log_has_grown:
        log = amount(seen.stats.log_bytes)
        yield "warn", f"The log is {log} long: a program reads for long, sqlqueue doctor names it"
