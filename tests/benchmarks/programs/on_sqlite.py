"""Do what a queue does, once with nothing but `sqlite3` and once with our Store; print what it took.

    python -m tests.benchmarks.programs.on_sqlite '{"by": "plain", "count": 1000, "batch": 1}'

Plain means: the same file as the store makes, with its indexes and triggers, and the very texts of
its statements, but no checks, no writer lock, no waking, no objects. Nothing that keeps its rows in
this file can be faster. Bare means: the smallest table that could be a queue at all, so that the
price of the schema shows, too. One process and one connection; synced means an fdatasync for each
transaction, by SQLite itself (`synchronous = FULL`) or by the store's own flush.

Half of the messages are claimed and then acknowledged; of the other half each transaction ends those
that the one before took, as a consumer does.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import Outcome, Settlement, Store
from sqlqueue_transport import statements as sql
from sqlqueue_transport.messages import NewMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

BODY = b"x" * 300
QUEUE = "bench"
LEASE_S = 3600


class Plain:
    """Be SQLite alone on the store's file. Taken messages are pairs of id and delivery number."""

    publish, ready, claim = sql.PUBLISH, sql.READY, sql.CLAIM

    def __init__(self, path: Path, *, synced: bool, are_jobs: bool) -> None:
        self.make(path)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
        self._task = "nothing" if are_jobs else None
        self.ack = sql.COMPLETE if are_jobs else sql.DELETE_DONE

    def make(self, path: Path) -> None:
        Store(path).close()

    def enqueue(self, count: int) -> None:
        row = self.row()
        self._connection.execute("BEGIN IMMEDIATE")
        self._run(self.publish, [row] * count)
        self._connection.execute("COMMIT")

    def row(self) -> tuple[Any, ...]:
        """Return what `publish` stores, in its order."""
        job_id = self._task and "j"
        times = (None, _now_ms(), None, None)
        return (
            *(QUEUE, "pending", 0, job_id, self._task, None, *times),
            *("", QUEUE, None, None, "{}", "{}", BODY),
        )

    def turn(self, done: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
        """End what is done and take up to `limit` others, in one transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        now_ms = _now_ms()
        ended = {"result": None, "now_ms": now_ms, "lease_now_ms": now_ms}
        self._run(self.ack, [{"id": id_, "delivery": nr, **ended} for id_, nr in done])
        taken = []
        if limit:
            ready = self._connection.execute(
                self.ready, {"queue": QUEUE, "limit": limit}
            ).fetchall()
            lease = {"worker_id": 1, "lease_until_ms": now_ms + LEASE_S * 1000, "now_ms": now_ms}
            self._run(self.claim, [{"id": row[0], **lease} for row in ready])
            taken = [(row[0], row[1] + 1) for row in ready]
        self._connection.execute("COMMIT")
        return taken

    def _run(self, statement: str, rows: Sequence[Any]) -> None:
        if len(rows) == 1:  # spares the list's iterator and its checks
            self._connection.execute(statement, rows[0])
        elif rows:
            self._connection.executemany(statement, rows)

    def close(self) -> None:
        self._connection.close()


class Bare(Plain):
    """Be SQLite alone on a table of six columns and one index. Done messages stay, as the store's do."""

    publish = "INSERT INTO message (queue, body) VALUES (?, ?)"
    ready = """
        SELECT id, delivery, body FROM message
        WHERE state = 0 AND queue = :queue ORDER BY id LIMIT :limit
    """
    claim = """
        UPDATE message SET state = 1, delivery = delivery + 1, lease_until_ms = :lease_until_ms
        WHERE id = :id AND state = 0
    """

    def row(self) -> tuple[Any, ...]:
        return QUEUE, BODY

    def __init__(self, path: Path, *, synced: bool, are_jobs: bool) -> None:
        super().__init__(path, synced=synced, are_jobs=are_jobs)
        self.ack = "UPDATE message SET state = 2 WHERE id = :id AND delivery = :delivery"

    def make(self, path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.executescript("""
            CREATE TABLE message (
              id INTEGER PRIMARY KEY AUTOINCREMENT,
              queue TEXT NOT NULL,
              state INTEGER NOT NULL DEFAULT 0,
              delivery INTEGER NOT NULL DEFAULT 0,
              lease_until_ms INTEGER,
              body BLOB NOT NULL
            );
            CREATE INDEX message_ready ON message (queue, id) WHERE state = 0;
        """)
        connection.close()


class Ours:
    """Be our Store, doing the same. Taken messages are its deliveries."""

    def __init__(self, path: Path, *, synced: bool, are_jobs: bool) -> None:
        self._store = Store(path)
        self._store.consumers.register(name="bench", kind="client")
        self._synced = synced
        task = "nothing" if are_jobs else None
        self._message = NewMessage(body=BODY, queue=QUEUE, task=task, job_id=task and "j")

    def enqueue(self, count: int) -> None:
        self._store.publish([self._message] * count, durable=self._synced)

    def turn(self, done: Sequence[Any], limit: int) -> list[Any]:
        settlements = [Settlement(one.message_id, one.delivery, Outcome.done()) for one in done]
        if not limit:
            assert not self._store.settle(settlements, durable=self._synced)
            return []
        # A claim alone is never synced: nothing is lost with it.
        claim = self._store.claim(
            [QUEUE], limit, lease_s=LEASE_S, settlements=settlements, durable=self._synced
        )
        assert not claim.refused
        return claim.deliveries

    def close(self) -> None:
        self._store.close()


def main(
    by: str, count: int, *, batch: int = 1, synced: bool = False, are_jobs: bool = True
) -> dict[str, float]:
    """Return how often a second, and processor time in microseconds, for each kind of work."""
    path = Path("queue.db").absolute()
    queue = {"bare": Bare, "plain": Plain, "store": Ours}[by](
        path, synced=synced, are_jobs=are_jobs
    )
    transactions = max(count // batch // 2, 2)
    found: dict[str, float] = {}
    queue.enqueue(1)  # opens what is opened late
    queue.turn(queue.turn([], 1), 0)

    def timed(name: str, began: tuple[float, float], messages: int) -> None:
        took_s, took_cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
        found[name] = messages / took_s
        found[f"{name} CPU"] = took_cpu_s / messages * 1e6

    began = _begin()
    for _ in range(transactions * 2):
        queue.enqueue(batch)
    timed("enqueue", began, transactions * 2 * batch)
    began = _begin()
    taken = [queue.turn([], batch) for _ in range(transactions)]
    timed("claim", began, transactions * batch)
    began = _begin()
    for done in taken:
        queue.turn(done, 0)
    timed("ack", began, transactions * batch)
    done = queue.turn([], batch)
    began = _begin()
    for _ in range(transactions - 1):
        done = queue.turn(done, batch)
        assert len(done) == batch
    timed("ack + claim", began, (transactions - 1) * batch)
    queue.turn(done, 0)
    assert not queue.turn([], 1)
    queue.close()
    return found


def _begin() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
