"""The side of a transport that lives in Kombu's event loop: races that no caller can bring about."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.asynchronous import Hub

from sqlqueue_transport.messages import NewMessage
from sqlqueue_transport.store import Store
from tests.support import open_names, wait_until
from tests.transport.broker import connect, store_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def connection(path: Path) -> Iterator[kombu.Connection]:
    with connect(path) as opened:
        yield opened


def consume(connection: kombu.Connection) -> list[Any]:
    seen: list[Any] = []

    def take(message: Any) -> None:
        seen.append(message.body)
        message.ack()

    connection.default_channel.basic_consume("q", False, take)
    return seen


def side_of(connection: kombu.Connection) -> Any:
    return connection.transport._loop_side


def is_readable(descriptor: int) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def test_what_is_published_just_before_the_flag_is_up_is_delivered_in_this_turn(
    connection: kombu.Connection, hub: Hub, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publisher sees no flag and rings nobody, so the look afterwards has to see it."""
    seen = consume(connection)
    connection.register_with_event_loop(hub)
    side = side_of(connection)
    sleepers = store_of(connection).consumers.sleepers
    lie_down = sleepers.lie_down

    def too_late(*arguments: Any) -> int:
        monkeypatch.undo()
        other.publish([NewMessage(b"x", "q")])
        nap: int = lie_down(*arguments)
        return nap

    monkeypatch.setattr(sleepers, "lie_down", too_late)
    side.turn()
    assert seen == [b"x"]


def test_what_is_published_after_the_flag_is_up_rings(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    seen = consume(connection)
    connection.register_with_event_loop(hub)
    side = side_of(connection)
    side.turn()
    assert not is_readable(side._ears)
    other.publish([NewMessage(b"x", "q")])
    assert is_readable(side._ears)
    hub.run_once()  # hears it
    side.turn()
    assert seen == [b"x"]


def test_a_full_loop_watches_its_other_queues_without_looking_at_them_in_each_turn(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    """As a busy worker does its remote control."""
    held: list[Any] = []
    seen = consume(connection)
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("jobs", False, held.append)
    other.publish([NewMessage(b"job", "jobs"), NewMessage(b"job", "jobs")])
    connection.register_with_event_loop(hub)
    side, database = side_of(connection), store_of(connection).database
    wait_until(lambda: (side.turn(), held)[1])
    side.turn()
    before = database.read_transactions
    for _ in range(5):
        side.turn()
    assert database.read_transactions == before

    other.publish([NewMessage(b"control", "q")])
    wait_until(lambda: (hub.run_once(), seen)[1])
    held[0].ack()
    side.turn()
    assert len(held) == 2


def test_a_ring_that_a_sleeping_thread_hears_reaches_the_loop_as_well(
    connection: kombu.Connection, hub: Hub
) -> None:
    connection.connect()
    connection.register_with_event_loop(hub)
    side, bell = side_of(connection), store_of(connection).consumers.bell
    assert bell is not None
    bell.ring()
    assert bell.wait(1.0)  # as a thread that waits for a result does
    assert not is_readable(side._ears)
    assert is_readable(side._reading)


def test_a_message_that_is_due_soon_gets_one_timer_and_not_one_each_turn(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    seen = consume(connection)
    connection.register_with_event_loop(hub)
    other.publish([NewMessage(b"x", "q", due_at_ms=other.clock.wall_ms() + 300)])
    before = len(hub.timer.queue)
    for _ in range(10):
        side_of(connection).turn()
    assert len(hub.timer.queue) - before == 1
    began_s = time.monotonic()
    wait_until(lambda: (hub.run_once(), seen)[1], deadline_s=10)
    assert time.monotonic() - began_s < 5 * 0.3


def test_a_process_that_registers_anew_is_heard_in_the_loop(
    connection: kombu.Connection, hub: Hub, other: Store
) -> None:
    consume(connection)
    connection.register_with_event_loop(hub)
    side = side_of(connection)
    side.turn()
    consumers = store_of(connection).consumers
    consumers.leave()
    side.turn()
    assert consumers.is_registered
    other.publish([NewMessage(b"x", "q")])
    assert is_readable(side._ears)


def test_leaving_the_loop_leaves_nothing_behind(
    connection: kombu.Connection, hub: Hub, path: Path
) -> None:
    consume(connection)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers
    ticks, readers = set(hub.on_tick), dict(hub.readers)
    for _ in range(3):
        connection.register_with_event_loop(hub)
        side_of(connection).turn()
        connection.transport.unregister_from_event_loop(connection.connection, hub)
    left = set(os.listdir("/proc/self/fd")) - before  # noqa: PTH208 - numbers
    assert left == set()
    assert (set(hub.on_tick), dict(hub.readers)) == (ticks, readers)
    assert all(timer.entry.canceled for timer in hub.timer.queue)


def test_a_forked_child_does_not_seem_to_listen(
    connection: kombu.Connection, hub: Hub, path: Path
) -> None:
    """A publisher would take a byte in a FIFO that only the child has open for a wake-up."""
    consume(connection)
    connection.register_with_event_loop(hub)
    side_of(connection).turn()
    assert any("wake." in name for name in open_names(path))
    child = os.fork()
    if not child:
        os._exit(any("wake." in name for name in open_names(path)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    side_of(connection).turn()


def test_a_loop_that_was_left_is_not_woken_by_a_number_that_is_another_files_now(
    connection: kombu.Connection, hub: Hub, tmp_path: Path
) -> None:
    """A pool's thread acknowledges while the loop's own thread closes the connection."""
    connection.connect()
    connection.transport.register_with_event_loop(connection.connection, hub)
    side = side_of(connection)
    connection.transport.unregister_from_event_loop(connection.connection, hub)
    victim = tmp_path / "victim"
    opened = os.open(victim, os.O_RDWR | os.O_CREAT)
    os.dup2(opened, side._writing)
    side.wake()
    assert victim.read_bytes() == b""
    for number in {opened, side._writing}:
        os.close(number)
