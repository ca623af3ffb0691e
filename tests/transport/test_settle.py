"""Settling: what each outcome leaves behind, and that what comes too late changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import LONGEST_WAIT_S, Fault, Outcome, Settlement
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import (
    FAULT,
    SETTLING,
    attempts_of,
    claim_one,
    ended,
    publish,
    row,
    rows_of,
    state_of,
    vanish,
)

OUTCOMES = pytest.mark.parametrize("outcome", SETTLING.values(), ids=SETTLING)


def _everything(store: Store) -> list[Any]:
    """Return the whole file's contents that a settlement could touch."""
    return [rows_of(store, f"SELECT * FROM {table} ORDER BY 1") for table in ("message", "attempt")]


# -- the outcomes -----------------------------------------------------------------------------------


def test_done_counts_the_attempt_and_keeps_the_result(store: Store, clock: FakeClock) -> None:
    message_id = publish(store)
    taken = claim_one(store)
    clock.advance(2)

    assert store.settle([ended(taken, Outcome.done('{"a":1}'))]) == []

    found = row(store, message_id)
    assert found["state"] == "done"
    assert (found["attempts"], found["result"]) == (1, '{"a":1}')
    assert (found["started_at_ms"], found["finished_at_ms"]) == (clock.wall - 2000, clock.wall)
    assert found["lease_until_ms"] is None
    assert attempts_of(store, message_id) == []  # the row itself is the successful one


def test_a_retry_counts_the_attempt_and_waits(store: Store, clock: FakeClock) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=2.5))])

    found = row(store, message_id)
    assert (found["state"], found["attempts"]) == ("failed", 1)
    assert found["due_at_ms"] == clock.wall + 2500
    assert (found["error_type"], found["error_message"]) == (FAULT.type, FAULT.message)
    assert attempts_of(store, message_id) == [(1, 1, "failed", "ValueError")]


def test_dead_counts_the_attempt_and_ends_in_the_dead_letters(store: Store) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.dead(FAULT, cause="timed_out"))])

    found = row(store, message_id)
    assert (found["state"], found["attempts"]) == ("permanently_failed", 1)
    assert (found["error_type"], found["error_message"]) == (FAULT.type, FAULT.message)
    assert found["finished_at_ms"] is not None
    assert attempts_of(store, message_id) == [(1, 1, "timed_out", "ValueError")]


def test_a_release_counts_nothing_and_forgets_the_start(store: Store) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.release())])

    found = row(store, message_id)
    assert (found["state"], found["attempts"], found["delivery"]) == ("pending", 0, 1)
    assert found["started_at_ms"] is None
    assert attempts_of(store, message_id) == []


def test_a_release_publishes_nothing_again(store: Store) -> None:
    message_id = publish(store)
    for _ in range(5):
        store.settle([ended(claim_one(store), Outcome.release())])
    assert rows_of(store, "SELECT id FROM message") == [(message_id,)]


def test_every_failed_attempt_is_written_down_with_all_that_is_known(
    store: Store, clock: FakeClock
) -> None:
    store.consumers.register(name="worker-1/2", kind="child")
    message_id = publish(store)
    for number in (1, 2):
        taken = claim_one(store)
        clock.advance(3)
        fault = Fault("ValueError", f"number {number}", f"Traceback {number}")
        store.settle([ended(taken, Outcome.retry(fault, in_s=0))])
    clock.advance(1)
    store.settle([ended(claim_one(store), Outcome.done())])

    detail = store.reading.job(message_id)
    assert detail is not None
    assert detail.row.attempts == 3
    assert detail.row.error_type is None  # a success clears the newest error, not the history
    assert [
        (one.run, one.attempt, one.worker, one.ended_at_ms - (one.started_at_ms or 0),
         one.outcome, one.error_type, one.error_message, one.traceback)
        for one in detail.attempts
    ] == [
        (1, 1, "worker-1/2", 3000, "failed", "ValueError", "number 1", "Traceback 1"),
        (1, 2, "worker-1/2", 3000, "failed", "ValueError", "number 2", "Traceback 2"),
    ]  # fmt: skip


