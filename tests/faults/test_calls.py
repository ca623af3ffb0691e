"""Single calls to the disk that fail in a real process, and what becomes of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.faults.injecting import Call, File, Injector
from tests.support import finish, read_line, run_python, say

pytestmark = pytest.mark.debian("cc")

PUBLISH = """
    import sys
    from sqlqueue_transport import NewMessage, Store, TransportError
    store = None
    for line in sys.stdin:
        try:
            store = store or Store(sys.argv[1])
            print(store.publish([NewMessage(b"x", "q")])[0].message_id, flush=True)
        except TransportError as error:
            print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Injector:
    (tmp_path / "queue").mkdir(mode=0o700)
    return Injector(tmp_path / "queue", tmp_path / "control")


@pytest.mark.parametrize("file", [File.DATABASE, File.SHARED_MEMORY])
def test_a_file_that_could_be_opened_for_reading_only_is_opened_anew(
    disk: Injector, tmp_path: Path, file: File
) -> None:
    """SQLite falls back to reading, and would never look again: a process that cannot write for life."""
    path = tmp_path / "queue" / "queue.db"
    finish(run_python("import sys; from sqlqueue_transport import Store; Store(sys.argv[1])", path))
    process = run_python(PUBLISH, path, env=disk.environment)
    disk.fail(Call.OPEN, file, error=errno.EIO, count=1)
    told = []
    while not told or not told[-1].isdigit():
        say(process)
        told.append(read_line(process))
        assert len(told) < 5, told
    assert disk.failed == 1
    print(told)


@pytest.mark.parametrize(
    ("calls", "files", "error", "words"),
    [
        (Call.WRITE, File.LOG, errno.ENOSPC, "disk is full; nothing was changed; free space"),
        (Call.WRITE, File.LOG, errno.EIO, "disk I/O error; the kernel's log"),
        (Call.SYNC, File.LOG, errno.EIO, "the message may or may not be stored; publish it again"),
    ],
    ids=["full", "write", "flush"],
)
def test_a_publisher_is_told_which_file_what_and_what_to_do_and_goes_on_afterwards(
    disk: Injector, tmp_path: Path, calls: Call, files: File, error: int, words: str
) -> None:
    path = tmp_path / "queue" / "queue.db"
    process = run_python(PUBLISH, path, env=disk.environment)
    say(process)
    assert read_line(process) == "1"
    with disk.failing(calls, files, error=error):
        say(process)
        said = read_line(process)
        assert said.startswith(f"DiskFault {path}") or f"flushing {path}-wal failed" in said
        assert words in said
    say(process)
    assert read_line(process).isdigit()


def test_a_flush_that_failed_is_not_retried_into_success(disk: Injector, tmp_path: Path) -> None:
    """The kernel reports it once, and then calls the pages it has lost clean: the log is left behind.

    As long as the database cannot be written either, nothing is acknowledged.
    """
    path = tmp_path / "queue" / "queue.db"
    log = path.with_name("queue.db-wal")
    process = run_python(PUBLISH, path, env=disk.environment)
    say(process)
    assert read_line(process) == "1"
    with disk.failing(Call.SYNC, File.LOG, error=errno.EIO):
        say(process)
        assert "may or may not be stored" in read_line(process)
    grown = log.stat().st_size
    with disk.failing(Call.WRITE, File.DATABASE, error=errno.EIO):
        for _ in range(3):
            say(process)
            assert read_line(process).startswith("DiskFault")
    assert log.stat().st_size == grown
    say(process)
    assert read_line(process).isdigit()
    # Emptied first, so that what was acknowledged just now does not lie behind the hole.
    assert log.stat().st_size < grown
