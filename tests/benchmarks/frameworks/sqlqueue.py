"""Ours, in each of its pools and durabilities."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.levels import Subject

SYNCED = {"process": "nothing", "publish": "the publish", "full": "everything"}


@dataclass(frozen=True)
class SqlQueuePeer(Peer):
    """Be our worker with one of its pools."""

    pool: str = "processes"

    app = "sqlqueue_app"

    @contextlib.contextmanager
    def serving(self, directory: Path) -> Iterator[tuple[str, list[int]]]:
        yield f"sqlqueue:///{directory}/queue.db", []

    def work(self, count: int) -> list[list[str]]:
        several = ["-c", str(count)] if self.pool != "solo" else []
        return [
            [
                *(sys.executable, "-m", "sqlqueue", "worker", "-A", f"{self.module}:app"),
                *("-P", self.pool, *several, "--log-level", "warning"),
            ]
        ]


def ours(
    durability: str = "publish",
    pool: str = "processes",
    workers: Sequence[int] = (4,),
    jobs_per_s: float = 10_000,
) -> SqlQueuePeer:
    promise = "kills" if durability == "process" else "kills, power cuts"
    special = [
        *([durability] if durability != "publish" else []),
        *([pool] if pool != "processes" else []),
    ]
    name = ", ".join(["sqlqueue", *special])
    return SqlQueuePeer(
        Subject(name, SYNCED[durability], "when it has run", promise),
        environment={"SQLQUEUE_DURABILITY": durability},
        filling={"SQLQUEUE_DURABILITY": "process"},
        guesses=(15_000 if durability == "process" else 4_000, jobs_per_s),
        pool=pool,
        workers=workers,
    )


PEERS = [
    ours("process"),
    ours("publish", workers=(1, 2, 4, 8)),
    ours("full", jobs_per_s=3000),
    ours(pool="threads"),
    ours(pool="solo", workers=(1,)),
]
