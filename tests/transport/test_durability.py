"""A durable publish that returned is on the disk; a flush that failed is never called a success."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

from sqlqueue_transport import DiskFault, NewMessage, Outcome, Settlement, Store, open_store
from sqlqueue_transport.database import Database
from sqlqueue_transport.stores import close_store
from tests.support import finish, run_python, wait_until


class Disk:
    """Stand in for `os.fdatasync`: count, hold back, fail."""

    def __init__(self, monkeypatch):
        self.flushed = []
        self.real = os.fdatasync
        self.open = threading.Event()
        self.open.set()
        self.waiting = 0
        self.failing = False
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def fdatasync(self, descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        self.waiting += 1
        assert self.open.wait(20)
        self.waiting -= 1
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")
        self.real(descriptor)
        self.flushed.append(name)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q.db"


@pytest.fixture
def one(path):
    """Give a Database with an empty table `t (v)`."""
    database = Database(path, busy_timeout_s=5.0)
    database.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    yield database
    database.close()


def put(value):
    return lambda c: c.execute("INSERT INTO t VALUES (?)", (value,)).rowcount


def values(c):
    return [value for (value,) in c.execute("SELECT v FROM t ORDER BY rowid")]


def in_thread(work):
    """Run `work` in a thread; its result or exception appears in the list returned."""
    answers = []

    def run():
        try:
            answers.append(work())
        except BaseException as error:  # noqa: BLE001
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.answers = answers
    thread.start()
    return thread


def is_taken(mutex):
    if mutex.acquire(blocking=False):
        mutex.release()
        return False
    return True


# -- what is flushed when ---------------------------------------------------------------------------


def test_a_durable_write_flushes_the_log_once(one, disk, path):
    one.write(put(1), durable=True)
    assert disk.flushed == [f"{path}-wal"]


def test_a_write_that_need_not_be_durable_flushes_nothing(one, disk):
    one.write(put(1))
    assert disk.flushed == []


def test_a_publish_is_flushed_and_a_settlement_is_not_unless_it_is_asked_for(path, disk):
    store = Store(path)
    store.consumers.register(name="w", kind="worker")
    disk.flushed.clear()
    store.publish([NewMessage(b"x", "default"), NewMessage(b"y", "default")])
    assert len(disk.flushed) == 1
    store.publish([NewMessage(b"z", "default")], durable=False)
    deliveries = store.claim(["default"], 3, lease_s=60).deliveries
    settlements = [Settlement(d.message_id, d.delivery, Outcome.done()) for d in deliveries]
    store.settle(settlements[:1])
    store.claim(["default"], lease_s=60, settlements=settlements[1:2])
    assert len(disk.flushed) == 1
    store.settle(settlements[2:], durable=True)
    assert len(disk.flushed) == 2
    store.close()


def test_a_settlement_that_rides_with_a_claim_is_flushed_if_it_is_asked_for(path, disk):
    store = Store(path)
    store.consumers.register(name="w", kind="worker")
    store.publish([NewMessage(b"x", "default"), NewMessage(b"y", "default")])
    (one,) = store.claim(["default"], lease_s=60).deliveries
    ended = Settlement(one.message_id, one.delivery, Outcome.done())
    disk.flushed.clear()
    claim = store.claim(["default"], lease_s=60, settlements=[ended], durable=True)
    assert claim.refused == []
    assert len(disk.flushed) == 1
    store.claim(["default"], lease_s=60, durable=True)  # a claim alone promises nothing
    assert len(disk.flushed) == 1
    store.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_kernel_is_asked_to_flush_the_log_after_the_commit(path, tmp_path):
    code = """
        import sys
        from sqlqueue_transport import NewMessage, Store
        store = Store(sys.argv[1])
        for _ in range(5):
            store.publish([NewMessage(b"x", "default")])
    """
    trace = tmp_path / "trace"
    process = run_python(code, path)
    finish(process)
    command = ["strace", "-f", "-y", "-e", "trace=fdatasync,pwrite64", "-o", str(trace)]
    subprocess.run([*command, *process.args, str(path)], check=True, env=os.environ, timeout=60)
    assert trace.read_text().count("-wal>) = 0") >= 5


def test_the_flush_begins_after_the_commit_and_without_the_writer_lock(one, disk, path):
    disk.open.clear()
    thread = in_thread(lambda: one.write(put(1), durable=True))
    wait_until(lambda: disk.waiting)
    # Committed, visible to all, and others can write while the disk is busy.
    other = Database(path, busy_timeout_s=2.0)
    assert other.read(values) == [1]
    other.write(put(2))
    assert thread.answers == []
    disk.open.set()
    thread.join()
    assert thread.answers == [1]
    other.close()


def test_threads_share_a_flush_that_began_after_their_commits(one, disk):
    disk.open.clear()
    first = in_thread(lambda: one.write(put(0), durable=True))
    wait_until(lambda: disk.waiting)
    threads = [in_thread(lambda v=v: one.write(put(v), durable=True)) for v in range(1, 9)]
    wait_until(lambda: one._flushing.commits >= 10)
    disk.open.set()
    for thread in (first, *threads):
        thread.join()
        assert thread.answers == [1]
    assert len(disk.flushed) == 2


def test_a_flush_that_began_before_a_commit_does_not_count_for_it(one, disk):
    """Joining a flush in flight is not enough: it may have passed our frames already."""
    disk.open.clear()
    first = in_thread(lambda: one.write(put(1), durable=True))
    wait_until(lambda: disk.waiting)
    second = in_thread(lambda: one.write(put(2), durable=True))
    wait_until(lambda: one._flushing.commits == 3)
    disk.open.set()
    first.join()
    second.join()
    assert len(disk.flushed) == 2


# -- a flush that fails -----------------------------------------------------------------------------


def test_a_failed_flush_is_an_error_to_the_publisher(one, disk):
    disk.failing = True
    with pytest.raises(DiskFault, match="may or may not be stored; publish it again"):
        one.write(put(1), durable=True)


def test_the_next_durable_write_empties_the_log_first(one, disk, path):
    disk.failing = True
    with pytest.raises(DiskFault):
        one.write(put(1), durable=True)
    disk.failing = False
    assert path.with_name("q.db-wal").stat().st_size > 0
    seen = []

    def work(c):
        # Everything before us is in the database file, and the log begins with us.
        seen.append(path.with_name("q.db-wal").stat().st_size)
        return put(2)(c)

    one.write(work, durable=True)
    assert seen == [0]
    assert one.read(values) == [1, 2]
    one.write(put(3), durable=True)
    assert path.with_name("q.db-wal").stat().st_size > 0


def test_a_failed_flush_is_not_retried_into_success_for_another_thread(one, disk):
    """Linux reports the error once; a second fsync of the same lost pages would succeed."""
    disk.open.clear()
    first = in_thread(lambda: one.write(put(1), durable=True))
    wait_until(lambda: disk.waiting)
    others = [in_thread(lambda v=v: one.write(put(v), durable=True)) for v in (2, 3)]
    wait_until(lambda: one._flushing.commits == 4)
    real, calls = disk.fdatasync, []

    def fails_once(descriptor):
        calls.append(descriptor)
        disk.real(descriptor)

    disk.failing = True
    os.fdatasync = fails_once  # monkeypatch of the fixture puts it back
    disk.open.set()
    for thread in (first, *others):
        thread.join()
        assert isinstance(thread.answers[0], DiskFault), thread.answers
    assert calls == []
    disk.failing = False
    os.fdatasync = real
    one.write(put(4), durable=True)
    assert one.read(values) == [1, 2, 3, 4]


def test_a_flush_that_failed_in_one_process_makes_every_other_empty_the_log(one, disk, path):
    """What follows a lost frame in the log is lost with it, whoever wrote it."""
    code = """
        import errno, os, sys
        from pathlib import Path
        from sqlqueue_transport import DiskFault
        from sqlqueue_transport.database import Database
        def fail(descriptor):
            raise OSError(errno.EIO, "Input/output error")
        os.fdatasync = fail
        one = Database(Path(sys.argv[1]))
        try:
            one.write(lambda c: c.execute("INSERT INTO t VALUES (1)").rowcount, durable=True)
        except DiskFault:
            print("refused", flush=True)
        os._exit(0)
    """
    assert finish(run_python(code, path)) == "refused\n"
    seen = []

    def work(c):
        seen.append(path.with_name("q.db-wal").stat().st_size)
        return put(2)(c)

    one.write(work, durable=True)
    assert seen == [0]
    assert one.read(values) == [1, 2]


def test_as_long_as_the_log_cannot_be_emptied_nothing_durable_is_accepted(one, disk, path):
    one.write(put(0))
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
    disk.failing = True
    with pytest.raises(DiskFault):
        one.write(put(1), durable=True)
    disk.failing = False
    with pytest.raises(DiskFault, match="cannot be emptied yet"):
        one.write(put(2), durable=True)
    one.write(put(3))  # what need not be durable goes on
    reader.execute("COMMIT")
    reader.close()
    one.write(put(4), durable=True)
    assert one.read(values) == [0, 1, 3, 4]


# -- closing while a flush is wanted ----------------------------------------------------------------


def test_closing_flushes_what_another_thread_has_committed(path, disk):
    one = Database(path)
    one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    disk.open.clear()
    publishing = in_thread(lambda: one.write(put(1), durable=True))
    wait_until(lambda: disk.waiting)
    second = in_thread(lambda: one.write(put(2), durable=True))
    wait_until(lambda: one._flushing.commits == 3)
    closing = in_thread(one.close)
    wait_until(lambda: is_taken(one._write_mutex))  # it waits for the flush in flight
    disk.open.set()
    for thread in (publishing, second, closing):
        thread.join()
    assert publishing.answers == second.answers == [1]
    again = Database(path)
    assert again.read(values) == [1, 2]
    again.close()


@pytest.fixture
def between(path):
    """Give a Database with a thread that has committed durably and not come to its flush yet."""
    one = Database(path)
    one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    flush, go_on = one._flushing.flush, threading.Event()

    def late_flush(commit):
        assert go_on.wait(10)
        flush(commit)

    one._flushing.flush = late_flush
    publishing = in_thread(lambda: one.write(put(1), durable=True))
    wait_until(lambda: one._flushing.wanted)
    one.publishing, one.go_on = publishing, go_on.set
    yield one
    one.close()


@pytest.mark.parametrize("way", ["close", "fork"])
def test_closing_flushes_for_a_thread_that_has_only_committed(between, disk, way):
    if way == "close":
        between.close()
    else:
        between.before_fork()
        between.after_fork_in_parent()
    assert len(disk.flushed) == 1
    between.go_on()
    between.publishing.join()
    assert between.publishing.answers == [1]
    assert len(disk.flushed) == 1


@pytest.mark.parametrize("way", ["close", "fork"])
def test_a_flush_that_fails_while_closing_is_told_to_who_waits_for_it(between, disk, way):
    disk.failing = True
    if way == "close":
        between.close()
    else:
        between.before_fork()
        between.after_fork_in_parent()
    disk.failing = False
    between.go_on()
    between.publishing.join()
    assert isinstance(between.publishing.answers[0], DiskFault)


def test_a_store_that_could_not_be_closed_in_time_goes_on_working(one, disk, path):
    """Its log's descriptor must not be closed with a connection that stays open."""
    other = Database(path)
    one._busy_timeout_s = 0.1
    one.write(put(1))

    def meanwhile(c):
        with pytest.raises(Exception, match="has held the writer lock"):
            one.close()
        return put(2)(c)

    other.write(meanwhile)
    one.write(put(3), durable=True)
    assert one.read(values) == [1, 2, 3]
    assert f"{path}-wal" in disk.flushed
    other.close()


