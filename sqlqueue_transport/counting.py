"""How many messages there are, in which state, in which queue, and how old what waits is. Reads only.

Counting a million rows takes a tenth of a second and more, and counters that every step of every
job has to keep cost each job a tenth of its time. So the file keeps an exact tally of what is old
(see `tally` in schema.sql), and only the newest few thousand rows are counted here, by a range of
ids. The two are read in one transaction, so that together they are exact.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.pausing import pause_action

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

__all__ = ["Counting", "Counts", "Pause", "QueueRow", "Tally", "tally"]

_OLD = "SELECT queue, state, is_job, sum(messages) FROM tally GROUP BY queue, state, is_job"
# NOT INDEXED: by the range of ids, whatever SQLite thinks of the other indexes.
_NEW = """
SELECT queue, state, task IS NOT NULL, count(*) FROM message NOT INDEXED
WHERE id >= (SELECT upto FROM counted WHERE only = 1)
GROUP BY queue, state, task IS NOT NULL
"""
_STALLED = """
SELECT count(*) FROM message
WHERE state = 'processing' AND lease_until_ms <= :lease_now_ms AND task IS NOT NULL
"""
# From one (queue, priority) of what is pending to the next: a seek each, however many are pending.
_NEXT_QUEUE = """
SELECT queue, priority FROM message
WHERE state = 'pending' AND queue > :queue
ORDER BY queue, priority DESC
LIMIT 1
"""
_NEXT_PRIORITY = """
SELECT queue, priority FROM message
WHERE state = 'pending' AND queue = :queue AND priority < :priority
ORDER BY priority DESC
LIMIT 1
"""
_FIRST_IN_LINE = """
SELECT min(since_ms), min(iif(task IS NULL, NULL, since_ms))
FROM (
  SELECT coalesce(due_at_ms, enqueued_at_ms) AS since_ms, task FROM message
  WHERE state = 'pending' AND queue = :queue AND priority = :priority
  ORDER BY id
  LIMIT 100
)
"""
_QUEUE_NAMES = "SELECT name, paused_at_ms FROM queue WHERE gone_at_ms IS NULL"
_PAUSED = "SELECT name FROM queue WHERE paused_at_ms IS NOT NULL ORDER BY name"
# Who paused it last, and why. Of the audit only what is about no message is walked.
_WHO_PAUSED = """
SELECT actor, reason FROM audit
WHERE message_id IS NULL AND action = :action
ORDER BY id DESC
LIMIT 1
"""
# Asked again and again by a worker that waits for the end. What waits in a paused queue is not waited
# for: nobody will run it. What runs is, wherever it came from.
_UNFINISHED = """
SELECT min(due_at_ms)
FROM (
  SELECT 0 AS due_at_ms
  WHERE (
    EXISTS (SELECT 1 FROM message WHERE state = 'pending' AND queue = :queue)
    AND NOT EXISTS (SELECT 1 FROM queue WHERE name = :queue AND paused_at_ms IS NOT NULL)
  )
    OR EXISTS (SELECT 1 FROM message WHERE state = 'processing' AND queue = :queue)
  UNION ALL
  SELECT min(due_at_ms) FROM message WHERE state IN ('scheduled', 'failed') AND queue = :queue
    AND NOT EXISTS (SELECT 1 FROM queue WHERE name = :queue AND paused_at_ms IS NOT NULL)
)
"""
# What the tally should say; walks over every message.
_COUNTED_AGAIN = """
SELECT queue, state, task IS NOT NULL, count(*) FROM message
GROUP BY queue, state, task IS NOT NULL
"""

Tally = dict[tuple[str, State, bool], int]


@dataclass(frozen=True, slots=True)
class Counts:
    """Be the numbers of `inspect stats`. `oldest_pending_ms` is a UTC time or None."""

    states: dict[State, int]
    stalled: int
    oldest_pending_ms: int | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Be the pause of a queue: since when, by whom and why, as far as the audit knows."""

    since_ms: int
    actor: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class QueueRow:
    """Be one queue: ready, due later, held, and since when its oldest message is ready.

    `pause` is None for one that runs.
    """

    name: str
    pending: int
    later: int
    processing: int
    oldest_pending_ms: int | None
    pause: Pause | None = None


