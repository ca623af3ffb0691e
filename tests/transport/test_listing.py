"""Lists by every way there is to their rows, and the counts of what they would hold."""

from __future__ import annotations

import random
import re
from typing import Any
from unittest.mock import ANY

import pytest

from sqlqueue_transport import listing
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.listing import JobFilter, JobRow
from sqlqueue_transport.messages import Fault, Outcome
from sqlqueue_transport.reading import WRONG_COUNTS
from sqlqueue_transport.recounting import Recounted, recount
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import (
    claim_one,
    count_in_small_portions,
    ended,
    new,
    publish,
    put,
    rows_of,
)

FILTERS = (
    JobFilter(),
    *(JobFilter(states=(state,)) for state in State),
    *(JobFilter(states=(state,), queue="b") for state in State),
    JobFilter(states=(State.PENDING, State.FAILED, State.DONE)),
    JobFilter(states=(State.SCHEDULED, State.FAILED), queue="a"),
    JobFilter(queue="a"),
    JobFilter(queue="nothing"),
    JobFilter(task="tasks.stamp"),
    JobFilter(error="nothing"),
)


@pytest.fixture
def small(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Give a store whose blocks and portions are so small that a few rows fill many."""
    monkeypatch.setattr(listing, "BLOCK", 8)
    monkeypatch.setattr(listing, "_FEW", 3)
    monkeypatch.setattr(listing, "_AT_ONCE", 2)
    count_in_small_portions(store)
    return store


def every(store: Store, chosen: JobFilter, *, limit: int = 3) -> list[JobRow]:
    """List everything of a filter, a small page at a time."""
    found: list[JobRow] = []
    before: int | None = None
    while before != 0:
        stretch = store.reading.lists.walk(chosen, limit=limit, before=before)
        found += stretch.rows
        before = stretch.seen_to
    return found


def _matches(chosen: JobFilter, state: str, queue: str, *, is_job: bool) -> bool:
    return (
        (is_job or state == State.PERMANENTLY_FAILED)
        and (not chosen.states or State(state) in chosen.states)
        and chosen.queue in {None, queue}
        and (chosen.task is None or is_job)
        and chosen.error is None
    )


@pytest.mark.parametrize("seed", range(6))
def test_every_way_to_the_rows_of_a_filter_finds_the_same(small: Store, seed: int) -> None:
    """Rare and common states, in blocks that have them and blocks that have not."""
    chance = random.Random(seed)
    for _ in range(6):
        state = chance.choice(list(State))
        for _ in range(chance.choice([1, 2, 15])):
            put(small, state, queue=chance.choice("ab"), due="future")
        publish(small, chance.choice("ab"), task=None)
        states = rows_of(small, "SELECT id, state FROM message WHERE task IS NOT NULL")
        for message_id, before in chance.sample(states, min(5, len(states))):
            small.acting.act(
                chance.choice([Event.REQUEUE, Event.CANCEL, Event.FAIL]),
                [(message_id, State(before))],
                actor="op",
            )

    rows = rows_of(small, "SELECT id, state, queue, task FROM message ORDER BY id DESC")
    assert rows_of(small, "SELECT count(*) > 3 FROM tally") == [(1,)]
    for chosen in FILTERS:
        expected = [
            message_id
            for message_id, state, queue, task in rows
            if _matches(chosen, state, queue, is_job=task is not None)
        ]
        assert [row.message_id for row in every(small, chosen)] == expected, chosen
        assert small.reading.lists.count(chosen, most=10_000) == (len(expected), True), chosen
        middle = rows[len(rows) // 2][0]
        newer = sum(one > middle for one in expected)
        assert small.reading.lists.count(chosen, most=10_000, above=middle) == (newer, True)


def test_blocks_that_have_nothing_for_a_filter_are_not_looked_at(small: Store) -> None:
    for _ in range(40):
        put(small, State.DONE)
    for _ in range(40):
        put(small, State.PENDING)
    before = small.database.read_transactions
    assert len(small.reading.jobs(JobFilter(states=(State.DONE,)), limit=2)) == 2
    # The way, the tail, and one or two blocks, of the ten there are.
    assert small.database.read_transactions - before <= 4


def test_a_walk_without_time_looks_at_one_portion_and_says_how_far_it_came(small: Store) -> None:
    oldest = publish(small, task="rare")
    for _ in range(40):
        put(small, State.DONE)
    rare = JobFilter(task="rare")

    first = small.reading.lists.walk(rare, limit=1, budget_s=0)
    assert first.rows == []
    assert first.seen_to > oldest

    steps, before = 0, first.seen_to
    while before:
        found = small.reading.lists.walk(rare, limit=1, before=before, budget_s=0)
        steps, before = steps + 1, 0 if found.rows else found.seen_to
    assert [row.message_id for row in found.rows] == [oldest]
    assert steps > 2
    assert (
        small.reading.lists.count(JobFilter(task="tasks.stamp"), most=100, budget_s=0)[1] is False
    )


@pytest.mark.parametrize("task", ["tasks.stamp", "never"])
def test_a_count_without_time_says_that_there_may_be_more(small: Store, task: str) -> None:
    for _ in range(40):
        put(small, State.DONE)
    found, is_complete = small.reading.lists.count(JobFilter(task=task), most=100, budget_s=0)
    assert found < 40
    assert not is_complete


def test_a_count_ends_at_what_is_the_most(small: Store) -> None:
    for _ in range(40):
        put(small, State.DONE)
    assert small.reading.lists.count(JobFilter(task="tasks.stamp"), most=11) == (11, False)
    assert small.reading.lists.count(JobFilter(), most=11) == (40, True)  # the tally knows


# -- filters ----------------------------------------------------------------------------------------


def _ids(store: Store, **chosen: Any) -> list[int]:
    return [row.message_id for row in every(store, JobFilter(**chosen))]


def test_a_search_means_an_id_first_and_a_text_otherwise(store: Store) -> None:
    first = publish(store, job_id="01a2-same-1", body=b'[["jobs/7.txt"], {}, {}]')
    second = publish(store, job_id="01a2-same-2", task="reports.daily", body=b"[[1], {}, {}]")
    large = publish(store, job_id="ffff", body=b'[["' + b"x" * 20_000 + b'needle"], {}, {}]')
    accent = publish(store, job_id="eeee", body=rb'[["caf\u00e9"], {}, {}]')

    assert _ids(store, search="01a2-same-1") == [first]
    assert _ids(store, search="01a2-sa") == [second, first]
    assert _ids(store, search="a2-same") == [second, first]  # as screens shorten an id
    assert _ids(store, search="e-1") == [first]
    assert _ids(store, search=f"#{second}") == [second]
    assert _ids(store, search="#4711") == []
    assert _ids(store, search="reports.") == [second]
    assert _ids(store, search="jobs/7") == [first]
    assert _ids(store, search="needle") == [large]
    assert _ids(store, search="café") == [accent]
    assert _ids(store, search="01a2-same-1", queue="elsewhere") == []
    assert _ids(store, search="01a2", states=(State.PENDING,)) == [second, first]


def test_a_beginning_that_many_ids_have_is_walked_for(small: Store) -> None:
    ids = [publish(small, job_id=f"01a2-{number}") for number in range(9)]
    publish(small, job_id="ffff", body=b"01a2")
    assert _ids(small, search="01a2") == ids[::-1]


@pytest.mark.parametrize("text", ["'; DROP TABLE message; --", "\udcff", "a\0b", "%", "____", ""])
def test_a_search_is_only_ever_compared(store: Store, text: str) -> None:
    publish(store, body=b"[]")
    assert _ids(store, search=text) == ([] if text else _ids(store))


def test_since_and_until_include_their_own_moment(store: Store, clock: FakeClock) -> None:
    ids, at_ms = [], []
    for _ in range(4):
        ids.append(put(store, State.DONE))
        at_ms.append(clock.wall)
        clock.advance(1)
    wanted = {"since_ms": at_ms[1], "until_ms": at_ms[2]}
    assert _ids(store, **wanted) == ids[2:0:-1]
    assert _ids(store, states=(State.DONE,), **wanted) == ids[2:0:-1]


def test_named_jobs_come_as_they_are_now_in_the_order_given(store: Store) -> None:
    ids = [publish(store) for _ in range(5)]
    store.acting.act(Event.CANCEL, [(ids[1], State.PENDING)], actor="op")
    store.database.write(lambda c: c.execute("DELETE FROM message WHERE id = ?", [ids[2]]).rowcount)
    found = store.reading.lists.again([ids[3], ids[2], ids[1], 4711, ids[4]])
    assert [(row.message_id, row.state) for row in found] == [
        (ids[3], State.PENDING),
        (ids[1], State.CANCELLED),
        (ids[4], State.PENDING),
    ]


def test_what_runs_is_listed_longest_running_first(store: Store, clock: FakeClock) -> None:
    ids = [publish(store) for _ in range(3)]
    taken = []
    for _ in ids:
        taken.append(claim_one(store))
        clock.advance(1)
    assert [row.message_id for row in store.reading.lists.longest_running(limit=2)] == ids[:2]
    store.settle([ended(taken[0], Outcome.dead(Fault("E", "e")))])
    assert [row.message_id for row in store.reading.lists.longest_running(limit=9)] == ids[1:]


# -- the tally --------------------------------------------------------------------------------------


def test_a_publish_of_many_takes_each_portion_into_the_tally(small: Store) -> None:
    small.publish([new() for _ in range(23)], durable=False)
    ((upto,),) = rows_of(small, "SELECT upto FROM counted")
    assert upto == 17  # the newest multiple of 4 is 20, and 3 stay out
    assert rows_of(small, "SELECT sum(messages) FROM tally") == [(16,)]
    assert small.reading.counts().states[State.PENDING] == 23


def test_what_says_zero_is_forgotten_when_the_next_portion_is_counted(small: Store) -> None:
    for number in range(8):
        put(small, State.PENDING, queue=f"mailbox-{number}")
    small.database.write(lambda c: c.execute("DELETE FROM message").rowcount)
    for _ in range(8):
        put(small, State.DONE)
    assert rows_of(small, "SELECT DISTINCT queue FROM tally") == [("default",)]


def test_a_wrong_tally_is_found_by_a_full_look_only(small: Store) -> None:
    for _ in range(9):
        put(small, State.DONE)
    small.database.write(lambda c: c.execute("UPDATE tally SET messages = messages + 1").rowcount)
    assert small.reading.broken_invariants() == {}
    assert small.reading.broken_invariants(full=True) == {
        "counts that differ from what is there": 1
    }


WRONG = (
    "DELETE FROM tally",
    "UPDATE tally SET messages = 0",
    "UPDATE tally SET messages = -5",
    "UPDATE tally SET messages = messages + 100, queue = 'other'",
    "UPDATE tally SET block = block - 7",
    "UPDATE tally SET block = block + 7",
    "UPDATE counted SET upto = 999999",
    "UPDATE counted SET upto = 2",
    "UPDATE counted SET upto = -3",
    "DELETE FROM counted",
)


@pytest.mark.parametrize("statement", WRONG)
def test_a_wrong_tally_stops_no_job_and_is_mended_by_counting_anew(
    small: Store, statement: str
) -> None:
    """A CHECK that counts are not negative would make each of these settlements fail."""
    ids = [publish(small) for _ in range(20)]
    small.database.write(lambda c: c.execute(statement).rowcount)
    for message_id in ids[:5]:
        taken = claim_one(small)
        assert taken.message_id == message_id
        assert small.settle([ended(taken, Outcome.done())]) == []
    assert small.reading.broken_invariants(full=True) == {WRONG_COUNTS: ANY}
    assert all(count >= 0 for count in small.reading.counts().states.values())

    told: list[tuple[int, int]] = []
    found = recount(small.database, lambda done, whole: told.append((done, whole)))
    assert found.blocks == len(told) == told[-1][0] == told[-1][1]
    assert small.reading.broken_invariants(full=True) == {}
    assert small.reading.counts().states[State.DONE] == 5
    assert len(every(small, JobFilter())) == 20
    assert recount(small.database).wrong == 0
    for message_id in [*ids[5:], *[publish(small) for _ in range(20)]]:
        taken = claim_one(small)
        assert taken.message_id == message_id
        small.settle([ended(taken, Outcome.done())])
    assert small.reading.broken_invariants(full=True) == {}


def test_an_empty_file_can_be_counted_anew(store: Store) -> None:
    assert recount(store.database) == Recounted(blocks=1, wrong=0)
    assert store.reading.broken_invariants(full=True) == {}


# -- plans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [*FILTERS, JobFilter(stalled=True)], ids=str)
@pytest.mark.parametrize("clause", [listing._IN_BLOCK, " AND m.id IN (:id)"])
def test_a_portion_is_found_by_its_ids_and_by_nothing_else(
    store: Store, chosen: JobFilter, clause: str
) -> None:
    where, _ = listing._where(chosen, 0)
    for query in (
        listing.JOB_COLUMNS + listing.FROM_MESSAGES + where + clause + listing._NEWEST_FIRST,
        listing._COUNT + listing.FROM_MESSAGES + where + clause,
    ):
        plan = _plan(store, query)
        (found,) = [line for line in plan if " m " in line]
        assert found.startswith("SEARCH m USING INTEGER PRIMARY KEY")
        assert not [line for line in plan if "TEMP B-TREE" in line or "SCAN" in line], plan


def _plan(store: Store, query: str) -> list[str]:
    values = dict.fromkeys(re.findall(r"(?<!:):(\w+)", query), 1)
    found = store.database.read(
        lambda c: c.execute("EXPLAIN QUERY PLAN " + query, values).fetchall()
    )
    return [line[3] for line in found]
