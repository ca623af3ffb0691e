"""Measure what operators look at, on an empty file and on files of a million jobs.

    python -m tests.benchmarks.inspection [--jobs 1000000] [--times 15] [--write]

Five files: an empty one; all done (of every thousand one dead letter, with an attempt); all pending;
half done and half pending, once the old half done and once the new half. Each view is what a page of
a console asks of `sqlqueue.inspection`; the figures are the median and the slowest of a number of
calls, in milliseconds, after a first one, which is the third figure. Then what the tally costs: the
same loops of publish, claim and settle beside files without its triggers, and with a plain counter
that every step raises and lowers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import kombu

from sqlqueue.backend import SqliteBackend
from sqlqueue.inspection import Inspection, JobFilter, State
from sqlqueue_transport import NewMessage, Outcome, Settlement, Store

RESULTS = Path(__file__).parent / "results" / "inspection.txt"
DONE, DEAD, PENDING = (State.DONE,), (State.PERMANENTLY_FAILED,), (State.PENDING,)

MESSAGE = """
INSERT INTO message (queue, state, job_id, task, priority, attempts, delivery, worker_id,
  enqueued_at_ms, started_at_ms, finished_at_ms, headers, properties, body, error_type, error_message)
VALUES (:queue, :state, :job_id, :task, :priority, 1, 1, 1, :at_ms, :started_ms, :finished_ms,
  :headers, '{}', x'5b5b5d2c7b7d2c7b7d5d', :error_type, :error_message)
"""
ATTEMPT = """
INSERT INTO attempt (message_id, run, attempt, delivery, worker, ended_at_ms, outcome, error_type,
  error_message, traceback)
