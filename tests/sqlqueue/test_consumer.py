"""The loop that runs jobs: what commits when, what is waited out, and when it ends."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import threading
import time

import pytest

from sqlqueue.backend import Taken, open_backend
from sqlqueue.errors import JobCancelled
from sqlqueue.worker.consumer import Consumer
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.errors import DiskFault, FileReplaced
from sqlqueue_transport.lifecycle import Event
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.reading import JobFilter
from tests.support import finish, kill, read_line, run_python, say, wait_until


class Place:
    """Make consumers of one application and run them, here or in a thread."""

    def __init__(self, app):
        self.app = app
        self.backend = app.backend
        self.database = self.backend.store.database
        self.running = []

    def consumer(self, *, backend=None, **options):
        own = backend or self.backend

        def register():
            return own.register(name="w", kind="worker", queues=self.app.queues, slots=1)

        register()
        return Consumer(
            self.app, own, queues=self.app.queues, name="w", register=register, **options
        )

    def run(self, **options):
        self.consumer(**options).run()

    def start(self, **options):
        """Run a consumer in a thread, with a connection of its own."""
        backend = open_backend(self.app.conf)
        consumer = self.consumer(backend=backend, **options)

        def work():
            with contextlib.closing(backend):
                consumer.run()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self.running.append((consumer, thread))
        return consumer, thread

    def rows(self):
        return self.backend.jobs(JobFilter())[::-1]

    @property
    def states(self):
        return [row.state.value for row in self.rows()]


@pytest.fixture
def places():
    """Make places; their consumers are stopped in the end."""
    made = []

    def make(app):
        made.append(Place(app))
        return made[-1]

    yield make
    for consumer, thread in [pair for place in made for pair in place.running]:
        consumer.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.fixture
def place(app, places):
    return places(app)


# --- what commits when ----------------------------------------------------------------------------


def test_a_settlement_commits_with_the_next_claim_in_one_transaction(app, place):
    count = app.task(name="count")(lambda: place.database.write_transactions)
    results = [count.delay() for _ in range(4)]
    place.run(burst=True)
    counts = [result.get(timeout=0) for result in results]
    # One to settle the job before and claim this one; nothing else is written between two starts.
    assert [after - before for before, after in itertools.pairwise(counts)] == [1, 1, 1]
    # And one for the last of them, alone.
    assert place.database.write_transactions - counts[-1] == 1


def test_no_user_code_starts_while_a_settlement_waits(app, place):
    look = app.task(name="look")(lambda: place.states)
    results = [look.delay() for _ in range(3)]
    place.run(burst=True)
    assert [result.get(timeout=0) for result in results] == [
        ["processing", "pending", "pending"],
        ["done", "processing", "pending"],
        ["done", "done", "processing"],
    ]


def test_with_nothing_to_claim_a_settlement_commits_at_once_and_alone(app, place, monkeypatch):
    app.task(name="t")(lambda: None).delay()
    seen = []
    wait = place.backend.wait

    def watched(queues, timeout_s):
        seen.append(place.states)
        consumer.stop()
        return wait(queues, timeout_s)

    monkeypatch.setattr(place.backend, "wait", watched)
    consumer = place.consumer()
    consumer.run()
    assert seen == [["done"]]


def test_a_start_is_noted_before_user_code_and_forgotten_after_the_settlement(app, place):
    def noted():
        return [note.message_id for note, _ in place.backend.store.consumers.running().values()]

    first = app.task(name="t")(noted).delay()
    second = app.send_task("t")
    place.run(burst=True)
    ids = [row.message_id for row in place.rows()]
    assert [first.get(timeout=0), second.get(timeout=0)] == [[ids[0]], [ids[1]]]
    assert noted() == []


def test_the_time_limit_stands_in_the_note_for_the_supervisor_to_see(app, place):
    def limit_s():
        ((note, _),) = place.backend.store.consumers.running().values()
        return (note.deadline_ms - note.started_ms) / 1000 if note.deadline_ms else None

    limited = app.task(name="limited", time_limit=12.5)(limit_s).delay()
    unlimited = app.task(name="unlimited", time_limit=0)(limit_s).delay()
    usual = app.task(name="usual")(limit_s).delay()
    place.run(burst=True)
    assert [one.get(timeout=0) for one in (limited, unlimited, usual)] == [12.5, None, 3600]


def test_an_idle_consumer_writes_nothing_and_looks_once_a_second(app, place):
    place.start()
    wait_until(lambda: _sleeps(place), what="its sleep")
    writes, reads = place.database.write_transactions, place.database.read_transactions
    began_s = time.monotonic()
    threading.Event().wait(2.6)
    elapsed_s = time.monotonic() - began_s
    looks = place.database.read_transactions - reads
    print(f"{looks} read transactions in {elapsed_s:.1f} s")
    assert place.database.write_transactions == writes
    # A look is two small reads: is anything ready, and when is the next one due.
    assert looks <= 2 * (elapsed_s + 1)


# --- what is refused, busy or lost ----------------------------------------------------------------


def test_a_refused_settlement_is_logged_and_changes_nothing(app, place, events):
    @app.task(name="overtaken", bind=True)
    def overtaken(self):
        (row,) = place.rows()
        place.backend.act(Event.FAIL, [(row.message_id, row.state)], actor="me", reason="enough")
        return "too late"

    result = overtaken.delay()
    place.run(burst=True)
    (lost,) = events("lease_lost")
    assert (lost["job_id"], lost["task"], lost["queue"]) == (result.id, "overtaken", "default")
    assert (lost["delivery"], lost["level"]) == (1, "warning")
    assert (result.state, result.error) == ("permanently_failed", "FailedByOperator: enough")


def test_a_busy_store_is_waited_out_and_the_settlement_kept(make_app, places, events, here):
    app = make_app(transport_options={"busy_timeout": 0.1})
    place = places(app)
    blocker = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        sys.stdin.readline()
        connection.execute("ROLLBACK")
    """
    started, blockers = [], []

    @app.task(name="t")
    def t(number):
        started.append((number, place.states))
        if number == 1:
            blockers.append(run_python(blocker, here / "queue.db"))
            assert read_line(blockers[0]) == "locked"
        return number

    results = [t.delay(1), t.delay(2)]
    _, thread = place.start(burst=True)
    try:
        wait_until(lambda: len(events("store_busy")) >= 2, what="two vain settlements")
        # Nothing was claimed over the first job's head, nothing was run again.
        assert [number for number, _ in started] == [1]
    finally:
        say(blockers[0])
        finish(blockers[0])
    thread.join(timeout=30)
    assert started[1:] == [(2, ["done", "processing"])]
    assert [one.get(timeout=0) for one in results] == [1, 2]
    assert [one.attempts for one in results] == [1, 1]
    assert events("lease_lost") == []


