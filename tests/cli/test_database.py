"""`sqlqueue db path | check | backup | migrate`: what is told, and what is left when it is ended."""

from __future__ import annotations

import signal
import sqlite3
import stat
from pathlib import Path

import pytest

from sqlqueue_transport import Store, migrations
from sqlqueue_transport.lifecycle import State
from tests.cli.conftest import program
from tests.support import wait_until

OLD_FILE = Path(__file__).parents[1] / "transport" / "fixtures" / "schema-2.sql"


@pytest.fixture
def old(tmp_path) -> Path:
    """Put a file of schema version 2 into the working directory."""
    path = tmp_path / "queue.db"
    connection = sqlite3.connect(path)
    connection.executescript(OLD_FILE.read_text())
    connection.execute(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    path.chmod(0o600)
    return path


def version_of(path: Path) -> int:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return version


# -- path -------------------------------------------------------------------------------------------------


def test_path_is_absolute_and_the_file_need_not_exist(cli, tmp_path):
    assert cli("db", "path").out == f"{tmp_path}/queue.db\n"
    assert cli("db", "path", "--db", "other.db").out == f"{tmp_path}/other.db\n"
    found = cli("db", "path", "--json").json
    assert found["run_directory"] == f"{tmp_path}/queue.db-run"
    assert found["bytes"] == {"database": None, "log": None, "shared_memory": None}
    assert list(tmp_path.iterdir()) == []


def test_path_in_json_tells_the_sizes(cli, filled, tmp_path):
    filled.publish()
    sizes = cli("db", "path", "--json").json["bytes"]
    assert sizes["database"] == (tmp_path / "queue.db").stat().st_size
    assert sizes["log"] > 0


def test_a_broker_that_is_no_file_has_no_path(cli):
    result = cli("db", "path", "--db", "memory://")
    assert (result.code, result.out) == (2, "")
    assert "a file: not available on this broker" in result.err


# -- check ------------------------------------------------------------------------------------------------


def test_a_sound_file_is_in_order(cli, filled):
    filled.publish()
    filled.close()
    assert (cli("db", "check").code, cli("db", "check").out) == (0, "Quick check: in order.\n")
    assert cli("db", "check", "--full").out == "Full check: in order.\n"
    assert cli("db", "check", "--json").json == {
        "schema": 1,
        "sound": True,
        "full": False,
        "complaints": [],
    }


def test_a_damaged_file_is_exit_1_with_the_complaints(cli, filled, tmp_path):
    for _ in range(30):
        filled.publish()
    filled.close()
    spoil = sqlite3.connect(tmp_path / "queue.db")
    spoil.execute("PRAGMA writable_schema = ON")
    spoil.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, '''pending''', '''done''')"
        " WHERE name = 'message_ready'"
    )
    spoil.commit()
    spoil.close()
    assert cli("db", "check").code == 0
    result = cli("db", "check", "--full")
    assert (result.code, result.out) == (1, "")
    assert "the file is damaged: " in result.err
    assert "message_ready" in result.err
    found = cli("db", "check", "--full", "--json")
    assert found.code == 1
    assert found.json["sound"] is False
    assert found.json["complaints"]


def test_a_check_of_a_missing_file_makes_none(cli, tmp_path):
    result = cli("db", "check")
    assert result.code == 2
    assert "no database at ./queue.db" in result.err
    assert list(tmp_path.iterdir()) == []


# -- backup -----------------------------------------------------------------------------------------------


def test_a_backup_of_a_queue_in_use_can_be_looked_at_as_a_queue(cli, filled, tmp_path):
    job_id = filled.done()
    filled.publish()
    result = cli("db", "backup", "backup.db")
    assert result.code == 0
    assert result.out.startswith(f"{tmp_path}/backup.db: 2 jobs, 0.")
    assert result.err == ""
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600
    assert cli("--db", "backup.db", "inspect", "job", job_id).code == 0
    found = cli("db", "backup", "--json", "second.db").json
    assert (found["path"], found["jobs"]) == (f"{tmp_path}/second.db", 2)
    assert found["bytes"] == (tmp_path / "second.db").stat().st_size


def test_an_existing_file_is_replaced_only_when_forced(cli, filled, tmp_path):
    filled.publish()
    (tmp_path / "backup.db").write_text("precious")
    result = cli("db", "backup", "backup.db")
    assert result.code == 2
    assert "exists; give another name, or --force" in result.err
    assert (tmp_path / "backup.db").read_text() == "precious"
    assert cli("db", "backup", "backup.db", "--force").code == 0


