"""A fork never costs a commit: everything is closed before it, or the child is refused."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sqlite3
import threading
import time

import pytest

from sqlqueue_transport import ForkedStore, NewMessage, Store, close_store, forking, open_store
from sqlqueue_transport.database import Database
from sqlqueue_transport.errors import SchemaChanged, SchemaTooNew
from sqlqueue_transport.migrations import SCHEMA_VERSION
from sqlqueue_transport.writer_lock import WriterLock
from tests.support import database_names, finish, in_forked_child, run_python, wait_until

C_FORK = """
    import ctypes, os, sys, traceback
    from pathlib import Path
    from sqlqueue_transport import ForkedStore, NewMessage, Store
    from sqlqueue_transport.database import Database

    def fork_of_c_code():
        # Not PyDLL: the interpreter must not hear of it, as with a library's own fork.
        return ctypes.CDLL(None).fork()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q.db"


@pytest.fixture
def one(path):
    """Give a Database with an empty table `t (v)`."""
    database = Database(path, busy_timeout_s=10.0)
    database.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
    yield database
    database.close()


def put(value):
    return lambda c: c.execute("INSERT INTO t VALUES (?)", (value,)).rowcount


def values(c):
    return sorted(value for (value,) in c.execute("SELECT v FROM t"))


class Child:
    """Run a function in a forked child; `text` is what it returned, or its exception."""

    def __init__(self, work):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                text = f"{work()}"
            except BaseException as error:  # noqa: BLE001 - nothing of pytest may run here
                text = f"{type(error).__name__}: {error}"
            os.write(writing, text.encode()[:60_000])
            os._exit(0)
        os.close(writing)
        self._reading = reading

    @property
    def text(self):
        found = b""
        poll = select.poll()  # select() knows no descriptor above 1023
        poll.register(self._reading, select.POLLIN)
        while poll.poll(30_000):
            if not (part := os.read(self._reading, 65536)):
                break
            found += part
        else:
            os.kill(self.pid, signal.SIGKILL)
            found = b"hung"
        os.close(self._reading)
        os.waitpid(self.pid, 0)
        return found.decode()


def integrity(path):
    connection = sqlite3.connect(path)
    answer = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.close()
    return answer


# -- the hooks --------------------------------------------------------------------------------------


def test_nothing_of_the_database_is_open_at_the_moment_of_a_fork(one, path):
    one.write(put(1))
    one.read(values)

    assert Child(lambda: database_names(path)).text == "[]"
    assert one.read(values) == [1]


def test_parent_and_child_see_each_others_commits_and_none_is_lost(one, path):
    """The trap: a child that inherits a connection holds no locks, and its commits vanish."""
    one.write(put(-1))
    one.read(values)

    def work():
        for value in range(100):
            one.write(put(value))
        return len(one.read(values)) > 100 or one.read(values)

    child = Child(work)
    for value in range(100, 200):
        one.write(put(value))
        one.read(values)
    assert child.text == "True"
    assert one.read(values) == list(range(-1, 200))
    one.close()
    again = Database(path)
    assert again.read(values) == list(range(-1, 200))
    again.close()
    assert integrity(path) == "ok"


def test_a_parent_that_closes_after_the_fork_takes_nothing_from_the_child(one, path):
    """The parent believes that it is the last, checkpoints and deletes the log."""
    go_reading, go_writing = os.pipe()

    def work():
        one.write(put(1))
        os.read(go_reading, 1)
        for value in range(2, 100):
            one.write(put(value))
        return "done"

    child = Child(work)
    one.write(put(0))
    wait_until(lambda: one.read(values) == [0, 1])
    one.close()
    os.write(go_writing, b"!")
    assert child.text == "done"
    os.close(go_reading)
    os.close(go_writing)
    again = Database(path)
    assert again.read(values) == list(range(100))
    again.close()


def test_many_children_at_once_lose_nothing(one):
    one.read(values)
    children = [
        Child(lambda n=n: [one.write(put(n * 100 + v), durable=v == 99) for v in range(100)])
        for n in range(4)
    ]
    for child in children:
        assert child.text.startswith("[1, 1")
    assert one.read(values) == list(range(400))


