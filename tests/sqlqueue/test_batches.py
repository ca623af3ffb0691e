"""Short jobs that a consumer claims, runs and settles together: cheaper, and nothing else changes."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
import time

import pytest

from sqlqueue.backend import open_backend
from sqlqueue.errors import SoftTimeLimitExceeded
from sqlqueue.worker import consumer
from sqlqueue.worker.consumer import Consumer
from sqlqueue.worker.runners import Threads
from sqlqueue_transport.reading import JobFilter
from tests.support import finish, run_python, wait_until

# So many short jobs, and a consumer is sure that they are short.
WARMING = 40


def consumer_of(app, backend, **options):
    def register():
        return backend.register(name="w", kind="worker", queues=app.queues, slots=1)

    register()
    return Consumer(app, backend, queues=app.queues, name="w", register=register, **options)


def rows(app):
    return app.backend.jobs(JobFilter(), limit=500)[::-1]


@pytest.fixture(autouse=True)
def is_short(monkeypatch):
    """Take any job for short: how long one takes on a busy machine is no matter of these tests."""
    monkeypatch.setattr(consumer, "BATCH_S", 3600.0)


@pytest.fixture
def in_thread():
    """Run a burst in a thread with a connection of its own; all are waited for in the end."""
    running = []

    def start(app, **options):
        backend = open_backend(app.conf)
        one = consumer_of(app, backend, **{"burst": True, **options})

        def work():
            with contextlib.closing(backend):
                one.run()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        running.append((one, thread))
        return one, thread

    yield start
    for one, thread in running:
        one.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture
def noop(app):
    return app.task(name="noop")(lambda: None)


def test_short_jobs_share_transactions(app, noop):
    database = app.backend.store.database
    for _ in range(200):
        noop.delay()
    before = database.write_transactions
    consumer_of(app, app.backend, burst=True).run()
    assert {row.state.value for row in rows(app)} == {"done"}
    # Fifteen or so until it is sure, then sixteen at once.
    assert database.write_transactions - before < 60


def test_one_at_a_time_where_that_is_wished(make_app):
    app = make_app(worker_prefetch_multiplier=1)
    noop = app.task(name="noop")(lambda: None)
    database = app.backend.store.database
    for _ in range(WARMING):
        noop.delay()
    before = database.write_transactions
    consumer_of(app, app.backend, burst=True).run()
    assert database.write_transactions - before >= WARMING


def test_jobs_of_a_batch_run_in_their_order_and_keep_their_results(app):
    ran = []

    @app.task(name="echo")
    def echo(value):
        ran.append(value)
        return value

    values = [*range(WARMING), "a", "ä" * 20, None, {"k": [1]}, "x" * 500, *range(100, 130)]
    results = [echo.delay(value) for value in values]
    consumer_of(app, app.backend, burst=True).run()
    assert ran == values
    assert [result.get(timeout=0) for result in results] == values
    assert {row.attempts for row in rows(app)} == {1}


# Fifty short jobs, so that what follows is claimed together; then one in which this process dies.
DYING = """
    import os, signal, sys
    from sqlqueue import SqlQueue
    from sqlqueue.worker import consumer
    from sqlqueue.worker.consumer import Consumer

    consumer.BATCH_S = consumer.PATIENCE_S = 3600.0
    app = SqlQueue("test", broker_url="sqlqueue:///queue.db")

    @app.task(name="note")
    def note(number):
        with open("ran.txt", "a") as file:
            file.write(f"{number}\\n")
        return number

    @app.task(name="die")
    def die():
        note(-1)
        os.kill(os.getpid(), signal.SIGKILL)

    def register():
        return app.backend.register(name="w", kind="child", queues=app.queues, slots=1)

    if sys.argv[1] == "publish":
        for number in range(50):
            note.delay(number)
        die.delay()
        for number in range(60, 90):
            note.delay(number)
    else:
        register()
        Consumer(
            app, app.backend, queues=app.queues, name="w", register=register, burst=True
        ).run()
