"""A file and its log that were parted: every command says so, and none makes an empty queue of it.

The first jobs of a queue are in its log alone, as long as nothing has copied them into the file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import finish, run_python

DIES = """
    import os, sys
    from sqlqueue_transport import NewMessage, Store
    Store(sys.argv[1]).publish([NewMessage(b"[]", "default", task="t", job_id="kept")])
    os._exit(0)  # and so the log stays
"""
COMMANDS = [
    ["inspect", "stats"],
    ["inspect", "jobs"],
    ["db", "check"],
    ["db", "migrate"],
    ["db", "migrate", "--dry-run"],
    ["requeue", "kept"],
    ["config", "validate"],
    ["call", "t"],
]
READ_ONLY = [command for command in COMMANDS if command[0] not in {"call", "config"}]


@pytest.fixture
def ends(tmp_path):
    """Give a queue whose process died: the paths of its file and of its log, which has the job."""
    path = tmp_path / "queue.db"
    finish(run_python(DIES, path))
    return path, Path(f"{path}-wal")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_log_without_its_file_is_told_alike_by_every_command(cli, ends, command):
    path, log = ends
    path.rename("aside.db")
    result = cli(*command)
    said = result.out + result.err
    assert result.code != 0
    assert f"queue.db is missing, but its log {log} holds {log.stat().st_size} bytes" in said
    assert "jobs that were acknowledged among them" in said
    assert "aside (rename, remove nothing)" in said
    assert not path.exists()


def test_doctor_has_a_failed_check_for_it(cli, ends):
    path, _ = ends
    path.rename("aside.db")
    found = cli("doctor", "--json")
    assert found.code == 1
    failed = [one for one in found.json["items"] if one["level"] == "fail"]
    assert [one["name"] for one in failed] == ["database"]
    assert "is missing, but its log" in failed[0]["summary"]


@pytest.mark.parametrize("command", READ_ONLY, ids=" ".join)
def test_a_file_whose_log_is_gone_is_neither_old_nor_migrated(cli, ends, command):
    path, log = ends
    log.rename("aside-wal")
    before = path.read_bytes()
    assert before.startswith(b"SQLite format 3"), "the header, and no table"
    result = cli(*command)
    assert (result.code, result.out) == (2, "")
    assert "without its content: its write-ahead log is missing" in result.err
    assert f"put its {log} beside it" in result.err
    assert "schema version" not in result.err
    assert "migrated" not in result.err
    assert path.read_bytes() == before
    # As it says, what to do:
    Path("aside-wal").replace(log)
    assert "kept" in cli("inspect", "jobs", "--json").out


def test_doctor_has_a_failed_check_for_a_file_whose_log_is_gone(cli, ends):
    path, log = ends
    log.rename("aside-wal")
    before = path.read_bytes()
    found = cli("doctor", "--json")
    assert found.code == 1
    failed = [one for one in found.json["items"] if one["level"] == "fail"]
    assert [one["name"] for one in failed] == ["database"]
    assert path.read_bytes() == before


def test_an_empty_file_is_no_queue_to_migrate_and_the_first_call_makes_it_one(cli, tmp_path):
    path = tmp_path / "queue.db"
    path.touch(mode=0o600)
    result = cli("db", "migrate")
    assert (result.code, result.out) == (2, "")
    assert "new and empty" in result.err
    assert path.stat().st_size == 0
    assert cli("call", "t").code == 0
    assert cli("inspect", "stats").code == 0
