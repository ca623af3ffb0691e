"""Time: what is due later waits in the file, and who lives keeps its jobs however long they take."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from celery import chord
from celery.exceptions import TaskRevokedError

from sqlqueue_transport.lifecycle import State
from tests.celery.conftest import Arena, ours_only
from tests.support import wait_until

pytestmark = pytest.mark.slow

VISIBILITY_TIMEOUT_S = 2


@pytest.fixture(autouse=True)
def _short_leases(arena: Arena) -> None:
    arena.settings["broker_transport_options"] = {"visibility_timeout": VISIBILITY_TIMEOUT_S}


@ours_only
def test_a_countdown_beyond_the_visibility_timeout_runs_once_and_waits_in_no_worker(
    arena: Arena,
) -> None:
    arena.worker()
    inspect = arena.app.control.inspect(["worker@arena"], timeout=10)
    published_s = time.monotonic()
    job = arena.tasks.stamp_late.apply_async(countdown=6).id

    looked = 0
    while not arena.trace(id=job):
        # Celery (5.7) takes whatever has an eta through its timer, what is due for a moment.
        for held in inspect.scheduled()["worker@arena"]:
            assert datetime.fromisoformat(held["eta"]) <= datetime.now(timezone.utc)
        looked += 1
        assert time.monotonic() - published_s < 60
    late_s = arena.trace(id=job)[0]["at"] - published_s - 6
    print(f"{late_s * 1000:.0f} ms late; not in the worker's memory on {looked} looks")
    assert late_s > -0.05
    arena.wait_state(job, State.DONE)
    assert [row.delivery for row in arena.rows(job)] == [1]
    assert len(arena.trace(id=job)) == 1


def test_three_hundred_countdowns_are_on_time_with_a_prefetch_of_four(arena: Arena) -> None:
    arena.worker("worker", "--prefetch-multiplier", 2, concurrency=2)
    due_s = {}
    for _ in range(300):
        due_s[arena.tasks.stamp_late.apply_async(countdown=4).id] = time.monotonic() + 4
    arena.wait_trace(len(due_s), deadline_s=60)

    lines = arena.trace()
    assert sorted(line["id"] for line in lines) == sorted(due_s)
    late_s = sorted(line["at"] - due_s[line["id"]] for line in lines)
    print(f"late: median {late_s[150] * 1000:.0f} ms, worst {late_s[-1] * 1000:.0f} ms")
    assert late_s[0] > -0.05


@ours_only
def test_neither_a_long_task_nor_what_waits_behind_it_is_delivered_twice(arena: Arena) -> None:
    arena.worker("first", concurrency=1)
    long = arena.tasks.work_late.delay(3 * VISIBILITY_TIMEOUT_S).id
    arena.wait_trace(id=long)
    behind = [arena.tasks.stamp_late.delay().id for _ in range(2)]
    inspect = arena.app.control.inspect(["first@arena"], timeout=10)
    wait_until(lambda: len(inspect.reserved()["first@arena"]) == 2, what="the prefetched jobs")
    arena.worker("second", concurrency=1)  # idle, and willing to take what is given up

    arena.wait_trace(id=long, event="end")
    for job in behind:
        arena.wait_trace(id=job)
    arena.wait_settled()
    assert len(arena.trace()) == 4
    assert {line["worker"] for line in arena.trace()} == {"first@arena"}
    assert {row.delivery for row in arena.rows()} == {1}


def test_an_expired_job_never_runs(arena: Arena) -> None:
    expired = arena.tasks.stamp.apply_async(expires=0.2)
    # Also one that waits for its time in the broker, and a chord with it in its header.
    later = arena.tasks.stamp.apply_async(countdown=1, expires=0.2)
    header = [arena.tasks.add.s(1, 1), arena.tasks.add.s(2, 2).set(countdown=1, expires=0.2)]
    around = chord(header, arena.tasks.total.s()).delay()
    fresh = arena.tasks.stamp.apply_async(expires=600)
    gone_s = time.monotonic() + 0.3
    wait_until(lambda: time.monotonic() > gone_s, what="the job to expire")
    arena.worker()

    arena.wait_trace(id=fresh.id)
    assert not arena.trace(id=expired.id)
    for one in (expired, later, around):
        with pytest.raises(TaskRevokedError, match="expired"):
            one.get(timeout=30)
    arena.wait_settled()


@ours_only
def test_jobs_of_a_higher_priority_run_first(arena: Arena) -> None:
    for priority in (0, 5, 9, 1):
        arena.tasks.stamp.apply_async((priority,), priority=priority)
    arena.worker("worker", "--prefetch-multiplier", 1, pool="solo", concurrency=1)

    lines = arena.wait_trace(4)
    assert [line["label"] for line in lines] == [9, 5, 1, 0]