def test_a_child_of_a_child_works(one):
    one.write(put(1))

    def work():
        one.write(put(2))
        return Child(lambda: [one.write(put(3)), one.read(values)]).text

    assert Child(work).text == "[1, [1, 2, 3]]"
    assert one.read(values) == [1, 2, 3]


def test_forks_of_several_threads_that_write_lose_nothing_and_block_nobody(one):
    stop = threading.Event()
    written, failures = [], []

    def writer(number):
        value = number * 1_000_000
        try:
            while not stop.is_set():
                one.write(put(value), durable=value % 3 == 0)
                written.append(value)
                one.read(values)
                value += 1
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def forker(number):
        try:
            for turn in range(10):
                value = -1 - number * 100 - turn
                assert Child(lambda value=value: one.write(put(value))).text == "1"
                written.append(value)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    writers = [threading.Thread(target=writer, args=(number,)) for number in range(2)]
    forkers = [threading.Thread(target=forker, args=(number,)) for number in range(2)]
    for thread in (*writers, *forkers):
        thread.start()
    for thread in forkers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert failures == []
    assert one.read(values) == sorted(written)


def test_a_fork_waits_for_a_flush_of_another_thread(one, monkeypatch):
    """The connection must stay open until the flush of its log has returned."""
    real, may_go, flushing = os.fdatasync, threading.Event(), threading.Event()

    def slow(descriptor):
        flushing.set()
        assert may_go.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    publishing = threading.Thread(target=lambda: one.write(put(1), durable=True))
    publishing.start()
    assert flushing.wait(10)
    descriptor = one._held.log
    child = []
    forking_thread = threading.Thread(target=lambda: child.append(Child(lambda: "forked").text))
    forking_thread.start()
    wait_until(lambda: not one._write_mutex.acquire(blocking=False) or one._write_mutex.release())
    assert os.fstat(descriptor)
    assert child == []
    may_go.set()
    publishing.join()
    forking_thread.join()
    assert child == ["forked"]


def test_a_fork_while_another_thread_attaches_leaves_the_child_able_to(path):
    """A module's own lock, copied taken, would stop the child for ever."""
    from sqlqueue_transport import presence, stores

    store = open_store(path)
    with presence._opening, stores._mutex:
        forked = []

        def fork():
            forked.append(Child(lambda: child_opens(path)).text)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    assert forked == ["registered"]
    close_store(store)


def child_opens(path):
    signal.alarm(10)
    store = open_store(path)
    store.consumers.register(name="child", kind="child")
    return "registered"


def test_a_signal_handler_that_forks_inside_a_registration_does_not_hang(path):
    code = """
        import os, signal, sys
        from sqlqueue_transport import Store
        def fork(*_):
            if not os.fork():
                os._exit(0)
            os.wait()
            print("forked", flush=True)
        signal.alarm(20)
        signal.signal(signal.SIGUSR1, fork)
        store = Store(sys.argv[1])
        with store.consumers._mutex:
            os.kill(os.getpid(), signal.SIGUSR1)
        store.database.write(lambda c: os.kill(os.getpid(), signal.SIGUSR1))
        store.database.read(lambda c: os.kill(os.getpid(), signal.SIGUSR1))
        store.consumers.register(name="w", kind="worker")
        store.close()
        print("went on")
    """
    assert finish(run_python(code, path)) == "forked\nforked\nforked\nwent on\n"


def test_a_hook_that_was_interrupted_leaves_nothing_locked(one):
    """A signal handler that raises in the hook: Python prints it and forks all the same."""
    code = """
        import os, sys
        from pathlib import Path
        from sqlqueue_transport.database import Database
        one = Database(Path(sys.argv[1]))
        one.write(lambda c: c.execute("INSERT INTO t VALUES (1)").rowcount)
        real = Database._close_connections
        def interrupted(self):
            raise KeyboardInterrupt
        Database._close_connections = interrupted
        pid = os.fork()
        Database._close_connections = real
        if not pid:
            try:
                one.read(lambda c: None)
            except Exception as error:
                print(type(error).__name__, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        one.write(lambda c: c.execute("INSERT INTO t VALUES (2)").rowcount)
        one.close()
        print("went on")
    """
    assert finish(run_python(code, one.path)) == "ForkedStore\nwent on\n"
    assert one.read(values) == [1, 2]


