"""Publishing and consuming, as every Kombu transport does it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from kombu import Consumer, Exchange, Producer, Queue
from kombu.common import drain_consumer, eventloop, itermessages
from kombu.exceptions import ContentDisallowed
from kombu.mixins import ConsumerMixin, ConsumerProducerMixin

from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    collecting,
    declare,
    drain_all,
    get,
    get_all,
    publish,
    turn,
)
from tests.support import finish, read_line, run_python, wait_until


def test_what_is_published_to_a_queue_is_consumed_in_order(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue("q", Exchange("e", "direct"), routing_key="k")
    producer = Producer(connection.default_channel)
    for number in range(5):
        producer.publish({"n": number}, exchange=queue.exchange, routing_key="k", declare=[queue])
    found = []

    def on_message(body: Any, message: Any) -> None:
        found.append(body["n"])
        message.ack()

    with Consumer(connection.default_channel, [queue], callbacks=[on_message]):
        drain_all(connection, 5)
    assert found == [0, 1, 2, 3, 4]


def test_one_drain_is_one_message(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        publish(connection, number)
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        for number in range(1, 4):
            connection.drain_events(timeout=10)
            assert len(found) == number


def test_a_get_returns_one_message_or_none(broker: Broker) -> None:
    connection = broker.connect()
    bound = Queue("q")(connection.default_channel)
    bound.declare()
    assert bound.get() is None
    publish(connection, {"a": 1})
    message = bound.get()
    assert message.payload == {"a": 1}
    message.ack()
    assert bound.get() is None


def test_headers_and_properties_travel_along(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "x", headers={"a": [1, {"b": None}]}, correlation_id="7", reply_to="r")
    message = get(connection)
    assert message.headers == {"a": [1, {"b": None}]}
    assert message.properties["correlation_id"] == "7"
    assert message.properties["reply_to"] == "r"
    assert message.delivery_info["routing_key"] == "q"
    assert message.delivery_info["exchange"] == ""


def test_one_consumer_may_read_several_queues(broker: Broker) -> None:
    connection = broker.connect()
    for name in ("a", "b", "a", "b"):
        publish(connection, name, name)
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("a"), Queue("b")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        drain_all(connection, 4)
    assert sorted(found) == ["a", "a", "b", "b"]


def test_a_cancelled_consumer_gets_nothing_more(broker: Broker) -> None:
    connection = broker.connect()
    found: list[Any] = []
    consumer = Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                        callbacks=[lambda body, _: found.append(body)])  # fmt: skip
    consumer.consume()
    consumer.cancel()
    publish(connection, "x")
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.01)
    assert found == []
    assert get(connection) is not None


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_drain_that_finds_nothing_raises_socket_timeout(broker: Broker, timeout: float) -> None:
    connection = broker.connect()
    with Consumer(connection.default_channel, [Queue("q")]), pytest.raises(socket.timeout):
        connection.drain_events(timeout=timeout)


def test_a_drain_waits_for_a_publisher_of_another_thread(broker: Broker) -> None:
    connection, other = broker.connect(), broker.connect()
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        later = threading.Timer(0.05, publish, (other, "x"))
        later.start()
        connection.drain_events(timeout=10)
        later.join()
    assert found == ["x"]


def test_a_simple_queue_puts_and_gets(broker: Broker) -> None:
    connection = broker.connect()
    with contextlib.closing(connection.SimpleQueue("simple")) as queue:
        for number in range(3):
            queue.put({"n": number})
        assert len(queue) == 3
        for number in range(3):
            message = queue.get(timeout=10)
            assert message.payload == {"n": number}
            message.ack()
        with pytest.raises(queue.Empty):
            queue.get(block=False)
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.01)


def test_a_simple_queue_is_cleared(exact_broker: Broker) -> None:
    """In Redis a wait that timed out goes on, and takes the message."""
    connection = exact_broker.connect()
    with contextlib.closing(connection.SimpleQueue("simple")) as queue:
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.01)
        queue.put("x")
        assert queue.clear() == 1


def test_a_simple_buffer_puts_and_gets(broker: Broker) -> None:
    connection = broker.connect()
    with contextlib.closing(connection.SimpleBuffer("buffer")) as buffer:
        for number in range(3):
            buffer.put(number)
        assert [buffer.get(timeout=10).payload for _ in range(3)] == [0, 1, 2]


def test_draining_one_message_leaves_the_others(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        publish(connection, number)
    consumer = Consumer(connection.default_channel, [Queue("q")], no_ack=True)
    assert [body for body, _ in drain_consumer(consumer, limit=1, timeout=10)] == [0]
    assert [
        body
        for body, _ in itermessages(
            connection, connection.default_channel, Queue("q"), limit=2, timeout=10, no_ack=True
        )
    ] == [1, 2]
    assert list(eventloop(connection, limit=1, timeout=0.01, ignore_timeouts=True)) == []


class _Collecting(ConsumerMixin):
    """Consume until told to stop."""

    def __init__(self, connection: kombu.Connection, wanted: int) -> None:
        self.connection = connection
        self.wanted = wanted
        self.found: list[Any] = []

    def get_consumers(self, consumer: Callable[..., Consumer], channel: Any) -> list[Consumer]:
        return [consumer([Queue("q")], callbacks=[self.on_message], prefetch_count=3)]

    def on_message(self, body: Any, message: Any) -> None:
        self.found.append(body)
        message.ack()
        self.should_stop = len(self.found) >= self.wanted


def test_a_consumer_mixin_consumes(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(10):
        publish(connection, number)
    mixin = _Collecting(connection, 10)
    mixin.run(timeout=10)
    assert mixin.found == list(range(10))


class _Answering(ConsumerProducerMixin):
    """Answer every question, as Kombu's RPC example does."""

    def __init__(self, connection: kombu.Connection) -> None:
        self.connection = connection

    def get_consumers(self, consumer: Callable[..., Consumer], channel: Any) -> list[Consumer]:
        return [consumer([Queue("questions")], callbacks=[self.on_question])]

    def on_question(self, body: Any, message: Any) -> None:
        self.producer.publish(
            body + 1,
            exchange="",
            routing_key=message.properties["reply_to"],
            correlation_id=message.properties["correlation_id"],
            retry=True,
            retry_policy={"max_retries": 3, "interval_start": 0},
        )
        message.ack()
        self.should_stop = True


