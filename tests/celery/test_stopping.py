"""A worker that is told to stop, and one whose queue file goes away for a while."""

from __future__ import annotations

import signal
import time

import pytest

from sqlqueue_transport.lifecycle import State
from tests.celery.conftest import Arena, ours_only
from tests.support import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_warm_shutdown_ends_what_runs_and_hands_back_what_was_prefetched(
    arena: Arena, pool: str
) -> None:
    first = arena.worker("first", "-l", "debug", pool=pool, concurrency=1)
    running = arena.tasks.hold_late.delay("go").id
    arena.wait_trace(id=running)
    waiting = [arena.tasks.stamp_late.delay().id for _ in range(3)]
    inspect = arena.app.control.inspect(["first@arena"], timeout=10)
    wait_until(lambda: len(inspect.reserved()["first@arena"]) == 3, what="the prefetched jobs")
    arena.worker("second", pool=pool, concurrency=1)

    told_s = time.monotonic()
    first.signal(signal.SIGTERM)
    first.wait_text("Stopping Pool")  # so it begins nothing any more
    arena.let_go("go")
    for job in waiting:
        arena.wait_trace(id=job)
    assert first.wait() == 0
    run_s = arena.trace(task="stamp_late")[-1]["at"]
    (end,) = arena.trace(id=running, event="end")
    print(
        f"{pool}: another worker had run them {run_s - told_s:.3f} s after the signal, which is "
        f"{run_s - end['at']:.3f} s after the end of what ran"
    )

    lines = arena.trace(task="stamp_late")
    assert sorted(line["id"] for line in lines) == sorted(waiting)
    assert {line["worker"] for line in lines} == {"second@arena"}
    arena.wait_settled()


@ours_only
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_goes_on_when_its_directory_was_moved_away_and_came_back(
    arena: Arena, pool: str
) -> None:
    worker = arena.worker(pool=pool)
    jobs = [arena.tasks.work_late.delay(0.2).id for _ in range(20)]
    arena.wait_trace(5, event="end")

    away = arena.directory / "away"
    arena.file.parent.rename(away)
    # Whoever notices first says so: an acknowledgement, or the loop that loses its connection.
    worker.wait_text("moved or removed", deadline_s=60)
    away.rename(arena.file.parent)
    back_s = time.monotonic()
    jobs += [arena.tasks.work_late.delay(0).id for _ in range(3)]

    for job in jobs:
        arena.wait_state(job, State.DONE, deadline_s=60)
    print(f"{pool}: all was done {time.monotonic() - back_s:.1f} s after the file came back")
    ended = [line["id"] for line in arena.trace(event="end")]
    assert set(ended) == set(jobs)
    print(f"{len(ended) - len(jobs)} of {len(jobs)} jobs ran twice")
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2
    assert worker.process.poll() is None
