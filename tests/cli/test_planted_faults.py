"""`sqlqueue doctor` finds each fault, planted for real: which check, how bad, and what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sqlqueue import health
from sqlqueue_transport import files, opening, room
from sqlqueue_transport.schedules import Described
from sqlqueue_transport.transport import Transport
from tests.cli.conftest import program
from tests.support import kill, read_line, run_python, wait_until

# What this machine's SQLite or filesystem may be warned of is no fault of ours.
OF_THE_MACHINE = {"sqlite", "filesystem"}


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor said, in JSON and in words, and its exit code."""

    code: int
    checks: dict[str, dict[str, Any]]
    words: str

    def assert_found(
        self, name: str, level: str, *texts: str, hint: str = "", besides: tuple[str, ...] = ()
    ) -> None:
        """Fail unless exactly this check complains, says these texts, and gives this hint."""
        check = self.checks[name]
        assert check["level"] == level, check
        said = "\n".join([check["summary"], *check["problems"]])
        for text in texts:
            assert text in said
        assert hint in (check["hint"] or "")
        assert bool(check["hint"]) is bool(hint)
        assert self.code == (1 if level == "fail" else 0)
        others = {
            other
            for other, one in self.checks.items()
            if one["level"] != "ok" and other not in {name, *besides, *OF_THE_MACHINE}
        }
        assert not others
        assert f"{level:<4}  {name}" in self.words
        if level == "fail":
            assert f"Unhealthy: {name}" in self.words or besides


@pytest.fixture
def diagnose(cli) -> Callable[..., Diagnosis]:
    def call(*arguments: object) -> Diagnosis:
        result = cli("doctor", "--json", *arguments)
        words = cli("doctor", *arguments)
        assert words.code == result.code
        assert result.err == words.err == ""
        return Diagnosis(
            result.code, {item["name"]: item for item in result.json["items"]}, words.out
        )

    return call


