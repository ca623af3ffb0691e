"""`kill -9` of Celery's workers: every job that acknowledges late is done, by whoever lives."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import State
from tests.celery.conftest import Arena, ours_only
from tests.support import wait_until

pytestmark = [pytest.mark.slow, ours_only]

PROMISED_S = 2.0
DEADLINE_S = 5 * PROMISED_S


# Pools that take more than they run, so that a dead worker's connection held jobs it had not begun.
PREFETCHING = {"prefork", "threads"}


def first_by(arena: Arena, worker: str, **wanted: Any) -> float:
    """Return when that worker first began what is wanted; it has ten seconds for it."""
    lines = arena.wait_trace(worker=worker, deadline_s=DEADLINE_S, **wanted)
    return float(lines[0]["at"])


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_an_idle_worker_takes_over_from_one_that_was_killed_whole(arena: Arena, pool: str) -> None:
    first = arena.worker("first", pool=pool, concurrency=1)
    jobs = [arena.tasks.hold_late.delay("go").id]
    arena.wait_trace(id=jobs[0])
    jobs += [arena.tasks.work_late.delay(0).id for _ in range(3)]
    if pool in PREFETCHING:
        inspect = arena.app.control.inspect(["first@arena"], timeout=10)
        wait_until(lambda: len(inspect.reserved()["first@arena"]) == 3, what="the prefetched jobs")
    arena.worker("second", pool=pool, concurrency=2)

    killed_s = time.monotonic()
    first.kill_group()
    arena.let_go("go")
    again_s = first_by(arena, "second@arena", id=jobs[0])
    print(f"{pool}: the first job ran again after {again_s - killed_s:.3f} s")
    for job in jobs:
        arena.wait_state(job, State.DONE)
    assert {line["id"] for line in arena.trace(event="end")} == set(jobs)


def test_a_worker_started_after_the_kill_runs_what_the_dead_one_held(arena: Arena) -> None:
    first = arena.worker("first", concurrency=2)
    jobs = [arena.tasks.work_late.delay(2).id for _ in range(6)]
    arena.wait_trace(2)
    first.kill_group()

    second = arena.worker("second", concurrency=4, wait=False)
    second.wait_text("@arena ready.")
    ready_s = time.monotonic()
    again_s = first_by(arena, "second@arena")
    print(f"a job ran again {max(again_s - ready_s, 0):.3f} s after the worker was ready")
    for job in jobs:
        arena.wait_state(job, State.DONE)
    assert {line["id"] for line in arena.trace(event="end")} == set(jobs)


def test_a_killed_worker_is_replaced_at_once_by_one_of_the_same_name(arena: Arena) -> None:
    worker = arena.worker(concurrency=1)
    job = arena.tasks.hold_late.delay("go").id
    arena.wait_trace(id=job)
    for number in range(2):  # as a supervisor does that starts what has ended
        worker.kill_group()
        worker = arena.worker(f"again-{number}", "-n", "worker@arena", concurrency=1)
    assert arena.app.control.ping(["worker@arena"], timeout=10) == [
        {"worker@arena": {"ok": "pong"}}
    ]
    arena.let_go("go")
    arena.wait_state(job, State.DONE)


def test_jobs_of_a_killed_main_process_are_done_although_its_children_outlive_it(
    arena: Arena,
) -> None:
    first = arena.worker("first", concurrency=2)
    jobs = [arena.tasks.hold_late.delay("go").id for _ in range(6)]
    arena.wait_trace(2)
    arena.worker("second", concurrency=2)

    killed_s = time.monotonic()
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait()
    again_s = first_by(arena, "second@arena")
    print(f"a job ran again after {again_s - killed_s:.3f} s")
    arena.let_go("go")
    for job in jobs:
        arena.wait_state(job, State.DONE)
    assert {line["id"] for line in arena.trace(event="end")} == set(jobs)
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2


def test_every_job_is_done_although_workers_are_killed_again_and_again(arena: Arena) -> None:
    jobs = [arena.tasks.work_late.delay(0.02).id for _ in range(400)]
    for round_number in range(4):
        ended = len(arena.trace(event="end"))
        worker = arena.worker(f"victim-{round_number}", concurrency=2)
        arena.wait_trace(ended + 40, event="end")
        worker.kill_group()
    arena.worker("last", concurrency=2)

    wait_until(
        lambda: {row.state for row in arena.rows()} == {State.DONE},
        deadline_s=60,
        every_s=0.1,
        what="every job to be done",
    )
    ended_ids = [line["id"] for line in arena.trace(event="end")]
    assert set(ended_ids) == set(jobs)
    print(f"{len(ended_ids) - len(jobs)} of {len(jobs)} jobs ended twice")
    # Two a kill were running; the settlement of one that had just ended may not have been made.
    assert len(ended_ids) - len(jobs) <= 4 * 4


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stopped_worker_loses_its_job_to_another_and_gets_over_it(
    arena: Arena, pool: str
) -> None:
    arena.settings["broker_transport_options"] = {"visibility_timeout": 2}
    first = arena.worker("first", pool=pool, concurrency=1)
    job = arena.tasks.hold_late.delay("go").id
    arena.wait_trace(id=job)
    arena.worker("second", pool=pool, concurrency=1)

    os.killpg(first.pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    took_s = first_by(arena, "second@arena", id=job) - stopped_s
    print(f"{pool}: another worker ran it {took_s:.1f} s after the stop, with a lease of 2 s")
    arena.let_go("go")
    arena.wait_state(job, State.DONE)

    os.killpg(first.pid, signal.SIGCONT)
    arena.wait_trace(2, id=job, event="end")
    first.wait_text("lease")
    for _ in range(20):
        arena.tasks.work_late.delay(0.1)
    arena.wait_trace(worker="first@arena", task="work_late")
    arena.wait_settled()
    assert [row.delivery for row in arena.rows(job)] == [2]
