"""`app.testing()`: jobs of a test run on a file and a clock of its own, by a worker's own loop."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from freezegun import freeze_time

from sqlqueue import Backoff, Reject, Retry, SqlQueue
from sqlqueue.errors import JobFailed, TestingError
from sqlqueue_transport import presence, stores
from tests.support import open_names


@pytest.fixture
def app(here):
    """Be an application whose configured broker would fail when it was touched."""
    return SqlQueue("test", broker_url="sqlqueue:////nowhere/at/all/queue.db")


@pytest.fixture
def testing(app):
    with app.testing() as testing:
        yield testing


# --- draining --------------------------------------------------------------------------------------


def test_a_drain_runs_what_is_due_and_tells_what_ran(app, testing):
    @app.task(name="add", bind=True)
    def add(self, x, y=1):
        return x + y, self.request.attempt

    first, second = add.delay(2), add.apply_async((2, 3), queue="elsewhere", countdown=5)
    (ran,) = testing.drain()
    assert (ran.job_id, ran.task, ran.queue) == (first.id, "add", "default")
    assert (ran.attempt, ran.state, ran.result, ran.error) == (1, "done", [3, 1], None)
    assert first.get() == [3, 1]
    assert second.state == "scheduled"
    assert testing.drain() == []
    testing.advance(timedelta(seconds=5))
    assert [one.queue for one in testing.drain()] == ["elsewhere"]
    assert second.get() == [5, 1]


def test_nothing_of_the_configured_broker_is_opened_and_nothing_is_left(here):
    app = SqlQueue("test", broker_url="sqlqueue:///queue.db")
    app.task(name="t")(lambda: None)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    before = dict(presence._open_files)
    for _ in range(3):
        with app.testing() as testing:
            app.send_task("t")
            assert len(testing.drain()) == 1
            assert testing.path.exists()
            assert app.conf.broker_url.endswith(str(testing.path))
        assert not testing.path.parent.exists()
        assert open_names(testing.path.parent) == []
    assert list(here.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1
    assert presence._open_files == before
    assert app.conf.broker_url == "sqlqueue:///queue.db"


def test_what_threads_have_of_the_configured_broker_is_there_again_after_it(make_app):
    app = make_app()
    app.task(name="t")(lambda: 1)
    before = app.send_task("t")
    backend = app.backend
    with app.testing() as testing:
        assert app.backend is not backend
        app.send_task("t")
        thread = threading.Thread(target=app.send_task, args=("t",))
        thread.start()
        thread.join()
        assert len(testing.drain()) == 2
        assert before.state == "not_found"
    assert app.backend is backend
    assert before.state == "pending"


def test_an_exception_of_a_task_is_raised_when_all_has_run(app, testing):
    @app.task(name="bad")
    def bad():
        raise ZeroDivisionError("as it is")

    good = app.task(name="good")(lambda: "fine")
    failed, fine = bad.delay(), good.delay()
    with pytest.raises(ZeroDivisionError, match="as it is") as caught:
        testing.drain()
    assert "bad" in [entry.name for entry in caught.traceback]
    assert (failed.state, fine.state) == ("failed", "done")


def test_an_exception_is_kept_in_what_ran_for_whoever_asks(app, testing):
    @app.task(name="bad")
    def bad():
        raise ZeroDivisionError

    bad.delay()
    app.send_task("unknown")
    ran = testing.drain(reraise=False)
    assert [(one.state, type(one.error)) for one in ran] == [
        ("failed", ZeroDivisionError),
        ("permanently_failed", JobFailed),
    ]
    with pytest.raises(JobFailed, match="no task named 'unknown'"):
        raise ran[1].error


def test_what_no_worker_could_run_is_raised_too(app, testing):
    app.send_task("unknown")
    with pytest.raises(JobFailed, match="UnknownTask"):
        testing.drain()


def test_retry_and_reject_are_no_accidents(app, testing):
    @app.task(name="t", bind=True)
    def picky(self, kind):
        if self.request.attempt == 1:
            raise kind_of[kind]

    kind_of = {"retry": Retry(countdown=3), "reject": Reject("no")}
    jobs = [picky.delay("retry"), picky.delay("reject")]
    assert [one.state for one in testing.drain()] == ["failed", "permanently_failed"]
    testing.advance(3)
    assert [one.attempt for one in testing.drain()] == [2]
    assert [job.state for job in jobs] == ["done", "permanently_failed"]


def test_until_empty_runs_retries_and_delayed_jobs_to_their_end(app, testing):
    @app.task(name="t", bind=True, retry_jitter=False, retry_backoff=60)
    def flaky(self, good_at):
        if self.request.attempt < good_at:
            raise OSError("not yet")

    began = testing.now
    flaky.delay(3)
    later = flaky.apply_async((1,), eta=began + timedelta(days=30))
    ran = testing.drain(until_empty=True)
    assert [one.state for one in ran] == ["failed", "failed", "done", "done"]
    assert testing.now == began + timedelta(days=30)
    assert later.state == "done"

    flaky.delay(99)
    with pytest.raises(OSError, match="not yet"):
        testing.drain(until_empty=True)
    assert testing.jobs(state="permanently_failed")[0].attempts == 5


def test_a_drain_that_never_ends_is_ended(app, testing):
    @app.task(name="again")
    def again(countdown):
        again.apply_async((countdown,), countdown=countdown)

    for countdown in (0, 60):
        again.delay(countdown)
        with pytest.raises(TestingError, match="7 attempts have run, and there is more") as caught:
            testing.drain(until_empty=True, max_jobs=7)
        assert "again" in str(caught.value)


def test_exactly_as_many_jobs_as_allowed_are_no_error(app, testing):
    app.task(name="t")(lambda: None)
    for _ in range(3):
        app.send_task("t")
    assert len(testing.drain(max_jobs=3)) == 3


def test_a_task_that_exits_or_is_interrupted_does_not_end_the_test_unseen(app, testing):
    @app.task(name="t")
    def leaves(kind):
        raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt}[kind]

    leaves.delay("exit")
    with pytest.raises(SystemExit):
        testing.drain()
    leaves.delay("interrupt")
    behind = leaves.delay("exit")
    with pytest.raises(KeyboardInterrupt):
        testing.drain(reraise=False)
    assert behind.state == "pending"


def test_jobs_that_a_task_enqueues_run_in_the_same_drain_also_on_a_new_queue(app, testing):
    child = app.task(name="child")(lambda: "child")

    @app.task(name="parent")
    def parent():
        child.apply_async(queue="brand-new")

    parent.delay()
    assert [one.task for one in testing.drain()] == ["parent", "child"]


# --- time ------------------------------------------------------------------------------------------


def test_time_stands_still_until_it_is_advanced(app, testing):
    before = testing.now
    threading.Event().wait(0.01)
    assert testing.now == before
    assert testing.advance(1.5) == before + timedelta(seconds=1.5)
    assert before.tzinfo is timezone.utc
    assert abs(before - datetime.now(timezone.utc)) < timedelta(seconds=60)
    for bad in (-1, float("nan"), float("inf"), timedelta(seconds=-1)):
        with pytest.raises(TestingError, match="time only goes forward"):
            testing.advance(bad)


@pytest.mark.parametrize("bad", ["5", None, [1], b"5"])
def test_time_is_advanced_by_a_number_or_a_timedelta_only(testing, bad):
    before = testing.now
    with pytest.raises(TestingError, match="give seconds as a number, or a timedelta"):
        testing.advance(bad)
    assert testing.now == before


@pytest.mark.parametrize("far", [3e11, 1e308, timedelta.max, pytest.param(10**400, id="huge")])
def test_time_does_not_go_beyond_the_last_year(testing, far):
    testing.advance(timedelta(days=365 * 5000))
    before = testing.now
    with pytest.raises(TestingError, match="there is no time after the year 9999"):
        testing.advance(far)
    assert testing.now == before


def test_a_job_that_is_not_started_in_time_expires(app, testing):
    ran = []
    app.task(name="t")(lambda: ran.append(1))
    pending = app.send_task("t", expires=60)
    scheduled = app.send_task("t", expires=90, countdown=80)
    testing.advance(60)
    assert testing.drain() == []
    assert (pending.state, scheduled.state) == ("expired", "scheduled")
    testing.advance(60)
    assert testing.drain() == []
    assert scheduled.state == "expired"
    assert ran == []
    (first, second) = testing.jobs(state="expired")
    assert (first.id, second.id) == (pending.id, scheduled.id)
    with pytest.raises(JobFailed, match="expired"):
        pending.get()


def test_back_off_follows_the_policy_of_the_error(app, testing):
    @app.task(name="t", retry_policies={OSError: Backoff(first_s=60, jitter=False)})
    def down():
        raise OSError

    began = testing.now
    job = down.delay()
    testing.drain(reraise=False)
    (stored,) = testing.jobs()
    assert stored.due_at == began + timedelta(seconds=60)
    testing.advance(59.999)
    assert testing.drain() == []
    testing.advance(0.001)
    assert [one.attempt for one in testing.drain(reraise=False)] == [2]
    assert job.state == "failed"


def test_a_long_advance_ends_no_lease(app, testing):
    @app.task(name="slow")
    def slow():
        testing.advance(10 * 3600)

    slow.delay()
    assert [one.state for one in testing.drain()] == ["done"]


def test_frozen_time_is_followed(app):
    app.task(name="t")(lambda: datetime.now(timezone.utc).isoformat())
    with freeze_time("2030-01-01 12:00:00") as frozen, app.testing() as testing:
        assert testing.now == datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
        job = app.send_task("t", countdown=60)
        (stored,) = testing.jobs()
        assert stored.due_at == datetime(2030, 1, 1, 12, 1, tzinfo=timezone.utc)
        assert testing.drain() == []
        frozen.tick(60)
        assert [one.state for one in testing.drain()] == ["done"]
        assert job.get() == "2030-01-01T12:01:00+00:00"
        app.send_task("t", countdown=30)
        testing.advance(30)
        assert len(testing.drain()) == 1


def test_time_that_is_frozen_in_the_middle_is_followed_from_there_to_there(app, testing):
    app.task(name="t")(lambda: None)
    now = testing.now
    with freeze_time("2040-01-01"):
        assert testing.now.year == 2040
        app.send_task("t", countdown=1)
    assert testing.now == now
    assert testing.drain() == []
    with freeze_time("2040-01-02"):
        assert len(testing.drain()) == 1


# --- looking ---------------------------------------------------------------------------------------


def test_stored_jobs_can_be_looked_at(app, testing):
    app.task(name="mail", queue="mail", priority=3)(lambda to, subject: None)
    one = app.send_task("mail", ["a"], {"subject": "b"}, expires=60)
    app.send_task("other")
    (stored,) = testing.jobs(queue="mail")
    assert (stored.id, stored.task, stored.queue, stored.state) == (
        one.id,
        "mail",
        "mail",
        "pending",
    )
    assert (stored.args, stored.kwargs, stored.priority) == (("a",), {"subject": "b"}, 3)
    assert (stored.attempts, stored.result, stored.error, stored.due_at) == (0, None, None, None)
    assert stored.expires_at == testing.now + timedelta(seconds=60)
    assert [job.task for job in testing.jobs()] == ["mail", "other"]
    assert testing.jobs(task="other", state="done") == []
    with pytest.raises(ValueError, match="nonsense"):
        testing.jobs(state="nonsense")


def test_a_result_that_nobody_will_make_is_not_waited_for(app, testing):
    app.task(name="t")(lambda: 7)
    job = app.send_task("t")
    with pytest.raises(TestingError, match=r"is pending, and nobody runs jobs now. Call drain\(\)"):
        job.get()
    testing.drain()
    assert job.get() == 7


# --- what is refused -------------------------------------------------------------------------------


def test_testing_inside_of_testing_is_refused_also_from_another_thread(app, testing):
    caught = []

    def enter():
        with pytest.raises(TestingError, match="is in testing already"), app.testing():
            pass
        caught.append(True)

    enter()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert caught == [True, True]
    app.task(name="t")(lambda: None)
    app.send_task("t")
    assert len(testing.drain()) == 1


def test_two_applications_may_be_in_testing_at_once(here):
    apps = [SqlQueue(name) for name in ("a", "b")]
    for app in apps:
        app.task(name="t")(lambda: None)
    with apps[0].testing() as first, apps[1].testing() as second:
        apps[0].send_task("t")
        second.advance(3600)
        assert len(second.drain()) == 0
        assert len(first.drain()) == 1
        assert second.now - first.now > timedelta(minutes=59)


def test_a_task_that_drains_fails(app, testing):
    app.task(name="t")(testing.drain)
    app.send_task("t")
    with pytest.raises(TestingError, match="must not drain"):
        testing.drain()


def test_a_drain_within_a_running_loop_is_refused_before_an_async_task_is_claimed(app, testing):
    @app.task(name="a")
    async def a():
        return 7

    job = a.delay()

    async def drain():
        testing.drain()

    with pytest.raises(TestingError, match=r"running event loop, which the async task 'a' needs"):
        asyncio.run(drain())
    assert (job.state, testing.jobs()[0].attempts) == ("pending", 0)

    async def drain_in_a_thread():
        return await asyncio.to_thread(testing.drain)

    assert [one.result for one in asyncio.run(drain_in_a_thread())] == [7]


def test_a_drain_within_a_running_loop_runs_functions(app, testing):
    app.task(name="t")(lambda: 7)
    app.send_task("t")

    async def drain():
        return testing.drain()

    assert [one.result for one in asyncio.run(drain())] == [7]


def test_a_clock_cannot_be_put_into_an_open_file(make_app):
    app = make_app()
    store = app.backend.store
    with (
        pytest.raises(stores.TransportError, match="is open in this process"),
        stores.clock_of(store.path, store.clock),
    ):
        pass


# --- a real worker ---------------------------------------------------------------------------------


def test_a_worker_in_a_thread_serves_the_test_and_ends_with_it(app, testing):
    @app.task(name="t", bind=True, retry_backoff=0.01)
    def flaky(self):
        if self.request.attempt == 1:
            raise OSError
        return threading.current_thread().name

    began = testing.now
    with testing.worker():
        assert flaky.delay().get(timeout=30) == "sqlqueue-testing"
        assert flaky.apply_async(countdown=0.05).get(timeout=30) == "sqlqueue-testing"
        with pytest.raises(TestingError, match="wait for results instead"):
            testing.drain()
        with pytest.raises(TestingError, match="is at work already"), testing.worker():
            pass
    assert testing.now > began
    stopped = testing.now
    assert [one.name for one in threading.enumerate() if "sqlqueue" in one.name] == []
    assert app.backend.workers() == []
    flaky.delay()
    assert len(testing.drain(reraise=False)) == 1
    assert testing.now == stopped


def test_a_worker_that_crashes_fails_the_test_and_ends_the_wait(app, testing, monkeypatch):
    from sqlqueue.worker.consumer import Consumer

    def crash(self, taken):
        raise MemoryError("crashed")

    app.task(name="t")(lambda: None)
    monkeypatch.setattr(Consumer, "_start", crash)
    waited = []

    def waits():
        with testing.worker():
            job = app.send_task("t")
            with pytest.raises(TestingError, match="the worker crashed: MemoryError: crashed"):
                job.get(timeout=60)
            waited.append(True)

    with pytest.raises(TestingError, match="the worker crashed: MemoryError: crashed"):
        waits()
    assert waited
    monkeypatch.undo()


def test_a_drain_takes_no_real_time(app, testing):
    app.task(name="t", retry_backoff=3600)(lambda: 1 / 0)
    app.send_task("t", countdown=3600)
    began_s = time.monotonic()
    testing.drain(reraise=False, until_empty=True)
    assert time.monotonic() - began_s < 3600
    assert testing.path.parent != Path.cwd()
