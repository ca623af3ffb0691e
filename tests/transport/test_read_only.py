"""A store that can only look: it writes nothing, makes nothing, waits for nobody, and sees it all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from sqlqueue_transport import migrations, presence
from sqlqueue_transport.errors import (
    CannotOpen,
    DatabaseEmpty,
    DatabaseMissing,
    FileReplaced,
    ForeignDatabase,
    ReadOnlyStore,
    SchemaTooNew,
    SchemaTooOld,
    UnsafeFile,
)
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.presence import PresenceFile
from sqlqueue_transport.pruning import Policy
from sqlqueue_transport.reading import JobFilter
from sqlqueue_transport.store import Store
from sqlqueue_transport.stores import close_store, open_store
from tests.support import database_names, in_forked_child, kill, read_line, run_python
from tests.transport.rows import LEASE_S, claim_one, ended, new, publish, put

OLD_FILE = Path(__file__).parent / "fixtures" / "schema-2.sql"


@pytest.fixture
def looking(store, clock):
    """Give a store that can only look at the file of the fixture `store`, with its clock."""
    opened = Store(store.path, clock=clock, read_only=True)
    yield opened
    opened.close()


def jobs(store: Store) -> list[int]:
    return [row.message_id for row in store.reading.jobs(JobFilter())]


def accesses(path: Path) -> set[int]:
    """Return how this process has a file open: os.O_RDONLY, os.O_RDWR."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if descriptor.readlink() == path:
                info = Path(f"/proc/self/fdinfo/{descriptor.name}").read_text()
                found.add(int(info.split("flags:")[1].split()[0], 8) & os.O_ACCMODE)
    return found


# -- seeing -------------------------------------------------------------------------------------------


def test_it_sees_what_others_commit_after_it_was_opened(store, looking):
    assert jobs(looking) == []
    first = publish(store)
    assert jobs(looking) == [first]
    delivery = claim_one(store)
    assert looking.reading.counts().states[State.PROCESSING] == 1
    store.settle([ended(delivery, Outcome.done())])
    assert looking.reading.counts().states[State.DONE] == 1
    assert [row.name for row in looking.reading.queues()] == []
    assert looking.schedules.rows() == []


def test_it_sees_who_is_alive_and_what_runs_in_this_process_and_in_others(store, looking):
    message_id = publish(store)
    other = run_python(
        """
        import sys
        from sqlqueue_transport import Store
        store = Store(sys.argv[1])
        store.consumers.register(name="other", kind="child", queues=["default"])
        print("registered")
        sys.stdin.readline()
        """,
        store.path,
    )
    read_line(other)
    # It counts on the machine's clock, so its own names the same boot.
    own_clock = Store(store.path, read_only=True)
    try:
        [(worker, entry)] = own_clock.consumers.alive()
        assert (worker.name, entry is not None) == ("other", True)
        kill(other)
        assert own_clock.consumers.alive() == []
    finally:
        own_clock.close()
    delivery = claim_one(store)
    store.consumers.note_start(0, message_id, delivery.delivery, 0)
    assert [worker.id for worker, _ in looking.consumers.alive()] == [store.consumers.worker_id]
    assert set(looking.consumers.running()) == {message_id}
    assert looking.reading.jobs(JobFilter())[0].is_started


