"""One writer at a time, waiting is bounded, whoever holds the lock is named, nobody starves."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time

import pytest

from sqlqueue_transport import Busy, writer_lock
from sqlqueue_transport.database import Database
from sqlqueue_transport.writer_lock import WriterLock, read_holder
from tests.support import finish, kill, read_line, run_python, say, wait_until

HOLD = """
    import sys, time
    from pathlib import Path
    from sqlqueue_transport.writer_lock import WriterLock
    lock = WriterLock(Path(sys.argv[1]))
    lock.take(time.monotonic() + 10)
    print("held", flush=True)
    sys.stdin.readline()
    lock.drop()
    print("dropped", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "writer.lock"


@pytest.fixture
def lock(path):
    one = WriterLock(path)
    yield one
    one.close()


@pytest.fixture
def holder(path):
    """Give another process that holds the lock until it is told a line."""
    process = run_python(HOLD, path)
    assert read_line(process) == "held"
    return process


def soon(seconds=5.0):
    return time.monotonic() + seconds


def test_two_processes_exclude_each_other(lock, holder):
    with pytest.raises(Busy):
        lock.take(soon(0.05))
    say(holder)
    assert read_line(holder) == "dropped"
    lock.take(soon())


def test_a_waiter_gets_the_lock_when_it_is_dropped(lock, holder):
    threading.Timer(0.2, say, [holder]).start()
    began_s = time.monotonic()
    lock.take(soon())
    assert time.monotonic() - began_s < 2.0
    assert read_line(holder) == "dropped"


def test_waiting_is_bounded_and_the_error_names_the_holder(lock, holder):
    began_s = time.monotonic()
    with pytest.raises(
        Busy, match=rf"process {holder.pid} has held the writer lock .* for \d"
    ) as e:
        lock.take(soon(0.2))
    assert 0.2 <= time.monotonic() - began_s < 1.0
    assert e.value.holder == holder.pid


def test_a_deadline_that_is_over_still_allows_one_look(lock):
    lock.take(time.monotonic() - 1)
    lock.drop()


def test_a_stopped_holder_is_named_with_the_way_out(lock, holder):
    holder.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Busy, match=f"kill -CONT {holder.pid}"):
            lock.take(soon(0.1))
    finally:
        holder.send_signal(signal.SIGCONT)


def test_a_killed_holder_frees_the_lock_at_once(lock, holder):
    kill(holder)
    lock.take(time.monotonic())


def test_the_holder_can_be_read_without_disturbing_it(path, lock, holder):
    found = read_holder(path)
    assert found.pid == holder.pid
    assert abs(time.monotonic() - found.since_s) < 60
    with pytest.raises(Busy):
        lock.take(soon(0.02))
    say(holder)
    read_line(holder)
    assert read_holder(path) is None


TAKES_IT_AGAIN_AND_AGAIN = """
    import sys, time
    from pathlib import Path
    from sqlqueue_transport.writer_lock import WriterLock
    lock = WriterLock(Path(sys.argv[1]))
    print(flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        lock.take(end)
"""


def test_a_holder_is_never_seen_with_a_note_of_nobody(path):
    """Who is seen to hold it since long ago is killed by its supervisor."""
    began_ns = time.monotonic_ns()
    process = run_python(TAKES_IT_AGAIN_AND_AGAIN, path)
    read_line(process)
    wait_until(lambda: read_holder(path), what="the first time")
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(200_000):
        pid, since_ns = writer_lock._NOTE.unpack(os.pread(descriptor, writer_lock._NOTE.size, 0))
        assert pid == process.pid
        assert since_ns > began_ns
    os.close(descriptor)


def test_who_has_the_lock_is_told_by_the_kernel_and_not_by_an_old_note(path, lock):
    lock.take(soon())
    lock.drop()
    stopped = run_python(
        """
        import fcntl, os, sys
        fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
        print(flush=True)
        sys.stdin.readline()
        """,
        path,
    )
    stopped.stdout.readline()
    assert read_holder(path) == writer_lock.Holder(stopped.pid, None)


def test_reading_the_holder_does_not_weaken_a_lock_of_our_own(path, lock):
    """A second flock on the same open file would turn the exclusive lock into a shared one."""
    lock.take(soon())
    assert read_holder(path).pid == os.getpid()
    other = WriterLock(path)
    with pytest.raises(Busy):
        other.take(soon(0.02))
    other.close()


def test_reading_the_holder_makes_no_file(tmp_path):
    assert read_holder(tmp_path / "nothing.lock") is None
    assert list(tmp_path.iterdir()) == []


def test_two_open_files_of_one_process_exclude_each_other(path, lock):
    other = WriterLock(path)
    lock.take(soon())
    with pytest.raises(Busy):
        other.take(soon(0.02))
    lock.drop()
    other.take(soon())
    other.close()


def test_dropping_what_is_not_held_is_harmless(lock):
    lock.drop()
    lock.drop()


