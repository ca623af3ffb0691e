"""The pool of threads: many jobs in one process, and what becomes of them when something ends it."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import wait_until

pytestmark = pytest.mark.slow

APP = '''
import asyncio, ctypes, os, sys, threading, time
import structlog
from crashapp import app, trace
from sqlqueue import SoftTimeLimitExceeded, TimeLimitExceeded


@app.task(name="awork", bind=True)
async def awork(self, seconds):
    trace(self, "start")
    await asyncio.sleep(seconds)
    trace(self, "end")
    return [os.getpid(), threading.current_thread().name]


@app.task(name="twork", bind=True)
def twork(self, seconds):
    trace(self, "start")
    time.sleep(seconds)
    trace(self, "end")
    return [os.getpid(), threading.current_thread().name]


@app.task(name="block_loop", bind=True, time_limit=1.0, max_attempts=1)
async def block_loop(self):
    """Be an async function that never awaits: the loop cannot get at it."""
    trace(self, "start")
    while True:
        time.sleep(0.05)


@app.task(name="refuse", bind=True, time_limit=1.0, max_attempts=1)
def refuse(self):
    """Catch what is raised at the time limit and go on."""
    trace(self, "start")
    while True:
        try:
            while True:
                time.sleep(0.05)
        except TimeLimitExceeded:
            trace(self, "caught")


@app.task(name="over", bind=True, time_limit=0.5, max_attempts=1)
def over(self):
    trace(self, "start")
    while True:
        time.sleep(0.05)


@app.task(name="aover", bind=True, time_limit=0.5, max_attempts=1)
async def aover(self):
    trace(self, "start")
    await asyncio.sleep(600)


@app.task(name="exits_in_a_subtask")
async def exits_in_a_subtask():
    async def bad():
        sys.exit(3)
    await asyncio.gather(bad())


@app.task(name="leaves_one_that_exits")
async def leaves_one_that_exits():
    async def bad():
        await asyncio.sleep(0.2)
        sys.exit(3)
    app.left = asyncio.create_task(bad())


@app.task(name="cancels_itself")
async def cancels_itself():
    asyncio.current_task().cancel()
    return 7


@app.task(name="binds")
def binds():
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(mine="left behind")


@app.task(name="nothing")
def nothing():
    pass


@app.task(name="anothing")
async def anothing():
    pass
'''


@pytest.fixture
def threads(arena: Arena) -> Arena:
    (arena.directory / "threadapp.py").write_text(APP)
    return arena


def start(arena: Arena, *arguments: object, concurrency: int = 20):
    return arena.start(
        "worker", "-A", "threadapp:app", "-P", "threads", "-c", concurrency, *arguments
    )


def result_of(arena: Arena, job_id: str):
    return arena.app.result(job_id).get(timeout=30)


def test_as_many_jobs_as_it_has_places_run_at_once_in_one_process(threads: Arena) -> None:
    jobs = [threads.publish(task, 3) for task in ("awork", "twork") for _ in range(10)]
    further = threads.publish("awork", 0)
    start(threads)
    wait_until(lambda: len(threads.trace()) >= 20, deadline_s=60, what="20 starts")
    assert [line["event"] for line in threads.trace()[:20]] == ["start"] * 20
    found = [result_of(threads, job) for job in jobs]
    assert len({pid for pid, _ in found}) == 1
    # All async functions on one loop, the others in a thread each.
    assert {name for _, name in found[:10]} == {"sqlqueue-loop"}
    assert len({name for _, name in found[10:]}) == 10
    assert result_of(threads, further)[1] == "sqlqueue-loop"


def test_more_places_than_a_process_notes_make_more_processes(threads: Arena) -> None:
    jobs = [threads.publish("awork", 2) for _ in range(60)]
    worker = start(threads, concurrency=60)
    found = [result_of(threads, job) for job in jobs]
    assert {pid for pid, _ in found} == set(threads.children(worker))
    assert len(threads.children(worker)) == 2


@pytest.mark.parametrize("task", ["over", "aover"])
def test_a_job_over_its_limit_is_ended_and_its_neighbours_go_on(threads: Arena, task: str) -> None:
    neighbours = [threads.publish(name, 4) for name in ("awork", "twork")]
    job = threads.publish(task)
    worker = start(threads)
    for one in neighbours:
        threads.started(one)
    children = threads.children(worker)
    (attempt,) = threads.wait_state(job, State.PERMANENTLY_FAILED).attempts
    assert (attempt.outcome, attempt.error_type) == ("timed_out", "TimeLimitExceeded")
    assert attempt.error_message == "it ran longer than its time limit of 0.5 s"
    assert [threads.wait_state(one, State.DONE).row.attempts for one in neighbours] == [1, 1]
    assert threads.children(worker) == children


@pytest.mark.parametrize("task", ["refuse", "block_loop"])
def test_a_job_that_does_not_end_at_its_limit_takes_its_process_along(
    threads: Arena, task: str
) -> None:
    neighbour = threads.publish("twork", 6)
    job = threads.publish(task)
    start(threads)
    threads.started(neighbour)
    threads.started(job)
    began_s = time.monotonic()
    (attempt,) = threads.wait_state(job, State.PERMANENTLY_FAILED).attempts
    print(f"ended by force after {time.monotonic() - began_s:.2f} s, promised 2")
    assert time.monotonic() - began_s < 10
    assert (attempt.outcome, attempt.error_type) == ("timed_out", "TimeLimitExceeded")
    # What shared the process was running, and so has lost an attempt; its record says why.
    detail = threads.wait_state(neighbour, State.DONE, deadline_s=60)
    assert detail.row.attempts == 2
    assert detail.attempts[0].outcome == "lost"
    assert "another job in it" in str(detail.attempts[0].error_message)


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_subtask_that_exits_ends_neither_the_loop_nor_a_neighbour(
    threads: Arena, pool: str
) -> None:
    worker = start(threads, "-P", pool, concurrency=4 if pool == "threads" else 1)
    left = threads.publish("leaves_one_that_exits")
    threads.wait_state(left, State.DONE)
    neighbour = threads.publish("awork", 1)
    bad = threads.publish("exits_in_a_subtask")
    detail = threads.wait_state(neighbour, State.DONE)
    assert detail.row.attempts == 1
    wait_until(lambda: threads.job(bad).attempts, deadline_s=30, what="the failure")
    assert (threads.job(bad).attempts[0].error_type, threads.job(bad).attempts[0].outcome) == (
        "SystemExit",
        "failed",
    )
    assert threads.wait_state(threads.publish("awork", 0), State.DONE).row.attempts == 1
    assert "child_lost" not in threads.logs()
    assert "loop_interrupted" in threads.logs()
    worker.terminate()
    assert worker.wait(timeout=30) == 0


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_task_that_cancels_itself_as_it_returns_has_returned(threads: Arena, pool: str) -> None:
    start(threads, "-P", pool, concurrency=1)
    job = threads.publish("cancels_itself")
    assert threads.wait_state(job, State.DONE).row.attempts == 1
    assert result_of(threads, job) == 7


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_what_a_task_binds_or_clears_stays_its_own(threads: Arena, pool: str) -> None:
    start(threads, "-P", pool, "--log-format", "json", concurrency=1)
    first = threads.publish("binds")
    threads.wait_state(first, State.DONE)
    second = threads.publish("nothing")
    threads.wait_state(second, State.DONE)
    lines = [json.loads(line) for line in threads.logs().splitlines() if '"job_done"' in line]
    assert [line["job_id"] for line in lines] == [first, second]
    assert "mine" not in lines[1]


def test_all_that_ran_in_a_killed_process_counts_and_runs_again(threads: Arena) -> None:
    running = [threads.publish(name, 600) for name in ("awork", "twork") for _ in range(3)]
    worker = start(threads, concurrency=6)
    waiting = threads.publish("awork", 0)
    for job in running:
        threads.started(job)
    (child,) = threads.children(worker)
    os.kill(child, signal.SIGKILL)
    for job in running:
        threads.started(job, attempt=2)
    assert threads.state(waiting) is State.PENDING
    assert threads.job(waiting).row.attempts == 0


def test_a_drain_lets_all_that_runs_finish_and_takes_no_other(threads: Arena) -> None:
    running = [threads.publish(name, 2) for name in ("awork", "twork") for _ in range(3)]
    worker = start(threads, concurrency=6)
    waiting = threads.publish("awork", 0)
    for job in running:
        threads.started(job)
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    assert {threads.state(job) for job in running} == {State.DONE}
    assert threads.state(waiting) is State.PENDING


def test_what_does_not_finish_in_the_grace_time_is_released_uncounted(threads: Arena) -> None:
    running = [threads.publish(name, 600) for name in ("awork", "twork")]
    worker = start(threads, "--grace", "0.5s")
    for job in running:
        threads.started(job)
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    assert [(threads.state(job), threads.job(job).row.attempts) for job in running] == [
        (State.PENDING, 0)
    ] * 2


def test_max_jobs_is_exact_and_a_burst_ends_when_all_is_done(threads: Arena) -> None:
    for number in range(300):
        threads.publish("anothing" if number % 2 else "nothing")
    assert start(threads, "--max-jobs", 77, concurrency=50).wait(timeout=60) == 0
    done = [row for row in threads.all_jobs() if row.state is State.DONE]
    assert len(done) == 77
    assert start(threads, "--burst", concurrency=50).wait(timeout=60) == 0
    rows = threads.all_jobs()
    assert {(row.state, row.attempts) for row in rows} == {(State.DONE, 1)}
    assert len(rows) == 300
