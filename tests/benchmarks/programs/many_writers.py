"""Let processes publish side by side for a while; print how many did, and how long one had to wait.

    python -m tests.benchmarks.programs.many_writers '{"by": "store", "writers": 8, "seconds": 1}'

Each process publishes one message of 300 bytes a transaction, as often as it can. A wait is the time
from the call until the transaction has begun, so that it may write. `store` is our Store; `plain` are
the same statements on the same file with nothing but SQLite's busy timeout between the processes.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import queue
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import Store
from sqlqueue_transport.messages import NewMessage
from tests.benchmarks.programs.on_sqlite import BODY, QUEUE, Plain

if TYPE_CHECKING:
    from sqlqueue_transport.messages import Published

_BUSY_TIMEOUT_S = 30.0
_LONGEST_S = 60.0


class _PlainWriter(Plain):
    """Be SQLite alone, patient for as long as our store is."""

    def __init__(self, path: Path, *, synced: bool) -> None:
        super().__init__(path, synced=synced, are_jobs=True)
        self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000:.0f}").fetchall()
        self.began_s = 0.0

    def publish_one(self) -> None:
        self.enqueue(1)

    def _run(self, statement: str, rows: Any) -> None:
        self.began_s = time.perf_counter()
        super()._run(statement, rows)


class _StoreWriter(Store):
    """Be our Store, and note when it may write."""

    def __init__(self, path: Path, *, synced: bool) -> None:
        super().__init__(path, busy_timeout_s=_BUSY_TIMEOUT_S)
        self._synced = synced
        self._one = [NewMessage(body=BODY, queue=QUEUE, task="nothing", job_id="j")]
        self.began_s = 0.0

    def publish_one(self) -> None:
        super().publish(self._one, durable=self._synced)

    def insert(self, *args: Any, **kwargs: Any) -> list[Published]:
        self.began_s = time.perf_counter()
        return super().insert(*args, **kwargs)


def _write_for(seconds: float, by: str, synced: bool, path: Path, start: Any, answers: Any) -> None:
    writer = (_PlainWriter if by == "plain" else _StoreWriter)(path, synced=synced)
    publish = writer.publish_one
    publish()
    waits, calls = array("d"), array("d")
    start.wait(_LONGEST_S)
    cpu_s = time.process_time()
    end_s = time.perf_counter() + seconds
    while (called_s := time.perf_counter()) < end_s:
        publish()
        calls.append(time.perf_counter() - called_s)
        waits.append(writer.began_s - called_s)
    answers.put((waits, calls, time.process_time() - cpu_s))
    writer.close()


def main(by: str, writers: int, seconds: float, *, synced: bool = False) -> dict[str, float]:
    """Return messages a second of all together, waits in milliseconds, and how evenly it went."""
    path = Path("queue.db").absolute()
    Store(path).close()  # makes the file
    # Forked with nothing open, so that only the first has to import.
    forking = multiprocessing.get_context("fork")
    start, answers = forking.Barrier(writers), forking.Queue()
    running = [
        forking.Process(target=_write_for, args=(seconds, by, synced, path, start, answers))
        for _ in range(writers)
    ]
    for one in running:
        one.start()
    told = [_next_answer(answers, running) for _ in running]
    for one in running:
        one.join(_LONGEST_S)
    turns = [len(waits) for waits, _, _ in told]
    every_wait = sorted(wait for waits, _, _ in told for wait in waits)
    every_call = sorted(call for _, calls, _ in told for call in calls)
    return {
        "publish": sum(turns) / seconds,
        "worst wait": every_wait[-1] * 1000,
        "wait p99.9": every_wait[int(len(every_wait) * 0.999)] * 1000,
        "slowest publish": every_call[-1] * 1000,
        "share": min(turns) / max(turns),
        "CPU": sum(cpu_s for _, _, cpu_s in told) / sum(turns) * 1e6,
    }


def _next_answer(answers: Any, running: list[Any]) -> Any:
    end_s = time.monotonic() + _LONGEST_S
    while time.monotonic() < end_s and not any(one.exitcode for one in running):
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=0.2)
    for one in running:
        one.kill()
    message = "a writer failed, or gave no answer in time"
    raise SystemExit(message)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
