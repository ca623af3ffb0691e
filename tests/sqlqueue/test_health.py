"""What the doctor sees, each ailment brought about for real."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import sys
import types

import pytest

from sqlqueue import health
from sqlqueue.backend import open_backend
from sqlqueue.config import Settings
from sqlqueue.errors import NotAvailable
from sqlqueue.health import Check, Level, check_writer_lock, database_path, examine
from sqlqueue.inspection import Inspection
from sqlqueue_transport import log_guard
from sqlqueue_transport.errors import CannotOpen
from tests.cli.filling import Filled
from tests.support import FakeClock, kill, read_line, run_python


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def filled(tmp_path, clock):
    filled = Filled(tmp_path / "q.db", clock=clock)
    yield filled
    filled.close()


@pytest.fixture
def checked(filled, clock):
    """Return the checks by name: `checked()["leases"]`."""
    backend = filled.backend()

    def look(settings: Settings | None = None, **options) -> dict[str, Check]:
        looking = Inspection(backend, settings=settings, clock=clock)
        return {check.name: check for check in examine(looking, **options)}

    yield look
    backend.close()


def test_healthy_queue_has_nothing_to_fail(filled, checked):
    filled.done()
    filled.dead()
    found = checked(strict=True)
    assert {name for name, check in found.items() if check.level is Level.FAIL} == set()
    assert all(not check.problems for check in found.values())


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("3.6.23", Level.OK),
        ("3.7.0", Level.WARN),
        ("3.40.1", Level.WARN),
        ("3.44.5", Level.WARN),
        ("3.44.6", Level.OK),
        ("3.45.0", Level.WARN),
        ("3.50.6", Level.WARN),
        ("3.50.7", Level.OK),
        ("3.51.2", Level.WARN),
        ("3.51.3", Level.OK),
        ("3.54.1", Level.OK),
        ("4.0", Level.OK),
    ],
)
def test_sqlite_with_the_wal_reset_bug_is_a_warning(version, level):
    check = health._check_sqlite(version)
    assert check.level is level
    assert version in check.summary


def test_version_told_is_the_one_in_use(checked):
    assert f"SQLite {sqlite3.sqlite_version}" in checked()["sqlite"].summary


def test_the_versions_at_work_are_told_by_name():
    found = dict(health.versions())
    assert list(found) == ["sqlqueue", "Schema", "SQLite", "Python"]
    assert found["SQLite"] == sqlite3.sqlite_version
    assert all(found.values())


def test_second_sqlite_library_is_a_warning(checked, monkeypatch):
    monkeypatch.setitem(sys.modules, "apsw", types.ModuleType("apsw"))
    check = checked()["libraries"]
    assert check.level is Level.WARN
    assert "apsw" in check.summary


def test_file_others_may_read_fails(filled, checked):
    assert checked()["permissions"].level is Level.OK
    filled.path.chmod(0o644)
    check = checked()["permissions"]
    assert check.level is Level.FAIL
    assert check.problems == (
        f"{filled.path} is open to other users (0644): chmod 600 {filled.path}",
    )


def test_run_directory_others_may_enter_fails(filled, checked):
    filled.store.database.run_directory.chmod(0o755)
    assert checked()["permissions"].level is Level.FAIL


def test_lease_that_is_over_fails(filled, checked, clock):
    job_id = filled.publish()
    filled.claim(lease_s=10)
    assert checked()["leases"].level is Level.OK
    clock.advance(12.5)
    check = checked()["leases"]
    assert check.level is Level.FAIL
    assert job_id in check.problems[0]
    assert "over for 2.5 s" in check.problems[0]


def test_job_that_runs_beyond_the_visibility_timeout_fails(filled, checked, clock):
    job_id = filled.publish()
    filled.claim(lease_s=1000)
    settings = Settings(visibility_timeout=60)
    assert checked(settings)["long jobs"].level is Level.OK
    clock.advance(61)
    check = checked(settings)["long jobs"]
    assert check.level is Level.FAIL
    assert job_id in check.problems[0]
    assert "runs for 61 s" in check.problems[0]


def test_worker_without_a_sign_of_life_fails(filled, checked, clock):
    filled.store.consumers.register(name="w", kind="worker", queues=["default"], slots=1)
    settings = Settings(visibility_timeout=60)
    assert checked(settings)["workers"].summary == "1 alive"
    clock.advance(61)
    check = checked(settings)["workers"]
    assert check.level is Level.FAIL
    assert "worker w" in check.problems[0]


def test_beat_need_not_give_a_sign_of_life(filled, checked, clock):
    filled.store.consumers.register(name="b", kind="beat")
    clock.advance(10_000)
    assert checked()["workers"].level is Level.OK


def test_queue_that_nobody_serves_fails(filled, checked):
    filled.publish(queue="mail")
    check = checked()["queues"]
    assert check.level is Level.FAIL
    assert "queue mail: 1 pending" in check.problems[0]


def test_queue_that_is_served_is_in_order(filled, checked):
    filled.publish(queue="mail")
    filled.store.consumers.register(name="w", kind="worker", queues=["mail"], slots=1)
    assert checked()["queues"].level is Level.OK


def test_job_of_a_dead_worker_is_a_warning(tmp_path):
    code = """
    import os, signal, sys
    from sqlqueue_transport import NewMessage, Store
    store = Store(sys.argv[1])
    store.consumers.register(name="gone", kind="worker", queues=["default"], slots=1)
    store.publish([NewMessage(b"[]", "default", job_id="j", task="t")])
    store.claim(["default"], lease_s=3600)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    process = run_python(code, tmp_path / "q.db")
    assert process.wait(timeout=30) == -signal.SIGKILL
    process.communicate()
    backend = open_backend(Settings(broker_url=f"sqlqueue:///{tmp_path}/q.db"))
    try:
        found = {check.name: check for check in examine(Inspection(backend))}
    finally:
        backend.close()
    check = found["dead holders"]
    assert check.level is Level.WARN
    assert check.problems == ("job j on gone",)


