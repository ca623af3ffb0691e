"""Figures over time: buckets stand on the clock, what is closed stays, and only the rest is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlqueue.inspection import Activity, Bin, Bucket, Inspection, Spread
from sqlqueue_transport import Outcome
from sqlqueue_transport.lifecycle import Event, State
from tests.cli.filling import Filled
from tests.support import FakeClock

MINUTE_MS = 60_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=1_700_000_040_000 // MINUTE_MS * MINUTE_MS)


@pytest.fixture
def filled(tmp_path: Path, clock: FakeClock) -> Iterator[Filled]:
    filled = Filled(tmp_path / "q.db", clock=clock)
    yield filled
    filled.close()


@pytest.fixture
def inspection(filled: Filled, clock: FakeClock) -> Iterator[Inspection]:
    backend = filled.backend()
    yield Inspection(backend, clock=clock)
    backend.close()


def run(filled: Filled, clock: FakeClock, *, waits_s: float, runs_s: float) -> None:
    """Add a job that waited, ran, and is done."""
    filled.publish()
    clock.advance(waits_s)
    delivery = filled.claim(lease_s=1_000_000)
    clock.advance(runs_s)
    filled.settle(delivery, Outcome.done())


def test_nothing_at_all_is_zero_and_none(inspection: Inspection, clock: FakeClock) -> None:
    found = inspection.activity(3600)
    assert (found.since_ms, found.until_ms) == (clock.wall - 60 * MINUTE_MS, clock.wall)
    assert len(found.buckets) == 60
    assert {(one.done, one.failed, one.dead) for one in found.buckets} == {(0, 0, 0)}
    assert (found.done_per_minute, found.failure_rate, found.sampled) == (0, None, 0)
    assert (found.run, found.wait, found.durations) == (None, None, ())


def test_buckets_are_closed_and_begin_at_multiples_of_their_length(
    filled: Filled, inspection: Inspection, clock: FakeClock
) -> None:
    start_ms = clock.wall
    filled.done()
    clock.advance(59.999)
    filled.dead()
    filled.failed()
    assert inspection.activity(120, buckets=2).until_ms == start_ms  # theirs is still open
    clock.advance(0.001)
    filled.done(queue="in the next")
    clock.advance(30)

    found = inspection.activity(120, buckets=2)

    assert found.bucket_ms == MINUTE_MS
    assert found.buckets == (
        Bucket(start_ms - MINUTE_MS, 0, 0, 0),
        Bucket(start_ms, done=1, failed=2, dead=1),
    )
    assert (found.done, found.failed, found.dead) == (1, 2, 1)
    assert found.done_per_minute == 0.5
    assert found.failure_rate == pytest.approx(2 / 3)


def test_what_ran_long_and_waited_long_is_told_apart(
    filled: Filled, inspection: Inspection, clock: FakeClock
) -> None:
    for number in range(20):
        run(filled, clock, waits_s=number, runs_s=10)
    clock.advance(60)
    found = inspection.activity(3600)
    assert found.run == Spread(10, 10, 10)
    assert found.wait == Spread(9, 18, 19)
    assert found.durations == (Bin(10, 10, 20),)
    assert found.sampled == 20


@pytest.mark.parametrize("longest_s", [40, 40_000])
def test_every_duration_is_in_one_bin(
    filled: Filled, inspection: Inspection, clock: FakeClock, longest_s: float
) -> None:
    for number in range(30):
        run(filled, clock, waits_s=0, runs_s=longest_s ** (number / 29))
    run(filled, clock, waits_s=0, runs_s=0)
    clock.advance(100)
    bins = inspection.activity(400_000, buckets=4000).durations
    assert sum(one.jobs for one in bins) == 31
    assert bins[0].low_s == 0
    assert bins[-1].high_s == longest_s
    assert all(one.low_s < one.high_s for one in bins)
    assert all(one.high_s == after.low_s for one, after in itertools.pairwise(bins))


def test_job_that_was_requeued_waited_nobody_knows_how_long(
    filled: Filled, inspection: Inspection, clock: FakeClock
) -> None:
    job = (filled.message_id(filled.done()), State.DONE)
    clock.advance(1000)
    filled.store.acting.act(Event.REQUEUE, [job], actor="op")
    filled.settle(filled.claim(), Outcome.done())
    clock.advance(60)
    found = inspection.activity(3600)
    assert (found.sampled, found.wait) == (1, None)


def test_retry_waits_from_its_own_time_on(
    filled: Filled, inspection: Inspection, clock: FakeClock
) -> None:
    filled.failed(retry_in_s=100)
    clock.advance(103)
    filled.store.claim(["nothing"], 1, lease_s=1)
    filled.settle(filled.claim(), Outcome.done())
    clock.advance(60)
    assert inspection.activity(3600).wait == Spread(3, 3, 3)


def test_refreshed_window_is_what_a_new_look_would_say(
    filled: Filled, inspection: Inspection, clock: FakeClock
) -> None:
    """Buckets that were asked for while they could still grow, too."""
    for step in range(60):
        run(filled, clock, waits_s=step % 3, runs_s=step % 7)
        if step % 5 == 0:
            filled.dead(queue="d")
        clock.advance((0.5, 3, 11)[step % 3])
        for window_s, buckets in ((60, 60), (120, 10), (60, 5)):
            assert inspection.activity(window_s, buckets=buckets) == look(
                filled, clock, window_s, buckets
            )


def test_wall_clock_that_is_set_back_is_asked_anew(
    filled: Filled, inspection: Inspection, clock: FakeClock
) -> None:
    filled.done()
    clock.advance(120)
    assert inspection.activity(600, buckets=10).done == 1
    clock.jump_wall(-3600)
    filled.done()
    clock.advance(120)
    found = inspection.activity(600, buckets=10)
    assert found == look(filled, clock, 600, 10)
    assert found.done == 1


def look(filled: Filled, clock: FakeClock, window_s: float, buckets: int) -> Activity:
    """Ask somebody who remembers nothing."""
    backend = filled.backend()
    try:
        return Inspection(backend, clock=clock).activity(window_s, buckets=buckets)
    finally:
        backend.close()


def test_refresh_asks_only_for_what_may_have_changed(
    filled: Filled, inspection: Inspection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.done()
    clock.advance(100)
    inspection.activity(600, buckets=10)
    asked: list[tuple[Any, ...]] = []
    source = inspection.backend.activity
    by_bucket = source._by_bucket
    monkeypatch.setattr(
        source, "_by_bucket", lambda *given: asked.append(given[1:3]) or by_bucket(*given)
    )
    assert inspection.activity(600, buckets=10).done == 1
    assert asked == []
    clock.advance(MINUTE_MS / 1000)
    assert inspection.activity(600, buckets=10).done == 1
    assert {until_ms - since_ms for since_ms, until_ms in asked} == {MINUTE_MS}


@pytest.mark.parametrize(("window_s", "buckets"), [(0, 60), (-1, 60), (60, 0), (float("nan"), 60)])
def test_window_of_nothing_is_refused(
    inspection: Inspection, window_s: float, buckets: int
) -> None:
    with pytest.raises(ValueError, match="above 0"):
        inspection.activity(window_s, buckets=buckets)