class Counting:
    """Count; safe to share between threads. Each call is one read transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def counts(self) -> Counts:
        """Count jobs by state; every state is there, also with zero.

        A message that is no job counts when it is a dead letter: nothing vanishes unseen. How old
        the oldest pending job is comes from the first hundred of every queue and priority: those
        that are claimed next. Only a job that was requeued, or had waited for a retry, can be older
        and stand behind them.
        """
        lease_now_ms = self._clock.lease_ms()

        def work(connection: sqlite3.Connection) -> Counts:
            states = dict.fromkeys(State, 0)
            for (_, state, is_job), count in tally(connection).items():
                if is_job or state is State.PERMANENTLY_FAILED:
                    states[state] += count
            sinces = [jobs_ms for _, jobs_ms in _oldest(connection).values() if jobs_ms is not None]
            return Counts(
                states,
                connection.execute(_STALLED, {"lease_now_ms": lease_now_ms}).fetchone()[0],
                min(sinces, default=None),
            )

        return self._database.read(work)

    def queues(self) -> list[QueueRow]:
        """List every queue that was declared or holds unfinished messages, by name.

        The age of the oldest pending message is found as in `counts`.
        """

        def work(connection: sqlite3.Connection) -> list[QueueRow]:
            found = _depths(connection)
            for name, (since_ms, _) in _oldest(connection).items():
                row = found.get(name) or QueueRow(name, 0, 0, 0, None)
                found[name] = replace(row, oldest_pending_ms=since_ms)
            for name, paused_at_ms in connection.execute(_QUEUE_NAMES).fetchall():
                row = found.get(name) or QueueRow(name, 0, 0, 0, None)
                if paused_at_ms is not None:
                    values = {"action": pause_action(name)}
                    who = connection.execute(_WHO_PAUSED, values).fetchone() or (None, None)
                    row = replace(row, pause=Pause(paused_at_ms, *who))
                found[name] = row
            return [found[name] for name in sorted(found)]

        return self._database.read(work)

    def paused(self) -> dict[str, int]:
        """Return the paused queues by name, with how many messages wait in each."""

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            names = [name for (name,) in connection.execute(_PAUSED).fetchall()]
            depths = _depths(connection) if names else {}
            return {
                name: depths[name].pending + depths[name].later if name in depths else 0
                for name in names
            }

        return self._database.read(work)

    def unfinished_since_ms(self, queues: Sequence[str]) -> int | None:
        """Return when the first unfinished message of these queues is due; None: nothing is left.

        0 means that one is ready or running. What waits in a paused queue does not count.
        """

        def work(connection: sqlite3.Connection) -> int | None:
            dues = [
                connection.execute(_UNFINISHED, {"queue": queue}).fetchone()[0] for queue in queues
            ]
            return min((due for due in dues if due is not None), default=None)

        return self._database.read(work)

    def wrong_tallies(self) -> int:
        """Return of how many (queue, state) the tally is wrong; walks over every message."""

        def work(connection: sqlite3.Connection) -> int:
            said, there = _said(connection), _by_key(connection, _COUNTED_AGAIN)
            return sum(said.get(key, 0) != there.get(key, 0) for key in {*said, *there})

        return self._database.read(work)


def tally(connection: sqlite3.Connection) -> Tally:
    """Count all messages by queue, state, and whether they are jobs; for a transaction of the caller's."""
    return {key: count for key, count in _said(connection).items() if count > 0}


def _said(connection: sqlite3.Connection) -> Counter[tuple[str, State, bool]]:
    """Return what tally and tail say, also what is wrongly below zero (which "+" would leave out)."""
    found = Counter(_by_key(connection, _OLD))
    found.update(_by_key(connection, _NEW))
    return found


def _by_key(connection: sqlite3.Connection, query: str) -> Tally:
    rows = connection.execute(query).fetchall()
    return {(queue, State(state), bool(is_job)): count for queue, state, is_job, count in rows}


def _depths(connection: sqlite3.Connection) -> dict[str, QueueRow]:
    """Return the queues that hold unfinished messages, with how many; their ages left out."""
    found: dict[str, Counter[State]] = {}
    for (queue, state, _), count in tally(connection).items():
        found.setdefault(queue, Counter())[state] += count
    rows = {
        name: QueueRow(
            name,
            pending=count[State.PENDING],
            later=count[State.SCHEDULED] + count[State.FAILED],
            processing=count[State.PROCESSING],
            oldest_pending_ms=None,
        )
        for name, count in found.items()
    }
    return {name: row for name, row in rows.items() if row.pending + row.later + row.processing}


def _oldest(connection: sqlite3.Connection) -> dict[str, tuple[int | None, int | None]]:
    """Return by queue since when its oldest pending message is ready, and its oldest pending job."""
    found: dict[str, tuple[int | None, int | None]] = {}
    place = connection.execute(_NEXT_QUEUE, {"queue": ""}).fetchone()
    while place is not None:
        values = {"queue": place[0], "priority": place[1]}
        oldest = connection.execute(_FIRST_IN_LINE, values).fetchone()
        before = found.get(place[0], (None, None))
        found[place[0]] = (_sooner(before[0], oldest[0]), _sooner(before[1], oldest[1]))
        place = (
            connection.execute(_NEXT_PRIORITY, values).fetchone()
            or connection.execute(_NEXT_QUEUE, values).fetchone()
        )
    return found


def _sooner(one_ms: int | None, other_ms: int | None) -> int | None:
    return min((ms for ms in (one_ms, other_ms) if ms is not None), default=None)