# -- what cannot be made safe is refused ------------------------------------------------------------


def test_a_child_is_refused_when_the_parent_had_another_connection_open(one, path):
    one.write(put(1))
    foreign = sqlite3.connect(path)
    foreign.execute("SELECT * FROM t").fetchall()
    refusals = Child(
        lambda: [refused(lambda: one.write(put(2))), refused(lambda: one.read(values))]
    ).text
    assert refusals.count("had another SQLite connection to the file open while forking") == 2
    assert refusals.count("Open the queue after the fork instead") == 2
    foreign.close()
    one.write(put(3))
    assert one.read(values) == [1, 3]
    assert Child(lambda: one.read(values)).text == "[1, 3]"


def refused(work):
    try:
        return f"not refused: {work()}"
    except ForkedStore as error:
        return str(error)


def test_a_child_is_refused_even_when_only_it_opens_the_store(one, path):
    """The parent has no store of ours at all, just a connection of its own."""
    one.close()
    foreign = sqlite3.connect(path)
    foreign.execute("SELECT * FROM t").fetchall()
    assert "had another SQLite connection" in Child(lambda: refused(lambda: Store(path))).text
    foreign.close()
    assert Child(lambda: Store(path).look([])[1]).text == "None"


def test_a_child_is_refused_though_the_parent_knew_the_file_by_another_name(one, path):
    path.with_name("old.db").write_bytes(b"")
    one.close()
    foreign = sqlite3.connect(path)
    foreign.execute("SELECT * FROM t").fetchall()
    path.rename(path.with_name("moved.db"))
    path.with_name("q.db-wal").rename(path.with_name("moved.db-wal"))
    path.with_name("q.db-shm").rename(path.with_name("moved.db-shm"))
    moved = path.with_name("moved.db")
    assert "had another SQLite connection" in Child(lambda: refused(lambda: Store(moved))).text
    foreign.close()


def test_a_fork_inside_a_write_is_refused_to_the_child_and_the_parent_goes_on(one):
    children = []

    def work(c):
        put(1)(c)
        # The child leaves the transaction function as the parent does: it must not commit.
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            children.append((pid, reading, writing))
            put(2)(c)
        else:
            one_child.append(writing)

    one_child = []
    try:
        one.write(work)
    except ForkedStore as error:
        if not one_child:
            raise
        text = f"{error}|{refused(lambda: one.read(values))}|{refused(lambda: one.write(put(9)))}"
        os.write(one_child[0], text.encode())
        one.close()
        os._exit(0)
    ((pid, reading, writing),) = children
    os.close(writing)
    with os.fdopen(reading) as pipe:
        texts = pipe.read().split("|")
    os.waitpid(pid, 0)
    assert len(texts) == 3
    assert all("forked inside a transaction of this store" in text for text in texts)
    assert one.read(values) == [1, 2]
    one.write(put(3))
    assert one.read(values) == [1, 2, 3]
    assert Child(lambda: one.read(values)).text == "[1, 2, 3]"


def test_a_fork_inside_a_read_is_refused_to_the_child_and_the_parent_goes_on(one):
    one.write(put(1))
    pids = []

    def work(c):
        pids.append(os.fork())
        return values(c) if pids[0] else None

    try:
        answer = one.read(work)
    except ForkedStore:
        os._exit(7)
    if not pids[0]:
        os._exit(0)
    assert answer == [1]
    _, status = os.waitpid(pids[0], 0)
    assert os.waitstatus_to_exitcode(status) == 7
    one.write(put(2))
    assert one.read(values) == [1, 2]


def test_the_child_of_a_refused_child_is_refused_too(one):
    def fork_again(c):
        if pid := os.fork():
            return pid
        os.write(writing, refused(lambda: one.write(put(1))).encode())
        os.write(writing, Child(lambda: refused(lambda: one.write(put(2)))).text.encode())
        os._exit(0)

    reading, writing = os.pipe()
    pid = one.write(fork_again)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read().count("forked inside a transaction") == 2
    os.waitpid(pid, 0)
    assert one.read(values) == []