def test_presence_is_mapped_for_reading_only(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    try:
        found = looking.consumers.presence
        assert not found.is_writable
        with pytest.raises(TypeError, match="readonly memory"):
            found.beat(0, 1)
        with pytest.raises(ReadOnlyStore):
            found.take(0)
        assert accesses(found.path) == {os.O_RDONLY}
    finally:
        looking.close()


def finish_a_writer(path: Path, **publishing: object) -> None:
    """Make a queue in another process, and let its last writer close it."""
    writer = run_python(
        """
        import sys
        from sqlqueue_transport import NewMessage, Store
        store = Store(sys.argv[1])
        store.publish([NewMessage(b"[]", "default", task="t", job_id="one")])
        store.close()
        """,
        path,
    )
    writer.communicate(timeout=30)
    assert writer.returncode == 0


def test_a_process_that_looks_first_and_writes_later_keeps_its_presence_lock(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    assert not looking.consumers.presence.is_writable
    writing = Store(path)
    worker_id = writing.consumers.register(name="me", kind="client")
    slot = writing.consumers._slot
    # It follows to the file that knows what this process itself has locked.
    assert looking.consumers.presence.is_writable
    assert [worker.id for worker, _ in looking.consumers.alive()] == [worker_id]
    looking.close()
    del looking
    other = run_python(
        """
        import sys
        from sqlqueue_transport.presence import PresenceFile
        from pathlib import Path
        print(PresenceFile.attach(Path(sys.argv[1])).standing(int(sys.argv[2])).value)
        """,
        writing.consumers.presence.path,
        slot,
    )
    assert read_line(other) == "owned"
    writing.close()


def test_without_a_presence_file_nobody_is_known_to_live_and_none_is_made(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    (tmp_path / "queue.db-run" / "presence").unlink()
    looking = Store(path, read_only=True)
    try:
        assert looking.consumers.running() == {}
        assert not (tmp_path / "queue.db-run" / "presence").exists()
        # A writer makes one, and registers: who looks follows.
        writing = Store(path)
        worker_id = writing.consumers.register(name="me", kind="client")
        assert [worker.id for worker, _ in looking.consumers.alive()] == [worker_id]
        writing.close()
    finally:
        looking.close()


def test_a_job_of_a_worker_of_a_lost_presence_file_is_held_by_somebody_unknown(store, clock):
    publish(store)
    claim_one(store)
    store.consumers.presence.path.unlink()
    looking = Store(store.path, clock=clock, read_only=True)
    try:
        [(worker, entry)] = looking.consumers.alive()
        assert (worker.id, entry) == (store.consumers.worker_id, None)
    finally:
        looking.close()


def test_several_threads_look_at_once_while_another_process_writes(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    writer = run_python(
        """
        import sys
        from sqlqueue_transport import NewMessage, Store
        store = Store(sys.argv[1])
        print("open")
        for _ in range(200):
            store.publish([NewMessage(b"[]", "default", task="t")], durable=False)
        store.close()
        print("done")
        """,
        path,
    )
    read_line(writer)
    looking = Store(path, read_only=True)
    problems: list[BaseException] = []

    def look() -> None:
        try:
            seen = 0
            while seen < 201:
                counts = looking.reading.counts().states[State.PENDING]
                assert counts >= seen
                seen = counts
                looking.reading.jobs(JobFilter(), limit=5)
                looking.consumers.alive()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            problems.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    looking.close()


# -- being unable to write ------------------------------------------------------------------------------


WRITES = {
    "publish": lambda store: store.publish([new()]),
    "claim": lambda store: store.claim(["default"], 1, lease_s=LEASE_S),
    "act": lambda store: store.acting.act(Event.CANCEL, [(1, State.PENDING)], actor="me"),
    "pause": lambda store: store.pausing.pause("default", actor="me"),
    "register": lambda store: store.consumers.register(name="me", kind="client"),
    "declare": lambda store: store.topology.declare_queue("other"),
    "purge": lambda store: store.topology.purge("default"),
    "extend": lambda store: store.extend([(1, 1)], 5),
    "empty the log": lambda store: store.database.empty_log(),
    "keep house": lambda store: store.housekeeping.turn(Policy(1, 1, 1)),
    "write": lambda store: store.database.write(lambda c: c.execute("DELETE FROM message")),
    "publish durably": lambda store: store.database.write(lambda _: None, durable=True),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_whatever_would_write_is_refused_with_a_clear_error(store, looking, write):
    message_id = publish(store)
    with pytest.raises(ReadOnlyStore, match="opened for reading only, so nothing was changed"):
        write(looking)
    assert jobs(looking) == [message_id]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM message",
        "UPDATE meta SET value = ''",
        "PRAGMA user_version = 9",
        "DROP VIEW jobs",
    ],
)
def test_sqlite_itself_refuses_what_would_slip_through(store, looking, statement):
    message_id = publish(store)
    with pytest.raises(Exception, match="readonly database"):
        looking.database.read(lambda c: c.execute(statement).fetchall())
    assert jobs(looking) == [message_id]


def test_it_opens_no_descriptor_of_the_database_that_can_write(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    try:
        assert accesses(path) == {os.O_RDONLY}
    finally:
        looking.close()


def test_closing_it_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    before = path.read_bytes()
    looking = Store(path, read_only=True)
    assert len(jobs(looking)) == 1
    looking.close()
    assert path.read_bytes() == before
    assert {one.name for one in (tmp_path / "queue.db-run").iterdir()} == {
        "presence",
        "writer.lock",
    }


# -- opening --------------------------------------------------------------------------------------------


def test_a_missing_file_is_not_made(tmp_path):
    with pytest.raises(DatabaseMissing):
        Store(tmp_path / "queue.db", read_only=True)
    with pytest.raises(DatabaseMissing):
        open_store(tmp_path / "queue.db", create=True, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_stays_empty(tmp_path):
    path = tmp_path / "queue.db"
    path.touch(0o600)
    for options in ({"read_only": True}, {"create": False}):
        with pytest.raises(DatabaseEmpty, match="new and empty"):
            Store(path, **options)
        assert path.stat().st_size == 0


def test_a_file_of_an_older_schema_is_not_migrated(tmp_path):
    path = tmp_path / "queue.db"
    old = sqlite3.connect(path)
    old.executescript(OLD_FILE.read_text())
    old.execute(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
    old.execute("PRAGMA user_version = 2")
    old.execute("PRAGMA journal_mode = WAL")
    old.close()
    path.chmod(0o600)
    with pytest.raises(SchemaTooOld, match=r"has schema version 2.*sqlqueue db migrate"):
        Store(path, read_only=True)
    Store(path).close()
    Store(path, read_only=True).close()


def test_newer_foreign_and_unsafe_files_are_refused_as_for_writing(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA user_version = 99")
    writer.close()
    with pytest.raises(SchemaTooNew):
        Store(path, read_only=True)
    foreign = tmp_path / "foreign.db"
    sqlite3.connect(foreign).executescript("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ForeignDatabase):
        Store(foreign, read_only=True)
    (tmp_path / "text.db").write_text("no database at all, by far" * 100)
    with pytest.raises(ForeignDatabase):
        Store(tmp_path / "text.db", read_only=True)
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(UnsafeFile):
        Store(tmp_path / "link.db", read_only=True)


def test_it_waits_for_no_writer(tmp_path):
    """Behind a stopped holder of the writer lock it opens and looks all the same."""
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    holder = run_python(
        """
        import os, signal, sys
        from sqlqueue_transport import Store
        store = Store(sys.argv[1])
        def work(connection):
            connection.execute("UPDATE meta SET value = value")
            print("inside", flush=True)
            sys.stdin.readline()
        store.database.write(work)
        """,
        path,
    )
    read_line(holder)
    os.kill(holder.pid, signal.SIGSTOP)
    looking = Store(path, read_only=True, busy_timeout_s=0.5)
    try:
        assert len(jobs(looking)) == 1
    finally:
        looking.close()
        kill(holder)


# -- what happens to the file meanwhile -------------------------------------------------------------------


def test_it_goes_on_when_the_last_writer_closes_and_another_comes(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    assert not Path(f"{path}-wal").exists()
    looking = Store(path, read_only=True)
    try:
        assert len(jobs(looking)) == 1
        for number in (2, 3):
            finish_a_writer(path)
            looking.database._watch.looked_at_s = 0.0  # look now, and not within a second
            assert len(jobs(looking)) == number
    finally:
        looking.close()


def test_the_log_that_it_leaves_behind_is_taken_up_by_the_next_writer(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    jobs(looking)
    finish_a_writer(path)
    looking.close()
    assert Path(f"{path}-wal").stat().st_size > 0  # nobody could empty it while somebody looked
    writing = Store(path)
    assert len(jobs(writing)) == 2
    writing.close()
    assert not Path(f"{path}-wal").exists()


@pytest.mark.parametrize("how", ["moved", "replaced"])
def test_it_notices_that_the_file_was_moved_or_replaced(tmp_path, how):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    try:
        jobs(looking)
        path.rename(tmp_path / "moved.db")
        if how == "replaced":
            shutil.copy(tmp_path / "moved.db", path)
        looking.database._watch.looked_at_s = 0.0
        with pytest.raises(FileReplaced):
            jobs(looking)
        with pytest.raises(FileReplaced):
            looking.database.look_at_path()
    finally:
        looking.close()


def test_opening_again_after_a_replacement_gives_the_new_file(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    first = open_store(path, read_only=True)
    assert open_store(path, read_only=True) is first
    close_store(first)
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    finish_a_writer(path)
    finish_a_writer(path)
    second = open_store(path, read_only=True)
    assert second is not first
    assert len(jobs(second)) == 2
    close_store(second)


def test_stores_for_looking_and_for_writing_are_two_in_one_process(tmp_path):
    path = tmp_path / "queue.db"
    writing = open_store(path)
    looking = open_store(path, read_only=True)
    assert looking is not writing
    put(writing, State.PENDING)
    assert len(jobs(looking)) == 1
    close_store(writing)
    with pytest.raises(CannotOpen, match="is closed"):
        publish(writing)
    assert len(jobs(looking)) == 1
    close_store(looking)
    assert database_names(path) == []


def test_a_fork_closes_it_before_and_parent_and_child_open_it_anew(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    try:
        assert len(jobs(looking)) == 1

        def in_child() -> None:
            assert database_names(path) == []
            assert len(jobs(looking)) == 1
            assert looking.consumers.alive() == []

        assert in_forked_child(in_child)
        assert len(jobs(looking)) == 1
    finally:
        looking.close()


def test_a_file_of_nobody_says_nothing(tmp_path):
    nobody = PresenceFile.nobody(tmp_path / "presence")
    assert list(nobody.entries()) == []
    assert not nobody.is_current
    assert nobody not in presence._open_files.values()


def test_a_connection_of_kombu_can_be_for_looking(tmp_path):
    import kombu

    path = tmp_path / "queue.db"
    finish_a_writer(path)
    with kombu.Connection(f"sqlqueue:///{path}?read_only=1") as connection:
        assert connection.default_channel.store.reading.counts().states[State.PENDING] == 1
        with pytest.raises(ReadOnlyStore):
            connection.SimpleQueue("default").put([])
        with pytest.raises(ReadOnlyStore):
            connection.default_channel.basic_get("default")


def test_a_thread_that_closes_waits_for_a_read_of_another_thread(tmp_path):
    path = tmp_path / "queue.db"
    finish_a_writer(path)
    looking = Store(path, read_only=True)
    reading, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> int:
        reading.set()
        go_on.wait(30)
        return int(connection.execute("SELECT count(*) FROM message").fetchone()[0])

    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.append(looking.database.read(work)))
    reader.start()
    assert reading.wait(30)
    closer = threading.Thread(target=looking.close)
    closer.start()
    go_on.set()
    reader.join(30)
    closer.join(30)
    assert seen == [1]
