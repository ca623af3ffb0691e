"""A database that was replaced while its log stayed: SQLite would write the log over the new one."""

from __future__ import annotations

import shutil

import pytest

from sqlqueue_transport import FileReplaced, NewMessage, Store, clock, files
from tests.support import finish, run_python

DIES = """
    import os, sys
    from sqlqueue_transport import NewMessage, Store
    Store(sys.argv[1]).publish([NewMessage(b"old", "q")])
    os._exit(0)  # and so the log stays
"""


@pytest.fixture
def path(tmp_path):
    """Give a queue in whose place another one was put; the log of the first is still there."""
    path, other = tmp_path / "q.db", tmp_path / "other.db"
    finish(run_python(DIES, path))
    store = Store(other)
    store.publish([NewMessage(b"new", "q")] * 3)
    store.close()
    other.rename(path)
    assert path.with_name("q.db-wal").stat().st_size
    return path


def bodies(store):
    return [
        body for (body,) in store.database.read(lambda c: [*c.execute("SELECT body FROM message")])
    ]


@pytest.mark.parametrize("read_only", [False, True])
def test_it_is_refused_and_nothing_of_it_is_changed(path, read_only):
    before = path.read_bytes()
    with pytest.raises(
        FileReplaced,
        match=r"q\.db is not the file that its log .*q\.db-wal belongs.*acknowledged.*aside \(rename",
    ):
        Store(path, create=False, read_only=read_only)
    assert path.read_bytes() == before
    # As it says, what to do:
    aside = path.with_name("aside")
    aside.mkdir(mode=0o700)
    for end in ("-wal", "-shm"):
        path.with_name(f"q.db{end}").rename(aside / f"q.db{end}")
    store = Store(path)
    assert bodies(store) == [b"new"] * 3
    store.close()


def test_a_backup_copied_to_where_the_file_was_removed_is_refused(path, tmp_path):
    """It mostly gets the number of the one that was removed."""
    mine, backup = tmp_path / "mine.db", tmp_path / "backup.db"
    finish(run_python(DIES, mine))
    Store(mine).close()
    shutil.copy(mine, backup)
    finish(run_python(DIES, mine))
    before, met = mine.stat().st_ino, False
    for _ in range(20):
        mine.unlink()
        shutil.copy(backup, mine)
        mine.chmod(0o600)
        met = met or mine.stat().st_ino == before
        with pytest.raises(FileReplaced, match="its log"):
            Store(mine, create=False)
    if files.filesystem_of(tmp_path) == "ext4":
        assert met


def test_a_log_that_belongs_to_the_file_is_replayed_as_ever(path):
    finish(run_python(DIES.replace('b"old"', 'b"more"'), path.with_name("mine.db")))
    store = Store(path.with_name("mine.db"))
    assert bodies(store) == [b"more"]
    store.close()


def test_a_queue_moved_with_all_that_belongs_to_it_opens(path, tmp_path):
    (tmp_path / "there").mkdir(mode=0o700)
    finish(run_python(DIES, tmp_path / "mine.db"))
    for end in ("", "-wal", "-shm", "-run"):
        (tmp_path / f"mine.db{end}").rename(tmp_path / "there" / f"mine.db{end}")
    store = Store(tmp_path / "there" / "mine.db")
    assert bodies(store) == [b"old"]
    store.close()


@pytest.mark.parametrize("ends", [("", "-wal"), ("", "-wal", "-shm", "-run")])
def test_a_copy_of_file_and_log_opens_with_and_without_what_lies_beside_them(path, tmp_path, ends):
    """Copied to another disk both have other inodes. The docs say to leave the directory behind."""
    finish(run_python(DIES, tmp_path / "mine.db"))
    (tmp_path / "there").mkdir(mode=0o700)
    for end in ends:
        there = tmp_path / "there" / f"mine.db{end}"
        if end == "-run":
            there.mkdir(mode=0o700)
            shutil.copy(tmp_path / "mine.db-run" / "writer.lock", there / "writer.lock")
            there /= "writer.lock"
        else:
            shutil.copy(tmp_path / f"mine.db{end}", there)
        there.chmod(0o600)
    store = Store(tmp_path / "there" / "mine.db")
    assert bodies(store) == [b"old"]
    store.close()


def test_in_another_boot_nobody_knows_and_so_nobody_is_refused(path, monkeypatch):
    """Some filesystems number their files anew at each mount."""
    monkeypatch.setattr(clock.SystemClock, "boot", lambda _: "the next one")
    Store(path).close()
