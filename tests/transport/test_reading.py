"""What operators see: counts, lists and one job whole, without ever writing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Fault, Outcome
from sqlqueue_transport.reading import JobFilter, QueueRow
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import FAULT, claim_one, ended, publish, put, rows_of


@pytest.fixture
def other(store: Store, clock: FakeClock) -> Iterator[Store]:
    opened = Store(store.path, clock=clock)
    yield opened
    opened.close()


def _ids(store: Store, **chosen: object) -> list[int]:
    return [one.message_id for one in store.reading.jobs(JobFilter(**chosen))]  # type: ignore[arg-type]


# -- counts -----------------------------------------------------------------------------------------


def test_every_state_is_counted_also_with_zero(store: Store) -> None:
    assert store.reading.counts().states == dict.fromkeys(State, 0)
    for state in State:
        put(store, state)
    put(store, State.DONE)
    publish(store, task=None)  # no job
    assert store.reading.counts().states == {**dict.fromkeys(State, 1), State.DONE: 2}


def test_a_job_is_stalled_once_its_lease_is_over(store: Store, clock: FakeClock) -> None:
    message_id = publish(store)
    publish(store)
    claim_one(store, lease_s=10)
    clock.advance(9.999)
    assert store.reading.counts().stalled == 0
    assert _ids(store, stalled=True) == []
    clock.advance(0.001)
    assert store.reading.counts().stalled == 1
    assert _ids(store, stalled=True) == [message_id]
    assert store.reading.counts().states[State.PROCESSING] == 1  # computed, never stored


def test_the_oldest_pending_is_as_old_as_it_could_first_have_run(
    store: Store, clock: FakeClock
) -> None:
    assert store.reading.counts().oldest_pending_ms is None
    publish(store, due_at_ms=clock.wall + 5000)
    clock.advance(8)
    publish(store, "other")
    enqueued = clock.wall
    store.claim(["nothing"], 1, lease_s=60)  # promotes
    assert store.reading.counts().oldest_pending_ms == enqueued - 3000


# -- lists ------------------------------------------------------------------------------------------


def test_lists_are_newest_first_and_paged_by_message_id(store: Store) -> None:
    ids = [publish(store) for _ in range(7)]
    pages, before = [], None
    while page := store.reading.jobs(JobFilter(), limit=3, before=before):
        pages.append([one.message_id for one in page])
        before = page[-1].message_id
    assert pages == [ids[:3:-1], ids[3:0:-1], ids[:1]]


def test_a_page_stays_where_it_is_while_new_jobs_arrive(store: Store) -> None:
    ids = [publish(store) for _ in range(4)]
    first = store.reading.jobs(JobFilter(), limit=2)
    publish(store)
    second = store.reading.jobs(JobFilter(), limit=2, before=first[-1].message_id)
    assert [one.message_id for one in second] == [ids[1], ids[0]]


def test_what_is_no_job_is_in_no_list(store: Store) -> None:
    publish(store, task=None)
    assert _ids(store) == []


@pytest.mark.parametrize("limit", [0, 1000])
def test_any_limit_is_possible(store: Store, limit: int) -> None:
    publish(store)
    assert len(store.reading.jobs(JobFilter(), limit=limit)) == min(limit, 1)


def test_each_filter_keeps_what_it_names_and_they_go_together(
    store: Store, other: Store, clock: FakeClock
) -> None:
    store.consumers.register(name="host-1", kind="worker")
    other.consumers.register(name="host-1/2", kind="child")
    plain = publish(store, job_id="plain")
    elsewhere = publish(store, "elsewhere", job_id="twice")
    clock.advance(100)
    since = clock.wall
    task = publish(store, task="tasks.other", job_id="twice")
    failed = publish(store, "mine", job_id="failed")
    store.settle([ended(claim_one(store, "mine"), Outcome.dead(Fault("OSError", "disk 50% full")))])
    child = publish(store, "child")
    claim_one(other, "child")

    assert _ids(store, states=(State.PENDING,)) == [task, elsewhere, plain]
    assert _ids(store, states=(State.PERMANENTLY_FAILED, State.PROCESSING)) == [child, failed]
    assert _ids(store, queue="elsewhere") == [elsewhere]
    assert _ids(store, task="tasks.other") == [task]
    assert _ids(store, worker="host-1") == [child, failed]  # its children are part of a worker
    assert _ids(store, worker="host-1/2") == [child]
    assert _ids(store, worker="host") == []
    assert _ids(store, error="OSError: disk 50% f") == [failed]
    assert _ids(store, error="%") == [failed]  # a piece of text, not a pattern
    assert _ids(store, error="_") == []
    assert _ids(store, since_ms=since) == [child, failed, task]
    assert _ids(store, job_ids=("twice",)) == [task, elsewhere]
    assert _ids(store, message_ids=(plain, task, 4711)) == [task, plain]
    assert _ids(store, job_ids=("twice",), queue="elsewhere") == [elsewhere]
    assert JobFilter().is_empty
    assert not JobFilter(queue="elsewhere").is_empty


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE message; --", "\udcff", "a\0b", "\u202e", "x" * 300, ""]
)
def test_a_filter_is_only_ever_compared(store: Store, text: str) -> None:
    publish(store)
    for name in ("queue", "task", "worker", "error"):
        assert _ids(store, **{name: text}) == []
    assert _ids(store, job_ids=(text,)) == []
    assert store.reading.message_ids_of(text) == []


def test_a_number_too_large_for_an_id_names_nothing(store: Store) -> None:
    message_id = publish(store)
    assert store.reading.job(2**63) is None
    assert _ids(store, message_ids=(2**63, 10**30)) == []
    (found,) = store.reading.jobs(JobFilter(), before=10**30)
    assert found.message_id == message_id


# -- one job ----------------------------------------------------------------------------------------


def test_a_running_job_shows_the_attempt_that_runs_now(store: Store, other: Store) -> None:
    """It is noted in the worker's slot, not in the row: that is raised when the attempt ends."""
    message_id = publish(store)
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=0))])
    store.settle([ended(claim_one(store), Outcome.release())])
    taken = claim_one(store)

    (claimed,) = other.reading.jobs(JobFilter())
    assert (claimed.attempts, claimed.is_started) == (1, False)

    store.consumers.note_start(0, message_id, taken.delivery, 60)
    (running,) = other.reading.jobs(JobFilter())
    assert (running.attempts, running.is_started) == (2, True)

    store.settle([ended(taken, Outcome.done())])
    (done,) = other.reading.jobs(JobFilter())  # the note is still there
    assert (done.attempts, done.is_started) == (2, False)
    store.consumers.note_end(0)


