"""Whole task frameworks: how fast one process enqueues, and how fast workers run a backlog.

The jobs do nothing, or sleep two milliseconds. Workers are started on a backlog, and the rate goes
from the begin of the first job to the begin of the last one: every job counts itself, and all must
have run, and none twice. CPU is that of all processes, the server among them, without the first tenth
of the jobs, during which some workers are still starting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.frameworks import celery, dramatiq, huey, plainjob, rq, sqlqueue
from tests.benchmarks.frameworks.apps import jobs
from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.frameworks.site import Site
from tests.benchmarks.levels import Measure, Ratio, Subject

__all__ = ["LEVEL", "Framework"]

_WORKERS: Final = 4
_FULL: Final = (
    0.5  # from this scale on, sleeping jobs and other numbers of workers are measured, too
)
_SECONDS: Final = 1.0  # what a backlog is to keep workers busy, at scale 1

_ENQUEUE, _CPU_TO_ENQUEUE = "enqueue", "CPU to enqueue"
_AT_ONCE = {count: f"no-op, {count} at once" for count in (1, 2, 4, 8)}
_CPU_TO_RUN, _NAPS = "CPU to run", f"2 ms, {_WORKERS} at once"


class Framework:
    """Be the level of whole frameworks."""

    name = "framework"
    title = "Task frameworks: enqueue, and run a backlog"
    measures = (
        Measure(_ENQUEUE, "jobs/s"),
        Measure(_CPU_TO_ENQUEUE, "µs/job", more_is_better=False),
        *(Measure(name, "jobs/s") for name in _AT_ONCE.values()),
        Measure(_CPU_TO_RUN, "µs/job", more_is_better=False),
        Measure(_NAPS, "jobs/s"),
    )
    ratios = (
        Ratio(_AT_ONCE[4], "sqlqueue", "plainjob", 1.0),
        Ratio(_AT_ONCE[4], "sqlqueue", "Huey SQLite", 1.0),
        Ratio(_AT_ONCE[4], "sqlqueue", "Celery on Redis", 12.0),
        Ratio(_AT_ONCE[4], "sqlqueue, full", "Huey SQLite, fsync", 2.0, 10.0),
        Ratio(_AT_ONCE[4], "Celery on sqlqueue", "Celery in memory", 0.8, 1.0),
        Ratio(_AT_ONCE[4], "Celery on sqlqueue", "Celery on Redis", 3.5),
        Ratio(_AT_ONCE[4], "Celery on sqlqueue", "Celery on RabbitMQ"),
        Ratio(_AT_ONCE[1], "Celery on sqlqueue, solo", "Celery in memory, solo"),
        Ratio(_AT_ONCE[1], "Celery on sqlqueue, solo", "Celery on Redis, solo"),
        Ratio(_NAPS, "sqlqueue", "Huey SQLite"),
        Ratio(_CPU_TO_RUN, "sqlqueue", "plainjob"),
        Ratio(_CPU_TO_RUN, "sqlqueue", "Huey SQLite"),
        Ratio(_CPU_TO_RUN, "sqlqueue", "Celery on Redis"),
        Ratio(_CPU_TO_RUN, "Celery on sqlqueue", "Celery in memory"),
        Ratio(_CPU_TO_RUN, "Celery on sqlqueue", "Celery on Redis"),
        Ratio(_ENQUEUE, "sqlqueue, process", "plainjob"),
        Ratio(_ENQUEUE, "sqlqueue, process", "Huey SQLite"),
        Ratio(_ENQUEUE, "sqlqueue, process", "Huey Redis"),
        Ratio(_ENQUEUE, "sqlqueue", "Huey SQLite, fsync"),
        Ratio(_ENQUEUE, "Celery on sqlqueue, process", "Celery on Redis"),
        Ratio(_ENQUEUE, "Celery on sqlqueue", "Celery on Redis, fsync always"),
    )

    def __init__(self) -> None:
        """Begin with what the frameworks guess of themselves."""
        self._peers: dict[str, Peer] = {
            peer.subject.name: peer
            for module in (sqlqueue, celery, huey, dramatiq, rq, plainjob)
            for peer in module.PEERS
        }
        self.subjects = [peer.subject for peer in self._peers.values()]
        self._rates: dict[str, dict[str, float]] = {
            name: {
                _ENQUEUE: peer.guesses[0],
                **dict.fromkeys(_AT_ONCE.values(), peer.guesses[1]),
                # What four workers may hope for.
                _NAPS: min(peer.guesses[1], 0.9 * _WORKERS / jobs.NAP_S),
            }
            for name, peer in self._peers.items()
        }

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure a framework once; see `levels.Level`."""
        peer, rates = self._peers[subject.name], self._rates[subject.name]
        main = _WORKERS if _WORKERS in peer.workers else peer.workers[0]

        def jobs_for(measure: str) -> int:
            return max(60, round(rates[measure] * _SECONDS * scale))

        drains = [("nothing", main)]
        if scale >= _FULL:
            drains += [("nothing", workers) for workers in peer.workers if workers != main]
            drains += [("nap", main)] if main == _WORKERS else []
        found: dict[str, float] = {}
        for number, (kind, workers) in enumerate(drains):
            measure = _NAPS if kind == "nap" else _AT_ONCE[workers]
            count = jobs_for(measure)
            timed = 0 if found else min(count, jobs_for(_ENQUEUE))
            place = directory / str(number)
            place.mkdir()
            with Site.open(peer, place) as site:
                backlog = Backlog(site, kind, count, timed=timed)
                found[measure], used_us = backlog.run(workers)
            if timed:
                found[_CPU_TO_RUN] = used_us
                found[_ENQUEUE], found[_CPU_TO_ENQUEUE] = backlog.enqueued()
        rates |= found  # so that the next round takes as long as it should
        return found


@dataclass
class Backlog:
    """Be jobs that wait for workers. The first `timed` are enqueued as they are to be measured."""

    site: Site
    kind: str
    jobs: int
    timed: int = 0

    def __post_init__(self) -> None:
        """Enqueue them; where the broker is one process's, the workers do that before they start."""
        if self.site.peer.one_process:
            return
        if self.timed:
            self._enqueued = self.site.publish(self.kind, self.timed)
        if self.jobs > self.timed:
            self.site.publish(self.kind, self.jobs - self.timed, quickly=True)

    def run(self, workers: int) -> tuple[float, float]:
        """Start workers and kill them; jobs a second, and processor time in microseconds a job."""
        site = self.site
        alone = ("publish", self.kind, self.jobs) if site.peer.one_process else ()
        with site.working(workers, *alone):
            site.wait_for(self.jobs // 10)  # until then some of them are still starting
            before_s, missed = site.cpu_s(), site.tally.count()
            site.wait_for(self.jobs)
            used_s = site.cpu_s() - before_s
        if alone:
            self._enqueued = site.figures()
        if site.tally.count() != self.jobs:
            site.fail(f"{site.tally.count()} jobs have run instead of {self.jobs}")
        took_ns = site.tally.last_ns() - site.tally.first_ns()
        return (self.jobs - 1) / took_ns * 1e9, used_s / max(1, self.jobs - missed) * 1e6

    def enqueued(self) -> tuple[float, float]:
        """Return what enqueueing took: jobs a second, and processor time in microseconds a job."""
        return self._enqueued["rate"], self._enqueued["cpu_us"]


LEVEL = Framework()
