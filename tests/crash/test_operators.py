"""`kill -9` of commands that change thousands of jobs, while workers run them: half is done, and told.

What was done before the kill is recorded to the job, the counts are right, and the same command, given
again, does the rest.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sqlqueue.task import Signature
from sqlqueue_transport import Store
from sqlqueue_transport.lifecycle import Event, State
from tests.crash.conftest import Arena
from tests.support import wait_until

pytestmark = pytest.mark.slow

# More than the newest 8192, which are not in the tally: see schema.sql.
JOBS = 10_000
KILLS = 3
ACTS = "SELECT count(*) FROM audit WHERE action = '{}'"
# What the records of deleting say all together, such as "1500 deleted".
DELETED = """
SELECT coalesce(sum(CAST(after AS INTEGER)), 0) FROM audit WHERE action LIKE '{}%'
"""
GONE = f"SELECT {JOBS} - count(*) FROM message"
# Command, its state before, how much of it is done, what it has recorded of that.
COMMANDS = {
    "requeue": (
        ("requeue", "--state", "permanently_failed", "--yes"),
        Event.FAIL,
        "SELECT coalesce(sum(run - 1), 0) FROM message",
        ACTS.format("requeue"),
    ),
    "cancel": (
        ("cancel", "--state", "pending", "--yes"),
        None,
        "SELECT count(*) FROM message WHERE state = 'cancelled'",
        ACTS.format("cancel"),
    ),
    "purge": (("purge", "default", "--yes"), None, GONE, DELETED.format("purge")),
    "prune": (
        ("prune", "--older-than", "0s", "--state", "cancelled", "--yes"),
        Event.CANCEL,
        GONE,
        DELETED.format("prune"),
    ),
}


@pytest.fixture
def store(arena: Arena) -> Iterator[Store]:
    """Give the store of an arena with many jobs that wait."""
    arena.app.publish_many((Signature("work", (0,)) for _ in range(JOBS)), chunk=1000)
    opened = arena.store
    yield opened
    opened.close()


def change_all(store: Store, event: Event) -> None:
    """Let an operator do the same to all that wait."""
    ids = store.database.read(lambda c: c.execute("SELECT id FROM message").fetchall())
    store.acting.act(event, [(id_, State.PENDING) for (id_,) in ids], actor="test")


def assert_in_order(store: Store) -> None:
    assert store.reading.broken_invariants(full=True) == {}
    assert store.reading.damage(full=True) == []


def kill_midway(
    process: subprocess.Popen[bytes], has_begun: Callable[[], bool], chance: random.Random
) -> bool:
    """Kill a process at a random moment after it has begun; say whether it was still at it."""
    wait_until(
        lambda: has_begun() or process.poll() is not None,
        deadline_s=60,
        every_s=0.001,
        what="the command to begin",
    )
    time.sleep(chance.uniform(0.0, 0.02))
    process.kill()
    return process.wait() != 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_midway_has_recorded_what_it_did_and_can_be_given_again(
    arena: Arena, store: Store, name: str
) -> None:
    command, before, done, recorded = COMMANDS[name]
    if before is not None:
        change_all(store, before)

    def count(query: str) -> int:
        return int(store.database.read(lambda c: c.execute(query).fetchone()[0]))

    def both() -> tuple[int, int]:
        found: tuple[int, int] = store.database.read(
            lambda c: (c.execute(done).fetchone()[0], c.execute(recorded).fetchone()[0])
        )
        return found

    worker = arena.worker("-c", 2)
    wait_until(lambda: "worker_ready" in arena.logs(), deadline_s=30, what="the worker")
    chance = random.Random(11)
    killed = 0
    for _ in range(KILLS):
        already = count(recorded)
        for child in arena.children(worker)[:1]:  # which may be in a transaction, too
            os.kill(child, signal.SIGKILL)
        process = arena.start(*command)
        killed += kill_midway(process, lambda: count(recorded) > already, chance)  # noqa: B023
        changed, told = both()
        assert changed == told
        assert_in_order(store)
    print(f"{name}: killed {killed} times midway, {both()[0]:,} of {JOBS:,} done")
    assert killed >= 2
    last = arena.start(*command)
    assert last.wait(timeout=90) in (0, 3, 4), arena.logs()  # 3: nothing left; 4: some had changed
    changed, told = both()
    assert changed == told
    wait_until(
        lambda: not store.reading.counts().states.get(State.PROCESSING),
        deadline_s=60,
        what="what runs to end",
    )
    assert_in_order(store)


def test_a_backup_killed_midway_leaves_no_file_of_that_name_and_can_be_made_again(
    arena: Arena, store: Store
) -> None:
    arena.worker("-c", 2)
    backup = arena.directory / "backup.db"
    chance = random.Random(12)
    began = lambda: any(arena.directory.glob(".backup.db.*"))  # noqa: E731
    killed = 0
    for _ in range(KILLS):
        left = arena.directory / ".backup.db.sqlqueue-backup"
        left.unlink(missing_ok=True)
        killed += kill_midway(arena.start("db", "backup", str(backup)), began, chance)
        if backup.exists():
            assert_sound(backup)
            backup.unlink()
    assert killed >= 2
    assert arena.start("db", "backup", str(backup)).wait(timeout=60) == 0, arena.logs()
    assert_sound(backup)
    assert_in_order(store)


def test_a_migration_killed_midway_is_done_by_the_next_and_loses_nothing(arena: Arena) -> None:
    """The file is an older version's, with thousands of jobs; backup, indexes and counts take a while."""
    path = arena.directory / "queue.db"
    for each in arena.directory.glob("queue.db*"):
        if each.is_file():
            each.unlink()
    old = Path(__file__).parent.parent / "transport" / "fixtures" / "schema-3.sql"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(old.read_text())
        connection.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA application_id = 0x53514C51;
            PRAGMA user_version = 3;
            INSERT INTO queue (name, created_at_ms) VALUES ('default', 1);
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
            INSERT INTO message (queue, state, task, job_id, enqueued_at_ms, body)
            SELECT 'default', 'pending', 't', i, 1, x'5b5d' FROM n;
            """
        )
    path.chmod(0o600)
    backup = path.with_name("queue.db.v3.backup")
    chance = random.Random(13)
    killed = 0
    for _ in range(2 * KILLS):
        backup.unlink(missing_ok=True)
        killed += kill_midway(arena.start("db", "migrate"), backup.exists, chance)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            [(version,)] = connection.execute("PRAGMA user_version").fetchall()
            assert connection.execute("SELECT count(*) FROM message").fetchall() == [(100_000,)]
        if version == 4:
            break
    assert killed
    assert arena.start("db", "migrate").wait(timeout=90) == 0, arena.logs()
    store = Store(path)
    assert_in_order(store)
    assert store.reading.counts().states[State.PENDING] == 100_000
    store.close()


def assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM message").fetchall() == [(JOBS,)]