def test_a_question_gets_its_answer(broker: Broker) -> None:
    connection, other = broker.connect(), broker.connect()
    answers = Queue("answers", exclusive=True, auto_delete=True)
    publish(connection, 41, "questions", reply_to="answers", correlation_id="7",
             declare=[Queue("questions"), answers])  # fmt: skip
    mixin = _Answering(other)
    mixin.run(timeout=10)
    other.default_channel.close()
    message = answers(connection.default_channel).get()
    assert (message.payload, message.properties["correlation_id"]) == (42, "7")


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "lzma"])
def test_a_compressed_message_comes_back(broker: Broker, codec: str) -> None:
    connection = broker.connect()
    publish(connection, {"a": "ü" * 1000}, compression=codec)
    assert get(connection).payload == {"a": "ü" * 1000}


@pytest.mark.parametrize("body", [b"\x00\xff", b"", "ü \x00"], ids=repr)
def test_raw_bodies_come_back_as_bytes_or_text(broker: Broker, body: Any) -> None:
    connection = broker.connect()
    publish(connection, body)
    message = get(connection)
    if isinstance(body, bytes):
        assert (message.content_type, message.body) == ("application/data", body)
    else:
        assert message.payload == body


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_only_accepted_content_is_decoded(broker: Broker, serializer: str) -> None:
    connection = broker.connect()
    publish(connection, {"a": 1}, serializer=serializer)
    refused: list[BaseException] = []
    found: list[Any] = []
    consumer = Consumer(
        connection.default_channel,
        [Queue("q")],
        accept=["json"],
        callbacks=[lambda body, _: found.append(body)],
        on_decode_error=lambda message, error: refused.append(error),
    )
    with consumer:
        connection.drain_events(timeout=10)
    if serializer == "json":
        assert (found, refused) == ([{"a": 1}], [])
    else:
        assert found == []
        assert isinstance(refused[0], ContentDisallowed)


def test_pickle_is_decoded_where_somebody_asks_for_it(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, {"a": (1, 2)}, serializer="pickle")
    message = Queue("q")(connection.default_channel).get(accept=["pickle"])
    assert message.payload == {"a": (1, 2)}


@pytest.mark.parametrize("name", ["a b/c?d#e%20", "日本 → é", "x" * 200, "'; --"], ids=ascii)
def test_the_name_of_a_queue_is_any_text(broker: Broker, name: str) -> None:
    connection = broker.connect()
    declare(connection, name)
    publish(connection, "x", name)
    assert get(connection, name).payload == "x"


