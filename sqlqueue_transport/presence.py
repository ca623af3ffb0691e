"""Know which consuming processes are alive, and which message each has started.

Each consumer holds a kernel lock that dies with it: a POSIX record lock on its own bytes of one
file beside the database. (A `flock` would survive in a forked grandchild.) POSIX locks vanish
when *any* descriptor of the file is closed in the process, so each process opens the file once
and never closes it. In the same bytes, mapped into memory, it notes without SQL what it runs.

A free lock is not yet a dead process, so the order is: take the lock, register a never reused
worker id in a transaction, then claim; leases name that id. Who takes over a slot first sweeps
its last owner, and a sweeper holds the lock while it gives back the owner's deliveries. The
file's identity is recorded in the database: under another identity, presence is unknown and
only the lease's end counts.

Layout: a page of header with one byte flag per slot, then a fixed entry per slot. An entry ends
in notes, one for each job that may run at once; a note carries a check sum, so that a torn one
reads as none. The file is allocated in full before it is mapped, and never truncated.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sqlqueue_transport import files, forking
from sqlqueue_transport.errors import CannotOpen, FileReplaced
from sqlqueue_transport.mapping import map_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOTS = 512
NOTES = 48
_MAGIC = b"SQLQPRS1"
_HEADER = struct.Struct("<8sII16s")
_SLEEPING_AT = 1024  # one byte a slot: "wake me"
_USED_AT = 2048  # one byte a slot: somebody registered here
_ENTRIES_AT = 4096
_ENTRY = struct.Struct(
    "<QQQQqQQ"
)  # worker, pid, heartbeat, queue mask, wake at, jobs ended, parent
_ENTRY_SIZE = 2048
_NOTES_AT = 128
_NOTE = struct.Struct("<QQQQQ")  # message, delivery, started, deadline, check
_SIZE = _ENTRIES_AT + SLOTS * _ENTRY_SIZE
_MASK_64 = (1 << 64) - 1

_HEARTBEAT_AT = 16
_QUEUES_AT = 24
_WAKE_AT = 32
_ENDED_AT = 40
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")


class Presence(str, Enum):
    """What can be said of a registered process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Note:
    """Say that a delivery was started: lease-clock milliseconds; `deadline_ms` 0 means none."""

    message_id: int
    delivery: int
    started_ms: int
    deadline_ms: int


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
_opening = threading.Lock()


