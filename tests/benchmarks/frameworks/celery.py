"""Celery on several brokers, as it is by default: early acknowledgement, prefetch 4, no results.

Kombu's memory needs no storage, no server and no other process, so it is Celery's own cap. Publisher
and worker are one process there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.levels import Subject

EARLY = "before it runs"


@dataclass(frozen=True)
class CeleryPeer(Peer):
    """Be Celery's worker with one of its pools, on a broker with a server or without one."""

    pool: str = "prefork"
    url: str = ""  # DIRECTORY stands for where to be

    app = "celery_app"
    needs = "celery"

    @property
    def one_process(self) -> bool:  # type: ignore[override]
        return self.url.startswith("memory:")

    @contextlib.contextmanager
    def serving(self, directory: Path) -> Iterator[tuple[str, list[int]]]:
        with super().serving(directory) as (url, pids):
            yield self.url.replace("DIRECTORY", str(directory)) or url, pids

    def work(self, count: int) -> list[list[str]]:
        several = ["-c", str(count)] if self.pool != "solo" else []
        arguments = ["worker", "-l", "warning", "-P", self.pool, *several]
        if self.one_process:
            return [arguments]
        return [[sys.executable, "-W", "ignore", "-m", "celery", "-A", self.module, *arguments]]


OURS, MEMORY = "sqlqueue:///DIRECTORY/queue.db", "memory://"
UNSYNCED = {"durability": "process"}

# Once it runs, it survives nothing.
ON_OURS = Subject("Celery on sqlqueue", "the publish", EARLY, "waiting: kills, power cuts")
ON_OURS_UNSYNCED = Subject("Celery on sqlqueue, process", "nothing", EARLY, "waiting: kills")
ON_REDIS = Subject("Celery on Redis", "nothing", EARLY, "waiting: kills but the server's")
ON_REDIS_SYNCED = Subject(
    "Celery on Redis, fsync always", "everything", EARLY, "waiting: kills, power cuts"
)
ON_RABBITMQ = Subject(
    "Celery on RabbitMQ", "nothing: unconfirmed", EARLY, "waiting: kills but the server's"
)
IN_MEMORY = Subject("Celery in memory", "", EARLY, "nothing: its cap")

PEERS = [
    CeleryPeer(
        ON_OURS,
        url=OURS,
        filling={},
        guesses=(2500, 2500),
        workers=(1, 4, 8),
    ),
    CeleryPeer(ON_OURS_UNSYNCED, url=f"{OURS}?durability=process", guesses=(3500, 2500)),
    CeleryPeer(ON_REDIS, server="redis", guesses=(2500, 1000), workers=(1, 4, 8)),
    CeleryPeer(ON_REDIS_SYNCED, server="redis synced", guesses=(1200, 500)),
    CeleryPeer(ON_RABBITMQ, server="rabbitmq", guesses=(4000, 2500)),
    CeleryPeer(IN_MEMORY, url=MEMORY, guesses=(7000, 5000)),
    *(
        CeleryPeer(
            Subject(f"{subject.name}, solo", subject.synced, EARLY, subject.survives),
            url=url,
            server=server,
            pool="solo",
            guesses=(3000, rate),
            workers=(1,),
        )
        for subject, url, server, rate in (
            (ON_OURS, OURS, "", 4500),
            (ON_REDIS, "", "redis", 1500),
            (IN_MEMORY, MEMORY, "", 12_000),
        )
    ),
]
