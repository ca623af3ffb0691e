"""What operators see: one job whole, what they did, and what must never be. Reads only.

Lists are `listing`, counts and queues `counting`, figures over time `activity`; here all of it is
put together, so that a store has one object to ask. Every call is one short read transaction, or
several where its docstring speaks of portions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlqueue_transport.activity import Activity
from sqlqueue_transport.checking import complaints
from sqlqueue_transport.counting import Counting, Counts, Pause, QueueRow
from sqlqueue_transport.listing import (
    FROM_MESSAGES,
    JOB_COLUMNS,
    JobFilter,
    JobRow,
    Listing,
    Progress,
)
from sqlqueue_transport.messages import LARGEST_ID, SENSITIVE_HEADER, storable

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

__all__ = [
    "WRONG_COUNTS",
    "AttemptRow",
    "AuditRow",
    "Counts",
    "JobDetail",
    "JobFilter",
    "JobRow",
    "Pause",
    "Progress",
    "QueueRow",
    "Reading",
]

_ONE_JOB = JOB_COLUMNS + FROM_MESSAGES + "m.id = :id"
_DETAIL = """
SELECT
  m.headers, m.properties, coalesce(m.body, b.content, x''), m.content_type, m.content_encoding,
  m.result
FROM message AS m
LEFT JOIN body AS b ON b.message_id = m.id
WHERE m.id = :id
"""
_ATTEMPTS = """
SELECT run, attempt, worker, started_at_ms, ended_at_ms, outcome, error_type, error_message,
  traceback
FROM attempt WHERE message_id = :id ORDER BY id
"""
_AUDIT = """
SELECT at_ms, actor, action, reason, before, after, message_id, job_id FROM audit
WHERE message_id = :id
ORDER BY id
"""
_NEWEST_AUDIT = """
SELECT at_ms, actor, action, reason, before, after, message_id, job_id, id FROM audit
WHERE id < :before
ORDER BY id DESC
LIMIT :limit
"""
_MESSAGES_OF_JOB = """
SELECT id FROM message WHERE job_id = :job_id AND job_id IS NOT NULL ORDER BY id DESC
"""
# What Celery's result backend keeps under its own name for a job (celery.backends.base, 5.7).
_CELERY_RESULT = """
SELECT status, value FROM result WHERE key = 'celery-task-meta-' || :job_id
"""

# Each must find nothing; what it finds is a broken promise of the schema or of this software.
WRONG_COUNTS: Final = "counts that differ from what is there"
_INVARIANTS = {
    "processing jobs whose worker is not registered": """
      SELECT count(*) FROM message AS m
      LEFT JOIN worker AS w ON w.id = m.worker_id AND w.ended_at_ms IS NULL
      WHERE m.state = 'processing' AND w.id IS NULL""",
    "bodies without a message": """
      SELECT count(*) FROM body WHERE message_id NOT IN (SELECT id FROM message)""",
    "jobs with more attempts than allowed": """
      SELECT count(*) FROM message WHERE max_attempts > 0 AND attempts > max_attempts""",
    "waiting jobs that hold a lease": """
      SELECT count(*) FROM message WHERE state <> 'processing' AND lease_until_ms IS NOT NULL""",
    "waiting jobs that were asked to stop": """
      SELECT count(*) FROM message
      WHERE state IN ('pending', 'scheduled', 'failed') AND stop_asked_at_ms IS NOT NULL""",
}


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """Be one ended attempt of a job."""

    run: int
    attempt: int
    worker: str | None
    started_at_ms: int | None
    ended_at_ms: int
    outcome: str
    error_type: str | None
    error_message: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Be one action of an operator on a job, or (`message_id` None) on a queue or an entry.

    `job_id` is None, too, where the message was no job. `before` and `after` are None where the
    action says it all.
    """

    at_ms: int
    actor: str
    action: str
    reason: str | None
    before: str | None
    after: str | None
    message_id: int | None = None
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class JobDetail:
    """Be one job whole: its row, its message, its attempts oldest first, its audit entries."""

    row: JobRow
    headers: str
    properties: str
    body: bytes
    content_type: str | None
    content_encoding: str | None
    result: str | None
    attempts: tuple[AttemptRow, ...]
    audit: tuple[AuditRow, ...]
    celery_result: tuple[str, bytes] | None  # Celery's state, and what it encoded

    @property
    def is_sensitive(self) -> bool:
        """Say whether nothing is to be shown of what the message says or led to."""
        return f'"{SENSITIVE_HEADER}"' in self.headers  # as text: see listing