def test_a_fault_while_idle_is_waited_out(app, place, events, monkeypatch):
    # The store itself cannot be made to fail in one read and not in the next.
    wait, faults = place.backend.wait, [DiskFault("disk I/O error"), DiskFault("disk I/O error")]

    def failing(queues, timeout_s):
        if faults:
            raise faults.pop()
        app.task(name="t")(lambda: 7).delay()
        return wait(queues, timeout_s)

    monkeypatch.setattr(place.backend, "wait", failing)
    place.run(max_jobs=1)
    assert place.states == ["done"]
    assert [one["error"] for one in events("store_busy")] == ["disk I/O error"] * 2


def test_a_consumer_taken_for_dead_registers_anew_and_goes_on(app, place, events):
    ids = []

    @app.task(name="swept", bind=True)
    def swept(self):
        consumers = place.backend.store.consumers
        ids.append(consumers.worker_id)
        if self.request.attempt == 1:
            consumers.end_worker(consumers.worker_id)
        return self.request.delivery

    result = swept.delay()
    after = app.task(name="after")(lambda: None).delay()
    place.run(burst=True)
    assert len(events("worker_swept")) == 1
    assert [one["job_id"] for one in events("lease_lost")] == [result.id]
    assert (result.state, result.attempts, result.get(timeout=0)) == ("done", 2, 2)
    assert after.state == "done"
    (worker,) = place.backend.workers()
    assert (worker.name, worker.kind, worker.id) == ("w", "worker", ids[-1])
    assert ids[0] < ids[-1]


def test_registering_anew_is_tried_until_it_works(app, place, events, monkeypatch):
    place.run(burst=True)  # registered
    register, failures = place.backend.register, [DiskFault("no room")]

    def failing(**options):
        if failures:
            raise failures.pop()
        return register(**options)

    consumer = place.consumer(burst=True)
    monkeypatch.setattr(place.backend, "register", failing)
    place.backend.store.consumers.end_worker(place.backend.store.consumers.worker_id)
    result = app.task(name="t")(lambda: 7).delay()
    consumer.run()
    assert result.get(timeout=0) == 7
    (worker,) = place.backend.workers()
    # Never as the nameless client that a claim registers by itself.
    assert (worker.name, worker.kind) == ("w", "worker")
    assert len(events("worker_swept")) == len(events("store_busy")) == 1


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_file_that_was_replaced_ends_the_consumer(app, place, here, is_idle):
    if not is_idle:

        @app.task(name="t")
        def t():
            shutil.move(here / "queue.db", here / "moved.db")
            # The writer looks at the path once a second.
            wait_until(lambda: _is_noticed(place.database), deadline_s=20)

        t.delay()
    consumer = place.consumer()
    if is_idle:
        shutil.move(here / "queue.db", here / "moved.db")
    with pytest.raises(FileReplaced):
        consumer.run()
    shutil.move(here / "moved.db", here / "queue.db")


