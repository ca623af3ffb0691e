"""Transactions on the file: who may run when, what interrupts them, and what is noticed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time

import pytest

from sqlqueue_transport import (
    Busy,
    CannotOpen,
    DiskFault,
    FileReplaced,
    ForeignDatabase,
    NewMessage,
    SchemaChanged,
    SchemaTooNew,
    SqliteTooOld,
    Store,
    TransportError,
    close_store,
    database,
    handles,
    migrations,
    open_store,
)
from sqlqueue_transport.database import Database
from sqlqueue_transport.errors import InsideTransaction
from sqlqueue_transport.writer_lock import WriterLock, read_holder
from tests.support import (
    database_names,
    finish,
    in_forked_child,
    kill,
    read_line,
    run_python,
    say,
    small_disk,
    wait_until,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q.db"


@pytest.fixture
def opened(path):
    """Give a Database with an empty table `t (v)`."""
    one = Database(path, busy_timeout_s=5.0)
    one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    yield one
    one.close()


def put(value):
    return lambda c: c.execute("INSERT INTO t VALUES (?)", (value,)).rowcount


def values(c):
    return [value for (value,) in c.execute("SELECT v FROM t ORDER BY rowid")]


def pragma(connection, name):
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


# -- how the file is opened -------------------------------------------------------------------------


def test_every_connection_has_the_settings_that_keep_data_safe(opened):
    opened.read(values)
    for connection in (opened._held.writing, opened._held.reading):
        settings = {
            name: pragma(connection, name)
            for name in (
                *("journal_mode", "synchronous", "foreign_keys", "trusted_schema", "mmap_size"),
                *("cell_size_check", "fullfsync", "checkpoint_fullfsync", "wal_autocheckpoint"),
            )
        }
        assert settings == {
            "journal_mode": "wal",
            "synchronous": 1,
            "foreign_keys": 1,
            "trusted_schema": 0,
            "mmap_size": 0,
            "cell_size_check": 1,
            "fullfsync": 1,
            "checkpoint_fullfsync": 1,
            "wal_autocheckpoint": 1000,
        }
    assert pragma(opened._held.reading, "query_only") == 1
    assert pragma(opened._held.writing, "auto_vacuum") == 2
    assert pragma(opened._held.writing, "application_id") == migrations.APPLICATION_ID


def test_an_old_sqlite_is_refused_with_a_way_out(path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(SqliteTooOld, match=r"3\.37 is needed: use a newer Python"):
        Database(path)


def test_a_file_left_in_another_journal_mode_is_put_right(opened, path):
    opened.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    connection.close()
    again = Database(path)
    again.write(put(1))
    assert pragma(again._held.writing, "journal_mode") == "wal"
    again.close()


def test_a_process_killed_while_it_makes_the_file_leaves_one_that_opens(tmp_path):
    """Killed at each statement: there is no file, an empty one or a whole one."""
    ends = []
    for statement in range(1, 90):
        path = tmp_path / f"{statement}" / "q.db"
        path.parent.mkdir()
        open_it = lambda path=path: Database(path).open()  # noqa: E731
        ends.append(in_forked_child(open_it, die_at_statement=statement))
        one = Database(path)
        one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
        one.write(put(statement))
        assert one.read(values) == [statement]
        assert one.read(lambda c: pragma(c, "integrity_check")) == "ok"
        one.close()
        if ends[-1]:
            break
    assert len(ends) > 25
    assert ends[-1]


# -- transactions -----------------------------------------------------------------------------------


def test_a_write_is_all_or_nothing(opened):
    def half(c):
        put(1)(c)
        raise KeyError

    with pytest.raises(KeyError):
        opened.write(half)
    assert opened.read(values) == []
    opened.write(put(2))
    assert opened.read(values) == [2]


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it(opened, path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from sqlqueue_transport.database import Database
        def work(c):
            for value in range(1000):
                c.execute("INSERT INTO t VALUES (?)", ("x" * 1000,))
            os.kill(os.getpid(), signal.SIGKILL)
        Database(Path(sys.argv[1])).write(work)
    """
    assert run_python(code, path).wait(timeout=30) == -signal.SIGKILL
    assert opened.read(values) == []
    opened.write(put(1))
    assert opened.read(values) == [1]


