"""What is compared does the same work: SQLite alone, our Store, and Kombu on what it runs on."""

from __future__ import annotations

import sqlite3

import pytest

from tests.benchmarks.broker import LEVEL as BROKER
from tests.benchmarks.floor import LEVEL as FLOOR
from tests.benchmarks.fresh import run_fresh
from tests.benchmarks.programs import on_sqlite, through_kombu
from tests.support import cpu_s, end_processes, run_python, wait_until

# All of a row that does not name a moment or a process.
ROWS = """
SELECT
  id, queue, state, priority, job_id, task, attempts, delivery, lease_until_ms, exchange,
  routing_key, content_type, headers, properties, body
FROM message ORDER BY id
"""


@pytest.mark.parametrize("are_jobs", [True, False])
@pytest.mark.parametrize("batch", [1, 10])
def test_sqlite_alone_leaves_the_same_rows_as_the_store(tmp_path, monkeypatch, batch, are_jobs):
    left = {}
    for by in ("plain", "store"):
        (tmp_path / by).mkdir()
        monkeypatch.chdir(tmp_path / by)
        found = on_sqlite.main(by, 60, batch=batch, are_jobs=are_jobs)
        assert {*found} >= {one.name for one in FLOOR.measures}
        connection = sqlite3.connect("queue.db")
        left[by] = connection.execute(ROWS).fetchall()
        connection.close()
    # What publishing without Kombu does not fill in.
    plain, store = ([row[:9] + row[12:] for row in rows] for rows in left.values())
    assert plain == store
    assert len(plain) == (61 if are_jobs else 0)
    assert {row[2] for row in plain} <= {"done"}


def test_the_bare_table_gives_every_message_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_sqlite.main("bare", 60, batch=10)
    connection = sqlite3.connect("queue.db")
    counts = connection.execute("SELECT state, delivery, count(*) FROM message GROUP BY 1, 2")
    assert counts.fetchall() == [(2, 1, 61)]
    connection.close()


@pytest.mark.parametrize(
    "name",
    [
        *("sqlqueue, full, prefetch 16", "sqlqueue, process, publish by 100", "Kombu memory"),
        *("Kombu filesystem", "SQLite alone, unsynced, one a transaction"),
    ],
)
def test_a_subject_that_needs_no_server_is_measured(tmp_path, name):
    subject = next(one for one in BROKER.subjects if one.name == name)
    found = BROKER.measure(subject, tmp_path, 0)
    assert {*found} == {one.name for one in BROKER.measures}
    assert all(value > 0 for value in found.values())


def test_the_processor_time_of_a_server_counts():
    server = run_python("while True: pass")
    try:
        meter = through_kombu.Meter(server.pid)
        wait_until(lambda: cpu_s(server.pid) > 0.5, deadline_s=60, what="a busy server")
        assert meter.look()[1] > 0.3
    finally:
        end_processes()


def test_a_program_that_fails_says_why_and_names_no_place(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 1: KeyError: 'nobody'") as failed:
        run_fresh("tests.benchmarks.programs.on_sqlite", tmp_path, by="nobody", count=1)
    assert "/" not in str(failed.value)
