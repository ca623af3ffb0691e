"""Know which consuming processes are alive, and which message each has started.

Each consumer holds a kernel lock that dies with it: a POSIX record lock on its own bytes of one
file beside the database. (A `flock` would survive in a forked grandchild.) POSIX locks vanish
when *any* descriptor of the file is closed in the process, so each process opens the file once
and keeps it open while it holds one. In the same bytes, mapped into memory, it notes without SQL
what it runs.

A free lock is not yet a dead process, so the order is: take the lock, register a never reused
worker id in a transaction, then claim; leases name that id. Who takes over a slot first sweeps
its last owner, and a sweeper holds the lock while it gives back the owner's deliveries. The
file's identity is recorded in the database: under another identity, presence is unknown and
only the lease's end counts.

Who takes a slot locks two bytes of it at once, and an owner gives the second back before its
registration commits. So one can tell an owner from a process that is sweeping or registering,
and looking needs no lock of its own that could be in somebody's way (fcntl(2), F_GETLK).

Layout: a page of header with one byte flag per slot, then a fixed entry per slot. An entry ends
in notes, one for each job that may run at once; a note carries a check sum, so that a torn one
reads as none. Behind the entries there is a place per slot for what has ended well and is not
settled yet. The file is allocated in full before it is mapped, and never truncated.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import mmap
import os
import struct
import sys
import threading
import uuid
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sqlqueue_transport import files, forking
from sqlqueue_transport.errors import CannotOpen, FileReplaced, ReadOnlyStore
from sqlqueue_transport.mapping import map_file, put

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SLOTS = 512
NOTES = 40
_KIND = b"SQLQPRS"
_MAGIC = _KIND + b"2"
_HEADER = struct.Struct("<8sII16s")
_SLEEPING_AT = 1024  # one byte a slot: "wake me"
_USED_AT = 2048  # one byte a slot: somebody registered here
_ENTRIES_AT = 4096
# worker, pid, heartbeat, queue mask, wake at, jobs ended, parent
_ENTRY = struct.Struct("<QQQQqQQ")
_ENTRY_SIZE = 2048
_QUEUE_NAMES_AT = 56
_QUEUE_NAMES = struct.Struct("<8Q")
_NOTES_AT = 128
_NOTE = struct.Struct("<QQQQQQ")  # message, delivery, started, deadline, max attempts, check
_ENDED_NOTES_AT = _ENTRIES_AT + SLOTS * _ENTRY_SIZE
ENDED_NOTES = 16
_ENDED_NOTE_SIZE = 128
_ENDED_NOTE = struct.Struct("<QQQQ")  # message, delivery, bytes of its result + 1, check
# Of a result that stands in a note, as UTF-8.
LONGEST_NOTED_RESULT_BYTES = _ENDED_NOTE_SIZE - _ENDED_NOTE.size
_SIZE = _ENDED_NOTES_AT + SLOTS * ENDED_NOTES * _ENDED_NOTE_SIZE
_MASK_64 = (1 << 64) - 1
_UNSAID = _MASK_64  # no number of attempts was given

_HEARTBEAT_AT = 16
_QUEUE_MASK_AT = 24
_WAKE_AT = 32
_ENDED_AT = 40
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
# struct flock: start, length and pid, type and whence stand where each system has them.
_FLOCK = struct.Struct("@qqihh") if sys.platform == "darwin" else struct.Struct("@hhqqi")


class Presence(str, Enum):
    """What can be said of a registered process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Standing(str, Enum):
    """Who holds a slot's lock: nobody, a process that sweeps or registers, or its owner."""

    FREE = "free"
    CHANGING = "changing"
    OWNED = "owned"


@dataclass(frozen=True, slots=True)
class Note:
    """Say that a delivery was started: lease-clock milliseconds; `deadline_ms` 0 means none.

    `max_attempts` is how many the job may have in the eyes of who started it, who knows the task;
    0 means no limit, None that only the message can say.
    """

    message_id: int
    delivery: int
    started_ms: int
    deadline_ms: int
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """Say that a delivery ended well and that its settlement is yet to be committed.

    `result` is JSON text of at most LONGEST_NOTED_RESULT_BYTES as UTF-8, or None.
    """

    message_id: int
    delivery: int
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """Be what one slot says of its owner. `heartbeat_ms` counts on the lease clock."""

    slot: int
    worker_id: int
    pid: int
    heartbeat_ms: int
    jobs_ended: int
    parent_id: int