def test_a_read_sees_every_commit_made_before_it(opened, path):
    other = Database(path)
    for value in range(20):
        (opened if value % 2 else other).write(put(value))
        assert opened.read(values) == other.read(values) == list(range(value + 1))
    other.close()


def test_a_read_cannot_write(opened):
    with pytest.raises(TransportError, match="readonly"):
        opened.read(put(1))
    assert opened.read(values) == []


def test_a_read_sees_one_moment(opened, path):
    other = Database(path)

    def twice(c):
        before = values(c)
        other.write(put(1))
        return before, values(c)

    assert opened.read(twice) == ([], [])
    assert opened.read(values) == [1]
    other.close()


def test_a_write_that_read_first_is_never_refused_as_stale(opened, path):
    """SQLITE_BUSY_SNAPSHOT: what starts as a read fails at its first write, whatever the timeout."""
    threads = [
        threading.Thread(
            target=lambda: [opened.write(lambda c: put(len(values(c)))(c)) for _ in range(50)]
        )
        for _ in range(2)
    ]
    other = Database(path)
    for thread in threads:
        thread.start()
    for _ in range(50):
        other.write(lambda c: put(len(values(c)))(c))
    for thread in threads:
        thread.join()
    assert opened.read(values) == list(range(150))
    other.close()


def test_a_write_shuts_out_foreign_writers_before_it_reads(opened, path):
    """Else what it has read may be stale when it writes: SQLITE_BUSY_SNAPSHOT."""
    foreign = sqlite3.connect(path, isolation_level=None, timeout=0)

    def work(c):
        count = len(values(c))
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            foreign.execute("INSERT INTO t VALUES ('foreign')")
        return put(count)(c)

    opened.write(work)
    assert opened.read(values) == [0]
    foreign.close()


def test_a_write_inside_a_transaction_of_the_same_thread_is_refused(opened):
    for outer in (opened.write, opened.read):
        with pytest.raises(InsideTransaction):
            outer(lambda _: opened.write(put(1)))
    with pytest.raises(InsideTransaction):
        opened.read(lambda _: opened.read(values))
    opened.write(put(2))
    assert opened.read(values) == [2]


def test_a_store_cannot_be_closed_inside_its_own_transaction(opened):
    for outer in (opened.write, opened.read):
        with pytest.raises(InsideTransaction):
            outer(lambda _: opened.close())
    opened.write(put(1))


def test_a_half_read_cursor_never_leaves(opened, path):
    """It would survive `close` as a zombie that keeps the file's descriptors across a fork."""
    opened.write(lambda c: [put(value)(c) for value in range(10)])
    for run in (opened.read, opened.write):
        with pytest.raises(TypeError, match="fetch what it holds"):
            run(lambda c: c.execute("SELECT v FROM t"))
    opened.close()
    assert database_names(path) == []


def test_closing_leaves_no_descriptor_and_is_harmless_twice(opened, path):
    opened.write(put(1))
    opened.read(values)
    assert len(database_names(path)) >= 3
    opened.close()
    opened.close()
    assert database_names(path) == []
    for run in (opened.read, opened.write):
        with pytest.raises(CannotOpen, match="is closed"):
            run(values)


def test_threads_share_one_store_and_lose_nothing(opened):
    failures = []

    def work(number):
        try:
            for value in range(50):
                opened.write(put(number * 1000 + value), durable=value % 10 == 0)
                assert number * 1000 + value in opened.read(values)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = opened.read(values)
    assert len(found) == len(set(found)) == 300


def test_a_mistake_of_ours_is_not_taken_for_a_fault_of_the_file(opened):
    opened.write(lambda c: c.execute("CREATE TABLE u (v NOT NULL)").rowcount)
    with pytest.raises(sqlite3.IntegrityError):
        opened.write(lambda c: c.execute("INSERT INTO u VALUES (NULL)").rowcount)
    with pytest.raises(sqlite3.ProgrammingError):
        opened.read(lambda c: c.execute("SELECT ?").fetchall())