"""


def test_a_kill_runs_nothing_again_that_had_ended_and_counts_only_what_ran(app, here):
    """The batch is settled as far as it got, by whoever finds the process dead."""
    finish(run_python(DYING, "publish", cwd=here))
    process = run_python(DYING, "work", cwd=here)
    assert process.wait(timeout=60) == -signal.SIGKILL
    ran = (here / "ran.txt").read_text().split()
    claimed = [row.message_id for row in rows(app) if row.state.value == "processing"]
    fatal = 51
    waiting = [message_id for message_id in claimed if message_id > fatal]
    # Or this test would show nothing: some had ended, and only the notes say so; some had not started.
    assert claimed[0] < fatal < claimed[-1]

    lost = app.backend.store.consumers.sweep()

    assert [(one.message_id, one.counted) for one in lost] == [
        (fatal, True),
        *[(message_id, False) for message_id in waiting],
    ]
    after = rows(app)
    assert [row.state.value for row in after] == [*["done"] * 50, "failed", *["pending"] * 30]
    assert [row.attempts for row in after] == [*[1] * 51, *[0] * 30]
    results = [app.backend.job(row.message_id).result for row in after[:50]]
    assert results == [str(number) for number in range(50)]
    assert ran == [*map(str, range(50)), "-1"]


def test_a_failure_in_a_batch_is_written_down_before_the_next_job_starts(app, noop):
    seen = []

    @app.task(name="fail", max_attempts=1)
    def fail():
        raise ValueError("no")

    @app.task(name="look")
    def look(message_id):
        seen.append(app.backend.job(message_id).row.state.value)

    for _ in range(WARMING):
        noop.delay()
    fail.delay()
    look.delay(WARMING + 1)
    consumer_of(app, app.backend, burst=True).run()
    assert seen == ["permanently_failed"]


@pytest.mark.parametrize("case", ["long", "sensitive"])
def test_what_cannot_be_noted_is_settled_before_the_next_job_starts(app, noop, case):
    seen = []
    speak = app.task(name="speak", sensitive=case == "sensitive")(
        lambda: "x" * (1 if case == "sensitive" else 100)
    )

    @app.task(name="look")
    def look(message_id):
        seen.append(app.backend.job(message_id).row.state.value)

    for _ in range(WARMING):
        noop.delay()
    speak.delay()
    look.delay(WARMING + 1)
    consumer_of(app, app.backend, burst=True).run()
    assert seen == ["done"]


def test_nothing_waits_behind_a_long_job_and_what_has_ended_shows(app, noop, in_thread):
    """Whatever was claimed with it is handed back, uncounted, for a sibling that idles."""
    goes_on = threading.Event()
    held = app.task(name="held")(lambda: goes_on.wait(60) and None)
    for _ in range(WARMING + 3):
        noop.delay()
    held.delay()
    for _ in range(5):
        noop.delay()
    _, thread = in_thread(app)
    try:
        wait_until(
            lambda: (
                [row.state.value for row in rows(app)]
                == [*["done"] * (WARMING + 3), "processing", *["pending"] * 5]
            ),
            what="the rest handed back",
        )
        assert [row.attempts for row in rows(app)[-5:]] == [0] * 5
        in_thread(app)  # the sibling
        wait_until(
            lambda: [row.state.value for row in rows(app)][-5:] == ["done"] * 5,
            what="the sibling's jobs",
        )
    finally:
        goes_on.set()
    thread.join(timeout=30)
    assert {row.state.value for row in rows(app)} == {"done"}
    assert {row.attempts for row in rows(app)} == {1}


def test_a_stop_in_a_batch_releases_the_rest_uncounted(app, noop):
    for _ in range(WARMING):
        noop.delay()

    @app.task(name="stop")
    def stop():
        running.stop()

    stop.delay()
    for _ in range(3):
        noop.delay()
    running = consumer_of(app, app.backend, burst=True)
    running.run()
    assert [row.state.value for row in rows(app)] == [*["done"] * (WARMING + 1), *["pending"] * 3]
    assert [row.attempts for row in rows(app)][-3:] == [0, 0, 0]


def test_no_more_is_claimed_than_may_be_run(app, noop):
    for _ in range(WARMING + 5):
        noop.delay()
    consumer_of(app, app.backend, max_jobs=WARMING + 2).run()
    states = [row.state.value for row in rows(app)]
    assert states == [*["done"] * (WARMING + 2), *["pending"] * 3]
    assert [row.delivery for row in rows(app)][-3:] == [0, 0, 0]


def test_jobs_that_are_not_short_are_claimed_one_at_a_time(app, monkeypatch):
    monkeypatch.setattr(consumer, "BATCH_S", 0.01)
    waiting = []

    @app.task(name="slow")
    def slow():
        time.sleep(0.012)
        waiting.append([row.state.value for row in rows(app)].count("pending"))

    for _ in range(6):
        slow.delay()
    consumer_of(app, app.backend, burst=True).run()
    assert waiting == [5, 4, 3, 2, 1, 0]


def test_what_waits_behind_a_failure_is_not_started_when_its_lease_is_over(make_app, monkeypatch):
    """As in a process that was stopped in the middle of a batch: the rest is somebody else's by now."""
    monkeypatch.setattr(consumer, "PATIENCE_S", 3600.0)  # its threads were stopped, too
    app = make_app(visibility_timeout=1.0)
    noop = app.task(name="noop")(lambda: None)
    sweep = app.backend.store.consumers.sweep
    ran = []

    @app.task(name="late", max_attempts=1)
    def late():
        wait_until(sweep, what="the end of the leases")
        raise ValueError("no")

    @app.task(name="after", bind=True)
    def after(self):
        ran.append(self.request.delivery)

    for _ in range(WARMING):
        noop.delay()
    late.delay()
    after.delay()
    consumer_of(app, app.backend, burst=True).run()
    assert ran == [2]
    assert [row.attempts for row in rows(app)][-2:] == [1, 1]


