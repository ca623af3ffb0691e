"""Acknowledgements in an event loop: held for the end of its turn, and what that may never cost."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.asynchronous import Hub

from sqlqueue_transport.errors import DiskFault, LeaseLost
from sqlqueue_transport.messages import Outcome, Settlement
from sqlqueue_transport.store import Store
from tests.support import wait_until
from tests.transport.broker import connect, publish, store_of
from tests.transport.rows import rows_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def connection(path: Path) -> Iterator[kombu.Connection]:
    with connect(path, visibility_timeout=600) as opened:
        yield opened


def states(store: Store) -> list[str]:
    return [state for (state,) in rows_of(store, "SELECT state FROM message ORDER BY id")]


def fill(connection: kombu.Connection, count: int) -> None:
    for number in range(count):
        publish(connection, "q", number)


def consume(
    connection: kombu.Connection,
    hub: Hub,
    callback: Callable[[Any], object],
    *,
    prefetch: int = 10,
) -> Any:
    """Consume in the loop; return the channel."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=prefetch)
    channel.basic_consume("q", False, callback)
    connection.register_with_event_loop(hub)
    return channel


def turn_until(hub: Hub, condition: Callable[[], object]) -> None:
    wait_until(lambda: (hub.run_once(), condition())[1], deadline_s=20)


def refuse(*_: Any, **__: Any) -> None:
    message = "disk full"
    raise DiskFault(message)


