"""Retries, rejections and expiry from a call to the row, through a worker of one process."""

from __future__ import annotations

import pytest

from sqlqueue import Backoff, Reject, Retry
from sqlqueue.inspection import Inspection
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobFilter
from tests.support import finish, run_python


def work(app):
    assert run_solo(app, name="w", burst=True, handle_signals=False) == 0


AT_ONCE = {"first_s": 0, "longest_s": 0}


def test_each_error_is_retried_as_often_as_its_policy_says(app):
    @app.task(
        name="t",
        max_attempts=3,
        retry_backoff=0,
        retry_policies={
            ConnectionError: Backoff(**AT_ONCE, max_attempts=6),
            KeyError: Backoff(**AT_ONCE, max_attempts=2),
            ValueError: None,
        },
    )
    def fails(name):
        raise {"connection": ConnectionResetError, "key": KeyError, "value": UnicodeError}.get(
            name, RuntimeError
        )(name)

    results = [fails.delay(name) for name in ("connection", "key", "value", "other")]
    work(app)
    assert [(one.state, one.attempts) for one in results] == [
        ("permanently_failed", 6),
        ("permanently_failed", 2),
        ("permanently_failed", 1),
        ("permanently_failed", 3),
    ]
    assert app.backend.store.reading.broken_invariants() == {}


@pytest.mark.parametrize("of", ["task", "setting"])
def test_0_attempts_means_no_limit(make_app, of):
    app = make_app(**({"task_max_attempts": 0} if of == "setting" else {}))
    seen = []
    options = {"max_attempts": 0} if of == "task" else {}

    @app.task(name="t", bind=True, retry_backoff=0, **options)
    def persistent(self):
        seen.append(self.request.max_attempts)
        if self.request.attempt < 9:
            raise OSError

    result = persistent.delay()
    work(app)
    assert (result.state, result.attempts) == ("done", 9)
    assert set(seen) == {0}
    (row,) = app.backend.jobs(JobFilter())
    assert Inspection(app.backend, settings=app.conf).max_attempts_of(row) == 0


def test_a_countdown_of_the_task_wins_over_the_policy_of_an_error(app):
    @app.task(name="t", bind=True, retry_policies={Exception: Backoff(first_s=500)})
    def again(self):
        if self.request.attempt == 1:
            raise Retry(countdown=0)

    result = again.delay()
    work(app)
    assert (result.state, result.attempts) == ("done", 2)


def test_the_reason_of_a_reject_is_what_the_dead_letters_are_grouped_by(app):
    @app.task(name="t")
    def picky():
        raise Reject("no such customer")

    picky.delay()
    work(app)
    (group,) = Inspection(app.backend, settings=app.conf).dead_groups()
    assert (group.type, group.text, group.count) == ("Reject", "no such customer", 1)


def test_a_job_whose_time_is_over_before_it_starts_is_expired_and_never_run(app):
    ran = []
    app.task(name="t")(lambda: ran.append(1))
    jobs = [
        app.send_task("t", expires=0),
        # Due only when its time is over.
        app.send_task("t", countdown=0.2, expires=0.1),
    ]
    work(app)
    assert [job.state for job in jobs] == ["expired", "expired"]
    assert [job.attempts for job in jobs] == [0, 0]
    assert ran == []
    inspection = Inspection(app.backend, settings=app.conf)
    assert len(inspection.jobs(JobFilter(states=(State.EXPIRED,))).items) == 2


def test_a_retry_that_would_start_after_the_end_of_its_time_is_expired(app):
    @app.task(name="t", retry_jitter=False, retry_backoff=0.5)
    def fails():
        raise OSError("down")

    job = fails.apply_async(expires=0.3)
    work(app)
    assert (job.state, job.attempts) == ("expired", 1)
    (message_id,) = app.backend.message_ids_of(job.id)
    assert [one.error_message for one in app.backend.job(message_id).attempts] == ["down"]


KILLER = """
import os
from sqlqueue import Backoff, SqlQueue

app = SqlQueue("test", broker_url="sqlqueue:///queue.db")


@app.task(name="t", bind=True, max_attempts=2, retry_policies={OSError: Backoff(max_attempts=0)})
def t(self):
    os._exit(0)


@app.task(name="late", bind=True, max_attempts=0)
def late(self):
    if self.request.attempt < 3:
        os._exit(0)
    return self.request.attempt
"""


@pytest.mark.slow
def test_lost_attempts_go_by_the_tasks_own_number_and_0_is_no_limit_there_either(app, here):
    (here / "killer.py").write_text(KILLER)
    process = run_python(
        """
        from killer import app, late, t
        print(t.delay().id, late.delay().id)
        """,
        cwd=here,
        env={"PYTHONPATH": str(here)},
    )
    lost, late = (app.result(job_id) for job_id in finish(process).split())
    worker = run_python(
        "import sys; from sqlqueue.cli import main; sys.exit(main())",
        *("worker", "-A", "killer:app", "-c", "1", "--burst"),
        cwd=here,
        env={"PYTHONPATH": str(here)},
    )
    finish(worker, deadline_s=90)
    assert (lost.state, lost.attempts) == ("permanently_failed", 2)
    assert late.get(timeout=0) == 3
    limits = {row.task: row.max_attempts for row in app.backend.jobs(JobFilter())}
    assert limits == {"t": 0, "late": 0}


@pytest.mark.slow
def test_a_worker_with_children_starts_no_job_whose_time_is_over(app, here):
    (here / "timed.py").write_text(
        "from sqlqueue import SqlQueue\n"
        "app = SqlQueue('test', broker_url='sqlqueue:///queue.db')\n"
        "@app.task(name='t')\n"
        "def t():\n    raise OSError\n"
    )
    jobs = [
        app.send_task("t", expires=0),
        app.send_task("t", countdown=0.2, expires=0.1),
        app.send_task("t", countdown=0.3, expires=600),
    ]
    worker = run_python(
        "import sys; from sqlqueue.cli import main; sys.exit(main())",
        *("worker", "-A", "timed:app", "-c", "1", "--max-jobs", "1"),
        cwd=here,
        env={"PYTHONPATH": str(here)},
    )
    finish(worker, deadline_s=60)
    assert [(job.state, job.attempts) for job in jobs] == [
        ("expired", 0),
        ("expired", 0),
        ("failed", 1),
    ]
