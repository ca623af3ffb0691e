"""End what is over: dead processes, leases, expired messages, queues nobody uses.

Whoever finds a registered process gone ends it: its deliveries are given back (`losses`), its
consumers are counted no more, and queues that lived for them go away. Anybody may sweep at any
moment; the writer lock and the state of each row decide what is still true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue_transport import losses, routing
from sqlqueue_transport import statements as sql
from sqlqueue_transport.presence import Entry, Presence, PresenceFile
from sqlqueue_transport.registered import Worker, presence_of, registered, slot_of
from sqlqueue_transport.routing import EXPIRED_AT_ONCE, Landed, Unwanted

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database
    from sqlqueue_transport.messages import Fault, Lost
    from sqlqueue_transport.sleepers import Sleepers
    from sqlqueue_transport.topology import Topology

# Of expired messages, a sweep: more than is published in the second until the next one, and little
# enough that whoever sweeps also does what else it has to.
_EXPIRED_PORTIONS = 50


class Sweeper:
    """Sweep one file; safe to share between threads. `presence` returns the presence file."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        topology: Topology,
        sleepers: Sleepers,
        presence: Callable[[], PresenceFile],
    ) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._topology = topology
        self._write = sleepers.write
        self._presence = presence

    def sweep(self) -> list[Lost]:
        """End what is over: dead processes, leases, expired messages, queues nobody uses.

        Costs no transaction when there is nothing to end, and one small read. If the sweeper
        dies midway, all of a transaction happened or nothing, and the next one goes on.
        """
        presence = self._presence()
        lost = [
            one for entry in self.dead_entries() for one in self._sweep_slot(entry.slot, presence)
        ]
        now = {"lease_now_ms": self._clock.lease_ms(), "now_ms": self._clock.wall_ms()}
        is_overdue, has_expired = self._database.read(
            lambda c: (
                c.execute(sql.ANY_OVERDUE, now).fetchone(),
                c.execute(sql.ANY_EXPIRED, now).fetchone(),
            )
        )
        if is_overdue:
            lost += self._write(lambda c, landed: self._end_overdue(c, presence, landed))
        # What was just given back may have expired while it was held.
        portions = _EXPIRED_PORTIONS if has_expired or is_overdue else 0
        while portions and self._discard_expired() == EXPIRED_AT_ONCE:
            portions -= 1
        self._topology.end_unused()
        return lost

    def _end_overdue(
        self, connection: sqlite3.Connection, presence: PresenceFile, landed: Landed
    ) -> list[Lost]:
        slots = [entry.slot for entry in presence.entries()]
        notes = [note for slot in slots for note in presence.notes(slot).values()]
        ended = [one for slot in slots for one in presence.ended(slot)]
        return losses.end_overdue(connection, self._clock, notes, ended, landed)

    def _discard_expired(self) -> int:
        """End a portion of the expired messages; return how many."""

        def work(connection: sqlite3.Connection, landed: Landed) -> int:
            now_ms = self._clock.wall_ms()
            values = {"now_ms": now_ms, "chunk": EXPIRED_AT_ONCE}
            rows = connection.execute(sql.EXPIRED, values).fetchall()
            for (message_id,) in rows:
                values["id"] = message_id
                if not connection.execute(sql.STILL_EXPIRED, values).fetchone():
                    continue
                routing.discard(connection, message_id, Unwanted.EXPIRED, now_ms, landed)
            return len(rows)

        return self._write(work)

    def sweep_all(self) -> list[Lost]:
        """Sweep by the rows, not only by the slots: for a start, after a reboot or a lost file."""
        lost: list[Lost] = []
        presence = self._presence()
        for worker in self._database.read(registered):
            if presence_of(worker, presence, self._clock) is Presence.DEAD:
                lost += self._sweep_worker(worker, presence)
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
        presence = self._presence()
        slots: list[int] = []

        def work(connection: sqlite3.Connection, landed: Landed) -> list[Lost]:
            worker = next((w for w in registered(connection) if w.id == worker_id), None)
            slot = None if worker is None else slot_of(worker, presence)
            slots[:] = [] if slot is None else [slot]
            notes = presence.notes(slot).values() if slot is not None and count else ()
            return losses.end_worker(
                connection,
                self._clock,
                worker_id,
                notes,
                landed,
                ended=() if slot is None else presence.ended(slot),
                faults=faults,
                orderly=not count,
            )

        lost = self._write(work)
        for slot in slots:
            if presence.take(slot):
                if presence.entry(slot).worker_id == worker_id:
                    presence.clear_entry(slot)
                presence.give_back(slot)
        return lost

    def dead_entries(self) -> list[Entry]:
        """Return the slots whose owners are dead and not ended yet."""
        presence = self._presence()
        return [entry for entry in presence.entries() if presence.is_free(entry.slot)]

    def _sweep_slot(self, slot: int, presence: PresenceFile) -> list[Lost]:
        """Take a slot whose owner is dead, end the owner, and give the slot back."""
        if not presence.take(slot):
            return []
        try:
            return self.end_owner(slot, presence)
        finally:
            presence.give_back(slot)

    def end_owner(self, slot: int, presence: PresenceFile) -> list[Lost]:
        """End the dead owner of a slot that this process has taken, then clear the slot.

        In this order: if this process dies in between, the next one reads the notes again and
        finds nothing more to give back.
        """
        owner = presence.entry(slot).worker_id
        notes, ended = presence.notes(slot).values(), presence.ended(slot)

        def work(connection: sqlite3.Connection, landed: Landed) -> list[Lost]:
            return [
                one
                for worker in registered(connection)
                # The slot must match, too: an id from a rolled back registration may have
                # been given to somebody else in another slot.
                if worker.id == owner and slot_of(worker, presence) == slot
                for one in losses.end_worker(
                    connection, self._clock, worker.id, notes, landed, ended=ended
                )
            ]

        lost = self._write(work)
        presence.clear_entry(slot)
        return lost

    def _sweep_worker(self, worker: Worker, presence: PresenceFile) -> list[Lost]:
        slot = slot_of(worker, presence)
        if slot is not None:
            return self._sweep_slot(slot, presence)
        return self._write(
            lambda c, landed: losses.end_worker(c, self._clock, worker.id, (), landed)
        )
