"""Exchanges and bindings: which queues a message is led to."""

from __future__ import annotations

import time

import kombu
import pytest
from kombu import Exchange, Producer, Queue
from kombu.exceptions import ChannelError

from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    declare,
    declared,
    get,
    get_all,
    publish,
    refused,
)


def test_a_direct_exchange_leads_by_its_key_to_every_bound_queue(broker: Broker) -> None:
    connection = broker.connect()
    exchange = Exchange("e", "direct")
    for name, key in [("a", "red"), ("b", "red"), ("c", "blue")]:
        Queue(name, exchange, routing_key=key)(connection.default_channel).declare()
    producer = Producer(connection.default_channel, exchange)
    producer.publish("x", routing_key="red")
    producer.publish("y", routing_key="nobody's")
    assert [get(connection, name) is not None for name in "abc"] == [True, True, False]
    assert [get(connection, name) for name in "abc"] == [None] * 3


def test_an_unbound_key_leads_nowhere_any_more(exact_broker: Broker) -> None:
    connection = exact_broker.connect()
    exchange = Exchange("e", "direct")
    queue = Queue("q", exchange, routing_key="k")(connection.default_channel)
    queue.declare()
    queue.unbind_from(exchange, "k")
    Producer(connection.default_channel).publish("x", exchange="e", routing_key="k")
    assert get(connection) is None


def test_a_passive_declaration_of_an_exchange_only_looks(broker: Broker) -> None:
    channel = broker.connect().channel()
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.exchange_declare("e", "direct", passive=True)
    channel.exchange_declare("e", "direct")
    channel.exchange_declare("e", "direct", passive=True)


# Where Kombu's virtual transports and AMQP agree.
TOPICS = [
    ("a.b", "a.b", True),
    ("a.b", "a.c", False),
    ("a.b", "a.b.c", False),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("a.*", "a.b.c", False),
    ("*", "a", True),
    ("*", "a.b", False),
    ("*.*", "a.b", True),
    ("*.b", "a.b", True),
    ("*.b", "b", False),
    ("a.*.c", "a.b.c", True),
    ("a.*.c", "a.c", False),
    ("#", "a", True),
    ("#", "a.b.c", True),
    ("a.#", "a.b", True),
    ("a.#", "a.b.c", True),
    ("a.#", "ab.c", False),
    ("#.c", "a.b.c", True),
    ("a.#.d", "a.b.c.d", True),
    ("#.b.#", "a.b.c", True),
    ("a+.b", "a+.b", True),
    ("a+.b", "aa.b", False),
    ("(a.b", "(a.b", True),
]
# Where AMQP alone says so: `#` stands for no word, too, and both stand alone.
TOPICS_OF_AMQP = [
    *TOPICS,
    ("#", "", True),
    ("*", "", False),
    ("", "", True),
    ("", "a", False),
    ("a.#", "a", True),
    ("#.a", "a", True),
    ("a.#.b", "a.b", True),
    ("#.#", "a", True),
    ("#.*", "a", True),
    ("*.#", "a", True),
    ("*.#.b", "a.b", True),
    ("*.#.b", "b", False),
    ("#.a.#", "a", True),
    ("#.a.#.a.#", "a", False),
    ("#.a.#.a.#", "x.a.y.y.a.z", True),
    ("a.#.#.b", "a.x.y.z.b", True),
    ("a*", "ab", False),
    ("a*", "a*", True),
    ("a#", "ab", False),
    ("[ab].c", "a.c", False),
    ("?.c", "a.c", False),
    ("%.c", "a.c", False),
    ("_.c", "a.c", False),
    ("A.b", "a.b", False),
]


def _leads(connection: kombu.Connection, pattern: str, key: str) -> bool:
    exchange = Exchange("topics", "topic")
    declare(connection, exchange=exchange, routing_key=pattern)
    Producer(connection.default_channel, exchange).publish("x", routing_key=key)
    return get(connection) is not None


@pytest.mark.parametrize(("pattern", "key", "leads"), TOPICS)
def test_a_topic_exchange_leads_by_words(
    broker: Broker, pattern: str, key: str, leads: bool
) -> None:
    assert _leads(broker.connect(), pattern, key) is leads


def test_two_bindings_that_match_deliver_one_message(broker: Broker) -> None:
    connection = broker.connect()
    exchange = Exchange("topics", "topic")
    for pattern in ("a.*", "#", "*.b"):
        declare(connection, exchange=exchange, routing_key=pattern)
    Producer(connection.default_channel, exchange).publish("x", routing_key="a.b")
    assert get_all(connection) == ["x"]


