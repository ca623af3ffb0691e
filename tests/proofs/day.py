"""Run a day in minutes: load, failures, kills and restarts, and look whether anything grows.

Two workers of two children, a beat, and a publisher of short jobs, of which some fail, are retried,
or become dead letters. Children and workers are killed (-9), workers are restarted in turn, an
operator requeues dead letters, and somebody looks on, as a console does. What is done is kept for
half a minute and dead letters for a minute, so that rows are pruned all the time; now and then 18 MB
come at once, so that space is given back. Every few seconds memory, descriptors, file, log, rows, throughput and latency are sampled. At the end

* every job that was acknowledged must have ended: none lost, none left,
* the file must be in order,
* and what was sampled in the last third must not be above what was sampled in the middle third.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from sqlqueue_transport import Store, log_guard
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.reading import JobFilter
from tests.proofs.day_app import ATTEMPTS
from tests.support import ROOT, start_logged, wait_until

TABLES = ("message", "attempt", "body", "audit", "worker", "tick")
RATE = 40  # jobs a second
ENDS = {State.DONE, State.PERMANENTLY_FAILED, State.CANCELLED, State.EXPIRED}

PUBLISH = """
import os, sys, time
from tests.proofs.day_app import DIRECTORY, bad, short
rate, burst = float(sys.argv[1]), int(sys.argv[2])
large = "x" * 60_000
began, number = time.monotonic(), 0
with open(DIRECTORY / "published.txt", "a", buffering=1) as acknowledged:
    while True:
        time.sleep(max(began + number / rate - time.monotonic(), 0))
        number += 1
        if number % 50 == 0:
            kind = "bad"
            bad.delay(str(number), time.time())
        else:
            kind = "short"
            ballast = "x" * 30_000 if number % 40 == 0 else ""
            short.delay(str(number), time.time(), ballast)
        acknowledged.write(f"{kind} {number}\\n")
        if number % burst == 0:
            for part in range(300):
                short.delay(f"{number}.{part}", time.time(), large)
                acknowledged.write(f"short {number}.{part}\\n")
"""


def prove(
    directory: Path, *, seconds: float, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Let a day pass in so many seconds; return the table of what was sampled.

    The seed decides whom the kills hit, not when: no run is another's twin.
    """
    return Day(directory, seconds, random.Random(seed), say).run().splitlines()


@dataclass(frozen=True, slots=True)
class Sample:
    """Be what was measured at one moment; megabytes, milliseconds, seconds, jobs a second."""

    at_s: float
    file_mb: float
    log_mb: float
    free_pages: float
    messages: float
    attempts: float
    audit: float
    workers: float
    ticks: float
    supervisor_mb: float
    child_mb: float
    beat_mb: float
    descriptors: float
    jobs_s: float
    p99_ms: float
    look_ms: float


