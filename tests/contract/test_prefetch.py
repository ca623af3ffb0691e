"""How much a consumer may hold, and how consumers and channels share a queue."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from typing import Any

import kombu
import pytest
from kombu import Consumer, Producer, Queue

from tests.contract.conftest import Broker
from tests.contract.verbs import (
    collecting,
    get,
    publish,
)


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


def test_channels_and_connections_share_a_queue_and_nobody_is_overwritten(
    sqlqueue: Broker,
) -> None:
    """In Kombu's virtual base callbacks are kept by queue, so the second consumer wins all."""
    first, second = sqlqueue.connect(), sqlqueue.connect()
    handed: dict[str, list[Any]] = {"a": [], "b": [], "c": [], "d": []}
    one_channel = first.channel()
    for name, channel in [
        ("a", one_channel),
        ("b", one_channel),  # two consumers on one channel
        ("c", first.channel()),  # another channel of the connection
        ("d", second.channel()),  # another connection of the process
    ]:
        channel.basic_qos(0, 10, False)
        channel.basic_consume("q", False, handed[name].append, consumer_tag=name)
    for number in range(40):
        publish(first, number)
    give_up_s = time.monotonic() + 30
    while sum(map(len, handed.values())) < 40 and time.monotonic() < give_up_s:
        for connection in (first, second):
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=0.01)

    assert sorted(m.payload for held in handed.values() for m in held) == list(range(40))
    for name, held in handed.items():
        assert held
        assert {message.delivery_info["consumer_tag"] for message in held} == {name}
        for message in held:
            message.ack()
    assert {name: len(held) for name, held in handed.items()} == dict.fromkeys("abcd", 10)
    first.release()
    second.release()
    assert get(sqlqueue.connect()) is None


def _hold(
    connection: kombu.Connection, channel: Any, *tags: str, no_ack: bool = False
) -> dict[str, list[Any]]:
    """Let each tag consume the queue and keep what it is handed, until nothing more comes."""
    held: dict[str, list[Any]] = {tag: [] for tag in tags}
    for tag in tags:
        channel.basic_consume("q", no_ack, held[tag].append, consumer_tag=tag)
    with contextlib.suppress(socket.timeout):
        while True:
            connection.drain_events(timeout=0.05)
    return held


def _counts(held: dict[str, list[Any]]) -> list[int]:
    return [len(messages) for messages in held.values()]


@pytest.fixture
def filled(sqlqueue: Broker) -> kombu.Connection:
    """Be a connection on a file with 150 messages in a queue."""
    connection = sqlqueue.connect(max_prefetch=20)
    producer = Producer(connection.default_channel)
    with producer.batch():
        for number in range(150):
            producer.publish(number, routing_key="q")
    return connection


def test_each_consumer_has_a_prefetch_count_of_its_own(filled: kombu.Connection) -> None:
    """As in RabbitMQ, where AMQP would have it shared by the channel."""
    channel = filled.channel()
    channel.basic_qos(0, 3, False)
    assert _counts(_hold(filled, channel, "a", "b")) == [3, 3]


def test_a_prefetch_count_may_be_changed_while_consuming(filled: kombu.Connection) -> None:
    """Celery does so, at every message with an eta and every time its pool grows or shrinks."""
    channel = filled.channel()
    channel.basic_qos(0, 3, False)
    first = _hold(filled, channel, "a")
    assert _counts(first) == [3]
    channel.basic_qos(0, 5, False)
    second = _hold(filled, channel, "b")
    assert _counts(first) + _counts(second) == [5, 5]
    channel.basic_qos(0, 4, False)
    first["a"][0].ack()
    first["a"][1].ack()
    filled.drain_events(timeout=10)
    with pytest.raises(socket.timeout):
        filled.drain_events(timeout=0.05)
    assert _counts(first) == [6]  # of which it holds four


