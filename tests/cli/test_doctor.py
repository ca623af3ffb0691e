"""`sqlqueue doctor`: exit codes, tables and documents. What it finds is tested with `health`."""

from __future__ import annotations

import json

import pytest

from sqlqueue import health
from sqlqueue.health import Check, Level


@pytest.fixture
def fine(monkeypatch):
    """Let the SQLite of this Python be a good one; whichever it is, is another test's business."""
    monkeypatch.setattr(
        health, "_check_sqlite", lambda version: Check("sqlite", Level.OK, f"SQLite {version}")
    )
    monkeypatch.setattr(
        health, "_check_filesystem", lambda _: Check("filesystem", Level.OK, "fine")
    )


@pytest.mark.usefixtures("fine")
def test_healthy_queue_is_exit_0(cli, filled):
    filled.done()
    filled.close()
    for arguments in ([], ["--strict"]):
        result = cli("doctor", *arguments)
        assert (result.code, result.err) == (0, "")
        assert result.out.endswith("\nHealthy.\n")
    document = cli("doctor", "--json").json
    assert (document["schema"], document["healthy"]) == (1, True)
    for item in document["items"]:
        assert set(item) == {"name", "level", "summary", "problems", "hint"}
        assert item["level"] == "ok"


def test_unhealthy_queue_is_exit_1_and_says_what_to_do(cli, filled):
    filled.publish(queue="mail")
    filled.close()
    result = cli("doctor")
    assert result.code == 1
    assert "queue mail: 1 pending" in result.out
    assert "→ start a worker" in result.out
    assert result.out.endswith("\nUnhealthy: queues.\n")
    document = cli("doctor", "--json").json
    assert document["healthy"] is False
    [bad] = [item for item in document["items"] if item["level"] == "fail"]
    assert bad["name"] == "queues"


def test_warning_is_unhealthy_only_when_strict(cli, filled, monkeypatch):
    filled.close()
    monkeypatch.setattr(health, "_check_sqlite", lambda _: Check("sqlite", Level.WARN, "old"))
    monkeypatch.setattr(
        health, "_check_filesystem", lambda _: Check("filesystem", Level.OK, "fine")
    )
    result = cli("doctor")
    assert (result.code, result.out.splitlines()[-1]) == (0, "Healthy, with warnings: sqlite.")
    assert cli("doctor", "--strict").code == 1


def test_jsonl_is_a_check_a_line(cli, filled):
    filled.close()
    lines = cli("doctor", "-o", "jsonl").out.splitlines()
    assert {json.loads(line)["name"] for line in lines} >= {"integrity", "leases", "queues"}


def test_checks_of_the_application_run_when_it_is_named(cli, filled, shop):
    job_id = filled.done(task="shop.add", args=(666,))
    filled.close()
    assert "shelves" not in cli("doctor").out
    result = cli("doctor", "-A", shop)
    assert result.code == 1
    assert f"job {job_id} wants 666" in result.out
    assert result.out.endswith("\nUnhealthy: shelves.\n")


def test_missing_database_is_exit_2(cli):
    result = cli("doctor")
    assert (result.code, result.out) == (2, "")
    assert "no database at ./queue.db" in result.err


def test_file_that_is_no_queue_is_unhealthy(cli, tmp_path):
    (tmp_path / "queue.db").write_text("nonsense, and long enough to be looked at" * 100)
    (tmp_path / "queue.db").chmod(0o600)
    result = cli("doctor")
    assert result.code == 1
    assert "fail  database" in result.out


def test_newer_schema_is_exit_6(cli, filled, tmp_path):
    import sqlite3

    filled.close()
    connection = sqlite3.connect(tmp_path / "queue.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for command in (["doctor"], ["inspect", "stats"]):
        result = cli(*command)
        assert result.code == 6
        assert "schema version 99" in result.err


def test_stopped_writer_is_told_at_once_instead_of_waited_for(cli, filled, monkeypatch):
    filled.close()
    stuck = Check("writer lock", Level.FAIL, "process 7 has held it for 60 s", hint="kill -CONT 7")
    monkeypatch.setattr(health, "check_writer_lock", lambda _: stuck)
    result = cli("doctor")
    assert result.code == 1
    assert "process 7 has held it for 60 s" in result.out
    assert "integrity" not in result.out


def test_busy_database_is_exit_5(cli, filled, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("sqlqueue.cli.doctor._WAIT_S", 0.2)
    filled.close()
    with (tmp_path / "queue.db-run" / "writer.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = cli("doctor")
    assert result.code == 5
    assert result.err.startswith("error: the database is busy: ")