def test_the_log_stays_short_under_load(opened, path):
    for value in range(3000):
        opened.write(put("x" * 4000 + str(value)))
    assert path.with_name("q.db-wal").stat().st_size < 16 << 20


# -- programs that are not ours ---------------------------------------------------------------------


@pytest.fixture
def foreign(opened, path):
    """Give a foreign connection that holds SQLite's write lock."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def test_a_foreign_lock_is_waited_for(opened, foreign):
    threading.Timer(0.3, lambda: foreign.execute("COMMIT")).start()
    opened.write(put(1))
    assert opened.read(values) == [1]


def test_a_foreign_lock_ends_in_busy_at_the_bound(opened, foreign, path, monkeypatch):
    monkeypatch.setattr(database, "FOREIGN_SLICE_S", 0.1)
    one = Database(path, busy_timeout_s=0.5)
    began_s = time.monotonic()
    with pytest.raises(Busy, match="not sqlqueue holds SQLite's write lock"):
        one.write(put(1))
    assert 0.5 <= time.monotonic() - began_s < 2.5
    foreign.execute("ROLLBACK")
    one.write(put(2))
    assert opened.read(values) == [2]
    one.close()


def test_the_writer_lock_is_given_up_between_slices_of_a_foreign_lock(
    opened, foreign, path, monkeypatch
):
    """Otherwise one foreign transaction would hide, for all our processes, who is to blame."""
    monkeypatch.setattr(database, "FOREIGN_SLICE_S", 0.05)
    one = Database(path, busy_timeout_s=10.0)
    waiting = threading.Thread(target=lambda: one.write(put(1)))
    waiting.start()
    lock = WriterLock(path.with_name("q.db-run") / "writer.lock")
    wait_until(lambda: read_holder(lock.path), every_s=0.001)
    for _ in range(3):
        lock.take(time.monotonic() + 5.0)  # the foreign program still holds its own
        lock.drop()
    assert waiting.is_alive()
    foreign.execute("ROLLBACK")
    waiting.join()
    assert opened.read(values) == [1]
    one.close()
    lock.close()


def test_reading_does_not_wait_for_a_foreign_lock(opened, foreign, path):
    one = Database(path, busy_timeout_s=5.0)
    began_s = time.monotonic()
    assert one.read(values) == []
    assert time.monotonic() - began_s < 1.0
    one.close()


def test_opening_waits_for_a_foreign_program_that_has_the_file_to_itself(opened, path):
    opened.close()
    foreign = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    foreign.execute("PRAGMA locking_mode = EXCLUSIVE")
    foreign.execute("BEGIN IMMEDIATE")
    foreign.execute("INSERT INTO t VALUES (1)")
    foreign.execute("COMMIT")
    one = Database(path, busy_timeout_s=0.2)
    with pytest.raises(Busy):
        one.open()
    one.close()
    patient = Database(path, busy_timeout_s=20.0)
    threading.Timer(1.5, foreign.close).start()
    assert patient.read(values) == [1]
    patient.close()


# -- the file goes away while it is open ------------------------------------------------------------


def replace_database(path):
    path.rename(path.with_name("old.db"))
    shutil.copy(path.with_name("old.db"), path)  # the old one is not open here any more


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.rename(path.with_name("elsewhere.db")), "moved or removed"),
        (lambda path: path.unlink(), "moved or removed"),
        (lambda path: path.with_name("q.db-wal").unlink(), "moved or removed"),
        (lambda path: path.with_name("q.db-shm").unlink(), "moved or removed"),
        (lambda path: shutil.rmtree(path.with_name("q.db-run")), "moved or removed"),
        (
            lambda path: path.with_name("q.db-run").rename(path.with_name("away")),
            "moved or removed",
        ),
        (lambda path: (path.unlink(), path.write_bytes(b"x" * 5000)), "replaced by another"),
        (lambda path: os.truncate(path, 0), "truncated to zero bytes"),
    ],
    ids=["moved", "removed", "log", "shm", "lock", "run", "replaced", "truncated"],
)
def test_a_file_that_changes_under_us_is_noticed_and_named(path, harm, words):
    """Within a second, that is; until then a renamed file still accepts writes."""
    one = Database(path)
    one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    one.read(values)
    harm(path)
    one._watch.looked_at_s -= handles.LOOK_AT_PATH_EVERY_S
    with pytest.raises(FileReplaced, match=words):
        one.write(put(1))
    with pytest.raises(FileReplaced, match=words):
        one.look_at_path()
    with pytest.raises(FileReplaced, match=words):
        one.read(values)
    one._busy_timeout_s = 0.1
    one.close()


def test_an_error_of_a_file_that_is_gone_says_so_at_once(opened, path):
    """Not "damaged" or "disk I/O error", which would send somebody looking for the wrong thing."""
    opened.write(lambda c: [put("x" * 3000)(c) for _ in range(200)])
    opened.read(values)
    assert opened._held.writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    os.truncate(path, 0)

    def with_a_cold_cache(c):
        return [c.execute("PRAGMA shrink_memory").fetchall(), values(c)]

    for run in (opened.read, opened.write):
        with pytest.raises(FileReplaced, match="truncated to zero bytes"):
            run(with_a_cold_cache)


def test_a_change_of_the_file_is_noticed_within_a_second(opened, path):
    opened.write(put(1))
    began_s = time.monotonic()
    path.rename(path.with_name("elsewhere.db"))

    def noticed():
        try:
            opened.write(put(2))
        except FileReplaced:
            return True
        return False

    wait_until(noticed, deadline_s=5)
    print(f"noticed after {time.monotonic() - began_s:.2f} s")


def test_a_database_moved_away_takes_no_log_with_it_when_it_is_closed(opened, path):
    """The last close deletes the log by its name, which by now is another database's log."""
    opened.write(put("old"))
    path.rename(path.with_name("elsewhere.db"))
    path.with_name("q.db-wal").rename(path.with_name("elsewhere.db-wal"))
    path.with_name("q.db-shm").rename(path.with_name("elsewhere.db-shm"))
    code = """
        import os, sys
        from pathlib import Path
        from sqlqueue_transport.database import Database
        one = Database(Path(sys.argv[1]))
        one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
        one.write(lambda c: c.execute("INSERT INTO t VALUES ('new')").rowcount, durable=True)
        os._exit(0)
    """
    finish(run_python(code, path))
    assert path.with_name("q.db-wal").stat().st_size > 0
    opened.close()
    again = Database(path)
    assert again.read(values) == ["new"]
    again.close()


