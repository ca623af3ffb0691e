"""Task frameworks with little to do: how soon a job starts, and what waiting for one costs.

Four workers are started while one job waits for them. Then one process enqueues to idle workers, one
job at a time, 20 ms after the last one began; then at even intervals, half as many jobs a second as
these workers and a process that enqueues get through together. At last nothing happens: what it
costs, of a core and of memory (pages that processes share counted once), the server included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.benchmarks.frameworks import celery, dramatiq, huey, plainjob, rq, sqlqueue
from tests.benchmarks.frameworks.apps import jobs
from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.frameworks.site import Site
from tests.benchmarks.levels import Measure, Ratio, Subject

__all__ = ["LEVEL", "Latency"]

_WORKERS: Final = 4
_SAMPLES, _SAMPLING_S = 100, 3.0
_LOAD_S, _IDLE_S = 1.0, 3.0
_SETTLE_S: Final = 0.5

# Nothing of what is measured here depends on how much more or less they flush.
_SAME: Final = {
    *("sqlqueue, full", "Huey SQLite, fsync"),
    *("Celery on sqlqueue, process", "Celery on Redis, fsync always"),
}

_START = "start to first job"
_P50, _P99 = "idle, p50", "idle, p99"
_LOADED_P50, _LOADED_P99 = "half load, p50", "half load, p99"
_LOAD, _IDLE, _MEMORY = "half load", "idle CPU", "memory"


class Latency:
    """Be the level of the time from enqueue to start, and of idling."""

    name = "latency"
    title = "Task frameworks: start, enqueue to start, idle CPU and memory, 4 workers"
    measures = (
        Measure(_START, "s", "{:.3f}", more_is_better=False),
        Measure(_P50, "ms", "{:.2f}", more_is_better=False),
        Measure(_P99, "ms", "{:.2f}", more_is_better=False),
        Measure(_LOAD, "jobs/s"),
        Measure(_LOADED_P50, "ms", "{:.2f}", more_is_better=False),
        Measure(_LOADED_P99, "ms", "{:.2f}", more_is_better=False),
        Measure(_IDLE, "% of a core", "{:.2f}", more_is_better=False),
        Measure(_MEMORY, "MB", "{:.1f}", more_is_better=False),
    )
    ratios = (
        Ratio(_P50, "sqlqueue", "Huey Redis", 0.5),
        Ratio(_P99, "sqlqueue", "Huey Redis", 0.5),
        Ratio(_P50, "Celery on sqlqueue", "Celery on Redis"),
        Ratio(_P99, "Celery on sqlqueue", "Celery on Redis"),
        Ratio(_LOADED_P50, "sqlqueue", "Huey Redis"),
        Ratio(_LOADED_P99, "sqlqueue", "Huey Redis"),
        Ratio(_IDLE, "sqlqueue", "Huey SQLite"),
        Ratio(_IDLE, "Celery on sqlqueue", "Celery on Redis"),
        Ratio(_MEMORY, "sqlqueue", "Huey SQLite", 0.8, 0.6),
        Ratio(_START, "sqlqueue", "Dramatiq Redis", 0.8),
    )

    def __init__(self) -> None:
        """Leave out what differs in nothing that is measured here."""
        self._peers: dict[str, Peer] = {
            peer.subject.name: peer
            for module in (sqlqueue, celery, huey, dramatiq, rq, plainjob)
            for peer in module.PEERS
            if _WORKERS in peer.workers and not peer.one_process and peer.subject.name not in _SAME
        }
        self.subjects = [peer.subject for peer in self._peers.values()]
        # Of enqueueing and running at the same time.
        self._rates = {name: min(peer.guesses) / 2 for name, peer in self._peers.items()}

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure a framework once; see `levels.Level`."""
        peer = self._peers[subject.name]
        found: dict[str, float] = {}
        with Site.open(peer, directory) as site:
            site.publish("nothing", 1)
            with site.working(_WORKERS) as began_ns:
                site.wait_for(1)
                found[_START] = (site.tally.first_ns() - began_ns) / 1e9
                time.sleep(_SETTLE_S)
                found[_P50], found[_P99] = _one_by_one(site, scale)
                rate = _together(site, round(self._rates[subject.name] * scale) + 60)
                self._rates[subject.name] = rate
                found |= _half_load(site, rate / 2, _LOAD_S * max(scale, 0.3))
                time.sleep(_SETTLE_S)
                found[_IDLE] = site.idle_percent(_IDLE_S * max(scale, 0.3))
                found[_MEMORY] = site.memory_mb()
        return found


def _one_by_one(site: Site, scale: float) -> tuple[float, float]:
    """Return median and 99th percentile, in milliseconds."""
    jobs.forget_marks(site.directory)
    # The first one connects.
    count = max(20, round(_SAMPLES * scale)) + 1
    site.client("one-by-one", count, _SAMPLING_S * max(scale, 0.3))
    return _percentiles(jobs.marked(site.directory)[1:])


def _together(site: Site, count: int) -> float:
    """Return how many jobs a second one process enqueues and the workers run at the same time."""
    before = site.tally.count()
    told = site.publish("nothing", count)
    site.wait_for(before + count)
    return (count - 1) / (site.tally.last_ns() - told["began_ns"]) * 1e9


def _half_load(site: Site, per_s: float, seconds: float) -> dict[str, float]:
    jobs.forget_marks(site.directory)
    before = site.tally.count()
    told = site.client("steadily", per_s, seconds)
    site.wait_for(before + round(told["count"]))
    p50, p99 = _percentiles(jobs.marked(site.directory))
    return {_LOAD: told["rate"], _LOADED_P50: p50, _LOADED_P99: p99}


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.99)] * 1000


LEVEL = Latency()