def _is_noticed(database):
    try:
        database.write(lambda _: None)
    except FileReplaced:
        return True
    return False


def test_an_undecodable_message_is_a_dead_letter_of_one_attempt_with_its_reason(app, place, events):
    one = app.publication(app.task(name="t")(lambda: None).s())
    app.backend.publish([one])
    with contextlib.closing(sqlite3.connect("queue.db")) as connection, connection:
        connection.execute("UPDATE message SET body = x'ff'")
    unknown = app.send_task("nobody")
    place.run(burst=True)
    result = app.result(str(one.envelope.headers["id"]))
    assert (result.state, result.attempts) == ("permanently_failed", 1)
    assert result.error == "UndecodableMessage: its body is not UTF-8"
    assert (unknown.state, unknown.attempts) == ("permanently_failed", 1)
    assert unknown.error.startswith('UnknownTask: no task named "nobody\'s"') or (
        "no task named" in unknown.error
    )
    assert [one["task"] for one in events("job_permanently_failed")] == ["t", "nobody"]
    assert events("job_started") == []


# --- the log --------------------------------------------------------------------------------------


def test_a_job_is_told_from_its_start_to_its_end(app, place, events):
    @app.task(name="t", bind=True, max_attempts=3, retry_backoff=0.001)
    def t(self):
        if self.request.attempt < 3:
            raise ValueError("not yet")

    result = t.delay()
    place.run(burst=True)
    told = events("job_started", "job_retry_scheduled", "job_done", "job_permanently_failed")
    assert [(one["event"], one["attempt"]) for one in told] == [
        ("job_started", 1),
        ("job_retry_scheduled", 1),
        ("job_started", 2),
        ("job_retry_scheduled", 2),
        ("job_started", 3),
        ("job_done", 3),
    ]
    for one in told:
        assert (one["job_id"], one["task"], one["queue"]) == (result.id, "t", "default")
        assert one["max_attempts"] == 3
    assert told[1]["error"] == "ValueError: not yet"
    assert told[1]["retry_in_s"] <= 0.001
    assert told[-1]["took_s"] >= 0


def test_a_start_says_how_long_the_job_was_ready_and_not_how_long_ago_it_was_enqueued(
    app, place, events
):
    app.task(name="t")(lambda: None)
    waiting, retried, requeued = (app.send_task("t") for _ in range(3))
    ages = [
        "enqueued_at_ms = enqueued_at_ms - 90000",
        "enqueued_at_ms = enqueued_at_ms - 90000, due_at_ms = enqueued_at_ms - 30000",
        "enqueued_at_ms = enqueued_at_ms - 90000, run = 2",
    ]
    for result, age in zip((waiting, retried, requeued), ages, strict=True):
        place.database.write(
            lambda c, age=age, result=result: (
                c.execute(f"UPDATE message SET {age} WHERE job_id = ?", (result.id,)).rowcount
            )
        )
    place.run(burst=True)
    first, second, third = (one["waited_s"] for one in events("job_started"))
    assert 90 <= first < 120
    assert 30 <= second < 60
    assert third is None


# --- when it ends ---------------------------------------------------------------------------------


def test_stop_while_idle_returns_promptly(app, place):
    consumer, thread = place.start()
    wait_until(lambda: _sleeps(place), what="its sleep")
    began_s = time.monotonic()
    consumer.stop()
    thread.join(timeout=30)
    took_s = time.monotonic() - began_s
    print(f"stopped after {took_s * 1000:.1f} ms")
    assert took_s < 0.5


def _sleeps(place):
    return place.backend.store.consumers.sleepers._asleep


def test_a_publisher_wakes_an_idle_consumer(app, place):
    task = app.task(name="t")(time.monotonic)
    place.start()
    took_s = []
    for _ in range(5):
        wait_until(lambda: _sleeps(place), what="its sleep")
        began_s = time.monotonic()
        took_s.append(task.delay().get(timeout=30) - began_s)
    print("enqueued to started:", [f"{one * 1000:.1f} ms" for one in took_s])
    assert sorted(took_s)[2] < 0.2  # the safety poll would take half a second on average


