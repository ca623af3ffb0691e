"""The processes of a proof: workers, beats and publishers of `swarm_app`, started, hit, and read.

Every process is started in the proof's directory and in a session of its own, so that whatever is
left of it can be found by its working directory.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlqueue_transport import Store
from sqlqueue_transport.writer_lock import read_holder
from tests.proofs.swarm_app import POISON_ATTEMPTS
from tests.support import ROOT, is_running, start_logged, wait_until

_JOBS = """
SELECT id, job_id, task, state, attempts, delivery, result, finished_at_ms FROM message ORDER BY id
"""
_HELD_JOBS = "SELECT job_id, delivery FROM message WHERE state = 'processing'"
ENDS = ("done", "permanently_failed", "cancelled", "expired")


@dataclass(frozen=True, slots=True)
class Line:
    """Be a line of the trace: what a process said of a delivery, in monotonic seconds."""

    event: str
    job: str
    delivery: int
    pid: int
    parent: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """Be what the file says of a job. `delivery` is the newest; `result` JSON."""

    message_id: int
    job_id: str
    task: str
    state: str
    attempts: int
    delivery: int
    result: str | None
    finished_ms: int | None  # on the wall clock

    def wrong_end(self, lines: list[Line], *, max_attempts: int) -> list[str]:
        """Return what is wrong with how it ended; `lines` are its trace."""
        if self.task == "poison":
            if (self.state, self.attempts) != ("permanently_failed", POISON_ATTEMPTS):
                return ["a poison did not end at exactly its last attempt"]
            return []
        if self.state == "permanently_failed":
            return [] if self.attempts == max_attempts else ["given up before its last attempt"]
        if self.state != "done":
            return ["it has not ended"]
        if not any((line.event, line.delivery) == ("end", self.delivery) for line in lines):
            return [f"done, but delivery {self.delivery} has not ended its work"]
        if json.loads(self.result or "null") != self.delivery:
            return [f"settled by delivery {self.result}, while {self.delivery} was the newest"]
        return []


@dataclass
class Swarm:
    """Be the processes of one proof in one directory. Not thread-safe."""

    directory: Path
    seed: int
    settings: dict[str, str] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # When processes were killed by us, in monotonic seconds, by their ids, which are used again.
    killed_s: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the queue, whose path is `path`; `store` is the proof's own."""
        self.path = self.directory / "queue.db"
        self.store = Store(self.path)
        self.environment = {
            **{key: value for key, value in os.environ.items() if "SQLQUEUE" not in key},
            "PYTHONPATH": str(ROOT),
            "PROOF_DIRECTORY": str(self.directory),
            "SQLQUEUE_DB": str(self.path),
            "SQLQUEUE_LOG_LEVEL": "warning",
            "SQLQUEUE_LOG_FORMAT": "json",
            **self.settings,
        }

    # -- processes --------------------------------------------------------------------------------

    def start(self, name: str, *command: str) -> None:
        """Start a process under a name, or that name's anew; it logs to `<name>.log`."""
        self.commands[name] = command or self.commands[name]
        self.running[name] = start_logged(
            self.commands[name],
            log=self.directory / f"{name}.log",
            cwd=self.directory,
            env=self.environment,
        )

    def start_worker(self, name: str, *arguments: str) -> None:
        """Start `sqlqueue worker` under a name."""
        app = ("-A", "tests.proofs.swarm_app:app", "-n", name)
        self.start(name, "-m", "sqlqueue", "worker", *app, *arguments)

    def start_beat(self, name: str) -> None:
        """Start `sqlqueue beat` under a name."""
        self.start(name, "-m", "sqlqueue", "beat", "-A", "tests.proofs.swarm_app:app")

    def start_publisher(self, name: str, rate: float) -> None:
        """Start a process that publishes `rate` jobs a second."""
        self.start(name, "-m", "tests.proofs.swarm_app", name, str(rate))

    def start_publishing(self, job_id: str) -> None:
        """Start a process that publishes one job, as the publishers do, and ends."""
        code = "import sys; from tests.proofs import swarm_app; swarm_app.send(sys.argv[1:])"
        self.start(f"once-{job_id}", "-c", code, job_id)

    def named(self, *prefixes: str) -> list[str]:
        """Return the names that begin with one of the prefixes."""
        return [name for name in self.running if name.startswith(prefixes)]

    def children(self, name: str) -> list[int]:
        """Return the process ids of a process's children."""
        pid = self.running[name].pid
        with contextlib.suppress(OSError):
            return [
                int(child)
                for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if is_running(int(child))
            ]
        return []

    def find_in_batch(self, wait_s: float = 0.2) -> int | None:
        """Return a process that has noted ends which are not settled; None when none came in time.

        By what the tasks said, and not by the notes: without these it is to find somebody, too.
        """
        until_s = time.monotonic() + wait_s
        ended: dict[tuple[str, int], int] = {}
        with (self.directory / "trace.txt").open("a+") as trace:  # and reads from its end
            while time.monotonic() < until_s:
                for line in trace:
                    if line.startswith("ended ") and line.endswith("\n"):
                        _, job, delivery, pid, *_ = line.split()
                        ended[job, int(delivery)] = int(pid)
                for held in self.rows(_HELD_JOBS):
                    if held in ended and is_running(ended[held]):
                        return ended[held]
                time.sleep(0.001)
        return None

    def kill(self, pid: int) -> None:
        """Send SIGKILL, and remember when."""
        self.killed_s.setdefault(pid, []).append(time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def is_up(self, name: str) -> bool:
        """Say whether a worker or beat of ours has registered itself."""
        pid = self.running[name].pid
        return any(worker.pid == pid for worker, _ in self.store.consumers.alive())

    def stop(self, *names: str, deadline_s: float = 90) -> None:
        """Let processes end in order, and see that they do."""
        for name in names:
            if not name.startswith("p"):  # a signal before it is listened to is no order
                wait_until(
                    lambda name=name: self.is_up(name),
                    deadline_s=deadline_s,
                    every_s=0.05,
                    what=f"the start of {name}: {self.log(name)}",
                )
            self.running[name].send_signal(signal.SIGTERM)
        for name in names:
            code = self.running[name].wait(timeout=deadline_s)
            # A publisher may have been told before it had a handler.
            good = (0, -signal.SIGTERM) if name.startswith("p") else (0,)
            assert code in good, f"{name} ended with {code} on SIGTERM: {self.log(name)}"

    def end(self) -> None:
        """Kill whatever is left, whoever started it, and close the store."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.running.values():
            process.kill()
            process.wait()
        self.store.close()

    def left(self) -> list[int]:
        """Return the processes that work in the directory, but this one."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if process.joinpath("cwd").readlink() == self.directory:
                    found.append(int(process.name))
        return [pid for pid in found if pid != os.getpid() and is_running(pid)]

    # -- looking ----------------------------------------------------------------------------------

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds in the queue."""
        return self.store.database.read(lambda c: c.execute(query).fetchall())

    def unfinished(self) -> int:
        """Return how many jobs have not ended."""
        states = self.store.reading.counts().states
        return sum(count for state, count in states.items() if state.value not in ENDS)

    def wait_drained(
        self, *, deadline_s: float, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Wait until every job has ended; call `meanwhile` meanwhile, which may raise."""
        wait_until(
            lambda: (meanwhile(), not self.unfinished())[-1],
            deadline_s=deadline_s,
            every_s=0.1,
            what=f"every job to end (seed {self.seed}): {self.store.reading.counts()}",
        )

    def trace(self) -> list[Line]:
        """Return what the jobs left, in the order of writing."""
        lines = []
        for text in self.read("trace.txt"):
            event, job, delivery, pid, parent, at_s = text.split()
            lines.append(Line(event, job, int(delivery), int(pid), int(parent), float(at_s)))
        return lines

    def read(self, name: str) -> list[str]:
        """Return the whole lines of a file of the directory; none when there is no such file."""
        path = self.directory / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def log(self, name: str) -> str:
        """Return the end of a process's log."""
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def events(self, event: str) -> Iterator[dict[str, Any]]:
        """Return what all processes logged of one kind."""
        for path in self.directory.glob("*.log"):
            for text in path.read_text(errors="replace").splitlines():
                if f'"event": "{event}"' in text:
                    with contextlib.suppress(ValueError):  # torn by a kill
                        yield json.loads(text)

    # -- judging ----------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Return every job that a publisher of ours, or nobody at all, has published."""
        return [Job(*row) for row in self.rows(_JOBS) if row[2] != "tock"]

    def lost_or_strange(self, jobs: list[Job]) -> list[str]:
        """Compare what is stored with what was acknowledged and attempted; return what differs."""
        attempted, acknowledged = map(set, map(self.read, ("attempted.txt", "acknowledged.txt")))
        stored = collections.Counter(job.job_id for job in jobs)
        return [
            *(f"{job} was acknowledged and is gone" for job in acknowledged - stored.keys()),
            *(f"{job} was never published" for job in stored.keys() - attempted),
            *(f"{job} is there {count} times" for job, count in stored.items() if count > 1),
        ]

    def check_file(self) -> None:
        """Fail unless the file is sound, the counts are right, and nobody is left in it."""
        reading = self.store.reading
        assert reading.damage(full=True) == [], f"seed {self.seed}"
        assert reading.broken_invariants(full=True) == {}, f"seed {self.seed}"
        assert self.left() == [], f"processes were left (seed {self.seed})"
        alive = [worker for worker, _ in self.store.consumers.alive()]
        assert alive == [], f"seed {self.seed}"
        assert read_holder(self.directory / "queue.db-run" / "writer.lock") is None
        self.store.database.write(lambda _: None)  # no lock is left, either
