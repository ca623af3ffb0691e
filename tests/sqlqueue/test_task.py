"""A task from inside: what a bound one sees, and how it asks to be run again or never."""

from __future__ import annotations

import contextvars
import dataclasses

import pytest

from sqlqueue import Reject, Request, Retry
from sqlqueue.task import run_as
from sqlqueue.worker.solo import run_solo

REQUEST = Request("job-1", "t", 2, 5, "mail", 7, "w/1")


def work(app):
    assert run_solo(app, name="w", burst=True, handle_signals=False) == 0


def test_a_bound_task_is_handed_itself_first(app):
    @app.task(name="bound", bind=True)
    def bound(self, x):
        return self.name, x

    assert bound(5) == ("bound", 5)


def test_a_bound_task_sees_its_job_in_a_worker(app):
    @app.task(name="bound", bind=True, max_attempts=3, queue="mail")
    def bound(self):
        return dataclasses.asdict(self.request)

    result = bound.delay()
    work(app)
    assert result.get(timeout=0) == {
        "id": result.id,
        "task": "bound",
        "attempt": 1,
        "max_attempts": 3,
        "queue": "mail",
        "delivery": 1,
        "worker": "w",
    }


def test_outside_a_worker_the_request_is_a_stand_in(app):
    @app.task(name="bound", bind=True)
    def bound(self):
        return self.request

    assert bound() == Request("local", "bound", 1, 1, "", 0, "local")


def test_the_request_ends_with_the_context_of_its_job(app):
    task = app.task(name="t")(lambda: None)

    def run():
        run_as(REQUEST)
        return task.request

    assert contextvars.copy_context().run(run) is REQUEST
    assert task.request.id == "local"


def test_the_request_ends_with_the_job_also_when_it_fails(app):
    @app.task(name="fail", bind=True, max_attempts=1)
    def fail(self):
        seen.append(self.request.id)
        1 / 0  # noqa: B018

    seen = []
    result = fail.delay()
    work(app)
    assert (seen, fail.request.id) == ([result.id], "local")


def test_a_task_that_calls_another_as_a_function_stays_in_its_own_job(app):
    @app.task(name="inner", bind=True)
    def inner(self):
        return self.request.id

    @app.task(name="outer", bind=True)
    def outer(self):
        return [self.request.id, inner()]

    result = outer.delay()
    work(app)
    assert result.get(timeout=0) == [result.id, result.id]


def test_delay_inside_a_task_enqueues_a_job_of_its_own(app):
    @app.task(name="child")
    def child(x):
        return x + 1

    @app.task(name="parent")
    def parent():
        return child.delay(1).id

    result = parent.delay()
    work(app)
    child_id = result.get(timeout=0)
    assert child_id != result.id
    assert app.result(child_id).get(timeout=0) == 2


def test_self_retry_runs_the_job_again_and_counts_the_attempt(app):
    @app.task(name="flaky", bind=True)
    def flaky(self):
        if self.request.attempt < 3:
            self.retry(countdown=0, reason="not yet")
        return self.request.attempt, self.request.delivery

    result = flaky.delay()
    work(app)
    assert result.get(timeout=0) == [3, 3]
    (message_id,) = app.backend.message_ids_of(result.id)
    history = app.backend.job(message_id).attempts
    assert [(one.attempt, one.error_type, one.error_message) for one in history] == [
        (1, "Retry", "not yet"),
        (2, "Retry", "not yet"),
    ]


def test_self_retry_outside_a_worker_raises_retry(app):
    @app.task(name="flaky", bind=True)
    def flaky(self):
        self.retry(countdown=5)

    with pytest.raises(Retry) as caught:
        flaky()
    assert caught.value.countdown == 5


def test_retry_ends_at_max_attempts_all_the_same(app):
    @app.task(name="hopeless", bind=True, max_attempts=2)
    def hopeless(self):
        self.retry(countdown=0)

    result = hopeless.delay()
    work(app)
    assert (result.state, result.attempts) == ("permanently_failed", 2)


def test_reject_ends_the_job_at_once_with_its_reason(app):
    @app.task(name="picky")
    def picky():
        raise Reject("no such customer")

    result = picky.delay()
    work(app)
    assert (result.state, result.attempts) == ("permanently_failed", 1)
    assert result.error == "Reject: no such customer"


@pytest.mark.parametrize("countdown", [-1, float("nan"), float("inf")])
def test_a_retry_after_no_time_at_all_is_an_error_of_the_task(countdown):
    with pytest.raises(ValueError, match="give seconds, 0 or more"):
        Retry(countdown)


def test_a_task_shows_its_name(app):
    assert repr(app.task(name="t")(lambda: None)) == "<Task t>"