VALUES (:id, 1, 1, 1, 'w', :at_ms, 'failed', :error_type, :error_message, :traceback)
"""
HEADERS = json.dumps({"task": "tasks.t", "lang": "py", "argsrepr": "x" * 200})
HOUR_MS = 3_600_000


def fill(store: Store, states: Callable[[int], str], jobs: int) -> None:
    """Write jobs of the last hour, in portions of one transaction."""
    now_ms = store.clock.wall_ms()

    def work(connection: sqlite3.Connection, start: int) -> None:
        for number in range(start, min(start + 50_000, jobs)):
            state = states(number)
            at_ms = now_ms - HOUR_MS + number * HOUR_MS // jobs
            is_over, is_dead = state != "pending", state == "permanently_failed"
            values: dict[str, object] = {
                "queue": ("high", "default", "low")[number % 3],
                "priority": number % 2,
                "state": state,
                "task": f"tasks.t{number % 7}",
                "job_id": f"01a203d1-4522-748b-b2d3-{number:012}",
                "at_ms": at_ms,
                "started_ms": at_ms + number % 500 if is_over else None,
                "finished_ms": at_ms + number % 7000 if is_over else None,
                "headers": HEADERS,
                "error_type": "ValueError" if is_dead else None,
                "error_message": f"no file {number}" if is_dead else None,
            }
            message_id = connection.execute(MESSAGE, values).lastrowid
            if is_dead:
                attempt = {**values, "id": message_id, "traceback": "x" * 800}
                connection.execute(ATTEMPT, attempt)

    for start in range(0, jobs, 50_000):
        store.database.write(lambda c, start=start: work(c, start))  # type: ignore[misc]


def done_or_dead(number: int) -> str:
    return "permanently_failed" if number % 1000 == 999 else "done"


FILES: dict[str, tuple[Callable[[int], str], float]] = {
    "empty": (done_or_dead, 0),
    "done": (done_or_dead, 1),
    "pending": (lambda _: "pending", 1),
}


def views(inspection: Inspection, middle: int) -> dict[str, Callable[[], object]]:
    """Return what pages ask for, by name."""
    newest = inspection.jobs(JobFilter(), limit=1).items
    name = f"#{newest[0].message_id}" if newest else ""
    ids = [row.message_id for row in inspection.jobs(JobFilter()).items]
    found: dict[str, Callable[[], object]] = {
        "stats": inspection.stats,
        "queues": inspection.queues,
        "jobs": lambda: inspection.jobs(JobFilter()),
        "jobs, a page in the middle": lambda: inspection.jobs(JobFilter(), cursor=str(middle)),
        "jobs, done": lambda: inspection.jobs(JobFilter(states=DONE)),
        "jobs, pending": lambda: inspection.jobs(JobFilter(states=PENDING)),
        "jobs, dead": lambda: inspection.jobs(JobFilter(states=DEAD)),
        "jobs, processing": lambda: inspection.jobs(JobFilter(states=(State.PROCESSING,))),
        "jobs, done of a queue": lambda: inspection.jobs(JobFilter(states=DONE, queue="low")),
        "jobs, pending of a queue": lambda: inspection.jobs(JobFilter(states=PENDING, queue="low")),
        "jobs, of a task": lambda: inspection.jobs(JobFilter(task="tasks.t3")),
        "search an id's beginning": lambda: inspection.jobs(
            JobFilter(search="01a203d1-4522-748b-b2d3-000000001")
        ),
        "again, a page": lambda: inspection.again(ids),
        "newer": lambda: inspection.newer(JobFilter(), ids[-1] if ids else 0),
        "count, of a state": lambda: inspection.count(JobFilter(states=DONE)),
        "active": inspection.active,
        "activity of an hour": lambda: inspection.activity(3600),
        "errors of an hour": lambda: inspection.errors_since(3600),
        "dead by error": inspection.dead_groups,
        "audit": inspection.audit,
        "size": inspection.size,
    }
    if name:
        found["one job"] = lambda: inspection.job(name)
    found["walk: a text nowhere"] = lambda: inspection.jobs(JobFilter(search="nowhere at all"))
    found["the same, budget 0.1 s"] = lambda: inspection.jobs(
        JobFilter(search="nowhere at all"), budget_s=0.1
    )
    return found


def measured(view: Callable[[], object], times: int) -> tuple[float, float, float]:
    """Return the median, the slowest and the first call, in milliseconds."""
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        view()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took[1:]), max(took[1:]), took[0]


# -- what the tally costs ---------------------------------------------------------------------------

TRIGGERS = ("message_tallied", "message_moved", "message_gone")
PLAIN = (
    (
        "CREATE TABLE plain (queue TEXT, state TEXT, messages INTEGER, PRIMARY KEY (queue, state))"
        " STRICT, WITHOUT ROWID"
    ),
    (
        "CREATE TRIGGER plain_new AFTER INSERT ON message BEGIN"
        " INSERT INTO plain VALUES (new.queue, new.state, 1)"
        " ON CONFLICT (queue, state) DO UPDATE SET messages = messages + 1; END"
    ),
    (
        "CREATE TRIGGER plain_moved AFTER UPDATE OF state, queue ON message BEGIN"
        " UPDATE plain SET messages = messages - 1 WHERE queue = old.queue AND state = old.state;"
        " INSERT INTO plain VALUES (new.queue, new.state, 1)"
        " ON CONFLICT (queue, state) DO UPDATE SET messages = messages + 1; END"
    ),
)


def counted_by(path: Path, way: str) -> Store:
    """Open a new file that counts in a way: none, tally, or plain."""
    store = Store(path)

    def work(connection: sqlite3.Connection) -> None:
        for trigger in TRIGGERS if way != "tally" else ():
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in PLAIN if way == "plain" else ():
            connection.execute(statement)

    store.database.write(work)
    store.consumers.register(name="w", kind="client")
    return store


def publish(store: Store, jobs: int, *, at_once: int = 1) -> float:
    """Publish, and return microseconds a job."""
    message = NewMessage(body=b"[[], {}, {}]", queue="q", task="tasks.t", headers=HEADERS)
    began = time.perf_counter()
    for _ in range(jobs // at_once):
        store.publish([message] * at_once, durable=False)
    return (time.perf_counter() - began) / jobs * 1e6


def run(store: Store, jobs: int) -> float:
    """Settle and claim one by one, and return microseconds a job."""
    settlements: list[Settlement] = []
    began = time.perf_counter()
    for _ in range(jobs):
        found = store.claim(["q"], 1, lease_s=60, settlements=settlements).deliveries
        settlements = [Settlement(one.message_id, one.delivery, Outcome.done()) for one in found]
    store.settle(settlements)
    return (time.perf_counter() - began) / jobs * 1e6


def costs(directory: Path, rounds: int) -> list[str]:
    """Return lines of a table: microseconds of publish and of claim and settle, paired."""
    lines = [f"{'µs a job, medians of pairs':32}{'publish':>10}{'claim, settle':>16}"]
    for backlog in (0, 40_000):
        ways = {way: counted_by(directory / f"{way}-{backlog}.db", way) for way in
                ("none", "tally", "plain")}  # fmt: skip
        took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for store in ways.values():
            publish(store, backlog or 500, at_once=500)
        for _ in range(rounds):
            for way, store in ways.items():
                took[way].append((publish(store, 2000), run(store, 2000)))
        for way, store in ways.items():
            store.close()
            published, ran = (statistics.median(some) for some in zip(*took[way], strict=True))
            what = f"{way}, {backlog or 500:,} waiting"
            lines.append(f"{what:32}{published:10.1f}{ran:16.1f}")
    return lines


def main() -> None:
    """Fill files, look at them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"keep the table as {RESULTS.name}")
    chosen = parser.parse_args()
    half = chosen.jobs // 2
    files = {
        **FILES,
        "old done": (lambda n: done_or_dead(n) if n < half else "pending", 1.0),
        "new done": (lambda n: "pending" if n < half else done_or_dead(n), 1.0),
    }
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="sqlqueue-bench-") as name:
        for title, (states, share) in files.items():
            path = Path(name) / "queue.db"
            connection = kombu.Connection(f"sqlqueue:///{path}")
            backend = SqliteBackend(connection)
            fill(backend.store, states, round(chosen.jobs * share))
            for view, ask in views(Inspection(backend), half).items():
                table.setdefault(view, {})[title] = measured(ask, chosen.times)
            backend.close()
            for one in path.parent.glob("queue.db*"):
                if one.is_file():
                    one.unlink()
        cost = costs(Path(name), max(chosen.times, 2))
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}"
    )
    lines = [
        f"# {chosen.jobs:,} jobs, three queues, two priorities; {machine}",
        "# milliseconds: median, slowest / first call",
        f"{'':28}" + "".join(f"{title:>24}" for title in files),
    ]
    for view, found in table.items():
        cells = (
            "{:.1f}, {:.1f} / {:.1f}".format(*found[title]) if title in found else "–"
            for title in files
        )
        lines.append(f"{view:28}" + "".join(f"{cell:>24}" for cell in cells))
    lines += ["", *cost]
    print("\n".join(lines))
    if chosen.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
