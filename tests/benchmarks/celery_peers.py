"""Compare brokers under unmodified Celery: the queue file, a real Redis, and Kombu's memory.

    python -m tests.benchmarks.celery_peers [--rounds 5] [--jobs 3000] [--write]

The brokers take turns within each round, and medians of the rounds are shown; compare within one
run only. Jobs are no-ops without results, and everything is as Celery has it by default: early
acknowledgement, a prefetch of four for each process, events off.

* **enqueue**: `.delay()` in a loop, by one process, while no worker runs.
* **prefork, solo**: a worker is started on that backlog; from its first job to its last.
* **CPU a job**: processor time of that prefork worker, all its processes, and of the server if there
  is one. It says more than the rates when other programs are busy, too.
* **enqueue to start**: one job at a time to the idle prefork worker, 20 ms apart.
* **idle**: their processor time while there is nothing to do.

`memory` needs no storage, no server and no other process, so it is Celery's own cap; publisher
and worker are one process there, and its worker polls, so that latency and idling mean nothing.
`sqlqueue` has every publish on the disk when it returns, as by default; `unsynced` has not, like
`redis`, which writes nothing to a disk at all; `redis, synced` is Redis with fsync always.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.support import ROOT, cpu_s, wait_until

APP = """
import os, time
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

@app.task(name="nothing")
def nothing():
    pass

@app.task(name="mark")
def mark(name, published_ns):
    now_ns = time.monotonic_ns()
    with open("marks.txt", "a") as file:
        file.write(f"{name} {now_ns} {published_ns}\\n")
"""

# The first and the last job of a backlog tell when they start. The first one also connects.
PUBLISH = """
import sys, time
from benchapp import app, mark, nothing
jobs = int(sys.argv[1])
mark.delay("first", 0)
began_s = time.perf_counter()
for _ in range(jobs):
    nothing.delay()
print(jobs / (time.perf_counter() - began_s), flush=True)
mark.delay("last", 0)
"""

# Kombu's memory is one process's: the publisher becomes the worker, and ends itself.
PUBLISH_AND_WORK = (
    PUBLISH
    + """
import os, signal, threading
from tests.support import cpu_s

def has_run(name):
    return os.path.exists("marks.txt") and name in open("marks.txt").read()

def end_after_last():
    while not has_run("first"):
        time.sleep(0.005)
    before_s = cpu_s(os.getpid())
    while not has_run("last"):
        time.sleep(0.005)
    with open("used.txt", "w") as file:  # what is printed now, Celery logs
        file.write(str((cpu_s(os.getpid()) - before_s) / jobs * 1e6))
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_after_last, daemon=True).start()
app.worker_main(["worker", *sys.argv[2:]])
"""
)

# The first one connects, and does not count.
LATENCY = """
import os, sys, time
from benchapp import mark
size = 0
for number in range(int(sys.argv[1]) + 1):
    time.sleep(0.02)
    mark.delay("latency" if number else "connect", time.monotonic_ns())
    while os.path.getsize("marks.txt") == size:
        time.sleep(0.0005)
    size = os.path.getsize("marks.txt")
