"""Claiming: the order, the lease, what is due, what is over, and how little it writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sqlqueue_transport import store as store_module
from sqlqueue_transport.errors import WorkerSwept
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Outcome, make_tag, split_tag
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import (
    FAULT,
    attempts_of,
    claim_one,
    ended,
    new,
    publish,
    row,
    rows_of,
    state_of,
    vanish,
)


@pytest.fixture
def other(store: Store, clock: FakeClock) -> Iterator[Store]:
    """Another process's store, as far as the file can tell."""
    opened = Store(store.path, clock=clock)
    yield opened
    opened.close()


def _drain(store: Store, *queues: str, limit: int = 1) -> list[int]:
    found: list[int] = []
    while taken := store.claim(queues or ["default"], limit, lease_s=60).deliveries:
        found += [one.message_id for one in taken]
    return found


# -- order ------------------------------------------------------------------------------------------


def test_higher_priorities_come_first_and_within_one_the_oldest(store: Store) -> None:
    published = [(priority, publish(store, priority=priority)) for priority in [*range(10)] * 3]
    expected = [number for _, number in sorted(published, key=lambda one: (-one[0], one[1]))]
    assert _drain(store) == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_the_order_is_the_same_however_many_are_taken_at_once(store: Store, limit: int) -> None:
    published = [(number % 3, publish(store, priority=number % 3)) for number in range(10)]
    expected = [number for _, number in sorted(published, key=lambda one: (-one[0], one[1]))]
    assert _drain(store, limit=limit) == expected


def test_a_released_message_stands_where_it_stood(store: Store) -> None:
    first, second, third = (publish(store) for _ in range(3))
    taken = claim_one(store)
    store.settle([ended(taken, Outcome.release())])
    assert _drain(store) == [first, second, third]


def test_a_delivery_says_since_when_it_was_ready(store: Store, clock: FakeClock) -> None:
    enqueued = clock.wall
    first = publish(store)
    clock.advance(2)
    taken = claim_one(store)
    assert taken.ready_since_ms == enqueued
    store.settle([ended(taken, Outcome.retry(FAULT, in_s=5))])
    due = clock.wall + 5000
    clock.advance(60)
    taken = claim_one(store)
    assert taken.ready_since_ms == due
    store.settle([ended(taken, Outcome.dead(FAULT))])
    # When an operator requeued it stands in the audit, not in its row.
    store.acting.act(Event.REQUEUE, [(first, State.PERMANENTLY_FAILED)], actor="test")
    assert claim_one(store).ready_since_ms is None


def test_a_due_time_before_its_own_publishing_makes_nothing_wait_longer(
    store: Store, clock: FakeClock
) -> None:
    publish(store, due_at_ms=1000)
    assert claim_one(store).ready_since_ms == clock.wall


def test_a_retried_message_that_is_due_again_stands_where_it_stood(
    store: Store, clock: FakeClock
) -> None:
    first, second = publish(store), publish(store)
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=5))])
    third = publish(store)
    clock.advance(5)
    assert _drain(store) == [first, second, third]


def test_a_requeued_message_stands_where_it_stood(store: Store) -> None:
    first, second = publish(store), publish(store)
    store.settle([ended(claim_one(store), Outcome.dead(FAULT))])
    store.acting.act(Event.REQUEUE, [(first, State.PERMANENTLY_FAILED)], actor="test")
    assert _drain(store) == [first, second]


def test_what_a_dead_worker_had_only_claimed_stands_where_it_stood(
    store: Store, other: Store
) -> None:
    ids = [publish(store) for _ in range(4)]
    other.claim(["default"], 2, lease_s=60)
    vanish(other)
    store.consumers.sweep()
    assert _drain(store) == ids


def test_queues_are_asked_in_the_order_given(store: Store) -> None:
    low, high = publish(store, "low", priority=9), publish(store, "high", priority=0)
    assert _drain(store, "high", "low") == [high, low]