def test_a_damaged_file_is_called_damaged(path):
    one = Database(path, busy_timeout_s=1.0)
    one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    for value in range(300):
        one.write(put("x" * 1000 + str(value)))
    one.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size - size // 2))
    again = Database(path, busy_timeout_s=1.0)
    with pytest.raises(DiskFault, match="is damaged"):
        again.write(lambda c: [put(1)(c), values(c)])
    with pytest.raises(DiskFault, match="is damaged"):
        again.read(values)
    again.close()


# -- versions ---------------------------------------------------------------------------------------


def test_a_process_notices_that_another_migrated_the_file(opened, path):
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {migrations.SCHEMA_VERSION + 1}")
    other.commit()
    for run in (opened.write, opened.read):
        with pytest.raises(SchemaChanged, match="restart with the newer software"):
            run(values)
    with pytest.raises(SchemaTooNew):
        Database(path).open()
    other.execute(f"PRAGMA user_version = {migrations.SCHEMA_VERSION}")
    other.commit()
    other.close()
    opened.write(put(1))


STEPS = {
    2: """
        ALTER TABLE t ADD COLUMN w;
        UPDATE t SET w = v * 10;
        CREATE INDEX t_w ON t (w);
    """,
    3: """
        CREATE TABLE t2 AS SELECT v + 1 AS v, w FROM t;
        DROP TABLE t;
        ALTER TABLE t2 RENAME TO t;
    """,
}


