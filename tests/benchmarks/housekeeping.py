"""Measure how long a claim waits while old rows are deleted beside it.

    python -m tests.benchmarks.housekeeping [--rows 300000] [--seconds 20] [--write]

A file with a large history (every fourth message a dead letter with five tracebacks, every fiftieth
with a body of its own table) is cleaned by `housekeeping.turn` as a worker would do it, while another
process claims a thousand times a second at most. The same with nobody cleaning, and with portions
of 500 rows whatever they cost, as it was before portions were measured. "held" is how long a portion
kept the writer lock: now and then, as with anybody's commit, that includes copying the log back.
Compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sqlqueue_transport import Store
from sqlqueue_transport.housekeeping import Portion
from sqlqueue_transport.pruning import Policy
from tests.support import ROOT

RESULTS = Path(__file__).parent / "results" / "housekeeping.txt"
DAY_S = 86_400
POLICY = Policy(7 * DAY_S, 30 * DAY_S, 180 * DAY_S)

CLAIM = """
import select, sys, time
from sqlqueue_transport import NewMessage, Outcome, Settlement, Store
store, waits = Store(sys.argv[1]), []
store.consumers.register(name="c", kind="client")
print(flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    store.publish([NewMessage(body=b"{}", queue="x", task="t")], durable=False)
    began = time.perf_counter()
    found = store.claim(["x"], 1, lease_s=60).deliveries
    waits.append(time.perf_counter() - began)
    store.settle([Settlement(one.message_id, one.delivery, Outcome.done()) for one in found])
    time.sleep(0.001)
print(*waits, flush=True)
"""
MESSAGE = """
INSERT INTO message (queue, state, job_id, task, attempts, delivery, worker_id, enqueued_at_ms,
  started_at_ms, finished_at_ms, headers, properties, body)
VALUES ('q', :state, :job_id, 'tasks.t', 1, 1, 1, :at_ms, :at_ms, :at_ms, :headers, '{}', :body)
"""
ATTEMPT = """
INSERT INTO attempt (message_id, run, attempt, delivery, worker, ended_at_ms, outcome, traceback)
VALUES (:id, 1, :attempt, :attempt, 'w', :at_ms, 'failed', :traceback)
"""


def fill(store: Store, rows: int) -> None:
    """Write a history of a hundred days ago."""
    began_ms = store.clock.wall_ms() - 100 * DAY_S * 1000
    headers = json.dumps({"task": "tasks.t", "lang": "py", "argsrepr": "x" * 200})

    def work(connection: sqlite3.Connection) -> None:
        for number in range(rows):
            is_dead, is_large = number % 4 == 3, number % 50 == 0
            values: dict[str, object] = {
                "state": "permanently_failed" if is_dead else "done",
                "job_id": f"01a203d1-4522-748b-b2d3-{number:012}",
                "at_ms": began_ms + number,
                "headers": headers,
                "body": None if is_large else b"[[], {}, {}]",
            }
            message_id = connection.execute(MESSAGE, values).lastrowid
            if is_large:
                content = (message_id, b"x" * 20_000)
                connection.execute("INSERT INTO body VALUES (?, ?)", content)
            for attempt in range(1, 6 if is_dead else 1):
                values = {"id": message_id, "attempt": attempt, "at_ms": began_ms + number}
                connection.execute(ATTEMPT, {**values, "traceback": "x" * 800})

    store.database.write(work)


def measure(name: str, store: Store, seconds: float, *, cleans: bool) -> str:
    """Clean for some seconds beside a process that claims; return a line of the table."""
    claiming = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(store.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert claiming.stdout is not None
    claiming.stdout.readline()
    held_s: list[float] = []
    house, portion = store.housekeeping, store.housekeeping._portion

    def timed(now_ms: int) -> tuple[dict[str, int], float]:
        removed, took_s = portion(now_ms)
        held_s.append(took_s)
        return removed, took_s

    house._portion = timed  # type: ignore[method-assign]
    began_s, removed = time.monotonic(), 0
    while (left_s := began_s + seconds - time.monotonic()) > 0:
        turn = house.turn(POLICY) if cleans else None
        removed += sum(turn.removed.values()) if turn else 0
        time.sleep(min(turn.pause_s if turn else seconds, left_s))
    house._portion = portion  # type: ignore[method-assign]
    waits_s = [float(one) for one in claiming.communicate("\n")[0].split()]
    held = _spread(held_s) if held_s else f"{'–':>8}" * 4
    return f"{name:24} {removed / seconds:9,.0f} {held} {_spread(waits_s)}"


def _spread(seconds: Sequence[float]) -> str:
    found = sorted(seconds)
    points = [found[int((len(found) - 1) * share)] for share in (0.5, 0.99, 0.999, 1.0)]
    return "".join(f"{point * 1000:8.2f}" for point in points)


def main() -> None:
    """Fill a file, clean it in three ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--write", action="store_true", help=f"keep the table as {RESULTS.name}")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sqlqueue-bench-") as name:
        store = Store(Path(name) / "queue.db")
        fill(store, chosen.rows)
        size_mb = store.path.stat().st_size / 1e6
        machine = (
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"SQLite {sqlite3.sqlite_version}"
        )
        lines = [
            f"# {chosen.rows:,} rows, {size_mb:.0f} MB, {chosen.seconds:g} s each; {machine}",
            f"{'':24} {'rows/s':>9} {'held ms: p50, p99, p99.9, max':>32} {'claim ms: the same':>32}",
            measure("nobody cleans", store, chosen.seconds, cleans=False),
            measure("measured portions", store, chosen.seconds, cleans=True),
        ]
        for portion in store.housekeeping._portions.values():
            portion.rows = 500
        measured, Portion.measured = Portion.measured, lambda *_: None  # type: ignore[method-assign]
        lines.append(measure("portions of 500", store, chosen.seconds, cleans=True))
        Portion.measured = measured  # type: ignore[method-assign]
        store.close()
    print("\n".join(lines))
    if chosen.write:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
