"""A queue file that is moved, removed, replaced or damaged under everything that runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlqueue_transport import Store, migrations
from tests.crash.conftest import Arena
from tests.faults.publishing import Publishers
from tests.faults.test_system import APP
from tests.support import ROOT, read_line, run_python, wait_until

pytestmark = pytest.mark.slow

WITHIN_S = 1.0  # how soon a change is promised to be noticed
# Looks as an ops console does, and ends with the first error.
LOOK = """
    import sys, time
    from sqlqueue_transport import open_store
    store = open_store(sys.argv[1], read_only=True)
    print("looking", flush=True)
    try:
        while True:
            store.reading.counts()
            time.sleep(0.02)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


# Whichever is looked at first.
_REPLACED = "queue.db(-wal|-shm)? was (replaced by another file|moved or removed)"


_IS_MISSING = "is missing, but its log .* holds [0-9]+ bytes"


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replaced(path: Path, make: Callable[[Path], object], *, with_log: bool = True) -> None:
    """Put something else into the place of the database, and take its log away."""
    new = path.with_name("new.file")
    make(new)
    if with_log:
        path.with_name("queue.db-wal").unlink()
        path.with_name("queue.db-shm").unlink()
    if new.is_dir():
        path.unlink()
    new.rename(path)


def other_queue(path: Path) -> None:
    Store(path).close()
    shutil.rmtree(path.with_name(f"{path.name}-run"))


def other_application(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    path.chmod(0o600)


def newer_schema(path: Path) -> None:
    other_queue(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {migrations.SCHEMA_VERSION + 1}")
    connection.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"not a database, but a letter to somebody\n" * 300)
    path.chmod(0o600)


def beside(end: str, harm: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda path: harm(path.with_name(path.name + end)) and None


_OPENS, _FAILED, _USAGE, _SCHEMA = 0, 1, 2, 6
HARMS = {
    # how: (what is done, what those say that run, what a command says afterwards, its exit code)
    "moved": (moved, "queue.db was moved or removed", _IS_MISSING, _FAILED),
    "removed": (Path.unlink, "queue.db was moved or removed", _IS_MISSING, _FAILED),
    "truncated": (
        lambda path: os.truncate(path, 0),
        "queue.db was truncated to zero bytes",
        # Or, if somebody copied the log back before he looked:
        "is empty, but its log .* holds [0-9]+ bytes|is damaged",
        _FAILED,
    ),
    "another queue": (lambda p: replaced(p, other_queue), _REPLACED, "", _OPENS),
    "another queue, the log still there": (
        lambda p: replaced(p, other_queue, with_log=False),
        "queue.db was replaced by another file",
        "is not the file that its log .* belongs to",
        _FAILED,
    ),
    "not SQLite": (lambda p: replaced(p, no_database), _REPLACED, "not a SQLite database", _USAGE),
    "another's": (lambda p: replaced(p, other_application), _REPLACED, "another app", _USAGE),
    "newer": (lambda p: replaced(p, newer_schema), _REPLACED, "has schema version", _SCHEMA),
    "directory": (lambda p: replaced(p, Path.mkdir), _REPLACED, "is a directory", _USAGE),
    "FIFO": (lambda p: replaced(p, os.mkfifo), _REPLACED, "is a FIFO", _USAGE),
    # What was in the log is gone, and who comes later is promised nothing.
    "log": (beside("-wal", Path.unlink), "queue.db-wal was moved or removed", "", None),
    "shared memory": (beside("-shm", Path.unlink), "queue.db-shm was moved or removed", "", _OPENS),
    "run": (beside("-run", shutil.rmtree), "writer.lock was moved or removed", "", _OPENS),
}


@pytest.mark.parametrize("how", HARMS)
def test_everything_that_runs_notices_within_a_second_and_says_what(arena: Arena, how: str) -> None:
    harm, words, afterwards, code = HARMS[how]
    path = arena.directory / "queue.db"
    (arena.directory / "faultapp.py").write_text(APP)
    worker = arena.start("worker", "-A", "faultapp:app", "-c", 1, "--log-format", "json")
    beat = arena.start("beat", "-A", "faultapp:app", "--log-format", "json")
    publishers = Publishers(arena, path, {})
    looker = run_python(LOOK, path)
    assert read_line(looker) == "looking"
    publishers.wait_for_more("ok")
    wait_until(lambda: "job_done" in arena.logs() and "tick_enqueued" in arena.logs())
    began_s = time.monotonic()
    harm(path)
    for name in ("own", "plain"):
        wait_until(
            lambda name=name: publishers.answers(name, "refused"),
            deadline_s=5 * WITHIN_S,
            what=name,
        )
        told = publishers.answers(name, "refused")[0]
        assert re.match(f"FileReplaced .*{words}", told), told
    if how != "run":  # which is nothing to who only looks
        told = read_line(looker, deadline_s=5 * WITHIN_S)
        assert re.match(f"FileReplaced .*{words}", told), told
    print(f"{how}: noticed by publishers and readers after {time.monotonic() - began_s:.2f} s")
    assert (worker.wait(timeout=30), beat.wait(timeout=30)) == (1, 1)
    gone = [json.loads(line) for line in arena.logs().splitlines() if '"store_gone"' in line]
    assert {one["logger"] for one in gone} >= {
        "sqlqueue.worker.supervisor",
        "sqlqueue.beat.service",
    }
    assert all(re.search(words, one["error"]) for one in gone)
    publishers.end()
    for name in ("own", "plain"):
        told = publishers.everything(name)
        first = next(number for number, line in enumerate(told) if line.startswith("refused"))
        # Who was refused once is never again told that a file took it which nobody else sees.
        assert not [line for line in told[first:] if line.startswith("ok")], told[first:]
    for command in ("inspect stats", "doctor"):
        result = subprocess.run(
            [sys.executable, "-m", "sqlqueue", "--db", path, *command.split()],
            check=False,
            capture_output=True,
            text=True,
            cwd=arena.directory,
            env={"PYTHONPATH": str(ROOT)},
        )
        if code not in {_OPENS, None}:
            assert re.search(afterwards, result.stderr + result.stdout), result
            # The doctor finds out what others fail on.
            assert result.returncode in ({code, _FAILED} if command == "doctor" else {code})
        elif code == _OPENS and command == "inspect stats":
            assert result.returncode == 0, result