@pytest.fixture
def old_file(opened, path):
    """Give the path of a closed file of version 1 with 100 rows."""
    opened.write(lambda c: [put(value)(c) for value in range(100)])
    opened.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    return path


def in_steps(texts):
    """Return migrations as the module keeps them: a function that gives the text."""
    return {version: lambda text=text: text for version, text in texts.items()}


def version_and_sum(path):
    connection = sqlite3.connect(path)
    version = pragma(connection, "user_version")
    (total,) = connection.execute("SELECT sum(v) FROM t").fetchone()
    assert pragma(connection, "integrity_check") == "ok"
    connection.close()
    return version, total


def test_an_older_file_is_migrated_step_by_step_after_a_backup(old_file, monkeypatch):
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(migrations, "MIGRATIONS", in_steps(STEPS))
    one = Database(old_file)
    assert one.read(lambda c: c.execute("SELECT sum(v), sum(w) FROM t").fetchone()) == (5050, 49500)
    one.close()
    assert version_and_sum(old_file) == (3, 5050)
    backup = old_file.with_name("q.db.v1.backup")
    assert version_and_sum(backup) == (1, 4950)
    assert backup.stat().st_mode & 0o777 == 0o600


def test_a_migration_killed_at_any_statement_opens_as_old_or_new(old_file, tmp_path, monkeypatch):
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(migrations, "MIGRATIONS", in_steps(STEPS))
    seen = set()
    for statement in range(1, 100):
        directory = tmp_path / str(statement)
        directory.mkdir()
        path = directory / "q.db"
        shutil.copy(old_file, path)
        open_it = lambda path=path: Database(path).open()  # noqa: E731
        came_through = in_forked_child(open_it, die_at_statement=statement)
        seen.add(version_and_sum(path))
        one = Database(path)  # goes on from where the dead one came to
        one.open()
        one.close()
        assert version_and_sum(path) == (3, 5050)
        assert version_and_sum(directory / "q.db.v1.backup")[0] == 1
        if came_through:
            break
    assert came_through
    assert seen == {(1, 4950), (2, 4950), (3, 5050)}


def test_a_migration_that_fails_changes_nothing(old_file, monkeypatch):
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(migrations, "MIGRATIONS", in_steps({2: "UPDATE t SET v = 0; NONSENSE;"}))
    with pytest.raises(TransportError, match="NONSENSE"):
        Database(old_file).open()
    assert version_and_sum(old_file) == (1, 4950)


def test_a_version_without_a_way_to_ours_is_refused_before_anything_is_done(old_file, monkeypatch):
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", 4)
    monkeypatch.setattr(migrations, "MIGRATIONS", in_steps(STEPS))
    with pytest.raises(ForeignDatabase, match="has no way to 4"):
        Database(old_file).open()
    assert version_and_sum(old_file) == (1, 4950)
    assert not old_file.with_name("q.db.v1.backup").exists()


def test_of_many_processes_one_migrates_and_the_others_open_the_result(old_file):
    code = f"""
        import sys
        from pathlib import Path
        from sqlqueue_transport import database, migrations
        steps = {STEPS!r}
        migrations.SCHEMA_VERSION = 3
        migrations.MIGRATIONS = {{version: lambda text=text: text for version, text in steps.items()}}
        print(flush=True)
        sys.stdin.readline()
        one = database.Database(Path(sys.argv[1]))
        print(one.read(lambda c: c.execute("SELECT sum(v), sum(w) FROM t").fetchone()))
        one.close()
    """
    processes = [run_python(code, old_file) for _ in range(4)]
    for process in processes:
        read_line(process)
    for process in processes:
        say(process)
    assert {finish(process) for process in processes} == {"(5050, 49500)\n"}


# -- a full disk ------------------------------------------------------------------------------------