def test_a_global_prefetch_count_is_shared_by_the_channel(filled: kombu.Connection) -> None:
    channel, other = filled.channel(), filled.channel()
    channel.basic_qos(0, 5, True)
    held = _hold(filled, channel, "a", "b")
    assert sum(_counts(held)) == 5
    assert _counts(_hold(filled, other, "c")) == [20]  # not by the other channel
    held["a"][0].ack()
    filled.drain_events(timeout=10)
    assert sum(_counts(held)) == 6
    with pytest.raises(socket.timeout):
        filled.drain_events(timeout=0.05)


def test_both_counts_hold_when_both_are_given(filled: kombu.Connection) -> None:
    channel = filled.channel()
    channel.basic_qos(0, 3, False)
    channel.basic_qos(0, 5, True)
    assert sum(_counts(_hold(filled, channel, "a", "b"))) == 5
    other = filled.channel()
    other.basic_qos(0, 3, False)
    other.basic_qos(0, 50, True)
    assert _counts(_hold(filled, other, "c", "d")) == [3, 3]


def test_no_prefetch_count_means_the_cap(filled: kombu.Connection) -> None:
    channel, zero = filled.channel(), filled.channel()
    zero.basic_qos(0, 0, False)
    assert _counts(_hold(filled, channel, "a")) == [20]
    assert _counts(_hold(filled, zero, "b")) == [20]


def test_without_acknowledgement_there_is_no_bound(filled: kombu.Connection) -> None:
    channel = filled.channel()
    channel.basic_qos(0, 3, False)
    assert _counts(_hold(filled, channel, "a", no_ack=True)) == [150]


@pytest.mark.parametrize("verb", ["ack", "reject", "requeue"])
def test_whatever_settles_makes_room(filled: kombu.Connection, verb: str) -> None:
    channel = filled.channel()
    channel.basic_qos(0, 1, False)
    held = _hold(filled, channel, "a")["a"]
    for count in range(2, 5):
        getattr(held[-1], verb)()
        filled.drain_events(timeout=10)
        assert len(held) == count
        with pytest.raises(socket.timeout):
            filled.drain_events(timeout=0)


def test_an_acknowledgement_of_another_thread_wakes_a_full_consumer(
    filled: kombu.Connection,
) -> None:
    channel = filled.channel()
    channel.basic_qos(0, 1, False)
    held = _hold(filled, channel, "a")["a"]
    later = threading.Timer(0.05, held[0].ack)
    later.start()
    filled.drain_events(timeout=10)
    later.join()
    assert len(held) == 2


@pytest.mark.parametrize("shared", [False, True], ids=["its own", "the channel's"])
def test_what_was_got_does_not_count(filled: kombu.Connection, shared: bool) -> None:
    """A `get` is no consumer, so what it took fills none."""
    channel = filled.channel()
    channel.basic_qos(0, 3, shared)
    assert [channel.basic_get("q").payload for _ in range(5)] == [0, 1, 2, 3, 4]
    assert _counts(_hold(filled, channel, "a")) == [3]


def test_a_cancelled_consumer_keeps_what_it_holds(filled: kombu.Connection) -> None:
    channel = filled.channel()
    channel.basic_qos(0, 3, False)
    held = _hold(filled, channel, "a")["a"]
    channel.basic_cancel("a")
    assert get(filled).payload == 3
    for message in held:
        message.ack()
    channel.close()
    assert get(filled).payload == 4


def test_consumers_of_several_queues_take_turns(sqlqueue: Broker) -> None:
    """However many wait in one of them."""
    connection = sqlqueue.connect()
    for name in ("busy", "calm"):
        for number in range(20):
            publish(connection, (name, number), name)
    found: list[Any] = []
    with collecting(connection, "busy", "calm", into=found, prefetch_count=1):
        for _ in range(10):
            connection.drain_events(timeout=10)
    names = Counter(name for name, _ in found)
    assert min(names["busy"], names["calm"]) >= 3
