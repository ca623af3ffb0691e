"""RQ on Redis: a process forked for each job, as by default, or jobs in the worker itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.levels import Subject


@dataclass(frozen=True)
class RqPeer(Peer):
    """Be workers of RQ, each of which runs one job at a time."""

    kind: str = "rq.worker.Worker"

    app = "rq_app"
    needs = "rq"

    def work(self, count: int) -> list[list[str]]:
        program = [sys.executable, "-m", "rq.cli", "worker", "-q", "-w", self.kind]
        return [[*program, "-u", "BROKER"]] * count


PEERS = [
    RqPeer(
        Subject(
            "RQ, fork",
            "nothing",
            "when it has run",
            "waiting: kills but the server's; running: told as failed",
        ),
        server="redis",
        guesses=(2000, 120),
    ),
    RqPeer(
        Subject(
            "RQ, SimpleWorker",
            "nothing",
            "when it has run",
            "waiting: kills but the server's; running: told as failed",
        ),
        server="redis",
        kind="rq.worker.SimpleWorker",
        guesses=(2000, 550),
    ),
]
