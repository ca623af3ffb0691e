"""Who consumes from the file: registering, consuming, sleeping, leaving.

A process registers before its first claim and so gets a worker id that is never used again.
Whoever finds a registered process gone ends it: see `sweeping`.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from sqlqueue_transport import forking, losses, wakeup
from sqlqueue_transport import statements as sql
from sqlqueue_transport.errors import (
    CannotOpen,
    DiskFault,
    ReadOnlyStore,
    TransportError,
    Unavailable,
)
from sqlqueue_transport.handles import LOOK_AT_PATH_EVERY_S
from sqlqueue_transport.options import Options
from sqlqueue_transport.presence import (
    Ended,
    Entry,
    Note,
    Presence,
    PresenceFile,
    Standing,
)
from sqlqueue_transport.registered import presence_of, registered, registered_with_queues
from sqlqueue_transport.sleepers import Sleepers
from sqlqueue_transport.sweeping import Sweeper
from sqlqueue_transport.topology import refuse_gone

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database
    from sqlqueue_transport.messages import Lost
    from sqlqueue_transport.registered import Worker
    from sqlqueue_transport.topology import Topology

_PRESENCE_KEY = "presence"


class Consumers:
    """Register this process and watch over the others; safe to share between threads."""

    fork_order = 0

    def __init__(self, database: Database, clock: Clock, topology: Topology) -> None:
        """Remember where; `attach` does the work."""
        self._database = database
        self._clock = clock
        self._topology = topology
        # How often this process lets a message come back to it uncounted; 0 means no limit.
        self.max_deliveries = Options().max_deliveries
        self._presence: PresenceFile | None = None
        self._sleepers = Sleepers(database, clock, lambda: self.presence, lambda: self._slot)
        self.wake, self.wake_for = self._sleepers.wake, self._sleepers.wake_for
        self._sweeper = Sweeper(database, clock, topology, self._sleepers, lambda: self.presence)
        self.sweep = self._sweeper.sweep
        self.sweep_all = self._sweeper.sweep_all
        self.end_worker = self._sweeper.end_worker
        self._slot: int | None = None
        self._bell: wakeup.Bell | None = None
        self._worker_id = 0
        self._looked_at_s = time.monotonic()
        # Reentrant, because a signal handler may fork while this thread holds it.
        self._mutex = threading.RLock()
        self._fork_holds: list[bool] = []
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
        presence = self._presence
        if presence is None:
            self.attach()
        elif self._may_follow() and not presence.is_current:
            # Others make the file, and may do so at any time; who holds no slot of it follows them.
            with self._mutex:
                if not self._worker_id:
                    self.attach()
        if self._presence is None:  # pragma: no cover - attach sets it or raises
            raise AssertionError
        return self._presence

    def _may_follow(self) -> bool:
        """Say whether to look now if the file was replaced: never where this process has a slot.

        Who can write looks once a second, for a publisher asks with each message.
        """
        if self._worker_id:
            return False
        if self._database.is_read_only:
            return True
        now_s = time.monotonic()
        if abs(now_s - self._looked_at_s) < LOOK_AT_PATH_EVERY_S:
            return False
        self._looked_at_s = now_s
        return True

    @property
    def has_lost_presence(self) -> bool:
        """Say whether the file that this process is registered in is not the one others find.

        It was removed or replaced. Who is registered in it already is seen there as before; who comes
        later is not, and nobody who comes later knows whether this process lives.
        """
        with self._mutex:
            presence = self._presence
            return bool(self._worker_id) and presence is not None and not presence.is_current

    def attach(self) -> None:
        """Open the presence file the database names, or make a new one and name it.

        A file that is missing or has another identity was lost with whatever it said; processes
        registered under the old identity are then *unknown*, and their leases run out in time.
        Refuses a file on which processes of another boot or time namespace are alive. Who may only
        read makes none: it then knows of nobody, as every process that is registered is *unknown*.
        """
        path = self._database.presence_path

        def work(connection: sqlite3.Connection) -> PresenceFile:
            found = PresenceFile.attach(path)
            if found is None or found.identity != _named_presence(connection):
                found = PresenceFile.create(path)
                connection.execute(sql.SET_META, {"key": _PRESENCE_KEY, "value": found.identity})
            return found

        try:
            is_read_only = self._database.is_read_only
            found = PresenceFile.attach(path, read_only=is_read_only)
            if found is None or found.identity != self._database.read(_named_presence):
                found = PresenceFile.nobody(path) if is_read_only else self._database.write(work)
        except OSError as error:
            raise _translated(error, path) from error
        self._refuse_other_clocks(self._database.read(registered), found)
        before = self._presence
        if found is before:
            return
        if not found.join():
            self.attach()  # somebody else's last use of it ended between our look and now
            return
        self._presence = found
        if before is not None:
            before.part()

    def _refuse_other_clocks(self, workers: Sequence[Worker], presence: PresenceFile) -> None:
        boot = self._clock.boot()
        for worker in workers:
            if worker.boot != boot and presence_of(worker, presence, self._clock) is Presence.ALIVE:
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
        at once. If the process dies midway the slot is free again and nothing was claimed. Raises
        ReadOnlyStore.
        """
        if self._database.is_read_only:
            raise ReadOnlyStore(self._database.path)
        with self._mutex:
            if self._worker_id:
                return self._worker_id
            self.attach()  # anew: the file may have been lost since we looked
            presence = self.presence
            slot = presence.take_free_slot()
            bell: wakeup.Bell | None = None
            try:
                if presence.entry(slot).worker_id:
                    self._sweeper.end_owner(slot, presence)
                bell = self._make_bell(slot)
                worker_id = self._database.write(
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
                            "now_ms": self._clock.wall_ms(),
                            "max_deliveries": self.max_deliveries,
                        },
                        queues,
                    )
                )
            except BaseException:
                # The entry stays: if the row was committed all the same, a sweeper ends it.
                presence.give_back(slot)
                if bell is not None:
                    bell.close()
                raise
            self._slot, self._bell, self._worker_id = slot, bell, worker_id
        if kind == "client":
            # A framework's worker does so itself; here nobody else may be left to do it.
            self.sweep_all()
        return worker_id

    def _make_bell(self, slot: int) -> wakeup.Bell:
        path = wakeup.bell_path(self._database.run_directory, slot)
        try:
            return wakeup.Bell(path)
        except OSError as error:
            raise _translated(error, path) from error

    def _register(
        self,
        connection: sqlite3.Connection,
        presence: PresenceFile,
        row: dict[str, object],
        queues: Sequence[str],
    ) -> int:
        slot = row["slot"]
        if not isinstance(slot, int):  # pragma: no cover - set by `register`
            raise TypeError
        self._refuse_other_clocks(registered(connection), presence)
        worker_id = connection.execute(sql.REGISTER_WORKER, row).lastrowid or 0
        for queue in queues:
            _consume(connection, worker_id, f"registered for {queue}", queue)
        # Both before the commit, so that nobody ever sees a registered row whose slot does not
        # name it, or whose process does not own it.
        presence.write_entry(
            slot,
            worker_id=worker_id,
            pid=os.getpid(),
            heartbeat_ms=self._clock.lease_ms(),
            parent_id=int(str(row["parent_id"] or 0)),
        )
        presence.own(slot)
        return worker_id

    def detach(self) -> None:
        """Let the presence file go; the next use attaches again."""
        with self._mutex:
            presence, self._presence = self._presence, None
        if presence is not None:
            presence.part()

    def leave(self) -> list[Lost]:
        """Release what this process holds, uncounted, and give its slot back; harmless twice.

        The slot is given back also when the file cannot be written now: whoever sweeps then finds it
        free, and releases the rest, uncounted, too.
        """
        with self._mutex:
            if not self._worker_id or self._slot is None or self._presence is None:
                return []
            worker_id, slot, presence = self._worker_id, self._slot, self._presence
            try:
                lost = self._sleepers.write(
                    lambda c, landed: losses.end_worker(
                        c,
                        self._clock,
                        worker_id,
                        (),
                        landed,
                        ended=presence.ended(slot),
                        orderly=True,
                    )
                )
                if presence.entry(slot).worker_id == worker_id:
                    presence.clear_entry(slot)
            finally:
                if presence.entry(slot).worker_id == worker_id:
                    presence.clear_notes(slot)
                self._let_slot_go()
        self._topology.end_unused()
        return lost

    def _let_slot_go(self) -> None:
        slot, self._slot = self._slot, None
        bell, self._bell = self._bell, None
        self._worker_id = 0
        if slot is not None and self._presence is not None:
            self._presence.give_back(slot)
        if bell is not None:
            bell.close()

    # -- consuming --------------------------------------------------------------------------------

    def consume(self, tag: str, queue: str) -> None:
        """Count a consumer of a queue, from now until `stop_consuming` or the end of this process.

        `tag` is unique in this process. Raises NotDeclared for a queue that went away by itself.
        If the process dies midway, the consumer is counted until a sweep.
        """
        worker_id = self.worker_id
        self._database.write(lambda c: _consume(c, worker_id, tag, queue))

    def stop_consuming(self, tags: Mapping[str, str]) -> None:
        """Count consumers no more, by tag and queue; queues that lived for them go away."""
        if not tags or not self._worker_id:
            return
        worker_id = self._worker_id

        def work(connection: sqlite3.Connection) -> None:
            now_ms = self._clock.wall_ms()
            for tag, queue in tags.items():
                values = {"worker_id": worker_id, "tag": tag, "queue": queue, "now_ms": now_ms}
                connection.execute(sql.STOP_CONSUMING, values)
                connection.execute(sql.LEAVE_QUEUE, values)

        self._database.write(work)
        self._topology.end_unused()

    def count(self, queue: str) -> int:
        """Return how many consumers of a queue are not known dead, in all processes."""
        rows = self._database.read(
            lambda c: c.execute(sql.CONSUMERS_OF, {"queue": queue}).fetchall()
        )
        if not rows:
            return 0
        alive = {worker.id for worker, _ in self.alive()}
        return sum(worker_id in alive for (worker_id,) in rows)

    def name_worker(self, name: str) -> None:
        """Give this process a name that operators know it by."""
        values = {"worker_id": self.worker_id, "name": name}
        self._database.write(lambda c: c.execute(sql.NAME_WORKER, values).rowcount)

    # -- starting and ending jobs -----------------------------------------------------------------

    def note_start(
        self,
        place: int,
        message_id: int,
        delivery: int,
        time_limit_s: float,
        *,
        max_attempts: int | None = None,
    ) -> None:
        """Note, before user code runs, that a delivery starts; a limit of 0 means none.

        From now on a death of this process counts an attempt for it, and the last of
        `max_attempts` makes it a dead letter; 0 means no limit, None the message's own number or
        5. `place` is below `presence.NOTES` and belongs to one running job
        at a time.
        """
        now_ms = self._clock.lease_ms()
        deadline_ms = now_ms + round(time_limit_s * 1000) if time_limit_s else 0
        slot = self._own_slot()
        note = Note(message_id, delivery, now_ms, deadline_ms, max_attempts)
        self.presence.write_note(slot, place, note)

    def note_ended(self, place: int, number: int, ended: Ended) -> None:
        """Note that what was started in `place` ended well, before its settlement is committed.

        From now on a death of this process makes it done, with its result, and does not run it again.
        Of `presence.ENDED_NOTES` such ends with successive numbers none is overwritten.
        """
        slot = self._own_slot()
        presence = self.presence
        # In this order: there is no moment in which neither note stands.
        presence.write_ended(slot, number, ended)
        presence.clear_note(slot, place)
        presence.count_ended(slot)

    def note_end(self, place: int) -> None:
        """Forget a start, after its settlement is committed."""
        slot = self._own_slot()
        self.presence.clear_note(slot, place)
        self.presence.count_ended(slot)

    def forget_starts(self) -> None:
        """Take every note back: what this process holds is released uncounted once it has ended.

        For a process that cannot settle any more, through no fault of its jobs, and ends. Harmless
        when it is not registered. Touches no SQL.
        """
        with self._mutex:
            if self._slot is not None and self._presence is not None:
                self._presence.clear_notes(self._slot)

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
        self,
        queues: Sequence[str],
        timeout_s: float,
        *,
        has_work: Callable[[Sequence[str]], bool],
        until_due: bool = True,
    ) -> bool:
        """Sleep until one of these queues may have work, at most `timeout_s` and one second.

        `has_work` is the store's look at the file; it runs after the flag is up. Return True when
        there is or may be work. Several threads may sleep; a ring wakes all of them. With
        `until_due` False a message that becomes due ends no sleep: for who would not take it, and
        without a worker would not sleep at all from then on.
        """
        slot, bell = self.ready_to_sleep()
        return self._sleepers.sleep(
            slot, bell, queues, timeout_s, has_work=has_work, until_due=until_due
        )

    def ready_to_sleep(self) -> tuple[int, wakeup.Bell]:
        """Return this process's slot and bell, registering it as a plain client if need be."""
        if self._bell is None:
            self.register(name=f"client-{os.getpid()}", kind="client")
        bell = self._bell
        if bell is None:
            message = "another thread of this process has just closed the queue"
            raise CannotOpen(message)
        return self._own_slot(), bell

    @property
    def sleepers(self) -> Sleepers:
        """Return what an event loop uses to lie down and to get up around its own sleep."""
        return self._sleepers

    @property
    def bell(self) -> wakeup.Bell | None:
        """Return what wakes this process, for signal handlers and event loops; None: unregistered."""
        return self._bell

    # -- the others ---------------------------------------------------------------------------------

    def alive(self) -> list[tuple[Worker, Entry | None]]:
        """Return the registered processes that are not known dead, with their slots' entries.

        The entry is None when presence is unknown.
        """
        presence = self.presence
        found: list[tuple[Worker, Entry | None]] = []
        for worker in self._database.read(registered_with_queues):
            standing = presence_of(worker, presence, self._clock)
            if standing is Presence.UNKNOWN:
                found.append((worker, None))
            elif standing is Presence.ALIVE:
                found.append((worker, presence.entry(worker.slot)))
        return found

    def running(self) -> dict[int, tuple[Note, int]]:
        """Return what is noted as started by living processes: message id to (note, worker id).

        Of several notes for one message the newest delivery's counts: a stopped process may still
        show the one it has lost.
        """
        presence = self.presence
        found: dict[int, tuple[Note, int]] = {}
        for entry in presence.entries():
            if presence.standing(entry.slot) is not Standing.OWNED:
                continue
            for note in presence.notes(entry.slot).values():
                known = found.get(note.message_id)
                if known is None or known[0].delivery < note.delivery:
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

    # -- forking ------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Hold the mutex, so that no registration is half done in the child."""
        # One step, as in `database`: a signal handler may raise.
        self._fork_holds.extend(map(self._mutex.acquire, (True,)))

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._fork_holds:
            self._fork_holds.pop()
            self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Be nobody yet: the parent's slot, lock and FIFO are not ours."""
        self._mutex = threading.RLock()
        self._fork_holds.clear()
        self._sleepers.after_fork_in_child()
        bell = self._bell
        self._presence, self._slot, self._bell, self._worker_id = None, None, None, 0
        if bell is not None:
            bell.close_in_child()


def _consume(connection: sqlite3.Connection, worker_id: int, tag: str, queue: str) -> None:
    values = {"worker_id": worker_id, "tag": tag, "queue": queue}
    refuse_gone(connection, queue)
    connection.execute(sql.CONSUME, values)
    connection.execute(sql.USE_QUEUE, values)


def _named_presence(connection: sqlite3.Connection) -> str | None:
    """Return the identity of the presence file that the database names as its own."""
    row = connection.execute(sql.GET_META, {"key": _PRESENCE_KEY}).fetchone()
    return row[0] if row else None


def _translated(error: OSError, path: Path) -> Unavailable:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}:
        message = f"{error.filename or path}: {error.strerror}; free space or mend the disk"
        return DiskFault(message)
    return CannotOpen(f"cannot use {error.filename or path}: {error.strerror}")