def test_the_limit_counts_over_all_queues(store: Store) -> None:
    for queue in ("a", "a", "b", "b"):
        publish(store, queue)
    claim = store.claim(["a", "b"], 3, lease_s=60)
    assert [one.queue for one in claim.deliveries] == ["a", "a", "b"]
    assert claim.more


def test_other_queues_are_left_alone(store: Store) -> None:
    message_id = publish(store, "theirs")
    assert not store.claim(["ours"], 5, lease_s=60).deliveries
    assert state_of(store, message_id) is State.PENDING


@pytest.mark.parametrize(("ready", "limit", "more"), [(0, 1, False), (1, 1, False), (2, 1, True),
                                                      (3, 3, False), (4, 3, True)])  # fmt: skip
def test_more_says_whether_another_consumer_is_worth_waking(
    store: Store, ready: int, limit: int, more: bool
) -> None:
    for _ in range(ready):
        publish(store)
    assert store.claim(["default"], limit, lease_s=60).more is more


# -- the lease --------------------------------------------------------------------------------------


def test_a_claim_writes_down_who_holds_it_and_how_long(store: Store, clock: FakeClock) -> None:
    message_id = publish(store)
    claim_one(store, lease_s=12.5)
    found = row(store, message_id)
    assert found["state"] == "processing"
    assert found["worker_id"] == store.consumers.worker_id
    assert found["lease_until_ms"] == clock.lease + 12_500
    assert found["started_at_ms"] == clock.wall
    assert found["delivery"] == 1


def test_a_claim_counts_no_attempt(store: Store) -> None:
    """Counted at the claim, neighbours of a poison job would go to the dead letters with it."""
    message_id = publish(store)
    for _ in range(30):
        taken = claim_one(store)
        assert taken.attempts == 0
        store.settle([ended(taken, Outcome.release())])
    assert row(store, message_id)["attempts"] == 0
    assert attempts_of(store, message_id) == []


def test_every_claim_raises_the_delivery_number(store: Store) -> None:
    publish(store)
    numbers = []
    for _ in range(3):
        taken = claim_one(store)
        numbers.append(taken.delivery)
        store.settle([ended(taken, Outcome.release())])
    assert numbers == [1, 2, 3]


def test_a_tag_packs_a_delivery_and_gives_it_back() -> None:
    for message_id, delivery in [(1, 1), (2**31 - 1, 2**32 - 1), (7, 0)]:
        assert split_tag(make_tag(message_id, delivery)) == (message_id, delivery)


def test_the_lease_begins_when_the_writer_lock_is_had(store: Store, clock: FakeClock) -> None:
    """A claim that waited longer than its lease for the lock would be over as it begins."""
    publish(store)
    real_write = store.database.write

    def slow_write(work, **options):
        clock.advance(100)
        return real_write(work, **options)

    store.database.write = slow_write  # type: ignore[method-assign]
    taken = claim_one(store, lease_s=10)
    store.database.write = real_write  # type: ignore[method-assign]

    assert store.settle([ended(taken, Outcome.done())]) == []


def test_who_was_taken_for_dead_claims_nothing_until_registered_anew(store: Store) -> None:
    message_id = publish(store)
    store.consumers.end_worker(store.consumers.worker_id)

    with pytest.raises(WorkerSwept):
        store.claim(["default"], 1, lease_s=60)
    assert state_of(store, message_id) is State.PENDING

    store.consumers.leave()
    assert claim_one(store).message_id == message_id


def test_who_was_taken_for_dead_learns_what_became_of_its_settlements(
    store: Store, other: Store
) -> None:
    publish(store)
    taken = claim_one(store)
    other.consumers.end_worker(store.consumers.worker_id)
    late = ended(taken, Outcome.done())

    with pytest.raises(WorkerSwept):
        store.claim(["default"], 1, lease_s=60, settlements=[late])

    assert store.claim([], 0, lease_s=60, settlements=[late]).refused == [late]
    assert state_of(store, taken.message_id) is State.PENDING


# -- due --------------------------------------------------------------------------------------------


