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
from sqlqueue_transport.files import FileIdentity, create_private_file
from sqlqueue_transport.mapping import map_file

if TYPE_CHECKING:
    from pathlib import Path

_NOTE = struct.Struct("<qq")
_SUSPECT_AT = 64
_SIZE = 4096
_FIRST_PAUSE_S = 0.00002
_LONGEST_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class Holder:
    """Name who holds the writer lock, and since when on the monotonic clock."""

    pid: int
    since_s: float


class WriterLock:
    """Hold the right to write to one database; not thread-safe, the caller's mutex is.

    `descriptor` is public for one purpose: a `finally` may call `fcntl.flock` on it directly,
    where a method call would give a signal handler the moment to raise before the unlock.
    """

    def __init__(self, path: Path) -> None:
        """Open the side file, making it if it is not there."""
        create_private_file(path)
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._memory = map_file(self.descriptor, _SIZE)
            found = os.fstat(self.descriptor)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.identity = FileIdentity(found.st_dev, found.st_ino)

    def take(self, deadline_s: float) -> None:
        """Wait for the lock until `deadline_s` on the monotonic clock.

        Raises Busy, naming the holder. `flock` cannot wait for a bounded time, so this asks
        again after short pauses; a queue of waiters in the kernel would be blind to the bound.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise self._busy() from None
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        _NOTE.pack_into(self._memory, 0, os.getpid(), time.monotonic_ns())

    def drop(self) -> None:
        """Give the lock up; harmless when it is not held."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    @property
    def log_is_suspect(self) -> bool:
        """Say whether a flush of the log failed in some process and the log was not emptied since.

        Kept here because all processes share it: frames that follow a lost one are lost, too,
        whoever wrote them.
        """
        return self._memory[_SUSPECT_AT] != 0

    @log_is_suspect.setter
    def log_is_suspect(self, value: bool) -> None:
        self._memory[_SUSPECT_AT] = int(value)

    def close(self) -> None:
        """Close the side file; the lock goes with it, unless another process shares it."""
        self._memory.close()
        os.close(self.descriptor)

    def _busy(self) -> Busy:
        pid, since_ns = _NOTE.unpack_from(self._memory, 0)
        held_s = time.monotonic() - since_ns / 1e9
        return Busy(
            f"process {pid} has held the writer lock {self.path} for {held_s:.1f} s; if it is "
            f"stopped, continue or end it ('kill -CONT {pid}')",
            holder=pid or None,
        )


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lock at `path`, without making the file; None when nobody does.

    Opens the file anew: asking on the descriptor of a lock that is held would weaken that lock.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        note = os.pread(descriptor, _NOTE.size, 0)
        if len(note) < _NOTE.size:  # it is being made
            return None
        pid, since_ns = _NOTE.unpack(note)
        return Holder(pid, since_ns / 1e9)
    finally:
        os.close(descriptor)
    return None


__all__ = ["Holder", "WriterLock", "read_holder"]
