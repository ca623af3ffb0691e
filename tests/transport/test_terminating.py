"""Running jobs that an operator asked to stop: however they end but well, they are cancelled."""

from __future__ import annotations

import pytest

from sqlqueue_transport.acting import Acted
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Delivery, Fault, Outcome
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import (
    FAULT,
    attempts_of,
    bind,
    claim_one,
    ended,
    publish,
    row,
    rows_of,
    state_of,
    vanish,
)


@pytest.fixture
def worker_id(store: Store) -> int:
    return store.consumers.register(name="w/1", kind="child")


def ask(store: Store, message_id: int, *, force_in_s: float | None = None) -> Acted:
    (acted,) = store.acting.act(
        Event.TERMINATE,
        [(message_id, State.PROCESSING)],
        actor="ann",
        reason="wrong month",
        kill_in_s=force_in_s,
    )
    return acted


@pytest.fixture
def asked(store: Store, worker_id: int) -> Delivery:
    """Be a delivery that runs and was asked to stop."""
    publish(store)
    running = claim_one(store)
    assert ask(store, running.message_id).after is State.PROCESSING
    return running


def test_asking_is_written_down_and_changes_no_state(
    store: Store, asked: Delivery, clock: FakeClock
) -> None:
    found = row(store, asked.message_id)
    assert (found["state"], found["delivery"]) == ("processing", asked.delivery)
    assert (found["stop_asked_at_ms"], found["kill_at_ms"]) == (clock.wall, None)
    assert rows_of(store, "SELECT actor, action, reason, before, after FROM audit") == [
        ("ann", "terminate", "wrong month", "processing", "processing")
    ]
    detail = store.reading.job(asked.message_id)
    assert detail is not None
    assert detail.row.stop_asked_at_ms == clock.wall


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.retry(FAULT, in_s=5),
        Outcome.dead(FAULT),
        Outcome.dead(FAULT, cause="rejected"),
        Outcome.cancelled(FAULT),
    ],
    ids=["retry", "dead", "rejected", "cancelled"],
)
def test_any_end_with_an_error_is_a_cancelled_attempt(
    store: Store, asked: Delivery, outcome: Outcome, clock: FakeClock
) -> None:
    assert store.settle([ended(asked, outcome)]) == []
    found = row(store, asked.message_id)
    assert (found["state"], found["attempts"]) == ("cancelled", 1)
    assert (found["finished_at_ms"], found["lease_until_ms"]) == (clock.wall, None)
    assert (found["error_type"], found["error_message"]) == (FAULT.type, FAULT.message)
    assert attempts_of(store, asked.message_id) == [(1, 1, "cancelled", FAULT.type)]
    assert not store.has_work(["default"])


@pytest.mark.parametrize("outcome", [Outcome.release(), Outcome.returned(at_most=1)])
def test_what_is_released_is_cancelled_uncounted_and_without_an_error(
    store: Store, asked: Delivery, outcome: Outcome
) -> None:
    assert store.settle([ended(asked, outcome)]) == []
    found = row(store, asked.message_id)
    assert (found["state"], found["attempts"], found["error_type"]) == ("cancelled", 0, None)
    assert attempts_of(store, asked.message_id) == []
    assert not store.has_work(["default"])


def test_a_job_that_completes_in_spite_of_it_is_done(store: Store, asked: Delivery) -> None:
    assert store.settle([ended(asked, Outcome.done('"result"'))]) == []
    found = row(store, asked.message_id)
    assert (found["state"], found["result"], found["attempts"]) == ("done", '"result"', 1)
    assert attempts_of(store, asked.message_id) == []


def test_a_cancelled_job_goes_to_no_dead_letter_exchange(store: Store, worker_id: int) -> None:
    bind(store, "graves", "dlx", "default")
    store.topology.declare_queue("default", arguments={"x-dead-letter-exchange": "dlx"})
    message_id = publish(store, routing_key="default")
    running = claim_one(store)
    ask(store, message_id)
    store.settle([ended(running, Outcome.dead(FAULT, cause="rejected"))])
    assert (row(store, message_id)["queue"], state_of(store, message_id)) == (
        "default",
        State.CANCELLED,
    )