def test_a_scheduled_message_is_claimed_when_due_and_not_a_millisecond_before(
    store: Store, clock: FakeClock
) -> None:
    message_id = publish(store, due_at_ms=clock.wall + 5000)
    clock.advance(4.999)
    assert not store.claim(["default"], 1, lease_s=60).deliveries
    assert state_of(store, message_id) is State.SCHEDULED
    clock.advance(0.001)
    assert claim_one(store).message_id == message_id


def test_only_what_is_due_is_claimed_beside_what_is_due(store: Store, clock: FakeClock) -> None:
    due = publish(store, due_at_ms=clock.wall + 1000)
    publish(store, due_at_ms=clock.wall + 1001)
    clock.advance(1)
    claim = store.claim(["default"], 5, lease_s=60)
    assert [one.message_id for one in claim.deliveries] == [due]


def test_a_retry_is_claimed_when_due_and_not_a_millisecond_before(
    store: Store, clock: FakeClock
) -> None:
    publish(store)
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=2.5))])
    clock.advance(2.499)
    assert not store.claim(["default"], 1, lease_s=60).deliveries
    clock.advance(0.001)
    assert claim_one(store).attempts == 1


def test_a_retry_after_nothing_is_claimed_in_the_same_turn(store: Store) -> None:
    publish(store)
    taken = claim_one(store)
    again = store.claim(
        ["default"], 1, lease_s=60, settlements=[ended(taken, Outcome.retry(FAULT, in_s=0))]
    )
    assert [one.delivery for one in again.deliveries] == [2]


def test_the_next_due_time_is_known_to_whoever_wants_to_sleep(
    store: Store, clock: FakeClock
) -> None:
    assert store.look([])[1] is None
    publish(store)
    assert store.look([])[1] is None
    publish(store, due_at_ms=clock.wall + 9000)
    publish(store, due_at_ms=clock.wall + 7000)
    assert store.look([])[1] == clock.wall + 7000


def test_a_flood_of_due_messages_is_promoted_in_portions(store: Store, clock: FakeClock) -> None:
    store.publish([new(due_at_ms=clock.wall + 1000) for _ in range(450)], durable=False)
    clock.advance(2)
    claim_one(store)
    waiting = rows_of(store, "SELECT count(*) FROM message WHERE state = 'scheduled'")
    assert waiting == [(250,)]
    assert len(_drain(store, limit=50)) == 449


def test_a_message_due_in_another_queue_is_promoted_on_the_way(
    store: Store, clock: FakeClock
) -> None:
    """Otherwise an idle consumer of this queue would see something due for ever, and spin."""
    message_id = publish(store, "theirs", due_at_ms=clock.wall + 1000)
    clock.advance(1)
    assert store.has_work(["ours"])
    assert not store.claim(["ours"], 1, lease_s=60).deliveries
    assert not store.has_work(["ours"])
    assert state_of(store, message_id) is State.PENDING


# -- expired ----------------------------------------------------------------------------------------


def test_an_expired_message_is_never_delivered(store: Store, clock: FakeClock) -> None:
    store.consumers.register(name="w", kind="child")  # a plain client would sweep, and end it so
    over = publish(store, expires_at_ms=clock.wall + 1000)
    good = publish(store, expires_at_ms=clock.wall + 1001)
    clock.advance(1)
    assert _drain(store) == [good]
    assert state_of(store, over) is State.EXPIRED
    assert row(store, over)["finished_at_ms"] == clock.wall
    assert row(store, over)["delivery"] == 0


def test_what_expires_before_it_is_due_expires_when_due(store: Store, clock: FakeClock) -> None:
    message_id = publish(store, due_at_ms=clock.wall + 5000, expires_at_ms=clock.wall + 1000)
    clock.advance(5)
    assert _drain(store) == []
    assert state_of(store, message_id) is State.EXPIRED


def test_what_expired_while_it_was_held_ends_with_the_sweep_that_gives_it_back(
    store: Store, clock: FakeClock
) -> None:
    message_id = publish(store, expires_at_ms=clock.wall + 1000)
    assert _drain(store) == [message_id]
    clock.advance(3600)
    assert [one.message_id for one in store.consumers.sweep()] == [message_id]
    assert state_of(store, message_id) is State.EXPIRED


