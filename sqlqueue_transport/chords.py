"""Chords: count the members of a group that have ended, and publish what is to follow them, once.

A chord's body is published in the transaction that counts its last member. That holds the one
promise of this module: **a chord whose members are all in has its body stored; no commit ever shows
the one without the other.** What the body's messages are only its owner knows, and no code of others
may run inside a transaction. So it goes in two steps:

1. `look` reads how the chord would stand after a change: a member that ended, or the size that is
   now known. If the chord would be complete, the caller prepares the messages of its body.
2. `advance` makes the change in a write transaction and judges again. Complete, and prepared for
   exactly this: the messages are stored there and then. Complete, and not prepared, because two
   members were the last at once: nothing of it happens, and the caller looks again.

Whoever dies before the commit has changed nothing: its member is delivered again and counts once.

A run that has published is over: what comes for its key later, a member delivered once more for
example, belongs to a new run, of which nobody knows the size, and which expires. That is not thrown
away because of chords that are applied again under the same ids: there the first members may end
before anybody has said so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport.sqlite_errors import refused_values

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

CHUNK = 500  # rows a transaction, so that claims never wait long

# Where chords are kept for ever, these are not: runs of which nobody says the size, and sizes of
# which no member comes. Celery sets one for each group that ends a chain, whose members report to
# the chord around it (canvas.py, `_apply_tasks`, 5.7).
UNANNOUNCED_S = 86_400.0

_RUN = """
SELECT id, begun, size, added, counted, expires_at_ms, body FROM chord WHERE key = :key
"""
_NEW_RUN = """
INSERT INTO chord (key, begun, expires_at_ms) VALUES (:key, :begun, :expires_at_ms)
"""
# Its key is free for the next run at once; its members are deleted a chunk at a time.
_END_RUN = "UPDATE chord SET key = NULL, expires_at_ms = :now_ms WHERE id = :run"
_DELETE_RUN = "DELETE FROM chord WHERE id = :run"
_DELETE_MEMBERS = """
DELETE FROM chord_member WHERE id IN (
  SELECT id FROM chord_member WHERE chord_id = :run LIMIT :chunk
)
"""
_SET_SIZE = "UPDATE chord SET size = :size WHERE id = :run"
_KEEP_BODY = "UPDATE chord SET body = coalesce(body, :body) WHERE id = :run"
_EXTEND = "UPDATE chord SET expires_at_ms = :expires_at_ms WHERE id = :run"
_COUNT = "UPDATE chord SET counted = counted + 1 WHERE id = :run"
# The first word counts, as with Celery's own backends.
_ADD_MEMBER = """
INSERT INTO chord_member (chord_id, slot, position, value)
VALUES (:run, :slot, :position, :value)
ON CONFLICT (chord_id, slot) DO NOTHING
"""
_IS_FILLED = "SELECT 1 FROM chord_member WHERE chord_id = :run AND slot = :slot"
_MEMBERS = "SELECT position, id, value FROM chord_member WHERE chord_id = :run"
_SLOT_OF = "SELECT slot FROM chord_addition WHERE chord_id = :run AND task_id = :task_id"
_IS_ADDED = "SELECT 1 FROM chord_addition WHERE chord_id = :run AND slot = :slot"
_ADD = """
INSERT INTO chord_addition (chord_id, task_id, slot)
VALUES (:run, :task_id, :slot)
ON CONFLICT (chord_id, task_id) DO NOTHING
"""
_COUNT_ADDED = "UPDATE chord SET added = added + 1 WHERE id = :run"
# Members first: the cascade of one large chord would hold the writer for long. The index's predicate
# stands here to the letter.
_PRUNE_MEMBERS = """
DELETE FROM chord_member WHERE id IN (
  SELECT m.id FROM chord AS c
  JOIN chord_member AS m ON m.chord_id = c.id
  WHERE c.expires_at_ms IS NOT NULL AND c.expires_at_ms <= :now_ms
  LIMIT :chunk
)
"""
_PRUNE = """
DELETE FROM chord WHERE id IN (
  SELECT c.id FROM chord AS c
  WHERE c.expires_at_ms IS NOT NULL AND c.expires_at_ms <= :now_ms
    AND NOT EXISTS (SELECT 1 FROM chord_member AS m WHERE m.chord_id = c.id)
  LIMIT :chunk
)
"""


@dataclass(frozen=True, slots=True)
class Member:
    """Say that a member has ended, and with what.

    `index` is its place in the header; two entries of a header may share one task id. `body` is
    kept if the size is not known yet, for who will learn it.
    """

    task_id: str
    index: int | None
    value: bytes
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """Say how many members the header has.

    Within a run the largest word counts: Celery before 5.7 says it once more, and smaller, for each
    group that ends a chain of the header.
    """

    members: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Say how a run of a chord stands; `total` is None while nobody knows it.

    `values` are those of the members, in the header's order, and are read only for a run that is
    complete. `body` is what a member left for who completes the run without knowing its body.
    """

    run: int
    counted: int
    total: int | None
    values: tuple[bytes, ...] = ()
    body: bytes | None = None

    @property
    def is_complete(self) -> bool:
        """Say whether every member is in. A chord without members has nobody to complete it."""
        return self.total is not None and self.counted >= max(self.total, 1)

    @property
    def mark(self) -> tuple[int, int, int | None]:
        """Name this standing: members only ever come to a run, so their number says which."""
        return self.run, self.counted, self.total