def edit(path: Path, statement: str) -> None:
    """Change the file as another program would."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute(statement)
    connection.commit()
    connection.close()


# -- file and machine ----------------------------------------------------------------------------------


def test_a_network_filesystem(filled, diagnose, cli, tmp_path, monkeypatch):
    filled.close()
    device = tmp_path.stat().st_dev
    table = tmp_path / "mounts"
    table.write_text(f"24 23 {os.major(device)}:{os.minor(device)} / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(files, "MOUNT_TABLE", table)
    diagnose().assert_found("filesystem", "fail", "is on nfs4", "Use a local disk")
    refused = cli("inspect", "stats")
    assert refused.code == 2
    assert refused.err == (
        f"error: {tmp_path}/queue.db is on nfs4; SQLite's WAL is not safe there. Use a local disk.\n"
    )


def test_a_disk_that_is_nearly_full(filled, diagnose, monkeypatch):
    filled.close()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    diagnose().assert_found("filesystem", "fail", "50.0 MB free", hint="free some space")


def test_a_disk_that_does_not_flush(filled, diagnose, monkeypatch):
    filled.close()

    def refused(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refused)
    diagnose().assert_found(
        "writing",
        "fail",
        "queue.db-wal failed (Input/output error)",
        hint="nothing can be published",
    )


def test_a_disk_without_room_for_a_publish(filled, diagnose, monkeypatch):
    filled.close()
    monkeypatch.setattr(room, "KEPT_BYTES", 2**62)
    monkeypatch.setattr(room, "_SHARE", 1)
    found = diagnose()
    found.assert_found(
        "writing", "fail", "the disk is nearly full", hint="nothing new can be published"
    )
    assert "what is queued still ends" in found.words
    assert "Nothing was published" not in found.words, "nothing was to be"
    assert "nothing that ends is written down" not in found.words


def test_a_file_that_others_may_read(filled, diagnose, tmp_path):
    filled.close()
    (tmp_path / "queue.db").chmod(0o644)
    diagnose().assert_found(
        "permissions", "fail", "(0644): chmod 600 ", hint="run the chmod commands"
    )


def test_a_file_that_others_may_write(filled, diagnose, tmp_path):
    filled.close()
    (tmp_path / "queue.db").chmod(0o666)
    diagnose().assert_found("database", "fail", "is writable for other users", "chmod 600 ")


def test_a_run_directory_that_others_may_enter(filled, diagnose, tmp_path):
    filled.close()
    (tmp_path / "queue.db-run").chmod(0o755)
    diagnose().assert_found("database", "fail", "is open to other users", "chmod 700 ")


def test_a_side_file_that_others_may_read(filled, diagnose, tmp_path):
    filled.close()
    (tmp_path / "queue.db-run" / "presence").chmod(0o640)
    diagnose().assert_found("permissions", "fail", "presence", hint="run the chmod commands")


@pytest.mark.parametrize("name", ["writer.lock", "wake.0", "console-admin.token"])
def test_whatever_else_lies_beside_the_queue_and_is_open_to_others(
    filled, diagnose, tmp_path, name
):
    filled.close()
    path = tmp_path / "queue.db-run" / name
    path.touch()
    path.chmod(0o604)
    diagnose().assert_found(
        "permissions",
        "fail",
        f"{name} is open to other users (0604)",
        hint="run the chmod commands",
    )


def test_a_sqlite_that_is_too_old(filled, diagnose, cli, monkeypatch):
    filled.close()
    monkeypatch.setattr(opening.sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(opening.sqlite3, "sqlite_version", "3.34.1")
    diagnose().assert_found("sqlite", "fail", "SQLite 3.34.1 is too old", "use a newer Python")
    assert cli("inspect", "stats").code == 2


def test_a_sqlite_with_the_wal_reset_bug(filled, diagnose, cli, monkeypatch):
    filled.close()
    monkeypatch.setattr(Transport, "driver_version", lambda _: "3.51.2")
    diagnose().assert_found(
        "sqlite", "warn", "has the WAL-reset bug", hint="use a Python with SQLite 3.51.3 or newer"
    )
    assert cli("doctor", "--strict").code == 1
    monkeypatch.setattr(Transport, "driver_version", lambda _: "3.51.3")
    assert diagnose().checks["sqlite"]["level"] == "ok"


def test_a_second_sqlite_library(filled, diagnose, monkeypatch):
    filled.close()
    monkeypatch.setitem(sys.modules, "pysqlite3", types.ModuleType("pysqlite3"))
    diagnose().assert_found("libraries", "warn", "pysqlite3", hint="never open the queue with it")


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM message").fetchall()
print(flush=True)
sys.stdin.readline()
"""


def test_a_log_that_a_long_reader_keeps_from_being_emptied(filled, diagnose, cli):
    filled.publish()
    reader = run_python(READER, filled.path)
    read_line(reader)
    body = b"x" * 1_000_000
    for _ in range(70):
        filled.publish(body=body, queue="big")
    edit(filled.path, "UPDATE message SET state = 'done', finished_at_ms = 1")
    try:
        diagnose().assert_found(
            "log size",
            "fail",
            f"process {reader.pid} reads at this moment",
            hint="a program that reads for long keeps it from being emptied: end it",
        )
        assert "'sqlqueue doctor' names it" in cli("inspect", "stats").out
    finally:
        kill(reader)
    filled.close()


HOLDER = """
import sys, time
from sqlqueue_transport import Store
store = Store(sys.argv[1])
def work(connection):
    print("inside", flush=True)
    time.sleep(600)
store.database.write(work)
"""


def test_a_stopped_process_with_the_writer_lock(filled, diagnose, monkeypatch):
    filled.close()
    monkeypatch.setattr(health, "_LOCK_LIMIT_S", 0.0)
    holder = run_python(HOLDER, filled.path)
    try:
        assert read_line(holder) == "inside"
        holder.send_signal(signal.SIGSTOP)
        found = diagnose()
        found.assert_found(
            "writer lock",
            "fail",
            f"process {holder.pid} has held it",
            hint=f"'kill -CONT {holder.pid}'",
        )
        # Looked at without waiting for what nobody gives back.
        assert set(found.checks) == {"writer lock"}
    finally:
        kill(holder)