@dataclass
class Day:
    """Be the day in one directory; `run` returns its report and raises AssertionError."""

    directory: Path
    seconds: float
    chance: random.Random
    say: Callable[[str], object] = print
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    others: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    read_to: dict[Path, int] = field(default_factory=dict)
    ended: set[tuple[str, str]] = field(default_factory=set)
    starts: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.done_s = min(30.0, self.seconds / 12)
        self.path = self.directory / "queue.db"
        self.environment = {
            **{key: value for key, value in os.environ.items() if "SQLQUEUE" not in key},
            "PYTHONPATH": str(ROOT),
            "DAY_DIRECTORY": str(self.directory),
            "DAY_KEPT_S": str(2 * self.done_s),
            "SQLQUEUE_DB": str(self.path),
            "SQLQUEUE_RETENTION_DONE": str(self.done_s),
            "SQLQUEUE_RETENTION_DEAD": str(2 * self.done_s),
            "SQLQUEUE_RETENTION_AUDIT": str(2 * self.done_s),
            "SQLQUEUE_LOG_LEVEL": "warning",
        }

    # -- processes --------------------------------------------------------------------------------

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        name, *words = arguments
        return start_logged(
            words, log=self.directory / f"{name}.log", cwd=self.directory, env=self.environment
        )

    def start_worker(self, name: str) -> None:
        self.workers[name] = self.start(
            *(name, "-m", "tests.proofs.day_app", "worker"),
            *("-A", "tests.proofs.day_app:app", "-n", name, "-c", "2"),
        )

    def children(self, worker: subprocess.Popen[bytes]) -> list[int]:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
            return [int(pid) for pid in text.split()]
        return []

    def end_all(self) -> None:
        for process in (*self.workers.values(), *self.others.values()):
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- the run ----------------------------------------------------------------------------------

    def run(self) -> str:
        self.store = Store(self.path)
        try:
            for name in ("w1", "w2"):
                self.start_worker(name)
            self.others["beat"] = self.start(
                *("beat", "-m", "tests.proofs.day_app", "beat"),
                *("-A", "tests.proofs.day_app:app"),
            )
            burst = round(RATE * max(self.seconds / 8, 5.0))
            self.others["publisher"] = self.start("publisher", "-c", PUBLISH, RATE, burst)
            self.pass_by()
            self.drain()
            self.check_jobs()
        finally:
            self.end_all()
            self.store.close()
        report = self.report()
        self.check_flatness()
        return report

    def pass_by(self) -> None:
        began_s = time.monotonic()
        sample_every_s = max(2.0, self.seconds / 150)
        due = {
            "sample": (sample_every_s, lambda: self.sample(time.monotonic() - began_s)),
            "requeue": (3.0, self.requeue),
            "child_killed": (5.0, self.kill_child),
            "worker_killed": (max(self.seconds / 20, 15.0), self.kill_worker),
            "worker_restarted": (max(self.seconds / 20, 12.0), self.restart_worker),
        }
        next_s = {name: began_s + every_s for name, (every_s, _) in due.items()}
        while time.monotonic() - began_s < self.seconds:
            name = min(next_s, key=next_s.__getitem__)
            time.sleep(max(next_s[name] - time.monotonic(), 0))
            every_s, work = due[name]
            next_s[name] = time.monotonic() + every_s
            work()
            self.events[name] = self.events.get(name, 0) + 1
            for kept, process in self.others.items():
                assert process.poll() is None, f"the {kept} ended: {self.logs()}"

    def requeue(self) -> None:
        """Requeue half of the newest dead letters, as an operator would after mending the cause."""
        rows = self.store.reading.jobs(JobFilter(states=(State.PERMANENTLY_FAILED,)), limit=20)
        targets = [(row.message_id, row.state) for row in rows[::2]]
        self.store.acting.act(Event.REQUEUE, targets, actor="operator", reason="mended")

    def kill_child(self) -> None:
        children = [pid for worker in self.workers.values() for pid in self.children(worker)]
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(children), signal.SIGKILL)

    def kill_worker(self) -> None:
        name = self.chance.choice(list(self.workers))
        self.workers[name].kill()
        self.workers[name].wait()
        self.start_worker(name)

    def restart_worker(self) -> None:
        """Let a worker drain, and start it anew."""
        name = self.chance.choice(list(self.workers))
        worker = self.workers[name]
        self.await_start(worker)
        worker.send_signal(signal.SIGTERM)
        code = self.workers[name].wait(timeout=60)
        assert code == 0, f"worker {name} ended with {code} on SIGTERM: {self.logs()}"
        self.start_worker(name)

    def await_start(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a worker that may just have been started, and not know yet what a signal means."""

        def is_registered() -> bool:
            return any(worker.pid == process.pid for worker, _ in self.store.consumers.alive())

        wait_until(is_registered, deadline_s=30, what="a worker's start")

    def drain(self) -> None:
        """Stop what produces, let everything end, and stop the workers."""
        for name in ("publisher", "beat"):
            self.others[name].send_signal(signal.SIGTERM)
            self.others[name].wait(timeout=60)
        wait_until(self.is_all_ended, deadline_s=120, every_s=0.2, what="every job to end")
        for worker in self.workers.values():
            self.await_start(worker)
            worker.terminate()
        for worker in self.workers.values():
            code = worker.wait(timeout=60)
            assert code == 0, f"exit code {code}: {self.logs()}"

    def is_all_ended(self) -> bool:
        states = self.store.reading.counts().states
        return not sum(count for state, count in states.items() if state not in ENDS)

    # -- looking ----------------------------------------------------------------------------------

    def read_traces(self) -> int:
        """Take in what jobs have written since the last look; return how many ended."""
        ended = 0
        for path in self.directory.glob("trace-*.txt"):
            with path.open() as file:
                file.seek(self.read_to.get(path, 0))
                for line in file:
                    event, kind, number, since_s = line.split()
                    which = (kind, number)
                    if event == "end":
                        self.ended.add(which)
                        ended += 1
                        continue
                    if which not in self.starts:
                        self.latencies_s.append(float(since_s))
                    self.starts[which] += 1
                self.read_to[path] = file.tell()
        return ended

    def look(self) -> float:
        """Ask what a console asks; return how long that took, in milliseconds."""
        began_s = time.monotonic()
        self.store.reading.counts()
        self.store.reading.jobs(JobFilter(), limit=50)
        self.store.reading.queues()
        self.store.consumers.alive()
        return (time.monotonic() - began_s) * 1000

    def sample(self, at_s: float) -> None:
        ended = self.read_traces()
        since_s = at_s - (self.samples[-1].at_s if self.samples else 0.0)
        latencies, self.latencies_s = sorted(self.latencies_s), []
        rows = self.store.database.read(
            lambda c: {
                **{t: c.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in TABLES},
                "free": c.execute("PRAGMA freelist_count").fetchone()[0],
            }
        )
        workers = [worker.pid for worker in self.workers.values()]
        children = [pid for worker in self.workers.values() for pid in self.children(worker)]
        sample = Sample(
            at_s=at_s,
            file_mb=self.path.stat().st_size / 1e6,
            log_mb=log_guard.size_of(self.path) / 1e6,
            free_pages=rows["free"],
            messages=rows["message"],
            attempts=rows["attempt"],
            audit=rows["audit"],
            workers=rows["worker"],
            ticks=rows["tick"],
            supervisor_mb=max(map(resident_mb, workers)),
            child_mb=max(map(resident_mb, children), default=0.0),
            beat_mb=resident_mb(self.others["beat"].pid),
            descriptors=max(map(descriptors, [*workers, *children, self.others["beat"].pid])),
            jobs_s=ended / since_s,
            p99_ms=latencies[int(len(latencies) * 0.99)] * 1000 if latencies else 0.0,
            look_ms=self.look(),
        )
        self.samples.append(sample)
        self.say(
            f"{at_s:6.0f} s  {sample.jobs_s:5.0f} jobs/s  p99 {sample.p99_ms:6.0f} ms  "
            f"file {sample.file_mb:6.1f} MB  log {sample.log_mb:5.1f} MB  "
            f"rows {sample.messages:6.0f}  free pages {sample.free_pages:5.0f}  "
            f"worker {sample.supervisor_mb:3.0f} MB  child {sample.child_mb:3.0f} MB  "
            f"fds {sample.descriptors:3.0f}"
        )

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))

    # -- judging ----------------------------------------------------------------------------------

    def check_jobs(self) -> None:
        """Fail unless every acknowledged job has ended, and the file says nothing impossible.

        A job without an end must have used its attempts up. One of them may have left no line: its
        process was killed between the note of the start and the line.
        """
        self.read_traces()
        text = (self.directory / "published.txt").read_text()
        published = {tuple(line.split()) for line in text.splitlines()[:-1]}  # the last may be torn
        given_up = {which for which in published - self.ended if self.starts[which] >= ATTEMPTS - 1}
        lost = published - self.ended - given_up
        assert not lost, f"{len(lost)} acknowledged jobs were lost, such as {sorted(lost)[:5]}"
        self.events |= {
            "published": len(published),
            "given_up": len(given_up),
            "runs": sum(self.starts.values()),
        }
        assert self.store.reading.broken_invariants() == {}
        assert self.store.reading.damage(full=True) == []

    def thirds(self) -> tuple[list[Sample], list[Sample]]:
        third = len(self.samples) // 3
        return self.samples[third : 2 * third], self.samples[2 * third :]

    def check_flatness(self) -> None:
        """Fail if something is larger in the last third than in the middle third."""
        grown = []
        for name, (share, slack) in FLAT.items():
            before, after = (
                statistics.median(getattr(one, name) for one in third) for third in self.thirds()
            )
            if after > before * (1 + share) + slack:
                grown.append(f"{name} grew from {before:.1f} to {after:.1f}")
        assert not grown, "; ".join(grown)

    def report(self) -> str:
        """Return the table and the plots."""
        middle, last = self.thirds()
        load = (
            f"{self.seconds:.0f} s, {RATE} jobs/s published and 5 by a beat, 2 workers of 2 children; "
            f"done kept for {self.done_s:g} s, dead letters for {2 * self.done_s:g} s"
        )
        lines = [
            load,
            "  ".join(f"{name} {count}" for name, count in sorted(self.events.items())),
            "",
            f"{'':14} {'middle third':>12} {'last third':>12} {'largest':>12}   over time",
        ]
        for one in fields(Sample)[1:]:
            values = [getattr(sample, one.name) for sample in self.samples]
            before, after = (
                statistics.median(getattr(sample, one.name) for sample in third)
                for third in (middle, last)
            )
            lines.append(
                f"{one.name:14} {before:12,.1f} {after:12,.1f} {max(values):12,.1f}   {plot(values)}"
            )
        return "\n".join(lines)


# How much of growth is none: a share, and what comes on top of it for small numbers and for chance.
FLAT = {
    "file_mb": (0.2, 2.0),
    "log_mb": (0.5, 8.0),
    "messages": (0.3, 200),
    "attempts": (0.5, 200),
    "audit": (0.5, 100),
    "workers": (0.5, 40),
    "ticks": (0.3, 20),
    "supervisor_mb": (0.05, 4.0),
    "child_mb": (0.05, 4.0),
    "beat_mb": (0.05, 4.0),
    "descriptors": (0.0, 3),
    "look_ms": (1.0, 20.0),
}


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in megabytes; 0 when it has just ended."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open; 0 when it has just ended."""
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def plot(values: list[float], *, width: int = 48) -> str:
    """Draw values over time as a line of blocks, from zero to the largest."""
    blocks, top = " ▁▂▃▄▅▆▇█", max([*values, 1e-9])
    step = max(len(values) / width, 1.0)
    shown = [
        max(values[int(i * step) : int((i + 1) * step) or 1] or [0.0])
        for i in range(min(width, len(values)))
    ]
    return "".join(blocks[min(round(value / top * 8), 8)] for value in shown)
