"""Time limits of real workers: the soft one is raised in the task, and never inside of the store."""

from __future__ import annotations

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena

pytestmark = pytest.mark.slow

APP = '''
import asyncio, time
from crashapp import app, trace
from sqlqueue import SoftTimeLimitExceeded


@app.task(name="sleepy", bind=True, soft_time_limit=0.5, max_attempts=2, retry_backoff=0)
def sleepy(self):
    trace(self, "start")
    time.sleep(600)


@app.task(name="asleepy", bind=True, soft_time_limit=0.5, max_attempts=2, retry_backoff=0)
async def asleepy(self):
    trace(self, "start")
    await asyncio.sleep(600)


@app.task(name="careful", bind=True, soft_time_limit=0.5)
def careful(self):
    try:
        time.sleep(600)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task(name="deaf", soft_time_limit=0.3, time_limit=1.0, max_attempts=1)
def deaf():
    """Catch the soft limit and go on."""
    while True:
        try:
            time.sleep(600)
        except SoftTimeLimitExceeded:
            pass


@app.task(name="publisher", max_attempts=1)
def publisher():
    while True:
        app.send_task("published", queue="elsewhere")
'''


@pytest.fixture
def limited(arena: Arena) -> Arena:
    (arena.directory / "limitedapp.py").write_text(APP)
    return arena


def start(arena: Arena, *arguments: object):
    return arena.start("worker", "-A", "limitedapp:app", *arguments)


@pytest.mark.parametrize("pool", ["processes", "solo", "threads"])
def test_a_soft_limit_fails_the_attempt_and_the_record_says_which(
    limited: Arena, pool: str
) -> None:
    # A thread that sleeps in C is not woken: there it is for the async function only.
    tasks = ["asleepy"] if pool == "threads" else ["sleepy", "asleepy"]
    jobs = [limited.publish(task) for task in tasks]
    start(limited, "-P", pool, "-c", 1)
    for job in jobs:
        detail = limited.wait_state(job, State.PERMANENTLY_FAILED)
        assert [(one.outcome, one.error_type, one.error_message) for one in detail.attempts] == [
            (
                "timed_out",
                "SoftTimeLimitExceeded",
                "it ran longer than its soft time limit of 0.5 s",
            )
        ] * 2
        assert "sleep" in str(detail.attempts[0].traceback)


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_a_task_may_catch_it_and_end_well(limited: Arena, pool: str) -> None:
    job = limited.publish("careful")
    start(limited, "-P", pool, "-c", 1)
    assert limited.wait_state(job, State.DONE).result == '"cleaned up"'


def test_a_task_that_goes_on_is_ended_by_force_at_its_time_limit(limited: Arena) -> None:
    job = limited.publish("deaf")
    start(limited, "-c", 1)
    (attempt,) = limited.wait_state(job, State.PERMANENTLY_FAILED).attempts
    assert (attempt.outcome, attempt.error_type) == ("timed_out", "TimeLimitExceeded")


def test_a_limit_of_the_call_or_of_the_worker_counts_where_the_task_has_none(
    limited: Arena,
) -> None:
    by_call = limited.publish("work", 600, soft_time_limit=0.3)
    start(limited, "-c", 2, "--soft-time-limit", "0.7s")
    by_worker = limited.publish("work", 600)
    for job, limit in ((by_call, "0.3"), (by_worker, "0.7")):
        limited.started(job, attempt=2)
        (attempt,) = limited.job(job).attempts
        assert str(attempt.error_message).endswith(f"soft time limit of {limit} s")


@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_a_soft_limit_never_cuts_the_store_short(limited: Arena, pool: str) -> None:
    """Tasks that do nothing but publish are ended at many moments; the file stays whole and usable."""
    jobs = [
        limited.publish("publisher", soft_time_limit=0.05 + 0.0037 * number) for number in range(60)
    ]
    worker = start(limited, "-P", pool, "-c", 4)
    for job in jobs:
        (attempt,) = limited.wait_state(job, State.PERMANENTLY_FAILED, deadline_s=60).attempts
        assert attempt.error_type == "SoftTimeLimitExceeded"
        # Where it was raised, the store was not at work.
        frames = [
            line
            for line in str(attempt.traceback).splitlines()
            if "  File " in line and "interrupts.py" not in line
        ]
        assert "sqlqueue_transport" not in frames[-1]
        assert "kombu" not in frames[-1]
    assert worker.poll() is None
    assert "child_lost" not in limited.logs()
    assert "store_busy" not in limited.logs()
    # The same processes go on.
    last = limited.publish("careful", soft_time_limit=0.2)
    if pool == "processes":
        limited.wait_state(last, State.DONE)
    assert limited.app.backend.store.reading.damage(full=True) == []