def test_the_note_of_an_earlier_delivery_counts_nothing(store: Store, other: Store) -> None:
    message_id = publish(store)
    taken = claim_one(store)
    store.consumers.note_start(0, message_id, taken.delivery, 60)
    store.settle([ended(taken, Outcome.release())])
    claim_one(other)
    (found,) = store.reading.jobs(JobFilter())
    assert (found.attempts, found.is_started) == (0, False)


def test_the_time_left_of_a_lease_is_shown_and_goes_below_zero(
    store: Store, clock: FakeClock
) -> None:
    publish(store)
    taken = claim_one(store, lease_s=10)
    clock.advance(4)
    assert store.reading.jobs(JobFilter())[0].lease_left_ms == 6000
    clock.advance(8)
    assert store.reading.jobs(JobFilter())[0].lease_left_ms == -2000
    store.consumers.sweep()
    store.settle([ended(taken, Outcome.done())])
    assert store.reading.jobs(JobFilter())[0].lease_left_ms is None


def test_a_job_is_shown_whole(store: Store, clock: FakeClock) -> None:
    store.consumers.register(name="w1", kind="child")
    message_id = publish(
        store,
        job_id="a",
        body=b"x" * 20_000,
        headers='{"task":"tasks.stamp"}',
        properties='{"reply_to":"r"}',
        content_type="application/json",
        content_encoding="utf-8",
        priority=3,
        max_attempts=7,
        expires_at_ms=clock.wall + 1_000_000,
    )
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=0))])
    store.settle([ended(claim_one(store), Outcome.done('"r"'))])
    store.acting.act(Event.REQUEUE, [(message_id, State.DONE)], actor="ann")

    detail = store.reading.job(message_id)

    assert detail is not None
    assert (detail.row.job_id, detail.row.task, detail.row.queue) == ("a", "tasks.stamp", "default")
    assert (detail.row.priority, detail.row.max_attempts, detail.row.run) == (3, 7, 2)
    assert detail.body == b"x" * 20_000
    assert (detail.headers, detail.properties) == (
        '{"task":"tasks.stamp"}',
        '{"reply_to":"r"}',
    )
    assert (detail.content_type, detail.content_encoding) == ("application/json", "utf-8")
    assert [(one.run, one.attempt, one.outcome) for one in detail.attempts] == [
        (1, 1, "failed"),
        (1, 2, "done"),
    ]
    assert [(one.action, one.before, one.after) for one in detail.audit] == [
        ("requeue", "done", "pending")
    ]