def test_damage_fails(filled, checked):
    connection = sqlite3.connect(filled.path)
    filled.publish()
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("INSERT INTO binding VALUES ('x', 'y', 'no such queue', '{}')")
    connection.commit()
    connection.close()
    check = checked()["integrity"]
    assert check.level is Level.FAIL
    assert "binding" in check.problems[0]


def test_broken_invariant_fails(filled, checked):
    filled.publish(max_attempts=2)
    connection = sqlite3.connect(filled.path)
    connection.execute("UPDATE message SET attempts = 3")
    connection.commit()
    connection.close()
    check = checked()["invariants"]
    assert check.level is Level.FAIL
    assert check.problems == ("1 jobs with more attempts than allowed",)


def test_large_log_fails(filled, checked, monkeypatch):
    filled.publish()
    monkeypatch.setattr(log_guard, "LIMIT_BYTES", 0)
    assert checked()["log size"].level is Level.FAIL


def test_a_large_log_fails_with_the_processes_that_read(filled, checked, monkeypatch):
    filled.publish()
    monkeypatch.setattr(log_guard, "LIMIT_BYTES", 0)
    code = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM message").fetchall()
        print(flush=True)
        sys.stdin.readline()
    """
    reader = run_python(code, filled.path)
    read_line(reader)
    assert checked()["log size"].problems == (f"process {reader.pid} reads at this moment",)
    kill(reader)
    assert checked()["log size"].problems == ()


def test_full_disk_fails(checked, monkeypatch):
    monkeypatch.setattr(health, "_SPACE_LIMIT_BYTES", 1 << 80)
    assert checked()["filesystem"].level is Level.FAIL


def test_stopped_holder_of_the_writer_lock_is_named_without_waiting(tmp_path, monkeypatch):
    code = """
    import os, signal, sys, time
    from sqlqueue_transport import Store
    store = Store(sys.argv[1])
    def work(connection):
        print("inside", flush=True)
        time.sleep(600)
    store.database.write(work)
    """
    process = run_python(code, tmp_path / "q.db")
    try:
        assert read_line(process) == "inside"
        assert check_writer_lock(tmp_path / "q.db").level is Level.OK
        monkeypatch.setattr(health, "_LOCK_LIMIT_S", 0.0)
        check = check_writer_lock(tmp_path / "q.db")
        assert check.level is Level.FAIL
        assert f"process {process.pid} has held it" in check.summary
        assert f"kill -CONT {process.pid}" in check.hint
    finally:
        process.kill()
        process.communicate()
    assert check_writer_lock(tmp_path / "q.db").level is Level.OK


def test_lock_of_a_queue_that_is_not_there_is_nobodys(tmp_path):
    assert check_writer_lock(tmp_path / "q.db").level is Level.OK
    assert list(tmp_path.iterdir()) == []


def test_checks_of_the_application_run_with_an_inspection(filled, checked):
    filled.done(args=("a",))

    def complains(inspection):
        for call in inspection.jobs_with_arguments(task="tasks.add"):
            yield f"{call.state} {call.args[0]}"

    found = checked(app_checks={"files": complains, "fine": lambda _: []})
    assert found["files"].level is Level.FAIL
    assert found["files"].problems == ("done a",)
    assert found["fine"].level is Level.OK


def test_check_that_raises_fails_and_hides_no_other(checked):
    def broken(inspection):
        raise OSError("no directory")

    found = checked(app_checks={"broken": broken, "after": lambda _: []})
    assert found["broken"].level is Level.FAIL
    assert "no directory" in found["broken"].summary
    assert found["after"].level is Level.OK


def test_endless_complaints_are_cut(checked):
    def endless(_):
        while True:
            yield "again"

    check = checked(app_checks={"endless": endless})["endless"]
    assert len(check.problems) == health.MOST_PROBLEMS
    assert check.summary.startswith(f"more than {health.MOST_PROBLEMS}")


def test_other_brokers_have_no_doctor():
    backend = open_backend(Settings(broker_url="memory://"))
    with contextlib.closing(backend), pytest.raises(NotAvailable):
        list(examine(Inspection(backend)))


def test_file_of_a_broker_url(tmp_path):
    assert database_path(f"sqlqueue:///{tmp_path}/q%20.db") == tmp_path / "q .db"
    assert database_path("redis://host") is None
    with pytest.raises(CannotOpen):
        database_path(f"sqlqueue:///{tmp_path}/missing/q.db")
    assert not list(tmp_path.iterdir())


def test_a_paused_queue_with_pending_jobs_is_a_warning_and_without_none(filled, checked):
    filled.publish(queue="mail")
    filled.store.pausing.pause("mail", actor="ann")
    found = checked()["paused queues"]
    assert found.level is Level.WARN
    assert found.problems == ("queue mail: 1 pending, paused by ann for 0 s",)
    assert "sqlqueue resume" in found.hint
    filled.store.topology.purge("mail")
    assert checked()["paused queues"].level is Level.OK