def test_acknowledgements_are_committed_with_the_claim_that_uses_their_room(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    fill(connection, 40)
    consume(connection, hub, lambda one: hub.call_soon(one.ack), prefetch=4)
    turn_until(hub, lambda: "done" in states(other))
    store = store_of(connection)
    before, done = store.database.write_transactions, states(other).count("done")
    turn_until(hub, lambda: states(other) == ["done"] * 40)
    writes = store.database.write_transactions - before
    print(f"{40 - done} messages at a prefetch of 4: {writes} transactions")
    assert writes <= (40 - done) // 4 + 3


def test_what_was_acknowledged_is_committed_before_the_loop_waits(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    """By whatever it was called: a consumer, `call_soon`, a timer, a reader, another's tick."""
    held: list[Any] = []
    reading, writing = os.pipe()
    ways: list[Callable[[Any], object]] = [
        lambda one: one.ack(),
        lambda one: hub.call_soon(one.ack),
        lambda one: hub.call_later(0.01, one.ack),
        lambda one: (held.append(one), os.write(writing, b"!")),
        lambda one: hub.on_tick.add(functools.partial(tick, one)),
    ]

    def read() -> None:
        os.read(reading, 1)
        held.pop().ack()

    def tick(one: Any) -> None:
        if one._state == "RECEIVED":
            one.ack()

    hub.add_reader(reading, read)
    consume(connection, hub, lambda one: ways[int(one.body)](one))
    fill(connection, len(ways))
    waits_with_acks: list[int] = []
    poll = hub.poller.poll

    def watched(timeout_s: float) -> Any:
        byte = select.poll()
        byte.register(connection.transport._loop_side._reading, select.POLLIN)
        if connection.transport.acks and not byte.poll(0):
            waits_with_acks.append(len(waits_with_acks))
        return poll(timeout_s)

    hub.poller.poll = watched
    turn_until(hub, lambda: states(other) == ["done"] * len(ways))
    hub.remove_reader(reading)
    for descriptor in (reading, writing):
        os.close(descriptor)
    assert waits_with_acks == []


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_what_a_turn_acknowledged_is_committed_when_it_ends(
    connection: kombu.Connection, hub: Hub, other: Store, raises: bool
) -> None:
    def take(one: Any) -> None:
        one.ack()
        if raises:
            raise ZeroDivisionError

    consume(connection, hub, take)
    fill(connection, 1)
    with pytest.raises(ZeroDivisionError) if raises else contextlib.nullcontext():
        connection.transport._loop_side.turn()
    assert states(other) == ["done"]


def test_an_acknowledgement_is_committed_although_the_loops_thread_hangs(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    took_s: list[float] = []

    def acknowledge_and_hang(one: Any) -> None:
        one.ack()
        began_s = time.monotonic()
        assert states(other) == ["processing"]
        wait_until(lambda: states(other) == ["done"])
        took_s.append(time.monotonic() - began_s)

    consume(connection, hub, acknowledge_and_hang)
    fill(connection, 1)
    turn_until(hub, lambda: took_s)
    print(f"committed by another thread after {took_s[0]:.2f} s")
    assert took_s[0] < 5 * 1.0


def test_no_acknowledgement_waits_behind_a_call_that_is_not_short(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    seen: list[list[str]] = []

    def slow(one: Any) -> None:
        seen.append(states(other))
        one.ack()
        time.sleep(0.005)

    channel = consume(connection, hub, slow)
    channel._batch = 8
    fill(connection, 3)
    turn_until(hub, lambda: len(seen) == 3)
    assert [one.count("done") for one in seen] == [0, 1, 2]


@pytest.mark.parametrize("verb", ["publish", "reject", "extend", "recover", "claim"])
def test_what_this_connection_does_next_comes_after_its_acknowledgements(
    connection: kombu.Connection, hub: Hub, other: Store, verb: str
) -> None:
    seen: list[list[str]] = []
    held: list[Any] = []

    def take(one: Any) -> None:
        if not held:
            held.append(one)
            return
        one.ack()
        assert states(other) == ["processing", "processing"]
        {
            "publish": lambda: publish(connection, "elsewhere"),
            "reject": held[0].reject,
            "extend": lambda: channel.extend(held[0].delivery_tag, 900),
            "recover": channel.basic_recover,
            "claim": lambda: channel.basic_get("elsewhere"),
        }[verb]()
        seen.append(states(other))
        raise KeyboardInterrupt

    publish(connection, "elsewhere")
    fill(connection, 2)
    other.topology.purge("elsewhere")
    channel = consume(connection, hub, take)
    with pytest.raises(KeyboardInterrupt):
        turn_until(hub, lambda: False)
    if verb == "claim":  # of an empty queue, which writes nothing
        seen = [states(other)]
    assert seen[0][1] == "done"


@pytest.mark.parametrize("ends", ["the channel", "the connection", "the loop", "the turn"])
def test_the_end_of_what_held_it_commits_an_acknowledgement(
    connection: kombu.Connection, hub: Hub, other: Store, ends: str
) -> None:
    held: list[Any] = []
    channel = consume(connection, hub, held.append)
    fill(connection, 1)
    turn_until(hub, lambda: held)
    held[0].ack()
    assert states(other) == ["processing"]
    {
        "the channel": channel.close,
        "the connection": connection.release,
        "the loop": hub.close,
        "the turn": hub.run_once,
    }[ends]()
    assert states(other) == ["done"]


def test_what_a_loop_calls_while_it_closes_is_acknowledged_at_once(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    """Celery's last acknowledgements, when its pool has drained."""
    held: list[Any] = []
    consume(connection, hub, held.append)
    fill(connection, 1)
    turn_until(hub, lambda: held)
    hub.call_soon(held[0].ack)
    hub.close()
    assert states(other) == ["done"]


def test_a_program_that_drains_may_group_its_acknowledgements(path: Path, other: Store) -> None:
    with connect(path, group_acks=True) as connection:
        fill(connection, 40)
        channel = connection.channel()
        channel._batch = 8
        channel.basic_qos(prefetch_count=8)
        channel.basic_consume("q", False, lambda one: one.ack())
        channel.basic_consume("empty", False, lambda one: one.ack())
        store = store_of(connection)
        connection.drain_events(timeout=5)
        before = store.database.write_transactions
        for _ in range(39):
            connection.drain_events(timeout=5)
        assert store.database.write_transactions - before <= 6
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0)
        assert states(other) == ["done"] * 40  # committed before it would have waited


def test_a_grouped_acknowledgement_does_not_need_another_drain(path: Path, other: Store) -> None:
    with connect(path, group_acks=True) as connection:
        fill(connection, 1)
        connection.channel().basic_consume("q", False, lambda one: one.ack())
        connection.drain_events(timeout=5)
        wait_until(lambda: states(other) == ["done"], deadline_s=5 * 1.0)


def test_an_acknowledgement_of_who_only_drains_is_committed_when_it_returns(
    connection: kombu.Connection, other: Store
) -> None:
    fill(connection, 3)
    seen: list[list[str]] = []

    def take(one: Any) -> None:
        one.ack()
        seen.append(states(other))

    channel = connection.channel()
    channel._batch = 8
    channel.basic_consume("q", False, take)
    for _ in range(3):
        connection.drain_events(timeout=5)
    assert [one.count("done") for one in seen] == [1, 2, 3]


IN_A_LOOP = """
import os, signal, sys
import kombu, sqlqueue_transport
from kombu.asynchronous import Hub

hub = Hub()
connection = kombu.Connection(f"sqlqueue:///{sys.argv[1]}")
connection.connect()
connection.register_with_event_loop(hub)

def take(message):
    message.ack()
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit()

connection.default_channel.basic_consume("q", False, take)
while True:
    hub.run_once()
"""


@pytest.mark.parametrize(("end", "state"), [("exits", "done"), ("killed", "pending")])
def test_a_kill_within_the_turn_delivers_again_and_an_exit_does_not(
    path: Path, other: Store, connection: kombu.Connection, end: str, state: str
) -> None:
    fill(connection, 1)
    ran = subprocess.run([sys.executable, "-c", IN_A_LOOP, str(path), end], check=False, timeout=60)
    assert ran.returncode == (-signal.SIGKILL if end == "killed" else 0)
    other.consumers.sweep_all()
    assert states(other) == [state]


def test_a_held_acknowledgement_that_is_late_is_logged_and_spoils_no_other(
    connection: kombu.Connection, hub: Hub, other: Store, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[Any] = []
    channel = consume(connection, hub, held.append)
    fill(connection, 2)
    turn_until(hub, lambda: len(held) == 2)
    channel.store.settle([_handed_back(held[0])])
    for one in held:
        one.ack()
    with caplog.at_level(logging.WARNING):
        connection.transport.acks.settle()
    assert states(other) == ["pending", "done"]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["lease_lost"]


def _handed_back(message: Any) -> Settlement:
    delivery = message.delivery
    return Settlement(delivery.message_id, delivery.delivery, Outcome.release())


def test_a_late_settlement_raises_although_held_ones_ride_along(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    held: list[Any] = []
    channel = consume(connection, hub, held.append)
    fill(connection, 2)
    turn_until(hub, lambda: len(held) == 2)
    channel.store.settle([_handed_back(held[0])])
    held[1].ack()
    with pytest.raises(LeaseLost):
        held[0].reject()
    assert states(other) == ["pending", "done"]


def test_what_a_full_disk_keeps_from_being_committed_is_committed_later(
    connection: kombu.Connection, hub: Hub, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    consume(connection, hub, held.append)
    fill(connection, 1)
    turn_until(hub, lambda: held)
    held[0].ack()
    with monkeypatch.context() as patched:
        patched.setattr(store_of(connection).database, "write", refuse)
        with pytest.raises(DiskFault):
            hub.run_once()
        assert states(other) == ["processing"]
    wait_until(lambda: states(other) == ["done"])  # by the keeper: nobody turns the loop


def test_who_was_taken_for_dead_is_told_and_holds_nothing_back(
    connection: kombu.Connection, hub: Hub, other: Store, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[Any] = []
    consume(connection, hub, held.append, prefetch=1)
    fill(connection, 2)
    turn_until(hub, lambda: held)
    store = store_of(connection)
    held[0].ack()
    store.consumers.end_worker(store.consumers.worker_id)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(connection.connection_errors, match="taken for dead"),
    ):
        hub.run_once()
    assert "lease_lost" in caplog.text
    assert not connection.transport.acks
    assert states(other) == ["pending", "pending"]


def test_a_forked_child_settles_nothing_that_its_parent_holds(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    held: list[Any] = []
    consume(connection, hub, held.append)
    fill(connection, 1)
    turn_until(hub, lambda: held)
    held[0].ack()
    child = os.fork()
    if not child:
        os._exit(bool(connection.transport.acks))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connection.transport.acks
    assert states(other) == ["processing"]
    hub.run_once()
    assert states(other) == ["done"]


def test_other_threads_find_it_committed_when_their_acknowledgement_returns(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    held: list[Any] = []
    consume(connection, hub, held.append)
    fill(connection, 1)
    turn_until(hub, lambda: held)
    thread = threading.Thread(target=held[0].ack)
    thread.start()
    thread.join()
    assert states(other) == ["done"]
