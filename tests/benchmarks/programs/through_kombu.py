"""Publish and consume with Kombu as any program of one process would, and print what it took.

    python -m tests.benchmarks.programs.through_kombu '{"url": "memory://", "count": 1000}'

One queue, bodies of 300 bytes, a Producer that stays, a Consumer whose callback acknowledges. All
messages are published first, then all are consumed; the consuming ends when the connection is
closed, so that acknowledgements which wait for company count, too.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

from amqp.exceptions import ChannelError
from kombu import Connection, Consumer, Exchange, Producer, Queue

from tests.support import cpu_s

# What a job's arguments look like; 300 bytes as JSON.
BODY = {"id": 123456, "path": "/srv/jobs/incoming/2026-11-28/0001.json", "note": ""}
BODY["note"] = "x" * (300 - len(json.dumps(BODY)))
_LONGEST_WAIT_S = 20


class Meter:
    """Take the time and the processor time, of this process and of the server, since the last look."""

    def __init__(self, server: int | None) -> None:
        self._server = server
        self.look()

    def look(self) -> tuple[float, float]:
        """Return (seconds, seconds of processor) since the look before."""
        now = (
            time.perf_counter(),
            time.process_time() + (cpu_s(self._server) if self._server else 0),
        )
        before, self._before = getattr(self, "_before", now), now
        return now[0] - before[0], now[1] - before[1]


def main(
    url: str,
    count: int,
    *,
    options: dict[str, Any] | None = None,
    prefetch: int = 16,
    batch: int = 0,
    server: int | None = None,
) -> dict[str, float]:
    """Return rates and the processor time a message, in microseconds."""
    queue = Queue("bench", Exchange("bench"), routing_key="bench")
    with Connection(url, transport_options=options or {}) as connection:
        channel = connection.channel()
        producer = Producer(channel, queue.exchange, routing_key="bench", serializer="json")
        queue(channel).declare()
        for _ in range(20):  # imports, caches and the first page of a file
            producer.publish(BODY)
        meter = Meter(server)
        with producer.batch(max_size=batch) if batch else contextlib.nullcontext():
            for _ in range(count):
                producer.publish(BODY)
        published_s, published_cpu_s = meter.look()
    left = count + 20

    def take(_body: object, message: Any) -> None:
        nonlocal left
        left -= 1
        message.ack()

    connection = Connection(url, transport_options=options or {})
    channel = connection.channel()
    consumer = Consumer(channel, [queue], callbacks=[take], accept=["json"])
    consumer.qos(prefetch_count=prefetch)
    meter.look()
    consumer.consume()
    while left:
        connection.drain_events(timeout=_LONGEST_WAIT_S)
    connection.release()
    consumed_s, consumed_cpu_s = meter.look()
    if waiting := _waiting(url, options or {}, queue):
        message = f"{waiting} messages were left"
        raise SystemExit(message)
    return {
        "publish": count / published_s,
        "consume + ack": (count + 20) / consumed_s,
        "publish CPU": published_cpu_s / count * 1e6,
        "consume CPU": consumed_cpu_s / (count + 20) * 1e6,
    }


def _waiting(url: str, options: dict[str, Any], queue: Queue) -> int:
    """Return how many messages the queue holds for a newcomer."""
    with Connection(url, transport_options=options) as connection:
        try:
            declared = queue(connection.channel()).queue_declare(passive=True)
        except ChannelError as error:  # not among Redis' own `channel_errors`
            if int(error.reply_code) != 404:  # what Redis makes of an empty queue; as text, there
                raise
            return 0
        count: int = declared.message_count
        return count


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