FILL = """
    import os, resource, signal, sys
    from sqlqueue_transport import DiskFault, NewMessage, Outcome, Settlement, Store

    path, way = sys.argv[1:]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = Store(path)
    store.consumers.register(name="w", kind="worker")

    def limit(size):
        if way == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        elif way == "pages":
            count = size // 4096 if size > 0 else 2**31 - 2
            store.database._held.writing.execute(f"PRAGMA max_page_count = {count}").fetchone()
        elif size < 0:
            os.unlink(os.path.join(os.path.dirname(path), "ballast"))

    def publish(count):
        stored = []
        for _ in range(count):
            try:
                (answer,) = store.publish([NewMessage(os.urandom(10_000), "default", task="t")])
            except DiskFault as error:
                print("refused:", error)
                return stored
            stored.append(answer.message_id)
        return stored

    acknowledged = publish(20)
    claimed = store.claim(["default"], 5, lease_s=60).deliveries
    limit(1_000_000)
    acknowledged += publish(2000)
    assert len(acknowledged) < 2000
    try:
        done = [Settlement(d.message_id, d.delivery, Outcome.done()) for d in claimed]
        assert store.settle(done) == []
        print("settled on a full disk")
    except DiskFault:
        print("not settled on a full disk")
    limit(-1)
    acknowledged += publish(5)
    store.settle([Settlement(d.message_id, d.delivery, Outcome.done()) for d in claimed])
    ids = store.database.read(lambda c: c.execute("SELECT id FROM message").fetchall())
    assert {i for i, in ids} == set(acknowledged), (len(ids), len(acknowledged))
    states = store.database.read(
        lambda c: c.execute("SELECT state, count(*) FROM message GROUP BY 1").fetchall()
    )
    assert dict(states)["done"] == 5, states
    assert store.database.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
    store.close()
    print("lost nothing of", len(acknowledged))
"""


@pytest.mark.parametrize("way", ["file size", "pages"])
def test_a_full_disk_is_a_clear_error_and_loses_nothing_that_was_acknowledged(path, way):
    printed = finish(run_python(FILL, path, way))
    assert "refused:" in printed
    assert "lost nothing" in printed
    print(printed)


@pytest.fixture
def disk_of_3_mb(tmp_path):
    """Give a file system of 3 MB."""
    with small_disk(tmp_path / "small", megabytes=4) as directory:
        yield directory


def test_a_really_full_disk_loses_nothing_that_was_acknowledged(disk_of_3_mb):
    (disk_of_3_mb / "ballast").write_bytes(bytes(1 << 20))
    printed = finish(run_python(FILL, disk_of_3_mb / "q.db", "disk"))
    assert "is nearly full: " in printed
    assert "\nsettled on a full disk" in printed
    assert "lost nothing" in printed
    print(printed)


def test_a_disk_too_full_to_open_on_says_so(disk_of_3_mb):
    (disk_of_3_mb / "ballast").write_bytes(bytes(3 << 20))
    with pytest.raises(DiskFault, match=r"free space|No space left"):
        Store(disk_of_3_mb / "q.db")
    (disk_of_3_mb / "ballast").unlink()
    store = open_store(disk_of_3_mb / "q.db")
    store.publish([NewMessage(b"x", "default")])
    close_store(store)


# -- signal handlers that raise ---------------------------------------------------------------------