def test_a_child_that_ends_in_order_harms_nothing_its_parent_is_doing(path):
    """At its exit Python would close the inherited connection, in the middle of our write."""
    code = """
        import os, sys
        from pathlib import Path
        from sqlqueue_transport import ForkedStore
        from sqlqueue_transport.database import Database
        one = Database(Path(sys.argv[1]))
        one.write(lambda c: c.execute("CREATE TABLE t (v)").rowcount)
        one.write(lambda c: c.execute("PRAGMA cache_size = 5").fetchone())  # spills early
        def work(c):
            for value in range(3000):
                c.execute("INSERT INTO t VALUES (?)", (str(value) + "x" * 3000,))
                if value == 1500 and not os.fork():
                    sys.exit()  # not os._exit: with everything Python does at its end
                if value == 1500:
                    os.wait()
        try:
            one.write(work)
        finally:
            print(os.getpid() == int(sys.argv[2] or os.getpid()), flush=True)
        print(one.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone()))
        print(one.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()))
        one.close()
    """
    printed = finish(run_python(code, path, ""))
    assert printed.endswith("(3000,)\n('ok',)\n")
    assert integrity(path) == "ok"


@pytest.mark.parametrize("operation", ["write", "read", "close", "open another"])
def test_a_fork_of_c_code_is_refused(one, operation):
    code = (
        C_FORK
        + """
    path, operation = Path(sys.argv[1]), sys.argv[2]
    one = Database(path, busy_timeout_s=5.0)
    put = lambda c: c.execute("INSERT INTO t VALUES (1)").rowcount
    count = lambda c: c.execute("SELECT count(*) FROM t").fetchone()
    one.write(put)
    one.read(count)
    pid = fork_of_c_code()
    if not pid:
        try:
            if operation == "write":
                one.write(put)
            elif operation == "read":
                one.read(count)
            elif operation == "close":
                one.close()
                os.write(1, b"closed without touching it")
            else:
                Database(path).write(put)
        except ForkedStore as error:
            os.write(1, str(error).encode())
        except BaseException:
            os.write(1, traceback.format_exc().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    one.write(put)
    os.write(1, f"; parent has {one.read(count)}".encode())
    one.close()
    """
    )
    printed = finish(run_python(code, one.path, operation))
    expected = {
        "close": "closed without touching it",
        "open another": "had another SQLite connection to the file open",
    }.get(operation, "forked without Python's fork hooks")
    assert expected in printed
    assert printed.endswith("; parent has (2,)")
    assert one.read(values) == [1, 1]


def test_a_fork_of_c_code_while_another_thread_writes_is_refused_at_once(one):
    """The mutex was copied taken, and its owner does not exist in the child."""
    code = (
        C_FORK
        + """
    import threading, time
    one = Database(Path(sys.argv[1]), busy_timeout_s=30.0)
    inside, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: one.write(lambda c: (inside.set(), go.wait())))
    thread.start()
    inside.wait()
    pid = fork_of_c_code()
    if not pid:
        began = time.monotonic()
        try:
            one.write(lambda c: None)
        except ForkedStore as error:
            os.write(1, f"{error} {time.monotonic() - began < 1}".encode())
        one.close()
        os._exit(0)
    os.waitpid(pid, 0)
    go.set()
    thread.join()
    one.close()
    """
    )
    assert finish(run_python(code, one.path)).endswith("after the fork instead True")


# -- locks across a fork ----------------------------------------------------------------------------


def test_a_childs_unlock_does_not_free_the_parents_writer_lock(one, path):
    """A flock belongs to the open file, which a fork shares."""
    one.write(put(1))
    outside = WriterLock(path.with_name("q.db-run") / "writer.lock")

    def work(c):
        put(2)(c)
        pid = os.fork()
        if not pid:
            try:
                one.close()
                Store(path, busy_timeout_s=0.1)
            except BaseException:  # noqa: BLE001
                pass
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(Exception, match="has held the writer lock"):
            outside.take(time.monotonic() + 0.05)

    one.write(work)
    outside.take(time.monotonic() + 5)
    outside.close()