def test_several_deliveries_are_settled_in_one_transaction(store: Store) -> None:
    for _ in SETTLING:
        publish(store)
    taken = store.claim(["default"], len(SETTLING), lease_s=60).deliveries
    before = store.database.write_transactions
    refused = store.settle(
        [ended(one, outcome) for one, outcome in zip(taken, SETTLING.values(), strict=True)]
    )
    assert refused == []
    assert store.database.write_transactions == before + 1
    assert [state_of(store, one.message_id).value for one in taken] == [
        "done",
        "failed",
        "permanently_failed",
        "pending",
        "cancelled",
    ]


def test_settling_nothing_writes_nothing(store: Store) -> None:
    before = store.database.write_transactions
    assert store.settle([]) == []
    assert store.extend([], 60) == []
    assert store.database.write_transactions == before


# -- too late ---------------------------------------------------------------------------------------


@OUTCOMES
def test_a_stale_settlement_changes_nothing(store: Store, outcome: Outcome) -> None:
    """The message was released and claimed again: the old delivery's number does not fit."""
    publish(store)
    stale = claim_one(store)
    store.settle([ended(stale, Outcome.release())])
    current = claim_one(store)
    before = _everything(store)

    late = ended(stale, outcome)
    assert store.settle([late]) == [late]
    assert _everything(store) == before

    assert store.settle([ended(current, Outcome.done())]) == []


@OUTCOMES
def test_a_settlement_with_a_guessed_delivery_number_changes_nothing(
    store: Store, outcome: Outcome
) -> None:
    publish(store)
    taken = claim_one(store)
    before = _everything(store)
    for delivery in (0, taken.delivery + 1, 2**31):
        guess = Settlement(taken.message_id, delivery, outcome)
        assert store.settle([guess]) == [guess]
    assert _everything(store) == before


@OUTCOMES
def test_a_settlement_after_the_lease_changes_nothing_even_if_nobody_swept(
    store: Store, clock: FakeClock, outcome: Outcome
) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.advance(10)
    before = _everything(store)
    late = ended(taken, outcome)
    assert store.settle([late]) == [late]
    assert _everything(store) == before


@OUTCOMES
def test_a_settlement_in_the_last_millisecond_of_the_lease_counts(
    store: Store, clock: FakeClock, outcome: Outcome
) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.advance(9.999)
    assert store.settle([ended(taken, outcome)]) == []
    assert state_of(store, taken.message_id) is not State.PROCESSING


@OUTCOMES
@pytest.mark.parametrize("first", SETTLING.values(), ids=SETTLING)
def test_a_delivery_ends_once(store: Store, first: Outcome, outcome: Outcome) -> None:
    publish(store)
    taken = claim_one(store)
    assert store.settle([ended(taken, first)]) == []
    before = _everything(store)
    again = ended(taken, outcome)
    assert store.settle([again]) == [again]
    assert _everything(store) == before


def test_the_same_settlement_twice_in_one_call_counts_once(store: Store) -> None:
    message_id = publish(store)
    one = ended(claim_one(store), Outcome.retry(FAULT, in_s=0))
    assert store.settle([one, one]) == [one]
    assert row(store, message_id)["attempts"] == 1
    assert len(attempts_of(store, message_id)) == 1


@OUTCOMES
def test_a_settlement_after_an_operator_failed_the_job_changes_nothing(
    store: Store, outcome: Outcome
) -> None:
    message_id = publish(store)
    taken = claim_one(store)
    store.acting.act(Event.FAIL, [(message_id, State.PROCESSING)], actor="test", reason="enough")
    before = _everything(store)
    late = ended(taken, outcome)
    assert store.settle([late]) == [late]
    assert _everything(store) == before


@OUTCOMES
def test_a_settlement_after_a_sweep_changes_nothing(
    store: Store, tmp_path: Path, clock: FakeClock, outcome: Outcome
) -> None:
    publish(store)
    taken = claim_one(store)
    vanish(store)
    other = Store(tmp_path / "queue.db", clock=clock)
    other.consumers.sweep()
    before = _everything(store)
    late = ended(taken, outcome)
    assert store.settle([late]) == [late]
    assert _everything(store) == before
    other.close()


