"""Backups of a file in use: whole and of one moment, or nothing; and queues again when restored."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
from pathlib import Path

import pytest

from sqlqueue_transport import backup, checking
from sqlqueue_transport.backup import back_up
from sqlqueue_transport.errors import BackupRefused, CannotOpen, DatabaseMissing, DiskFault
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.presence import Presence
from sqlqueue_transport.registered import presence_of
from sqlqueue_transport.store import Store
from tests.support import FakeClock, kill, read_line, run_python, say
from tests.transport.rows import claim_one, ended, publish, put, row, state_of

MANY = """
import sys
from sqlqueue_transport import NewMessage, Store
store = Store(sys.argv[1])
for _ in range(int(sys.argv[2])):
    store.publish([NewMessage(b"x" * 1000, "default", task="t") for _ in range(1000)], durable=False)
store.close()
"""


@contextlib.contextmanager
def restored(path: Path, **options):
    """Open a backup as a queue."""
    store = Store(path, **options)
    try:
        yield store
    finally:
        store.close()


def names(directory: Path) -> set[str]:
    return {one.name for one in directory.iterdir()}


def test_a_backup_holds_every_state_and_is_a_queue_again(store, tmp_path, clock):
    ids = {state: put(store, state) for state in State}
    report = back_up(store.path, tmp_path / "backup.db")
    assert report.path == tmp_path / "backup.db"
    assert report.jobs == len(State)
    assert report.bytes == report.path.stat().st_size
    assert report.took_s > 0
    assert stat.S_IMODE(report.path.stat().st_mode) == 0o600
    assert ".backup.db.sqlqueue-backup" not in names(tmp_path)
    with restored(report.path, clock=clock) as again:
        assert {state: state_of(again, ids[state]) for state in State} == {s: s for s in State}
        assert checking.damage(report.path, full=True) == ()
        publish(again)


def test_a_lease_of_another_boot_is_void_in_a_restored_backup_and_its_job_runs_again(
    store, tmp_path, clock
):
    message_id = publish(store)
    claim_one(store)
    back_up(store.path, tmp_path / "backup.db")
    after_reboot = FakeClock(wall=clock.wall, lease=5, boot_id="boot-2")
    with restored(tmp_path / "backup.db", clock=after_reboot) as again:
        again.consumers.sweep_all()
        assert state_of(again, message_id) is State.PENDING
        delivery = claim_one(again)
        assert delivery.message_id == message_id
        assert again.settle([ended(delivery, Outcome.done())]) == []


def test_a_lease_of_the_same_boot_runs_out_in_a_backup_restored_elsewhere(store, tmp_path, clock):
    """Nobody there can tell whether its worker lives: it does, and works on the original."""
    message_id = publish(store)
    first = claim_one(store, lease_s=60)
    back_up(store.path, tmp_path / "backup.db")
    with restored(tmp_path / "backup.db", clock=clock) as again:
        [(worker, _)] = again.consumers.alive()
        assert presence_of(worker, again.consumers.presence, clock) is Presence.UNKNOWN
        assert again.consumers.sweep_all() == []
        clock.advance(61)
        again.consumers.sweep_all()
        clock.advance(600)  # its attempt counts as lost, and waits
        delivery = claim_one(again)
        assert (delivery.message_id, delivery.delivery) == (message_id, first.delivery + 1)


def test_a_backup_is_of_one_moment_while_other_processes_write(tmp_path):
    """Two rows that a writer changes together are never seen apart, and the backup ends."""
    path = tmp_path / "queue.db"
    finished = run_python(MANY, path, 10)
    finished.communicate(timeout=60)
    writer = run_python(
        """
        import select, sys
        from sqlqueue_transport import NewMessage, Store
        store = Store(sys.argv[1])
        print("writing", flush=True)
        number = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            number += 1
            store.publish(
                [NewMessage(b"[]", queue, task="t", job_id=str(number)) for queue in ("a", "b")],
                durable=False,
            )
        print(number, flush=True)
        """,
        path,
    )
    read_line(writer)
    seen: list[tuple[int, int]] = []
    for number in range(3):
        # What was committed before a step of the copying must not get into the copy half.
        back_up(path, tmp_path / f"{number}.db", tell=lambda *at: seen.append(at))
    say(writer)
    assert int(read_line(writer)) > 3
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    for number in range(3):
        copy = sqlite3.connect(tmp_path / f"{number}.db")
        [(a, b)] = copy.execute(
            "SELECT coalesce(sum(queue = 'a'), 0), coalesce(sum(queue = 'b'), 0) FROM message"
        )
        assert a == b
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        copy.close()


def test_a_write_between_two_steps_neither_restarts_nor_enters_the_copy(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr(backup, "_STEP_PAGES", 1)
    put(store, State.DONE)
    steps: list[int] = []

    def write_more(done: int, _: int) -> None:
        steps.append(done)
        put(store, State.DONE)

    report = back_up(store.path, tmp_path / "backup.db", tell=write_more)
    assert report.jobs == 1
    assert steps == sorted(steps)
    assert store.reading.counts().states[State.DONE] > len(steps) / 2


def test_a_copy_that_is_damaged_or_lacks_a_row_is_not_kept(store, tmp_path, monkeypatch):
    put(store, State.DONE)
    complete = backup._copied

    def short(source, making, tell):
        counts = complete(source, making, tell)
        spoil = sqlite3.connect(making)
        spoil.execute("DELETE FROM message")
        spoil.commit()
        spoil.close()
        return counts

    monkeypatch.setattr(backup, "_copied", short)
    with pytest.raises(DiskFault, match="does not hold as many jobs"):
        back_up(store.path, tmp_path / "backup.db")

    def torn(source, making, tell):
        counts = complete(source, making, tell)
        with making.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
        return counts

    monkeypatch.setattr(backup, "_copied", torn)
    with pytest.raises(DiskFault, match="is damaged and was removed"):
        back_up(store.path, tmp_path / "backup.db")
    assert names(tmp_path) == {"queue.db", "queue.db-wal", "queue.db-shm", "queue.db-run"}


# -- where to -------------------------------------------------------------------------------------------


def test_an_existing_destination_stays_unless_it_is_to_be_replaced(store, tmp_path):
    destination = tmp_path / "backup.db"
    destination.write_text("precious")
    with pytest.raises(BackupRefused, match=r"backup\.db exists.*--force"):
        back_up(store.path, destination)
    assert destination.read_text() == "precious"
    put(store, State.DONE)
    assert back_up(store.path, destination, force=True).jobs == 1
    assert stat.S_IMODE(destination.stat().st_mode) == 0o600


def test_a_destination_that_comes_meanwhile_stays(store, tmp_path):
    destination = tmp_path / "backup.db"
    with pytest.raises(BackupRefused, match="exists"):
        back_up(store.path, destination, tell=lambda *_: destination.write_text("precious"))
    assert destination.read_text() == "precious"
    assert ".backup.db.sqlqueue-backup" not in names(tmp_path)


@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal", "queue.db-shm", "queue.db-journal"])
def test_the_queue_itself_is_no_destination(store, tmp_path, name):
    message_id = put(store, State.DONE)
    with pytest.raises(BackupRefused, match="belongs to the queue itself"):
        back_up(store.path, tmp_path / name, force=True)
    assert row(store, message_id)["state"] == "done"


def test_a_directory_or_a_missing_one_is_no_destination(store, tmp_path):
    with pytest.raises(BackupRefused, match="is a directory"):
        back_up(store.path, tmp_path)
    with pytest.raises(CannotOpen, match="does not exist"):
        back_up(store.path, tmp_path / "missing" / "backup.db")


def test_the_log_of_another_database_is_never_played_into_a_backup(store, tmp_path):
    (tmp_path / "backup.db-wal").write_bytes(b"frames")
    with pytest.raises(BackupRefused, match="-wal is not empty"):
        back_up(store.path, tmp_path / "backup.db", force=True)
    (tmp_path / "backup.db-wal").write_bytes(b"")
    back_up(store.path, tmp_path / "backup.db")


def test_a_link_at_the_temporary_name_is_not_followed(store, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".backup.db.sqlqueue-backup").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        back_up(store.path, tmp_path / "backup.db")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_queue_is_not_made_over_by_its_own_backup(tmp_path):
    source = tmp_path / ".backup.db.sqlqueue-backup"
    with restored(source) as store:
        publish(store)
        with pytest.raises(BackupRefused, match="belongs to the queue itself"):
            back_up(source, tmp_path / "backup.db", force=True)
        assert store.reading.counts().states[State.PENDING] == 1


@pytest.mark.parametrize("name", ["queue.db-run/presence", "queue.db-run/writer.lock"])
def test_side_files_of_the_queue_are_not_replaced(store, tmp_path, name):
    before = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
    with pytest.raises(BackupRefused, match="belongs to the queue itself"):
        back_up(store.path, tmp_path / name, force=True)
    assert before is None or (tmp_path / name).read_bytes() == before


def test_what_is_no_regular_file_is_never_replaced(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "link"):
        with pytest.raises(BackupRefused, match="no regular file"):
            back_up(store.path, tmp_path / name, force=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_missing_queue_is_not_made(tmp_path):
    with pytest.raises(DatabaseMissing):
        back_up(tmp_path / "queue.db", tmp_path / "backup.db")
    assert names(tmp_path) == set()


def test_two_backups_of_one_name_do_not_write_into_each_other(store, tmp_path):
    def another(*_: int) -> None:
        with pytest.raises(BackupRefused, match="another process is making"):
            back_up(store.path, tmp_path / "backup.db")

    put(store, State.DONE)
    assert back_up(store.path, tmp_path / "backup.db", tell=another).jobs == 1


# -- ending early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_breaks_a_backup_off_leaves_nothing(store, tmp_path, error):
    def stop(*_: int) -> None:
        raise error

    before = names(tmp_path)
    with pytest.raises(error):
        back_up(store.path, tmp_path / "backup.db", tell=stop)
    assert names(tmp_path) == before
    publish(store)
    assert back_up(store.path, tmp_path / "backup.db").jobs == 1


def test_what_a_killed_backup_left_is_written_over_by_the_next(store, tmp_path):
    put(store, State.DONE)
    maker = run_python(
        """
        import sys
        from pathlib import Path
        from sqlqueue_transport.backup import back_up
        def tell(*_):
            print("copying", flush=True)
            sys.stdin.readline()
        back_up(Path(sys.argv[1]), Path(sys.argv[2]), tell=tell)
        """,
        store.path,
        tmp_path / "backup.db",
    )
    read_line(maker)
    kill(maker)
    assert "backup.db" not in names(tmp_path)
    assert ".backup.db.sqlqueue-backup" in names(tmp_path)
    assert back_up(store.path, tmp_path / "backup.db").jobs == 1
    assert ".backup.db.sqlqueue-backup" not in names(tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    path = tmp_path / "queue.db"
    run_python(MANY, path, 5).communicate(timeout=60)
    maker = run_python(
        """
        import resource, signal, sys
        from pathlib import Path
        from sqlqueue_transport.backup import back_up
        from sqlqueue_transport.errors import DiskFault
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        try:
            back_up(Path(sys.argv[1]), Path(sys.argv[2]))
        except DiskFault as error:
            print(error, flush=True)
        """,
        path,
        tmp_path / "backup.db",
    )
    assert "free space or mend the disk" in read_line(maker)
    assert names(tmp_path) <= {"queue.db", "queue.db-wal", "queue.db-shm", "queue.db-run"}


# -- checking ---------------------------------------------------------------------------------------------


def test_damage_is_told_and_a_sound_file_has_none(tmp_path):
    path = tmp_path / "queue.db"
    run_python(MANY, path, 1).communicate(timeout=60)
    assert checking.damage(path) == ()
    index = sqlite3.connect(path)
    [(page,)] = index.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'message_job'")
    [(size,)] = index.execute("PRAGMA page_size")
    index.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(os.urandom(size))
    assert checking.damage(path)


def test_a_missing_entry_of_an_index_is_seen_by_the_full_check_alone(tmp_path):
    path = tmp_path / "queue.db"
    run_python(MANY, path, 1).communicate(timeout=60)
    spoil = sqlite3.connect(path)
    spoil.execute("PRAGMA writable_schema = ON")
    # An index over other rows than it was filled with.
    spoil.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, '''pending''', '''done''')"
        " WHERE name = 'message_ready'"
    )
    spoil.commit()
    spoil.close()
    assert checking.damage(path) == ()
    assert any("message_ready" in one for one in checking.damage(path, full=True))


def test_a_check_tells_that_it_lives_and_can_be_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_STEPS_A_TICK", 100)
    path = tmp_path / "queue.db"
    run_python(MANY, path, 1).communicate(timeout=60)
    told: list[float | None] = []
    assert checking.damage(path, tell=told.append) == ()
    assert set(told) == {None}

    def stop(_: float | None) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        checking.damage(path, tell=stop)


def test_ctrl_c_ends_a_statement_that_would_run_for_ever():
    connection = sqlite3.connect(":memory:")
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), checking.ticking(connection, None):
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
                " SELECT count(*) FROM n"
            ).fetchall()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        connection.close()