class Reading:
    """Answer operators' questions; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self.lists = Listing(database, clock, consumers)
        self.counting = Counting(database, clock)
        self.activity = Activity(database)
        # What is asked most, by the shorter name.
        self.jobs = self.lists.jobs
        self.counts = self.counting.counts
        self.queues = self.counting.queues
        self.paused = self.counting.paused
        self.unfinished_since_ms = self.counting.unfinished_since_ms

    def message_ids_of(self, job_id: str) -> list[int]:
        """Return the messages that carry a job id, newest first."""
        rows = self._database.read(
            lambda c: c.execute(_MESSAGES_OF_JOB, {"job_id": storable(job_id)}).fetchall()
        )
        return [message_id for (message_id,) in rows]

    def job(self, message_id: int) -> JobDetail | None:
        """Return one job whole; None when there is no such message."""
        if message_id > LARGEST_ID:
            return None

        def work(connection: sqlite3.Connection) -> tuple[list[Any], ...] | None:
            row = connection.execute(_ONE_JOB, {"id": message_id}).fetchone()
            if row is None:
                return None
            values = {"id": message_id}
            return (
                [row],
                list(connection.execute(_DETAIL, values).fetchone()),
                connection.execute(_ATTEMPTS, values).fetchall(),
                connection.execute(_AUDIT, values).fetchall(),
                connection.execute(_CELERY_RESULT, {"job_id": row[1]}).fetchall(),
            )

        found = self._database.read(work)
        if found is None:
            return None
        rows, detail, attempts, audit, results = found
        headers, properties, body, content_type, content_encoding, result = detail
        return JobDetail(
            row=self.lists.job_rows(rows)[0],
            headers=headers,
            properties=properties,
            body=body,
            content_type=content_type,
            content_encoding=content_encoding,
            result=result,
            attempts=tuple(AttemptRow(*row) for row in attempts),
            audit=tuple(AuditRow(*row) for row in audit),
            celery_result=results[0] if results else None,
        )

    def audit(self, *, limit: int, before: int | None = None) -> list[tuple[int, AuditRow]]:
        """List what operators did, each with its number, newest first; with numbers below `before`."""
        values = {"limit": limit, "before": LARGEST_ID if before is None else before}
        rows = self._database.read(lambda c: c.execute(_NEWEST_AUDIT, values).fetchall())
        return [(row[-1], AuditRow(*row[:-1])) for row in rows]

    def broken_invariants(self, *, full: bool = False) -> dict[str, int]:
        """Return what must never be, with how often it was found; empty when all is well.

        With `full` also what only a walk over every message tells: whether the tally is right.
        """

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            found = {
                name: connection.execute(query).fetchone()[0] for name, query in _INVARIANTS.items()
            }
            return {name: count for name, count in found.items() if count}

        found = self._database.read(work)
        if full and (wrong := self.counting.wrong_tallies()):
            found[WRONG_COUNTS] = wrong
        return found

    def damage(self, *, full: bool = False) -> list[str]:
        """Run SQLite's own checks and return what they complain of; slow on a large file.

        They see almost no bit rot inside of values (sqlite.org/pragma.html#pragma_quick_check).
        """
        return self._database.read(lambda c: complaints(c, full=full))