def test_a_child_forked_in_a_transaction_does_not_keep_the_lock_when_the_parent_dies(path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from sqlqueue_transport.database import Database
        one = Database(Path(sys.argv[1]))
        def work(c):
            pid = os.fork()
            if not pid:
                os.setsid()
                print(os.getpid(), flush=True)
                signal.pause()
                os._exit(0)
            signal.pause()
        one.write(work)
    """
    process = run_python(code, path)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        # The child was refused, but it has closed the lock's file, which it shares.
        other = Database(path, busy_timeout_s=2.0)
        other.open()
        other.close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_presence_and_slots_are_the_parents_alone(path):
    store = open_store(path)
    worker_id = store.consumers.register(name="parent", kind="worker")

    def work():
        mine = store.consumers.register(name="child", kind="child")
        store.publish([NewMessage(b"x", "default")])
        return [mine != worker_id, len(store.claim(["default"], lease_s=60).deliveries)]

    assert Child(work).text == "[True, 1]"
    assert store.consumers.worker_id == worker_id
    assert [w.name for w, _ in store.consumers.alive()] == ["parent"]
    (lost,) = store.consumers.sweep()
    assert lost.worker == "child"
    close_store(store)


# -- the registry of hooks --------------------------------------------------------------------------


def test_hooks_go_by_their_order_and_back(monkeypatch):
    calls = []

    class One:
        def __init__(self, order):
            self.fork_order = order

        def before_fork(self):
            calls.append(("before", self.fork_order))

        def after_fork_in_parent(self):
            calls.append(("parent", self.fork_order))

        def after_fork_in_child(self):
            calls.append(("child", self.fork_order))

    ours = [One(order) for order in (102, 100, 101)]
    for one in ours:
        forking.guard(one)
    text = Child(lambda: calls).text
    for one in ours:
        forking.forget(one)
    before = [("before", 100), ("before", 101), ("before", 102)]
    assert text == str([*before, ("child", 102), ("child", 101), ("child", 100)])
    assert calls == [*before, ("parent", 102), ("parent", 101), ("parent", 100)]


def test_a_child_is_not_hindered_by_locks_of_threads_it_does_not_have(path):
    """Another thread of the parent held them at the moment of the fork."""
    locked, may_go = threading.Event(), threading.Event()

    def hold():
        with forking._guarded_mutex:
            locked.set()
            may_go.wait(20)

    class Last:
        fork_order = 1000

        def before_fork(self):
            threading.Thread(target=hold).start()
            assert locked.wait(10)

        def after_fork_in_parent(self):
            pass

        after_fork_in_child = after_fork_in_parent

    def work():
        signal.alarm(10)
        forking.forget(last)
        grandchildren = []
        thread = threading.Thread(target=lambda: grandchildren.append(Child(lambda: "fine").text))
        thread.start()
        thread.join()
        return grandchildren

    last = Last()
    forking.guard(last)
    children = []

    def fork():
        children.append(Child(work))

    thread = threading.Thread(target=fork)
    thread.start()
    assert locked.wait(10)
    may_go.set()
    thread.join()
    forking.forget(last)
    assert children[0].text == "['fine']"


def test_a_hook_that_raises_does_not_keep_the_others_from_going_on():
    code = """
        import os
        from sqlqueue_transport import forking
        class One:
            def __init__(self, order, name):
                self.fork_order, self.name = order, name
            def before_fork(self):
                pass
            def after_fork_in_parent(self):
                os.write(1, self.name.encode())
                if self.name == "bad":
                    raise ValueError
            after_fork_in_child = after_fork_in_parent
        ours = [One(1, "first"), One(2, "bad"), One(3, "last")]
        for one in ours:
            forking.guard(one)
        for _ in range(2):
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
    """
    printed = finish(run_python(code))
    assert (
        sorted(re.findall("first|bad|last", printed)) == ["bad"] * 4 + ["first"] * 4 + ["last"] * 4
    )


def test_a_file_that_was_migrated_while_a_fork_had_it_closed_was_migrated_under_its_owner(tmp_path):
    """Not a file of newer software that somebody gives it: who had it open has to end, and not wait."""
    store = Store(tmp_path / "q.db")
    assert in_forked_child(lambda: None)  # closes, and opens anew when it is used
    newer = f"PRAGMA user_version = {SCHEMA_VERSION + 1}"
    with contextlib.closing(sqlite3.connect(tmp_path / "q.db")) as connection:
        connection.execute(newer)
    with pytest.raises(SchemaChanged):
        store.database.write(lambda _: None)
    with pytest.raises(SchemaTooNew):
        Store(tmp_path / "q.db")
    store.database.close()
