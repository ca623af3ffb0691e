"""Newer software migrates the file under workers of the older one: they end, and no job pays for it.

The newer software is played by its version number: what an older worker does is this software's affair.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.migrations import SCHEMA_VERSION
from tests.crash.conftest import Arena
from tests.support import wait_until

APP = """
import os, time
from sqlqueue import SqlQueue

app = SqlQueue("crashapp", broker_url="sqlqueue:///queue.db")

@app.task(name="until_go", bind=True, max_attempts=1)
def until_go(self):
    with open("trace.jsonl", "a") as file:
        file.write('{"job": "%s", "attempt": 1, "event": "start"}\\n' % self.request.id)
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


@pytest.fixture
def updated(arena: Arena) -> Iterator[Arena]:
    (arena.directory / "crashapp.py").write_text(APP)
    yield arena
    (arena.directory / "go").touch()


@contextmanager
def migrated(arena: Arena) -> Iterator[None]:
    """Let the file be of the next version meanwhile."""

    def become(version: int) -> None:
        with closing(sqlite3.connect(arena.directory / "queue.db")) as connection:
            connection.execute(f"PRAGMA user_version = {version}")

    become(SCHEMA_VERSION + 1)
    try:
        yield
    finally:
        become(SCHEMA_VERSION)


def assert_run_again(arena: Arena, job: str) -> None:
    """See that newer software runs a job as if it had never been started, though it may run once only."""
    (arena.directory / "go").touch()
    arena.worker("-c", 1)
    detail = arena.wait_state(job, State.DONE)
    assert detail.row.attempts == 1
    assert detail.attempts == ()


@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_what_runs_while_newer_software_migrates_the_file_is_released_uncounted(
    updated: Arena, pool: str
) -> None:
    job = updated.publish("until_go")
    worker = updated.worker("-c", 2, "-P", pool)
    updated.started(job)
    with migrated(updated):
        assert worker.wait(timeout=60) == 6, updated.logs()
    assert '"event": "store_gone"' in updated.logs()
    assert_run_again(updated, job)


@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_what_ends_after_the_migration_is_no_dead_letter(updated: Arena, pool: str) -> None:
    job = updated.publish("until_go")
    worker = updated.worker("-c", 1, "-P", pool)
    updated.started(job)
    [child] = updated.children(worker)
    os.kill(worker.pid, signal.SIGSTOP)  # else it would end the child first
    with migrated(updated):
        (updated.directory / "go").touch()
        wait_until(lambda: '"event": "store_gone"' in updated.logs(), what="the child's end")
        wait_until(lambda: state_of(child) == "Z", what="the child's end")
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.wait(timeout=60) == 6, updated.logs()
    assert_run_again(updated, job)


def test_what_ends_after_the_migration_in_the_worker_itself_is_no_dead_letter(
    updated: Arena,
) -> None:
    job = updated.publish("until_go")
    worker: subprocess.Popen[bytes] = updated.worker("-P", "solo")
    updated.started(job)
    with migrated(updated):
        (updated.directory / "go").touch()
        assert worker.wait(timeout=60) == 6, updated.logs()
    assert_run_again(updated, job)


def state_of(pid: int) -> str:
    """Return the letter the kernel has for a process's state."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0]
