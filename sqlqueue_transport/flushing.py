"""Make commits durable: our own flush of the log, shared by threads and never retried into success.

A durable commit is WAL at synchronous=NORMAL, then an fdatasync of the `-wal` file after the writer
lock is given up, so that processes share flushes. The flush begins after the COMMIT, the
descriptor belongs to the log of the connection that committed, and that connection stays open
until the flush has returned. Each broken condition lost data in the same test.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import DiskFault
from sqlqueue_transport.mutexes import acquire

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from sqlqueue_transport.handles import Handles


class Flushing:
    """Number the commits of this process and know which of them are on the disk."""

    def __init__(self, path: Path, held: Handles) -> None:
        """Start with nothing committed. `path` is the database's."""
        self._path = path
        self._held = held
        self.commits = 0
        self._flushed = 0
        self.wanted = 0  # the newest commit that somebody will come to flush
        self._lost: list[range] = []
        self.reset()

    def reset(self) -> None:
        """Take a new mutex: at the start, and in a forked child."""
        self.mutex = threading.RLock()

    @property
    def is_owed(self) -> bool:
        """Say whether somebody committed durably and has not come to the flush yet."""
        return self.wanted > self._flushed

    def committed(self, *, durable: bool) -> int:
        """Count a commit just made, under the writer lock; return its number."""
        self.commits += 1
        if durable:
            self.wanted = self.commits
        return self.commits

    def flush(self, commit: int) -> None:
        """Return once commit number `commit` of this process is on the disk.

        Threads share flushes: who waited behind one that *began* after his own commit is done.
        A failed flush means "not published" and is never retried into success: Linux reports
        the error once and then calls the lost pages clean (fsync(2), "errseq"). So it fails for
        every commit that was to be in it, and for those after it, which a log with a hole in it
        would hide from recovery, until the log has been emptied.
        """
        held: list[bool] = []
        try:
            acquire(self.mutex, held)
            if any(commit in lost for lost in self._lost):
                raise self._fault("in another thread")
            if self._flushed >= commit:
                return
            if self._held.lock is not None and self._held.lock.log_is_suspect:
                raise self._fault("in another process")
            self.flush_now()
        finally:
            if held:
                self.mutex.release()

    def flush_now(self) -> None:
        """Flush the log; the caller holds the flush mutex."""
        target, descriptor = self.commits, self._held.log
        try:
            if descriptor is None:
                raise OSError(errno.EBADF, "the log was closed first")  # noqa: TRY301
            _sync_data(descriptor)
        except OSError as error:
            if self._held.lock is not None:
                self._held.lock.log_is_suspect = True
            self._lost.append(range(self._flushed + 1, self.commits + 1))
            raise self._fault(str(error.strerror)) from error
        self._flushed = target

    def _fault(self, why: str) -> DiskFault:
        return DiskFault(
            f"flushing {self._path}-wal failed ({why}): the message may or may not be stored; "
            "publish it again with the same job_id"
        )

    def empty_suspect_log(self, connection: sqlite3.Connection) -> None:
        """Move everything out of a log of which a flush failed, or refuse.

        Frames after a lost one would be unreadable after a power cut even if they were flushed,
        because a log is only valid up to its first bad frame.
        """
        lock = self._held.lock
        if lock is None or not lock.log_is_suspect:
            return
        with self.mutex:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                message = f"{self._path}: an earlier flush failed and the log cannot be emptied yet"
                raise DiskFault(message)
            self._lost.append(range(self._flushed + 1, self.commits + 1))
            lock.log_is_suspect = False


def _sync_data(descriptor: int) -> None:
    if sys.platform == "darwin":  # pragma: no cover - fsync there stops at the drive's cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)
