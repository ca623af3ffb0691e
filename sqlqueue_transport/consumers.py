"""Who consumes from the file: registering, sleeping, and giving back what the dead held.

A process registers before its first claim and so gets a worker id that is never used again.
Whoever finds a registered process gone (`sweep`) gives its deliveries back: those it had noted
as started keep a counted attempt, the rest is released uncounted. Anybody may sweep at any
moment; the writer lock and the state of each row decide what is still true.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport import forking, wakeup
from sqlqueue_transport import statements as sql
from sqlqueue_transport.errors import CannotOpen, TransportError
from sqlqueue_transport.messages import Fault, Lost
from sqlqueue_transport.presence import Entry, Note, Presence, PresenceFile, mask_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

DEFAULT_MAX_ATTEMPTS = 5
# Bounds what attempts cannot see: consumers that note no starts, and power cuts that lose notes.
MAX_UNNOTED_LOSSES = 20
LONGEST_SLEEP_S = 1.0
_LOSS_BACKOFF_S = 1.0
_LOSS_BACKOFF_MAX_S = 60.0
_PRESENCE_KEY = "presence"


@dataclass(frozen=True, slots=True)
class Worker:
    """Be one registered process, as its row says."""

    id: int
    name: str
    kind: str
    parent_id: int | None
    pid: int
    host: str
    boot: str
    presence: str
    slot: int
    slots: int
    queues: tuple[str, ...]
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class Held:
    """Be one delivery somebody holds, as `HELD_BY_WORKER` and `OVERDUE` select it."""

    message_id: int
    delivery: int
    job_id: str | None
    task: str | None
    queue: str
    run: int
    attempts: int
    max_attempts: int | None
    unnoted_losses: int
    worker: str
    worker_kind: str
    worker_boot: str


class Consumers:
    """Register this process and watch over the others; safe to share between threads."""

    fork_order = 0

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where; `attach` does the work."""
        self._database = database
        self._clock = clock
        self._presence: PresenceFile | None = None
        self._slot: int | None = None
        self._bell: wakeup.Bell | None = None
        self._worker_id = 0
        self._mutex = threading.Lock()
        forking.guard(self)

    # -- this process ---------------------------------------------------------------------------

    @property
    def worker_id(self) -> int:
        """Return the id of this process, registering it as a plain client if it is not yet."""
        if not self._worker_id:
            self.register(name=f"client-{os.getpid()}", kind="client")
        return self._worker_id

    @property
    def is_registered(self) -> bool:
        """Say whether this process has a worker id already."""
        return bool(self._worker_id)

    @property
    def presence(self) -> PresenceFile:
        """Return the presence file that the database names as its own."""
        if self._presence is None:
            self.attach()
        if self._presence is None:  # pragma: no cover - attach sets it or raises
            raise AssertionError
        return self._presence

    def attach(self) -> None:
        """Open the presence file the database names, or make a new one and name it.

        A file that is missing or has another identity was lost with whatever it said; processes
        registered under the old identity are then *unknown*, and their leases run out in time.
        Refuses a file on which processes of another boot or time namespace are alive.
        """

        def work(connection: sqlite3.Connection) -> PresenceFile:
            row = connection.execute(sql.GET_META, {"key": _PRESENCE_KEY}).fetchone()
            found = PresenceFile.attach(self._database.presence_path)
            if found is None or row is None or row[0] != found.identity:
                found = PresenceFile.create(self._database.presence_path)
                connection.execute(sql.SET_META, {"key": _PRESENCE_KEY, "value": found.identity})
            self._refuse_other_clocks(connection, found)
            return found

        known = self._database.read(
            lambda c: c.execute(sql.GET_META, {"key": _PRESENCE_KEY}).fetchone()
        )
        found = PresenceFile.attach(self._database.presence_path)
        if known is not None and found is not None and known[0] == found.identity:
            self._database.read(lambda c: self._refuse_other_clocks(c, found))
            self._presence = found
            return
        self._presence = self._database.write(work)

    def _refuse_other_clocks(self, connection: sqlite3.Connection, presence: PresenceFile) -> None:
        boot = self._clock.boot()
        for worker in _registered(connection):
            if worker.boot != boot and self._presence_of(worker, presence) is Presence.ALIVE:
                message = (
                    f"{self._database.path} is in use by process {worker.pid} of another kernel or "
                    "time namespace; leases cannot be compared. Run all of them in one"
                )
                raise CannotOpen(message)

    def register(
        self,
        *,
        name: str,
        kind: str,
        queues: Sequence[str] = (),
        slots: int = 0,
        parent_id: int | None = None,
    ) -> int:
        """Take a slot and a never reused worker id; return the id.

        `kind` is worker (a supervisor), child, beat or client; `slots` is how many jobs it runs
        at once. If the process dies midway the slot is free again and nothing was claimed.
        """
        with self._mutex:
            if self._worker_id:
                return self._worker_id
            presence = self.presence
            slot = presence.take_free_slot()
            try:
                worker_id, lost = self._database.write(
                    lambda c: self._register(
                        c,
                        presence,
                        {
                            "name": name,
                            "kind": kind,
                            "parent_id": parent_id,
                            "pid": os.getpid(),
                            "host": socket.gethostname(),
                            "boot": self._clock.boot(),
                            "presence": presence.identity,
                            "slot": slot,
                            "slots": slots,
                            "queues": json.dumps(list(queues)),
                            "now_ms": self._clock.wall_ms(),
                        },
                    )
                )
                bell = wakeup.Bell(wakeup.bell_path(self._database.run_directory, slot))
            except BaseException:
                presence.give_back(slot)
                raise
            self._slot, self._bell, self._worker_id = slot, bell, worker_id
        self._wake_for(lost)
        return worker_id

    def _register(
        self,
        connection: sqlite3.Connection,
        presence: PresenceFile,
        row: dict[str, object],
    ) -> tuple[int, list[Lost]]:
        slot = row["slot"]
        if not isinstance(slot, int):  # pragma: no cover - set by `register`
            raise TypeError
        lost: list[Lost] = []
        for worker in _registered(connection):
            if worker.slot == slot and worker.presence == presence.identity:
                lost += self._end(connection, worker.id, presence.notes(slot))
        worker_id = connection.execute(sql.REGISTER_WORKER, row).lastrowid or 0
        # Before the commit, so that a sweeper, who looks under the writer lock, never sees a
        # registered row whose slot does not name it yet.
        presence.write_entry(
            slot,
            worker_id=worker_id,
            pid=os.getpid(),
            heartbeat_ms=self._clock.lease_ms(),
            parent_id=int(str(row["parent_id"] or 0)),
        )
        return worker_id, lost

    def leave(self) -> list[Lost]:
        """Release what this process holds, uncounted, and give its slot back; harmless twice."""
        with self._mutex:
            if not self._worker_id or self._slot is None or self._presence is None:
                return []
            worker_id, slot, presence = self._worker_id, self._slot, self._presence
            lost = self._database.write(lambda c: self._end(c, worker_id, {}, orderly=True))
            presence.clear_entry(slot)
            presence.give_back(slot)
            if self._bell is not None:
                self._bell.close()
            self._slot, self._bell, self._worker_id = None, None, 0
        self._wake_for(lost)
        return lost

    def note_start(self, place: int, message_id: int, delivery: int, time_limit_s: float) -> None:
        """Note, before user code runs, that a delivery starts; a limit of 0 means none.

        From now on a death of this process counts an attempt for it. `place` is below 48 and
        belongs to one running job at a time.
        """
        now_ms = self._clock.lease_ms()
        deadline_ms = now_ms + round(time_limit_s * 1000) if time_limit_s else 0
        slot = self._own_slot()
        self.presence.write_note(slot, place, Note(message_id, delivery, now_ms, deadline_ms))

    def note_end(self, place: int) -> None:
        """Forget a start, after its settlement is committed."""
        slot = self._own_slot()
        self.presence.clear_note(slot, place)
        self.presence.count_ended(slot)

    def beat(self) -> None:
        """Stamp the slot: this interpreter is running. Called by a thread several times a lease."""
        if self._slot is not None:
            self.presence.beat(self._slot, self._clock.lease_ms())

    def _own_slot(self) -> int:
        if self._slot is None:
            message = "this process is not registered; claim first"
            raise TransportError(message)
        return self._slot

    # -- sleeping and waking ------------------------------------------------------------------------

    def sleep(
        self, queues: Sequence[str], timeout_s: float, *, has_work: Callable[[Sequence[str]], bool]
    ) -> bool:
        """Sleep until one of these queues may have work, at most `timeout_s` and one second.

        `has_work` is the store's look at the file; it runs after the flag is up. Return True when
        there is or may be work. Not for two threads of one process at once.
        """
        if self._bell is None:
            self.register(name=f"client-{os.getpid()}", kind="client")
        bell, slot = self._bell, self._own_slot()
        if bell is None:  # pragma: no cover - register sets it
            raise AssertionError
        now_ms = self._clock.wall_ms()
        timeout_s = min(timeout_s, LONGEST_SLEEP_S)
        mask = 0
        for queue in queues:
            mask |= mask_of(queue)
        self.presence.raise_flag(slot, mask, now_ms + round(timeout_s * 1000))
        try:
            if has_work(queues):
                return True
            due_ms = self._database.read(lambda c: c.execute(sql.NEXT_DUE).fetchone()[0])
            if due_ms is not None:
                timeout_s = min(timeout_s, (due_ms - now_ms) / 1000)
            return bell.wait(timeout_s)
        finally:
            self.presence.lower_flag(slot)

    @property
    def bell(self) -> wakeup.Bell | None:
        """Return what wakes this process, for signal handlers and event loops; None: unregistered."""
        return self._bell

    def wake(self, queue: str, due_ms: int | None) -> None:
        """Wake one sleeper that can claim from `queue`, after the commit that made it worth while.

        With `due_ms` only one that would sleep longer than that.
        """
        presence = self._presence
        if presence is None:
            return
        for slot in presence.sleepers(mask_of(queue), due_ms):
            # Lowered by us, so that the next message wakes the next sleeper.
            if presence.lower_flag(slot) and wakeup.ring(self._database.run_directory, slot):
                return

    def _wake_for(self, lost: Sequence[Lost]) -> None:
        for one in lost:
            self.wake(one.queue, None)

    # -- the others ---------------------------------------------------------------------------------

    def alive(self) -> list[tuple[Worker, Entry | None]]:
        """Return the registered processes that are not known dead, with their slots' entries.

        The entry is None when presence is unknown.
        """
        presence = self.presence
        found: list[tuple[Worker, Entry | None]] = []
        for worker in self._database.read(_registered):
            standing = self._presence_of(worker, presence)
            if standing is Presence.UNKNOWN:
                found.append((worker, None))
            elif standing is Presence.ALIVE:
                found.append((worker, presence.entry(worker.slot)))
        return found

    def running(self) -> dict[int, tuple[Note, int]]:
        """Return what is noted as started by living processes: message id to (note, worker id)."""
        presence = self.presence
        found: dict[int, tuple[Note, int]] = {}
        for entry in presence.entries():
            if not presence.is_free(entry.slot):
                for note in presence.notes(entry.slot).values():
                    found[note.message_id] = (note, entry.worker_id)
        return found

    def children_of(self, parent_id: int) -> list[tuple[Entry, dict[int, Note]]]:
        """Return the slots of a supervisor's children, with what each has started. No SQL."""
        presence = self.presence
        return [
            (entry, presence.notes(entry.slot))
            for entry in presence.entries()
            if entry.parent_id == parent_id and entry.worker_id
        ]

    def extend_worker(self, worker_ids: Sequence[int], lease_s: float) -> int:
        """Lengthen every unexpired lease of these workers; return how many."""
        now_ms = self._clock.lease_ms()

        def work(connection: sqlite3.Connection) -> int:
            return sum(
                connection.execute(
                    sql.EXTEND_WORKER,
                    {
                        "worker_id": worker_id,
                        "lease_until_ms": now_ms + round(lease_s * 1000),
                        "lease_now_ms": now_ms,
                    },
                ).rowcount
                for worker_id in worker_ids
            )

        return self._database.write(work) if worker_ids else 0

    def sweep(self) -> list[Lost]:
        """Give back what dead processes held, and what lies under leases that are over.

        Costs no transaction when nobody died and one small read for the leases. If the sweeper
        dies midway, all of a transaction happened or nothing, and the next one goes on.
        """
        lost = [one for entry in self._dead_entries() for one in self._sweep_slot(entry)]
        lease_now_ms = self._clock.lease_ms()
        if self._database.read(
            lambda c: c.execute(sql.ANY_OVERDUE, {"lease_now_ms": lease_now_ms}).fetchone()
        ):
            lost += self._database.write(self._sweep_overdue)
        self._wake_for(lost)
        return lost

    def sweep_all(self) -> list[Lost]:
        """Sweep by the rows, not only by the slots: for a start, after a reboot or a lost file."""
        lost: list[Lost] = []
        presence = self.presence
        for worker in self._database.read(_registered):
            if self._presence_of(worker, presence) is Presence.DEAD:
                lost += self._sweep_worker(worker, presence)
        self._wake_for(lost)
        return lost + self.sweep()

    def end_worker(
        self,
        worker_id: int,
        *,
        faults: Mapping[int, tuple[str, Fault]] | None = None,
        count: bool = True,
    ) -> list[Lost]:
        """End a worker that its supervisor has seen die, and give back what it held.

        `faults` names the cause by message id where it is known better than "lost": (outcome for
        the record, fault). With `count` False even what had been started is released uncounted:
        an orderly shutdown that ran out of grace.
        """
        presence = self.presence
        entry = next((e for e in presence.entries() if e.worker_id == worker_id), None)
        notes = presence.notes(entry.slot) if entry and count else {}
        lost = self._database.write(
            lambda c: self._end(c, worker_id, notes, faults, orderly=not count)
        )
        if entry is not None and presence.take(entry.slot):
            if presence.entry(entry.slot).worker_id == worker_id:
                presence.clear_entry(entry.slot)
            presence.give_back(entry.slot)
        self._wake_for(lost)
        return lost

    def _dead_entries(self) -> list[Entry]:
        presence = self.presence
        return [entry for entry in presence.entries() if presence.is_free(entry.slot)]

    def _sweep_slot(self, entry: Entry) -> list[Lost]:
        """End the dead owner of a slot while holding its lock."""
        presence = self.presence
        if not presence.take(entry.slot):
            return []
        try:
            owner = presence.entry(entry.slot).worker_id
            notes = presence.notes(entry.slot)

            def work(connection: sqlite3.Connection) -> list[Lost]:
                return [
                    one
                    for worker in _registered(connection)
                    # The slot must match, too: an id from a rolled back registration may have
                    # been given to somebody else in another slot.
                    if worker.id == owner
                    and worker.slot == entry.slot
                    and worker.presence == presence.identity
                    for one in self._end(connection, worker.id, notes)
                ]

            lost = self._database.write(work)
            presence.clear_entry(entry.slot)
            return lost
        finally:
            presence.give_back(entry.slot)

    def _sweep_worker(self, worker: Worker, presence: PresenceFile) -> list[Lost]:
        if (
            worker.presence == presence.identity
            and presence.entry(worker.slot).worker_id == worker.id
        ):
            return self._sweep_slot(presence.entry(worker.slot))
        return self._database.write(lambda c: self._end(c, worker.id, {}))

    def _presence_of(self, worker: Worker, presence: PresenceFile) -> Presence:
        if worker.presence != presence.identity:
            # Another boot's processes are gone with their kernel; another file's are not known.
            return Presence.UNKNOWN if worker.boot == self._clock.boot() else Presence.DEAD
        if presence.is_free(worker.slot) or presence.entry(worker.slot).worker_id != worker.id:
            return Presence.DEAD
        return Presence.ALIVE

    def _sweep_overdue(self, connection: sqlite3.Connection) -> list[Lost]:
        presence = self.presence
        notes = {
            note.message_id: note
            for entry in presence.entries()
            for note in presence.notes(entry.slot).values()
        }
        rows = connection.execute(sql.OVERDUE, {"lease_now_ms": self._clock.lease_ms()}).fetchall()
        fault = Fault(
            "LeaseOver", "the worker neither ended the job nor extended its lease in time"
        )
        return [
            self._lose(connection, Held(*row), notes, {row[0]: ("lost", fault)}) for row in rows
        ]

    def _end(
        self,
        connection: sqlite3.Connection,
        worker_id: int,
        notes: Mapping[int, Note],
        faults: Mapping[int, tuple[str, Fault]] | None = None,
        *,
        orderly: bool = False,
    ) -> list[Lost]:
        """Mark a worker ended and give back what it holds; `orderly` counts nothing."""
        rows = connection.execute(sql.HELD_BY_WORKER, {"worker_id": worker_id}).fetchall()
        lost = [
            self._lose(connection, Held(*row), notes, faults or {}, orderly=orderly) for row in rows
        ]
        connection.execute(
            sql.END_WORKER, {"worker_id": worker_id, "now_ms": self._clock.wall_ms()}
        )
        return lost

    def _lose(
        self,
        connection: sqlite3.Connection,
        held: Held,
        notes: Mapping[int, Note],
        faults: Mapping[int, tuple[str, Fault]],
        *,
        orderly: bool = False,
    ) -> Lost:
        """End one delivery for somebody who cannot any more."""
        note = notes.get(held.message_id)
        counted = not orderly and note is not None and note.delivery == held.delivery
        # Nobody can tell whether it was started: its consumer notes no starts, or a reboot may
        # have lost the note.
        blind = (
            not orderly
            and not counted
            and (held.worker_kind == "client" or held.worker_boot != self._clock.boot())
        )
        now_ms = self._clock.wall_ms()
        cause, fault = faults.get(
            held.message_id,
            ("lost", Fault("WorkerLost", f"worker {held.worker} died while it ran this job")),
        )
        values = {
            "id": held.message_id,
            "delivery": held.delivery,
            "run": held.run,
            "now_ms": now_ms,
            "counted": int(counted),
            "blind": int(blind),
            "outcome": cause,
            "error_type": fault.type,
            "error_message": fault.message,
            "traceback": fault.traceback,
        }
        dead = False
        if counted:
            dead = held.attempts + 1 >= (held.max_attempts or DEFAULT_MAX_ATTEMPTS)
            if dead:
                connection.execute(sql.LOSE_TO_DEAD, values)
            else:
                (losses,) = connection.execute(sql.COUNT_LOSSES, values).fetchone()
                values["due_at_ms"] = now_ms + round(_loss_wait_s(losses) * 1000)
                connection.execute(sql.LOSE_TO_RETRY, values)
            connection.execute(sql.RECORD_ATTEMPT, values)
        elif blind and held.unnoted_losses + 1 >= MAX_UNNOTED_LOSSES:
            dead = True
            values["error_type"] = "TooManyDeliveries"
            values["error_message"] = (
                f"delivered {MAX_UNNOTED_LOSSES} times to consumers that vanished with it"
            )
            connection.execute(sql.LOSE_TO_DEAD, values)
        else:
            connection.execute(sql.LOSE_UNCOUNTED, values)
        return Lost(held.message_id, held.job_id, held.task, held.queue, held.worker, counted, dead)

    # -- forking ------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Hold the mutex, so that the child does not inherit it taken by another thread."""
        self._mutex.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Be nobody yet: the parent's slot, lock and FIFO are not ours."""
        self._mutex = threading.Lock()
        if self._bell is not None:
            self._bell.close()
        self._presence, self._slot, self._bell, self._worker_id = None, None, None, 0


def _registered(connection: sqlite3.Connection) -> list[Worker]:
    return [
        Worker(*fields, queues=tuple(json.loads(queues)), started_at_ms=started_at_ms)
        for *fields, queues, started_at_ms in connection.execute(sql.REGISTERED_WORKERS).fetchall()
    ]


def _loss_wait_s(earlier_losses: int) -> float:
    """Return how long a lost job waits: not at all the first time, then doubling."""
    if not earlier_losses:
        return 0.0
    return min(_LOSS_BACKOFF_S * 2.0 ** (earlier_losses - 1), _LOSS_BACKOFF_MAX_S)