def test_a_flood_of_expired_messages_is_ended_in_portions_and_hides_nothing(
    store: Store, clock: FakeClock
) -> None:
    _ = store.consumers.worker_id  # registers
    flood = [new(expires_at_ms=clock.wall) for _ in range(store_module.EXPIRED_AT_ONCE * 3 + 7)]
    store.publish(flood, durable=False)
    good = publish(store)
    before = store.database.write_transactions

    assert claim_one(store).message_id == good

    assert store.database.write_transactions - before == 4
    assert rows_of(store, "SELECT count(*) FROM message WHERE state = 'expired'") == [(len(flood),)]


def test_a_flood_of_expired_messages_that_nobody_claims_is_ended_by_one_sweep(
    store: Store, clock: FakeClock
) -> None:
    """A consumer that hangs holds no queue of events back: more come in a second than a portion."""
    flood = [new(expires_at_ms=clock.wall) for _ in range(store_module.EXPIRED_AT_ONCE * 3 + 7)]
    store.publish(flood, durable=False)
    before = store.database.write_transactions
    store.consumers.sweep()
    assert rows_of(store, "SELECT count(*) FROM message WHERE state = 'expired'") == [(len(flood),)]
    assert store.database.write_transactions == before + 4


def test_a_limit_is_filled_up_in_place_of_what_has_expired(store: Store, clock: FakeClock) -> None:
    for number in range(8):
        publish(store, expires_at_ms=clock.wall if number % 2 else None)
    assert len(store.claim(["default"], 4, lease_s=60).deliveries) == 4


# -- little is written ------------------------------------------------------------------------------


def test_an_idle_consumer_writes_nothing(store: Store, clock: FakeClock) -> None:
    publish(store, due_at_ms=clock.wall + 60_000)
    _ = store.consumers.worker_id
    writes = store.database.write_transactions
    reads = store.database.read_transactions
    for _ in range(10):
        assert not store.claim(["a", "b", "default"], 4, lease_s=60).deliveries
    assert store.database.write_transactions == writes
    assert store.database.read_transactions == reads + 10


def test_settling_and_claiming_are_one_transaction(store: Store) -> None:
    for _ in range(3):
        publish(store)
    taken = claim_one(store)
    writes, reads = store.database.write_transactions, store.database.read_transactions

    claim = store.claim(["default"], 1, lease_s=60, settlements=[ended(taken, Outcome.done())])

    assert len(claim.deliveries) == 1
    assert state_of(store, taken.message_id) is State.DONE
    assert store.database.write_transactions == writes + 1
    assert store.database.read_transactions == reads + 1  # the one of `state_of`


def test_a_claim_that_fails_leaves_its_settlements_undone(store: Store) -> None:
    publish(store)
    taken = claim_one(store)
    with pytest.raises(Exception, match="binding parameter"):
        store.claim(
            [object()],  # type: ignore[list-item]
            1,
            lease_s=60,
            settlements=[ended(taken, Outcome.done())],
        )
    assert state_of(store, taken.message_id) is State.PROCESSING


def test_without_acknowledgement_a_message_is_done_when_claimed(store: Store) -> None:
    message_id = publish(store)
    (taken,) = store.claim(["default"], 1, lease_s=60, no_ack=True).deliveries
    assert state_of(store, message_id) is State.DONE
    late = ended(taken, Outcome.done())
    assert store.settle([late]) == [late]


# -- many at once -----------------------------------------------------------------------------------


def test_threads_that_race_claim_each_message_once(store: Store) -> None:
    store.publish([new() for _ in range(300)], durable=False)
    found: list[int] = []

    def consume() -> None:
        while taken := store.claim(["default"], 3, lease_s=60).deliveries:
            found.extend(one.message_id for one in taken)

    threads = [threading.Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 300
    assert len(set(found)) == 300
