"""Celery's result backend: what a Celery application sees of the results in the queue file."""

from __future__ import annotations

import itertools
import json
import pickle
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, chain, chord, group, states
from celery.app.task import Context
from celery.exceptions import ChordError, ImproperlyConfigured, TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult
from kombu import Exchange, Queue

from sqlqueue_transport import Store, celery_waiting, open_store, sleepers
from sqlqueue_transport.celery_backend import ResultBackend
from sqlqueue_transport.errors import Busy, CannotOpen, DatabaseMissing
from tests.celery.running import application, end, end_all, run, run_all, take
from tests.support import (
    end_processes,
    finish,
    in_forked_child,
    kill,
    read_line,
    run_python,
    say,
    wait_until,
)

since_5_7 = pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery can do so since 5.7")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    end_processes()
    end_all()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def app(path: Path) -> Iterator[Celery]:
    made = application(path)
    yield made
    end(made)


@pytest.fixture
def backend(app: Celery) -> ResultBackend:
    return app.backend


@pytest.fixture
def long_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody look by himself within a second, so that only a wake-up wakes."""
    monkeypatch.setattr(sleepers, "LONGEST_SLEEP_S", 60.0)
    monkeypatch.setattr(celery_waiting, "LONGEST_WAIT_S", 60.0)


def with_settings(path: Path, **settings: Any) -> Celery:
    return application(path, **settings)


def rows(app: Celery, query: str, *values: Any) -> list[tuple[Any, ...]]:
    return app.backend.store.database.read(lambda c: c.execute(query, values).fetchall())


def jobs(app: Celery, task: str) -> list[str]:
    """Return the ids of the jobs of a task that were ever published, in that order."""
    return [job_id for (job_id,) in rows(app, "SELECT id FROM jobs WHERE task = ?", task)]


# -- being found ------------------------------------------------------------------------------------


def test_celery_finds_it_by_its_url(app: Celery, path: Path) -> None:
    assert isinstance(app.backend, ResultBackend)
    assert (
        app.backend.as_uri() == app.backend.as_uri(include_password=True) == f"sqlqueue:///{path}"
    )
    assert app.backend.is_async
    assert app.backend.supports_autoexpire


@pytest.mark.parametrize("url", ["sqlqueue", "sqlqueue://", "sqlqueue://queue.db", "sqlqueue:///"])
def test_a_url_without_a_file_is_refused_with_a_way_out(path: Path, url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"sqlqueue:///queue\.db"):
        _ = application(path, backend=url).backend


def test_a_wrong_option_is_refused(path: Path) -> None:
    app = with_settings(path, result_backend_transport_options={"durability": "sometimes"})
    with pytest.raises(ImproperlyConfigured, match="durability"):
        _ = app.backend


def test_options_come_from_the_url_and_from_the_settings(path: Path) -> None:
    app = application(
        path,
        backend=f"sqlqueue:///{path}?busy_timeout=3&create=no",
        result_backend_transport_options={"durability": "full", "create": True},
    )
    assert app.backend.options.busy_timeout == 3
    assert app.backend.options.durability == "full"
    assert app.backend.options.create


def test_a_file_that_is_not_there_is_an_error_at_the_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = application(tmp_path / "queue.db", backend=f"sqlqueue:///{tmp_path}/no.db?create=no")
    monkeypatch.setattr(app.backend, "retry_policy", {"max_retries": 1, "interval_start": 0.01})
    with pytest.raises(DatabaseMissing, match=r"no\.db"):
        app.AsyncResult("a").get(timeout=5)
    with pytest.raises(DatabaseMissing, match=r"no\.db"):
        app.backend.store_result("a", 1, states.SUCCESS)


def test_it_survives_pickling_with_its_settings(app: Celery, path: Path) -> None:
    app.backend.store_result("a", 1, states.SUCCESS)
    copy = pickle.loads(pickle.dumps(app.backend))
    assert isinstance(copy, ResultBackend)
    assert copy.as_uri() == f"sqlqueue:///{path}"
    assert copy.expires == app.backend.expires
    assert copy.get_result("a") == 1
    copy.close()


def test_only_what_may_be_waited_out_is_tried_again(backend: ResultBackend) -> None:
    assert backend.exception_safe_to_retry(Busy("x"))
    assert not backend.exception_safe_to_retry(ValueError("x"))


# -- states and results -----------------------------------------------------------------------------


def test_each_state_is_stored_with_what_belongs_to_it(backend: ResultBackend) -> None:
    assert backend.get_state("a") == states.PENDING
    backend.mark_as_started("a", pid=5)
    assert backend.get_state("a") == states.STARTED
    assert backend.get_result("a") == {"pid": 5}
    backend.mark_as_retry("a", ValueError("again"), traceback="Traceback 1")
    assert backend.get_state("a") == states.RETRY
    assert backend.get_traceback("a") == "Traceback 1"
    backend.mark_as_failure("a", KeyError("gone"), traceback="Traceback 2")
    assert backend.get_state("a") == states.FAILURE
    assert repr(backend.get_result("a")) == repr(KeyError("gone"))
    assert backend.get_traceback("a") == "Traceback 2"
    backend.mark_as_done("a", {"an": ["answer"]})
    assert backend.get_state("a") == states.SUCCESS
    assert backend.get_result("a") == {"an": ["answer"]}
    assert backend.get_traceback("a") is None
    backend.mark_as_revoked("b", "because")
    assert backend.get_state("b") == states.REVOKED
    assert isinstance(backend.get_result("b"), TaskRevokedError)


def test_a_late_state_never_replaces_a_success(backend: ResultBackend) -> None:
    backend.mark_as_done("a", 1)
    backend.mark_as_failure("a", ValueError("late"))
    backend.mark_as_started("a")
    backend.mark_as_done("a", 2)
    assert backend.get_task_meta("a", cache=False)["result"] == 1


def test_a_success_stays_when_many_processes_store_other_states(app: Celery) -> None:
    code = """
        import sys
        from celery import states
        from tests.celery.running import application
        app = application(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(150):
            app.backend.store_result(f"t{number}", None, states.STARTED)
            if number % 4 == int(sys.argv[2]):
                app.backend.store_result(f"t{number}", number, states.SUCCESS)
            app.backend.store_result(f"t{number}", ValueError("late"), states.FAILURE)
        print("done", flush=True)
    """
    others = [run_python(code, app.backend.store.path, number) for number in range(4)]
    for one in others:
        read_line(one)
    for one in others:
        say(one)
    for one in others:
        finish(one, deadline_s=60)
    assert [app.AsyncResult(f"t{number}").get(timeout=1) for number in range(150)] == list(
        range(150)
    )


def test_the_children_of_a_job_are_kept(app: Celery) -> None:
    @app.task(name="parent", shared=False, bind=True)
    def parent(self: Any) -> None:
        app.tasks["add"].delay(1, 2)

    result = parent.delay()
    run_all(app)
    (child,) = app.AsyncResult(result.id).children
    assert child.get(timeout=5) == 3


def test_a_forgotten_result_is_gone(app: Celery) -> None:
    app.backend.store_result("a", 1, states.SUCCESS)
    result = app.AsyncResult("a")
    assert result.get(timeout=5) == 1
    result.forget()
    assert app.AsyncResult("a").state == states.PENDING


@since_5_7
def test_a_result_exists_or_not(app: Celery) -> None:
    assert not app.AsyncResult("a").exists()
    app.backend.mark_as_started("a")
    assert app.AsyncResult("a").exists()


def test_a_group_is_saved_restored_and_deleted(app: Celery) -> None:
    saved = GroupResult("g", [app.AsyncResult("a"), app.AsyncResult("b")], app=app)
    saved.save()
    restored = GroupResult.restore("g", app=app)
    assert restored == saved
    restored.delete()
    assert GroupResult.restore("g", app=app) is None


def test_extended_results_name_the_job(path: Path) -> None:
    app = with_settings(path, result_extended=True)
    result = app.tasks["add"].delay(1, 2)
    run_all(app)
    found = app.AsyncResult(result.id)
    assert (found.name, found.args, found.worker, found.queue) == (
        "add",
        [1, 2],
        "tests@here",
        "celery",
    )
    end(app)


@since_5_7
@pytest.mark.parametrize("method", ["gzip", "bzip2"])
def test_compressed_results_are_kept_byte_for_byte(path: Path, method: str) -> None:
    app = with_settings(path, result_compression=method)
    app.backend.store_result("a", "x" * 100_000, states.SUCCESS)
    assert rows(app, "SELECT length(value) < 10000 FROM result") == [(1,)]
    assert application(path).AsyncResult("a").get(timeout=5) == "x" * 100_000
    end(app)


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "json"])
def test_results_of_any_serializer_are_kept(path: Path, serializer: str) -> None:
    if serializer == "yaml":
        pytest.importorskip("yaml")
    app = with_settings(path, result_serializer=serializer, accept_content=["json", serializer])
    app.backend.store_result("a", {"ä": [1, None, "\x00"]}, states.SUCCESS)
    app.backend.store_result("b", ValueError("x"), states.FAILURE)
    assert app.AsyncResult("a").get(timeout=5) == {"ä": [1, None, "\x00"]}
    with pytest.raises(ValueError, match="x"):
        app.AsyncResult("b").get(timeout=5)
    end(app)


def test_a_key_prefix_keeps_two_applications_apart(path: Path) -> None:
    first = with_settings(path, result_backend_transport_options={"global_keyprefix": "one"})
    second = with_settings(path, result_backend_transport_options={"global_keyprefix": "two"})
    first.backend.store_result("a", 1, states.SUCCESS)
    second.backend.store_result("a", 2, states.SUCCESS)
    assert first.backend.get_result("a") == 1
    assert second.backend.get_result("a") == 2
    assert [key for (key,) in rows(first, "SELECT key FROM result ORDER BY id")] == [
        "one_celery-task-meta-a",
        "two_celery-task-meta-a",
    ]
    end(first)
    end(second)


@pytest.mark.parametrize("task_id", ["ä ö", "a'b%\"\n", "half \ud800 a pair", "x" * 5000, "n\x00l"])
def test_any_text_may_be_a_job_id(app: Celery, task_id: str) -> None:
    app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(task_id).get(timeout=5) == 1


def test_a_result_that_cannot_be_encoded_fails_its_job(app: Celery) -> None:
    @app.task(name="strange", shared=False)
    def strange() -> object:
        return object()

    result = strange.delay()
    run_all(app)
    with pytest.raises(Exception, match="not JSON serializable"):
        app.AsyncResult(result.id).get(timeout=5)


# -- growing old ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [(60, 60), (timedelta(minutes=2), 120), (None, None), (0, None)],
)
def test_results_live_as_long_as_the_settings_say(
    path: Path, expires: Any, seconds: float | None
) -> None:
    app = with_settings(path, result_expires=expires)
    before_ms = app.backend.store.clock.wall_ms()
    app.backend.store_result("a", 1, states.SUCCESS)
    app.backend.save_group("g", GroupResult("g", [], app=app))
    for (at_ms,) in rows(app, "SELECT expires_at_ms FROM result"):
        if seconds is None:
            assert at_ms is None
        else:
            assert 0 <= at_ms - before_ms - seconds * 1000 < 60_000
    end(app)


def test_what_has_expired_is_deleted_by_who_stores_the_next_result(path: Path) -> None:
    app = with_settings(path, result_expires=1)
    app.backend.store_result("a", 1, states.SUCCESS)
    app.backend.results.expire(app.backend.get_key_for_task("a"), -1)
    assert app.AsyncResult("a").state == states.PENDING
    app.backend.results._prune_next_ms = 0  # a minute has gone by
    app.backend.store_result("b", 1, states.SUCCESS)
    assert rows(app, "SELECT key FROM result") == [("celery-task-meta-b",)]
    end(app)


def test_cleaning_up_runs_to_the_end(backend: ResultBackend) -> None:
    for number in range(1100):
        backend.results.store(f"k{number}", "SUCCESS", b"x", expires_s=-1)
    backend.cleanup()
    assert backend.results.newest() == 0


def test_failures_may_have_a_lifetime_of_their_own(path: Path) -> None:
    app = with_settings(path, result_expires=None)
    app.backend.failure_expires = 60
    app.backend.store_result("a", ValueError(), states.FAILURE)
    app.backend.store_result("b", 1, states.SUCCESS)
    assert rows(app, "SELECT expires_at_ms IS NULL FROM result ORDER BY id") == [(0,), (1,)]
    end(app)


# -- waiting ----------------------------------------------------------------------------------------

STORER = """
    import sys, time
    from celery import states
    from tests.celery.running import application
    app = application(sys.argv[1])
    app.backend.get_state("warm")
    print("ready", flush=True)
    for line in sys.stdin:
        began_ns = time.monotonic_ns()
        for task_id in line.split():
            app.backend.store_result(task_id, task_id, states.SUCCESS)
        print(began_ns, flush=True)
"""


def start_storer(app: Celery) -> Any:
    storer = run_python(STORER, app.backend.store.path)
    assert read_line(storer) == "ready"
    return storer


def is_asleep(app: Celery) -> Any:
    bell = app.backend.store.consumers.bell
    return bell is not None and bell._somebody_listens


def test_who_waits_is_woken_at_once_and_does_not_poll(app: Celery) -> None:
    storer = start_storer(app)
    latencies_ms, reads = [], []
    for number in range(30):
        got: list[int] = []

        def wait(number: int = number, got: list[int] = got) -> None:
            assert app.AsyncResult(f"t{number}").get(timeout=20) == f"t{number}"
            got.append(time.monotonic_ns())

        before = app.backend.store.database.read_transactions
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: is_asleep(app), every_s=0.0005)
        say(storer, f"t{number}")
        began_ns = int(read_line(storer))
        thread.join(20)
        latencies_ms.append((got[0] - began_ns) / 1e6)
        reads.append(app.backend.store.database.read_transactions - before)
    print(
        f"from storing to get(): median {statistics.median(latencies_ms):.2f} ms, worst "
        f"{max(latencies_ms):.2f} ms; reads: {statistics.median(reads)}"
    )
    # Forgotten wake-ups would be seen after a second, Celery's own polling after half of one.
    assert statistics.median(latencies_ms) < 250
    assert statistics.median(reads) < 15


def test_who_waits_for_a_group_reads_each_result_once(app: Celery) -> None:
    storer = start_storer(app)
    ids = [f"t{number}" for number in range(500)]
    got: list[Any] = []
    read: list[str] = []

    def wait() -> None:
        backend = app.backend  # this thread's own
        decode = backend.decode_result
        backend.decode_result = lambda value: read.append(value) or decode(value)
        result = GroupResult("g", [app.AsyncResult(one) for one in ids], app=app)
        got.append(result.get(timeout=60))

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: is_asleep(app))
    began_s = time.monotonic()
    say(storer, " ".join(ids))
    thread.join(60)
    print(f"a group of {len(ids)} in {time.monotonic() - began_s:.2f} s, {len(read)} reads")
    assert got == [ids]
    assert len(read) <= len(ids) + 5


def test_what_is_there_already_is_got_without_sleeping(app: Celery) -> None:
    for number in range(3):
        app.backend.store_result(f"t{number}", number, states.SUCCESS)
    assert app.AsyncResult("t0").get(timeout=10) == 0
    both = GroupResult("g", [app.AsyncResult("t1"), app.AsyncResult("t2")], app=app)
    assert both.get(timeout=10) == [1, 2]
    assert both.join(timeout=10) == [1, 2]
    assert app.backend.store.consumers.bell is None  # nobody has slept


@pytest.mark.parametrize("timeout", [0.2, 1.3])
def test_who_waits_in_vain_waits_as_long_as_asked(app: Celery, timeout: float) -> None:
    began_s = time.monotonic()
    with pytest.raises(CeleryTimeoutError):
        app.AsyncResult("a").get(timeout=timeout)
    assert timeout <= time.monotonic() - began_s < timeout + 0.6


def test_a_failure_is_raised_where_it_is_waited_for(app: Celery) -> None:
    app.backend.mark_as_failure("a", ValueError("no such file"))
    with pytest.raises(ValueError, match="no such file"):
        app.AsyncResult("a").get(timeout=5)
    assert isinstance(app.AsyncResult("a").get(timeout=5, propagate=False), ValueError)


def test_states_before_the_end_are_told_to_who_asks_for_messages(app: Celery) -> None:
    told: list[str] = []
    thread = threading.Thread(
        target=lambda: app.AsyncResult("a").get(
            timeout=20, on_message=lambda meta: told.append(meta["status"])
        )
    )
    thread.start()
    wait_until(lambda: is_asleep(app))
    app.backend.mark_as_started("a")
    wait_until(lambda: told)
    app.backend.mark_as_done("a", 1)
    thread.join(20)
    assert told == [states.STARTED, states.SUCCESS]


@pytest.mark.parametrize("shared", [True, False])
def test_threads_wait_beside_each_other(path: Path, shared: bool) -> None:
    app = with_settings(path, result_backend_thread_safe=shared)
    storer = start_storer(app)
    ids = [f"t{number}" for number in range(12)]
    late_ms: list[float] = []
    stored_ns: dict[str, int] = {}

    def wait(task_id: str) -> None:
        assert app.AsyncResult(task_id).get(timeout=30) == task_id
        late_ms.append((time.monotonic_ns() - stored_ns.get(task_id, 0)) / 1e6)

    threads = [threading.Thread(target=wait, args=(one,)) for one in ids]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(app.backend.store.consumers.sleepers._asleep) == len(ids))
    for task_id in reversed(ids):
        stored_ns[task_id] = time.monotonic_ns()
        say(storer, task_id)
        read_line(storer)
    for thread in threads:
        thread.join(30)
    print(f"12 threads: worst {max(late_ms):.1f} ms")
    assert len(late_ms) == len(ids)
    assert statistics.median(late_ms) < 500
    end(app)


@since_5_7
def test_two_results_of_one_id_are_both_fulfilled(app: Celery) -> None:
    got: list[Any] = []
    results = [app.AsyncResult("a"), app.AsyncResult("a")]
    threads = [
        threading.Thread(target=lambda one=one: got.append(one.get(timeout=5))) for one in results
    ]
    threads[0].start()
    wait_until(lambda: is_asleep(app))
    app.backend.store_result("a", 1, states.SUCCESS)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert got == [1, 1]


def test_a_callback_is_called_when_the_result_is_there(app: Celery) -> None:
    called: list[Any] = []
    result = app.AsyncResult("a")
    result.then(lambda one: called.append(one.result))
    app.backend.store_result("a", 1, states.SUCCESS)
    assert app.AsyncResult("a").get(timeout=5) == 1
    assert result.get(timeout=5) == 1
    assert called == [1]


def test_results_that_nobody_holds_any_more_are_not_watched(app: Celery) -> None:
    consumer = app.backend.result_consumer
    result = app.tasks["add"].delay(1, 2)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.01)
    assert len(consumer._watched) == 1
    result.forget()
    assert not consumer._watched
    assert not consumer._unseen


def test_a_result_that_cannot_be_decoded_does_not_hide_the_others(app: Celery) -> None:
    first, second = app.AsyncResult("a"), app.AsyncResult("b")
    for one in (first, second):
        app.backend.add_pending_result(one)
    app.backend.results.store("celery-task-meta-a", "SUCCESS", b"{", expires_s=None)
    app.backend.store_result("b", 2, states.SUCCESS)
    with pytest.raises(Exception, match=r"Expecting|JSON|EOF|end of data|property"):
        app.backend.result_consumer._look()
    assert second._cache["result"] == 2


def test_a_result_goes_into_the_new_file_when_the_old_one_was_replaced(
    app: Celery, path: Path
) -> None:
    app.backend.store_result("a", 1, states.SUCCESS)
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        path.with_name(name).rename(path.with_name(f"old-{name}"))
    Store(path).close()  # somebody else's
    app.backend.store.database._watch.looked_at_s = 0.0
    app.backend.store_result("a", 2, states.SUCCESS)
    assert app.AsyncResult("a").get(timeout=5) == 2


def test_a_result_waits_for_a_file_that_is_away_for_a_moment(tmp_path: Path) -> None:
    """An error would leave a task that is done unacknowledged."""
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir(0o700)
    app = application(there / "queue.db")
    backend = app.backend  # this thread's; each has its own
    backend.store_result("a", 1, states.SUCCESS)
    there.rename(away)
    backend.store.database._watch.looked_at_s = 0.0
    thread = in_a_thread(lambda: backend.store_result("b", 2, states.SUCCESS))
    wait_until(lambda: backend._store is None)  # it has noticed
    away.rename(there)
    thread.join(20)
    assert not thread.is_alive()
    assert app.AsyncResult("b").get(timeout=5) == 2
    app.backend.close()


def test_a_file_that_stays_away_is_an_error_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = application(tmp_path / "nowhere" / "queue.db")
    monkeypatch.setattr(app.backend, "retry_policy", {"max_retries": 1, "interval_start": 0.01})
    with pytest.raises(CannotOpen):
        app.backend.store_result("a", 1, states.SUCCESS)


def test_who_waits_while_the_file_is_replaced_gets_what_is_in_the_new_one(
    app: Celery, path: Path
) -> None:
    for number in range(5):  # so that the row ids of the new file are none to wait for
        app.backend.store_result(f"old-{number}", 1, states.SUCCESS)
    got: list[Any] = []
    thread = in_a_thread(lambda: got.append(app.AsyncResult("a").get(timeout=20)))
    wait_until(lambda: is_asleep(app))
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        path.with_name(name).rename(path.with_name(f"old-{name}"))
    finish(run_python(STORE_ONE, path))
    thread.join(20)
    assert got == [1]


STORE_ONE = """
    import sys
    from celery import states
    from tests.celery.running import application
    application(sys.argv[1]).backend.store_result("a", 1, states.SUCCESS)
"""


def in_a_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_sleeper_is_told_of_a_key_it_did_not_lie_down_for(path: Path, long_naps: None) -> None:
    """A greenlet drains for all of them, and the next one comes when it sleeps already."""
    app = with_settings(path, result_backend_thread_safe=True)
    asleep = app.backend.store.consumers.sleepers._asleep
    thread = in_a_thread(lambda: app.AsyncResult("a").get(timeout=50))
    wait_until(lambda: is_asleep(app))
    app.backend.result_consumer.consume_from("b")
    wait_until(
        lambda: any("\x00celery-task-meta-b" in names for names, _ in list(asleep.values())),
        deadline_s=20,
    )
    app.backend.store_result("a", 1, states.SUCCESS)
    thread.join(20)
    assert not thread.is_alive()
    end(app)


def test_who_reads_what_another_thread_waits_for_wakes_it(
    path: Path, long_naps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = with_settings(path, result_backend_thread_safe=True)
    thread = in_a_thread(lambda: app.AsyncResult("a").get(timeout=50))
    wait_until(lambda: is_asleep(app))
    with monkeypatch.context() as patched:
        patched.setattr(app.backend.store.consumers, "wake", lambda *_, **__: None)
        app.backend.store_result("a", 1, states.SUCCESS)
    app.backend.result_consumer._look()
    thread.join(20)
    assert not thread.is_alive()
    end(app)


def test_what_was_handed_on_before_one_lies_down_is_not_slept_over(
    path: Path, long_naps: None
) -> None:
    """A thread finds its result absent; another one hands it on; then the first goes to sleep."""
    app = with_settings(path, result_backend_thread_safe=True)
    consumer = app.backend.result_consumer
    consumer.consume_from("a")
    consumer.consume_from("b")
    consumer.drain_events(0)
    consumer.drain_events(0)
    in_a_thread(lambda: (app.backend.store_result("a", 1, states.SUCCESS), consumer._look())).join()
    began_s = time.monotonic()
    consumer.drain_events(50)
    assert time.monotonic() - began_s < 20
    end(app)


def test_a_new_key_does_not_hide_what_is_new_for_an_old_one(app: Celery) -> None:
    first, second = app.AsyncResult("a"), app.AsyncResult("b")
    app.backend.add_pending_result(first)
    app.backend.result_consumer._look()
    app.backend.store_result("a", 1, states.SUCCESS)
    app.backend.add_pending_result(second)
    app.backend.result_consumer._look()
    assert first._cache["result"] == 1


def test_who_has_not_waited_for_a_while_does_not_read_what_others_stored(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CeleryTimeoutError):
        app.AsyncResult("a").get(timeout=0.01)
    app.backend.result_consumer.cancel_for("a")
    for number in range(20):
        app.backend.store_result(f"other-{number}", 1, states.SUCCESS)
    read_from: list[int] = []
    newer = app.backend.results.newer
    monkeypatch.setattr(
        app.backend.results,
        "newer",
        lambda seen, wants: read_from.append(seen) or newer(seen, wants),
    )
    with pytest.raises(CeleryTimeoutError):
        app.AsyncResult("b").get(timeout=0.01)
    assert min(read_from) == app.backend.results.newest()


GREENLETS = """
    import sys
    from gevent import monkey
    monkey.patch_all()
    import gevent, time
    from tests.celery.running import application
    is_shared = bool(int(sys.argv[2]))
    app = application(sys.argv[1], result_backend_thread_safe=is_shared)
    got = []
    def wait(name):
        got.append(app.AsyncResult(name).get(timeout=30))
    greenlets = [gevent.spawn(wait, f"t{number}") for number in range(20)]
    ticks = []
    def tick():
        while len(got) < 20:
            ticks.append(time.monotonic())
            gevent.sleep(0.005)
    ticking = gevent.spawn(tick)
    sleepers = app.backend.store.consumers.sleepers
    while len(sleepers._asleep) < (1 if is_shared else 20):
        gevent.sleep(0.005)
    while is_shared and len(app.backend.result_consumer._watched) < 20:
        gevent.sleep(0.005)
    print("asleep", flush=True)
    gevent.joinall(greenlets, timeout=30)
    done = time.monotonic_ns()
    ticking.join()
    print(sorted(got) == sorted(f"t{number}" for number in range(20)), flush=True)
    print(done, flush=True)
    print(max((b - a for a, b in zip(ticks, ticks[1:])), default=0.0), flush=True)
"""


@pytest.mark.parametrize("shared", [True, False])
def test_greenlets_wait_without_stopping_each_other(app: Celery, shared: bool) -> None:
    pytest.importorskip("gevent")
    storer = start_storer(app)
    waiter = run_python(GREENLETS, app.backend.store.path, int(shared))
    assert read_line(waiter) == "asleep"
    say(storer, " ".join(f"t{number}" for number in range(20)))
    began_ns = int(read_line(storer))
    assert read_line(waiter) == "True"
    late_ms = (int(read_line(waiter)) - began_ns) / 1e6
    longest_stop_ms = float(read_line(waiter)) * 1000
    print(f"20 greenlets: {late_ms:.1f} ms, longest standstill {longest_stop_ms:.1f} ms")
    assert late_ms < 2500
    assert longest_stop_ms < 2500


def test_a_forked_child_stores_results_for_its_parent(app: Celery) -> None:
    assert app.AsyncResult("a").state == states.PENDING
    with pytest.raises(CeleryTimeoutError):
        app.AsyncResult("a").get(timeout=0.01)
    assert in_forked_child(lambda: app.backend.store_result("a", 1, states.SUCCESS))
    assert app.AsyncResult("a").get(timeout=5) == 1


def test_a_forked_child_waits_by_itself(app: Celery) -> None:
    waiting = app.AsyncResult("parents")
    with pytest.raises(CeleryTimeoutError):
        waiting.get(timeout=0.01)
    thread = threading.Thread(target=lambda: app.AsyncResult("b").get(timeout=10))
    thread.start()
    wait_until(lambda: is_asleep(app))

    def wait() -> None:
        assert not app.backend.store.consumers.is_registered
        result = app.AsyncResult("a")
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=0.05)
        assert "celery-task-meta-parents" not in app.backend.result_consumer._watched
        app.backend.store_result("a", 1, states.SUCCESS)
        assert result.get(timeout=5) == 1

    assert in_forked_child(wait)
    app.backend.store_result("b", 1, states.SUCCESS)
    thread.join(10)
    assert not thread.is_alive()


# -- chords -----------------------------------------------------------------------------------------


def signatures(app: Celery) -> dict[str, Any]:
    """Return canvases by name, each with what its last task returns."""
    add, total, echo = (app.tasks[name] for name in ("add", "total", "echo"))
    header = [add.s(1, 1), add.s(2, 2)]
    return {
        "plain": (chord(header, total.s()), 6),
        "one member": (chord([add.s(1, 1)], echo.s()), [2]),
        "no member": (chord([], echo.s()), []),
        "a generator": (chord((add.s(n, n) for n in range(3)), echo.s()), [0, 2, 4]),
        "chain in the header": (
            chord([chain(add.s(1, 1), add.s(5)), add.s(2, 2)], echo.s()),
            [7, 4],
        ),
        "group in the header": (chord([group(header), add.s(5)], total.s()), 11),
        "group behind a chain in the header": (
            chord([chain(add.s(1, 1), group(add.s(5), add.s(6))), add.s(2, 2)], echo.s()),
            [[7, 8], 4],
        ),
        "chord in the header": (chord([chord(header, total.s()), add.s(2, 2)], echo.s()), [6, 4]),
        "chord with a group for a body in the header": (
            chord([chord(header, group(total.s(), echo.s())), add.s(2, 2)], echo.s()),
            [[6, [2, 4]], 4],
        ),
        "chain for a body": (chord(header, chain(total.s(), add.s(1), add.s(3))), 10),
        "group for a body": (chord(header, group(total.s(), echo.s())), [6, [2, 4]]),
        "chord for a body": (chord(header, chord([total.s(), total.s()], echo.s())), [6, 6]),
        "group behind group": (chain(group(header), group(echo.s(), total.s())), [[2, 4], 6]),
        "three groups": (chain(group(header), group(total.s(), total.s()), total.s()), 12),
        "one id twice": (chord([add.s(1, 1).set(task_id="same")] * 2, echo.s()), [2, 2]),
    }


NAMES = list(signatures(application("names.db")))


@pytest.mark.parametrize("name", NAMES)
def test_a_chord_of_every_shape_gives_its_body_what_its_members_returned(
    app: Celery, name: str
) -> None:
    signature, expected = signatures(app)[name]
    result = signature.delay()
    run_all(app)
    assert result.get(timeout=5) == expected
    assert rows(app, "SELECT count(*) FROM chord_member") == [(0,)]


@pytest.mark.parametrize("name", NAMES)
def test_members_may_end_in_any_order(app: Celery, name: str) -> None:
    signature, expected = signatures(app)[name]
    result = signature.delay()
    run_all(app, backwards=True)
    assert result.get(timeout=5) == expected


def test_the_body_is_published_in_the_transaction_that_counts_the_last_member(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    chord([add.s(1, 1), add.s(2, 2)], total.s()).delay()
    run(app, take(app))
    before = app.backend.store.database.write_transactions
    message = take(app)
    taken = app.backend.store.database.write_transactions - before
    run(app, message)
    # Its result, and its count with the body. Celery's own publish would be a third.
    assert app.backend.store.database.write_transactions - before - taken == 2
    assert len(jobs(app, "total")) == 1


def test_the_body_is_sent_as_the_settings_say(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    body = total.s().set(queue="other", priority=7, countdown=3600, task_id="body")
    chord([add.s(1, 1)], body).delay()
    run(app, take(app))
    assert rows(app, "SELECT queue, priority, state, job_id FROM message WHERE task = 'total'") == [
        ("other", 7, "scheduled", "body")
    ]


def test_a_member_that_fails_fails_the_body_and_calls_its_errbacks(app: Celery) -> None:
    add, fail, total, note = (app.tasks[name] for name in ("add", "fail", "total", "note_error"))
    result = chord([add.s(1, 1), fail.s(), add.s(2, 2)], total.s().on_error(note.s())).delay()
    assert run_all(app) == ["add", "fail", "add", "note_error"]
    error = app.AsyncResult(result.id).get(timeout=5, propagate=False)
    assert isinstance(error, ChordError)
    assert "raised ValueError('no such file')" in str(error)
    assert jobs(app, "total") == []
    assert rows(app, "SELECT * FROM chord") == []


def test_an_errback_that_takes_the_error_is_called_in_place(app: Celery) -> None:
    noted: list[Any] = []

    @app.task(name="note", shared=False)
    def note(request: Any, error: Any, traceback: Any) -> None:
        noted.append((request.id, error))

    result = chord([app.tasks["fail"].s()], app.tasks["total"].s().on_error(note.s())).delay()
    run_all(app)
    assert [(task_id, type(error)) for task_id, error in noted] == [(result.id, ChordError)]


@since_5_7
def test_a_failure_reaches_every_task_of_a_group_for_a_body(app: Celery) -> None:
    fail, total = app.tasks["fail"], app.tasks["total"]
    result = chord([fail.s()], group(total.s(), total.s())).delay()
    run_all(app)
    for one in result.results:
        assert app.AsyncResult(one.id).state == states.FAILURE


@pytest.mark.parametrize("body", ["a task", "a chain", "a group", "a chord"])
def test_a_failure_reaches_the_chord_around(app: Celery, body: str) -> None:
    add, fail, total, echo = (app.tasks[name] for name in ("add", "fail", "total", "echo"))
    bodies = {
        "a task": total.s(),
        "a chain": chain(total.s(), add.s(1)),
        "a group": group(total.s(), total.s()),
        "a chord": chord([total.s()], echo.s()),
    }
    outer = chord([chord([fail.s(), add.s(1)], bodies[body]), add.s(2)], echo.s()).delay()
    run_all(app)
    assert isinstance(app.AsyncResult(outer.id).get(timeout=5, propagate=False), ChordError)
    assert jobs(app, "total") == jobs(app, "echo") == []
    assert rows(app, "SELECT count(*) FROM chord_member") == [(0,)]


def test_a_failure_reaches_the_chain_behind(app: Celery) -> None:
    fail, total, add = app.tasks["fail"], app.tasks["total"], app.tasks["add"]
    result = chord([fail.s()], chain(total.s(), add.s(1))).delay()
    run_all(app)
    assert app.AsyncResult(result.id).state == states.FAILURE


def test_a_revoked_member_counts_as_failed(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1), add.s(2)], total.s()).delay()
    run(app, take(app))
    app.backend.mark_as_revoked("x", "revoked", request=request_of(take(app)))
    assert isinstance(app.AsyncResult(result.id).get(timeout=5, propagate=False), ChordError)


def request_of(message: Any) -> Context:
    """Return the request of a message, as a backend gets it."""
    args, kwargs, embed = message.decode()
    return Context({**message.headers, **embed, "args": args, "kwargs": kwargs})


def test_members_whose_results_are_ignored_count(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1).set(ignore_result=True), add.s(2)], total.s()).delay()
    run_all(app)
    assert result.get(timeout=5) == 3


def test_a_body_that_cannot_be_sent_fails(app: Celery) -> None:
    add, total, note = (app.tasks[name] for name in ("add", "total", "note_error"))
    body = total.s().set(serializer="no such thing").on_error(note.s())
    result = chord([add.s(1), add.s(2)], body).delay()
    assert run_all(app) == ["add", "add", "note_error"]
    error = app.AsyncResult(result.id).get(timeout=5, propagate=False)
    assert isinstance(error, ChordError)
    assert "Callback error" in str(error)


def test_a_body_whose_queue_is_full_fails_and_its_members_are_counted(path: Path) -> None:
    full = {"x-max-length": 0, "x-overflow": "reject-publish"}
    app = with_settings(
        path,
        task_queues=[
            Queue("celery", Exchange("celery"), "celery"),
            Queue("full", Exchange("full"), "full", queue_arguments=full),
        ],
    )
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1), add.s(2)], total.s().set(queue="full")).delay()
    run_all(app)
    error = app.AsyncResult(result.id).get(timeout=5, propagate=False)
    assert isinstance(error, ChordError)
    assert "Callback error" in str(error)
    assert rows(app, "SELECT * FROM chord") == []
    end(app)


def test_a_file_that_cannot_be_used_now_does_not_fail_the_body(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1)], total.s()).delay()
    message = take(app)

    def busy(*_: Any) -> None:
        raise Busy("somebody holds the writer lock")

    with monkeypatch.context() as patched:
        patched.setattr(app.backend, "_publish", busy)
        with pytest.raises(Busy):
            app.backend.on_chord_part_return(request_of(message), states.SUCCESS, 1)
    assert app.AsyncResult(result.id).state == states.PENDING
    run(app, message)
    run_all(app)
    assert result.get(timeout=5) == 1


def test_a_part_of_a_group_body_that_was_prepared_before_an_error_is_not_sent(app: Celery) -> None:
    add, total, echo = (app.tasks[name] for name in ("add", "total", "echo"))
    body = group(echo.s(), total.s().set(serializer="no such thing"))
    chord([add.s(1)], body).delay()
    run(app, take(app))
    assert jobs(app, "echo") == []


def test_a_member_that_is_delivered_again_counts_once(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1), add.s(2)], total.s()).delay()
    first, second = take(app), take(app)
    for _ in range(3):
        run(app, first)
    assert jobs(app, "total") == []
    for message in (second, first, second):
        run(app, message)
    assert len(jobs(app, "total")) == 1
    run_all(app)
    assert result.get(timeout=5) == 3


def test_a_chord_that_is_applied_again_under_its_ids_runs_its_body_again(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    signature = chord([add.s(1), add.s(2)], total.s())
    signature.freeze()
    late: list[Any] = []
    for turn in range(1, 4):
        signature.delay()
        messages = [take(app), take(app)]
        run(app, messages[0])
        for message in late:  # of the turn before: delivered again
            run(app, message)
        run(app, messages[1])
        late = messages
        assert len(jobs(app, "total")) == turn


def test_late_members_of_a_chord_do_not_count_when_it_is_applied_again(app: Celery) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    signature = chord([add.s(1), add.s(2)], total.s())
    signature.freeze()
    signature.delay()
    messages = [take(app), take(app)]
    for message in [*messages, *messages]:
        run(app, message)
    signature.delay()
    assert len(jobs(app, "total")) == 1
    for message in [take(app), *messages[:1]]:
        run(app, message)
    assert len(jobs(app, "total")) == 1
    run_all(app)
    assert len(jobs(app, "total")) == 2


def test_who_waits_for_the_body_is_woken(app: Celery, long_naps: None) -> None:
    add, total = app.tasks["add"], app.tasks["total"]
    chord([add.s(1)], total.s().set(queue="other")).delay()
    message = take(app)
    store: Store = app.backend.store
    woken: list[bool] = []
    thread = in_a_thread(
        lambda: woken.append(store.consumers.sleep(["other"], 50, has_work=store.has_work))
    )
    wait_until(lambda: is_asleep(app))
    run(app, message)
    thread.join(20)
    assert woken == [True]


def test_a_task_that_sends_a_chord_and_is_delivered_again_sends_one_body(app: Celery) -> None:
    """Its first life was killed after it had sent the header, and members of that have ended."""
    add, total, echo = (app.tasks[name] for name in ("add", "total", "echo"))
    chain(echo.s(1), chord([add.s(1), add.s(2)], total.s())).delay()
    sender = take(app)
    run(app, sender)
    first, second = take(app), take(app)
    run(app, first)
    run(app, sender)
    run(app, second)
    run_all(app)
    assert len(jobs(app, "total")) == 1


def test_a_member_may_add_others_to_its_chord(app: Celery) -> None:
    add, echo = app.tasks["add"], app.tasks["echo"]

    @app.task(name="grow", shared=False, bind=True)
    def grow(self: Any) -> str:
        for number in range(3):
            self.add_to_chord(add.s(number, 10))
        return "grown"

    result = chord([add.s(1), grow.s(), add.s(2)], echo.s()).delay()
    run_all(app)
    assert result.get(timeout=5) == [1, "grown", 10, 11, 12, 2]


def test_a_member_that_was_killed_after_adding_adds_the_same_places_again(app: Celery) -> None:
    add, echo = app.tasks["add"], app.tasks["echo"]
    kills = iter([True, False])

    @app.task(name="grow", shared=False, bind=True)
    def grow(self: Any) -> str:
        sent = self.add_to_chord(add.s(1, 10), lazy=True)
        if next(kills):
            raise SystemExit  # nothing of this delivery is stored or acknowledged
        sent.delay()
        self.add_to_chord(add.s(2, 10))
        return "grown"

    result = chord([grow.s(), add.s(2)], echo.s()).delay()
    message = take(app)
    with pytest.raises(SystemExit):
        run(app, message)
    run(app, message)
    run_all(app)
    assert result.get(timeout=5) == ["grown", 11, 12, 2]


def test_a_size_that_is_set_last_publishes_the_body(app: Celery) -> None:
    """Celery sets it before it sends the last member; nothing here relies on that."""
    add, total = app.tasks["add"], app.tasks["total"]
    set_size, sizes = app.backend.set_chord_size, []
    app.backend.set_chord_size = lambda *given: sizes.append(given)
    result = chord([add.s(1), add.s(2)], total.s()).delay()
    run_all(app)
    assert jobs(app, "total") == []
    set_size(*sizes[0])
    run_all(app)
    assert result.get(timeout=5) == 3


def test_results_in_another_file_than_the_broker_publish_first_and_mark_afterwards(
    tmp_path: Path,
) -> None:
    app = application(tmp_path / "broker.db", backend=f"sqlqueue:///{tmp_path}/results.db")
    for name in NAMES:
        signature, expected = signatures(app)[name]
        result = signature.delay()
        run_all(app)
        assert result.get(timeout=5) == expected, name
    add, total = app.tasks["add"], app.tasks["total"]
    chord([add.s(1)], total.s()).delay()
    broker = open_store(tmp_path / "broker.db")
    find = "SELECT count(*) FROM message WHERE task = 'total' AND state = 'pending'"
    seen: list[int] = []
    advance = app.backend.results.chords.advance

    def look_then_advance(*args: Any, **kwargs: Any) -> bool:
        seen.append(broker.database.read(lambda c: c.execute(find).fetchone()[0]))
        return advance(*args, **kwargs)

    app.backend.results.chords.advance = look_then_advance
    run(app, take(app))
    assert seen == [1]
    broker.close()
    end(app)


def test_an_eager_application_does_without_the_file(path: Path) -> None:
    app = with_settings(path, task_always_eager=True)
    add, total = app.tasks["add"], app.tasks["total"]
    assert chord([add.s(1), add.s(2)], total.s()).delay().get() == 3
    assert not path.exists()


# -- dying and racing -------------------------------------------------------------------------------


def test_a_kill_at_any_moment_of_the_last_member_leaves_it_with_its_body_or_without_both(
    tmp_path: Path,
) -> None:
    ends = set()
    for number in itertools.count(1):
        path = tmp_path / f"{number}.db"
        app = application(path)
        add, total = app.tasks["add"], app.tasks["total"]
        chord([add.s(1), add.s(2)], total.s()).delay()
        run(app, take(app))
        last = take(app)
        raw = [last.headers, last.decode(), last.delivery_info]
        end(app)

        def end_last(path: Path = path, raw: Any = raw) -> None:
            again = application(path)
            run(again, Again(*raw))
            end(again)

        is_done = in_forked_child(end_last, die_at_statement=number)
        app = application(path)
        published = len(jobs(app, "total"))
        is_counted = not rows(app, "SELECT 1 FROM chord")
        assert published == is_counted, number
        ends.add(is_counted)
        run(app, Again(*raw))  # it was not acknowledged, so it is delivered again
        assert len(jobs(app, "total")) == 1
        end(app)
        if is_done:
            break
    assert ends == {True, False}


class Again:
    """Be a message that is delivered again."""

    def __init__(self, headers: Any, decoded: Any, delivery_info: Any) -> None:
        self.headers, self.decoded, self.delivery_info = headers, decoded, delivery_info

    def decode(self) -> Any:
        return self.decoded


MEMBER = """
    import json, sys
    from celery.app.task import Context
    from tests.celery.running import application
    app = application(sys.argv[1])
    app.backend.get_state("warm")
    print("ready", flush=True)
    requests = json.loads(sys.stdin.readline())
    for request in requests:
        app.backend.mark_as_done(request["id"], 1, Context(request))
    print("done", flush=True)
"""


def test_the_last_members_of_chords_in_eight_processes_at_once_publish_each_body_once(
    app: Celery,
) -> None:
    chords, processes = 200, 8
    add, total = app.tasks["add"], app.tasks["total"]
    requests: list[list[dict[str, Any]]] = [[] for _ in range(processes)]
    for _ in range(chords):
        chord([add.s(1)] * processes, total.s()).delay()
        for place in requests:
            message = take(app)
            _, _, embed = message.decode()
            headers = message.headers
            place.append(
                {
                    "id": headers["id"],
                    "group": headers["group"],
                    "group_index": headers["group_index"],
                    "chord": embed["chord"],
                }
            )
    members = [run_python(MEMBER, app.backend.store.path) for _ in range(processes)]
    for process in members:
        read_line(process)
    for process, place in zip(members, requests, strict=True):
        say(process, json.dumps(place))
    began_s = time.monotonic()
    for process in members:
        finish(process, deadline_s=100)
    print(f"{chords} chords of {processes} in {time.monotonic() - began_s:.1f} s")
    bodies = jobs(app, "total")
    assert len(bodies) == len(set(bodies)) == chords
    assert rows(app, "SELECT count(*) FROM chord") == [(0,)]
    run_all(app)
    assert rows(
        app, "SELECT count(*) FROM result WHERE status = 'SUCCESS' AND key LIKE '%meta-%'"
    ) == [(chords * (processes + 1),)]


def test_a_killed_process_that_held_back_a_body_has_not_sent_it(app: Celery) -> None:
    """It was killed with the body in its hands: after Celery's publish, before the commit."""
    add, total = app.tasks["add"], app.tasks["total"]
    result = chord([add.s(1)], total.s()).delay()
    message = take(app)
    code = """
        import sys
        from sqlqueue_transport.chords import Chords
        from tests.celery.running import application, run, take
        app = application(sys.argv[1])
        def hang(*_, **__):
            print("prepared", flush=True)
            sys.stdin.readline()
        Chords.advance = hang
        message = app.connection_for_read().default_channel.basic_get("celery", no_ack=False)
        run(app, message)
    """
    chord([add.s(1)], total.s()).delay()
    process = run_python(code, app.backend.store.path)
    assert read_line(process) == "prepared"
    assert jobs(app, "total") == []
    kill(process)
    run(app, message)
    app.backend.store.consumers.sweep_all()
    run_all(app)
    assert len(jobs(app, "total")) == 2
    assert result.get(timeout=5) == 1


def test_a_waiting_process_that_is_killed_leaves_nothing_behind(app: Celery) -> None:
    code = """
        import sys
        from tests.celery.running import application
        app = application(sys.argv[1])
        print("ready", flush=True)
        app.AsyncResult("a").get(timeout=60)
    """
    process = run_python(code, app.backend.store.path)
    read_line(process)
    store: Store = app.backend.store
    wait_until(lambda: list(store.consumers.presence.sleepers("\x00celery-task-meta-a", None)))
    kill(process)
    app.backend.store_result("a", 1, states.SUCCESS)
    store.consumers.sweep_all()
    assert rows(app, "SELECT count(*) FROM worker WHERE ended_at_ms IS NULL") == [(0,)]
