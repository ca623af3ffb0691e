"""What Kombu promises of a transport, on ours and on Kombu's own; then what only ours keeps."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu import Consumer, Exchange, Producer, Queue
from kombu.common import drain_consumer, eventloop, itermessages, maybe_declare
from kombu.exceptions import ChannelError, ContentDisallowed
from kombu.mixins import ConsumerMixin, ConsumerProducerMixin
from kombu.pools import connections, producers, reset

from sqlqueue_transport.errors import LeaseLost
from tests.contract.conftest import Broker
from tests.support import finish, kill, read_line, run_python, say, wait_until


def _drain_all(connection: kombu.Connection, wanted: int) -> None:
    """Drain until `wanted` messages were delivered, and then nothing more comes."""
    for _ in range(wanted):
        connection.drain_events(timeout=10)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0)


def _publish(connection: kombu.Connection, body: Any, queue: str = "q", **options: Any) -> None:
    Producer(connection.default_channel).publish(body, routing_key=queue, **options)


def _get(connection: kombu.Connection, queue: str = "q", *, no_ack: bool = False) -> Any:
    return connection.default_channel.basic_get(queue, no_ack=no_ack)


# == on every transport =============================================================================


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
        _drain_all(connection, 5)
    assert found == [0, 1, 2, 3, 4]


def test_one_drain_is_one_message(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        _publish(connection, number)
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
    _publish(connection, {"a": 1})
    message = bound.get()
    assert message.payload == {"a": 1}
    message.ack()
    assert bound.get() is None


def test_headers_and_properties_travel_along(broker: Broker) -> None:
    connection = broker.connect()
    _publish(connection, "x", headers={"a": [1, {"b": None}]}, correlation_id="7", reply_to="r")
    message = _get(connection)
    assert message.headers == {"a": [1, {"b": None}]}
    assert message.properties["correlation_id"] == "7"
    assert message.properties["reply_to"] == "r"
    assert message.delivery_info["routing_key"] == "q"
    assert message.delivery_info["exchange"] == ""


def test_a_direct_exchange_leads_by_its_key_to_every_bound_queue(broker: Broker) -> None:
    connection = broker.connect()
    exchange = Exchange("e", "direct")
    for name, key in [("a", "red"), ("b", "red"), ("c", "blue")]:
        Queue(name, exchange, routing_key=key)(connection.default_channel).declare()
    producer = Producer(connection.default_channel, exchange)
    producer.publish("x", routing_key="red")
    producer.publish("y", routing_key="nobody's")
    assert [_get(connection, name) is not None for name in "abc"] == [True, True, False]
    assert [_get(connection, name) for name in "abc"] == [None] * 3


def test_an_unbound_key_leads_nowhere_any_more(broker: Broker) -> None:
    connection = broker.connect()
    exchange = Exchange("e", "direct")
    queue = Queue("q", exchange, routing_key="k")(connection.default_channel)
    queue.declare()
    queue.unbind_from(exchange, "k")
    Producer(connection.default_channel).publish("x", exchange="e", routing_key="k")
    assert _get(connection) is None


def test_a_purge_empties_a_queue_and_says_how_much_it_was(broker: Broker) -> None:
    connection = broker.connect()
    bound = Queue("q")(connection.default_channel)
    bound.declare()
    for _ in range(3):
        _publish(connection, "x")
    assert bound.purge() == 3
    assert bound.purge() == 0
    assert bound.get() is None


def test_a_passive_declaration_only_looks(broker: Broker) -> None:
    connection = broker.connect()
    channel = connection.channel()
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.queue_declare("q", passive=True)
    name, _, _ = channel.queue_declare("q")
    _publish(connection, "x")
    assert name == "q"
    assert tuple(channel.queue_declare("q", passive=True))[:2] == ("q", 1)


def test_a_passive_declaration_of_an_exchange_only_looks(broker: Broker) -> None:
    channel = broker.connect().channel()
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.exchange_declare("e", "direct", passive=True)
    channel.exchange_declare("e", "direct")
    channel.exchange_declare("e", "direct", passive=True)


def test_a_queue_without_a_name_gets_one(broker: Broker) -> None:
    connection = broker.connect()
    first, second = (connection.channel().queue_declare("").queue for _ in range(2))
    assert first != second
    assert first.startswith("amq.gen-")


def test_a_deleted_queue_is_gone(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue("q", Exchange("e", "direct"), routing_key="k")(connection.default_channel)
    queue.declare()
    _publish(connection, "x")
    queue.delete()
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        connection.default_channel.queue_declare("q", passive=True)
    queue.declare()
    assert queue.get() is None


def test_a_queue_that_is_not_empty_is_not_deleted_if_empty(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue("q", Exchange("e", "direct"), routing_key="k")(connection.default_channel)
    queue.declare()
    _publish(connection, "x")
    queue.delete(if_empty=True)
    assert queue.get() is not None


def test_a_rejected_message_is_delivered_no_more(broker: Broker) -> None:
    connection = broker.connect()
    _publish(connection, "x")
    _get(connection).reject()
    assert _get(connection) is None


def test_a_requeued_message_is_delivered_again(broker: Broker) -> None:
    connection = broker.connect()
    _publish(connection, {"a": 1})
    for _ in range(3):
        message = _get(connection)
        assert message.payload == {"a": 1}
        message.requeue()
    _get(connection).ack()
    assert _get(connection) is None


def test_recover_hands_back_what_the_channel_holds(broker: Broker) -> None:
    connection = broker.connect()
    _publish(connection, "x")
    message = _get(connection)
    message.channel.basic_recover(requeue=True)
    assert _get(connection).payload == "x"


def test_a_prefetch_count_bounds_what_is_delivered(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(5):
        _publish(connection, number)
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
    _publish(connection, "x")
    message = _get(connection, no_ack=True)
    message.ack()  # harmless
    message.channel.basic_recover(requeue=True)
    assert _get(connection) is None


def test_one_consumer_may_read_several_queues(broker: Broker) -> None:
    connection = broker.connect()
    for name in ("a", "b", "a", "b"):
        _publish(connection, name, name)
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("a"), Queue("b")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        _drain_all(connection, 4)
    assert sorted(found) == ["a", "a", "b", "b"]


def test_a_cancelled_consumer_gets_nothing_more(broker: Broker) -> None:
    connection = broker.connect()
    found: list[Any] = []
    consumer = Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                        callbacks=[lambda body, _: found.append(body)])  # fmt: skip
    consumer.consume()
    consumer.cancel()
    _publish(connection, "x")
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.01)
    assert found == []
    assert _get(connection) is not None


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
        later = threading.Timer(0.05, _publish, (other, "x"))
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
        _publish(connection, number)
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
        _publish(connection, number)
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
    _publish(connection, 41, "questions", reply_to="answers", correlation_id="7",
             declare=[Queue("questions"), answers])  # fmt: skip
    mixin = _Answering(other)
    mixin.run(timeout=10)
    other.default_channel.close()
    message = answers(connection.default_channel).get()
    assert (message.payload, message.properties["correlation_id"]) == (42, "7")


@pytest.fixture
def pooled() -> Iterator[None]:
    yield
    reset()


@pytest.mark.usefixtures("pooled")
def test_pools_hand_out_connections_and_producers(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        with producers[connection].acquire(block=True, timeout=10) as producer:
            producer.publish(number, routing_key="q")
    with connections[connection].acquire(block=True, timeout=10) as pooled_connection:
        assert [_get(pooled_connection).payload for _ in range(3)] == [0, 1, 2]


def test_publishing_with_a_retry_policy_leaves_a_working_connection(broker: Broker) -> None:
    """Kombu writes the policy into the transport's options."""
    connection = broker.connect()
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "errback": print}
    _publish(connection, "x", retry=True, retry_policy=policy)
    assert connection.transport_options["max_retries"] == 3
    connection.release()
    _publish(connection, "y", retry=True, retry_policy=policy)
    assert _get(connection).payload == "x"


