"""Workers of every pool run what is published, each job once."""

from __future__ import annotations

import time

import pytest

from tests.celery.conftest import Arena

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_each_pool_runs_tasks_and_returns_their_results(arena: Arena, pool: str) -> None:
    arena.worker(pool=pool, concurrency=1 if pool == "solo" else 4)
    results = [arena.tasks.add.delay(number, 1) for number in range(100)]

    assert [result.get(timeout=30) for result in results] == [number + 1 for number in range(100)]
    started = [line["id"] for line in arena.trace()]
    assert sorted(started) == sorted(result.id for result in results)


def test_two_thousand_jobs_are_run_once_each_by_four_processes(arena: Arena) -> None:
    jobs = [arena.tasks.stamp_late.delay(number).id for number in range(2000)]
    began_s = time.monotonic()
    arena.worker(concurrency=4)
    lines = arena.wait_trace(len(jobs), deadline_s=120)
    print(f"{len(jobs)} jobs, worker's start included: {time.monotonic() - began_s:.1f} s")

    assert sorted(line["id"] for line in lines) == sorted(jobs)
    assert len({line["pid"] for line in lines}) == 4


def test_child_processes_are_replaced_after_so_many_tasks_and_no_job_is_lost(arena: Arena) -> None:
    arena.worker("worker", "--max-tasks-per-child", 5, concurrency=2)
    jobs = [arena.tasks.stamp_late.delay().id for _ in range(60)]
    lines = arena.wait_trace(len(jobs), deadline_s=60)

    assert sorted(line["id"] for line in lines) == sorted(jobs)
    by_process = [line["pid"] for line in lines]
    assert max(by_process.count(pid) for pid in by_process) <= 5
    assert len(set(by_process)) >= 12