_open_files: dict[tuple[int, int], PresenceFile] = {}
_inherited: list[PresenceFile] = []
# Opened for looking before this process had to write, too: closing them would drop its locks.
_superseded: list[PresenceFile] = []
_opening = threading.Lock()


class PresenceFile:
    """Share one presence file with other processes; one object per file and process."""

    fork_order = 2

    def __init__(
        self, path: Path, descriptor: int, memory: mmap.mmap, *, is_writable: bool = True
    ) -> None:
        """Take an open file and its memory; use `attach`, `create` or `nobody` instead."""
        self.path = path
        self.is_writable = is_writable
        self._descriptor = descriptor
        self._memory = memory
        self._mutex = threading.RLock()
        # The slots this process has locked: True once it owns one, False while it changes it.
        self._held: dict[int, bool] = {}
        self.identity = self._memory[16:32].hex()
        self._users = 0
        self._closed = False
        forking.guard(self)

    @classmethod
    def attach(cls, path: Path, *, read_only: bool = False) -> PresenceFile | None:
        """Open an existing file once per process; None when there is none, or only rubbish.

        With `read_only` it is opened and mapped for reading, unless this process has it open for
        more. Raises CannotOpen when another version of this software made it.
        """
        with _opening:
            identity = files.identity_of(path)
            if identity is None:
                return None
            # Looked up first: opening a second time and closing that would drop our locks.
            known = _open_files.get((identity.device, identity.inode))
            if known is not None and (known.is_writable or read_only):
                return known
            access = os.O_RDONLY if read_only else os.O_RDWR
            descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC)
            found = os.fstat(descriptor)
            known = _open_files.get((found.st_dev, found.st_ino))
            # Renamed over the path just now.
            if known is not None and (known.is_writable or read_only):
                return known  # and the descriptor stays open, for the same reason
            try:
                # One that was cut short is mended by the next process that writes.
                is_ours = _is_of_this_version(descriptor, path) and not (
                    read_only and found.st_size < _SIZE
                )
            except CannotOpen:
                os.close(descriptor)  # harmless: nothing in it was ever locked by this process
                raise
            if not is_ours:
                os.close(descriptor)
                return None
            memory = (
                mmap.mmap(descriptor, _SIZE, prot=mmap.PROT_READ)
                if read_only
                else map_file(descriptor, _SIZE)
            )
            made = cls(path, descriptor, memory, is_writable=not read_only)
            if known is not None:
                _superseded.append(known)
            _open_files[found.st_dev, found.st_ino] = made
            return made

    @classmethod
    def nobody(cls, path: Path) -> PresenceFile:
        """Return what a missing file says: nothing of anybody. For those who may not make one."""
        memory = mmap.mmap(-1, _SIZE, prot=mmap.PROT_READ)
        return cls(path, -1, memory, is_writable=False)

    @property
    def is_current(self) -> bool:
        """Say whether the path leads to this very file, opened for as much as this process needs."""
        found = files.identity_of(self.path)
        return found is not None and _open_files.get((found.device, found.inode)) is self

    @classmethod
    def create(cls, path: Path) -> PresenceFile:
        """Make a new file with a new identity. Runs under the writer lock.

        It is made under another name and renamed, so that nobody ever maps half a header.
        """
        making = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            files.create_private_file(making)
            descriptor = os.open(making, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                memory = map_file(descriptor, _SIZE)
                put(memory, 0, _HEADER.pack(_MAGIC, SLOTS, NOTES, uuid.uuid4().bytes))
                memory.flush()
                memory.close()
            finally:
                os.close(descriptor)
            making.rename(path)
        except BaseException:
            making.unlink(missing_ok=True)
            raise
        made = cls.attach(path)
        if made is None:
            message = f"{path} vanished while it was made"
            raise FileReplaced(message)
        return made

    def join(self) -> bool:
        """Become one more user of the file; False when its last one closed it just now."""
        with _opening:
            if not self._closed:
                self._users += 1
            return not self._closed

    def part(self) -> None:
        """Be a user no longer; the last one closes the file, unless a slot of it is still held.

        Closing a descriptor drops every lock this process has on the file, so as long as there is
        one the file stays open.
        """
        with _opening, self._mutex:
            self._users -= 1
            mine = [key for key, known in _open_files.items() if known is self]
            if self._users > 0 or self._held or not mine:
                return
            for key in mine:
                del _open_files[key]
            self._closed = True
            self._memory.close()
            os.close(self._descriptor)
        forking.forget(self)

    # -- slots ------------------------------------------------------------------------------------

    def take_free_slot(self) -> int:
        """Lock a slot nobody holds and return it; one never used comes first.

        The slot may still carry a dead owner's entry: sweep that before writing a new one.
        Raises CannotOpen when all are taken.
        """
        unused = [s for s in range(SLOTS) if not self._memory[_USED_AT + s]]
        used = [s for s in range(SLOTS) if self._memory[_USED_AT + s]]
        for slot in (*unused, *used):
            if self.take(slot):
                return slot
        message = f"all {SLOTS} places for consuming processes of {self.path} are taken"
        raise CannotOpen(message)

    def take(self, slot: int) -> bool:
        """Lock a slot if nobody, in no process, holds it; say whether that succeeded."""
        if not self.is_writable:
            raise ReadOnlyStore(self.path)
        with self._mutex:
            if self._closed or slot in self._held:
                # A process's own lock does not exclude it; and by now the number of a closed
                # descriptor may be another file's.
                return False
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, _entry_at(slot))
            except (BlockingIOError, PermissionError):
                return False
            self._held[slot] = False
            return True

    def own(self, slot: int) -> None:
        """Become the owner of a slot this process has taken, from now until its death."""
        with self._mutex:
            self._held[slot] = True
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _entry_at(slot) + 1)

    def give_back(self, slot: int) -> None:
        """Unlock a slot."""
        with self._mutex:
            self._held.pop(slot, None)
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 2, _entry_at(slot))

    def standing(self, slot: int) -> Standing:
        """Say who holds the slot at this moment, without taking part."""
        with self._mutex:
            if slot in self._held:
                return Standing.OWNED if self._held[slot] else Standing.CHANGING
            if self._closed:
                message = f"{self.path} was closed by another thread of this process"
                raise CannotOpen(message)
        if not self._is_locked(_entry_at(slot)):
            return Standing.FREE
        return Standing.CHANGING if self._is_locked(_entry_at(slot) + 1) else Standing.OWNED

    def is_free(self, slot: int) -> bool:
        """Say whether nobody holds the slot at this moment."""
        return self.standing(slot) is Standing.FREE

    def _is_locked(self, position: int) -> bool:
        """Ask the kernel whether another process holds a lock on one byte."""
        if sys.platform == "darwin":  # pragma: no cover - not run in CI
            wanted = _FLOCK.pack(position, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
            answer = fcntl.fcntl(self._descriptor, fcntl.F_GETLK, wanted)
            return bool(_FLOCK.unpack(answer)[3] != fcntl.F_UNLCK)
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, position, 1, 0)
        answer = fcntl.fcntl(self._descriptor, fcntl.F_GETLK, wanted)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def write_entry(
        self, slot: int, *, worker_id: int, pid: int, heartbeat_ms: int, parent_id: int
    ) -> None:
        """Describe the new owner of a slot this process holds; its notes start empty."""
        at = _entry_at(slot)
        entry = _ENTRY.pack(worker_id, pid, heartbeat_ms, 0, 0, 0, parent_id)
        put(self._memory, at, entry.ljust(_ENTRY_SIZE, b"\0"))
        self._clear_ended(slot)
        self._memory[_USED_AT + slot] = 1

    def clear_entry(self, slot: int) -> None:
        """Forget the owner of a slot this process holds."""
        self._memory[_SLEEPING_AT + slot] = 0
        at = _entry_at(slot)
        self._memory[at : at + _ENTRY_SIZE] = bytes(_ENTRY_SIZE)
        self._clear_ended(slot)
        self._memory[_USED_AT + slot] = 0

    def entry(self, slot: int) -> Entry:
        """Return what a slot says; worker id 0 means nobody."""
        worker_id, pid, heartbeat_ms, _, _, ended, parent = _ENTRY.unpack_from(
            self._memory, _entry_at(slot)
        )
        return Entry(slot, worker_id, pid, heartbeat_ms, ended, parent)

    def entries(self) -> Iterator[Entry]:
        """Yield every slot somebody registered in and did not leave in order."""
        for slot in self._flagged(_USED_AT):
            yield self.entry(slot)

    # -- what an owner writes about itself ------------------------------------------------------------

    def beat(self, slot: int, now_ms: int) -> None:
        """Stamp the slot: the owner's interpreter is running."""
        put(self._memory, _entry_at(slot) + _HEARTBEAT_AT, _U64.pack(now_ms))

    def count_ended(self, slot: int) -> int:
        """Count one more ended job and return how many there are."""
        at = _entry_at(slot) + _ENDED_AT
        ended: int = _U64.unpack_from(self._memory, at)[0] + 1
        put(self._memory, at, _U64.pack(ended))
        return ended

    def write_note(self, slot: int, place: int, note: Note) -> None:
        """Note a start, before user code runs. If the process dies midway, it reads as none."""
        packed = _NOTE.pack(
            note.message_id,
            note.delivery,
            note.started_ms,
            note.deadline_ms,
            _UNSAID if note.max_attempts is None else note.max_attempts,
            _check(note),
        )
        put(self._memory, _note_at(slot, place), packed)

    def clear_note(self, slot: int, place: int) -> None:
        """Forget a start, once its settlement is committed."""
        at = _note_at(slot, place)
        self._memory[at : at + _NOTE.size] = bytes(_NOTE.size)

    def clear_notes(self, slot: int) -> None:
        """Forget every start noted in a slot: its owner is stopped, or it is the caller, and ends."""
        for place in range(NOTES):
            self.clear_note(slot, place)

    def notes(self, slot: int) -> dict[int, Note]:
        """Return the starts noted in a slot, by message id."""
        found: dict[int, Note] = {}
        for place in range(NOTES):
            message_id, delivery, started_ms, deadline_ms, most, check = _NOTE.unpack_from(
                self._memory, _note_at(slot, place)
            )
            if check:
                allowed = None if most == _UNSAID else most
                note = Note(message_id, delivery, started_ms, deadline_ms, allowed)
                if check == _check(note):
                    found[note.message_id] = note
        return found

    def write_ended(self, slot: int, place: int, ended: Ended) -> None:
        """Note an end, in one of ENDED_NOTES places. If the process dies midway, it reads as none.

        It stays until another takes its place: once its delivery is settled, nothing fits it any more.
        """
        result = b"" if ended.result is None else ended.result.encode()
        if len(result) > LONGEST_NOTED_RESULT_BYTES:
            message = f"a result of {len(result)} bytes does not fit into a note"
            raise ValueError(message)
        size = 0 if ended.result is None else len(result) + 1
        packed = _ENDED_NOTE.pack(
            ended.message_id, ended.delivery, size, _check_ended(ended, size, result)
        )
        put(self._memory, _ended_note_at(slot, place), packed + result)

    def _clear_ended(self, slot: int) -> None:
        # Between two owners the database may have become an older copy of itself, in which the same
        # ids are yet to come.
        at = _ended_note_at(slot, 0)
        if any(self._memory[at : at + ENDED_NOTES * _ENDED_NOTE_SIZE]):  # touches no new page
            put(self._memory, at, bytes(ENDED_NOTES * _ENDED_NOTE_SIZE))

    def ended(self, slot: int) -> list[Ended]:
        """Return the ends noted in a slot, of deliveries that may have been settled since."""
        found: list[Ended] = []
        for place in range(ENDED_NOTES):
            at = _ended_note_at(slot, place)
            message_id, delivery, size, check = _ENDED_NOTE.unpack_from(self._memory, at)
            if not check or size > LONGEST_NOTED_RESULT_BYTES + 1:
                continue
            result = self._memory[at + _ENDED_NOTE.size : at + _ENDED_NOTE.size + max(size - 1, 0)]
            ended = Ended(message_id, delivery, result.decode("utf-8", "replace") if size else None)
            if check == _check_ended(ended, size, result):
                found.append(ended)
        return found

    # -- sleeping and waking ---------------------------------------------------------------------------

    def raise_flag(self, slot: int, queues: Sequence[str], wake_at_ms: int) -> None:
        """Ask to be woken for these queues, and for anything due before `wake_at_ms`."""
        at = _entry_at(slot)
        names = [_fingerprint(queue) for queue in queues]
        mask = 0
        for name in names:
            mask |= _bit(name)
        # More queues than there is room for: then only the mask says which, and not for sure.
        room = _QUEUE_NAMES.size // 8
        known = [*names, *[0] * (room - len(names))] if len(names) <= room else [0] * room
        put(self._memory, at + _QUEUE_NAMES_AT, _QUEUE_NAMES.pack(*known))
        put(self._memory, at + _QUEUE_MASK_AT, _U64.pack(mask))
        put(self._memory, at + _WAKE_AT, _I64.pack(wake_at_ms))
        self._memory[_SLEEPING_AT + slot] = 1

    def lower_flag(self, slot: int) -> bool:
        """Stop asking; say whether the flag still stood (nobody woke us)."""
        stood = bool(self._memory[_SLEEPING_AT + slot])
        self._memory[_SLEEPING_AT + slot] = 0
        return stood

    def anybody_sleeps(self) -> bool:
        """Say whether any slot asked to be woken, for whatever message."""
        return self._memory.find(b"\x01", _SLEEPING_AT, _SLEEPING_AT + SLOTS) >= 0

    def sleepers(self, queue: str, due_ms: int | None) -> Iterator[tuple[int, bool]]:
        """Yield slots that asked to be woken for such a message.

        With each, say whether it surely consumes that queue: one that consumes many queues may
        be woken in vain, and then somebody else has to be woken as well.
        """
        for slot in self._flagged(_SLEEPING_AT):
            at = _entry_at(slot)
            name = _fingerprint(queue)
            if not _U64.unpack_from(self._memory, at + _QUEUE_MASK_AT)[0] & _bit(name):
                continue
            if due_ms is not None and due_ms >= _I64.unpack_from(self._memory, at + _WAKE_AT)[0]:
                continue
            names = _QUEUE_NAMES.unpack_from(self._memory, at + _QUEUE_NAMES_AT)
            if name in names:
                yield slot, True
            elif not any(names):
                yield slot, False

    def _flagged(self, start: int) -> Iterator[int]:
        position = start - 1
        while (position := self._memory.find(b"\x01", position + 1, start + SLOTS)) >= 0:
            yield position - start

    # -- forking --------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Have nothing to close: the locks are not inherited, and the file must stay open."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's locks: they are not inherited. A new object will be made."""
        self._mutex = threading.RLock()
        self._held.clear()