def test_declaring_once_a_connection_is_enough(broker: Broker) -> None:
    connection = broker.connect()
    channel = connection.default_channel
    queue = Queue("q", Exchange("e", "direct"), routing_key="k", channel=channel)
    assert maybe_declare(queue, channel)
    assert not maybe_declare(queue, channel)
    assert channel.queue_declare("q", passive=True).queue == "q"


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "lzma"])
def test_a_compressed_message_comes_back(broker: Broker, codec: str) -> None:
    connection = broker.connect()
    _publish(connection, {"a": "ü" * 1000}, compression=codec)
    assert _get(connection).payload == {"a": "ü" * 1000}


@pytest.mark.parametrize("body", [b"\x00\xff", b"", "ü \x00"], ids=repr)
def test_raw_bodies_come_back_as_bytes_or_text(broker: Broker, body: Any) -> None:
    connection = broker.connect()
    _publish(connection, body)
    message = _get(connection)
    if isinstance(body, bytes):
        assert (message.content_type, message.body) == ("application/data", body)
    else:
        assert message.payload == body


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_only_accepted_content_is_decoded(broker: Broker, serializer: str) -> None:
    connection = broker.connect()
    _publish(connection, {"a": 1}, serializer=serializer)
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
    _publish(connection, {"a": (1, 2)}, serializer="pickle")
    message = Queue("q")(connection.default_channel).get(accept=["pickle"])
    assert message.payload == {"a": (1, 2)}


