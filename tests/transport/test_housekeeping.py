"""What is old goes, in chunks; a wall clock set wrong removes nothing."""

from __future__ import annotations

import pytest

from sqlqueue_transport import Store
from sqlqueue_transport.housekeeping import CHUNK
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import NewMessage, Outcome, Settlement
from sqlqueue_transport.reading import JobFilter
from tests.support import FakeClock

DAY_S = 86_400


def finish(store: Store, count: int) -> None:
    """Publish and finish `count` jobs."""
    store.publish([NewMessage(body=b"{}", queue="q", task="t")] * count, durable=False)
    store.consumers.register(name="w", kind="client")
    claim = store.claim(["q"], count, lease_s=60)
    store.settle(
        [Settlement(one.message_id, one.delivery, Outcome.done()) for one in claim.deliveries]
    )


def states(store: Store) -> list[State]:
    return [row.state for row in store.reading.jobs(JobFilter(), limit=10_000)]


def prune(store: Store) -> int:
    return store.housekeeping.prune(done_s=7 * DAY_S, dead_s=30 * DAY_S)


def test_done_jobs_go_after_their_time_and_dead_letters_later(
    store: Store, clock: FakeClock
) -> None:
    finish(store, 2)
    store.publish([NewMessage(body=b"{}", queue="q", task="t")], durable=False)
    (waiting,) = store.reading.jobs(JobFilter(states=(State.PENDING,)))
    store.acting.act(Event.FAIL, [(waiting.message_id, State.PENDING)], actor="test")
    clock.advance(6 * DAY_S)
    assert prune(store) == 0
    clock.advance(2 * DAY_S)
    assert prune(store) == 2
    assert states(store) == [State.PERMANENTLY_FAILED]
    clock.advance(30 * DAY_S)
    assert prune(store) == 1
    assert states(store) == []


def test_what_waits_or_runs_is_never_removed(store: Store, clock: FakeClock) -> None:
    store.publish([NewMessage(body=b"{}", queue="q", task="t")] * 2, durable=False)
    store.consumers.register(name="w", kind="client")
    store.claim(["q"], 1, lease_s=60)
    clock.advance(1000 * DAY_S)
    assert prune(store) == 0
    assert len(states(store)) == 2


def test_a_full_chunk_is_followed_by_the_next_one_at_once_and_an_empty_one_by_a_pause(
    store: Store, clock: FakeClock
) -> None:
    finish(store, CHUNK + 3)
    clock.advance(8 * DAY_S)
    assert [prune(store), prune(store), prune(store)] == [CHUNK, 3, 0]
    before = store.database.write_transactions
    prune(store)
    assert store.database.write_transactions == before


@pytest.mark.parametrize("years", [-10, 10])
def test_a_jump_of_the_wall_clock_pauses_removal_for_a_day(
    store: Store, clock: FakeClock, years: int
) -> None:
    finish(store, 1)
    clock.jump_wall(years * 365 * DAY_S)
    assert prune(store) == 0
    clock.advance(DAY_S / 2)
    assert prune(store) == 0
    clock.jump_wall(-years * 365 * DAY_S)  # somebody noticed
    assert prune(store) == 0
    clock.advance(9 * DAY_S)
    assert prune(store) == 1


def test_zero_keeps_for_ever(store: Store, clock: FakeClock) -> None:
    finish(store, 1)
    clock.advance(10_000 * DAY_S)
    assert store.housekeeping.prune(done_s=0, dead_s=0) == 0
