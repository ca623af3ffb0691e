"""A log that a long reader makes grow: told of, with who reads, and small again afterwards."""

from __future__ import annotations

import os

import pytest

from sqlqueue_transport import NewMessage, Store, log_guard
from sqlqueue_transport.log_guard import LIMIT_BYTES, LogGrown, LogGuard, readers_of, size_of
from sqlqueue_transport.opening import JOURNAL_SIZE_LIMIT_BYTES
from sqlqueue_transport.pruning import Policy
from tests.support import finish, in_forked_child, open_names, read_line, run_python, say

READ = """
    import sqlite3, sys
    connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM message").fetchall()
    print(flush=True)
    sys.stdin.readline()
    connection.execute("COMMIT")
    print(flush=True)
    sys.stdin.readline()
"""
LARGE = [NewMessage(body=b"x" * 900_000, queue="q", task="t")] * 10


def grow(store: Store) -> None:
    """Write until the log is above its limit, or would have been twice."""
    for _ in range(16):
        if size_of(store.path) <= LIMIT_BYTES:
            store.publish(LARGE, durable=False)


@pytest.fixture
def reader(store):
    """Give a process that has begun to read; a line to it ends its transaction."""
    process = run_python(READ, store.path)
    read_line(process)
    return process


def test_a_log_that_has_grown_is_told_of_with_who_reads_at_most_every_ten_minutes(
    store, clock, reader
):
    guard = LogGuard(store.database, clock)
    assert guard.look() is None
    grow(store)
    told = guard.look()
    assert isinstance(told, LogGrown)
    assert told.size_bytes > LIMIT_BYTES
    assert told.readers == (reader.pid,)
    other = Store(store.path, clock=clock)
    clock.advance(599)
    assert LogGuard(other.database, clock).look() is None
    clock.advance(1)
    assert LogGuard(other.database, clock).look() is not None
    other.close()


def test_after_the_reader_the_next_commits_cut_the_log_by_themselves(store, reader):
    grow(store)
    assert size_of(store.path) > LIMIT_BYTES
    say(reader)
    read_line(reader)
    for _ in range(3):
        store.publish(LARGE[:1], durable=False)
    assert size_of(store.path) <= JOURNAL_SIZE_LIMIT_BYTES


def test_where_nobody_writes_the_guard_empties_the_log_after_the_reader(store, clock, reader):
    grow(store)
    say(reader)
    read_line(reader)
    assert LogGuard(store.database, clock).look() is None
    assert size_of(store.path) == 0
    assert store.reading.damage(full=True) == []
    assert sum(store.reading.counts().states.values()) >= 80


@pytest.mark.parametrize("commits_after", [0, 1])
def test_a_reader_that_stays_is_not_waited_for(store, commits_after):
    """All other writers would wait, too. Also for one that has the newest state of all."""
    store.publish(LARGE[:1], durable=False)  # too little to be copied by the commit itself
    process = run_python(READ, store.path)
    read_line(process)
    store.publish(LARGE[:commits_after], durable=False)
    asked = []
    store.database._held.writing.set_trace_callback(asked.append)
    assert not store.database.empty_log()
    assert size_of(store.path) > 0
    if "PRAGMA wal_checkpoint(TRUNCATE)" in asked:
        assert (
            asked[asked.index("PRAGMA wal_checkpoint(TRUNCATE)") - 1] == "PRAGMA busy_timeout = 0"
        )
    assert ("PRAGMA wal_checkpoint(TRUNCATE)" in asked) == (commits_after == 0)
    say(process)
    read_line(process)
    assert store.database.empty_log()
    waits_ms = store.database.write(lambda c: c.execute("PRAGMA busy_timeout").fetchone()[0])
    assert waits_ms == 1000


def test_a_durable_publish_stays_durable_around_the_emptying(store):
    """The flush of a commit that was emptied out of the log finds nothing left to do."""
    store.publish([NewMessage(body=b"x", queue="q", task="t")])
    assert store.database.empty_log()
    store.publish([NewMessage(body=b"x", queue="q", task="t")])
    assert size_of(store.path) > 0


def test_a_process_killed_while_it_empties_the_log_loses_nothing(tmp_path):
    for statement in range(1, 40):
        path = tmp_path / f"{statement}.db"
        store = Store(path)
        store.publish(LARGE[:1] * 3, durable=False)
        store.close()

        def empty(path=path):
            from sqlqueue_transport.database import Database

            database = Database(path)
            database.write(lambda c: c.execute("UPDATE message SET priority = 1").rowcount)
            database.empty_log()

        came_through = in_forked_child(empty, die_at_statement=statement)
        again = Store(path)
        assert sum(again.reading.counts().states.values()) == 3
        assert again.reading.damage(full=True) == []
        again.close()
        if came_through:
            return
    raise AssertionError("it never came to its end")


def test_a_small_log_costs_no_transaction(store, clock):
    before = store.database.write_transactions, store.database.read_transactions
    assert LogGuard(store.database, clock).look() is None
    assert (store.database.write_transactions, store.database.read_transactions) == before


def test_the_end_of_a_round_looks_at_the_log(store, clock, reader, monkeypatch):
    store.publish(LARGE, durable=False)
    monkeypatch.setattr(log_guard, "LIMIT_BYTES", 1_000_000)
    turn = store.housekeeping.turn(Policy(0, 0, 0))
    assert turn.log_grown is not None
    assert turn.log_grown.readers == (reader.pid,)


def test_readers_are_those_that_read_now_and_looking_opens_nothing(store, reader):
    before = open_names(store.path)
    assert readers_of(store.path) == (reader.pid,)
    assert open_names(store.path) == before
    found = store.database.read(lambda _: readers_of(store.path))
    assert found == tuple(sorted((os.getpid(), reader.pid)))
    say(reader)
    read_line(reader)
    assert readers_of(store.path) == ()
    say(reader)
    finish(reader)


def test_a_log_that_is_not_there_has_no_size_and_no_readers(tmp_path):
    assert size_of(tmp_path / "no.db") == 0
    assert readers_of(tmp_path / "no.db") == ()