def test_a_directory_is_no_destination(cli, filled):
    filled.publish()
    result = cli("db", "backup", ".")
    assert result.code == 2
    assert "is a directory; give a name in it, such as queue.db" in result.err


def test_a_network_filesystem_is_warned_of_and_nothing_more(cli, filled, monkeypatch):
    filled.publish()
    monkeypatch.setattr("sqlqueue_transport.files.is_network", lambda kind: True)
    filled.store.database.read(lambda _: None)
    from sqlqueue.cli import database

    notes: list[str] = []
    monkeypatch.setattr(database.Output, "note", lambda _, text: notes.append(text))
    database._warn_of_network(database.Output(None), Path("backup.db"))
    assert "The backup is good there, but no queue" in notes[0]


@pytest.fixture
def large(tmp_path) -> Path:
    """Fill queue.db so that copying it takes a moment."""
    from tests.transport.rows import new

    store = Store(tmp_path / "queue.db")
    for _ in range(40):
        store.publish([new(body=b"x" * 2000) for _ in range(1000)], durable=False)
    store.close()
    return tmp_path / "queue.db"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_backup_that_is_ended_leaves_no_half_and_the_next_one_works(
    run, large, tmp_path, number, code
):
    process = program("db", "backup", "backup.db", cwd=tmp_path)
    partial = tmp_path / ".backup.db.sqlqueue-backup"
    wait_until(lambda: partial.exists() and partial.stat().st_size, every_s=0.0005)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not (tmp_path / "backup.db").exists()
    assert partial.exists() == (number == signal.SIGKILL)
    result = run("db", "backup", "backup.db")
    assert (result.code, result.err) == (0, "")
    assert "40,000 jobs" in result.out
    assert not partial.exists()


# -- migrate ----------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_versions_and_changes_nothing(cli, old, tmp_path):
    newest = migrations.SCHEMA_VERSION
    result = cli("db", "migrate", "--dry-run")
    assert result.code == 0
    assert f"would be migrated from version 2 to {newest}. Backup: {old}.v2.backup" in result.out
    assert version_of(old) == 2
    assert not Path(f"{old}.v2.backup").exists()


def test_migrating_tells_where_the_backup_is_and_doing_it_again_is_no_error(cli, old):
    newest = migrations.SCHEMA_VERSION
    assert cli("inspect", "stats").code == 6
    result = cli("db", "migrate")
    assert result.code == 0
    assert f"migrated from version 2 to {newest}. Backup: {old}.v2.backup" in result.out
    assert version_of(old) == newest
    assert version_of(Path(f"{old}.v2.backup")) == 2
    again = cli("db", "migrate")
    assert (again.code, again.out) == (0, f"{old} is already at version {newest}.\n")
    assert cli("db", "migrate", "--json").json == {
        "schema": 1,
        "path": str(old),
        "from_version": newest,
        "to_version": newest,
        "migrated": False,
        "backup": None,
    }
    assert cli("inspect", "stats").code == 0


def test_a_newer_file_is_exit_6_and_stays(cli, filled, tmp_path):
    filled.publish()
    filled.close()
    newer = sqlite3.connect(tmp_path / "queue.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    for arguments in (["migrate"], ["migrate", "--dry-run"], ["check"], ["backup", "b.db"]):
        result = cli("db", *arguments)
        assert (result.code, result.out) == (6, ""), arguments
        assert "has schema version 99" in result.err


def test_what_is_no_queue_is_not_migrated(cli, tmp_path):
    (tmp_path / "queue.db").write_text("no database at all " * 100)
    result = cli("db", "migrate")
    assert (result.code, result.out) == (2, "")
    assert "is not a SQLite database" in result.err
    (tmp_path / "queue.db").write_text("")
    assert cli("db", "migrate").code == 2
    assert (tmp_path / "queue.db").stat().st_size == 0


def test_a_missing_file_is_not_made_by_migrating(cli, tmp_path):
    result = cli("db", "migrate")
    assert result.code == 2
    assert "no database at ./queue.db" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_backup_goes_on_being_a_queue(cli, filled, tmp_path):
    """The documented way back: put the backup in the place of the file."""
    filled.done()
    filled.publish()
    filled.close()
    assert cli("db", "backup", "backup.db").code == 0
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "backup.db").rename(tmp_path / "queue.db")
    store = Store(tmp_path / "queue.db")
    assert store.reading.counts().states[State.PENDING] == 1
    [delivery] = store.claim(["default"], lease_s=60).deliveries
    assert delivery.task == "tasks.add"
    store.close()
