"""Queues: declared, counted, purged and deleted, by somebody or by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import kombu
import pytest
from kombu import Exchange, Queue
from kombu.common import maybe_declare
from kombu.exceptions import ChannelError

from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    collecting,
    declare,
    declared,
    exists,
    get,
    get_all,
    publish,
    refused,
    turn,
)
from tests.support import wait_until


def test_a_purge_empties_a_queue_and_says_how_much_it_was(broker: Broker) -> None:
    connection = broker.connect()
    bound = Queue("q")(connection.default_channel)
    bound.declare()
    for _ in range(3):
        publish(connection, "x")
    assert bound.purge() == 3
    assert bound.purge() == 0
    assert bound.get() is None


def test_a_passive_declaration_only_looks(broker: Broker) -> None:
    connection = broker.connect()
    channel = connection.channel()
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.queue_declare("q", passive=True)
    name, _, _ = channel.queue_declare("q")
    publish(connection, "x")
    assert name == "q"
    assert tuple(channel.queue_declare("q", passive=True))[:2] == ("q", 1)


def test_a_queue_without_a_name_gets_one(broker: Broker) -> None:
    connection = broker.connect()
    first, second = (connection.channel().queue_declare("").queue for _ in range(2))
    assert first != second
    assert first.startswith("amq.gen-")


def test_a_deleted_queue_is_gone(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue("q", Exchange("e", "direct"), routing_key="k")(connection.default_channel)
    queue.declare()
    publish(connection, "x")
    queue.delete()
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        connection.default_channel.queue_declare("q", passive=True)
    queue.declare()
    assert queue.get() is None


def test_a_queue_that_is_not_empty_is_not_deleted_if_empty(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue("q", Exchange("e", "direct"), routing_key="k")(connection.default_channel)
    queue.declare()
    publish(connection, "x")
    queue.delete(if_empty=True)
    assert queue.get() is not None


def test_declaring_once_a_connection_is_enough(exact_broker: Broker) -> None:
    connection = exact_broker.connect()
    channel = connection.default_channel
    queue = Queue("q", Exchange("e", "direct"), routing_key="k", channel=channel)
    assert maybe_declare(queue, channel)
    assert not maybe_declare(queue, channel)
    assert channel.queue_declare("q", passive=True).queue == "q"


def test_a_declaration_tells_how_much_is_ready(broker: Broker) -> None:
    connection = broker.connect()
    channel = connection.default_channel
    assert tuple(channel.queue_declare("q"))[:2] == ("q", 0)
    for _ in range(3):
        publish(connection, "x")
    assert channel.queue_declare("q").message_count == 3
    held = get(connection)
    assert channel.queue_declare("q").message_count == 2
    held.ack()
    assert channel.queue_declare("q").message_count == 2


def test_a_declaration_of_what_is_there_changes_nothing(broker: Broker) -> None:
    connection, other = broker.connect(), broker.connect()
    exchange = Exchange("e", "direct")
    declare(connection, exchange=exchange, routing_key="k")
    publish(connection, "x", "k", exchange="e")
    declare(other, exchange=exchange, routing_key="k")
    assert get_all(other) == ["x"]
    assert get_all(connection) == []


def test_a_purge_leaves_what_somebody_holds(broker: Broker) -> None:
    connection = broker.connect()
    for number in range(3):
        publish(connection, number)
    held = get(connection)
    assert connection.default_channel.queue_purge("q") == 2
    held.channel.basic_recover(requeue=True)
    assert get_all(connection) == [0]


# == on ours ========================================================================================


def test_an_unbound_queue_is_deleted(sqlqueue: Broker) -> None:
    """In Kombu's virtual base it stays, because that deletes binding by binding."""
    connection = sqlqueue.connect()
    queue = Queue("q")(connection.default_channel)
    queue.declare()
    publish(connection, "x")
    assert queue.delete() == 1
    with pytest.raises(ChannelError):
        connection.default_channel.queue_declare("q", passive=True)


def test_a_queue_with_messages_is_deleted_only_without_the_conditions(sqlqueue: Broker) -> None:
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    channel = connection.default_channel
    declare(connection)
    publish(connection, "x")
    channel.queue_delete("q", if_empty=True)
    assert declared(connection).message_count == 1
    with collecting(other, channel=other.channel()) as consumer:
        channel.queue_delete("q", if_unused=True)
        assert declared(connection).message_count == 1
        consumer.cancel()
        assert channel.queue_delete("q", if_unused=True) == 1
    assert declared(connection) is None


# -- counting consumers -----------------------------------------------------------------------------


