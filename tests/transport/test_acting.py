"""What an operator does: compare-and-set, audited, and told when somebody was faster."""

from __future__ import annotations

from sqlqueue_transport import acting as acting_module
from sqlqueue_transport.acting import Acted
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import (
    FAULT,
    attempts_of,
    claim_one,
    ended,
    new,
    publish,
    put,
    row,
    rows_of,
    state_of,
)


def test_an_action_is_written_down_with_who_why_and_what(store: Store, clock: FakeClock) -> None:
    message_id = publish(store, job_id="a")
    acted = store.acting.act(
        Event.CANCEL, [(message_id, State.PENDING)], actor="ann@host", reason="not needed"
    )
    assert acted == [Acted(message_id, State.PENDING, State.CANCELLED)]
    assert rows_of(store, "SELECT * FROM audit") == [
        (1, clock.wall, "ann@host", "cancel", message_id, "a", "not needed", "pending", "cancelled")
    ]
    detail = store.reading.job(message_id)
    assert detail is not None
    assert [(one.actor, one.action, one.reason) for one in detail.audit] == [
        ("ann@host", "cancel", "not needed")
    ]


def test_a_job_that_has_changed_meanwhile_is_skipped_and_nothing_is_written(store: Store) -> None:
    message_id = publish(store)
    claim_one(store)
    acted = store.acting.act(Event.CANCEL, [(message_id, State.PENDING)], actor="ann")
    assert acted == [Acted(message_id, State.PENDING, None)]
    assert state_of(store, message_id) is State.PROCESSING
    assert rows_of(store, "SELECT * FROM audit") == []


def test_of_two_operators_one_wins_and_the_other_is_told(store: Store) -> None:
    message_id = publish(store)
    seen = [(message_id, State.PENDING)]
    first = store.acting.act(Event.FAIL, seen, actor="ann", reason="bad input")
    second = store.acting.act(Event.CANCEL, seen, actor="bob")
    assert (first[0].after, second[0].after) == (State.PERMANENTLY_FAILED, None)
    assert row(store, message_id)["error_message"] == "bad input"


def test_a_job_named_twice_in_one_action_is_changed_once(store: Store) -> None:
    message_id = publish(store)
    acted = store.acting.act(Event.CANCEL, [(message_id, State.PENDING)] * 2, actor="ann")
    assert [one.after for one in acted] == [State.CANCELLED, None]
    assert len(rows_of(store, "SELECT * FROM audit")) == 1


def test_a_job_that_is_not_there_is_skipped(store: Store) -> None:
    for number in (4711, 0, -1, 2**63 - 1, 2**63, 10**30):
        (acted,) = store.acting.act(Event.CANCEL, [(number, State.PENDING)], actor="ann")
        assert acted.after is None
    assert rows_of(store, "SELECT * FROM audit") == []


def test_failing_a_running_job_takes_its_lease_away(store: Store) -> None:
    message_id = publish(store)
    taken = claim_one(store)
    store.acting.act(Event.FAIL, [(message_id, State.PROCESSING)], actor="ann", reason="runaway")
    found = row(store, message_id)
    assert (found["state"], found["lease_until_ms"]) == ("permanently_failed", None)
    assert (found["error_type"], found["error_message"]) == ("FailedByOperator", "runaway")
    assert store.extend([(message_id, taken.delivery)], 60) == [(message_id, taken.delivery)]


def test_a_job_failed_while_it_ran_and_requeued_is_not_settled_by_the_old_worker(
    store: Store,
) -> None:
    message_id = publish(store)
    old = claim_one(store)
    store.acting.act(Event.FAIL, [(message_id, State.PROCESSING)], actor="ann")
    store.acting.act(Event.REQUEUE, [(message_id, State.PERMANENTLY_FAILED)], actor="ann")
    current = claim_one(store)
    late = ended(old, Outcome.done())
    assert store.settle([late]) == [late]
    assert store.settle([ended(current, Outcome.done())]) == []


# -- requeue ----------------------------------------------------------------------------------------


def test_a_requeued_job_starts_its_attempts_anew_and_keeps_its_history(
    store: Store, clock: FakeClock
) -> None:
    message_id = publish(store, expires_at_ms=clock.wall + 60_000)
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=0))])
    store.settle([ended(claim_one(store), Outcome.dead(FAULT))])
    clock.advance(100)  # past its expiry, which an operator means to overrule

    store.acting.act(Event.REQUEUE, [(message_id, State.PERMANENTLY_FAILED)], actor="ann")

    found = row(store, message_id)
    assert (found["state"], found["run"], found["attempts"]) == ("pending", 2, 0)
    for cleared in ("error_type", "error_message", "finished_at_ms", "due_at_ms", "expires_at_ms"):
        assert found[cleared] is None
    assert claim_one(store).attempts == 0
    assert [(run, attempt) for run, attempt, *_ in attempts_of(store, message_id)] == [
        (1, 1),
        (1, 2),
    ]


def test_a_success_that_is_requeued_stays_in_the_history(store: Store) -> None:
    store.consumers.register(name="w1", kind="child")
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.done('"first"'))])
    store.acting.act(Event.REQUEUE, [(message_id, State.DONE)], actor="ann")
    assert row(store, message_id)["result"] is None
    store.settle([ended(claim_one(store), Outcome.done('"second"'))])

    detail = store.reading.job(message_id)
    assert detail is not None
    assert [(one.run, one.attempt, one.worker, one.outcome) for one in detail.attempts] == [
        (1, 1, "w1", "done")
    ]
    assert (detail.row.run, detail.row.attempts, detail.result) == (2, 1, '"second"')


def test_a_requeue_that_loses_the_race_changes_nothing_and_writes_no_history(store: Store) -> None:
    message_id = put(store, State.DONE)
    (acted,) = store.acting.act(Event.REQUEUE, [(message_id, State.CANCELLED)], actor="ann")
    assert acted.after is None
    assert state_of(store, message_id) is State.DONE
    assert attempts_of(store, message_id) == []


def test_a_waiting_retry_that_is_requeued_is_ready_at_once(store: Store) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=1000))])
    store.acting.act(Event.REQUEUE, [(message_id, State.FAILED)], actor="ann")
    assert claim_one(store).message_id == message_id


# -- many -------------------------------------------------------------------------------------------


def test_many_are_changed_in_portions_so_that_workers_never_wait_long(store: Store) -> None:
    answers = store.publish([new() for _ in range(acting_module.CHUNK * 2 + 1)], durable=False)
    targets = [(one.message_id, State.PENDING) for one in answers or []]
    before = store.database.write_transactions
    acted = store.acting.act(Event.CANCEL, targets, actor="ann")
    assert store.database.write_transactions == before + 3
    assert [one.message_id for one in acted] == [message_id for message_id, _ in targets]
    assert {one.after for one in acted} == {State.CANCELLED}
    assert rows_of(store, "SELECT count(*) FROM audit") == [(len(targets),)]


def test_text_from_a_command_line_may_hold_anything(store: Store) -> None:
    message_id = publish(store)
    store.acting.act(
        Event.FAIL, [(message_id, State.PENDING)], actor="ann\udcff", reason="\x1b[31m\udce4 '; --"
    )
    assert rows_of(store, "SELECT actor, reason FROM audit") == [
        ("ann\\udcff", "\x1b[31m\\udce4 '; --")
    ]
