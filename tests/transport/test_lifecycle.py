"""The one table of transitions, against everything the store can be asked to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlqueue_transport import routing
from sqlqueue_transport import statements as sql
from sqlqueue_transport.lifecycle import (
    FINISHED,
    TRANSITIONS,
    WAITING,
    Event,
    State,
    sources,
    target,
)
from sqlqueue_transport.messages import Settlement
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import SETTLING, publish, put, row, state_of

OPERATORS = {Event.CANCEL, Event.TERMINATE, Event.FAIL, Event.REQUEUE}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    directory: Path = tmp_path_factory.mktemp("lifecycle")
    opened = Store(directory / "queue.db", clock=FakeClock())
    opened.consumers.register(name="w", kind="child")  # of others nothing can be terminated
    yield opened
    opened.close()


def _apply(store: Store, event: Event, message_id: int, state: State, queue: str) -> bool:
    """Let the event happen by the store's own verbs; return whether the store said it did."""
    if event is Event.PROMOTE:
        now_ms = store.clock.wall_ms()
        return bool(
            store.database.write(lambda c: c.execute(sql.PROMOTE, {"now_ms": now_ms}).rowcount)
        )
    if event in {Event.CLAIM, Event.EXPIRE}:
        if event is Event.EXPIRE:
            mark = "UPDATE message SET expires_at_ms = enqueued_at_ms - 1 WHERE id = ?"
            store.database.write(lambda c: c.execute(mark, (message_id,)).rowcount)
        claim = store.claim([queue], 1, lease_s=60)
        return bool(claim.deliveries) or state_of(store, message_id) is not state
    if event is Event.OVERFLOW:
        store.topology.declare_queue(queue, arguments={"x-max-length": 1})
        publish(store, queue)
        return state_of(store, message_id) is not state
    if event is Event.DEAD_LETTER:
        there = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead letters"}
        store.topology.declare_queue(queue, arguments=there)
        moved = store.database.write(
            lambda c: routing.dead_letter(
                c, message_id, routing.Unwanted.REJECTED, store.clock.wall_ms(), []
            )
        )
        assert moved == (row(store, message_id)["queue"] == "dead letters")
        return moved
    if event in OPERATORS:
        (acted,) = store.acting.act(event, [(message_id, state)], actor="test")
        return acted.after is not None
    delivery = row(store, message_id)["delivery"]
    return not store.settle([Settlement(message_id, delivery, SETTLING[event.value])])


@pytest.mark.parametrize(("state", "event"), itertools.product(State, Event))
def test_a_step_happens_if_and_only_if_it_stands_in_the_table(
    store: Store, state: State, event: Event
) -> None:
    queue = f"{state.value}-{event.value}"
    # A due row would be promoted on the way to a claim, which is another step.
    due = "past" if event is Event.PROMOTE else "future"
    message_id = put(store, state, queue=queue, due=due)

    happened = _apply(store, event, message_id, state, queue)

    expected = TRANSITIONS.get((state, event))
    assert state_of(store, message_id) is (expected or state)
    assert happened == (expected is not None)


@pytest.mark.parametrize(("state", "event"), itertools.product(State, Event))
def test_target_knows_what_the_table_knows_and_refuses_the_rest(state: State, event: Event) -> None:
    if state in sources(event):
        assert target(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(KeyError):
            target(state, event)


def test_every_state_waits_runs_or_has_finished() -> None:
    assert {*WAITING, State.PROCESSING, *FINISHED} == set(State)
    assert not WAITING & FINISHED


def test_no_state_is_a_dead_end_but_by_decision_of_nobody() -> None:
    """Out of every finished state an operator can requeue; out of every other, cancel or fail."""
    for state in State:
        if state in FINISHED:
            assert (state, Event.REQUEUE) in TRANSITIONS
        else:
            assert (state, Event.FAIL) in TRANSITIONS


def test_every_state_can_be_reached_from_a_publish() -> None:
    reached = {State.PENDING, State.SCHEDULED}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(State)


def test_a_release_of_a_retried_job_keeps_its_attempts(store: Store) -> None:
    message_id = put(store, State.PROCESSING, queue="kept")
    mark = "UPDATE message SET attempts = 3 WHERE id = ?"
    store.database.write(lambda c: c.execute(mark, (message_id,)).rowcount)

    assert not store.settle([Settlement(message_id, 1, SETTLING["release"])])

    assert row(store, message_id)["attempts"] == 3


def test_an_event_that_is_no_operators_is_refused_as_an_action(store: Store) -> None:
    message_id = put(store, State.PENDING, queue="operators")
    with pytest.raises(ValueError, match="claim is not an operator's action"):
        store.acting.act(Event.CLAIM, [(message_id, State.PENDING)], actor="test")
    assert state_of(store, message_id) is State.PENDING
