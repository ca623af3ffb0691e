"""Fifty processes that come, publish and go, all at once and all the time."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from kombu import Exchange

from tests.contract.conftest import Broker
from tests.contract.verbs import (
    declare,
)
from tests.support import finish, read_line, run_python, say, wait_until
from tests.transport.rows import rows_of

PUBLISHERS = 50
MINUTE_S = 60

# Connects, publishes a few and releases, again and again. Writes an id down when its publish has
# returned, so that it is a promise. Ends when its stdin does.
PUBLISHER = """
    import select, sys, time, traceback
    import kombu
    import sqlqueue_transport
    url, name, path = sys.argv[1:]
    errors, rounds, slowest = [], 0, 0.0
    with open(path, "w") as acknowledged:
        print("ready", flush=True)
        sys.stdin.readline()
        while not select.select([sys.stdin], [], [], 0)[0]:
            rounds += 1
            began = time.monotonic()
            try:
                with kombu.Connection(url) as connection:
                    producer = connection.Producer()
                    for number in range(3):
                        one = f"{name}-{rounds}-{number}"
                        producer.publish(one, routing_key="direct")
                        acknowledged.write(f"direct {one}\\n")
                    producer.publish(f"{name}-{rounds}", exchange="news", routing_key="")
                    for queue in ("first", "second"):
                        acknowledged.write(f"{queue} {name}-{rounds}\\n")
            except Exception as error:
                traceback.print_exc()
                errors.append(type(error).__name__)
            slowest = max(slowest, time.monotonic() - began)
    print(rounds, f"{slowest:.3f}", *errors, flush=True)
"""

# Drains what there is, and writes down what it got. Ends when it is told to, and nothing comes.
DRAINER = """
    import select, socket, sys, traceback
    import kombu
    import sqlqueue_transport
    url, path = sys.argv[1:]
    connection = kombu.Connection(url)
    with open(path, "w") as found:
        def receiver(name):
            def on_message(body, message):
                found.write(f"{name} {body}\\n")
                message.ack()
            return connection.Consumer(
                [kombu.Queue(name)], callbacks=[on_message], prefetch_count=50)
        consumers = [receiver(name) for name in ("direct", "first", "second")]
        for consumer in consumers:
            consumer.consume()
        print("ready", flush=True)
        told = False
        while True:
            try:
                connection.drain_events(timeout=1)
            except socket.timeout:
                if told:
                    break
            told = told or bool(select.select([sys.stdin], [], [], 0)[0])
        connection.release()
"""


@pytest.mark.slow
def test_fifty_processes_that_come_and_go_lose_nothing_and_meet_no_lock(
    sqlqueue: Broker, tmp_path: Path
) -> None:
    connection = sqlqueue.connect()
    declare(connection, "direct")
    for name in ("first", "second"):
        declare(connection, name, exchange=Exchange("news", "fanout"))

    def path(kind: str, number: int) -> Path:
        return tmp_path / f"{kind} {number}"

    drainers = [run_python(DRAINER, sqlqueue.url, path("found", one)) for one in range(2)]
    publishers = [
        run_python(PUBLISHER, sqlqueue.url, one, path("acknowledged", one))
        for one in range(PUBLISHERS)
    ]
    for process in [*drainers, *publishers]:
        assert read_line(process, deadline_s=120) == "ready"
    for process in publishers:
        say(process)
    began_s = time.monotonic()
    wait_until(
        lambda: time.monotonic() - began_s >= MINUTE_S or any(p.poll() for p in publishers),
        deadline_s=2 * MINUTE_S,
        every_s=0.5,
        what="the end of the minute",
    )
    for process in publishers:
        say(process)
    answers = [finish(process, deadline_s=120).split() for process in publishers]
    for process in drainers:
        say(process)
        finish(process, deadline_s=240)
    took_s = time.monotonic() - began_s

    acknowledged = _lines(tmp_path, "acknowledged")
    found = _lines(tmp_path, "found")
    duplicates = sum(count - 1 for count in found.values())
    errors = [error for _, _, *errors in answers for error in errors]
    rounds = [int(answer[0]) for answer in answers]
    print(
        f"{PUBLISHERS} processes connected {sum(rounds)} times in {took_s:.0f} s"
        f" (each {min(rounds)} to {max(rounds)} times), published {len(acknowledged)} messages;"
        f" found {len(found)}, lost {len(acknowledged - found)}, twice {duplicates};"
        f" slowest round {max(float(answer[1]) for answer in answers):.3f} s; errors {errors}"
    )
    assert errors == []
    assert min(rounds) >= 1
    assert acknowledged - found == Counter()
    assert duplicates == 0  # nobody died, so nothing was delivered twice
    assert (
        rows_of(connection.default_channel.store, "SELECT queue, state FROM message LIMIT 10") == []
    )


def _lines(directory: Path, kind: str) -> Counter[str]:
    return Counter(
        line for path in directory.glob(f"{kind} *") for line in path.read_text().splitlines()
    )
