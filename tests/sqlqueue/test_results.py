"""What a caller learns of a job, in every state it can be in."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from freezegun import freeze_time

from sqlqueue import AsyncResult, Reject
from sqlqueue.errors import JobFailed, JobNotFound, ResultTimeout
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Fault, Outcome
from tests.support import finish, run_python


@pytest.fixture
def task(app):
    return app.task(name="add")(lambda x, y=0: x + y)


def claim(app):
    """Take the next job, as a worker does that has started it."""
    app.backend.register(name="w", kind="worker", queues=app.queues, slots=1)
    ((taken,), _) = app.backend.claim(app.queues, 1, [])
    app.backend.note_start(0, taken, 0, 5)
    return taken


def settle(app, outcome):
    assert app.backend.settle([(claim(app), outcome)]) == []
    app.backend.note_end(0)


def act(app, result, event, reason=None):
    row = result._row()
    (acted,) = app.backend.act(event, [(row.message_id, row.state)], actor="me", reason=reason)
    assert acted.after is not None


def all_of(result):
    return result.state, result.attempts, result.error, result.traceback


BOOM = Fault("ValueError", "boom", "Traceback …\nValueError: boom\n")


def test_an_unknown_id_is_not_found(app):
    result = app.result("nobody")
    assert all_of(result) == ("not_found", 0, None, None)
    with pytest.raises(JobNotFound, match="no job has the id 'nobody'") as caught:
        result.get(timeout=5)
    assert caught.value.job_id == "nobody"


def test_a_pending_job_has_no_attempts_and_get_times_out(app, task):
    result = task.delay(1)
    assert all_of(result) == ("pending", 0, None, None)
    with pytest.raises(ResultTimeout, match="is pending after 0 s; it goes on") as caught:
        result.get(timeout=0)
    assert isinstance(caught.value, TimeoutError)
    began_s = time.monotonic()
    with pytest.raises(ResultTimeout, match="serving the queue 'default'"):
        result.get(timeout=0.15)
    assert 0.15 <= time.monotonic() - began_s < 5


def test_a_scheduled_job_says_so(app, task):
    assert all_of(task.apply_async([1], countdown=60)) == ("scheduled", 0, None, None)


def test_a_running_job_counts_its_attempt(app, task):
    result = task.delay(1)
    claim(app)
    assert all_of(result) == ("processing", 1, None, None)


def test_a_done_job_has_its_result(app, task):
    result = task.delay(1)
    settle(app, Outcome.done('{"a": [1, null]}'))
    assert all_of(result) == ("done", 1, None, None)
    assert result.get() == {"a": [1, None]}


def test_a_job_acknowledged_without_a_result_returns_none(app, task):
    result = task.delay(1)
    settle(app, Outcome.done())
    assert result.get(timeout=0) is None


def test_a_failed_job_shows_its_error_and_waits_for_its_next_attempt(app, task):
    result = task.delay(1)
    settle(app, Outcome.retry(BOOM, in_s=60))
    assert all_of(result) == ("failed", 1, "ValueError: boom", BOOM.traceback)
    with pytest.raises(ResultTimeout, match="is failed after"):
        result.get(timeout=0)


def test_an_error_that_was_mended_is_shown_no_more(app, task):
    result = task.delay(1)
    settle(app, Outcome.retry(BOOM, in_s=0))
    settle(app, Outcome.done("7"))
    assert all_of(result) == ("done", 2, None, None)
    assert result.get(timeout=0) == 7


def test_a_permanently_failed_job_raises_with_error_and_traceback(app, task):
    result = task.delay(1)
    settle(app, Outcome.dead(BOOM))
    assert all_of(result) == ("permanently_failed", 1, "ValueError: boom", BOOM.traceback)
    with pytest.raises(JobFailed, match=f"job {result.id} failed: ValueError: boom") as caught:
        result.get(timeout=0)
    failed = caught.value
    assert (failed.job_id, failed.error_type, failed.error_message, failed.traceback) == (
        result.id,
        "ValueError",
        "boom",
        BOOM.traceback,
    )


def test_an_error_without_words_is_shown_by_its_type(app, task):
    result = task.delay(1)
    settle(app, Outcome.dead(Fault("KeyboardInterrupt", "")))
    assert result.error == "KeyboardInterrupt"


def test_a_cancelled_job_raises(app, task):
    result = task.delay(1)
    act(app, result, Event.CANCEL)
    assert all_of(result) == ("cancelled", 0, None, None)
    with pytest.raises(JobFailed, match="failed: cancelled"):
        result.get(timeout=0)


def test_an_expired_job_raises(app, task):
    with freeze_time(datetime(2026, 1, 1, tzinfo=timezone.utc)):
        result = task.apply_async([1], expires=1)
    app.backend.register(name="w", kind="worker", queues=app.queues, slots=1)
    assert app.backend.claim(app.queues, 1, [])[0] == []
    assert all_of(result) == ("expired", 0, None, None)
    with pytest.raises(JobFailed, match="failed: expired"):
        result.get(timeout=0)


def test_what_an_operator_failed_shows_his_reason_and_no_older_traceback(app, task):
    result = task.delay(1)
    settle(app, Outcome.retry(BOOM, in_s=60))
    act(app, result, Event.FAIL, reason="it never will")
    assert all_of(result) == (
        "permanently_failed",
        1,
        "FailedByOperator: it never will",
        None,
    )


def test_a_requeued_job_starts_anew(app, task):
    result = task.delay(1)
    settle(app, Outcome.dead(BOOM))
    act(app, result, Event.REQUEUE)
    assert all_of(result) == ("pending", 0, None, None)
    settle(app, Outcome.done("7"))
    assert all_of(result) == ("done", 1, None, None)
    act(app, result, Event.REQUEUE)
    settle(app, Outcome.dead(BOOM))
    assert result.traceback == BOOM.traceback


def test_every_state_there_is_has_a_test_here():
    tested = {"pending", "scheduled", "processing", "done", "failed", "permanently_failed"}
    assert {state.value for state in State} == tested | {"cancelled", "expired"}


def test_an_id_that_several_messages_share_means_the_newest(app, task):
    one = app.publication(task.s(1))
    app.backend.publish([one])
    settle(app, Outcome.done("1"))
    app.backend.publish([one])
    result = app.result(str(one.envelope.headers["id"]))
    assert result.state == "pending"


def test_get_returns_as_soon_as_another_process_has_run_the_job(here, app):
    program = """
        from sqlqueue import SqlQueue
        from sqlqueue.worker.solo import run_solo

        app = SqlQueue("test", broker_url="sqlqueue:///queue.db")
        app.task(name="add")(lambda x, y=0: x + y)
        run_solo(app, name="w", max_jobs=1)
    """
    result = app.task(name="add")(lambda x, y=0: x + y).delay(2, y=3)
    worker = run_python(program, cwd=here)
    try:
        assert result.get(timeout=30) == 5
    finally:
        finish(worker)


def test_asking_does_not_read_the_body_of_the_job(app, task):
    result = task.delay("x" * 500_000)
    database = app.backend.store.database
    before = database.read_transactions
    assert result.state == "pending"
    assert database.read_transactions == before + 1


def test_a_result_shows_its_id(app):
    assert repr(AsyncResult("a", lambda: app.backend)) == "<AsyncResult a>"


def test_a_whole_failure_reads_as_the_task_raised_it(app):
    @app.task(name="picky", max_attempts=1)
    def picky(x):
        if x:
            raise Reject("not this one")
        return {}["missing"]

    rejected, failed = picky.delay(1), picky.delay(0)
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert rejected.error == "Reject: not this one"
    assert failed.error == "KeyError: 'missing'"
    assert failed.traceback.endswith("KeyError: 'missing'\n")
    assert 'return {}["missing"]' in failed.traceback
    assert "execute.py" not in failed.traceback