"""

POOLS = {"prefork": ("-P", "prefork", "-c", "4"), "solo": ("-P", "solo")}
MEASURES = {
    "enqueue, jobs/s": "{:,.0f}",
    "prefork -c 4, jobs/s": "{:,.0f}",
    "solo, jobs/s": "{:,.0f}",
    "CPU a job, µs": "{:,.0f}",
    "enqueue to start, p50, ms": "{:.2f}",
    "enqueue to start, p99, ms": "{:.2f}",
    "idle, % of a core": "{:.2f}",
}
PEERS = ("sqlqueue", "unsynced", "redis", "redis, synced", "memory")
# As shipped; with the same promise on both sides, twice; and what Celery leaves to a broker.
RATIOS = (
    ("sqlqueue", "redis"),
    ("sqlqueue", "redis, synced"),
    ("unsynced", "redis"),
    ("sqlqueue", "memory"),
    ("unsynced", "memory"),
)
RESULT = Path(__file__).parent / "results" / "celery_peers.txt"


@dataclass
class Site:
    """Be a directory in which one broker is measured once."""

    directory: Path
    peer: str
    broker: str = "memory://"
    server: int | None = None
    jobs: int = 0
    found: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{ROOT}{os.pathsep}{self.directory}"
        return {**os.environ, "PYTHONPATH": path, "BENCH_BROKER": self.broker}

    def python(self, code: str, *arguments: object) -> str:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if ran.returncode:
            raise SystemExit(f"{self.peer}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    @contextlib.contextmanager
    def worker(self, pool: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.directory / f"{pool}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchapp"),
                    *("worker", "-l", "warning", *POOLS[pool]),
                ],
                cwd=self.directory,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
            process.terminate()
            process.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)

    def marks(self, name: str) -> list[tuple[int, int]]:
        """Return when the jobs of a name started and when they were published."""
        path = self.directory / "marks.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        parts = [line.split() for line in lines if line.startswith(name)]
        return [(int(started), int(published)) for _, started, published in parts]

    def forget_marks(self) -> None:
        (self.directory / "marks.txt").write_text("")

    def drained(self, pool: str) -> None:
        """Wait for the last job of the backlog, and note the rate."""
        log = self.directory / f"{pool}.log"
        wait_until(
            lambda: self.marks("last"),
            deadline_s=300,
            what=f"{self.peer}, {pool}: the last job; {log.read_text() if log.exists() else ''}",
        )
        took_ns = self.marks("last")[0][0] - self.marks("first")[0][0]
        name = next(name for name in MEASURES if name.startswith(pool))
        self.found[name] = self.jobs / took_ns * 1e9

    def used_s(self, worker: int) -> float:
        """Return the processor time of a worker and of the server."""
        return sum(cpu_s(pid) for pid in (worker, self.server) if pid)


def measure(site: Site, *, samples: int, idle_seconds: float) -> dict[str, float]:
    """Measure one broker once."""
    for pool, arguments in POOLS.items():
        site.forget_marks()
        if site.peer == "memory":
            options = ("-l", "warning", *arguments)
            rate = float(site.python(PUBLISH_AND_WORK, site.jobs, *options).split()[0])
            site.drained(pool)
            used_us = float((site.directory / "used.txt").read_text())
            site.found.setdefault("CPU a job, µs", used_us)
        else:
            rate = float(site.python(PUBLISH, site.jobs))
            with site.worker(pool) as worker:
                wait_until(lambda: site.marks("first"), deadline_s=60, what="the first job")
                before_s = site.used_s(worker.pid)
                site.drained(pool)
                if pool == "prefork":
                    used_s = site.used_s(worker.pid) - before_s
                    site.found["CPU a job, µs"] = used_s / site.jobs * 1e6
                    _latency(site, samples)
                    _idle(site, worker.pid, idle_seconds)
        site.found.setdefault("enqueue, jobs/s", rate)
    return site.found


def _latency(site: Site, samples: int) -> None:
    site.forget_marks()
    site.python(LATENCY, samples)
    found = sorted((started - published) / 1e6 for started, published in site.marks("latency"))
    site.found["enqueue to start, p50, ms"] = statistics.median(found)
    site.found["enqueue to start, p99, ms"] = found[int(len(found) * 0.99)]


def _idle(site: Site, worker: int, seconds: float) -> None:
    before_s, began_s = site.used_s(worker), time.monotonic()
    time.sleep(seconds)
    used_s = site.used_s(worker) - before_s
    site.found["idle, % of a core"] = used_s / (time.monotonic() - began_s) * 100


@contextlib.contextmanager
def site_for(peer: str, jobs: int) -> Iterator[Site]:
    """Set up a broker, with its server where it has one, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="celery-peers-") as name:
        site = Site(Path(name), peer, jobs=jobs)
        (site.directory / "benchapp.py").write_text(APP)
        if peer in {"sqlqueue", "unsynced"}:
            query = "?durability=process" if peer == "unsynced" else ""
            site.broker = f"sqlqueue:///{name}/queue.db{query}"
            yield site
        elif peer.startswith("redis"):
            with _redis(site.directory, synced="synced" in peer) as (site.server, site.broker):
                yield site
        else:
            yield site


