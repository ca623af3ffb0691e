"""Publish and consume bodies of one size, on one of several brokers; print what it took.

    python -m tests.benchmarks.programs.with_payload '{"by": "sqlqueue:///q.db", "size": 20000, "count": 1000}'

Through Kombu as `through_kombu` does, with a text that is not serialized once more; Huey's storage by
its own two verbs, which know no acknowledgement.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.benchmarks.programs.through_kombu import Meter

_PREFETCH = 16
_LONGEST_WAIT_S = 20
_WARM = 5


def _through_kombu(
    url: str, body: str, count: int, options: dict[str, Any], meter: Meter
) -> list[tuple[float, float]]:
    from kombu import Connection, Consumer, Exchange, Queue

    queue = Queue("bench", Exchange("bench"), routing_key="bench")
    with Connection(url, transport_options=options) as connection:
        channel = connection.channel()
        producer = connection.Producer(channel, exchange=queue.exchange, routing_key="bench")
        queue(channel).declare()

        def publish() -> None:
            # JSON that was made before, as a task framework does it.
            producer.publish(body, content_type="application/json", content_encoding="utf-8")

        left = _WARM

        def take(message: Any) -> None:
            nonlocal left
            left -= 1
            assert len(message.body) == len(body)
            message.ack()

        for _ in range(_WARM):
            publish()
        consumer = Consumer(channel, [queue], on_message=take, accept=["json"])
        consumer.qos(prefetch_count=_PREFETCH)
        with consumer:
            while left:
                connection.drain_events(timeout=_LONGEST_WAIT_S)
        meter.look()
        for _ in range(count):
            publish()
        published = meter.look()
        left = count
    with Connection(url, transport_options=options) as connection:
        consumer = Consumer(connection.channel(), [queue], on_message=take, accept=["json"])
        consumer.qos(prefetch_count=_PREFETCH)
        meter.look()
        consumer.consume()
        while left:
            connection.drain_events(timeout=_LONGEST_WAIT_S)
        connection.release()
        return [published, meter.look()]


def _huey(body: str, count: int, *, synced: bool, meter: Meter) -> list[tuple[float, float]]:
    from huey import SqliteHuey

    storage = SqliteHuey("bench", filename="queue.db", fsync=synced).storage
    data = body.encode()
    for _ in range(_WARM):
        storage.enqueue(data)
        storage.dequeue()
    meter.look()
    for _ in range(count):
        storage.enqueue(data)
    published = meter.look()
    for _ in range(count):
        taken = storage.dequeue()
        assert taken is not None
        assert len(taken) == len(data)
    return [published, meter.look()]


def main(
    by: str,
    size: int,
    count: int,
    *,
    options: dict[str, Any] | None = None,
    server: int | None = None,
) -> dict[str, float]:
    """Return rates, megabytes a second, and processor time in microseconds a message."""
    meter = Meter(server)
    body = json.dumps("x" * (size - 2))
    if by.startswith("huey"):
        looks = _huey(body, count, synced=by == "huey synced", meter=meter)
    else:
        looks = _through_kombu(by, body, count, options or {}, meter)
    (published_s, published_cpu_s), (consumed_s, consumed_cpu_s) = looks
    return {
        "publish": count / published_s,
        "consume + ack": count / consumed_s,
        "there and back": size * count / (published_s + consumed_s) / 1e6,
        "CPU": (published_cpu_s + consumed_cpu_s) / count * 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
