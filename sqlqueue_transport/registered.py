"""Who is registered: the rows of processes, and what their slots say of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlqueue_transport import statements as sql
from sqlqueue_transport.presence import SLOTS, Presence, PresenceFile, Standing

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock


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
    started_at_ms: int
    queues: tuple[str, ...] = ()  # what it consumes; only `alive` says so


def registered(connection: sqlite3.Connection) -> list[Worker]:
    """Return every process that registered and was not ended."""
    return [Worker(*row) for row in connection.execute(sql.REGISTERED_WORKERS).fetchall()]


def registered_with_queues(connection: sqlite3.Connection) -> list[Worker]:
    """Return the same, each with the queues it consumes from."""
    consuming: dict[int, list[str]] = {}
    for worker_id, queue in connection.execute(sql.CONSUMING).fetchall():
        consuming.setdefault(worker_id, []).append(queue)
    return [replace(one, queues=tuple(consuming.get(one.id, ()))) for one in registered(connection)]


def slot_of(worker: Worker, presence: PresenceFile) -> int | None:
    """Return the slot of a worker as long as the slot, too, names the worker."""
    if worker.presence != presence.identity or not 0 <= worker.slot < SLOTS:
        return None
    return worker.slot if presence.entry(worker.slot).worker_id == worker.id else None


def presence_of(worker: Worker, presence: PresenceFile, clock: Clock) -> Presence:
    """Say whether a registered process lives, by the lock of its slot."""
    if worker.presence != presence.identity:
        # Another boot's processes are gone with their kernel; another file's are not known.
        return Presence.UNKNOWN if worker.boot == clock.boot() else Presence.DEAD
    slot = slot_of(worker, presence)
    if slot is None or presence.standing(slot) is not Standing.OWNED:
        return Presence.DEAD
    return Presence.ALIVE
