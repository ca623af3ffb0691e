"""Huey with worker processes. It takes a job off its queue before it runs it, and acknowledges nothing."""

from __future__ import annotations

import sys

from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.levels import Subject

TAKEN = "never: gone before it runs"


class HueyPeer(Peer):
    """Be Huey's consumer."""

    app = "huey_app"
    needs = "huey"

    def work(self, count: int) -> list[list[str]]:
        return [
            [
                *(sys.executable, "-m", "huey.bin.huey_consumer", f"{self.module}.huey"),
                *("-w", str(count), "-k", "process", "-q"),
            ]
        ]


PEERS = [
    HueyPeer(
        Subject("Huey SQLite", "nothing: synchronous=OFF", TAKEN, "waiting: kills"),
        guesses=(25_000, 8000),
        workers=(1, 2, 4, 8),
    ),
    HueyPeer(
        Subject("Huey SQLite, fsync", "everything", TAKEN, "waiting: kills, power cuts"),
        environment={"BENCH_FSYNC": "yes"},
        filling={"BENCH_FSYNC": ""},
        guesses=(4000, 2500),
    ),
    HueyPeer(
        Subject("Huey Redis", "nothing", TAKEN, "waiting: kills but the server's"),
        server="redis",
        guesses=(6000, 2500),
    ),
]