def test_a_settlement_that_comes_too_late_cancels_nothing(
    store: Store, asked: Delivery, clock: FakeClock
) -> None:
    clock.advance(61)
    late = ended(asked, Outcome.retry(FAULT, in_s=0))
    assert store.settle([late]) == [late]
    assert state_of(store, asked.message_id) is State.PROCESSING


def test_nobody_asked_and_the_task_gave_up_by_itself(store: Store, worker_id: int) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.cancelled(FAULT))])
    assert state_of(store, message_id) is State.CANCELLED
    assert attempts_of(store, message_id) == [(1, 1, "cancelled", FAULT.type)]


# -- who is lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_started", [True, False])
def test_a_worker_that_dies_with_it_leaves_it_cancelled(
    store: Store, asked: Delivery, *, is_started: bool
) -> None:
    if is_started:
        store.consumers.note_start(0, asked.message_id, asked.delivery, 0)
    other = Store(store.path, clock=store.clock)
    vanish(store)
    (lost,) = other.consumers.sweep()
    assert (lost.cancelled, lost.counted, lost.dead) == (True, is_started, False)
    assert state_of(other, asked.message_id) is State.CANCELLED
    expected = [(1, 1, "cancelled", "WorkerLost")] if is_started else []
    assert attempts_of(other, asked.message_id) == expected
    other.close()


def test_a_lease_that_runs_out_leaves_it_cancelled(
    store: Store, asked: Delivery, clock: FakeClock
) -> None:
    clock.advance(61)
    (lost,) = store.consumers.sweep()
    assert (lost.cancelled, state_of(store, asked.message_id)) == (True, State.CANCELLED)


def test_a_worker_that_leaves_in_order_leaves_it_cancelled_uncounted(
    store: Store, asked: Delivery
) -> None:
    store.consumers.note_start(0, asked.message_id, asked.delivery, 0)
    (lost,) = store.consumers.leave()
    assert (lost.cancelled, lost.counted) == (True, False)
    assert (row(store, asked.message_id)["attempts"], state_of(store, asked.message_id)) == (
        0,
        State.CANCELLED,
    )


def test_a_supervisor_that_killed_for_it_says_so_in_the_attempt(
    store: Store, asked: Delivery, worker_id: int
) -> None:
    store.consumers.note_start(0, asked.message_id, asked.delivery, 0)
    fault = Fault("JobCancelled", "ended by force")
    store.consumers.end_worker(worker_id, faults={asked.message_id: ("cancelled", fault)})
    assert attempts_of(store, asked.message_id) == [(1, 1, "cancelled", "JobCancelled")]
    assert row(store, asked.message_id)["error_message"] == "ended by force"


def test_another_job_of_the_same_worker_is_lost_as_ever(
    store: Store, asked: Delivery, worker_id: int
) -> None:
    innocent = publish(store)
    other = claim_one(store)
    for place, one in enumerate((asked, other)):
        store.consumers.note_start(place, one.message_id, one.delivery, 0)
    store.consumers.end_worker(worker_id)
    assert state_of(store, asked.message_id) is State.CANCELLED
    assert (state_of(store, innocent), row(store, innocent)["attempts"]) == (State.FAILED, 1)


# -- asking -----------------------------------------------------------------------------------------


def test_a_consumer_that_is_no_worker_of_ours_is_not_asked(store: Store) -> None:
    message_id = publish(store)
    claim_one(store)  # registers a plain client, as Celery's workers are
    assert ask(store, message_id) == Acted(message_id, State.PROCESSING, None, "client")
    assert row(store, message_id)["stop_asked_at_ms"] is None
    assert rows_of(store, "SELECT * FROM audit") == []


def test_who_holds_it_is_told(store: Store, asked: Delivery) -> None:
    assert ask(store, asked.message_id).holder == "child"


def test_a_job_that_has_ended_meanwhile_is_skipped(store: Store, worker_id: int) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.done())])
    assert ask(store, message_id) == Acted(message_id, State.PROCESSING, None)