def test_a_clone_is_a_connection_to_the_same_broker(broker: Broker) -> None:
    connection = broker.connect()
    _publish(connection, "x")
    with connection.clone() as other:
        assert _get(other).payload == "x"


def test_unknown_transport_options_are_ignored(broker: Broker) -> None:
    connection = broker.connect(polling_interval=0.1, unheard_of={"a": 1}, socket_timeout=3)
    _publish(connection, "x")
    assert _get(connection).payload == "x"


def test_a_connection_supports_what_it_says(broker: Broker) -> None:
    connection = broker.connect()
    assert connection.supports_exchange_type("direct")
    assert not connection.supports_heartbeats
    connection.heartbeat_check()
    assert connection.ensure_connection() is connection
    assert connection.connected


# == on ours ========================================================================================


def test_what_is_not_supported_is_refused_by_name(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for kind in ("topic", "fanout", "headers", "x-own"):
        assert not connection.supports_exchange_type(kind)
        with pytest.raises(ChannelError, match=f"NOT_IMPLEMENTED - exchange type '{kind}'"):
            Exchange("e", kind)(connection.default_channel).declare()
    with pytest.raises(NotImplementedError):
        connection.default_channel.flow(active=False)


def test_an_exchange_of_another_type_is_not_declared_over(sqlqueue: Broker) -> None:
    channel = sqlqueue.connect().channel()
    channel.store.topology.declare_exchange("e", "topic")  # by a newer version, say
    with pytest.raises(ChannelError, match="PRECONDITION_FAILED"):
        channel.exchange_declare("e", "direct")


def test_higher_priorities_are_delivered_first(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for priority in (0, 5, 9, 5, 0):
        _publish(connection, priority, priority=priority)
    assert [_get(connection).payload for _ in range(5)] == [9, 5, 5, 0, 0]


def test_queues_and_bindings_are_seen_by_every_connection(sqlqueue: Broker) -> None:
    first, second = sqlqueue.connect(), sqlqueue.connect()
    Queue("q", Exchange("e", "direct"), routing_key="k")(first.default_channel).declare()
    assert second.default_channel.queue_declare("q", passive=True).queue == "q"
    Producer(second.default_channel).publish("x", exchange="e", routing_key="k")
    assert _get(second).payload == "x"
    first.default_channel.queue_delete("q")
    with pytest.raises(ChannelError):
        second.default_channel.queue_declare("q", passive=True)


OTHER_PROCESS = """
    import sys
    import kombu
    import sqlqueue_transport
    connection = kombu.Connection(sys.argv[1])
    for line in sys.stdin:
        print(eval(line), flush=True)
"""


@pytest.fixture
def other_process(sqlqueue: Broker) -> Iterator[Callable[[str], str]]:
    """Ask another process, which has `connection`, for the value of an expression."""
    process = run_python(OTHER_PROCESS, sqlqueue.url)

    def ask(expression: str) -> str:
        say(process, expression)
        return read_line(process)

    yield ask
    kill(process)


def test_queues_bindings_and_messages_are_seen_by_every_process(
    sqlqueue: Broker, other_process: Callable[[str], str]
) -> None:
    channel = sqlqueue.connect().default_channel
    Queue("q", Exchange("e", "direct"), routing_key="k")(channel).declare()
    assert other_process("connection.default_channel.list_bindings()") == "[('q', 'e', 'k')]"
    other_process("connection.Producer().publish({'from': 'there'}, exchange='e', routing_key='k')")
    message = channel.basic_get("q")
    assert message.payload == {"from": "there"}
    assert other_process("connection.default_channel.basic_get('q')") == "None"
    message.requeue()
    assert other_process("connection.default_channel.basic_get('q').payload") == (
        "{'from': 'there'}"
    )
    other_process("connection.default_channel.queue_delete('q')")
    with pytest.raises(ChannelError):
        channel.queue_declare("q", passive=True)


def test_an_unbound_queue_is_deleted(sqlqueue: Broker) -> None:
    """In Kombu's virtual base it stays, because that deletes binding by binding."""
    connection = sqlqueue.connect()
    queue = Queue("q")(connection.default_channel)
    queue.declare()
    _publish(connection, "x")
    assert queue.delete() == 1
    with pytest.raises(ChannelError):
        connection.default_channel.queue_declare("q", passive=True)


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
    for number in range(30):
        _publish(first, number)
    give_up_s = time.monotonic() + 30
    while sum(map(len, handed.values())) < 30 and time.monotonic() < give_up_s:
        for connection in (first, second):
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=0.01)

    assert sorted(m.payload for held in handed.values() for m in held) == list(range(30))
    for name, held in handed.items():
        assert held
        assert {message.delivery_info["consumer_tag"] for message in held} == {name}
        for message in held:
            message.ack()
    # Two consumers of one channel share its prefetch count.
    assert [len(handed["a"] + handed["b"]), len(handed["c"]), len(handed["d"])] == [10, 10, 10]
    first.release()
    second.release()
    assert _get(sqlqueue.connect()) is None


def test_requeueing_keeps_the_order(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for number in range(4):
        _publish(connection, number)
    held = [_get(connection) for _ in range(3)]
    for message in (held[1], held[0], held[2]):
        message.requeue()
    assert [_get(connection).payload for _ in range(4)] == [0, 1, 2, 3]


def test_a_message_that_is_delivered_again_says_so(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    _publish(connection, "x")
    first = _get(connection)
    assert first.delivery_info["redelivered"] is False
    first.channel.basic_recover()
    assert _get(connection).delivery_info["redelivered"] is True


def test_a_late_ack_is_refused(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    _publish(connection, "x")
    late = _get(connection)
    late.channel.basic_recover()
    _get(connection).ack()
    with pytest.raises(LeaseLost):
        late.ack()


@pytest.mark.parametrize("ended", ["channel", "connection", "context"])
def test_what_ends_hands_back_in_place_what_it_held(sqlqueue: Broker, ended: str) -> None:
    other = sqlqueue.connect()
    for number in range(4):
        _publish(other, number)
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
    assert [_get(other).payload for _ in range(4)] == [0, 1, 2, 3]


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
        _publish(connection, number)
    process = run_python(HOLDER, sqlqueue.url, how)
    assert read_line(process) == "holds 2"
    say(process)
    process.communicate(timeout=30)
    assert process.returncode == (how == "raise")
    assert [_get(connection).payload for _ in range(3)] == [0, 1, 2]  # no sweep was needed


def test_what_a_killed_process_held_is_delivered_again_soon(sqlqueue: Broker) -> None:
    """With a visibility timeout of an hour: the kernel tells, not the clock."""
    connection = sqlqueue.connect()
    for number in range(3):
        _publish(connection, number)
    process = run_python(HOLDER, sqlqueue.url, "return")
    assert read_line(process) == "holds 2"
    third = _get(connection)  # a consumer that holds something watches over the others
    assert third.payload == 2
    kill(process)
    killed_s = time.monotonic()
    again = wait_until(lambda: _get(connection), what="the first message again")
    print(f"killed consumer: redelivered after {time.monotonic() - killed_s:.3f} s")
    assert again.payload == 0
    assert again.delivery_info["redelivered"] is True


def test_an_eta_is_held_in_the_file_until_it_is_due(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    _publish(connection, "later", headers={"eta": due.isoformat()})
    _publish(connection, "now")
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        _drain_all(connection, 1)
        frozen.tick(timedelta(minutes=59))
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.05)
        frozen.tick(timedelta(minutes=1, seconds=1))
        _drain_all(connection, 1)
    assert found == ["now", "later"]


def test_a_countdown_longer_than_the_visibility_timeout_is_delivered_once(
    sqlqueue: Broker, frozen: Any
) -> None:
    """In transports that hold such messages in the worker they are delivered again and again."""
    connection = sqlqueue.connect(visibility_timeout=60)
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    _publish(connection, "x", headers={"eta": due.isoformat()})
    for _ in range(6):
        frozen.tick(timedelta(minutes=9))
        assert _get(connection) is None
    frozen.tick(timedelta(minutes=6, seconds=1))
    _get(connection).ack()
    assert _get(connection) is None


def test_a_message_expires(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    _publish(connection, "short", expiration=60)
    _publish(connection, "long", expiration=3600)
    frozen.tick(timedelta(seconds=61))
    assert _get(connection).payload == "long"
    assert _get(connection) is None


def test_a_frozen_clock_does_not_hang_a_drain(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    with Consumer(connection.default_channel, [Queue("q")]), pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.05)


# -- failing over -----------------------------------------------------------------------------------


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[kombu.Connection]:
    bad, good = "sqlqueue:////no/such/dir/q.db", f"sqlqueue:///{tmp_path}/good.db"
    with kombu.Connection(f"{bad};{good}") as connection:
        yield connection


def test_a_list_of_urls_is_tried_until_one_connects(
    failover: kombu.Connection, tmp_path: Path
) -> None:
    failed: list[BaseException] = []
    failover.ensure_connection(
        errback=lambda error, _: failed.append(error), max_retries=3, interval_start=0
    )
    assert len(failed) == 1
    assert "/no/such/dir" in str(failed[0])
    assert failover.default_channel.store.path == tmp_path / "good.db"
    _publish(failover, "x")
    assert _get(failover).payload == "x"


def test_a_list_of_urls_connects_by_itself_when_it_is_used(failover: kombu.Connection) -> None:
    _publish(failover, "x")
    with failover.clone() as other:
        assert _get(other).payload == "x"


def test_a_list_of_urls_without_a_good_one_fails_with_a_connection_error(tmp_path: Path) -> None:
    connection = kombu.Connection(f"sqlqueue:///{tmp_path};sqlqueue:////no/such/dir/q.db")
    with pytest.raises(kombu.exceptions.OperationalError):
        connection.ensure_connection(max_retries=2, interval_start=0, interval_step=0)
    with pytest.raises(connection.connection_errors):
        connection.connect()


def test_a_connection_goes_back_to_the_first_url_of_its_list(tmp_path: Path) -> None:
    directory = tmp_path / "comes later"
    first, second = f"sqlqueue:///{directory}/q.db".replace(" ", "%20"), f"sqlqueue:///{tmp_path}/"
    connection = kombu.Connection(f"{first};{second}")
    with pytest.raises(kombu.exceptions.OperationalError):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    directory.mkdir()
    connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
    _publish(connection, "x")
    assert (directory / "q.db").exists()
    connection.release()


# -- several processes ------------------------------------------------------------------------------

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


def test_competing_processes_get_each_message_once(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    processes = [run_python(COMPETING, sqlqueue.url) for _ in range(2)]
    for process in processes:
        assert read_line(process) == "ready"
    for number in range(300):
        _publish(connection, number)
    found = [[int(line) for line in finish(process).splitlines()] for process in processes]
    assert sorted(found[0] + found[1]) == list(range(300))
    assert all(found)
    assert all(one == sorted(one) for one in found)  # each in order
