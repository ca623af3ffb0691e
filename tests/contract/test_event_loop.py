"""Kombu's event loop, which Celery's workers run on: messages arrive without being polled for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import kombu
import pytest
from kombu import Consumer, Producer, Queue
from kombu.asynchronous import Hub, set_event_loop

from tests.contract.conftest import Broker, OtherProcess
from tests.contract.verbs import (
    collecting,
    get,
    publish,
)

FAR_S = 60  # a timer that is not due; the loop then sleeps for ten seconds, its longest


@pytest.fixture
def hub() -> Iterator[Hub]:
    loop = Hub()
    set_event_loop(loop)
    yield loop
    set_event_loop(None)
    loop.close()


def _run(hub: Hub, until: Callable[[], object], *, deadline_s: float = 30) -> int:
    """Turn the loop until a condition holds; return how many turns it took."""
    give_up_s = time.monotonic() + deadline_s
    turns = 0
    while not until():
        assert time.monotonic() < give_up_s, "the loop turned in vain"
        hub.run_once()
        turns += 1
    return turns


def _turns_in(hub: Hub, seconds: float) -> int:
    """Turn the loop for some time; return how often it turned."""
    wanted_s = time.monotonic() + seconds
    hub.call_later(seconds, lambda: None)  # or its last sleep might be long
    return _run(hub, lambda: time.monotonic() >= wanted_s)


def _registered(broker: Broker, hub: Hub, **options: Any) -> kombu.Connection:
    connection = broker.connect(**options)
    connection.connect()
    connection.register_with_event_loop(hub)
    return connection


def test_a_transport_says_that_it_is_asynchronous(shared_broker: Broker) -> None:
    connection = shared_broker.connect()
    assert connection.transport.implements.asynchronous is True
    assert connection.is_evented is True


def test_what_waits_is_delivered_by_the_loop_in_order(shared_broker: Broker, hub: Hub) -> None:
    connection = _registered(shared_broker, hub)
    for number in range(10):
        publish(shared_broker.connect(), number)
    found: list[Any] = []
    with collecting(connection, into=found):
        _run(hub, lambda: len(found) == 10)
    assert found == list(range(10))


@pytest.mark.parametrize("scheduled", [True, False], ids=["a far timer", "nothing scheduled"])
def test_a_message_of_another_process_does_not_wait_for_the_loop(
    shared_broker: Broker, hub: Hub, scheduled: bool
) -> None:
    connection = _registered(shared_broker, hub)
    there = OtherProcess(shared_broker.url)
    there("setattr(sys, 'now', __import__('time').monotonic)")
    if scheduled:
        hub.call_later(FAR_S, lambda: None)
    took_s: list[float] = []
    say_so = "Producer(channel).publish(sys.now(), routing_key='q')"
    with collecting(connection) as consumer:
        consumer.callbacks = [
            lambda sent_s, message: (took_s.append(time.monotonic() - sent_s), message.ack())
        ]
        _turns_in(hub, 0.1)
        for count in range(1, 16):
            later = threading.Timer(0.03, there, (say_so,))
            later.start()
            _run(hub, lambda count=count: len(took_s) == count)
            later.join()
    took_s.sort()
    print(
        f"published in another process, delivered after: p50 {took_s[7]:.4f} s, max {took_s[-1]:.4f} s"
    )
    assert took_s[7] < 0.1
    assert took_s[-1] < 0.9


def test_messages_go_on_arriving_while_the_loop_has_other_work(
    shared_broker: Broker, hub: Hub
) -> None:
    connection, other = _registered(shared_broker, hub), shared_broker.connect()
    found: list[Any] = []
    ticks: list[int] = []
    timer = hub.call_repeatedly(0.001, ticks.append, 1)
    with collecting(connection, into=found):
        for number in range(20):
            publish(other, number)
            hub.run_once()
        _run(hub, lambda: len(found) == 20)
    timer.cancel()
    assert sorted(found) == list(range(20))
    assert ticks


def test_two_connections_share_a_loop(shared_broker: Broker, hub: Hub) -> None:
    """As a worker's own and its remote control's do."""
    found: dict[str, list[Any]] = {"a": [], "b": []}
    with contextlib.ExitStack() as consuming:
        for name, into in found.items():
            connection = _registered(shared_broker, hub)
            consuming.enter_context(collecting(connection, name, into=into))
        other = shared_broker.connect()
        for number in range(5):
            for name in found:
                publish(other, number, name)
        _run(hub, lambda: all(len(into) == 5 for into in found.values()))
    assert found == {"a": list(range(5)), "b": list(range(5))}


def test_a_prefetch_count_holds_on_the_loop(shared_broker: Broker, hub: Hub) -> None:
    connection, other = _registered(shared_broker, hub), shared_broker.connect()
    for number in range(5):
        publish(other, number)
    held: list[Any] = []
    consumer = Consumer(
        connection.default_channel, [Queue("q")], on_message=held.append, prefetch_count=2
    )
    with consumer:
        _run(hub, lambda: len(held) == 2)
        _turns_in(hub, 0.2)
        assert [message.payload for message in held] == [0, 1]
        held[0].ack()
        _run(hub, lambda: len(held) == 3)


def test_registering_again_leaves_no_old_timer_behind(shared_broker: Broker, hub: Hub) -> None:
    connection = _registered(shared_broker, hub)
    _turns_in(hub, 0.05)
    before = _entries(hub)
    for _ in range(3):
        connection.register_with_event_loop(hub)
        _turns_in(hub, 0.05)
    after = _entries(hub)
    assert after["timers"] == before["timers"]
    assert after["readers"] == before["readers"]


def _entries(hub: Hub) -> dict[str, int]:
    """Count what a loop looks after."""
    return {
        "timers": sum(not scheduled.entry.canceled for scheduled in hub.timer._queue),
        "ticks": len(hub.on_tick),
        "readers": len(hub.readers),
        "writers": len(hub.writers),
    }


# == on ours ========================================================================================


def test_connecting_anew_leaves_nothing_of_the_old_connection_behind(
    sqlqueue: Broker, hub: Hub
) -> None:
    connection = _registered(sqlqueue, hub)
    found: list[Any] = []
    with collecting(connection, into=found):
        hub.run_once()
        before = _entries(hub)
    for number in range(3):
        connection.release()
        connection.connect()
        connection.register_with_event_loop(hub)
        publish(sqlqueue.connect(), number)
        with collecting(connection, into=found):
            _run(hub, lambda number=number: len(found) == number + 1)
            assert _entries(hub) == before
    assert found == [0, 1, 2]


def test_a_closed_connection_is_not_looked_after_any_more(sqlqueue: Broker, hub: Hub) -> None:
    before = _entries(hub)
    connection = _registered(sqlqueue, hub)
    collecting(connection).consume()
    hub.run_once()
    connection.release()
    assert _entries(hub) == before
    assert _turns_in(hub, 0.2) < 20


@pytest.mark.parametrize("no_ack", [False, True], ids=["acknowledged", "without acknowledgement"])
def test_several_messages_are_delivered_in_one_turn(
    sqlqueue: Broker, hub: Hub, no_ack: bool
) -> None:
    connection, other = _registered(sqlqueue, hub), sqlqueue.connect()
    producer = Producer(other.default_channel)
    with producer.batch():
        for number in range(200):
            producer.publish(number, routing_key="q")
    found: list[Any] = []
    began_s = time.monotonic()
    with collecting(connection, into=found, no_ack=no_ack):
        turns = _run(hub, lambda: len(found) == 200)
    took_s = time.monotonic() - began_s
    print(f"200 messages in {turns} turns of the loop and {took_s:.3f} s")
    assert found == list(range(200))
    assert turns <= 100
    assert took_s < 2.5  # no sleep between the turns


def test_a_turn_ends_so_that_the_loop_can_do_its_other_work(sqlqueue: Broker, hub: Hub) -> None:
    """However much is waiting."""
    connection, other = _registered(sqlqueue, hub), sqlqueue.connect()
    producer = Producer(other.default_channel)
    with producer.batch():
        for number in range(1000):
            producer.publish(number, routing_key="q")
    found: list[Any] = []
    with collecting(connection, into=found):
        _run(hub, lambda: found)
    assert len(found) < 500


@pytest.mark.parametrize("scheduled", [True, False], ids=["a far timer", "nothing scheduled"])
def test_a_message_that_becomes_due_does_not_wait_for_the_loop(
    sqlqueue: Broker, hub: Hub, scheduled: bool
) -> None:
    connection = _registered(sqlqueue, hub)
    if scheduled:
        hub.call_later(FAR_S, lambda: None)
    found: list[Any] = []
    with collecting(connection, into=found):
        due = datetime.now(timezone.utc) + timedelta(seconds=0.3)
        publish(sqlqueue.connect(), "x", headers={"eta": due.isoformat()})
        _run(hub, lambda: found)
        late_s = (datetime.now(timezone.utc) - due).total_seconds()
    print(f"delivered {late_s:.4f} s after it was due")
    assert 0 <= late_s < 0.5


def test_a_message_that_came_before_the_consumer_is_not_forgotten(
    sqlqueue: Broker, hub: Hub
) -> None:
    connection = _registered(sqlqueue, hub)
    hub.call_later(FAR_S, lambda: None)
    publish(sqlqueue.connect(), "x")
    found: list[Any] = []
    began_s = time.monotonic()
    with collecting(connection, into=found):
        _run(hub, lambda: found)
    assert time.monotonic() - began_s < 0.9


def test_a_message_that_is_requeued_elsewhere_does_not_wait_for_the_loop(
    sqlqueue: Broker, hub: Hub
) -> None:
    connection, other = _registered(sqlqueue, hub), sqlqueue.connect()
    publish(other, "x")
    held = get(other)
    hub.call_later(FAR_S, lambda: None)
    found: list[Any] = []
    with collecting(connection, into=found):
        _turns_in(hub, 0.1)
        later = threading.Timer(0.05, held.requeue)
        later.start()
        began_s = time.monotonic()
        _run(hub, lambda: found)
        took_s = time.monotonic() - began_s
        later.join()
    print(f"requeued after 0.05 s, delivered after {took_s:.3f} s")
    assert found == ["x"]
    assert took_s < 0.9


def test_acknowledgements_of_other_threads_make_room_and_wake_the_loop(
    sqlqueue: Broker, hub: Hub
) -> None:
    connection, other = _registered(sqlqueue, hub), sqlqueue.connect()
    for number in range(4):
        publish(other, number)
    hub.call_later(FAR_S, lambda: None)
    found: list[Any] = []
    threads: list[threading.Thread] = []

    def on_message(body: Any, message: Any) -> None:
        found.append(body)
        threads.append(threading.Timer(0.03, message.ack))
        threads[-1].start()

    began_s = time.monotonic()
    consumer = Consumer(
        connection.default_channel, [Queue("q")], callbacks=[on_message], prefetch_count=1
    )
    with consumer:
        _run(hub, lambda: len(found) == 4)
    took_s = time.monotonic() - began_s
    for thread in threads:
        thread.join()
    print(f"4 messages, acknowledged by threads after 0.03 s each: {took_s:.3f} s")
    assert found == [0, 1, 2, 3]
    assert took_s < 0.9  # the safety look of a sleeper comes once a second


@pytest.mark.parametrize("state", ["idle", "full", "not consuming"])
def test_a_loop_with_nothing_to_deliver_sleeps(sqlqueue: Broker, hub: Hub, state: str) -> None:
    connection, other = _registered(sqlqueue, hub), sqlqueue.connect()
    held: list[Any] = []
    consumer = Consumer(
        connection.default_channel, [Queue("q")], on_message=held.append, prefetch_count=1
    )
    if state != "not consuming":
        consumer.consume()
    if state != "idle":
        publish(other, "x")
        publish(other, "y")
    if state == "full":
        _run(hub, lambda: held)
    _turns_in(hub, 0.1)
    began_s = time.process_time()
    turns = _turns_in(hub, 1)
    print(f"{state}: {turns} turns a second, {time.process_time() - began_s:.4f} s of CPU")
    assert turns < 50


def test_what_a_callback_raises_passes_through_the_loop(sqlqueue: Broker, hub: Hub) -> None:
    """And leaves the loop and the connection in order."""
    connection, other = _registered(sqlqueue, hub), sqlqueue.connect()
    publish(other, "bad")
    publish(other, "good")
    found: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        found.append(body)
        message.ack()
        if body == "bad":
            raise ZeroDivisionError

    with Consumer(connection.default_channel, [Queue("q")], callbacks=[on_message]):
        with pytest.raises(ZeroDivisionError):
            _run(hub, lambda: len(found) == 2)
        _run(hub, lambda: len(found) == 2)
    assert found == ["bad", "good"]