def test_asking_again_can_only_bring_the_end_forward(
    store: Store, asked: Delivery, clock: FakeClock
) -> None:
    first_ms = clock.wall
    clock.advance(1)
    kills = []
    for force_in_s in (60, 90, None, 30, 0):
        ask(store, asked.message_id, force_in_s=force_in_s)
        found = row(store, asked.message_id)
        kills.append((found["kill_at_ms"] - clock.wall) / 1000)
        assert found["stop_asked_at_ms"] == first_ms
    assert kills == [60, 60, 60, 30, 0]


def test_a_requeue_forgets_that_it_was_asked(store: Store, asked: Delivery) -> None:
    ask(store, asked.message_id, force_in_s=5)
    store.settle([ended(asked, Outcome.retry(FAULT, in_s=0))])
    store.acting.act(Event.REQUEUE, [(asked.message_id, State.CANCELLED)], actor="ann")
    again = claim_one(store)
    found = row(store, asked.message_id)
    assert (found["stop_asked_at_ms"], found["kill_at_ms"]) == (None, None)
    assert store.running.to_stop([(again.message_id, again.delivery)]) == set()
    store.settle([ended(again, Outcome.dead(FAULT))])
    assert state_of(store, asked.message_id) is State.PERMANENTLY_FAILED


def test_cancelling_wins_or_loses_cleanly_against_a_claim(store: Store, worker_id: int) -> None:
    """Whoever commits first: then the other is told, and nothing is half done."""
    for is_claim_first in (True, False):
        message_id = publish(store)
        if is_claim_first:
            claim_one(store)
        (acted,) = store.acting.act(Event.CANCEL, [(message_id, State.PENDING)], actor="ann")
        claimed = store.claim(["default"], 1, lease_s=60).deliveries
        assert (acted.after, claimed) == (None if is_claim_first else State.CANCELLED, [])
        expected = State.PROCESSING if is_claim_first else State.CANCELLED
        assert state_of(store, message_id) is expected


# -- how it is heard of -----------------------------------------------------------------------------


def test_who_runs_it_is_told_to_stop_and_the_others_are_not(store: Store, worker_id: int) -> None:
    deliveries = []
    for _ in range(3):
        publish(store)
        one = claim_one(store)
        deliveries.append((one.message_id, one.delivery))
    assert store.running.to_stop(deliveries) == set()
    ask(store, deliveries[1][0])
    assert store.running.to_stop(deliveries) == {deliveries[1]}
    assert store.running.to_stop([]) == set()


def test_a_delivery_that_is_not_ours_any_more_should_stop_too(
    store: Store, worker_id: int, clock: FakeClock
) -> None:
    publish(store)
    mine = claim_one(store)
    delivery = (mine.message_id, mine.delivery)
    clock.advance(60)  # the lease is over, though nobody has swept
    assert store.running.to_stop([delivery]) == {delivery}
    store.consumers.sweep()
    claim_one(store)  # somebody else's now
    assert store.running.to_stop([delivery]) == {delivery}
    assert store.running.to_stop([(4711, 1)]) == {(4711, 1)}


def test_looking_whether_to_stop_writes_nothing(store: Store, asked: Delivery) -> None:
    before = store.database.write_transactions
    store.running.to_stop([(asked.message_id, asked.delivery)])
    store.running.to_kill()
    assert store.database.write_transactions == before


def test_supervisors_hear_of_whose_time_is_up_and_of_nobody_else(
    store: Store, asked: Delivery, worker_id: int, clock: FakeClock
) -> None:
    publish(store)
    claim_one(store)
    assert store.running.to_kill() == {}
    ask(store, asked.message_id, force_in_s=5)
    clock.advance(4.999)
    assert store.running.to_kill() == {}
    clock.advance(0.001)
    assert store.running.to_kill() == {worker_id: {(asked.message_id, asked.delivery)}}
    store.settle([ended(asked, Outcome.done())])
    assert store.running.to_kill() == {}
