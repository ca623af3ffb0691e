r"""Publish to files that are there already, and consume as many, in turns; print what it took.

    python -m tests.benchmarks.programs.on_files \
        '{"by": "store", "files": {"empty": "a.db", "full": "b.db"}, "portions": 8, "size": 1000}'

By SQLite alone (`plain`), our Store (`store`) or Kombu on our transport (`kombu`), nothing synced,
one message a transaction; of the claims only Kombu's own take several. As many messages wait in a
file afterwards as before. Only differences between files are asked for here, and they may be small:
hence the turns, and of each file the middle portion.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Producer, Queue

from tests.benchmarks.programs.on_sqlite import BODY, QUEUE, Ours, Plain
from tests.benchmarks.programs.through_kombu import Meter

_PREFETCH = 16
_LONGEST_WAIT_S = 20


class Alone:
    """Be SQLite or our Store: acknowledge what was taken together with the next claim."""

    def __init__(self, kind: type[Plain | Ours], path: Path) -> None:
        self._queue = kind(path, synced=False, are_jobs=True)

    def publish(self, count: int) -> None:
        for _ in range(count):
            self._queue.enqueue(1)

    def consume(self, count: int) -> None:
        done: Any = []
        for _ in range(count):
            done = self._queue.turn(done, 1)
            assert done
        self._queue.turn(done, 0)

    def close(self) -> None:
        self._queue.close()


class ThroughKombu:
    """Be Kombu's Producer and Consumer on our transport."""

    def __init__(self, path: Path) -> None:
        options = {"durability": "process"}
        self._connection = Connection(f"sqlqueue:///{path}", transport_options=options)
        self._channel = self._connection.channel()
        self._queue = Queue(QUEUE)
        self._queue(self._channel).declare()
        self._producer = Producer(self._channel, routing_key=QUEUE, auto_declare=False)

    def publish(self, count: int) -> None:
        for _ in range(count):
            # With the headers of a job, for a row that stays when it is acknowledged.
            self._producer.publish(
                BODY,
                content_type="application/json",
                content_encoding="utf-8",
                headers={"id": "j", "task": "nothing"},
            )

    def consume(self, count: int) -> None:
        left = count

        def take(message: Any) -> None:
            nonlocal left
            left -= 1
            message.ack()

        channel = self._connection.channel()
        consumer = Consumer(channel, [self._queue], on_message=take, auto_declare=False)
        consumer.qos(prefetch_count=_PREFETCH)
        consumer.consume()
        while left > 0:
            self._connection.drain_events(timeout=_LONGEST_WAIT_S)
        channel.close()

    def close(self) -> None:
        self._connection.release()


def main(
    by: str, files: dict[str, str], *, portions: int, size: int
) -> dict[str, dict[str, float]]:
    """Return for each file rates, and processor time in microseconds a message."""
    queues = {name: opened(by, Path(path)) for name, path in files.items()}
    took: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {"enqueue": [], "claim + ack": []} for name in files
    }
    for queue in queues.values():
        queue.publish(20)  # imports, caches
        queue.consume(20)
    meter = Meter(None)
    for portion in range(portions):
        # Forwards and backwards, as the rounds of a level.
        turns = list(queues.items())[:: -1 if portion % 2 else 1]
        for name, queue in turns:
            meter.look()
            queue.publish(size)
            took[name]["enqueue"].append(meter.look())
        for name, queue in turns:
            meter.look()
            queue.consume(size)
            took[name]["claim + ack"].append(meter.look())
    for queue in queues.values():
        queue.close()
    return {
        name: {
            figure: value
            for what, looks in kinds.items()
            for figure, value in (
                (what, size / statistics.median(seconds for seconds, _ in looks)),
                (f"{what} CPU", statistics.median(cpu_s for _, cpu_s in looks) / size * 1e6),
            )
        }
        for name, kinds in took.items()
    }


def opened(by: str, path: Path) -> Alone | ThroughKombu:
    """Open a file by one of the three."""
    return ThroughKombu(path) if by == "kombu" else Alone(Plain if by == "plain" else Ours, path)


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