def test_the_flushed_descriptor_is_that_of_the_log_in_use_after_reopening(one, disk, path):
    """SQLite removes the log with the last close and makes a new one."""
    for value in range(3):
        one.before_fork()
        one.after_fork_in_parent()
        assert not path.with_name("q.db-wal").exists()
        one.write(put(value), durable=True)
        assert os.fstat(one._held.log).st_ino == path.with_name("q.db-wal").stat().st_ino
    assert disk.flushed == [f"{path}-wal"] * 3


def test_every_acknowledged_publish_survives_the_death_of_all_processes(path):
    code = """
        import os, signal, sys, threading
        from sqlqueue_transport import NewMessage, Store
        store = Store(sys.argv[1])
        def publish():
            while True:
                (answer,) = store.publish([NewMessage(b"x", "default")])
                os.write(1, f"{answer.message_id}\\n".encode())
        for _ in range(2):
            threading.Thread(target=publish, daemon=True).start()
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    processes = [run_python(code, path) for _ in range(2)]
    for process in processes:
        for _ in range(20):
            process.stdout.readline()
    acknowledged = []
    for process in processes:
        process.kill()
        out, _ = process.communicate()
        acknowledged += [int(line) for line in out.splitlines(keepends=True) if line[-1] == "\n"]
    store = open_store(path)
    there = store.database.read(lambda c: {i for (i,) in c.execute("SELECT id FROM message")})
    assert set(acknowledged) <= there
    assert len(acknowledged) == len(set(acknowledged))
    close_store(store)
