"""Make commits durable: our own flush of the log, shared by threads and processes, never retried into success.

A durable commit is WAL at synchronous=NORMAL, then an fdatasync of the `-wal` file after the writer
lock is given up. One flush serves every commit that was in the log when it began, whoever made it:
two publishers flush each for itself, eight need half a flush each. What is safe:

* A flush counts for a commit only if it began after the COMMIT. So a commit is numbered after its
  COMMIT, under the writer lock, in memory that all processes share, and who flushes reads the number
  first. Joining a flush that is under way is not enough.
* It counts only if it succeeded, and for the log that it flushed: up to which number it came is told
  after fdatasync has returned, together with the log's identity. A flusher that is killed or stopped has
  told nothing.
* The descriptor belongs to the log of the connection that committed, and that connection stays open
  until the flush has returned: so the log is the same one, by its identity, for all who have it open.
* A failed flush is an error to all whose commits were to be in it, in every process, and to those after
  them, which a log with a hole in it would hide from recovery, until the log has been emptied. Linux
  reports the error once for each descriptor and then calls the lost pages clean (fsync(2), "errseq"). So
  a commit remembers when a flush had failed last, from before its transaction, and no other than a flush
  that had seen the same counts for it.

Each broken condition lost data in the same test (`tests/proofs`).

Nothing is held while one waits for another: that flushes are under way are notes that may be lost, torn
or late, and cost no more than a flush. One waits only for a flush that began after one's own commit, or
when two are under way that did not, and never for longer than a tenth of a second: then the disk is
asked by oneself.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import DiskFault
from sqlqueue_transport.mutexes import acquire
from sqlqueue_transport.shared_flushes import LONGEST_NS

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from sqlqueue_transport.handles import Handles
    from sqlqueue_transport.shared_flushes import SharedFlushes

# How long one sleeps between two looks at another's flush: a quarter of what one has waited.
_SHORTEST_PAUSE_NS, _LONGEST_PAUSE_NS = 30_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Commit:
    """Name a durable commit: its number among those of its log, and the failure that was the last before."""

    flushes: SharedFlushes
    number: int
    failed_ns: int


class Flushing:
    """Bring the commits of this process to the disk, or see that another has."""

    def __init__(self, path: Path, held: Handles) -> None:
        """Start with nothing committed. `path` is the database's."""
        self._path = path
        self._held = held
        self.reset()

    def reset(self) -> None:
        """Take a new mutex: at the start, and in a forked child."""
        self.mutex = threading.RLock()

    @property
    def is_owed(self) -> bool:
        """Say whether somebody committed durably and has not come to the flush yet."""
        flushes = self._held.flushes
        return flushes is not None and flushes.is_owed

    def prepare(self, connection: sqlite3.Connection) -> int:
        """Begin a durable transaction, under the writer lock; return what `committed` wants.

        Moves everything out of a log of which a flush has failed, or refuses: frames after a lost one
        would be unreadable after a power cut even if they were flushed, because a log is only valid up
        to its first bad frame.
        """
        lock, flushes = self._held.lock, self._held.flushes
        if lock is None or flushes is None:  # pragma: no cover - both are there while one writes
            raise self._fault("the log was closed first")
        failed_ns = flushes.failed_ns
        if lock.log_is_suspect:
            with self.mutex:
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    message = (
                        f"{self._path}: an earlier flush failed and the log cannot be emptied yet"
                    )
                    raise DiskFault(message)
                lock.log_is_suspect = False
        return failed_ns

    def committed(self, failed_ns: int) -> Commit:
        """Give a durable commit just made its number, under the writer lock."""
        flushes = self._held.flushes
        if flushes is None:  # pragma: no cover - as above
            raise self._fault("the log was closed first")
        return Commit(flushes, flushes.count(), failed_ns)

    def flush(self, commit: Commit) -> None:
        """Return once a commit is on the disk.

        Who waited behind a flush that *began* after his own commit is done. Raises DiskFault: then
        it may be there or not.
        """
        flushes = commit.flushes
        since_ns = time.monotonic_ns()
        held: list[bool] = []
        try:
            acquire(self.mutex, held)
            if flushes.knows(commit.number, commit.failed_ns):
                return
            self._refuse_lost(commit)
            while not flushes.has_reached(commit.number, commit.failed_ns):
                waited_ns = time.monotonic_ns() - since_ns
                if waited_ns >= LONGEST_NS or not flushes.should_wait(since_ns):
                    self.flush_now()
                    self._refuse_lost(commit)  # somebody else's may have failed meanwhile
                    return
                pause_ns = min(max(waited_ns // 4, _SHORTEST_PAUSE_NS), _LONGEST_PAUSE_NS)
                time.sleep(pause_ns / 1e9)
                self._refuse_lost(commit)
        finally:
            if held:
                self.mutex.release()

    def _refuse_lost(self, commit: Commit) -> None:
        """Raise DiskFault for a commit that no flush can save any more."""
        flushes, lock = self._held.flushes, self._held.lock
        if flushes is not commit.flushes or lock is None:
            raise self._fault("the log was closed first")
        if flushes.failed_ns != commit.failed_ns or lock.log_is_suspect:
            raise self._fault("in another thread or process")

    def flush_now(self) -> None:
        """Flush the log; the caller holds the flush mutex."""
        flushes, descriptor, lock = self._held.flushes, self._held.log, self._held.lock
        if flushes is None or descriptor is None or lock is None:
            raise self._fault("the log was closed first")
        place = flushes.begin()
        try:
            reached, failed_ns = flushes.commits, flushes.failed_ns
            _sync_data(descriptor)
        except OSError as error:
            lock.log_is_suspect = True
            flushes.fail()
            raise self._fault(str(error.strerror)) from error
        else:
            flushes.reach(reached, failed_ns)
        finally:
            flushes.end(place)

    def _fault(self, why: str) -> DiskFault:
        return DiskFault(
            f"flushing {self._path}-wal failed ({why}): the message may or may not be stored; "
            "publish it again with the same job_id"
        )


def _sync_data(descriptor: int) -> None:
    if sys.platform == "darwin":  # pragma: no cover - fsync there stops at the drive's cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)
