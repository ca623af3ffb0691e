"""What `sqlqueue bench` measures, one figure after the other, on one file with real workers.

The workers are started while the queue is paused. So publishing is measured with nobody taking
anything, and running begins for all children at once, with everything imported.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sqlqueue.cli.bench_app import NOTHING, SINCE_CALL
from sqlqueue.cli.failures import CommandFailed
from sqlqueue.inspection import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlqueue.app import SqlQueue

__all__ = ["Bar", "Figures", "measure"]

_ACTOR: Final = "bench"
_LONGEST_S: Final = 3.0  # of what is published one by one: a slow disk syncs 100 times a second
_LATENCIES: Final = 200
_LOOK_EVERY_S: Final = 0.01
_PATIENCE_S: Final = 60.0  # with workers that do not move


class Bar(Protocol):
    """Be something that shows progress."""

    def update(self, n_steps: int) -> None:
        """Go on by so many steps."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Be what was measured. Rates are jobs a second; latencies milliseconds.

    A latency is the time from the call of `delay()` on an idle worker, the flush to the disk
    included, to the first line of the task.
    """

    published_one_by_one_per_s: float
    published_in_chunks_per_s: float
    run_per_s: float
    end_to_end_per_s: float
    start_p50_ms: float
    start_p95_ms: float
    start_p99_ms: float


def measure(
    app: SqlQueue,
    *,
    jobs: int,
    payload: str,
    processes: int,
    start_workers: Callable[[], object],
    refuse_dead: Callable[[], object],
    shown: Callable[[str, int], AbstractContextManager[Bar]],
) -> Figures:
    """Measure on the application's file, which must be new. Takes seconds to minutes.

    `start_workers` starts `processes` children; `refuse_dead` raises when they are gone. `shown`
    shows progress under a name and out of a number of steps. Raises CommandFailed when nothing moves.
    """
    singly, took_s = _published_singly(app, jobs - jobs // 2, payload, shown)
    one_by_one = singly / took_s
    left = jobs - singly
    call = app.tasks[NOTHING].s(payload)
    with shown("publishing in chunks", left) as bar:
        began_s = time.perf_counter()
        before = 0

        def on_progress(published: int, _: int | None) -> None:
            nonlocal before
            bar.update(published - before)
            before = published

        app.publish_many((call for _ in range(left)), on_progress=on_progress)
        in_chunks = left / (time.perf_counter() - began_s)

    app.backend.pause("default", actor=_ACTOR)
    start_workers()
    _wait(lambda: _children(app), processes, refuse_dead, shown, "starting workers")
    began_s = time.perf_counter()
    app.backend.resume("default", actor=_ACTOR)
    _wait(lambda: _done(app), jobs, refuse_dead, shown, "running")
    run = jobs / (time.perf_counter() - began_s)

    began_s = time.perf_counter()
    more, _ = _published_singly(
        app, jobs - jobs // 2, payload, shown, name="publishing and running"
    )
    _wait(lambda: _done(app), jobs + more, refuse_dead, shown, "running the rest")
    end_to_end = more / (time.perf_counter() - began_s)

    latencies = _latencies_ms(app, refuse_dead, shown)
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return Figures(
        published_one_by_one_per_s=one_by_one,
        published_in_chunks_per_s=in_chunks,
        run_per_s=run,
        end_to_end_per_s=end_to_end,
        start_p50_ms=percentiles[49],
        start_p95_ms=percentiles[94],
        start_p99_ms=percentiles[98],
    )


def _published_singly(
    app: SqlQueue,
    most: int,
    payload: str,
    shown: Callable[[str, int], AbstractContextManager[Bar]],
    *,
    name: str = "publishing one by one",
) -> tuple[int, float]:
    """Publish up to so many, for as long as that may take; return how many, and the seconds."""
    count = 0
    with shown(name, most) as bar:
        began_s = time.perf_counter()
        while count < most and time.perf_counter() - began_s < _LONGEST_S:
            app.send_task(NOTHING, (payload,))
            count += 1
            bar.update(1)
        return count, time.perf_counter() - began_s


def _latencies_ms(
    app: SqlQueue,
    refuse_dead: Callable[[], object],
    shown: Callable[[str, int], AbstractContextManager[Bar]],
) -> list[float]:
    found: list[float] = []
    with shown("enqueueing for idle workers", _LATENCIES) as bar:
        for _ in range(_LATENCIES):
            refuse_dead()
            # Asking for the result takes long enough for every child to be asleep again.
            job = app.send_task(SINCE_CALL, (time.monotonic_ns(),))
            found.append(int(job.get(timeout=_PATIENCE_S)) / 1e6)
            bar.update(1)
    return found


def _wait(
    count: Callable[[], int],
    wanted: int,
    refuse_dead: Callable[[], object],
    shown: Callable[[str, int], AbstractContextManager[Bar]],
    name: str,
) -> None:
    """Wait for a count. Raises CommandFailed when it has not moved for a minute."""
    seen, moved_s = 0, time.monotonic()
    with shown(name, wanted) as bar:
        while (now := count()) < wanted:
            refuse_dead()
            if now > seen:
                bar.update(now - seen)
                seen, moved_s = now, time.monotonic()
            if time.monotonic() - moved_s > _PATIENCE_S:
                raise CommandFailed(
                    f"{name}: {seen} of {wanted}, and nothing has moved for {_PATIENCE_S:g} s. Is the"
                    " machine this busy?"
                )
            time.sleep(_LOOK_EVERY_S)
        bar.update(wanted - seen)


def _children(app: SqlQueue) -> int:
    return sum(row.parent_id is not None for row in app.backend.workers())


def _done(app: SqlQueue) -> int:
    counts = app.backend.counts().states
    if counts[State.PERMANENTLY_FAILED] or counts[State.FAILED]:
        raise CommandFailed("jobs that do nothing have failed. That is a bug; please report it.")
    return counts[State.DONE]