def test_an_exchange_without_a_binding_that_matches_drops_the_message(broker: Broker) -> None:
    connection = broker.connect()
    for kind in ("direct", "topic", "fanout"):
        exchange = Exchange(kind, kind)
        exchange(connection.default_channel).declare()
        Producer(connection.default_channel, exchange).publish("x", routing_key="nobody's")


def test_the_default_exchange_leads_to_the_queue_of_that_name(broker: Broker) -> None:
    connection = broker.connect()
    declare(connection, exchange=Exchange("e", "direct"), routing_key="k")
    publish(connection, "x", "q", exchange="")
    publish(connection, "the key of a binding is not the name of a queue", "k", exchange="")
    assert get_all(connection) == ["x"]


def test_each_queue_of_an_exchange_has_a_message_of_its_own(broker: Broker) -> None:
    """What one does with his does not touch the other's."""
    connection = broker.connect()
    exchange = Exchange("e", "direct")
    for name in ("a", "b"):
        declare(connection, name, exchange=exchange, routing_key="k")
    Producer(connection.default_channel, exchange).publish({"n": 1}, routing_key="k")
    get(connection, "a").reject()
    message = get(connection, "b")
    assert message.payload == {"n": 1}
    assert (message.delivery_info["exchange"], message.delivery_info["routing_key"]) == ("e", "k")
    message.ack()
    assert (get(connection, "a"), get(connection, "b")) == (None, None)


# == on ours ========================================================================================


@pytest.mark.parametrize(("pattern", "key", "leads"), TOPICS_OF_AMQP)
def test_a_topic_exchange_leads_as_amqp_says(
    sqlqueue: Broker, pattern: str, key: str, leads: bool
) -> None:
    """AMQP 0-9-1, 3.1.3.3: `*` is exactly one word, `#` zero or more."""
    assert _leads(sqlqueue.connect(), pattern, key) is leads


def test_a_long_pattern_is_matched_at_once(sqlqueue: Broker) -> None:
    """A regular expression would try its words in every combination."""
    pattern, key = ".".join(["#", "a"] * 15), ".".join(["a"] * 40) + ".b"
    began_s = time.monotonic()
    assert not _leads(sqlqueue.connect(), pattern, key)
    took_s = time.monotonic() - began_s
    print(f"a hostile pattern: {took_s:.3f} s")
    assert took_s < 5


