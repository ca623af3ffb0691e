"""What becomes of a delivery: ack, reject, requeue, recover, and the end of who held it."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from kombu import Consumer, Queue

from sqlqueue_transport.errors import LeaseLost
from tests.contract.conftest import Broker
from tests.contract.verbs import (
    get,
    publish,
)
from tests.support import kill, read_line, run_python, say, wait_until


def test_a_rejected_message_is_delivered_no_more(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    get(connection).reject()
    assert get(connection) is None


def test_a_requeued_message_is_delivered_again(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, {"a": 1})
    for _ in range(3):
        message = get(connection)
        assert message.payload == {"a": 1}
        message.requeue()
    get(connection).ack()
    assert get(connection) is None


def test_recover_hands_back_what_the_channel_holds(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    message = get(connection)
    message.channel.basic_recover(requeue=True)
    assert get(connection).payload == "x"


def test_a_prefetch_count_bounds_what_is_delivered(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(5):
        publish(connection, number)
    held: list[Any] = []
    consumer = Consumer(
        connection.default_channel, [Queue("q")], on_message=held.append, prefetch_count=2
    )
    consumer.consume()
    for _ in range(2):
        connection.drain_events(timeout=10)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.01)
    held[0].ack()
    connection.drain_events(timeout=10)
    assert len(held) == 3
    consumer.cancel()


def test_without_acknowledgement_nothing_comes_back(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x")
    message = get(connection, no_ack=True)
    message.ack()  # harmless
    message.channel.basic_recover(requeue=True)
    assert get(connection) is None


def test_requeueing_keeps_the_order(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for number in range(4):
        publish(connection, number)
    held = [get(connection) for _ in range(3)]
    for message in (held[1], held[0], held[2]):
        message.requeue()
    assert [get(connection).payload for _ in range(4)] == [0, 1, 2, 3]


def test_a_message_that_is_delivered_again_says_so(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x")
    first = get(connection)
    assert first.delivery_info["redelivered"] is False
    first.channel.basic_recover()
    assert get(connection).delivery_info["redelivered"] is True


def test_a_late_ack_is_refused(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x")
    late = get(connection)
    late.channel.basic_recover()
    get(connection).ack()
    with pytest.raises(LeaseLost):
        late.ack()


@pytest.mark.parametrize("ended", ["channel", "connection", "context"])
def test_what_ends_hands_back_in_place_what_it_held(sqlqueue: Broker, ended: str) -> None:
    other = sqlqueue.connect()
    for number in range(4):
        publish(other, number)
    connection = sqlqueue.connect()
    channel = connection.channel()
    held: list[Any] = []
    channel.basic_consume("q", False, held.append)
    for _ in range(3):
        connection.drain_events(timeout=10)
    assert len(held) == 3
    if ended == "channel":
        channel.close()
    elif ended == "connection":
        connection.release()
    else:
        with connection:
            pass
    assert [get(other).payload for _ in range(4)] == [0, 1, 2, 3]


HOLDER = """
    import os, sys
    import kombu
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    held = []
    connection.default_channel.basic_qos(0, 2, False)
    connection.default_channel.basic_consume("q", False, held.append)
    for _ in range(2):
        connection.drain_events(timeout=10)
    print("holds", len(held), flush=True)
    sys.stdin.readline()
    sys.argv[2] == "raise" and 1 / 0
"""


@pytest.mark.parametrize("how", ["return", "raise"])
def test_the_end_of_the_interpreter_hands_back_what_it_held(sqlqueue: Broker, how: str) -> None:
    connection = sqlqueue.connect()
    for number in range(3):
        publish(connection, number)
    process = run_python(HOLDER, sqlqueue.url, how)
    assert read_line(process) == "holds 2"
    say(process)
    process.communicate(timeout=30)
    assert process.returncode == (how == "raise")
    assert [get(connection).payload for _ in range(3)] == [0, 1, 2]  # no sweep was needed


def test_what_a_killed_process_held_is_delivered_again_soon(sqlqueue: Broker) -> None:
    """With a visibility timeout of an hour: the kernel tells, not the clock."""
    connection = sqlqueue.connect()
    for number in range(3):
        publish(connection, number)
    process = run_python(HOLDER, sqlqueue.url, "return")
    assert read_line(process) == "holds 2"
    third = get(connection)  # a consumer that holds something watches over the others
    assert third.payload == 2
    kill(process)
    killed_s = time.monotonic()
    again = wait_until(lambda: get(connection), what="the first message again")
    print(f"killed consumer: redelivered after {time.monotonic() - killed_s:.3f} s")
    assert again.payload == 0
    assert again.delivery_info["redelivered"] is True
