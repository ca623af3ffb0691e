"""Running jobs that are asked to stop, and do: at a checkpoint, at a word of progress, at an await."""

from __future__ import annotations

import json
import time

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena

pytestmark = pytest.mark.slow

APP = """
import asyncio, time
from crashapp import app, trace
from sqlqueue import JobCancelled


@app.task(name="checks", bind=True)
def checks(self):
    trace(self, "start")
    try:
        while True:
            time.sleep(0.02)
            self.checkpoint()
    finally:
        trace(self, "cleaned up")


@app.task(name="reports", bind=True)
def reports(self):
    trace(self, "start")
    for number in range(10**9):
        time.sleep(0.02)
        try:
            self.progress(number, 10**9)
        except Exception:  # a loop that goes on after each failure does not swallow it
            pass


@app.task(name="looks", bind=True)
def looks(self):
    trace(self, "start")
    while not self.request.cancelled:
        time.sleep(0.02)
    return "stopped early"


@app.task(name="fails_when_asked", bind=True)
def fails_when_asked(self):
    trace(self, "start")
    while not self.request.cancelled:
        time.sleep(0.02)
    raise OSError("cut off")


@app.task(name="awaits", bind=True)
async def awaits(self):
    trace(self, "start")
    try:
        await asyncio.gather(asyncio.sleep(600), asyncio.sleep(600))
    except JobCancelled:
        await asyncio.sleep(0.01)
        trace(self, "cleaned up")
        raise


@app.task(name="meets_it_twice", bind=True)
async def meets_it_twice(self):
    trace(self, "start")
    try:
        while True:
            time.sleep(0.02)
            self.progress(1)
    finally:
        await asyncio.sleep(0.1)
        trace(self, "cleaned up")


@app.task(name="awork", bind=True)
async def awork(self, seconds):
    trace(self, "start")
    await asyncio.sleep(seconds)
    return self.request.attempt
"""


@pytest.fixture
def willing(arena: Arena) -> Arena:
    (arena.directory / "willingapp.py").write_text(APP)
    return arena


def start(arena: Arena, pool: str):
    return arena.start("worker", "-A", "willingapp:app", "-P", pool, "-c", 4)


def cancel(arena: Arena, *arguments: object) -> int:
    return arena.start("cancel", "--db", arena.directory / "queue.db", *arguments).wait(timeout=60)


@pytest.mark.parametrize(
    ("task", "pool"),
    [
        ("checks", "processes"),
        ("reports", "processes"),
        ("awaits", "processes"),
        ("meets_it_twice", "processes"),
        ("checks", "threads"),
        ("awaits", "threads"),
        ("checks", "solo"),
        ("awaits", "solo"),
    ],
)
def test_a_job_that_is_asked_to_stop_does_so_and_is_cancelled(
    willing: Arena, task: str, pool: str
) -> None:
    job = willing.publish(task)
    worker = start(willing, pool)
    neighbour = willing.publish("awork", 4) if pool == "threads" else None
    willing.started(job)
    if neighbour:
        willing.started(neighbour)
    began_s = time.monotonic()
    assert cancel(willing, job, "--terminate") == 0
    detail = willing.wait_state(job, State.CANCELLED)
    print(f"cancelled after {time.monotonic() - began_s:.2f} s, promised 2")
    assert time.monotonic() - began_s < 10
    assert [(one.outcome, one.error_type) for one in detail.attempts] == [
        ("cancelled", "JobCancelled")
    ]
    if task != "reports":
        assert "cleaned up" in [line["event"] for line in willing.trace()]
    if neighbour:
        assert willing.wait_state(neighbour, State.DONE).row.attempts == 1
    assert "job_cancelled" in willing.logs()
    # And the worker goes on.
    assert willing.wait_state(willing.publish("awork", 0), State.DONE)
    assert worker.poll() is None


def test_a_job_that_ends_well_in_spite_of_it_is_done(willing: Arena) -> None:
    job = willing.publish("looks")
    start(willing, "processes")
    willing.started(job)
    assert cancel(willing, job, "--terminate") == 0
    assert json.loads(str(willing.wait_state(job, State.DONE).result)) == "stopped early"


def test_a_job_that_fails_when_it_was_asked_to_stop_is_not_tried_again(willing: Arena) -> None:
    job = willing.publish("fails_when_asked")
    start(willing, "processes")
    willing.started(job)
    assert cancel(willing, job, "--terminate") == 0
    detail = willing.wait_state(job, State.CANCELLED)
    assert [(one.outcome, one.error_type) for one in detail.attempts] == [("cancelled", "OSError")]
    assert "job_retry_scheduled" not in willing.logs()


def test_a_job_that_was_failed_by_an_operator_learns_that_it_is_not_to_go_on(
    willing: Arena,
) -> None:
    job = willing.publish("checks")
    start(willing, "processes")
    willing.started(job)
    command = willing.start("fail", "--db", willing.directory / "queue.db", job, "--reason", "no")
    assert command.wait(timeout=60) == 0
    assert willing.state(job) is State.PERMANENTLY_FAILED
    # Its place is free again.
    for _ in range(4):
        willing.wait_state(willing.publish("awork", 0), State.DONE)