def index_page(path: Path, index: str) -> tuple[int, int]:
    """Return the offset of the first page of an index, and the size of a page."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    [[size]] = connection.execute("PRAGMA page_size").fetchall()
    [[root]] = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = ?", (index,)
    ).fetchall()
    connection.close()
    return (root - 1) * size, size


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_page_of_an_index_whose_head_is_damaged(filled, diagnose):
    for _ in range(20):
        filled.done()
    filled.close()
    offset, _ = index_page(filled.path, "attempt_message")
    overwrite(filled.path, offset, b"\xff" * 8)
    found = diagnose()
    found.assert_found("integrity", "fail", "damaged", hint="restore a backup")


def test_bytes_that_were_flipped_in_an_index_are_found_by_strict(filled, diagnose, cli):
    for number in range(20):
        filled.publish(job_id=f"job-{number:02}", queue="mail")
    edit(filled.path, "UPDATE message SET state = 'done', finished_at_ms = 1")
    filled.close()
    [name] = names = index_of_job_ids(filled.path)
    assert names
    offset, size = index_page(filled.path, name)
    page = filled.path.read_bytes()[offset : offset + size]
    overwrite(filled.path, offset, page.replace(b"job-07", b"job-7\x00"))
    assert diagnose().checks["integrity"]["level"] == "ok"  # the quick look sees no values
    strict = cli("doctor", "--strict", "--json")
    assert strict.code == 1
    [check] = [item for item in strict.json["items"] if item["name"] == "integrity"]
    assert check["level"] == "fail"
    assert f"missing from index {name}" in "\n".join(check["problems"])
    assert "restore a backup" in check["hint"]


def index_of_job_ids(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT name FROM sqlite_schema"
        " WHERE type = 'index' AND tbl_name = 'message' AND sql LIKE '%(job_id%'"
    ).fetchall()
    connection.close()
    return [name for (name,) in rows]


def test_rows_that_contradict_each_other(filled, diagnose):
    filled.done(max_attempts=2)
    filled.close()
    edit(filled.path, "UPDATE message SET attempts = 3")
    diagnose().assert_found(
        "invariants",
        "fail",
        "1 jobs with more attempts than allowed",
        hint="another program has written to it",
    )


# -- jobs and workers ------------------------------------------------------------------------------------


def test_counts_that_another_program_has_made_wrong(filled, diagnose, cli, tmp_path):
    done = filled.done()
    filled.close()
    # As if it were one of a million: old enough to be counted.
    edit(tmp_path / "queue.db", "UPDATE counted SET upto = 2")
    edit(tmp_path / "queue.db", "INSERT INTO tally VALUES ('default', 'done', 1, 0, 7)")
    assert diagnose().code == 0  # counting takes a walk over every message
    diagnose("--strict").assert_found(
        "invariants",
        "fail",
        "1 counts that differ",
        hint="'sqlqueue db recount' counts anew",
        besides=("sqlite",),  # of which a strict doctor complains, too
    )
    assert cli("db", "recount").out == "Counted anew; 1 block of 1 had been wrong.\n"
    assert cli("db", "recount", "--json").json == {"schema": 1, "blocks": 1, "wrong": 0}
    assert diagnose("--strict").checks["invariants"]["level"] == "ok"
    assert cli("inspect", "stats", "--json").json["states"]["done"] == 1
    assert cli("inspect", "job", done).code == 0


def test_a_lease_that_is_over(filled, diagnose, cli):
    filled.store.consumers.register(name="w/1", kind="child", queues=["default"], slots=1)
    job_id = filled.publish()
    filled.claim(lease_s=0.01)
    wait_until(lambda: cli("inspect", "stats", "--json").json["stalled"] == 1)
    diagnose().assert_found(
        "leases",
        "fail",
        f"job {job_id} on w/1: over for",
        hint="a running worker takes them back within a second or two: start one",
    )


DYING = """
import os, signal, sys
from sqlqueue_transport import NewMessage, Store
store = Store(sys.argv[1])
store.consumers.register(name="gone", kind="worker", queues=["default"], slots=1)
store.publish([NewMessage(b"[]", "default", job_id="j", task="t")])
store.claim(["default"], lease_s=3600)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_job_whose_holder_is_dead(diagnose, tmp_path):
    process = run_python(DYING, tmp_path / "queue.db")
    assert process.wait(timeout=30) == -signal.SIGKILL
    process.communicate()
    diagnose().assert_found(
        "dead holders", "warn", "job j on gone", hint="the next worker that starts gives them back"
    )


