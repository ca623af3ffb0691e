"""A directory in which one framework is measured once: its server, its clients, its workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.frameworks.apps import jobs
from tests.benchmarks.frameworks.peer import Peer
from tests.support import ROOT, cpu_s

__all__ = ["Site"]

_RUN_S = 120.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Site:
    """Be where a framework is at work; `Site.open` starts its server and ends it."""

    def __init__(
        self, peer: Peer, directory: Path, environment: dict[str, str], servers: list[int]
    ) -> None:
        self.peer = peer
        self.directory = directory
        self.environment = environment
        self.servers = servers
        self.workers: list[subprocess.Popen[bytes]] = []
        self.tally = jobs.Tally.fresh(directory)

    @classmethod
    @contextlib.contextmanager
    def open(cls, peer: Peer, directory: Path) -> Iterator[Site]:
        """Set up in an empty directory. Raises Unavailable."""
        environment = {
            **os.environ,
            **peer.environment,
            "PYTHONPATH": str(ROOT),
            "BENCH_DIRECTORY": str(directory),
        }
        peer.prepare(environment)
        with peer.serving(directory) as (url, servers):
            environment["BENCH_BROKER"] = url
            yield cls(peer, directory, environment, servers)

    # -- clients ------------------------------------------------------------------------------------

    def client(self, *arguments: object, quickly: bool = False) -> dict[str, float]:
        """Have a program enqueue; return its figures, with the server's share in `cpu_us`."""
        filling = self.peer.filling if quickly else {}
        with self.told("client.log") as log:
            ended = subprocess.run(
                [*self.peer.client, *map(str, arguments)],
                cwd=self.directory,
                env={**self.environment, **filling},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_RUN_S,
                check=False,
            ).returncode
        if ended:
            self.fail(f"the client ended with {ended}")
        return self.figures()

    def publish(self, kind: str, count: int, *, quickly: bool = False) -> dict[str, float]:
        """Enqueue `count` jobs. With `quickly` as fast as it goes, which is not to be measured."""
        before_s = self.servers_cpu_s()
        found = self.client("publish", kind, count, quickly=quickly)
        found["cpu_us"] += (self.servers_cpu_s() - before_s) / count * 1e6
        return found

    def figures(self) -> dict[str, float]:
        """Return what a client has told."""
        found: dict[str, float] = json.loads((self.directory / "client.json").read_text())
        return found

    # -- workers ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self, count: int, *client: object) -> Iterator[int]:
        """Run workers; yield when they were started, on the monotonic clock in nanoseconds.

        With `client`, what it is told to do goes before the workers, in the same process. At last
        they are killed: an orderly end takes Celery and Dramatiq seconds, and nobody looks any more.
        """
        commands = [
            [self.environment["BENCH_BROKER"] if word == "BROKER" else word for word in command]
            for command in self.peer.work(count)
        ]
        if client:
            commands = [[*self.peer.client, *map(str, client), *command] for command in commands]
        began_ns = time.monotonic_ns()
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            log = stack.enter_context(self.told("workers.log"))
            self.workers = [
                subprocess.Popen(
                    command,
                    cwd=self.directory,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for command in commands
            ]
            yield began_ns

    def _end(self) -> None:
        """Kill the workers and all that is below them."""
        for pid in _below([worker.pid for worker in self.workers if worker.poll() is None]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.workers = []

    def wait_for(self, count: int, *, seconds: float = _RUN_S, every_s: float = 0.005) -> None:
        """Wait until so many jobs have begun; fail with the log when they do not, or more do."""
        give_up_s = time.monotonic() + seconds
        while (ran := self.tally.count()) < count:
            if time.monotonic() > give_up_s:
                self.fail(f"{ran} of {count} jobs have run after {seconds:g} s")
            if any(worker.poll() is not None for worker in self.workers):
                self.fail(f"a worker ended with {ran} of {count} jobs run")
            time.sleep(every_s)

    def fail(self, what: str) -> None:
        """Raise, with the end of what the programs said."""
        said = "".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))
        raise RuntimeError(f"{self.peer.subject.name}: {what}\n{said}")

    @contextlib.contextmanager
    def told(self, name: str) -> Iterator[Any]:
        with (self.directory / name).open("ab") as log:
            yield log

    # -- what they use ------------------------------------------------------------------------------

    @property
    def _pids(self) -> list[int]:
        return [worker.pid for worker in self.workers] + self.servers

    def cpu_s(self) -> float:
        """Return the processor time of all workers and servers and of their ended children.

        In hundredths of a second: for what is busy.
        """
        return sum(_ticks(pid) for pid in _below(self._pids)) * _TICK_S

    def servers_cpu_s(self) -> float:
        return sum(_ticks(pid) for pid in _below(self.servers)) * _TICK_S

    def idle_percent(self, seconds: float) -> float:
        """Return what share of a core all of it uses while there is nothing to do."""
        before_s, began_s = sum(map(cpu_s, self._pids)), time.monotonic()
        time.sleep(seconds)
        used_s = sum(map(cpu_s, self._pids)) - before_s
        return used_s / (time.monotonic() - began_s) * 100

    def memory_mb(self) -> float:
        """Return the memory of all of it, pages that several share counted once (PSS)."""
        kilobytes = 0
        for pid in _below(self._pids):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
        return kilobytes / 1024


def _below(pids: list[int]) -> list[int]:
    """Return these processes and all below them."""
    found, waiting = [], list(pids)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    waiting += map(int, (task / "children").read_text().split())
    return found


def _ticks(pid: int) -> int:
    """Return user and system time of a process and of its children that have ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # counted in its parent's by now
    return sum(map(int, text.rpartition(")")[2].split()[11:15]))
