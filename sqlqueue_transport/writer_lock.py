"""One writer at a time, fairly: a `flock` on a side file, held for each write transaction.

SQLite's own busy handler sleeps and retries and so starves whoever is unlucky; it also lets a
checkpoint race a commit, which loses data in SQLite 3.7.0 to 3.51.2 (the "WAL-reset" bug).
`flock` belongs to the open file description: threads that share the descriptor do not exclude
each other, so the caller holds a mutex around this lock, and a forked child must open its own.

The holder writes its process id and the moment it got the lock into the first bytes of the
file, for a waiter's error message and for `doctor`: a note, not a lock. It may be torn or stale.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import Busy
from sqlqueue_transport.files import create_private_file
from sqlqueue_transport.mapping import map_file

if TYPE_CHECKING:
    from pathlib import Path

_NOTE = struct.Struct("<qq")
_SIZE = 4096
_FIRST_PAUSE_S = 0.00002
_LONGEST_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class Holder:
    """Name who holds the writer lock, and since when on the monotonic clock."""

    pid: int
    since_s: float


class WriterLock:
    """Hold the right to write to one database; not thread-safe, the caller's mutex is."""

    def __init__(self, path: Path) -> None:
        """Open the side file, making it if it is not there."""
        create_private_file(path)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._note = map_file(self._descriptor, _SIZE)
        except BaseException:
            os.close(self._descriptor)
            raise

    def take(self, deadline_s: float) -> None:
        """Wait for the lock until `deadline_s` on the monotonic clock.

        Raises Busy, naming the holder. `flock` cannot wait for a bounded time, so this asks
        again after short pauses; a queue of waiters in the kernel would be blind to the bound.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise self._busy() from None
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        _NOTE.pack_into(self._note, 0, os.getpid(), time.monotonic_ns())

    def drop(self) -> None:
        """Give the lock up; harmless when it is not held."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def holder(self) -> Holder | None:
        """Return who holds the lock now; None when nobody does."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, since_ns = _NOTE.unpack_from(self._note, 0)
            return Holder(pid, since_ns / 1e9)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return None

    def close(self) -> None:
        """Close the side file; the lock goes with it."""
        self._note.close()
        os.close(self._descriptor)

    def _busy(self) -> Busy:
        pid, since_ns = _NOTE.unpack_from(self._note, 0)
        held_s = time.monotonic() - since_ns / 1e9
        return Busy(
            f"process {pid} has held the writer lock {self.path} for {held_s:.1f} s; if it is "
            f"stopped, continue or end it ('kill -CONT {pid}')",
            holder=pid or None,
        )


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lock at `path`, without making the file; None when nobody does."""
    if not path.exists():
        return None
    lock = WriterLock(path)
    try:
        return lock.holder()
    finally:
        lock.close()


__all__ = ["Holder", "WriterLock", "read_holder"]
