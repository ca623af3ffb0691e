"""One writer at a time, fairly: a `flock` on a side file, held for each write transaction.

SQLite's own busy handler sleeps and retries and so starves whoever is unlucky; it also lets a
checkpoint race a commit, which loses data in SQLite 3.7.0 to 3.51.2 (the "WAL-reset" bug).
`flock` belongs to the open file description: threads that share the descriptor do not exclude
each other, so the caller holds a mutex around this lock, and a forked child must open its own.

A `flock` can be asked for, or waited for without a bound; to wait for a while one has to ask again
and again. That alone is unfair: who has just let go of the lock finds it free the next moment,
while the others sleep between two questions. So the one who has waited longest says so in shared
memory, and once it has waited for a few milliseconds the others let it pass. (Giving way at once
would cost a change of process for each transaction: half the throughput.) Eight writers on two
cores: worst wait 333 ms without, 26 ms with (tests/benchmarks/results/writer_lock.txt).

The holder writes its process id and the moment it got the lock into the first bytes of the
file, for a waiter's error message and for `doctor`. All of these are notes, not locks: they may
be torn or stale, and nothing but politeness depends on them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from sqlqueue_transport.errors import Busy
from sqlqueue_transport.files import FileIdentity, create_private_file
from sqlqueue_transport.mapping import map_file, put

_NOTE = struct.Struct("<qq")  # the holder: process id, since
_NOTE_PLACE = slice(0, _NOTE.size)
_SUSPECT_AT = 64
_WAITER_AT = 128
_WAITER = struct.Struct("<qq")  # who waits longest: since, and when it was last there to ask
_PAIR_AT = 256
# Of which boot; device, inode and birth of the database; device and inode of its log.
_PAIR = struct.Struct("<16sQQqQQ")
_SIZE = 4096
# Each write transaction calls them.
_packed_note, _holder_in, _waiter_in = _NOTE.pack, _NOTE.unpack_from, _WAITER.unpack_from
# The longest waiter asks often, the others seldom, and all of them after a long time.
_PAUSE_S = 0.00003
_PAUSE_BEHIND_ANOTHER_S = 0.0003
_LONGEST_PAUSE_BEHIND_ANOTHER_S = 0.002
_PAUSE_AFTER_LONG_S = 0.001
_LONG_NS = 100_000_000
# How long one waits before others have to let it pass, and how soon a waiter that does not ask
# any more (killed, stopped, or not given a processor) is forgotten.
_PATIENCE_NS = 5_000_000
_FORGOTTEN_NS = 2_000_000
# So long the last holder may take it again before anybody who waits. What it has read of the file is
# good as long as nobody else has written: of 16 publishers each then writes some 25 messages in a row,
# and not one.
_TURN_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Holder:
    """Name who holds the writer lock, and since when on the monotonic clock; None: it has not said yet.

    A note of its last time may be read in the instant before it has written a new one. Who acts on how
    long it has lasted looks again first.
    """

    pid: int
    since_s: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Name a database and its log. `born_ns` is the database's `files.born_ns`."""

    database: FileIdentity
    born_ns: int
    log: FileIdentity


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
        self._pid = os.getpid()
        self._turn_ends_ns = 0

    def take(self, deadline_s: float) -> None:
        """Wait for the lock until `deadline_s` on the monotonic clock.

        Raises Busy, naming the holder.
        """
        memory, waiting_ns = self._memory, 0
        while True:
            now_ns = time.monotonic_ns()
            longest_ns, asked_ns = _waiter_in(memory, _WAITER_AT)
            is_behind = 0 <= now_ns - asked_ns < _FORGOTTEN_NS and (
                not waiting_ns or longest_ns < waiting_ns
            )
            is_late = now_ns / 1e9 >= deadline_s
            if (
                is_late
                or not is_behind
                or now_ns - longest_ns < _PATIENCE_NS
                or (now_ns < self._turn_ends_ns and _holder_in(memory, 0)[0] == self._pid)
            ):
                try:
                    fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    break
            if is_late:
                raise self._busy()
            waiting_ns = waiting_ns or now_ns
            # The longer one waits behind another, the more of them there are, and each look costs them.
            waited_s = (now_ns - waiting_ns) / 1e9
            pause_s = min(
                max(waited_s / 4, _PAUSE_BEHIND_ANOTHER_S), _LONGEST_PAUSE_BEHIND_ANOTHER_S
            )
            if not is_behind:
                put(memory, _WAITER_AT, _WAITER.pack(waiting_ns, now_ns))
                pause_s = _PAUSE_S
            time.sleep(pause_s if now_ns - waiting_ns < _LONG_NS else _PAUSE_AFTER_LONG_S)
        if waiting_ns and longest_ns == waiting_ns:
            put(memory, _WAITER_AT, _WAITER.pack(0, 0))
        if now_ns >= self._turn_ends_ns or _holder_in(memory, 0)[0] != self._pid:
            self._turn_ends_ns = now_ns + _TURN_NS
        memory[_NOTE_PLACE] = _packed_note(self._pid, now_ns)  # `mapping.put`, and 0.2 µs less

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

    def pair(self, pair: Pair, boot: str) -> None:
        """Note which log belongs to which database. The caller holds the lock and has both open."""
        database, log = pair.database, pair.log
        numbers = (database.device, database.inode, pair.born_ns, log.device, log.inode)
        put(self._memory, _PAIR_AT, _PAIR.pack(_mark_of(boot), *numbers))

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


def read_pair(path: Path, boot: str) -> Pair | None:
    """Return which database and log were in use together beside the lock at `path`; None: not known.

    Known is only what was noted in this boot: some filesystems number their files anew at each mount.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        noted = os.pread(descriptor, _PAIR.size, _PAIR_AT)
    finally:
        os.close(descriptor)  # a `flock` of this process belongs to another open file
    if len(noted) < _PAIR.size:
        return None
    mark, device, inode, born_ns, *log = _PAIR.unpack(noted)
    if mark != _mark_of(boot):
        return None
    return Pair(FileIdentity(device, inode), born_ns, FileIdentity(*log))


def _mark_of(boot: str) -> bytes:
    return hashlib.blake2b(boot.encode(), digest_size=16).digest()


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
        actual = _pid_with_lock(os.fstat(descriptor))
        if actual not in {None, pid}:  # who has it has not come to its note yet
            return Holder(actual, None)
        return Holder(pid, since_ns / 1e9)
    finally:
        os.close(descriptor)
    return None


def _pid_with_lock(file: os.stat_result) -> int | None:
    """Return who has a `flock` on a file, as the kernel tells it; None where it does not."""
    wanted = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:  # no Linux
        return None
    # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF, and "1: ->" for who waits; 0 or -1 for a
    # process of another namespace
    held = [
        int(pid)
        for _, kind, _, mode, pid, where, *_ in (
            line.split() for line in lines if " FLOCK " in line and "->" not in line
        )
        if (kind, mode, where) == ("FLOCK", "WRITE", wanted)
    ]
    return held[0] if held and held[0] > 0 else None


__all__ = ["Holder", "Pair", "WriterLock", "read_holder", "read_pair"]
