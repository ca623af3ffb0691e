"""Remote control: every worker hears a broadcast, and its answer finds the way back."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from tests.celery.conftest import Arena
from tests.support import wait_until

pytestmark = pytest.mark.slow

WORKER = "worker@arena"


def inspect(arena: Arena, what: str, worker: str = WORKER) -> Any:
    """Ask one worker; the answer ends the waiting."""
    answers = getattr(arena.app.control.inspect([worker], timeout=10), what)()
    assert answers is not None, f"no answer; log:\n{arena.logs()[-3000:]}"
    return answers[worker]


def test_every_worker_answers_a_ping(arena: Arena) -> None:
    for name, pool in (("one", "prefork"), ("two", "threads"), ("three", "solo")):
        arena.worker(name, pool=pool)
    answers = arena.app.control.ping(timeout=10, limit=3)
    assert sorted(name for answer in answers for name in answer) == [
        "one@arena",
        "three@arena",
        "two@arena",
    ]
    assert arena.app.control.ping(["two@arena"], timeout=10) == [{"two@arena": {"ok": "pong"}}]


def test_a_worker_tells_what_it_runs_holds_and_knows(arena: Arena) -> None:
    arena.worker(concurrency=1)
    running = arena.tasks.work.delay(60, "running").id
    arena.wait_trace(id=running)
    held = [arena.tasks.stamp.delay().id for _ in range(3)]

    assert [request["id"] for request in inspect(arena, "active")] == [running]
    wait_until(lambda: len(inspect(arena, "reserved")) == 3, what="the jobs to be prefetched")
    assert sorted(request["id"] for request in inspect(arena, "reserved")) == sorted(held)
    assert "add" in inspect(arena, "registered")
    stats = inspect(arena, "stats")
    assert stats["pool"]["max-concurrency"] == 1
    assert stats["broker"]["transport"] == arena.broker.partition(":")[0]
    assert [queue["name"] for queue in inspect(arena, "active_queues")] == ["celery"]


def test_a_revoked_job_that_waits_never_runs(arena: Arena) -> None:
    arena.worker(concurrency=1)
    arena.wait_trace(id=arena.tasks.hold_late.delay("go").id)
    revoked, kept = arena.tasks.stamp.delay(), arena.tasks.stamp.delay()
    arena.app.control.revoke(revoked.id, destination=[WORKER], reply=True, timeout=10)
    arena.let_go("go")

    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=30)
    arena.wait_trace(id=kept.id)
    assert not arena.trace(id=revoked.id)


def test_a_running_job_is_terminated_and_the_worker_goes_on(arena: Arena) -> None:
    arena.worker(concurrency=1)
    running = arena.tasks.work.delay(600)
    arena.wait_trace(id=running.id)
    running.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        running.get(timeout=30)
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2
    assert not arena.trace(id=running.id, event="end")


def spacing(arena: Arena, task: str, count: int) -> float:
    """Return the mean time between the starts of that many jobs of a task.

    A first start that came late makes it shorter than the worker's own spacing.
    """
    lines = arena.wait_trace(count, task=task)
    return (lines[-1]["at"] - lines[0]["at"]) / (len(lines) - 1)


def test_a_rate_limit_of_a_task_holds(arena: Arena) -> None:
    arena.worker()
    for _ in range(11):
        arena.tasks.limited.delay()
    between_s = spacing(arena, "limited", 11)
    print(f"5 a second wanted: one each {between_s * 1000:.0f} ms")
    assert between_s > 0.1


def test_a_rate_limit_can_be_set_while_the_worker_runs(arena: Arena) -> None:
    arena.worker()
    answers = arena.app.control.rate_limit(
        "stamp", "5/s", destination=[WORKER], reply=True, timeout=10
    )
    assert answers == [{WORKER: {"ok": "new rate limit set successfully"}}]
    for _ in range(11):
        arena.tasks.stamp.delay()
    assert spacing(arena, "stamp", 11) > 0.1


def test_a_worker_consumes_from_another_queue_when_told_and_stops_when_told(arena: Arena) -> None:
    arena.worker()
    first = arena.tasks.stamp.apply_async(queue="other").id
    arena.app.control.add_consumer("other", destination=[WORKER], reply=True, timeout=10)
    arena.wait_trace(id=first)

    arena.app.control.cancel_consumer("other", destination=[WORKER], reply=True, timeout=10)
    wait_until(
        lambda: [queue["name"] for queue in inspect(arena, "active_queues")] == ["celery"],
        what="the queue to be left",
    )
    unseen = arena.tasks.stamp.apply_async(queue="other").id
    arena.wait_trace(id=arena.tasks.stamp.delay().id)
    assert not arena.trace(id=unseen)


def test_the_pool_grows_and_shrinks_on_command(arena: Arena) -> None:
    worker = arena.worker(concurrency=1)
    arena.app.control.pool_grow(2, destination=[WORKER], reply=True, timeout=10)
    wait_until(lambda: len(worker.children) == 3, what="three children")
    for _ in range(3):
        arena.tasks.work.delay(1)
    arena.wait_trace(3, event="start")
    arena.wait_trace(3, event="end")
    wait_until(lambda: not inspect(arena, "active"), what="all to be idle")  # the busy stay
    arena.app.control.pool_shrink(2, destination=[WORKER], reply=True, timeout=10)
    wait_until(lambda: len(worker.children) == 1, what="one child")
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2


def test_a_worker_is_shut_down_by_remote_control(arena: Arena) -> None:
    worker = arena.worker()
    other = arena.worker("other")
    arena.app.control.shutdown(destination=[WORKER])
    assert worker.wait() == 0
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2
    assert other.process.poll() is None
