"""Many calls, published in chunks of one transaction each."""

from __future__ import annotations

import pytest

from sqlqueue import BulkStopped, UnserializableArguments
from sqlqueue.backend import open_backend
from sqlqueue.errors import EnvelopeError
from sqlqueue_transport.reading import JobFilter
from tests.support import kill, read_line, run_python


@pytest.fixture
def add(app):
    return app.task(name="add", priority=4)(lambda x, y=0: x + y)


def stored(app):
    """Return the stored jobs, the first published first."""
    return app.backend.jobs(JobFilter(), limit=10_000)[::-1]


def test_map_enqueues_a_call_for_each_value_in_chunks_of_one_transaction(app, add):
    add.delay(0)  # declares the queue
    database = app.backend.store.database
    before, seen = database.write_transactions, []
    assert add.map(range(25), chunk=10, on_progress=lambda *of: seen.append(of)) == 25
    assert database.write_transactions - before == 3
    assert seen == [(10, 25), (20, 25), (25, 25)]
    assert len(stored(app)) == 26
    assert {row.priority for row in stored(app)} == {4}


def test_the_jobs_of_a_bulk_run_like_any_other(app, add):
    with app.testing() as testing:
        assert add.starmap([(1, 2), [3, 4]], queue="bulk", countdown=60) == 2
        assert add.map([5]) == 1
        ran = testing.drain(until_empty=True)
        assert [(one.result, one.queue) for one in ran] == [
            (5, "default"),
            (3, "bulk"),
            (7, "bulk"),
        ]


def test_a_generator_is_taken_a_chunk_at_a_time(app, add):
    taken, published = [], []

    def calls():
        for number in range(30):
            taken.append(number)
            yield add.s(number).set(queue=f"q{number % 2}")

    def on_progress(done, total):
        published.append((done, total, len(taken), len(stored(app))))

    assert app.publish_many(calls(), chunk=10, on_progress=on_progress) == 30
    assert published == [(10, None, 10, 10), (20, None, 20, 20), (30, None, 30, 30)]
    assert {row.queue for row in stored(app)} == {"q0", "q1"}


def test_nothing_to_publish_is_no_error_and_nothing_is_written(app, add):
    add.delay(0)
    before = app.backend.store.database.write_transactions
    seen = []
    assert add.map([], on_progress=lambda *of: seen.append(of)) == 0
    assert app.backend.store.database.write_transactions == before
    assert seen == []


def test_a_total_may_be_given_where_there_is_no_length(app, add):
    seen = []
    calls = (add.s(number) for number in range(3))
    app.publish_many(calls, total=3, on_progress=lambda *of: seen.append(of))
    assert seen == [(3, 3)]


def test_a_value_that_cannot_be_written_names_its_place_and_stops_before_its_chunk(app, add):
    values = [*range(13), object(), *range(6)]
    with pytest.raises(BulkStopped, match="call number 13, counted from 0, cannot") as caught:
        add.map(values, chunk=5)
    assert (caught.value.index, caught.value.published) == (13, 10)
    assert isinstance(caught.value.__cause__, UnserializableArguments)
    assert isinstance(caught.value, EnvelopeError)
    assert len(stored(app)) == 10


def test_what_the_iterable_raises_comes_through_with_the_chunks_before_it_stored(app, add):
    def values():
        yield from range(7)
        raise LookupError

    with pytest.raises(LookupError):
        add.map(values(), chunk=3)
    assert len(stored(app)) == 6


def test_own_ids_make_it_repeatable(app, add):
    for _ in range(2):
        assert add.map(range(20), chunk=7, job_id=lambda number: f"order-{number}") == 20
    assert [row.job_id for row in stored(app)] == [f"order-{number}" for number in range(20)]
    with pytest.raises(BulkStopped, match="job id"):
        add.starmap([(1, 2)], job_id=lambda _: "")


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True, "10"])
def test_a_chunk_that_is_no_number_is_refused(add, chunk):
    with pytest.raises(ValueError, match="chunk="):
        add.map([1], chunk=chunk)


def test_text_is_no_list_of_arguments(app, add):
    with pytest.raises(BulkStopped, match="Pass a list or tuple"):
        add.starmap(["ab"])
    with pytest.raises(BulkStopped, match="is no call"):
        app.publish_many([5])
    with pytest.raises(BulkStopped, match=r"'prio' is no option. Did you mean 'priority'"):
        add.map([1], prio=5)


def test_set_leaves_the_call_it_was_made_from_as_it_was(add):
    one = add.s(1)
    other = one.set(queue="q", priority=1).set(priority=2)
    assert (one.options, other.options) == ({}, {"queue": "q", "priority": 2})


def test_a_kill_between_two_chunks_leaves_whole_chunks_and_the_rest_can_follow(app, add, here):
    process = run_python(
        """
        import sys
        from sqlqueue import SqlQueue

        app = SqlQueue("test", broker_url="sqlqueue:///queue.db")
        add = app.task(name="add")(lambda x: x)

        def on_progress(done, total):
            print(done, flush=True)
            sys.stdin.readline()

        add.map(range(30), chunk=10, job_id=lambda x: f"j{x}", on_progress=on_progress)
        """,
        cwd=here,
    )
    assert read_line(process) == "10"
    kill(process)
    process.communicate()
    assert len(stored(app)) == 10
    add.map(range(30), job_id=lambda x: f"j{x}")
    assert [row.job_id for row in stored(app)] == [f"j{x}" for x in range(30)]


def test_a_broker_without_transactions_gets_them_one_by_one(make_app):
    # Kombu's queues in memory are the process's: other tests may have left something in the usual one.
    app = make_app(broker_url="memory://", task_default_queue="one_by_one")
    add = app.task(name="add")(lambda x: x)
    assert add.map(range(5), chunk=2) == 5
    backend = open_backend(app.conf)
    found, _ = backend.claim(["one_by_one"], 10, [])
    assert len(found) == 5
    backend.settle([])
    backend.close()
