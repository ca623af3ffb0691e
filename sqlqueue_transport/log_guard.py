"""Watch the write-ahead log: a program that reads for long makes it grow without a bound.

Commits copy the log back into the file every 1000 pages, as far as the oldest reader allows. When
nobody reads, the next commit after that begins the log anew and cuts its file back to
`opening.JOURNAL_SIZE_LIMIT_BYTES`. So a busy file needs no help but that the reader goes, and all
one can do is to name it. A file that nobody writes to would keep its large log, and is helped.

Nothing here opens the database, its log or its shared memory: closing any other descriptor of them
would drop SQLite's locks in this process. The log is measured by its name, and readers are found in
the kernel's list of locks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlqueue_transport import files
from sqlqueue_transport import statements as sql

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

LIMIT_BYTES = 64 << 20
_TOLD_EVERY_MS = 600_000
_TOLD = "log_grown"
# Read locks on the log are shared locks on these bytes of the shared memory file: WAL_READ_LOCK(0)
# to (4) in SQLite's wal.c, from WALINDEX_LOCK_OFFSET 120 on. Part of the file format
# (sqlite.org/walformat.html#wal_locks), so any version's readers show.
_READ_LOCKS = range(123, 128)


@dataclass(frozen=True, slots=True)
class LogGrown:
    """Say that the log stays large; `readers` are the processes that read just now, if known."""

    size_bytes: int
    readers: tuple[int, ...]


def size_of(database: Path) -> int:
    """Return the size of a database's log in bytes; 0 when there is none."""
    return files.size_of(Path(f"{database}-wal")) or 0


def readers_of(database: Path) -> tuple[int, ...]:
    """Return the processes that are inside a read transaction at this moment.

    Empty where that cannot be told: not on Linux, or in another pid namespace than the reader (the
    kernel then gives no process for the lock).
    """
    shared_memory = files.identity_of(Path(f"{database}-shm"))
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ()
    if shared_memory is None:
        return ()
    found = set()
    for line in lines:
        # "4: POSIX  ADVISORY  READ 1234 08:01:5678 124 124"; "->" marks one that waits
        fields = line.split()
        if fields[1] != "POSIX" or fields[3] != "READ":
            continue
        pid, where, start, end = fields[4:8]
        # By the inode alone: the device is named otherwise on some filesystems (btrfs).
        if int(where.rpartition(":")[2]) != shared_memory.inode or end == "EOF":
            continue
        if any(int(start) <= byte <= int(end) for byte in _READ_LOCKS) and int(pid) > 0:
            found.add(int(pid))
    return tuple(sorted(found))


class LogGuard:
    """Look at the log of one file, help where a commit would not, and tell now and then."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def look(self) -> LogGrown | None:
        """Empty a log that has grown, if readers allow; return what should be told of one that stays.

        A small log costs one system call. The same file is told of at most once in ten minutes,
        by whichever process. The writer lock is held for no longer than the next commit would hold
        it: that would copy the same pages.
        """
        path = self._database.path
        if size_of(path) <= LIMIT_BYTES:
            return None
        readers = readers_of(path)
        self._database.empty_log()
        size = size_of(path)
        if size <= LIMIT_BYTES or not self._may_tell():
            return None
        return LogGrown(size, readers)

    def _may_tell(self) -> bool:
        boot, now_ms = self._clock.boot(), self._clock.lease_ms()

        def work(connection: sqlite3.Connection) -> bool:
            found = connection.execute(sql.GET_META, {"key": _TOLD}).fetchone()
            if found is not None:
                told_boot, told_ms = found[0].split()
                if told_boot == boot and 0 <= now_ms - int(told_ms) < _TOLD_EVERY_MS:
                    return False
            connection.execute(sql.SET_META, {"key": _TOLD, "value": f"{boot} {now_ms}"})
            return True

        return self._database.write(work)
