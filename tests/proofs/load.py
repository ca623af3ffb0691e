"""Much work at once, and a long line of it: everything is done once, the file stays in order.

`prove`: eight publishers and eight workers on one file, both consoles open in a browser, as when
people watch a busy day. `prove_backlog`: a million jobs wait, and then they are worked off.

Each publisher notes what was acknowledged, each child what it ran, so that both lists can be compared
with the file: nothing lost, nothing unexpected, nothing run twice, for nobody is killed here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlqueue_transport import Store, log_guard
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobFilter
from tests.support import ROOT, kill, start_logged, wait_until

PUBLISHERS = 8
WORKERS = 8
LOG_BOUND_BYTES = 64_000_000

APP = """
import os
from sqlqueue import SqlQueue

app = SqlQueue("load", broker_url="sqlqueue:///queue.db")


@app.task(name="note")
def note(number):
    descriptor = os.open(
        f"ran-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    os.write(descriptor, f"{number}\\n".encode())
    os.close(descriptor)
"""

PUBLISH = """
import random, sys
from loadapp import app, note

first, count, chance = int(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
number, end = first, first + count
with open(f"published-{first}.txt", "a", buffering=1) as acknowledged:
    while number < end:
        # One at a time, or many in one transaction.
        many = min(chance.choice((1, 1, 1, 1, 1, 1, 1, 1, 1, 25)), end - number)
        if many == 1:
            note.delay(number)
        else:
            note.map(range(number, number + many))
        acknowledged.write("".join(f"{one}\\n" for one in range(number, number + many)))
        number += many
app.close()
"""


@dataclass
class Ground:
    """Be a directory with a queue, and the processes at work in it."""

    directory: Path
    say: Callable[[str], object]
    store: Store = field(init=False)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    publishers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    log_bytes: list[int] = field(default_factory=list)
    look_ms: list[float] = field(default_factory=list)
    pace: list[tuple[float, int]] = field(default_factory=list)  # seconds, jobs done by then

    def __post_init__(self) -> None:
        (self.directory / "loadapp.py").write_text(APP)
        self.store = Store(self.directory / "queue.db")
        self.began_s = time.monotonic()

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if "SQLQUEUE" not in key}
        environment["PYTHONPATH"] = f"{ROOT}:{self.directory}"
        return start_logged(
            arguments, log=self.directory / "processes.log", cwd=self.directory, env=environment
        )

    def start_workers(self, count: int, *options: object) -> None:
        for number in range(count):
            self.workers.append(
                self.start(
                    *("-m", "sqlqueue", "worker", "-A", "loadapp:app", "--log-level", "warning"),
                    *("-n", f"w{number}", *options),
                )
            )

    def start_publisher(self, first: int, count: int, seed: object) -> None:
        self.publishers.append(self.start("-c", PUBLISH, first, count, seed))

    def look(self) -> int:
        """Look as a console does, note what it took and how long the log is; return how many are done."""
        began_s = time.monotonic()
        done = self.store.reading.counts().states[State.DONE]
        self.store.reading.jobs(JobFilter(), limit=50)
        self.store.reading.queues()
        ended_s = time.monotonic()
        self.look_ms.append((ended_s - began_s) * 1000)
        self.log_bytes.append(log_guard.size_of(self.directory / "queue.db"))
        self.pace.append((ended_s - self.began_s, done))
        return done

    def work_off(self, jobs: int, *, deadline_s: float) -> None:
        """Wait until so many jobs are done, looking on; then let the workers drain."""
        told_s = time.monotonic()

        def is_done() -> bool:
            nonlocal told_s
            done = self.look()
            for process in (*self.workers, *self.publishers):
                assert process.poll() in {None, 0}, f"a process ended: {self.log()}"
            if time.monotonic() - told_s > 5:
                told_s = time.monotonic()
                self.say(
                    f"{self.pace[-1][0]:6.0f} s  {done:9,} of {jobs:,} done  "
                    f"log {self.log_bytes[-1] / 1e6:4.1f} MB  a look {self.look_ms[-1]:5.1f} ms"
                )
            return done >= jobs

        wait_until(is_done, deadline_s=deadline_s, every_s=0.25, what="every job to be done")
        for worker in self.workers:
            worker.terminate()
        assert [one.wait(timeout=60) for one in self.workers] == [0] * len(self.workers)

    def check(self, jobs: int) -> None:
        """Fail unless each acknowledged job ran once, and nothing else did."""
        acknowledged = self.numbers("published")
        ran = self.numbers("ran")
        assert acknowledged == Counter(range(jobs)), f"{jobs} wanted, {len(acknowledged)} published"
        assert not acknowledged - ran, f"lost: {[*(acknowledged - ran)][:5]}"
        assert not ran - acknowledged, (
            f"run twice or never published: {[*(ran - acknowledged)][:5]}"
        )
        assert self.store.reading.counts().states == {
            **dict.fromkeys(State, 0),
            State.DONE: jobs,
        }
        assert self.store.reading.broken_invariants(full=True) == {}
        assert self.store.reading.damage(full=True) == []
        assert max(self.log_bytes) < LOG_BOUND_BYTES, "the write-ahead log grew"

    def numbers(self, kind: str) -> Counter[int]:
        return Counter(
            int(line)
            for path in self.directory.glob(f"{kind}-*.txt")
            for line in path.read_text().splitlines()
        )

    def rates(self) -> str:
        """Return the jobs a second in each fifth of the time."""
        (began_s, first), (ended_s, last) = self.pace[0], self.pace[-1]
        edges = [began_s + (ended_s - began_s) * part / 5 for part in range(6)]
        counts = [next(done for at_s, done in self.pace if at_s >= edge) for edge in edges[:-1]]
        steps = zip([first, *counts[1:]], [*counts[1:], last], strict=True)
        width_s = (ended_s - began_s) / 5
        return ", ".join(f"{(after - before) / width_s:,.0f}" for before, after in steps)

    def figures(self) -> list[str]:
        looks = sorted(self.look_ms)
        return [
            f"jobs a second, each fifth of the time: {self.rates()}",
            (
                f"largest log {max(self.log_bytes) / 1e6:.1f} MB; file "
                f"{(self.directory / 'queue.db').stat().st_size / 1e6:.0f} MB; a look as a console's: median "
                f"{statistics.median(looks):.1f} ms, slowest {looks[-1]:.1f} ms"
            ),
        ]

    def log(self) -> str:
        return (self.directory / "processes.log").read_text()[-3000:]

    def end(self) -> None:
        for process in (*self.publishers, *self.workers):
            kill(process)
        self.store.close()


@contextlib.contextmanager
def consoles_open(directory: Path) -> Iterator[Callable[[], list[str]]]:
    """Have both consoles open in a browser; give a function that returns what their pages complain of."""
    from playwright.sync_api import sync_playwright

    from tests.consoles.browsing import Tab, launched
    from tests.consoles.conftest import start_console

    with contextlib.ExitStack() as stack:
        consoles = []
        for role in ("admin", "ops"):
            consoles.append(start_console(role, cwd=directory))
            stack.callback(consoles[-1].end)
        browser = launched(stack.enter_context(sync_playwright()))
        stack.callback(browser.close)
        tabs = [Tab(browser.new_context(), console).enter() for console in consoles]

        def complaints() -> list[str]:
            found = [error for tab in tabs for error in tab.errors]
            for tab in tabs:
                found += tab.page.locator("[data-testid=stException]").all_inner_texts()
                found += tab.part("trouble").all_inner_texts()
            return found

        yield complaints


def prove(
    directory: Path, *, jobs: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Publish and run so many jobs with 8 publishers, 8 workers and both consoles open."""
    assert shutil.which("chromium"), "apt-get install chromium --no-install-recommends"
    jobs -= jobs % PUBLISHERS
    ground = Ground(directory, say)
    try:
        with consoles_open(directory) as complaints:
            ground.began_s = time.monotonic()
            ground.start_workers(WORKERS, "-c", 1)
            each = jobs // PUBLISHERS
            for number in range(PUBLISHERS):
                ground.start_publisher(number * each, each, f"{seed}-{number}")
            ground.work_off(jobs, deadline_s=60 + jobs / 25)
            assert complaints() == []
        assert [one.wait(timeout=60) for one in ground.publishers] == [0] * PUBLISHERS
        ground.check(jobs)
        took_s = ground.pace[-1][0]
        return [
            (
                f"{jobs:,} jobs of {PUBLISHERS} publishers through {WORKERS} workers, both consoles open, in "
                f"{took_s:.0f} s: 0 lost, 0 unexpected, 0 run twice"
            ),
            *ground.figures(),
        ]
    finally:
        ground.end()


def prove_backlog(
    directory: Path, *, jobs: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Let so many jobs wait before the first worker comes, then work them off. The seed is not used."""
    del seed
    ground = Ground(directory, say)
    try:
        began_s = time.monotonic()
        fill = ground.start(
            "-c",
            "import sys; from loadapp import app, note; "
            "note.map(range(int(sys.argv[1])), chunk=1000); app.close()",
            jobs,
        )
        ground.publishers.append(fill)
        wait_until(lambda: fill.poll() is not None, deadline_s=60 + jobs / 1000, every_s=0.1)
        assert fill.returncode == 0, ground.log()
        filled_s = time.monotonic() - began_s
        (directory / "published-0.txt").write_text("".join(f"{n}\n" for n in range(jobs)))
        size_mb = (directory / "queue.db").stat().st_size / 1e6
        say(f"{jobs:,} jobs wait after {filled_s:.0f} s; the file has {size_mb:.0f} MB")
        ground.began_s = time.monotonic()
        ground.start_workers(1, "-c", 4)
        ground.work_off(jobs, deadline_s=60 + jobs / 500)
        ground.check(jobs)
        return [
            (
                f"{jobs:,} jobs published in {filled_s:.0f} s ({jobs / filled_s:,.0f}/s, 1,000 a transaction), "
                f"worked off by 4 processes in {ground.pace[-1][0]:.0f} s: 0 lost, 0 unexpected, 0 run twice"
            ),
            *ground.figures(),
        ]
    finally:
        ground.end()
