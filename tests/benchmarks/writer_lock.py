"""Compare ways to take turns at writing: throughput, worst wait, fairness, processor time.

    python -m tests.benchmarks.writer_lock [--seconds 2] [--rounds 3] [--processes 2 4 8]

Each process inserts one row of 300 bytes a transaction, as often as it can. A wait is the time
from wanting to write until SQLite's write lock is held. `share` is what the process with the
fewest turns got of what the one with the most got. The ways are interleaved; other machines and
moments differ by factors, so compare within one run only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlqueue_transport.writer_lock import WriterLock


class Ours(WriterLock):
    """Ask again and again, and let the longest waiter pass: what the store does."""


class Polling(WriterLock):
    """Ask again and again, and no more."""

    def take(self, deadline_s: float) -> None:
        pause_s = 0.00002
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.001)


class Blocking(WriterLock):
    """Wait in the kernel, without a bound."""

    def take(self, deadline_s: float) -> None:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)


class BusyHandler:
    """Have no lock of our own: SQLite sleeps and asks again."""

    def __init__(self, path: Path) -> None:
        pass

    def take(self, deadline_s: float) -> None:
        pass

    def drop(self) -> None:
        pass


WAYS = (Ours, Polling, Blocking, BusyHandler)


def write_for(seconds: float, way: type[Any], path: Path, start: Any, answers: Any) -> None:
    lock = way(path.with_suffix(".lock"))
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA synchronous = NORMAL").fetchall()
    waits = []
    start.wait()
    end_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < end_s:
        lock.take(time.monotonic() + 30)
        try:
            connection.execute("BEGIN IMMEDIATE")
            waits.append(time.perf_counter() - began_s)
            connection.execute("INSERT INTO t VALUES (?)", ("x" * 300,))
            connection.execute("COMMIT")
        finally:
            lock.drop()
    answers.put(waits)


def measure(way: type[Any], processes: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.db"
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("CREATE TABLE t (v)")
        connection.commit()
        connection.close()
        start, answers = multiprocessing.Barrier(processes), multiprocessing.Queue()
        before = os.times()
        running = [
            multiprocessing.Process(target=write_for, args=(seconds, way, path, start, answers))
            for _ in range(processes)
        ]
        for one in running:
            one.start()
        waits = [answers.get() for _ in running]
        for one in running:
            one.join()
        after = os.times()
    turns = [len(one) for one in waits]
    every_wait = sorted(wait for one in waits for wait in one)
    cpu_s = after.children_user + after.children_system
    cpu_s -= before.children_user + before.children_system
    return {
        "writes/s": sum(turns) / seconds,
        "worst wait ms": every_wait[-1] * 1000,
        "p99.9 ms": every_wait[int(len(every_wait) * 0.999)] * 1000,
        "share": min(turns) / max(turns),
        "cores": cpu_s / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    chosen = parser.parse_args()
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{platform.machine()}, {os.cpu_count()} cores; medians of {chosen.rounds} rounds of "
        f"{chosen.seconds:g} s, worst wait: of all rounds"
    )
    columns = ("writes/s", "worst wait ms", "p99.9 ms", "share", "cores")
    print(f"{'processes':>9} {'way':<12}" + "".join(f"{column:>15}" for column in columns))
    for processes in chosen.processes:
        found: dict[type[Any], list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(chosen.rounds):
            for way in WAYS:
                found[way].append(measure(way, processes, chosen.seconds))
        for way, rounds in found.items():
            middle = {name: statistics.median(one[name] for one in rounds) for name in columns}
            middle["worst wait ms"] = max(one["worst wait ms"] for one in rounds)
            figures = (
                f"{middle['writes/s']:15,.0f}",
                f"{middle['worst wait ms']:15.1f}",
                f"{middle['p99.9 ms']:15.2f}",
                f"{middle['share']:15.2f}",
                f"{middle['cores']:15.2f}",
            )
            print(f"{processes:>9} {way.__name__:<12}" + "".join(figures), flush=True)


if __name__ == "__main__":
    main()