def test_stop_lets_the_running_job_finish_and_takes_no_other(app, place):
    @app.task(name="t")
    def t():
        consumer.stop()
        return "finished"

    results = [t.delay(), t.delay()]
    consumer = place.consumer()
    consumer.run()
    assert results[0].get(timeout=0) == "finished"
    assert results[1].state == "pending"


def test_what_was_claimed_when_the_stop_came_is_released_uncounted(app, place, events, monkeypatch):
    app.task(name="t")(lambda: pytest.fail("it must not start")).delay()
    claim = place.backend.claim

    def stopping(*args):
        found = claim(*args)
        consumer.stop()
        return found

    monkeypatch.setattr(place.backend, "claim", stopping)
    consumer = place.consumer()
    consumer.run()
    (row,) = place.rows()
    assert (row.state.value, row.attempts) == ("pending", 0)
    assert len(events("job_released")) == 1


def test_a_stop_does_not_wait_for_a_busy_store_when_there_is_nothing_to_settle(
    app, place, monkeypatch
):
    def failing(*_):
        consumer.stop()
        raise DiskFault("no room")

    monkeypatch.setattr(place.backend, "claim", failing)
    consumer = place.consumer()
    consumer.run()


def test_max_jobs_ends_it_after_so_many_and_settles_the_last(app, place):
    task = app.task(name="t")(lambda: None)
    for _ in range(5):
        task.delay()
    place.run(max_jobs=2)
    assert place.states == ["done", "done", "pending", "pending", "pending"]
    place.run(max_jobs=0)
    assert place.states.count("done") == 2
    place.run(max_jobs=9, burst=True)
    assert place.states == ["done"] * 5


def test_a_burst_ends_at_once_when_there_is_nothing(place):
    place.run(burst=True)


def test_a_burst_waits_for_what_is_scheduled_or_failed(app, place, events):
    starts = []

    @app.task(name="t", bind=True, max_attempts=2)
    def t(self):
        starts.append(time.monotonic())
        if self.request.attempt == 1:
            self.retry(countdown=0.15)

    published_s = time.monotonic()
    t.apply_async(countdown=0.15)
    place.run(burst=True)
    assert place.states == ["done"]
    assert starts[0] - published_s >= 0.15
    assert starts[1] - starts[0] >= 0.15
    (waiting,) = events("burst_waiting")
    assert 0 < waiting["next_due_in_s"] <= 0.15


def test_a_burst_waits_for_what_another_process_holds(app, place, here):
    app.task(name="t")(lambda: None)
    result = app.send_task("t")
    holder = """
        import sys
        from sqlqueue import SqlQueue
        from sqlqueue.backend import Outcome

        backend = SqlQueue("other", broker_url="sqlqueue:///queue.db").backend
        backend.register(name="holder", kind="worker", queues=["default"], slots=1)
        ((taken,), _) = backend.claim(["default"], 1, [])
        print("claimed", flush=True)
        sys.stdin.readline()
        assert backend.settle([(taken, Outcome.done("7"))]) == []
    """
    process = run_python(holder, cwd=here)
    try:
        assert read_line(process) == "claimed"
        _, thread = place.start(burst=True)
        thread.join(timeout=0.6)
        assert thread.is_alive()
        say(process)
        finish(process)
        thread.join(timeout=30)
    finally:
        kill(process)
    assert not thread.is_alive()
    assert result.get(timeout=0) == 7


def test_a_burst_cares_for_its_own_queues_only(make_app, places):
    place = places(make_app(worker_queues=["mine"]))
    place.app.send_task("t", queue="others")
    place.run(burst=True)
    assert place.states == ["pending"]


def test_a_job_with_a_countdown_beyond_the_lease_runs_once(make_app, places):
    app = make_app(visibility_timeout=0.05)
    starts = []
    app.task(name="t")(lambda: starts.append(1)).apply_async(countdown=0.3)
    place = places(app)
    place.run(burst=True)
    assert (starts, place.states) == ([1], ["done"])


def test_an_outcome_of_release_is_only_the_consumers(app, place):
    # A task has no means to hand itself back uncounted: what it started counts.
    result = app.task(name="t", max_attempts=1)(Outcome.release).delay()
    place.run(burst=True)
    assert (result.state, result.attempts) == ("permanently_failed", 1)


# --- paused queues, weights, progress, and jobs that give up ----------------------------------------


