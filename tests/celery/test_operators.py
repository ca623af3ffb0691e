"""Operators act on Celery's jobs with the command line; workers get over it."""

from __future__ import annotations

import pytest

from sqlqueue_transport.lifecycle import State
from tests.celery.conftest import Arena, ours_only

pytestmark = [pytest.mark.slow, ours_only]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_late_ack_of_a_job_that_was_failed_is_a_warning_and_no_more(
    arena: Arena, pool: str
) -> None:
    worker = arena.worker(pool=pool, concurrency=1)
    job = arena.tasks.hold_late.delay("go").id
    arena.wait_trace(id=job)
    acted = arena.sqlqueue("fail", job, "--reason", "enough", "--yes")
    assert acted.process.returncode == 0, acted.text
    arena.let_go("go")
    arena.wait_trace(id=job, event="end")
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2
    row = arena.wait_state(job, State.PERMANENTLY_FAILED)
    assert (row.error_type, row.error_message) == ("FailedByOperator", "enough")
    assert len(arena.trace(id=job, event="start")) == 1
    warnings = [line for line in worker.text.splitlines() if "WARNING" in line and "lease" in line]
    assert warnings, worker.text
    assert worker.process.poll() is None


def test_a_dead_letter_is_requeued_and_run_again(arena: Arena) -> None:
    arena.worker()
    job = arena.tasks.rejected.delay().id
    arena.wait_state(job, State.PERMANENTLY_FAILED)

    acted = arena.sqlqueue("requeue", job, "--reason", "again", "--yes")
    assert acted.process.returncode == 0, acted.text
    arena.wait_trace(2, id=job)
    arena.wait_state(job, State.PERMANENTLY_FAILED)


def test_the_job_list_shows_celerys_jobs_by_task_and_state(arena: Arena) -> None:
    arena.worker()
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2
    arena.wait_settled()
    listed = arena.sqlqueue("inspect", "jobs", "--json")
    assert listed.process.returncode == 0, listed.text
    assert '"task": "add"' in listed.text
    assert '"state": "done"' in listed.text


def test_a_paused_queue_keeps_its_jobs_from_celerys_workers_until_it_is_resumed(
    arena: Arena,
) -> None:
    arena.worker(concurrency=1)
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2
    assert arena.sqlqueue("pause", "celery").process.returncode == 0
    paused = [arena.tasks.add.delay(number, 1) for number in range(3)]
    # Its remote control is no queue of jobs: it answers, and so it is awake and had its chance.
    assert arena.app.control.ping(timeout=10, limit=1)
    assert {arena.rows(one.id)[0].state for one in paused} == {State.PENDING}
    assert arena.sqlqueue("resume", "celery").process.returncode == 0
    assert [one.get(timeout=30) for one in paused] == [1, 2, 3]


def test_a_job_that_celery_runs_is_not_asked_to_stop(arena: Arena) -> None:
    arena.worker(concurrency=1)
    job = arena.tasks.hold_late.delay("go").id
    arena.wait_trace(id=job)
    acted = arena.sqlqueue("cancel", job, "--terminate")
    assert acted.process.returncode == 4
    assert "celery control revoke" in acted.text
    arena.let_go("go")
    arena.wait_state(job, State.DONE)
