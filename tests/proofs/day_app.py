"""The application of the day, and its processes: `python -m tests.proofs.day_app worker …`.

Run as a program it is the command line of sqlqueue itself, in which a minute's round of housekeeping
comes every two seconds, and ticks are kept for as long as dead letters. Jobs leave a line each at
start and end, in a file of their process, because the rows of done jobs are soon pruned.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from sqlqueue import SqlQueue

DIRECTORY = Path(os.environ.get("DAY_DIRECTORY", "."))
ATTEMPTS = 3

app = SqlQueue("day", task_max_attempts=ATTEMPTS)


def note(kind: str, event: str, number: str, published_s: float) -> None:
    """Append one line in one write, so that a kill tears none."""
    line = f"{event} {kind} {number} {time.time() - published_s:.6f}\n"
    descriptor = os.open(
        DIRECTORY / f"trace-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@app.task(name="short", retry_backoff=0.2)
def short(number: str, published_s: float, ballast: str = "") -> int:
    """Take a few milliseconds; one attempt in twenty fails."""
    note("short", "start", number, published_s)
    time.sleep(random.expovariate(200))
    if random.random() < 0.05:
        raise OSError("failed, as one in twenty does")
    note("short", "end", number, published_s)
    return len(ballast)


@app.task(name="bad", retry_backoff=0.1)
def bad(number: str, published_s: float) -> None:
    """Fail mostly, and so become a dead letter often."""
    note("bad", "start", number, published_s)
    if random.random() < 0.8:
        raise ValueError("failed, as four in five do")
    note("bad", "end", number, published_s)


@app.producer(every=1.0, name="ticks")
def ticks(tick):
    """Yield five calls a second."""
    for number in range(5):
        yield short.s(f"t{tick.due.timestamp():.0f}.{number}", time.time())


def _main() -> int:
    from sqlqueue.cli import main
    from sqlqueue_transport import housekeeping, pruning

    housekeeping.EVERY_MS = 2000
    pruning._TICKS_KEPT_MS = int(float(os.environ["DAY_KEPT_S"]) * 1000)
    return main()


if __name__ == "__main__":
    sys.exit(_main())
