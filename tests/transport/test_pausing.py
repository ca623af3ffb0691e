"""Paused queues: nobody claims from them, and everything else goes on."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import kombu
import pytest

from sqlqueue_transport.errors import InvalidMessage, NotDeclared
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.store import Store
from tests.support import FakeClock, wait_until
from tests.transport.rows import FAULT, LEASE_S, claim_one, ended, publish, row, rows_of, state_of


def _claim(store: Store, *queues: str, limit: int = 1) -> list[int]:
    claim = store.claim(queues or ("default",), limit, lease_s=LEASE_S)
    return [one.message_id for one in claim.deliveries]


@pytest.fixture
def queue(store: Store) -> str:
    store.topology.declare_queue("default")
    return "default"


def test_nothing_is_claimed_from_a_paused_queue_until_it_is_resumed(
    store: Store, queue: str
) -> None:
    message_id = publish(store)
    assert store.pausing.pause(queue, actor="ann")
    assert (_claim(store), store.has_work([queue])) == ([], False)
    assert store.pausing.resume(queue, actor="ann")
    assert store.has_work([queue])
    assert _claim(store) == [message_id]


def test_other_queues_of_the_same_claim_are_not_paused(store: Store, queue: str) -> None:
    publish(store)
    other = publish(store, "other")
    store.pausing.pause(queue, actor="ann")
    claim = store.claim([queue, "other"], 5, lease_s=LEASE_S)
    assert [one.message_id for one in claim.deliveries] == [other]
    assert not claim.more


def test_a_claim_that_settles_something_obeys_the_pause_too(store: Store, queue: str) -> None:
    publish(store)
    publish(store)
    first = claim_one(store)
    store.pausing.pause(queue, actor="ann")
    claim = store.claim([queue], 1, lease_s=LEASE_S, settlements=[ended(first, Outcome.done())])
    assert (claim.deliveries, claim.refused) == ([], [])
    assert state_of(store, first.message_id) is State.DONE


def test_what_runs_ends_as_ever_and_waits_in_the_paused_queue(store: Store, queue: str) -> None:
    message_id = publish(store)
    running = claim_one(store)
    store.pausing.pause(queue, actor="ann")
    assert store.settle([ended(running, Outcome.retry(FAULT, in_s=0))]) == []
    assert state_of(store, message_id) is State.FAILED
    assert _claim(store) == []


def test_publishing_promoting_and_expiring_go_on(
    store: Store, queue: str, clock: FakeClock
) -> None:
    store.pausing.pause(queue, actor="ann")
    due = publish(store, due_at_ms=clock.wall + 1000)
    expiring = publish(store, expires_at_ms=clock.wall + 1000)
    clock.advance(2)
    assert _claim(store, queue, "other") == []
    store.consumers.sweep()
    assert state_of(store, due) is State.PENDING
    assert state_of(store, expiring) is State.EXPIRED


def test_pausing_twice_is_told_and_written_down_once(
    store: Store, queue: str, clock: FakeClock
) -> None:
    assert store.pausing.pause(queue, actor="ann", reason="mail is down")
    since_ms = clock.wall
    clock.advance(5)
    assert not store.pausing.pause(queue, actor="bob")
    assert store.pausing.resume(queue, actor="bob")
    assert not store.pausing.resume(queue, actor="bob")
    assert rows_of(store, "SELECT at_ms, actor, action, message_id, reason, before, after FROM audit") == [
        (since_ms, "ann", "pause queue default", None, "mail is down", "running", "paused"),
        (clock.wall, "bob", "resume queue default", None, None, "paused", "running"),
    ]  # fmt: skip


def test_readers_are_told_since_when_by_whom_and_why(
    store: Store, queue: str, clock: FakeClock
) -> None:
    publish(store)
    publish(store, due_at_ms=clock.wall + 1000)
    store.pausing.pause(queue, actor="ann", reason="mail is down")
    (found,) = store.reading.queues()
    assert found.pause is not None
    assert (found.pause.since_ms, found.pause.actor, found.pause.reason) == (
        clock.wall,
        "ann",
        "mail is down",
    )
    assert store.reading.paused() == {queue: 2}
    store.pausing.resume(queue, actor="ann")
    assert (store.reading.queues()[0].pause, store.reading.paused()) == (None, {})


def test_a_queue_that_does_not_exist_is_not_paused(store: Store) -> None:
    with pytest.raises(NotDeclared, match="there is no queue 'defualt'"):
        store.pausing.pause("defualt", actor="ann")
    with pytest.raises(NotDeclared):
        store.pausing.resume("defualt", actor="ann")
    assert rows_of(store, "SELECT * FROM audit") == []
    assert store.reading.queues() == []


def test_a_queue_that_nobody_declared_but_in_which_messages_lie_can_be_paused(store: Store) -> None:
    publish(store, "wild")
    assert store.pausing.pause("wild", actor="ann")
    assert _claim(store, "wild") == []


@pytest.mark.parametrize(
    "given", [{"auto_delete": True}, {"exclusive": True}, {"arguments": {"x-expires": 60_000}}]
)
def test_the_mailbox_of_a_program_cannot_be_paused(store: Store, given: dict[str, object]) -> None:
    store.topology.declare_queue("mailbox", **given)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="only queues of jobs"):
        store.pausing.pause("mailbox", actor="ann")


def test_a_queue_made_anew_is_not_paused(store: Store, queue: str) -> None:
    store.pausing.pause(queue, actor="ann")
    store.topology.declare_queue(queue)  # which a worker does at its start
    assert store.reading.paused() == {queue: 0}
    store.topology.delete_queue(queue)
    store.topology.declare_queue(queue)
    assert store.reading.paused() == {}


def test_what_waits_in_a_paused_queue_is_not_unfinished_but_what_runs_there_is(
    store: Store, queue: str, clock: FakeClock
) -> None:
    publish(store)
    running = claim_one(store)
    publish(store)
    publish(store, due_at_ms=clock.wall + 1000)
    store.pausing.pause(queue, actor="ann")
    assert store.reading.unfinished_since_ms([queue]) == 0
    store.settle([ended(running, Outcome.done())])
    assert store.reading.unfinished_since_ms([queue]) is None
    store.pausing.resume(queue, actor="ann")
    assert store.reading.unfinished_since_ms([queue]) == 0


def test_who_sleeps_is_woken_when_a_queue_is_resumed(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue.db")
    store.topology.declare_queue("default")
    store.consumers.register(name="w", kind="child")
    publish(store)
    store.pausing.pause("default", actor="ann")
    bell = store.consumers.bell
    assert bell is not None
    heard: list[bool] = []

    def sleep() -> None:
        heard.append(store.consumers.sleep(["default"], 30, has_work=store.has_work))

    before = bell.heard
    thread = threading.Thread(target=sleep)
    thread.start()
    wait_until(lambda: bell._somebody_listens, what="the sleep")
    store.pausing.resume("default", actor="ann")
    thread.join(timeout=30)
    # Told, and not found by the look that follows a sleep of a second.
    assert (heard, bell.heard - before) == ([True], 1)
    store.close()


def test_all_who_sleep_for_it_are_woken_because_each_takes_only_its_share(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "queue.db") for _ in range(3)]
    stores[0].topology.declare_queue("default")
    stores[0].pausing.pause("default", actor="ann")
    for store in stores[1:]:
        store.consumers.register(name="w", kind="child")
        slot, _ = store.consumers.ready_to_sleep()
        store.consumers.sleepers.lie_down(slot, ["default"], 30)
    presence = stores[0].consumers.presence
    assert len(list(presence.sleepers("default", None))) == 2
    stores[0].pausing.resume("default", actor="ann")
    assert list(presence.sleepers("default", None)) == []
    for store in stores:
        store.close()


def test_the_name_of_a_paused_queue_may_hold_anything(store: Store) -> None:
    name = "'; DROP TABLE queue; --"
    publish(store, name)
    assert store.pausing.pause(name, actor="ann\udcff", reason="\x1b[31m\udce4")
    assert store.reading.paused() == {name: 1}
    assert row(store, 1)["state"] == "pending"


def test_a_plain_consumer_of_kombu_gets_nothing_from_a_paused_queue(tmp_path: Path) -> None:
    with kombu.Connection(f"sqlqueue:///{tmp_path}/queue.db") as connection:
        store = connection.default_channel.store
        connection.SimpleQueue("q").put("hello")
        store.pausing.pause("q", actor="ann")
        assert connection.default_channel.basic_get("q") is None
        found: list[str] = []

        def on_message(body: str, message: kombu.Message) -> None:
            found.append(body)
            message.ack()

        with connection.Consumer([kombu.Queue("q")], callbacks=[on_message]):
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0.3)
            store.pausing.resume("q", actor="ann")
            connection.drain_events(timeout=10)
        assert found == ["hello"]