def test_a_body_of_megabytes_comes_back(broker: Broker) -> None:
    connection = broker.connect()
    publish(connection, "ü" * 2_000_000)
    assert get(connection).payload == "ü" * 2_000_000


def test_a_batch_is_published_whole(broker: Broker) -> None:
    """Where a transport has no batches, Kombu publishes one by one."""
    connection = broker.connect()
    exchange = Exchange("e", "direct")
    for name in ("a", "b"):
        declare(connection, name, exchange=exchange, routing_key=name)
    producer = Producer(connection.default_channel, exchange)
    with producer.batch(max_size=100):
        for number in range(5):
            producer.publish(number, routing_key="ab"[number % 2])
    assert [get_all(connection, name) for name in ("a", "b")] == [[0, 2, 4], [1, 3]]


def test_a_batch_that_is_broken_off_publishes_nothing(shared_broker: Broker) -> None:
    connection, other = shared_broker.connect(), shared_broker.connect()
    producer = Producer(connection.default_channel)

    def publish_half() -> None:
        with producer.batch(max_size=100):
            producer.publish("x", routing_key="q")
            assert get(other) is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_half()
    assert get(other) is None
    producer.publish("y", routing_key="q")
    assert get_all(other) == ["y"]


def test_connections_that_consume_one_queue_share_its_messages(broker: Broker) -> None:
    first, second = broker.connect(), broker.connect()
    found: list[Any] = []
    with collecting(first, into=found), collecting(second, into=found):
        for number in range(20):
            publish(first, number)

        def have_all() -> bool:
            turn(first)
            turn(second)
            return len(found) >= 20

        wait_until(have_all, what="all messages")
        turn(first)
        turn(second)
    assert sorted(found) == list(range(20))


def test_queues_are_added_to_a_consumer_and_taken_from_it(exact_broker: Broker) -> None:
    connection = exact_broker.connect()
    found: list[Any] = []
    with collecting(connection, "a", into=found) as consumer:
        consumer.add_queue(Queue("b"))
        consumer.consume()
        assert consumer.consuming_from("b")
        publish(connection, "added", "b")
        drain_all(connection, 1)
        consumer.cancel_by_queue("b")
        publish(connection, "taken away", "b")
        publish(connection, "still", "a")
        drain_all(connection, 1)
    assert found == ["added", "still"]
    assert get(connection, "b").payload == "taken away"


def test_a_callback_that_raises_leaves_its_message_with_the_channel(broker: Broker) -> None:
    connection = broker.connect()
    channel = connection.channel()
    publish(connection, "x")

    def failing(_: object) -> None:
        raise ZeroDivisionError

    channel.basic_consume("q", False, failing, consumer_tag="c")
    with pytest.raises(ZeroDivisionError):
        connection.drain_events(timeout=10)
    channel.basic_cancel("c")
    assert get(connection) is None
    channel.basic_recover(requeue=True)
    assert get(connection).payload == "x"


# == between processes ==============================================================================


def test_a_drain_waits_for_a_publisher_of_another_process(shared_broker: Broker) -> None:
    connection, there = shared_broker.connect(), OtherProcess(shared_broker.url)
    assert there("'ready'") == "ready"
    found: list[Any] = []
    with collecting(connection, into=found):
        later = threading.Timer(0.05, there, ("Producer(channel).publish('x', routing_key='q')",))
        later.start()
        connection.drain_events(timeout=10)
        later.join()
    assert found == ["x"]


COMPETING = """
    import sys
    import kombu
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    def on_message(body, message):
        message.ack()
        print(body, flush=True)
    with connection.Consumer([kombu.Queue("q")], callbacks=[on_message], prefetch_count=4):
        print("ready", flush=True)
        try:
            while True:
                connection.drain_events(timeout=2)
        except TimeoutError:
            pass
    connection.release()
"""


def test_competing_processes_get_each_message_once(shared_broker: Broker) -> None:
    connection = shared_broker.connect()
    processes = [run_python(COMPETING, shared_broker.url) for _ in range(2)]
    for process in processes:
        assert read_line(process) == "ready"
    for number in range(300):
        publish(connection, number)
    found = [[int(line) for line in finish(process).splitlines()] for process in processes]
    assert sorted(found[0] + found[1]) == list(range(300))
    assert all(found)
    assert all(one == sorted(one) for one in found)  # each in order