def test_every_consumer_of_a_queue_is_counted(sqlqueue: Broker) -> None:
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    channel = connection.channel()
    declare(connection)
    counts = [declared(other).consumer_count]
    for tag, its_channel in [("a", channel), ("b", channel), ("c", connection.channel())]:
        its_channel.basic_consume("q", False, print, consumer_tag=tag)
        counts.append(declared(other).consumer_count)
    other.default_channel.basic_consume("q", True, print, consumer_tag="a")  # a tag of its own
    counts.append(declared(connection).consumer_count)
    other.default_channel.basic_consume("elsewhere", True, print)
    counts.append(declared(connection).consumer_count)
    assert counts == [0, 1, 2, 3, 4, 4]


ENDS = {
    "cancel": "channel.basic_cancel('c')",
    "channel closed": "channel.close()",
    "connection closed": "connection.release()",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_consumer_counts_until_it_ends(
    sqlqueue: Broker, other_process: OtherProcess, end: str
) -> None:
    connection = sqlqueue.connect()
    declare(connection)
    other_process("channel.basic_consume('q', False, held.append, consumer_tag='c')")
    assert declared(connection).consumer_count == 1
    assert other_process("channel.queue_declare('q').consumer_count") == "1"
    other_process(end)
    assert declared(connection).consumer_count == 0


@pytest.mark.parametrize("end", [OtherProcess.kill, OtherProcess.leave], ids=["killed", "left"])
def test_a_process_that_has_ended_does_not_count(
    sqlqueue: Broker, other_process: OtherProcess, end: Callable[[OtherProcess], None]
) -> None:
    """At once: nobody has to have noticed."""
    connection = sqlqueue.connect()
    declare(connection)
    other_process("channel.basic_consume('q', False, held.append)")
    other_process("turn()")
    assert declared(connection).consumer_count == 1
    end(other_process)
    assert declared(connection).consumer_count == 0


# -- queues that go by themselves -------------------------------------------------------------------


def _goes(connection: kombu.Connection, queue: str = "q") -> None:
    """Wait until a queue is gone, while this process consumes from another one."""
    began_s = time.monotonic()
    with collecting(connection, "elsewhere", channel=connection.channel()):
        wait_until(
            lambda: turn(connection) or not exists(connection, queue),
            what=f"the end of queue {queue}",
        )
    print(f"gone after {time.monotonic() - began_s:.3f} s")


def test_a_queue_that_deletes_itself_waits_for_its_first_consumer(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, auto_delete=True)
    publish(connection, "x")
    connection.release()
    with collecting(connection, "elsewhere", channel=connection.default_channel):
        _let_sweep(connection)
    assert get(connection) is not None
    assert declared(connection)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_queue_that_deletes_itself_goes_with_its_last_consumer(
    sqlqueue: Broker, other_process: OtherProcess, end: str
) -> None:
    connection = sqlqueue.connect()
    declare(connection, auto_delete=True, exchange=Exchange("e", "fanout"))
    publish(connection, "x", "", exchange="e")
    with collecting(connection, channel=connection.channel()):
        other_process("channel.basic_consume('q', False, held.append, consumer_tag='c')")
    assert declared(connection).consumer_count == 1  # not the last one
    other_process(end)
    assert declared(connection) is None
    assert list(connection.default_channel.list_bindings()) == []


def test_a_queue_that_deletes_itself_goes_with_a_process_that_was_killed(
    sqlqueue: Broker, other_process: OtherProcess
) -> None:
    connection = sqlqueue.connect()
    declare(connection, auto_delete=True)
    other_process("channel.basic_consume('q', False, held.append)")
    publish(connection, "x")
    other_process("turn()")
    other_process.kill()
    _goes(connection)


def test_what_is_held_from_a_queue_that_went_is_settled_without_harm(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, auto_delete=True)
    publish(connection, "a")
    publish(connection, "b")
    held: list[Any] = []
    channel = connection.channel()
    tag = channel.basic_consume("q", False, held.append)
    for _ in range(2):
        connection.drain_events(timeout=10)
    channel.basic_cancel(tag)
    assert declared(connection) is None
    held[0].ack()
    channel.close()  # gives the other one back to nowhere
    declare(connection)
    assert get(connection) is None


def test_an_exclusive_queue_is_its_connections_own(sqlqueue: Broker) -> None:
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    exchange = Exchange("e", "direct")
    mine = declare(connection, exclusive=True, exchange=exchange, routing_key="k")
    theirs = other.default_channel
    for forbidden in (
        lambda: theirs.queue_declare("q"),
        lambda: theirs.queue_declare("q", exclusive=True),
        lambda: theirs.basic_consume("q", True, print),
        lambda: theirs.basic_get("q"),
        lambda: theirs.queue_bind("q", "e", "other"),
        lambda: theirs.queue_delete("q"),
    ):
        with refused(405, "RESOURCE_LOCKED"):
            forbidden()
    publish(other, "anybody may publish", "k", exchange="e")
    publish(other, "either way")
    with connection.channel() as channel:  # of the same connection
        assert channel.basic_get("q").payload == "anybody may publish"
    assert get_all(connection) == ["anybody may publish", "either way"]
    mine.delete()
    declare(other, exclusive=True)


def test_an_exclusive_queue_is_locked_for_other_processes(
    sqlqueue: Broker, other_process: OtherProcess
) -> None:
    declare(sqlqueue.connect(), exclusive=True)
    for call in ("queue_declare('q')", "basic_get('q')", "queue_delete('q')"):
        assert "RESOURCE_LOCKED" in other_process(f"error_of(lambda: channel.{call})")


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_exclusive_queue_goes_with_its_last_consumer(
    sqlqueue: Broker, other_process: OtherProcess, end: str
) -> None:
    connection = sqlqueue.connect()
    other_process("channel.queue_declare('q', exclusive=True)")
    other_process("channel.basic_consume('q', False, held.append, consumer_tag='c')")
    other_process(end)
    assert declared(connection) is None
    declare(connection, exclusive=True)


def test_an_exclusive_queue_goes_with_its_connection(
    sqlqueue: Broker, other_process: OtherProcess
) -> None:
    """Consumed or not."""
    connection = sqlqueue.connect()
    other_process("channel.queue_declare('q', exclusive=True)")
    other_process("channel.close()")
    assert exists(connection)
    other_process("connection.release()")
    assert not exists(connection)


def test_an_exclusive_queue_goes_with_its_connection_though_the_process_has_others(
    sqlqueue: Broker,
) -> None:
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    declare(other, "other's", exclusive=True)
    declare(connection, exclusive=True)
    connection.release()
    assert not exists(other)
    assert declared(other, "other's")


@pytest.mark.parametrize("end", [OtherProcess.kill, OtherProcess.leave], ids=["killed", "left"])
def test_an_exclusive_queue_goes_with_its_process(
    sqlqueue: Broker, other_process: OtherProcess, end: Callable[[OtherProcess], None]
) -> None:
    connection = sqlqueue.connect()
    other_process("channel.queue_declare('q', exclusive=True)")
    assert exists(connection)
    end(other_process)
    _goes(connection)


def test_a_late_answer_to_a_queue_that_went_is_dropped(sqlqueue: Broker) -> None:
    connection, asking = sqlqueue.connect(), sqlqueue.connect()
    declare(asking, "answers", exclusive=True, auto_delete=True)
    asking.release()
    publish(connection, "late", "answers")
    declare(connection, "answers")
    assert get(connection, "answers") is None
    publish(connection, "in time", "answers")
    assert get_all(connection, "answers") == ["in time"]


# -- queues that expire -----------------------------------------------------------------------------


def test_a_queue_that_nobody_uses_goes_after_its_time(sqlqueue: Broker) -> None:
    """Passive declarations look, and are no use of it."""
    connection = sqlqueue.connect()
    declare(connection, expires=0.2, exchange=Exchange("e", "fanout"))
    publish(connection, "x", "", exchange="e")
    _goes(connection)
    assert list(connection.default_channel.list_bindings()) == []
    publish(connection, "y", "", exchange="e")
    assert get(connection) is None


USES = {
    "get": lambda channel: channel.basic_get("q", no_ack=True),
    "declared again": lambda channel: Queue("q", expires=60)(channel).declare(),
    "consumed": lambda channel: channel.basic_cancel(channel.basic_consume("q", True, print)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_queue_that_is_used_stays(
    sqlqueue: Broker, frozen: Any, use: Callable[[Any], Any]
) -> None:
    connection = sqlqueue.connect()
    declare(connection, expires=60)
    with collecting(connection, "elsewhere", channel=connection.channel()):
        for _ in range(3):
            frozen.tick(timedelta(seconds=50))
            _let_sweep(connection)
            assert declared(connection)
            use(connection.default_channel)
        frozen.tick(timedelta(seconds=61))
        wait_until(lambda: turn(connection) or not exists(connection))


def _let_sweep(connection: kombu.Connection) -> None:
    """Wait until a queue is gone whose time is over at once: by then others could be as well."""
    declare(connection, "witness", expires=0.001)
    wait_until(lambda: turn(connection) or not exists(connection, "witness"), what="a sweep")


def test_a_queue_with_a_consumer_does_not_expire(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    declare(connection, expires=60)
    with collecting(connection, "elsewhere", channel=connection.channel()):
        with collecting(connection, channel=connection.channel()):
            frozen.tick(timedelta(seconds=61))
            _let_sweep(connection)
            assert declared(connection)
        frozen.tick(timedelta(seconds=50))  # less than that after the consumer's end
        _let_sweep(connection)
        assert declared(connection)
        frozen.tick(timedelta(seconds=11))
        wait_until(lambda: turn(connection) or not exists(connection))


def test_publishing_is_no_use_of_a_queue(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    declare(connection, expires=60)
    frozen.tick(timedelta(seconds=50))
    publish(connection, "x")
    frozen.tick(timedelta(seconds=11))
    with collecting(connection, "elsewhere", channel=connection.channel()):
        wait_until(lambda: turn(connection) or declared(connection) is None)