@dataclass(slots=True)
class _Run:
    """Be the row of a run, changed together with the row."""

    id: int
    begun: int
    size: int | None
    added: int
    counted: int
    expires_at_ms: int | None
    body: bytes | None

    def standing(self) -> Standing:
        total = None if self.size is None else self.size + self.added
        return Standing(self.id, self.counted, total, body=self.body)


class _NotReady(Exception):
    """Roll back: the run would be complete, and its body was not prepared for that."""


class Chords:
    """Count members of chords; safe to share between threads. Keys are text.

    Lifetimes are seconds from the last change; 0 and None mean for ever (but see UNANNOUNCED_S).
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def begin(self, key: str, *, expires_s: float | None) -> None:
        """Announce a run, before its header is sent.

        A run of this key that was begun and is not over goes on: whoever sent its header was killed
        and sends it once more, under the same ids. If the process dies midway, there is a run or
        none; it expires.
        """

        def work(connection: sqlite3.Connection) -> None:
            now_ms = self._clock.wall_ms()
            run = _current(connection, key, now_ms)
            if run is not None and not run.begun and run.size is None:
                # Late members of a run that is over.
                connection.execute(_END_RUN, {"run": run.id, "now_ms": now_ms})
                run = None
            if run is None:
                run = _new(connection, key, begun=1)
            _extend(connection, run, now_ms, expires_s)

        self._database.write(work)

    def add(self, key: str, task_id: str, slot: str, *, expires_s: float | None) -> None:
        """Let a run wait for one more member: the task `task_id`, which will fill `slot`.

        When the member that adds is delivered again and adds again, it names the same slot, and
        what comes first fills it. If the process dies midway it is added or not; if it dies after
        that and before the task is sent, the member that adds must run again.
        """

        def work(connection: sqlite3.Connection) -> None:
            now_ms = self._clock.wall_ms()
            run = _current(connection, key, now_ms) or _new(connection, key, begun=0)
            values = {"run": run.id, "task_id": task_id, "slot": slot}
            if not connection.execute(_IS_ADDED, values).fetchone():
                connection.execute(_COUNT_ADDED, values)
            connection.execute(_ADD, values)
            _extend(connection, run, now_ms, expires_s)

        self._database.write(work)

    def look(self, key: str, change: Member | Size) -> Standing:
        """Return how the run would stand after a change. Changes nothing."""

        def work(connection: sqlite3.Connection) -> Standing:
            run = _row(connection, key, self._clock.wall_ms()) or _Run(0, 0, None, 0, 0, None, None)
            mine: list[tuple[float | None, float, bytes]] = []
            if isinstance(change, Size):
                run.size = max(change.members, run.size or 0)
            elif not connection.execute(
                _IS_FILLED, {"run": run.id, "slot": _slot(connection, run, change)}
            ).fetchone():
                run.counted += 1
                mine = [(change.index, math.inf, change.value)]
            standing = run.standing()
            if not standing.is_complete:
                return standing
            rows = connection.execute(_MEMBERS, {"run": run.id}).fetchall() + mine
            rows.sort(key=lambda row: (row[0] is None, row[0] or 0, row[1]))
            values = tuple(row[2] for row in rows)
            return Standing(standing.run, standing.counted, standing.total, values, standing.body)

        return self._database.read(work)

    def advance(
        self,
        key: str,
        change: Member | Size,
        *,
        expires_s: float | None,
        prepared: Standing | None = None,
        publish: Callable[[sqlite3.Connection, int], object] | None = None,
        durable: bool = False,
    ) -> bool:
        """Make a change, and when the run is complete by it, publish and end the run.

        `prepared` is the standing that `publish` was prepared for: it is called inside the
        transaction, perhaps more than once, with the time in milliseconds. Return False when the
        run would be complete and nothing was prepared for that standing: then nothing was changed,
        and one should look again. `publish` None leaves a complete run to its next change. With
        `durable` all of it survives a power cut once this has returned. Raises InvalidMessage when
        SQLite cannot hold a value, and what `publish` raises; nothing was changed then. If the
        process dies midway, the change and the body are stored, or neither.
        """

        def work(connection: sqlite3.Connection) -> int | None:
            now_ms = self._clock.wall_ms()
            run = _current(connection, key, now_ms) or _new(connection, key, begun=0)
            _apply(connection, run, change)
            standing = run.standing()
            if standing.is_complete and (prepared is None or prepared.mark != standing.mark):
                raise _NotReady
            if not standing.is_complete or publish is None:
                _extend(connection, run, now_ms, expires_s)
                return None
            publish(connection, now_ms)
            if run.counted > CHUNK:
                connection.execute(_END_RUN, {"run": run.id, "now_ms": now_ms})
                return run.id
            connection.execute(_DELETE_RUN, {"run": run.id})
            return None

        try:
            with refused_values(f"the chord {key} cannot be counted"):
                over = self._database.write(work, durable=durable)
        except _NotReady:
            return False
        while over is not None and self._clear(over):
            pass
        return True

    def _clear(self, run: int) -> bool:
        """Delete a chunk of a run that is over; say whether there is more. `prune` would, too."""
        values = {"run": run, "chunk": CHUNK}

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute(_DELETE_MEMBERS, values).rowcount == CHUNK:
                return True
            connection.execute(_DELETE_RUN, values)
            return False

        return self._database.write(work)

    def prune(self, now_ms: int) -> int:
        """Delete up to a chunk of what is over or has expired; return how many rows.

        If the process dies midway, all of that chunk is gone or nothing.
        """

        def work(connection: sqlite3.Connection) -> int:
            members = delete_members(connection, CHUNK, now_ms=now_ms)
            return members if members >= CHUNK else delete_expired(connection, CHUNK, now_ms=now_ms)

        return self._database.write(work)


def delete_members(connection: sqlite3.Connection, limit: int, *, now_ms: int) -> int:
    """Delete up to `limit` members of runs that are over or have expired; return how many."""
    values = {"now_ms": now_ms, "chunk": limit}
    return connection.execute(_PRUNE_MEMBERS, values).rowcount


def delete_expired(connection: sqlite3.Connection, limit: int, *, now_ms: int) -> int:
    """Delete up to `limit` runs that are over or have expired and have no members left."""
    values = {"now_ms": now_ms, "chunk": limit}
    return connection.execute(_PRUNE, values).rowcount


def expires_at_ms(now_ms: int, lifetime_s: float | None) -> int | None:
    """Return when something expires; None, for ever, when it has no lifetime."""
    return now_ms + round(lifetime_s * 1000) if lifetime_s else None


def _row(connection: sqlite3.Connection, key: str, now_ms: int) -> _Run | None:
    """Return the run of a key; one that has expired is none."""
    row = connection.execute(_RUN, {"key": key}).fetchone()
    if row is None:
        return None
    run = _Run(*row)
    return None if run.expires_at_ms is not None and run.expires_at_ms <= now_ms else run


def _current(connection: sqlite3.Connection, key: str, now_ms: int) -> _Run | None:
    """Return the run of a key, as `_row` does, and free the key of one that has expired."""
    run = _row(connection, key, now_ms)
    if run is None:
        row = connection.execute(_RUN, {"key": key}).fetchone()
        if row is not None:
            connection.execute(_END_RUN, {"run": row[0], "now_ms": now_ms})
    return run


def _new(connection: sqlite3.Connection, key: str, *, begun: int) -> _Run:
    values = {"key": key, "begun": begun, "expires_at_ms": None}
    run_id = connection.execute(_NEW_RUN, values).lastrowid or 0
    return _Run(run_id, begun, None, 0, 0, None, None)


def _slot(connection: sqlite3.Connection, run: _Run, member: Member) -> str:
    """Return which slot a member fills: its own, unless another member has added it."""
    added = connection.execute(_SLOT_OF, {"run": run.id, "task_id": member.task_id}).fetchone()
    if added is not None:
        return str(added[0])
    return f"{member.task_id}:{'' if member.index is None else member.index}"


def _apply(connection: sqlite3.Connection, run: _Run, change: Member | Size) -> None:
    if isinstance(change, Size):
        run.size = max(change.members, run.size or 0)
        connection.execute(_SET_SIZE, {"run": run.id, "size": run.size})
        return
    values = {
        "run": run.id,
        "slot": _slot(connection, run, change),
        "position": change.index,
        "value": change.value,
        "body": change.body,
    }
    if connection.execute(_ADD_MEMBER, values).rowcount:
        connection.execute(_COUNT, values)
        run.counted += 1
    if run.size is None and change.body is not None:
        connection.execute(_KEEP_BODY, values)


def _extend(
    connection: sqlite3.Connection, run: _Run, now_ms: int, expires_s: float | None
) -> None:
    if run.size is None or not (run.begun or run.counted):
        expires_s = expires_s or UNANNOUNCED_S
    at_ms = expires_at_ms(now_ms, expires_s)
    connection.execute(_EXTEND, {"run": run.id, "expires_at_ms": at_ms})