def test_a_message_that_is_not_there_is_none(store: Store) -> None:
    assert store.reading.job(4711) is None


def test_messages_that_share_a_job_id_are_found_newest_first(store: Store) -> None:
    ids = [publish(store, job_id="same") for _ in range(3)]
    publish(store, job_id="other")
    assert store.reading.message_ids_of("same") == ids[::-1]


# -- queues -----------------------------------------------------------------------------------------


def test_queues_show_what_is_ready_later_and_held(store: Store, clock: FakeClock) -> None:
    store.topology.declare_queue("empty")
    for state in State:
        put(store, state, queue="busy", due="future")
    put(store, State.SCHEDULED, queue="later", due="future")
    put(store, State.DONE, queue="only history")
    since = clock.wall
    clock.advance(5)
    publish(store, "busy")

    assert store.reading.queues() == [
        QueueRow("busy", pending=2, later=2, processing=1, oldest_pending_ms=since),
        QueueRow("empty", 0, 0, 0, None),
        QueueRow("later", pending=0, later=1, processing=0, oldest_pending_ms=None),
    ]


@pytest.mark.parametrize("state", State)
def test_a_queue_is_finished_when_nothing_in_it_can_still_run(store: Store, state: State) -> None:
    message_id = put(store, state, queue="q", due="future")
    due_ms = rows_of(store, "SELECT due_at_ms FROM message WHERE id = ?", message_id)[0][0]
    expected = {
        State.PENDING: 0,
        State.PROCESSING: 0,
        State.SCHEDULED: due_ms,
        State.FAILED: due_ms,
    }.get(state)
    assert store.reading.unfinished_since_ms(["other", "q"]) == expected
    assert store.reading.unfinished_since_ms(["other"]) is None
    assert store.reading.unfinished_since_ms([]) is None


# -- what must never be -----------------------------------------------------------------------------


def test_a_file_in_order_breaks_no_invariant(store: Store) -> None:
    for state in State:
        put(store, state)
    publish(store, body=b"x" * 20_000)
    assert store.reading.broken_invariants() == {}
    assert store.reading.damage() == []
    assert store.reading.damage(full=True) == []


def test_a_broken_invariant_is_named_and_counted(store: Store) -> None:
    publish(store, max_attempts=2)
    publish(store)
    claim_one(store)

    def break_it(connection) -> None:
        connection.execute("UPDATE message SET attempts = 3 WHERE max_attempts = 2")
        connection.execute("UPDATE message SET worker_id = 4711 WHERE state = 'processing'")

    store.database.write(break_it)
    assert store.reading.broken_invariants() == {
        "jobs with more attempts than allowed": 1,
        "processing jobs whose worker is not registered": 1,
    }


def test_reading_writes_nothing(store: Store) -> None:
    message_id = publish(store)
    before = store.database.write_transactions
    store.reading.counts()
    store.reading.jobs(JobFilter(stalled=True))
    store.reading.job(message_id)
    store.reading.queues()
    store.reading.broken_invariants()
    store.reading.damage(full=True)
    store.schedules.rows()
    assert store.database.write_transactions == before
