"""Publish messages for later, in files that hold some already; print how they come when they are due.

    python -m tests.benchmarks.programs.with_eta '{"by": "store", "files": {"empty": "a.db"}, …}'

After what `on_files` does with messages for now: many that are due at once, taken as fast as they
come; and, through Kombu, some that are due one after the other, for a consumer that sleeps between
them. Lateness is from the due time to the consumer's callback, on the wall clock.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Queue

from sqlqueue_transport import Store
from sqlqueue_transport.messages import NewMessage
from tests.benchmarks.programs import on_files
from tests.benchmarks.programs.on_sqlite import BODY, QUEUE

_CHUNK = 1_000
_APART_S = 0.01
_LONGEST_WAIT_S = 20
_LATE = "late"  # a queue of its own


def main(
    by: str, files: dict[str, str], *, portions: int, size: int, due: int, late: int
) -> dict[str, dict[str, float]]:
    """Return for each file what `on_files.main` does, `due at once` a second, and lateness in ms."""
    found = on_files.main(by, files, portions=portions, size=size)
    for name, path in files.items():
        found[name]["due at once"] = _due_at_once(by, Path(path), due)
        if by == "kombu":
            late_ms = _lateness_ms(path, late)
            found[name]["late p50"] = statistics.median(late_ms)
            found[name]["late p99"] = statistics.quantiles(late_ms, n=100, method="inclusive")[-1]
    return found


def _due_at_once(by: str, path: Path, count: int) -> float:
    message = NewMessage(body=BODY, queue=QUEUE, task="nothing", job_id="j")
    # Whoever publishes them must be done before.
    due_s = time.time() + 0.5 + count / 10_000
    with closing(Store(path)) as store:
        for first in range(0, count, _CHUNK):
            chunk = [replace(message, due_at_ms=round(due_s * 1000))] * min(_CHUNK, count - first)
            store.publish(chunk, durable=False)
    queue = on_files.opened(by, path)
    with closing(queue):
        left_s = due_s - time.time()
        assert left_s > 0
        time.sleep(left_s + 0.002)
        began_s = time.perf_counter()
        queue.consume(count)
        return count / (time.perf_counter() - began_s)


def _lateness_ms(path: str, count: int) -> list[float]:
    found: list[float] = []
    with Connection(f"sqlqueue:///{path}", transport_options={"durability": "process"}) as kombu:
        producer = kombu.Producer()
        Queue(_LATE)(kombu.default_channel).declare()
        first_s = time.time() + 0.3
        for number in range(count):
            due_s = first_s + number * _APART_S
            due = datetime.fromtimestamp(due_s, timezone.utc).isoformat()
            headers = {"id": "j", "task": "nothing", "eta": due}
            producer.publish(str(due_s), routing_key=_LATE, headers=headers)

        def take(message: Any) -> None:
            found.append((time.time() - float(message.payload)) * 1000)
            message.ack()

        with Consumer(kombu.default_channel, [Queue(_LATE)], on_message=take):
            while len(found) < count:
                kombu.drain_events(timeout=_LONGEST_WAIT_S)
    return found


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
