"""What a program that enqueues does, whatever the framework.

    python -m tests.benchmarks.frameworks.apps.client APP publish nothing 1000
    python -m tests.benchmarks.frameworks.apps.client APP publish nothing 1000 WORKER-ARGUMENTS…
    python -m tests.benchmarks.frameworks.apps.client APP one-by-one COUNT SECONDS
    python -m tests.benchmarks.frameworks.apps.client APP steadily JOBS-PER-SECOND SECONDS

APP is a module of this package. Figures go to `client.json`, since a worker logs what is printed. The
first job is not timed: with it a client connects.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

from tests.benchmarks.frameworks.apps import jobs

DIRECTORY = Path(os.environ["BENCH_DIRECTORY"])


def main() -> None:
    app = importlib.import_module(f"tests.benchmarks.frameworks.apps.{sys.argv[1]}")
    what, *arguments = sys.argv[2:]
    if what == "publish":
        kind, count, *worker = arguments
        _tell(_publish(app.ENQUEUE[kind], int(count)))
        if worker:  # of a broker that is one process's
            app.work(worker)
    elif what == "one-by-one":
        _tell(_one_by_one(app.ENQUEUE["mark"], int(arguments[0]), float(arguments[1])))
    elif what == "steadily":
        _tell(_steadily(app.ENQUEUE["mark"], float(arguments[0]), float(arguments[1])))
    else:
        raise SystemExit(__doc__)


def _tell(figures: dict[str, float]) -> None:
    (DIRECTORY / "client.json").write_text(json.dumps(figures))


def _publish(enqueue, count: int) -> dict[str, float]:
    enqueue()
    began_ns, began_s, cpu_s = time.monotonic_ns(), time.perf_counter(), time.process_time()
    for _ in range(count - 1):
        enqueue()
    took_s = time.perf_counter() - began_s
    cpu_s = time.process_time() - cpu_s
    timed = max(1, count - 1)
    return {"rate": timed / took_s, "cpu_us": cpu_s / timed * 1e6, "began_ns": began_ns}


def _one_by_one(enqueue, count: int, seconds: float) -> dict[str, float]:
    """Enqueue a job to workers that have been idle for 20 ms, again and again."""
    tally = jobs.Tally(DIRECTORY)
    before, until_s = tally.count(), time.monotonic() + seconds
    for number in range(count):
        enqueue(time.monotonic_ns())
        while tally.count() == before + number:
            time.sleep(0.0005)
        time.sleep(0.02)
        if time.monotonic() > until_s:
            break
    return {"count": number + 1}


def _steadily(enqueue, per_s: float, seconds: float) -> dict[str, float]:
    """Enqueue at even intervals; who cannot keep up enqueues at once, and tells the rate it had."""
    count = max(1, round(per_s * seconds))
    began_s = time.perf_counter()
    for number in range(count):
        ahead_s = began_s + number / per_s - time.perf_counter()
        if ahead_s > 0:
            time.sleep(ahead_s)
        enqueue(time.monotonic_ns())
    return {"rate": count / (time.perf_counter() - began_s), "count": count}


if __name__ == "__main__":
    main()
