"""Who keeps house: a worker, and a beat that is alone on its file; and what an operator hears of it."""

from __future__ import annotations

import json

import pytest

from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.log_guard import LIMIT_BYTES, size_of
from sqlqueue_transport.messages import NewMessage
from tests.crash.conftest import Arena
from tests.support import read_line, run_python, say, wait_until

BEAT = """
from sqlqueue import SqlQueue
app = SqlQueue("beatapp", broker_url="sqlqueue:///queue.db")
app.producer(every="1h", name="p")(lambda tick: [])
"""
READ = """
    import sqlite3, sys
    connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM message").fetchall()
    print(flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_beat_alone_gives_back_what_the_dead_held_and_removes_what_is_old(arena: Arena) -> None:
    worker = arena.worker("-c", 1)
    done = arena.publish("work", 0)
    arena.wait_state(done, State.DONE)
    held = arena.publish("once_slow", 600)
    arena.started(held)
    worker.kill()
    worker.wait()
    # The worker has had this minute's round: let a minute pass.
    arena.app.backend.store.database.write(
        lambda c: c.execute("DELETE FROM meta WHERE key = 'housekeeping'").rowcount
    )
    (arena.directory / "beatapp.py").write_text(BEAT)
    arena.start("beat", "-A", "beatapp:app", env={"SQLQUEUE_RETENTION_DONE": "0.1s"})
    arena.wait_state(held, State.FAILED)
    wait_until(
        lambda: not arena.app.backend.message_ids_of(done), what=f"it to be removed: {arena.logs()}"
    )
    assert arena.job(held).row.attempts == 1


@pytest.mark.slow
def test_a_worker_says_that_the_log_stays_large_and_who_reads(arena: Arena) -> None:
    path = arena.directory / "queue.db"
    store = arena.store
    reader = run_python(READ, path)
    read_line(reader)
    large = NewMessage(body=b"x" * 900_000, queue="other", task="t")
    while size_of(path) <= LIMIT_BYTES:
        store.publish([large] * 10, durable=False)
    arena.worker("-c", 1, "--log-format", "json")
    wait_until(lambda: "wal_grown" in arena.logs(), what=f"a warning: {arena.logs()}")
    (line,) = [line for line in arena.logs().splitlines() if "wal_grown" in line]
    said = json.loads(line)
    assert said["level"] == "warning"
    assert said["size_mb"] >= 67
    assert said["readers"] == [reader.pid]
    say(reader)
    store.close()