INTERRUPTED = """
    import fcntl, os, random, signal, sys, threading, time
    from pathlib import Path
    from sqlqueue_transport.database import Database

    class Interrupted(Exception):
        pass

    armed = False

    def on_alarm(*_):
        global armed
        if armed:
            armed = False
            raise Interrupted

    def check():
        # Nobody can be holding anything: neither the lock, nor a mutex, nor a transaction.
        fcntl.flock(outside, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(outside, fcntl.LOCK_UN)
        free = []
        def look():
            for mutex in (db._write_mutex, db._read_mutex, db._flushing.mutex):
                free.append(mutex.acquire(blocking=False))
                if free[-1]:
                    mutex.release()
        looking = threading.Thread(target=look)
        looking.start()
        looking.join()
        assert free == [True, True, True], free
        for connection in (db._held.writing, db._held.reading):
            assert connection is None or not connection.in_transaction

    random.seed(int(sys.argv[2]))
    db = Database(Path(sys.argv[1]))
    put = lambda c: c.execute("INSERT INTO t VALUES (1)").rowcount
    count = lambda c: c.execute("SELECT count(*) FROM t").fetchone()[0]
    db.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    db.read(count)
    outside = os.open(db.run_directory / "writer.lock", os.O_RDWR)
    works = [
        lambda: db.write(put),
        lambda: db.write(put, durable=True),
        lambda: db.read(count),
    ]
    signal.signal(signal.SIGALRM, on_alarm)
    interruptions = completed = 0
    until = time.monotonic() + float(sys.argv[3])
    longest = {}
    while time.monotonic() < until:
        number = random.randrange(len(works))
        began = time.perf_counter()
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest.get(number, 1e-4)))
            works[number]()
            armed = False
            completed += 1
        except Interrupted:
            interruptions += 1
            check()
        else:
            longest[number] = 0.9 * longest.get(number, 1e-4) + 0.1 * (time.perf_counter() - began)
    signal.setitimer(signal.ITIMER_REAL, 0)
    check()
    before = db.read(count)
    db.write(put, durable=True)
    assert db.read(count) == before + 1
    db.close()
    print(interruptions, completed)
"""


def interrupt(path, *, seconds):
    process = run_python(INTERRUPTED, path, os.getpid(), seconds)
    interruptions, completed = map(int, finish(process, deadline_s=seconds + 60).split())
    print(f"{interruptions} interruptions, {completed} transactions not interrupted")
    return interruptions


def test_an_exception_from_a_signal_handler_leaks_neither_lock_nor_transaction(path):
    assert interrupt(path, seconds=2.5) > 500


@pytest.mark.slow
def test_many_exceptions_from_signal_handlers_leak_nothing(path):
    assert interrupt(path, seconds=60.0) > 15_000


# -- a process that does not go on ------------------------------------------------------------------


def test_a_process_stopped_inside_a_transaction_makes_others_busy_within_their_bound(opened, path):
    code = """
        import sys
        from pathlib import Path
        from sqlqueue_transport.database import Database
        def work(c):
            print("inside", flush=True)
            sys.stdin.readline()
        Database(Path(sys.argv[1])).write(work)
        print("done")
    """
    process = run_python(code, path)
    assert read_line(process) == "inside"
    process.send_signal(signal.SIGSTOP)
    try:
        one = Database(path, busy_timeout_s=0.5)
        began_s = time.monotonic()
        with pytest.raises(Busy, match=f"process {process.pid} has held the writer lock") as caught:
            one.write(put(1))
        assert time.monotonic() - began_s < 2.5
        assert caught.value.holder == process.pid
        assert opened.read(values) == []  # who has the file open reads on
        holder = read_holder(path.with_name("q.db-run") / "writer.lock")
        assert holder.pid == process.pid
        assert time.monotonic() - holder.since_s > 0.4
    finally:
        process.send_signal(signal.SIGCONT)
    say(process)
    assert finish(process) == "done\n"
    one.write(put(2))
    assert opened.read(values) == [2]
    one.close()


def test_a_process_killed_inside_a_transaction_frees_the_lock_at_once(opened, path):
    code = """
        import sys
        from pathlib import Path
        from sqlqueue_transport.database import Database
        Database(Path(sys.argv[1])).write(lambda c: (print("inside", flush=True), sys.stdin.read()))
    """
    process = run_python(code, path)
    read_line(process)
    kill(process)
    opened.write(put(1))
    assert read_holder(path.with_name("q.db-run") / "writer.lock") is None


def test_a_store_whose_opening_fails_holds_nothing(path, monkeypatch):
    monkeypatch.setattr(migrations, "APPLICATION_ID", 1)
    other = Database(path)
    other.open()
    other.close()
    monkeypatch.undo()
    with pytest.raises(ForeignDatabase):
        Store(path)
    assert database_names(path) == []
    assert read_holder(path.with_name("q.db-run") / "writer.lock") is None