def test_a_fanout_exchange_leads_to_every_queue_whatever_the_key(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    exchange = Exchange("f", "fanout")
    for name, key in [("a", ""), ("b", "red"), ("c", "blue")]:
        declare(connection, name, exchange=exchange, routing_key=key)
    producer = Producer(connection.default_channel, exchange)
    producer.publish("x", routing_key="green")
    declare(connection, "late", exchange=exchange)
    producer.publish("y")
    found = [get_all(connection, name) for name in ("a", "b", "c", "late")]
    assert found == [["x", "y"], ["x", "y"], ["x", "y"], ["y"]]


def test_publishing_to_an_exchange_that_nobody_declared_is_refused(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    with refused(404, "NOT_FOUND.*'nowhere'"):
        publish(connection, "x", exchange="nowhere")
    publish(connection, "y")
    assert get_all(connection) == ["y"]  # the channel goes on


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_one_exchange_of_each_type_is_there_without_being_declared(
    sqlqueue: Broker, kind: str
) -> None:
    """AMQP 0-9-1, 3.1.3."""
    connection = sqlqueue.connect()
    connection.default_channel.queue_declare("q")
    connection.default_channel.queue_bind("q", f"amq.{kind}", "k")
    publish(connection, "x", "k", exchange=f"amq.{kind}")
    assert get_all(connection) == ["x"]


def test_a_batch_that_names_an_exchange_nobody_declared_stores_nothing(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    producer = Producer(connection.default_channel)

    def publish_two() -> None:
        with producer.batch(max_size=100):
            producer.publish("x", routing_key="q")
            producer.publish("y", exchange="nowhere", routing_key="q")

    with refused(404):
        publish_two()
    assert get(connection) is None


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_a_mandatory_message_without_a_queue_is_refused(sqlqueue: Broker, kind: str) -> None:
    connection = sqlqueue.connect()
    exchange = Exchange("e", kind)
    exchange(connection.default_channel).declare()
    producer = Producer(connection.default_channel, exchange)
    producer.publish("dropped", routing_key="k")
    with refused(312, "NO_ROUTE"):
        producer.publish("x", routing_key="k", mandatory=True)
    declare(connection, exchange=exchange, routing_key="k")
    producer.publish("y", routing_key="k", mandatory=True)
    assert get_all(connection) == ["y"]


@pytest.mark.parametrize("kind", ["headers", "x-own"])
def test_what_is_not_supported_is_refused_by_name(sqlqueue: Broker, kind: str) -> None:
    connection = sqlqueue.connect()
    assert not connection.supports_exchange_type(kind)
    with refused(540, f"NOT_IMPLEMENTED - exchange type '{kind}'"):
        Exchange("e", kind)(connection.default_channel).declare()
    with pytest.raises(NotImplementedError):
        connection.default_channel.flow(active=False)


def test_an_exchange_of_another_type_is_not_declared_over(sqlqueue: Broker) -> None:
    channel, other = sqlqueue.connect().channel(), sqlqueue.connect().channel()
    channel.exchange_declare("e", "topic")
    for kind in ("direct", "fanout"):
        with refused(406, "PRECONDITION_FAILED"):
            other.exchange_declare("e", kind)
    other.exchange_declare("e", "topic")


def test_a_deleted_exchange_is_gone_and_its_queues_stay(sqlqueue: Broker) -> None:
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    exchange = Exchange("e", "direct")
    declare(connection, exchange=exchange, routing_key="k")
    declare(connection, "empty", exchange=exchange, routing_key="k2")
    publish(connection, "x", "k", exchange="e")
    other.default_channel.exchange_delete("e")
    with refused(404):
        publish(connection, "y", "k", exchange="e")
    assert declared(connection, "empty")
    assert get_all(connection) == ["x"]
    connection.default_channel.exchange_declare("e", "topic")  # the name is free, and unbound
    with refused(312):
        publish(connection, "z", "k", exchange="e", mandatory=True)


def test_an_exchange_with_bindings_is_not_deleted_if_unused(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    channel = connection.default_channel
    queue = declare(connection, exchange=Exchange("e", "direct"), routing_key="k")
    channel.exchange_delete("e", if_unused=True)
    channel.exchange_declare("e", passive=True)
    queue.unbind_from(Exchange("e", "direct"), "k")
    channel.exchange_delete("e", if_unused=True)
    with refused(404):
        channel.exchange_declare("e", passive=True)


def test_one_binding_of_several_is_removed(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    exchange = Exchange("e", "topic")
    for pattern in ("red.*", "blue.*"):
        declare(connection, exchange=exchange, routing_key=pattern)
    connection.default_channel.queue_unbind("q", "e", "red.*")
    producer = Producer(connection.default_channel, exchange)
    producer.publish("red", routing_key="red.x")
    producer.publish("blue", routing_key="blue.x")
    assert get_all(connection) == ["blue"]


def test_a_deleted_queue_takes_its_bindings_along(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    exchange = Exchange("f", "fanout")
    declare(connection, exchange=exchange).delete()
    declare(connection)  # of the same name, unbound
    Producer(connection.default_channel, exchange).publish("x")
    assert get(connection) is None
    assert list(connection.default_channel.list_bindings()) == []


def test_topics_and_fanouts_of_one_process_are_known_to_the_others(
    sqlqueue: Broker, other_process: OtherProcess
) -> None:
    """Who neither declares nor binds: Kombu's virtual base would take the topic for direct."""
    connection = sqlqueue.connect()
    declare(connection, "a", exchange=Exchange("t", "topic"), routing_key="a.#")
    declare(connection, "b", exchange=Exchange("f", "fanout"))
    other_process("Producer(channel).publish('x', exchange='t', routing_key='a.b.c')")
    other_process("Producer(channel).publish('y', exchange='f', routing_key='')")
    assert (get_all(connection, "a"), get_all(connection, "b")) == (["x"], ["y"])
    other_process("channel.queue_unbind('a', 't', 'a.#')")
    publish(connection, "z", "a.b", exchange="t")
    assert get(connection, "a") is None


def test_queues_and_bindings_are_seen_by_every_connection(sqlqueue: Broker) -> None:
    first, second = sqlqueue.connect(), sqlqueue.connect()
    Queue("q", Exchange("e", "direct"), routing_key="k")(first.default_channel).declare()
    assert second.default_channel.queue_declare("q", passive=True).queue == "q"
    Producer(second.default_channel).publish("x", exchange="e", routing_key="k")
    assert get(second).payload == "x"
    first.default_channel.queue_delete("q")
    with pytest.raises(ChannelError):
        second.default_channel.queue_declare("q", passive=True)


def test_queues_bindings_and_messages_are_seen_by_every_process(
    sqlqueue: Broker, other_process: OtherProcess
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
