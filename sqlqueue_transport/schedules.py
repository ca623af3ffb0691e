"""The schedule as the file knows it: entries described by the beats, ticks that were enqueued.

A tick is taken by `Store.publish(..., tick=…)`, in the transaction that stores its messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport.messages import storable

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

_SCHEDULE = """
SELECT s.entry, s.description, s.target, s.first_seen_ms, s.next_due_ms, s.error,
  (SELECT max(t.due_ms) FROM tick AS t WHERE t.entry = s.entry),
  (SELECT count(*) FROM tick AS t WHERE t.entry = s.entry)
FROM schedule AS s
ORDER BY s.entry
"""
_LAST_TICK = "SELECT max(due_ms) FROM tick WHERE entry = :entry"
_SEE_ENTRY = """
INSERT INTO schedule (entry, description, target, first_seen_ms, next_due_ms, error)
VALUES (:entry, :description, :target, :now_ms, :next_due_ms, :error)
ON CONFLICT (entry) DO UPDATE SET
  description = excluded.description,
  target = excluded.target,
  next_due_ms = excluded.next_due_ms,
  error = excluded.error
"""
_FIRST_SEEN = "SELECT first_seen_ms FROM schedule WHERE entry = :entry"


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """Be one schedule entry as the beats last described it; times are UTC milliseconds."""

    entry: str
    description: str
    target: str
    first_seen_ms: int
    next_due_ms: int | None
    error: str | None
    last_due_ms: int | None
    ticks: int


class Schedules:
    """Describe entries and look up ticks; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def rows(self) -> list[ScheduleRow]:
        """List the schedule entries beats have described."""
        return [
            ScheduleRow(*row)
            for row in self._database.read(lambda c: c.execute(_SCHEDULE).fetchall())
        ]

    def last_tick_ms(self, entry: str) -> int | None:
        """Return the newest tick of an entry that was enqueued; None when there is none."""
        due_ms: int | None = self._database.read(
            lambda c: c.execute(_LAST_TICK, {"entry": entry}).fetchone()[0]
        )
        return due_ms

    def describe(
        self,
        entry: str,
        *,
        description: str,
        target: str,
        next_due_ms: int | None,
        error: str | None = None,
    ) -> int:
        """Write down what a beat knows of an entry; return when the entry was first seen.

        If the process dies midway the old description stands, or none.
        """
        values = {
            "entry": entry,
            "description": storable(description),
            "target": storable(target),
            "next_due_ms": next_due_ms,
            "error": storable(error),  # a producer's error may quote any file name
            "now_ms": self._clock.wall_ms(),
        }

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_SEE_ENTRY, values)
            first_seen_ms: int = connection.execute(_FIRST_SEEN, values).fetchone()[0]
            return first_seen_ms

        return self._database.write(work)
