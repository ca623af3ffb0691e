"""Messages that wait, expire, overtake or are too many, and where they go then."""

from __future__ import annotations

import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import kombu
import pytest
from kombu import Consumer, Exchange, Producer, Queue
from kombu.exceptions import ChannelError

from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    collecting,
    declare,
    declared,
    drain_all,
    get,
    get_all,
    publish,
    turn,
)
from tests.support import wait_until
from tests.transport.rows import rows_of


def test_higher_priorities_are_delivered_first(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for priority in (0, 5, 9, 5, 0):
        publish(connection, priority, priority=priority)
    assert [get(connection).payload for _ in range(5)] == [9, 5, 5, 0, 0]


def test_an_eta_is_held_in_the_file_until_it_is_due(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish(connection, "later", headers={"eta": due.isoformat()})
    publish(connection, "now")
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        drain_all(connection, 1)
        frozen.tick(timedelta(minutes=59))
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.05)
        frozen.tick(timedelta(minutes=1, seconds=1))
        drain_all(connection, 1)
    assert found == ["now", "later"]


def test_a_countdown_longer_than_the_visibility_timeout_is_delivered_once(
    sqlqueue: Broker, frozen: Any
) -> None:
    """In transports that hold such messages in the worker they are delivered again and again."""
    connection = sqlqueue.connect(visibility_timeout=60)
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish(connection, "x", headers={"eta": due.isoformat()})
    for _ in range(6):
        frozen.tick(timedelta(minutes=9))
        assert get(connection) is None
    frozen.tick(timedelta(minutes=6, seconds=1))
    get(connection).ack()
    assert get(connection) is None


def test_a_message_expires(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    publish(connection, "short", expiration=60)
    publish(connection, "long", expiration=3600)
    frozen.tick(timedelta(seconds=61))
    assert get(connection).payload == "long"
    assert get(connection) is None


def test_a_frozen_clock_does_not_hang_a_drain(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    with Consumer(connection.default_channel, [Queue("q")]), pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.05)


# -- time to live -----------------------------------------------------------------------------------


def test_the_messages_of_a_queue_expire_after_its_time_to_live(
    sqlqueue: Broker, frozen: Any
) -> None:
    connection = sqlqueue.connect()
    declare(connection, message_ttl=60)
    publish(connection, "first")
    frozen.tick(timedelta(seconds=50))
    publish(connection, "second")
    frozen.tick(timedelta(seconds=11))
    assert get_all(connection) == ["second"]


@pytest.mark.parametrize(("ttl", "expiration"), [(60, 3600), (3600, 60)])
def test_of_two_times_to_live_the_sooner_counts(
    sqlqueue: Broker, frozen: Any, ttl: float, expiration: float
) -> None:
    connection = sqlqueue.connect()
    declare(connection, message_ttl=ttl)
    for _ in range(2):
        publish(connection, "x", expiration=expiration)
    frozen.tick(timedelta(seconds=59))
    assert get(connection)
    frozen.tick(timedelta(seconds=2))
    assert get(connection) is None


def test_a_time_to_live_is_of_the_queue_and_not_of_the_exchange(
    sqlqueue: Broker, frozen: Any
) -> None:
    connection = sqlqueue.connect()
    exchange = Exchange("f", "fanout")
    declare(connection, "short", message_ttl=60, exchange=exchange)
    declare(connection, "long", exchange=exchange)
    publish(connection, "x", "", exchange="f")
    frozen.tick(timedelta(seconds=61))
    assert (get_all(connection, "short"), get_all(connection, "long")) == ([], ["x"])


def test_what_somebody_holds_does_not_expire(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    publish(connection, "x", expiration=60)
    publish(connection, "y", expiration=60)
    held = [get(connection), get(connection)]
    frozen.tick(timedelta(seconds=61))
    declare(connection, "witness", message_ttl=0)
    publish(connection, "z", "witness")
    with collecting(connection, "elsewhere", channel=connection.channel()):
        wait_until(lambda: turn(connection) or ("witness", "pending") not in _rows(connection))
    held[0].ack()
    held[1].requeue()
    assert get(connection) is None  # once it is back, its time is over


def test_a_message_without_any_time_to_live_is_gone_at_once(sqlqueue: Broker) -> None:
    """Unless a consumer takes it at that very moment."""
    connection = sqlqueue.connect()
    declare(connection, message_ttl=0)
    publish(connection, "x")
    assert get(connection) is None


def test_expired_messages_are_removed_without_a_consumer_of_their_queue(sqlqueue: Broker) -> None:
    """Whoever consumes from the file sees to it."""
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    declare(connection, "ttl", message_ttl=0.2)
    publish(connection, "x", "ttl")
    publish(connection, "x", expiration=0.2)
    began_s = time.monotonic()
    with collecting(other, "elsewhere"):
        wait_until(lambda: turn(other) or not _rows(connection), what="an empty file", deadline_s=6)
    print(f"expired after 0.2 s, removed after {time.monotonic() - began_s:.3f} s")
    assert declared(connection, "ttl").message_count == 0


def _rows(connection: kombu.Connection) -> list[Any]:
    """Return what is in the file and not yet settled, as (queue, state)."""
    return rows_of(
        connection.default_channel.store,
        "SELECT queue, state FROM message WHERE state IN ('pending', 'scheduled', 'processing')",
    )


def test_a_message_that_becomes_due_wakes_who_sleeps(
    sqlqueue: Broker, other_process: OtherProcess
) -> None:
    connection = sqlqueue.connect()
    found: list[Any] = []
    with collecting(connection, into=found):
        due = datetime.now(timezone.utc) + timedelta(seconds=0.3)
        other_process(
            "Producer(channel).publish('x', routing_key='q',"
            f" headers={{'eta': {due.isoformat()!r}}})"
        )
        connection.drain_events(timeout=10)
        late_s = (datetime.now(timezone.utc) - due).total_seconds()
    print(f"delivered {late_s:.3f} s after it was due")
    assert found == ["x"]
    assert 0 <= late_s < 2.5  # on a busy machine; elsewhere milliseconds


def test_an_eta_can_be_left_to_the_consumer(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect(hold_eta=False)
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish(connection, "x", headers={"eta": due.isoformat()})
    assert get(connection).headers["eta"] == due.isoformat()


# -- priorities -------------------------------------------------------------------------------------


def test_priorities_are_clamped_to_what_a_queue_has(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, max_priority=3)
    for number, priority in enumerate([0, 2, 3, 9, 4]):
        publish(connection, number, priority=priority)
    assert get_all(connection) == [2, 3, 4, 1, 0]


def test_a_queue_without_a_greatest_priority_has_ten(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for number, priority in enumerate([None, 0, 9, 255, 5]):
        publish(connection, number, priority=priority)
    assert get_all(connection) == [2, 3, 4, 0, 1]


def test_a_consumer_is_handed_higher_priorities_first(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for priority in (0, 5, 9, 5, 0):
        publish(connection, priority, priority=priority)
    found: list[Any] = []
    with collecting(connection, into=found):
        drain_all(connection, 5)
    assert found == [9, 5, 5, 0, 0]


# -- too many ---------------------------------------------------------------------------------------


def test_a_full_queue_drops_its_oldest_message(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, max_length=3)
    for number in range(5):
        publish(connection, number)
    assert declared(connection).message_count == 3
    assert get_all(connection) == [2, 3, 4]


def test_what_is_held_makes_no_queue_full(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, max_length=2)
    publish(connection, "held")
    held = get(connection)
    for number in range(2):
        publish(connection, number)
    assert declared(connection).message_count == 2
    held.ack()
    assert get_all(connection) == [0, 1]


def test_a_batch_is_cut_to_the_length_of_its_queue(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, max_length=3)
    producer = Producer(connection.default_channel)
    with producer.batch(max_size=100):
        for number in range(50):
            producer.publish(number, routing_key="q")
    assert get_all(connection) == [47, 48, 49]


def test_a_full_queue_refuses_what_it_was_told_to_refuse(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, max_length=2, queue_arguments={"x-overflow": "reject-publish"})
    for number in range(2):
        publish(connection, number)
    with pytest.raises(ChannelError, match="'q'"):
        publish(connection, "too many")
    assert get(connection).payload == 0
    publish(connection, 2)
    assert get_all(connection) == [1, 2]


def test_a_queue_that_refuses_leaves_nothing_in_the_others(sqlqueue: Broker) -> None:
    """A publish that raised is not half stored."""
    connection = sqlqueue.connect()
    exchange = Exchange("f", "fanout")
    declare(connection, "roomy", exchange=exchange)
    declare(
        connection,
        "full",
        max_length=0,
        queue_arguments={"x-overflow": "reject-publish"},
        exchange=exchange,
    )
    with pytest.raises(ChannelError):
        publish(connection, "x", "", exchange="f")
    assert get(connection, "roomy") is None


# -- dead-letter exchanges --------------------------------------------------------------------------


def _dying(connection: kombu.Connection, **options: Any) -> None:
    """Declare `q`, whose dead letters go through the exchange `dlx` to the queue `dead`."""
    declare(connection, "dead", exchange=Exchange("dlx", "topic"), routing_key="#")
    declare(
        connection,
        queue_arguments={
            "x-dead-letter-exchange": "dlx",
            **options.pop("queue_arguments", {}),
        },
        **options,
    )


def _dies_of_rejection(connection: kombu.Connection, frozen: Any) -> None:
    get(connection).reject()


def _dies_of_age(connection: kombu.Connection, frozen: Any) -> None:
    frozen.tick(timedelta(seconds=61))


def _dies_of_crowding(connection: kombu.Connection, frozen: Any) -> None:
    publish(connection, "newer")
    publish(connection, "newest")


def _dies_of_coming_back(connection: kombu.Connection, frozen: Any) -> None:
    for _ in range(3):
        get(connection).requeue()


DEATHS = {
    "rejected": _dies_of_rejection,
    "expired": _dies_of_age,
    "maxlen": _dies_of_crowding,
    "delivery_limit": _dies_of_coming_back,
}


@pytest.mark.parametrize("reason", DEATHS)
def test_a_message_that_died_goes_through_the_dead_letter_exchange(
    sqlqueue: Broker, frozen: Any, reason: str
) -> None:
    connection = sqlqueue.connect(max_deliveries=3)
    _dying(connection, message_ttl=60, max_length=2)
    exchange = Exchange("e", "direct")
    declare(connection, exchange=exchange, routing_key="k")
    publish(connection, {"a": 1}, "k", exchange="e", headers={"mine": "x"}, correlation_id="7")
    ((message_id,),) = rows_of(connection.default_channel.store, "SELECT id FROM message")

    DEATHS[reason](connection, frozen)
    with collecting(connection, "elsewhere", channel=connection.channel()):
        message = wait_until(lambda: turn(connection) or get(connection, "dead"))

    assert message.payload == {"a": 1}
    assert message.properties["correlation_id"] == "7"
    assert message.headers["mine"] == "x"
    assert message.delivery.message_id == message_id  # the same row, moved
    assert message.delivery_info["exchange"] == "dlx"
    assert message.delivery_info["routing_key"] == "k"
    (death,) = message.headers["x-death"]
    assert death.pop("time")
    assert death == {
        "queue": "q",
        "reason": reason,
        "count": 1,
        "exchange": "e",
        "routing-keys": ["k"],
    }
    assert message.headers["x-first-death-queue"] == "q"
    assert message.headers["x-first-death-reason"] == reason
    assert message.headers["x-first-death-exchange"] == "e"
    message.ack()
    assert get(connection, "dead") is None


def test_a_dead_letter_may_get_another_key(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    _dying(connection, queue_arguments={"x-dead-letter-routing-key": "graves"})
    publish(connection, "x")
    get(connection).reject()
    message = get(connection, "dead")
    assert message.delivery_info["routing_key"] == "graves"
    assert message.headers["x-death"][0]["routing-keys"] == ["q"]  # what it was published with


def test_the_default_exchange_leads_a_dead_letter_to_a_queue(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    declare(connection, "dead")
    declare(
        connection,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"},
    )
    publish(connection, "x")
    get(connection).reject()
    assert get(connection, "dead").payload == "x"


def test_a_dead_letter_is_ready_like_any_other_message(sqlqueue: Broker) -> None:
    """It wakes a consumer that sleeps."""
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    _dying(connection)
    publish(connection, "x")
    found: list[Any] = []
    with collecting(other, "dead", into=found):
        later = threading.Timer(0.05, get(connection).reject)
        later.start()
        began_s = time.monotonic()
        other.drain_events(timeout=10)
        took_s = time.monotonic() - began_s
        later.join()
    print(f"rejected after 0.05 s, delivered as a dead letter after {took_s:.3f} s")
    assert found == ["x"]
    assert took_s < 0.9  # the safety look of a sleeper comes once a second


def test_every_queue_of_the_dead_letter_exchange_gets_the_message(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    _dying(connection)
    declare(connection, "dead too", exchange=Exchange("dlx", "topic"), routing_key="q")
    publish(connection, "x")
    get(connection).reject()
    assert (get_all(connection, "dead"), get_all(connection, "dead too")) == (["x"], ["x"])
    assert _rows(connection) == []


def test_a_job_that_was_rejected_moves_and_is_no_dead_letter_of_ours(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    _dying(connection)
    publish(connection, "x", headers={"task": "tasks.stamp", "id": "1"})
    get(connection).reject()
    assert _rows(connection) == [("dead", "pending")]


def test_a_retry_loop_counts_its_rounds(sqlqueue: Broker, frozen: Any) -> None:
    """Rejected into a queue that waits, and expired from there back to where it was."""
    connection = sqlqueue.connect()
    declare(
        connection,
        "work",
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"},
    )
    declare(
        connection,
        "wait",
        message_ttl=60,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work"},
    )
    publish(connection, "x", "work")
    with collecting(connection, "elsewhere", channel=connection.channel()):
        for _ in range(3):
            wait_until(lambda: turn(connection) or get(connection, "work")).reject()
            assert get(connection, "work") is None
            frozen.tick(timedelta(seconds=61))
        message = wait_until(lambda: turn(connection) or get(connection, "work"))
    deaths = [(one["queue"], one["reason"], one["count"]) for one in message.headers["x-death"]]
    assert deaths == [("wait", "expired", 3), ("work", "rejected", 3)]
    assert message.headers["x-first-death-queue"] == "work"
    assert message.headers["x-first-death-reason"] == "rejected"


def test_an_expired_dead_letter_does_not_expire_again(sqlqueue: Broker, frozen: Any) -> None:
    """RabbitMQ takes the expiration away, or it would be dead on arrival."""
    connection = sqlqueue.connect()
    _dying(connection)
    publish(connection, "x", expiration=60)
    frozen.tick(timedelta(seconds=61))
    with collecting(connection, "elsewhere", channel=connection.channel()):
        message = wait_until(lambda: turn(connection) or get(connection, "dead"))
    message.requeue()
    frozen.tick(timedelta(seconds=3600))
    assert get(connection, "dead").payload == "x"


def test_a_cycle_of_dead_letters_without_a_rejection_ends(sqlqueue: Broker, frozen: Any) -> None:
    """A queue that is its own dead-letter queue: RabbitMQ drops what expires in a circle."""
    connection = sqlqueue.connect()
    declare(
        connection,
        message_ttl=60,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"},
    )
    publish(connection, "x")
    with collecting(connection, "elsewhere", channel=connection.channel()):
        frozen.tick(timedelta(seconds=61))
        wait_until(lambda: turn(connection) or not _rows(connection), what="an empty file")


def test_a_full_queue_that_is_its_own_dead_letter_queue_ends_somewhere(sqlqueue: Broker) -> None:
    """Also with a message that somebody did reject, once."""
    connection = sqlqueue.connect()
    declare(
        connection,
        max_length=1,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"},
    )
    publish(connection, "rejected once")
    get(connection).reject()
    publish(connection, "newer")
    assert declared(connection).message_count == 1


def test_dead_letter_queues_that_are_full_do_not_keep_a_message_from_dying(
    sqlqueue: Broker, frozen: Any
) -> None:
    connection = sqlqueue.connect()
    exchange = Exchange("dlx", "fanout")
    refusing = {"x-overflow": "reject-publish"}
    for name in ("first", "second"):
        declare(connection, name, exchange=exchange, max_length=0, queue_arguments=refusing)
    declare(connection, message_ttl=60, queue_arguments={"x-dead-letter-exchange": "dlx"})
    publish(connection, "rejected")
    get(connection).reject()
    publish(connection, "expired")
    frozen.tick(timedelta(seconds=61))
    with collecting(connection, "elsewhere", channel=connection.channel()):
        wait_until(lambda: turn(connection) or not _rows(connection), what="the end of both")


def test_a_dead_letter_for_a_queue_that_went_stays_where_it_is_seen(sqlqueue: Broker) -> None:
    connection, other = sqlqueue.connect(), sqlqueue.connect()
    declare(other, "dead", exclusive=True)
    declare(
        connection,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"},
    )
    publish(connection, "x", headers={"task": "tasks.stamp", "id": "1"})
    other.release()
    get(connection).reject()
    store = connection.default_channel.store
    assert rows_of(store, "SELECT queue, state FROM message") == [("q", "permanently_failed")]


@pytest.mark.parametrize("exchange", ["nowhere", "unbound"])
def test_a_dead_letter_exchange_that_leads_nowhere_leaves_the_job_with_the_dead_letters(
    sqlqueue: Broker, exchange: str
) -> None:
    connection = sqlqueue.connect()
    connection.default_channel.exchange_declare("unbound", "fanout")
    declare(connection, queue_arguments={"x-dead-letter-exchange": exchange})
    publish(connection, "x", headers={"task": "tasks.stamp", "id": "1"})
    get(connection).reject()
    store = connection.default_channel.store
    assert rows_of(store, "SELECT queue, state FROM message") == [("q", "permanently_failed")]