def _forget_open_files() -> None:
    global _opening  # noqa: PLW0603 - the fork may have copied it taken
    _opening = threading.Lock()
    # Kept, because a memory map has a descriptor of its own. Whenever that would be closed, the
    # locks which this process has taken in the meantime would be lost.
    _inherited.extend(_open_files.values())
    _open_files.clear()


os.register_at_fork(after_in_child=_forget_open_files)


def _is_of_this_version(descriptor: int, path: Path) -> bool:
    """Say whether it is a presence file at all; refuse one of another version."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(_KIND):
        return False
    magic, slots, notes, _ = _HEADER.unpack(header)
    if (magic, slots, notes) != (_MAGIC, SLOTS, NOTES):
        message = (
            f"{path} is the presence file of another version of sqlqueue; stop all workers, "
            "remove it, and start again"
        )
        raise CannotOpen(message)
    return True


@functools.lru_cache(maxsize=1024)
def _fingerprint(queue: str) -> int:
    """Return 64 bits by which sleepers and publishers of a queue find each other.

    Stable across processes, which `hash` is not. Never 0, which means "no queue".
    """
    return int.from_bytes(hashlib.blake2b(queue.encode(), digest_size=8).digest(), "little") or 1


def _bit(fingerprint: int) -> int:
    return 1 << fingerprint % 64


def _entry_at(slot: int) -> int:
    return _ENTRIES_AT + slot * _ENTRY_SIZE


def _note_at(slot: int, place: int) -> int:
    if not 0 <= place < NOTES:
        message = f"place {place} for a running job: there are {NOTES}, from 0"
        raise IndexError(message)
    return _entry_at(slot) + _NOTES_AT + place * _NOTE.size


def _ended_note_at(slot: int, place: int) -> int:
    return _ENDED_NOTES_AT + (slot * ENDED_NOTES + place % ENDED_NOTES) * _ENDED_NOTE_SIZE


def _check_ended(ended: Ended, size: int, result: bytes) -> int:
    mixed = (
        ended.message_id * 0x9E3779B97F4A7C15
        ^ ended.delivery * 0xC2B2AE3D27D4EB4F
        ^ size * 0x165667B19E3779F9
        ^ zlib.crc32(result) * 0x27D4EB2F165667C5
    )
    return (mixed & _MASK_64) | 1


def _check(note: Note) -> int:
    mixed = (
        note.message_id * 0x9E3779B97F4A7C15
        ^ note.delivery * 0xC2B2AE3D27D4EB4F
        ^ note.started_ms * 0x165667B19E3779F9
        ^ note.deadline_ms * 0x27D4EB2F165667C5
        ^ (_UNSAID if note.max_attempts is None else note.max_attempts) * 0xFF51AFD7ED558CCD
    )
    return (mixed & _MASK_64) | 1
