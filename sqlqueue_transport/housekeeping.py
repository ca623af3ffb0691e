"""Remove what is old: bounded work, done by whatever worker is alive.

Age is told by the wall clock, and a wall clock can be set wrong: nothing is removed for a day after
a jump (`clock.JumpWatch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue_transport import statements as sql
from sqlqueue_transport.clock import JumpWatch

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

CHUNK = 500  # rows a transaction, so that claims never wait long
_EVERY_MS = 60_000
_TICKS_KEPT_MS = 30 * 86_400_000
_NAMES_KEPT_MS = 86_400_000  # of queues that went away: as long as a late answer may take

# The partial index of the history is used because its predicate stands here to the letter.
_PRUNE_DONE = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE state IN ('done', 'permanently_failed', 'cancelled', 'expired')
    AND state = 'done' AND finished_at_ms < :before_ms
  LIMIT :chunk
)
"""
_PRUNE_DEAD = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE state IN ('done', 'permanently_failed', 'cancelled', 'expired')
    AND state IN ('permanently_failed', 'cancelled', 'expired') AND finished_at_ms < :before_ms
  LIMIT :chunk
)
"""
_ENTRIES = "SELECT entry FROM schedule"
_PRUNE_TICKS = "DELETE FROM tick WHERE entry = :entry AND due_ms < :before_ms"


class Housekeeping:
    """Prune finished messages; one object per store, cheap to call often."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._jumps = JumpWatch(clock)
        self._next_ms = 0  # on the lease clock, which does not jump

    def prune(self, *, done_s: float, dead_s: float, force: bool = False) -> int:
        """Delete up to a chunk each of done and of dead messages older than this; return how many.

        0 keeps for ever. Does nothing more than once a minute unless the last call filled its
        chunk, or with `force`, and pauses for a day after a jump of the wall clock. If the process
        dies midway a chunk is gone or still there.
        """
        now_ms, lease_now_ms = self._clock.wall_ms(), self._clock.lease_ms()
        pauses = self._jumps.pauses()
        if (pauses or lease_now_ms < self._next_ms) and not force:
            return 0

        def work(connection: sqlite3.Connection) -> int:
            count = 0
            for statement, age_s in ((_PRUNE_DONE, done_s), (_PRUNE_DEAD, dead_s)):
                if age_s:
                    values = {"before_ms": now_ms - round(age_s * 1000), "chunk": CHUNK}
                    count += connection.execute(statement, values).rowcount
            for (entry,) in connection.execute(_ENTRIES).fetchall():
                values = {"entry": entry, "before_ms": now_ms - _TICKS_KEPT_MS}
                connection.execute(_PRUNE_TICKS, values)
            connection.execute(sql.FORGET_QUEUES, {"before_ms": now_ms - _NAMES_KEPT_MS})
            return count

        count = self._database.write(work)
        self._next_ms = lease_now_ms + (0 if count >= CHUNK else _EVERY_MS)
        return count
