"""Figures for charts: how much was done, failed and died in each bucket of a window, how long it took.

Buckets are closed and stand on the clock: each begins at a multiple of its length, and the one that
is still going on is left out. So a chart that is drawn again shows the same bars, and only the window
moves. What is in a closed bucket does not change any more, but for pruning and for operators who
requeue: so it is counted once and kept, and a refresh asks for the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlqueue_transport.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlqueue_transport.activity import Activity as Source
    from sqlqueue_transport.activity import EndedJob

__all__ = ["Activity", "ActivityMemory", "Bin", "Bucket", "Spread"]

_SAMPLED: Final = 5000
_BINS: Final = 20
# From where on bins of equal widths would put nearly all jobs into the first.
_WIDE: Final = 20
_SHORTEST_S: Final = 0.001  # times are kept in milliseconds
# A transaction reads the clock and commits a moment later: so long a closed bucket may still grow.
_SETTLES_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """Be what happened from `start_ms` on, for the length of a bucket.

    `failed` counts attempts that failed, were lost or ran out of their time; `done` and `dead` jobs
    that are done and permanently_failed since then.
    """

    start_ms: int
    done: int
    failed: int
    dead: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Be half, nearly all, and the longest of some durations, in seconds."""

    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Be how many jobs ran for at least `low_s` and less than `high_s`; the last one includes it."""

    low_s: float
    high_s: float
    jobs: int


@dataclass(frozen=True, slots=True)
class Activity:
    """Be a window of time: `since_ms` is included, `until_ms` is not, and is now or a little before.

    `failure_rate` is the share of attempts that failed, None where none ended. `run`, `wait` and
    `durations` are of the newest `sampled` done jobs of the window, 5,000 at most; None and empty
    where there are none. A job waits from when it could run until it starts; one that an operator
    requeued is left out there, for nobody knows since when it could.
    """

    since_ms: int
    until_ms: int
    bucket_ms: int
    buckets: tuple[Bucket, ...]
    done: int
    failed: int
    dead: int
    done_per_minute: float
    failure_rate: float | None
    run: Spread | None
    wait: Spread | None
    durations: tuple[Bin, ...]
    sampled: int


@dataclass(slots=True)
class _Kept:
    """Be what is known of the time from `since_ms` to `settled_ms`; counts by bucket's number."""

    since_ms: int
    settled_ms: int
    done: dict[int, int] = field(default_factory=dict)
    failed: dict[int, int] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)
    sample: list[EndedJob] = field(default_factory=list)


class ActivityMemory:
    """Answer for windows, and keep what cannot change any more; belongs to one thread."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._kept: dict[int, _Kept] = {}

    def activity(self, source: Source, now_ms: int, window_s: float, buckets: int) -> Activity:
        """Return what happened in the window that ends with the last closed bucket.

        Raises ValueError for a window or a number of buckets that is not above 0.
        """
        if not (window_s > 0 and buckets > 0):
            raise ValueError("a window, and the number of its buckets, must be above 0")
        bucket_ms = max(round(window_s * 1000 / buckets), 1)
        until_ms = now_ms // bucket_ms * bucket_ms
        since_ms = until_ms - buckets * bucket_ms
        known = self._known(source, now_ms, since_ms, until_ms, bucket_ms)
        numbers = range(since_ms // bucket_ms, until_ms // bucket_ms)
        found = tuple(
            Bucket(
                number * bucket_ms,
                known.done.get(number, 0),
                known.failed.get(number, 0),
                known.dead.get(number, 0),
            )
            for number in numbers
        )
        done, failed = sum(one.done for one in found), sum(one.failed for one in found)
        runs_s = [one.run_ms / 1000 for one in known.sample if one.run_ms is not None]
        waits_s = [max(one.wait_ms, 0) / 1000 for one in known.sample if one.wait_ms is not None]
        return Activity(
            since_ms=since_ms,
            until_ms=until_ms,
            bucket_ms=bucket_ms,
            buckets=found,
            done=done,
            failed=failed,
            dead=sum(one.dead for one in found),
            done_per_minute=done / ((until_ms - since_ms) / 60_000),
            failure_rate=failed / (done + failed) if done + failed else None,
            run=_spread(runs_s),
            wait=_spread(waits_s),
            durations=_bins(runs_s),
            sampled=len(known.sample),
        )

    def _known(
        self, source: Source, now_ms: int, since_ms: int, until_ms: int, bucket_ms: int
    ) -> _Kept:
        """Return everything of a window, of which only what is not settled is asked for."""
        kept = self._kept.get(bucket_ms)
        if kept is None or not kept.since_ms <= since_ms <= kept.settled_ms <= until_ms:
            kept = _Kept(since_ms, since_ms)
        new_ms, first = kept.settled_ms, since_ms // bucket_ms
        known = _Kept(since_ms, max(since_ms, (now_ms - _SETTLES_MS) // bucket_ms * bucket_ms))
        if new_ms < until_ms:
            fresh = (
                source.ended(State.DONE, new_ms, until_ms, bucket_ms=bucket_ms),
                source.failed(new_ms, until_ms, bucket_ms=bucket_ms),
                source.ended(State.PERMANENTLY_FAILED, new_ms, until_ms, bucket_ms=bucket_ms),
            )
            known.sample = source.newest_done(new_ms, until_ms, most=_SAMPLED)
        else:
            fresh = ({}, {}, {})
        last = new_ms // bucket_ms
        for before, now, into in zip(
            (kept.done, kept.failed, kept.dead),
            fresh,
            (known.done, known.failed, known.dead),
            strict=True,
        ):
            into.update({one: count for one, count in before.items() if first <= one < last})
            into.update(now)
        known.sample += [one for one in kept.sample if since_ms <= one.finished_at_ms < new_ms]
        del known.sample[_SAMPLED:]
        self._kept[bucket_ms] = known
        return known


def _spread(seconds: Sequence[float]) -> Spread | None:
    if not seconds:
        return None
    found = sorted(seconds)
    last = len(found) - 1
    return Spread(found[last // 2], found[round(last * 0.95)], found[last])


def _bins(seconds: Sequence[float]) -> tuple[Bin, ...]:
    """Return bins of equal widths, or of equal ratios where the durations are far apart."""
    if not seconds:
        return ()
    low, high = min(seconds), max(seconds)
    if high <= low:
        return (Bin(low, high, len(seconds)),)
    start = max(low, _SHORTEST_S)
    if high / start > _WIDE:
        edges = [start * (high / start) ** (number / _BINS) for number in range(_BINS)]
        edges[0] = low
    else:
        edges = [low + (high - low) * number / _BINS for number in range(_BINS)]
    edges.append(high)
    counts = [0] * _BINS
    for one in seconds:
        counts[min(bisect_right(edges, one) - 1, _BINS - 1)] += 1
    return tuple(
        Bin(below, above, count)
        for below, above, count in zip(edges, edges[1:], counts, strict=False)
    )
