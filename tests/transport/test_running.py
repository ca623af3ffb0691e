"""How far a delivery says it is."""

from __future__ import annotations

import pytest

from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Delivery, Outcome
from sqlqueue_transport.pruning import Policy
from sqlqueue_transport.reading import JobFilter, Progress
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import FAULT, claim_one, ended, publish, rows_of


def say(
    store: Store, one: Delivery, done: float, total: float | None = None, note: str = ""
) -> bool:
    return store.running.note_progress(
        one.message_id, one.delivery, done=done, total=total, note=note
    )


def shown(store: Store) -> Progress | None:
    (row,) = store.reading.jobs(JobFilter())
    detail = store.reading.job(row.message_id)
    assert detail is not None
    assert detail.row.progress == row.progress
    return row.progress


@pytest.fixture
def running(store: Store) -> Delivery:
    publish(store)
    return claim_one(store)


def test_the_newest_word_is_shown(store: Store, running: Delivery, clock: FakeClock) -> None:
    assert shown(store) is None
    assert say(store, running, 1, 4, "reading")
    clock.advance(1)
    assert say(store, running, 3, 4)
    assert shown(store) == Progress(3.0, 4.0, "", clock.wall)
    assert rows_of(store, "SELECT count(*) FROM progress") == [(1,)]


@pytest.mark.parametrize(
    ("done", "total", "part"), [(1, 4, 0.25), (5, 4, 1.0), (3, None, None), (0, 0, None)]
)
def test_the_part_is_known_where_the_total_is(
    done: float, total: float | None, part: float | None
) -> None:
    assert Progress(done, total, "", 0).part == part


def test_a_delivery_that_is_over_has_nothing_to_say(store: Store, running: Delivery) -> None:
    say(store, running, 1, 4)
    store.settle([ended(running, Outcome.retry(FAULT, in_s=0))])
    assert not say(store, running, 2, 4)
    again = claim_one(store)
    assert not say(store, running, 3, 4)
    # What the attempt before said is not this one's.
    assert shown(store) is None
    assert say(store, again, 0, 4)
    assert shown(store) == Progress(0.0, 4.0, "", store.clock.wall_ms())


def test_what_was_said_last_stays_when_the_job_has_ended(store: Store, running: Delivery) -> None:
    say(store, running, 1, 4)
    store.settle([ended(running, Outcome.dead(FAULT))])
    assert shown(store) == Progress(1.0, 4.0, "", store.clock.wall_ms())


def test_a_requeue_removes_it(store: Store, running: Delivery) -> None:
    say(store, running, 1, 4)
    store.settle([ended(running, Outcome.dead(FAULT))])
    store.acting.act(Event.REQUEUE, [(running.message_id, State.PERMANENTLY_FAILED)], actor="ann")
    assert rows_of(store, "SELECT count(*) FROM progress") == [(0,)]


def test_it_dies_with_its_message(store: Store, running: Delivery, clock: FakeClock) -> None:
    say(store, running, 1, 4)
    store.settle([ended(running, Outcome.done())])
    clock.advance(100)
    while rows_of(store, "SELECT count(*) FROM message") == [(1,)]:
        clock.advance(store.housekeeping.turn(Policy(10, 10, 0)).pause_s)
    assert rows_of(store, "SELECT count(*) FROM progress") == [(0,)]


def test_a_note_is_text_of_any_kind_and_kept_to_500_characters(
    store: Store, running: Delivery
) -> None:
    say(store, running, 1, None, "é\udcff\x1b[31m\0" + "x" * 1000)
    found = shown(store)
    assert found is not None
    assert found.note == "é\\udcff\x1b[31m\0" + "x" * 492


def test_words_are_not_flushed_to_the_disk(
    store: Store, running: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr("sqlqueue_transport.flushing._sync_data", flushed.append)
    say(store, running, 1, 4)
    assert flushed == []