def test_closing_frees_the_lock(path, lock):
    other = WriterLock(path)
    other.take(soon())
    other.close()
    lock.take(time.monotonic())


def test_a_link_in_place_of_the_lock_is_refused(tmp_path):
    (tmp_path / "elsewhere").touch(mode=0o600)
    (tmp_path / "writer.lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        WriterLock(tmp_path / "writer.lock")


# -- threads: a flock does not tell them apart, the mutex does ----------------------------------------


def test_threads_of_one_process_exclude_one_another(tmp_path):
    one = Database(tmp_path / "q.db")
    one.open()
    inside, most = [], []

    def work(_):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0)  # invite the others
        inside.pop()

    threads = [
        threading.Thread(target=lambda: [one.write(work) for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 800
    assert max(most) == 1
    one.close()


def test_a_thread_waiting_for_another_is_busy_at_its_bound(tmp_path):
    one = Database(tmp_path / "q.db", busy_timeout_s=0.2)
    inside, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: one.write(lambda _: (inside.set(), go.wait(10))))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(Busy, match="other threads of this process") as caught:
        one.write(lambda _: None)
    assert caught.value.holder == os.getpid()
    go.set()
    thread.join()
    one.write(lambda _: None)
    one.close()


# -- fairness -----------------------------------------------------------------------------------------


def test_who_has_waited_longest_is_let_pass(path, lock, monkeypatch):
    """As long as it goes on asking; a waiter that was killed or stopped holds up nobody."""
    monkeypatch.setattr(writer_lock, "_PATIENCE_NS", 1_000_000)
    monkeypatch.setattr(writer_lock, "_FORGOTTEN_NS", 50_000_000)
    now_ns = time.monotonic_ns()
    writer_lock._WAITER.pack_into(lock._memory, writer_lock._WAITER_AT, now_ns - 10_000_000, now_ns)
    began_s = time.monotonic()
    lock.take(soon())  # it is free all the time
    assert 0.03 < time.monotonic() - began_s < 2.0
    lock.drop()
    began_s = time.monotonic()
    lock.take(soon())
    assert time.monotonic() - began_s < 0.03


def test_a_note_of_rubbish_holds_up_nobody(lock):
    for waiter in ((-1, -1), (2**62, 2**62), (0, 2**62), (2**62, 0)):
        writer_lock._WAITER.pack_into(lock._memory, writer_lock._WAITER_AT, *waiter)
        began_s = time.monotonic()
        lock.take(soon(5.0))
        lock.drop()
        assert time.monotonic() - began_s < 1.0


GREEDY = """
    import sys, time
    from pathlib import Path
    from sqlqueue_transport.writer_lock import WriterLock
    lock = WriterLock(Path(sys.argv[1]))
    print(flush=True)
    sys.stdin.readline()
    end = time.monotonic() + 1.0
    turns, worst = 0, 0.0
    while (began := time.monotonic()) < end:
        lock.take(began + 30)
        worst = max(worst, time.monotonic() - began)
        turns += 1
        until = time.perf_counter() + 0.0001
        while time.perf_counter() < until:
            pass
        lock.drop()
    print(turns, worst)
"""


def test_writers_that_want_the_lock_all_the_time_all_get_it(path):
    """Polling alone let some starve: a share of 0.3, and waits of a second."""
    processes = [run_python(GREEDY, path) for _ in range(4)]
    for process in processes:
        read_line(process)
    for process in processes:
        say(process)
    figures = [finish(process).split() for process in processes]
    turns = [int(count) for count, _ in figures]
    worst_s = max(float(worst) for _, worst in figures)
    print(f"share {min(turns) / max(turns):.2f}, worst wait {worst_s * 1000:.0f} ms")
    assert min(turns) > 20
    assert min(turns) / max(turns) > 0.2
    assert worst_s < 1.0


# -- what the lock file says of the log ---------------------------------------------------------------


def test_a_suspicion_of_the_log_is_seen_by_all_and_outlives_its_finder(path, lock):
    other = WriterLock(path)
    assert not other.log_is_suspect
    lock.log_is_suspect = True
    assert other.log_is_suspect
    other.close()
    code = """
        import sys
        from pathlib import Path
        from sqlqueue_transport.writer_lock import WriterLock
        lock = WriterLock(Path(sys.argv[1]))
        print(lock.log_is_suspect)
        lock.log_is_suspect = False
    """
    assert finish(run_python(code, path)) == "True\n"
    wait_until(lambda: not lock.log_is_suspect)


def test_a_childs_unlock_frees_the_parents_lock_and_so_a_child_only_closes(path, lock):
    """The trap itself, to show why `Database` never unlocks in a child."""
    lock.take(soon())
    outside = os.open(path, os.O_RDWR)
    if not (pid := os.fork()):
        lock.close()
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(BlockingIOError):
        fcntl.flock(outside, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not (pid := os.fork()):
        lock.drop()
        os._exit(0)
    os.waitpid(pid, 0)
    fcntl.flock(outside, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(outside)