@OUTCOMES
def test_a_settlement_of_a_message_that_is_gone_changes_nothing(
    store: Store, outcome: Outcome
) -> None:
    publish(store)
    taken = claim_one(store)
    store.database.write(lambda c: c.execute("DELETE FROM message").rowcount)
    newcomer = publish(store)
    before = _everything(store)
    late = ended(taken, outcome)
    assert store.settle([late]) == [late]
    assert _everything(store) == before
    assert newcomer != taken.message_id


def test_good_settlements_are_applied_beside_refused_ones(store: Store) -> None:
    for _ in range(2):
        publish(store)
    stale, good = store.claim(["default"], 2, lease_s=60).deliveries
    store.settle([ended(stale, Outcome.release())])
    late = ended(stale, Outcome.done())
    assert store.settle([late, ended(good, Outcome.done())]) == [late]
    assert state_of(store, good.message_id) is State.DONE


# -- extending --------------------------------------------------------------------------------------


def test_an_extended_lease_lasts_from_now(store: Store, clock: FakeClock) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.advance(8)
    assert store.extend([(taken.message_id, taken.delivery)], 10) == []
    assert row(store, taken.message_id)["lease_until_ms"] == clock.lease + 10_000
    clock.advance(9.999)
    assert store.settle([ended(taken, Outcome.done())]) == []


def test_extending_never_shortens_a_lease(store: Store, clock: FakeClock) -> None:
    publish(store)
    taken = claim_one(store, lease_s=100)
    store.extend([(taken.message_id, taken.delivery)], 1)
    assert row(store, taken.message_id)["lease_until_ms"] == clock.lease + 100_000


def test_a_lease_that_is_over_or_anothers_is_not_extended(store: Store, clock: FakeClock) -> None:
    for _ in range(3):
        publish(store)
    over = claim_one(store, lease_s=10)
    stale = claim_one(store)
    store.settle([ended(stale, Outcome.release())])
    current = claim_one(store)
    assert current.message_id == stale.message_id
    clock.advance(10)
    before = _everything(store)

    tags = [(one.message_id, one.delivery) for one in (over, stale)]
    assert store.extend(tags, 1000) == tags
    assert _everything(store) == before
    assert store.extend([(current.message_id, current.delivery)], 1000) == []


# -- hostile outcomes -------------------------------------------------------------------------------


def test_an_error_that_quotes_an_undecodable_file_name_still_ends_the_job(store: Store) -> None:
    """os.fsdecode gives lone surrogates, which SQLite cannot hold."""
    message_id = publish(store)
    fault = Fault("File\udcffError", "no file 'b\udce4r'", "Traceback \udcff\0")
    assert store.settle([ended(claim_one(store), Outcome.retry(fault, in_s=0))]) == []
    detail = store.reading.job(message_id)
    assert detail is not None
    assert detail.attempts[0].error_type == "File\\udcffError"
    assert detail.attempts[0].error_message == "no file 'b\\udce4r'"
    assert detail.attempts[0].traceback == "Traceback \\udcff\0"


def test_a_result_with_a_lone_surrogate_is_the_same_json(store: Store) -> None:
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.done('"a\udcff ü"'))])
    assert row(store, message_id)["result"] == '"a\\udcff ü"'


@pytest.mark.parametrize(
    ("asked_s", "waits_s"),
    [
        (float("nan"), 0),
        (-5, 0),
        (float("-inf"), 0),
        (float("inf"), LONGEST_WAIT_S),
        (1e300, LONGEST_WAIT_S),
        (0.0004, 0),
        (0.0006, 0.001),
    ],
)
def test_a_wait_that_is_no_wait_still_ends_the_delivery(
    store: Store, clock: FakeClock, asked_s: float, waits_s: float
) -> None:
    message_id = publish(store)
    assert store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=asked_s))]) == []
    assert row(store, message_id)["due_at_ms"] == clock.wall + round(waits_s * 1000)