@contextlib.contextmanager
def _redis(directory: Path, *, synced: bool) -> Iterator[tuple[int, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = ("--appendonly", "yes", "--appendfsync", "always") if synced else ("--appendonly", "no")
    server = subprocess.Popen(
        [
            *("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""),
            *("--dir", directory, *kept),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, what="redis-server")
        yield server.pid, f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(timeout=30)


def compare(
    peers: list[str], *, rounds: int, jobs: int, samples: int, idle_seconds: float
) -> list[str]:
    """Measure brokers in turns, tell of each on stderr, and return the table's lines."""
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 else reversed(peers):
            with site_for(peer, jobs) as site:
                figures = measure(site, samples=samples, idle_seconds=idle_seconds)
            found[peer].append(figures)
            told = ", ".join(
                f"{name.rpartition(',')[0]} {MEASURES[name].format(value)}"
                for name, value in figures.items()
            )
            print(f"round {number + 1} of {rounds}, {peer}: {told}", file=sys.stderr, flush=True)
    return [_heading(rounds, jobs, samples, idle_seconds), *_table(found)]


def _heading(rounds: int, jobs: int, samples: int, idle_seconds: float) -> str:
    redis = subprocess.run(
        ["redis-server", "--version"], capture_output=True, text=True, check=True
    )
    return (
        f"Celery {version('celery')}, Kombu {version('kombu')}, Redis "
        f"{redis.stdout.split('v=')[1].split()[0]}, SQLite {sqlite3.sqlite_version}, Python "
        f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores\n"
        f"medians of {rounds} interleaved rounds; {jobs} jobs, {samples} latencies, "
        f"{idle_seconds:g} s idle"
    )


def _table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Give each measure a line of medians, and one of ratios with their extremes."""
    yield f"{'':<27}" + "".join(f"{peer:>15}" for peer in found)
    for name, pattern in MEASURES.items():
        line = f"{name:<27}"
        for rounds in found.values():
            values = [figures[name] for figures in rounds if name in figures]
            line += f"{pattern.format(statistics.median(values)) if values else '–':>15}"
        yield line
    pairs = [pair for pair in RATIOS if found.keys() >= set(pair)]
    yield ""
    yield f"{'':<27}" + "".join(f"{' / '.join(pair):>26}" for pair in pairs)
    for name in MEASURES:
        line = f"{name.rpartition(',')[0]:<27}"
        for ours, theirs in pairs:
            ratios = [
                one[name] / other[name]
                for one, other in zip(found[ours], found[theirs], strict=True)
                if name in one and name in other
            ]
            told = "–"
            if ratios:
                told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            line += f"{told:>26}"
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--latency-samples", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=5.0)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--write", action="store_true", help=f"also write {RESULT.name}")
    chosen = parser.parse_args()
    if shutil.which("redis-server") is None:
        raise SystemExit("redis-server is missing: apt-get install redis-server")
    lines = compare(
        chosen.peers,
        rounds=chosen.rounds,
        jobs=chosen.jobs,
        samples=chosen.latency_samples,
        idle_seconds=chosen.idle_seconds,
    )
    print("\n".join(lines))
    if chosen.write:
        RESULT.write_text("\n".join(["# python -m tests.benchmarks.celery_peers", *lines]) + "\n")


if __name__ == "__main__":
    main()