def test_a_job_that_hangs(filled, diagnose, cli, monkeypatch):
    filled.store.consumers.register(name="w/1", kind="child", queues=["default"], slots=1)
    job_id = filled.publish()
    filled.claim(lease_s=600)
    edit(filled.path, "UPDATE message SET started_at_ms = started_at_ms - 61000")
    monkeypatch.setenv("SQLQUEUE_VISIBILITY_TIMEOUT", "1m")
    diagnose().assert_found(
        "long jobs", "fail", f"job {job_id} on w/1: runs for 61 s", hint="raise visibility_timeout"
    )


@pytest.mark.slow
def test_a_worker_that_is_stopped(diagnose, cli, shop, tmp_path, monkeypatch):
    monkeypatch.setenv("SQLQUEUE_VISIBILITY_TIMEOUT", "1s")
    process = program(
        *("worker", "-A", shop, "-c", 1, "-n", "red"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"SQLQUEUE_VISIBILITY_TIMEOUT": "1s"},
    )
    try:
        wait_until((tmp_path / "queue.db").exists, deadline_s=30)

        def pids():
            found = cli("inspect", "workers", "-o", "jsonl")
            items = [json.loads(line) for line in found.out.splitlines()]
            return [item for item in items if item["kind"] == "child"]

        [child] = wait_until(pids, deadline_s=30)
        assert diagnose().checks["workers"]["level"] == "ok"
        # The supervisor first: it would end a child that has stopped.
        process.send_signal(signal.SIGSTOP)
        os.kill(child["pid"], signal.SIGSTOP)

        wait_until(lambda: f"(process {child['pid']})" in cli("doctor").out, deadline_s=30)
        diagnose().assert_found(
            "workers",
            "fail",
            f"child red/1 (process {child['pid']}): no sign of life for",
            hint="continue them ('kill -CONT PID') or end them ('kill -9 PID')",
        )
    finally:
        process.kill()
        process.wait(timeout=30)


def test_a_queue_that_nobody_serves(filled, diagnose):
    filled.publish(queue="mail")
    filled.close()
    diagnose().assert_found(
        "queues", "fail", "queue mail: 1 pending", hint="start a worker for them: sqlqueue worker"
    )


def test_a_paused_queue_with_work(filled, diagnose):
    filled.publish(queue="mail")
    filled.store.consumers.register(name="w", kind="worker", queues=["mail"], slots=1)
    filled.store.pausing.pause("mail", actor="ann", reason="down")
    diagnose().assert_found(
        "paused queues",
        "warn",
        "queue mail: 1 pending, paused by ann",
        hint="sqlqueue resume QUEUE",
    )


def test_an_entry_of_the_schedule_that_fails(filled, diagnose):
    filled.store.schedules.describe([Described("tidy", "every 5s", "t", next_due_ms=1)])
    filled.store.schedules.set_error("tidy", "ValueError: boom")
    filled.close()
    diagnose().assert_found(
        "schedule", "fail", "entry tidy: ValueError: boom", hint="the beat's log has the tracebacks"
    )


def test_an_entry_that_no_beat_runs(filled, diagnose):
    filled.store.schedules.describe([Described("tidy", "every 5s", "t", next_due_ms=1)])
    filled.close()
    diagnose().assert_found(
        "schedule", "warn", "entry tidy: no beat is running", hint="sqlqueue schedule remove"
    )


def test_nothing_planted_is_nothing_found(filled, diagnose):
    filled.done()
    filled.dead()
    filled.close()
    found = diagnose()
    assert found.code == 0
    assert {name for name, one in found.checks.items() if one["level"] != "ok"} <= OF_THE_MACHINE


def test_every_check_is_planted():
    """A check without a fault in this file is a check that nobody has seen work."""
    planted = Path(__file__).read_text()
    source = Path(health.__file__).read_text()
    names = {*re.findall(r'(?:Check|_found)\(\s*"([a-z ]+)"', source)}
    assert {"sqlite", "leases", "schedule"} < names
    assert {name for name in names if f'"{name}"' not in planted} == set()