def test_what_waits_in_a_process_that_was_taken_for_dead_is_not_started(app, noop, monkeypatch):
    monkeypatch.setattr(consumer, "PATIENCE_S", 3600.0)  # or a slow machine hands the rest back
    consumers = app.backend.store.consumers
    ran = []

    @app.task(name="swept", max_attempts=1)
    def swept():
        consumers.end_worker(consumers.worker_id)
        raise ValueError("no")

    @app.task(name="after", bind=True)
    def after(self):
        ran.append(self.request.delivery)

    for _ in range(WARMING):
        noop.delay()
    swept.delay()
    after.delay()
    consumer_of(app, app.backend, burst=True).run()
    assert ran == [2]
    assert [row.attempts for row in rows(app)][-2:] == [1, 1]


@pytest.fixture
def foreigner(here):
    """Be a program that is not ours, and that can hold SQLite's write lock."""
    with contextlib.closing(sqlite3.connect(here / "queue.db", isolation_level=None)) as one:
        yield one


def test_what_could_not_be_handed_back_runs_before_more_is_claimed(make_app, foreigner):
    """Or more would end than can be noted, and be started under leases of another age."""
    app = make_app(transport_options={"busy_timeout": 0.2})
    noop = app.task(name="noop")(lambda: None)
    waited_at_claims = []
    claim = app.backend.claim

    def watched_claim(queues, limit, settlements):
        if threading.current_thread() is not threading.main_thread():
            return claim(queues, limit, settlements)
        if foreigner.in_transaction:  # what was to be handed back has been put back by now
            foreigner.execute("ROLLBACK")
            waited_at_claims.append(len(running._waiting))
        assert not (limit and running._waiting)
        return claim(queues, limit, settlements)

    @app.task(name="held")
    def held():
        foreigner.execute("BEGIN IMMEDIATE")
        wait_until(lambda: not running._waiting, what="the rest taken, to be handed back")

    for _ in range(WARMING + 3):
        noop.delay()
    held.delay()
    for _ in range(40):
        noop.delay()
    app.backend.claim = watched_claim
    running = consumer_of(app, app.backend, burst=True)
    running.run()
    assert waited_at_claims[0] > 0  # or this test would show nothing
    assert {row.state.value for row in rows(app)} == {"done"}
    assert {row.attempts for row in rows(app)} == {1}


def test_a_busy_store_keeps_no_soft_limit_from_the_job_before_those_that_wait(app, noop, foreigner):
    seen = []

    @app.task(name="held", soft_time_limit=0.5, max_attempts=1)
    def held():
        foreigner.execute("BEGIN IMMEDIATE")
        try:
            wait_until(lambda: False, deadline_s=20)
        except SoftTimeLimitExceeded:
            seen.append("limit")
        finally:
            foreigner.execute("ROLLBACK")

    for _ in range(WARMING + 3):
        noop.delay()
    held.delay()
    for _ in range(3):
        noop.delay()
    consumer_of(app, app.backend, burst=True).run()
    assert seen == ["limit"]


def test_an_end_that_is_noted_is_counted_for_who_replaces_this_process(app, noop):
    """Killed before the settlement, it is done all the same, and one of so many jobs that may run."""
    counted, seen = [], []

    @app.task(name="look")
    def look():
        seen.append(len(counted))

    for _ in range(WARMING + 3):
        noop.delay()
    for _ in range(5):
        look.delay()
    consumer_of(app, app.backend, burst=True, count_ended=lambda: counted.append(1)).run()
    assert seen == [WARMING + 3 + number for number in range(5)]
    assert len(counted) == WARMING + 8


def test_who_was_stopped_just_before_a_start_was_noted_starts_nothing(make_app, monkeypatch):
    """Whoever saw the lease end found no start: the job is another's by now, and no attempt counted."""
    app = make_app(visibility_timeout=1.0)
    noop = app.task(name="noop")(lambda: None)
    ran = []
    late = app.task(name="late")(lambda: ran.append(1))
    prepare = consumer.execute.prepare

    def slow_prepare(app, taken, **options):
        if taken.headers["task"] == "late" and taken.delivery == 1:
            wait_until(app.backend.store.consumers.sweep, what="the lease's end")
        return prepare(app, taken, **options)

    monkeypatch.setattr(consumer.execute, "prepare", slow_prepare)
    noop.delay()
    late.delay()
    noop.delay()
    consumer_of(app, app.backend, burst=True, max_jobs=3).run()
    assert ran == [1]
    assert [row.state.value for row in rows(app)] == ["done"] * 3
    assert [row.attempts for row in rows(app)] == [1, 1, 1]


def test_a_pool_of_one_thread_claims_each_job_alone(app, noop):
    """It starts a job and goes on, so there is no place for the next one."""
    for _ in range(WARMING + 5):
        noop.delay()
    runner = Threads(1, on_end=app.backend.interrupt)
    consumer_of(app, app.backend, burst=True, runner=runner).run()
    assert [row.state.value for row in rows(app)] == ["done"] * (WARMING + 5)
    assert {row.attempts for row in rows(app)} == {1}