class PresenceFile:
    """Share one presence file with other processes; one object per file and process."""

    fork_order = 2

    def __init__(self, path: Path, descriptor: int) -> None:
        """Map an open file; use `attach` or `create` instead."""
        self.path = path
        self._descriptor = descriptor
        self._memory = map_file(descriptor, _SIZE)
        self._mutex = threading.Lock()
        self._held: set[int] = set()
        magic, slots, notes, identity = _HEADER.unpack_from(self._memory, 0)
        if (magic, slots, notes) != (_MAGIC, SLOTS, NOTES):
            message = (
                f"{path} is not a presence file of this version; stop all workers and remove it"
            )
            raise CannotOpen(message)
        self.identity = identity.hex()
        forking.guard(self)

    @classmethod
    def attach(cls, path: Path) -> PresenceFile | None:
        """Open an existing file once per process; None when there is none."""
        with _opening:
            identity = files.identity_of(path)
            if identity is None:
                return None
            key = (identity.device, identity.inode)
            known = _open_files.get(key)
            if known is None:
                # Looked up first: opening a second time and closing that would drop our locks.
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
                known = cls(path, os.open(path, flags))
                _open_files[key] = known
            return known

    @classmethod
    def create(cls, path: Path) -> PresenceFile:
        """Make a new file with a new identity. Runs under the writer lock.

        It is made under another name and renamed, so that nobody ever maps half a header.
        """
        making = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        files.create_private_file(making)
        descriptor = os.open(making, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            memory = map_file(descriptor, _SIZE)
            _HEADER.pack_into(memory, 0, _MAGIC, SLOTS, NOTES, uuid.uuid4().bytes)
            memory.flush()
            memory.close()
        finally:
            os.close(descriptor)
        making.rename(path)
        made = cls.attach(path)
        if made is None:
            message = f"{path} vanished while it was made"
            raise FileReplaced(message)
        return made

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
        """Lock a slot if nobody, in no process, holds it."""
        with self._mutex:
            if slot in self._held:
                return False  # a process's own lock does not exclude it
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _entry_at(slot))
            except (BlockingIOError, PermissionError):
                return False
            self._held.add(slot)
            return True

    def give_back(self, slot: int) -> None:
        """Unlock a slot."""
        with self._mutex:
            self._held.discard(slot)
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _entry_at(slot))

    def is_free(self, slot: int) -> bool:
        """Say whether nobody holds the slot at this moment."""
        if not self.take(slot):
            return False
        self.give_back(slot)
        return True

    def write_entry(
        self, slot: int, *, worker_id: int, pid: int, heartbeat_ms: int, parent_id: int
    ) -> None:
        """Describe the new owner of a slot this process holds; its notes start empty."""
        at = _entry_at(slot)
        self._memory[at : at + _ENTRY_SIZE] = bytes(_ENTRY_SIZE)
        _ENTRY.pack_into(self._memory, at, worker_id, pid, heartbeat_ms, 0, 0, 0, parent_id)
        self._memory[_USED_AT + slot] = 1

    def clear_entry(self, slot: int) -> None:
        """Forget the owner of a slot this process holds."""
        self._memory[_SLEEPING_AT + slot] = 0
        at = _entry_at(slot)
        self._memory[at : at + _ENTRY_SIZE] = bytes(_ENTRY_SIZE)
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
        _U64.pack_into(self._memory, _entry_at(slot) + _HEARTBEAT_AT, now_ms)

    def count_ended(self, slot: int) -> int:
        """Count one more ended job and return how many there are."""
        at = _entry_at(slot) + _ENDED_AT
        ended: int = _U64.unpack_from(self._memory, at)[0] + 1
        _U64.pack_into(self._memory, at, ended)
        return ended

    def write_note(self, slot: int, place: int, note: Note) -> None:
        """Note a start, before user code runs. If the process dies midway, it reads as none."""
        _NOTE.pack_into(
            self._memory,
            _entry_at(slot) + _NOTES_AT + place * _NOTE.size,
            note.message_id,
            note.delivery,
            note.started_ms,
            note.deadline_ms,
            _check(note),
        )

    def clear_note(self, slot: int, place: int) -> None:
        """Forget a start, once its settlement is committed."""
        at = _entry_at(slot) + _NOTES_AT + place * _NOTE.size
        self._memory[at : at + _NOTE.size] = bytes(_NOTE.size)

    def notes(self, slot: int) -> dict[int, Note]:
        """Return the starts noted in a slot, by message id."""
        found: dict[int, Note] = {}
        at = _entry_at(slot) + _NOTES_AT
        for place in range(NOTES):
            *fields, check = _NOTE.unpack_from(self._memory, at + place * _NOTE.size)
            if check:
                note = Note(*fields)
                if check == _check(note):
                    found[note.message_id] = note
        return found

    # -- sleeping and waking ---------------------------------------------------------------------------

    def raise_flag(self, slot: int, queue_mask: int, wake_at_ms: int) -> None:
        """Ask to be woken for these queues, and for anything due before `wake_at_ms`."""
        at = _entry_at(slot)
        _U64.pack_into(self._memory, at + _QUEUES_AT, queue_mask)
        _I64.pack_into(self._memory, at + _WAKE_AT, wake_at_ms)
        self._memory[_SLEEPING_AT + slot] = 1

    def lower_flag(self, slot: int) -> bool:
        """Stop asking; say whether the flag still stood (nobody woke us)."""
        stood = bool(self._memory[_SLEEPING_AT + slot])
        self._memory[_SLEEPING_AT + slot] = 0
        return stood

    def sleepers(self, queue_mask: int, due_ms: int | None) -> Iterator[int]:
        """Yield slots that asked to be woken for such a message. Next to free when nobody sleeps."""
        for slot in self._flagged(_SLEEPING_AT):
            at = _entry_at(slot)
            if not _U64.unpack_from(self._memory, at + _QUEUES_AT)[0] & queue_mask:
                continue
            if due_ms is not None and due_ms >= _I64.unpack_from(self._memory, at + _WAKE_AT)[0]:
                continue
            yield slot

    def _flagged(self, start: int) -> Iterator[int]:
        position = start - 1
        while (position := self._memory.find(b"\x01", position + 1, start + SLOTS)) >= 0:
            yield position - start

    # -- forking --------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Hold the mutex, so that the child does not inherit it taken by another thread."""
        self._mutex.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Forget the parent's locks: they are not inherited. A new file object will be made."""
        self._mutex = threading.Lock()
        self._held.clear()
        _open_files.clear()


def mask_of(queue: str) -> int:
    """Return the bit by which sleepers and publishers of a queue find each other.

    Two queues may share a bit: then a wake-up is in vain, never missing. Stable across
    processes, which `hash` is not.
    """
    return 1 << (sum(queue.encode()) + len(queue)) % 64


def _entry_at(slot: int) -> int:
    return _ENTRIES_AT + slot * _ENTRY_SIZE


def _check(note: Note) -> int:
    mixed = (
        note.message_id * 0x9E3779B97F4A7C15
        ^ note.delivery * 0xC2B2AE3D27D4EB4F
        ^ note.started_ms * 0x165667B19E3779F9
        ^ note.deadline_ms * 0x27D4EB2F165667C5
    )
    return (mixed & _MASK_64) | 1
