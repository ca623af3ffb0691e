"""Print what this machine does: publish and run rates, latency from enqueue to start, idle CPU.

    make bench                    all of it, in about a minute
    make bench ARGS="--jobs 2000"

Figures of one run compare with each other only; other machines and moments differ by factors.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlqueue_transport import Store
from sqlqueue_transport.messages import NewMessage, Outcome, Settlement
from tests.support import ROOT, wait_until

APP = """
import time
from sqlqueue import SqlQueue
app = SqlQueue("bench", broker_url="sqlqueue:///queue.db")

@app.task(name="nothing")
def nothing():
    pass

@app.task(name="note_start")
def note_start(published_ns):
    with open("latency.txt", "a") as file:
        file.write(f"{time.monotonic_ns() - published_ns}\\n")
"""


def main() -> None:
    """Run every measurement and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--latency-samples", type=int, default=300)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    chosen = parser.parse_args()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}"
    )
    with tempfile.TemporaryDirectory(prefix="sqlqueue-bench-") as name:
        directory = Path(name)
        _floor(directory, chosen.jobs)
        _store(directory, chosen.jobs)
        (directory / "benchapp.py").write_text(APP)
        _worker(directory, chosen)


def _floor(directory: Path, jobs: int) -> None:
    """Time plain sqlite3 doing one insert a transaction, unsynced: nothing can be faster."""
    connection = sqlite3.connect(directory / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE message (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
    body = os.urandom(300)
    began_s = time.perf_counter()
    for _ in range(jobs):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO message (body) VALUES (?)", (body,))
        connection.execute("COMMIT")
    _say("floor: insert, unsynced", jobs / (time.perf_counter() - began_s), "/s")
    connection.close()


def _store(directory: Path, jobs: int) -> None:
    store = Store(directory / "store.db")
    store.consumers.register(name="bench", kind="client")
    message = NewMessage(body=os.urandom(300), queue="default", task="nothing", job_id="x")
    for durable, count in ((False, jobs), (True, jobs // 5)):
        began_s = time.perf_counter()
        for _ in range(count):
            store.publish([message], durable=durable)
        name = "publish, flushed" if durable else "publish, unsynced"
        _say(f"store: {name}", count / (time.perf_counter() - began_s), "/s")
    began_s = time.perf_counter()
    settlements: list[Settlement] = []
    count = 0
    while True:
        claim = store.claim(["default"], 1, lease_s=60, settlements=settlements)
        if not claim.deliveries:
            break
        count += 1
        settlements = [
            Settlement(one.message_id, one.delivery, Outcome.done()) for one in claim.deliveries
        ]
    _say("store: settle + claim, one at a time", count / (time.perf_counter() - began_s), "/s")
    store.close()


def _worker(directory: Path, chosen: argparse.Namespace) -> None:
    sys.path.insert(0, str(directory))
    os.chdir(directory)
    from benchapp import app, note_start, nothing  # type: ignore[import-not-found]

    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{directory}"}
    for _ in range(chosen.jobs):
        nothing.delay()
    with (directory / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "sqlqueue", "worker", "-A", "benchapp:app"),
                *("-c", "2", "--log-level", "warning"),
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        began_s = time.perf_counter()
        wait_until(lambda: _done(app) > 0, deadline_s=60, what="the first job")
        _say("worker -c 2: start to first job", time.perf_counter() - began_s, "s")
        first, began_s = _done(app), time.perf_counter()
        wait_until(lambda: _done(app) >= chosen.jobs, deadline_s=300, every_s=0.05, what="all jobs")
        rate = (chosen.jobs - first) / (time.perf_counter() - began_s)
        _say("worker -c 2: no-op jobs, one at a time", rate, "/s")
        _latency(directory, note_start, chosen.latency_samples)
        _idle(worker, chosen.idle_seconds)
    finally:
        worker.terminate()
        worker.wait(timeout=60)


def _done(app: Any) -> int:
    return next(
        count for state, count in app.backend.counts().states.items() if state.value == "done"
    )


def _latency(directory: Path, task: Any, samples: int) -> None:
    """Enqueue one job at a time to an idle worker and let it note when it starts."""
    path = directory / "latency.txt"
    for number in range(samples):
        task.delay(time.monotonic_ns())
        wait_until(
            lambda number=number: path.exists() and path.read_bytes().count(b"\n") > number,
            what="a start",
            every_s=0.001,
        )
    found = sorted(int(line) / 1e6 for line in path.read_text().split())
    _say("enqueue to start, idle worker: p50", statistics.median(found), "ms")
    _say("enqueue to start, idle worker: p99", found[int(len(found) * 0.99)], "ms")


def _idle(worker: subprocess.Popen[bytes], seconds: float) -> None:
    """Add up the CPU time of the worker's tree while there is nothing to do."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    pids = [str(worker.pid), *children]
    before_s, began_s = _cpu_s(pids), time.monotonic()
    time.sleep(seconds)
    used = (_cpu_s(pids) - before_s) / (time.monotonic() - began_s) * 100
    _say(f"idle worker -c 2: CPU over {seconds:g} s", used, "% of a core")


def _cpu_s(pids: list[str]) -> float:
    # schedstat counts nanoseconds; the ticks of /proc/PID/stat are 10 ms, too coarse for idling.
    return sum(
        int(task.joinpath("schedstat").read_text().split()[0]) / 1e9
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def _say(what: str, value: float, unit: str) -> None:
    print(f"{what:45} {value:12,.3f} {unit}", flush=True)


if __name__ == "__main__":
    main()