def test_a_burst_does_not_wait_for_a_paused_queue_and_says_so(make_app, places, events):
    app = make_app(worker_queues=["mail", "sums"])
    place = places(app)
    left = app.send_task("t", queue="mail")
    app.task(name="t", queue="sums")(lambda: None).delay()
    place.backend.pause("mail", actor="ann")
    run_solo(app, name="w", burst=True, backend=place.backend, handle_signals=False)
    assert place.states == ["pending", "done"]
    (said,) = events("burst_left_paused")
    assert (said["queues"], said["level"]) == ({"mail": 1}, "warning")
    place.backend.resume("mail", actor="ann")
    run_solo(app, name="w", burst=True, backend=place.backend, handle_signals=False)
    assert left.state == "done"
    assert len(events("burst_left_paused")) == 1


def test_a_worker_with_weights_serves_no_queue_last(make_app, places):
    app = make_app(worker_queues=["high", "low"], worker_queue_weights={"high": 3, "low": 1})
    ran = []
    app.task(name="t", bind=True)(lambda self: ran.append(self.request.queue))
    for queue in ("high", "low"):
        for _ in range(100):
            app.send_task("t", queue=queue)
    place = places(app)
    place.run(max_jobs=100)
    # Strict order would have run 100 of the first queue and none of the other. That a lot of 3 to 1
    # gives the other less than 5 of 100 happens once in 10 million million times.
    assert 5 <= ran.count("low") <= 60
    place.run(burst=True)
    assert (ran.count("high"), ran.count("low")) == (100, 100)


def test_a_worker_without_weights_asks_its_queues_in_strict_order(make_app, places):
    app = make_app(worker_queues=["high", "low"])
    ran = []
    app.task(name="t", bind=True)(lambda self: ran.append(self.request.queue))
    for queue in ("low", "high"):
        for _ in range(10):
            app.send_task("t", queue=queue)
    places(app).run(burst=True)
    assert ran == ["high"] * 10 + ["low"] * 10


def test_what_a_task_says_of_itself_is_seen_while_it_runs_and_after(app, place):
    def progress():
        (row,) = place.rows()
        return row.progress and (row.progress.done, row.progress.total, row.progress.note)

    @app.task(name="t", bind=True)
    def t(self):
        seen = [progress()]
        self.progress(1, 3, "one")
        seen.append(progress())
        self.progress(2, 3)
        self.progress(3, 3, "three")
        return seen

    result = t.delay()
    place.run(burst=True)
    assert result.get(timeout=0) == [None, [1, 3, "one"]]
    # Said within half a second of the first word, and still not lost.
    assert progress() == (3, 3, "three")


def test_a_store_that_cannot_be_written_does_not_fail_the_task_that_tells_of_itself(
    app, place, events, monkeypatch
):
    def full(*_):
        raise DiskFault("the disk is full")

    monkeypatch.setattr(place.backend, "note_progress", full)
    app.task(name="t", bind=True)(lambda self: self.progress(1)).delay()
    place.run(burst=True)
    assert place.states == ["done"]
    assert [one["error"] for one in events("store_busy")] == ["the disk is full"]


def test_a_task_that_gives_up_by_itself_is_cancelled_and_not_run_again(app, place, events):
    @app.task(name="t")
    def t():
        try:
            raise JobCancelled("the order was withdrawn")  # noqa: TRY301 - as a helper of the task would
        except Exception:  # noqa: BLE001 - what a task does that goes on after each failure
            return "swallowed"

    result = t.delay()
    place.run(burst=True)
    assert (result.state, result.attempts) == ("cancelled", 1)
    assert result.error == "JobCancelled: the order was withdrawn"
    assert [one["event"] for one in events("job_cancelled", "job_done")] == ["job_cancelled"]


@pytest.mark.parametrize(
    ("raised", "state"), [(ValueError("no"), "cancelled"), (None, "done")], ids=["fails", "ends"]
)
def test_a_job_that_was_asked_to_stop_is_cancelled_unless_it_completes(app, place, raised, state):
    @app.task(name="t", bind=True)
    def t(self):
        (row,) = place.rows()
        asked = place.backend.act(Event.TERMINATE, [(row.message_id, row.state)], actor="ann")
        assert asked[0].holder == "worker"
        assert place.backend.stops_asked([_taken(row)]) == {row.message_id}
        if raised:
            raise raised

    result = t.delay()
    place.run(burst=True)
    assert result.state == state


def _taken(row):
    """Return the running delivery of a row as a backend hands it out."""
    return Taken(
        tag=None,
        headers={},
        body=b"",
        content_type=None,
        content_encoding=None,
        queue=row.queue,
        attempts=0,
        max_attempts=None,
        delivery=row.delivery,
        message_id=row.message_id,
    )
