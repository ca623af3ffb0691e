"""What operators see: counts, lists, one job whole, queues, workers, schedule. Reads only.

Lists are paged by message id, newest first (keyset paging: an offset deep into a million rows
takes 50 ms, a key 0.1). Every call is one short read transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlqueue_transport.checking import complaints
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import LARGEST_ID, storable
from sqlqueue_transport.pausing import pause_action

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

# Jobs, and what a worker put to the dead letters because it was none: nothing vanishes unseen.
_COUNTS = """
SELECT state, count(*) FROM message
WHERE task IS NOT NULL OR state = 'permanently_failed'
GROUP BY state
"""
_STALLED = """
SELECT count(*) FROM message
WHERE state = 'processing' AND lease_until_ms <= :lease_now_ms AND task IS NOT NULL
"""
_OLDEST_PENDING = """
SELECT min(coalesce(due_at_ms, enqueued_at_ms)) FROM message
WHERE state = 'pending' AND task IS NOT NULL
"""
_JOB_COLUMNS = """
SELECT
  m.id, m.job_id, m.task, m.queue, m.state, m.priority, m.run, m.attempts, m.max_attempts,
  m.delivery, m.enqueued_at_ms, m.due_at_ms, m.expires_at_ms, m.started_at_ms, m.finished_at_ms,
  w.name, m.error_type, m.error_message, m.stop_asked_at_ms, m.kill_at_ms,
  p.done, p.total, p.note, p.at_ms, m.lease_until_ms
FROM message AS m
LEFT JOIN worker AS w ON w.id = m.worker_id
LEFT JOIN progress AS p ON p.message_id = m.id AND p.delivery = m.delivery
WHERE """
_NEWEST_FIRST = " ORDER BY m.id DESC LIMIT :limit"
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
SELECT at_ms, actor, action, reason, before, after FROM audit WHERE message_id = :id ORDER BY id
"""
_MESSAGES_OF_JOB = """
SELECT id FROM message WHERE job_id = :job_id AND job_id IS NOT NULL ORDER BY id DESC
"""
# What Celery's result backend keeps under its own name for a job (celery.backends.base, 5.7).
_CELERY_RESULT = """
SELECT status, value FROM result WHERE key = 'celery-task-meta-' || :job_id
"""
# What a filter's texts mean, by their names.
_BY_TEXT = {
    "queue": "m.queue = :queue",
    "task": "m.task = :task",
    "worker": "(w.name = :worker OR substr(w.name, 1, length(:worker) + 1) = :worker || '/')",
    "error": "instr(m.error_type || ': ' || m.error_message, :error) > 0",
    "celery_state": """EXISTS (
      SELECT 1 FROM result AS r
      WHERE r.key = 'celery-task-meta-' || m.job_id AND r.status = :celery_state
    )""",
}
# One branch for each partial index: a state IN (…) of them all would walk over the history.
_QUEUES = """
SELECT queue, sum(pending), sum(later), sum(processing), min(since_ms)
FROM (
  SELECT queue, count(*) AS pending, 0 AS later, 0 AS processing,
    min(coalesce(due_at_ms, enqueued_at_ms)) AS since_ms
  FROM message WHERE state = 'pending' GROUP BY queue
  UNION ALL
  SELECT queue, 0, count(*), 0, NULL
  FROM message WHERE state IN ('scheduled', 'failed') GROUP BY queue
  UNION ALL
  SELECT queue, 0, 0, count(*), NULL
  FROM message WHERE state = 'processing' GROUP BY queue
)
GROUP BY queue
"""
_QUEUE_NAMES = "SELECT name, paused_at_ms FROM queue WHERE gone_at_ms IS NULL"
# Who paused it last, and why. Of the audit only what is about no message is walked.
_WHO_PAUSED = """
SELECT actor, reason FROM audit
WHERE message_id IS NULL AND action = :action
ORDER BY id DESC
LIMIT 1
"""
# Of queues there are few.
_PAUSED = """
SELECT q.name, (
  SELECT count(*) FROM message WHERE state = 'pending' AND queue = q.name
) + (
  SELECT count(*) FROM message WHERE state IN ('scheduled', 'failed') AND queue = q.name
)
FROM queue AS q
WHERE q.paused_at_ms IS NOT NULL
ORDER BY q.name
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

# Each must find nothing; what it finds is a broken promise of the schema or of this software.
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
class JobFilter:
    """Say which messages are meant; None or empty means any. Times are UTC milliseconds.

    `error` is a piece of the newest error's "Type: message", `celery_state` what Celery's result
    backend says of the job, FAILURE for example.
    """

    states: tuple[State, ...] = ()
    queue: str | None = None
    task: str | None = None
    worker: str | None = None
    error: str | None = None
    since_ms: int | None = None
    job_ids: tuple[str, ...] = ()
    message_ids: tuple[int, ...] = ()
    stalled: bool = False
    celery_state: str | None = None

    @property
    def is_empty(self) -> bool:
        """Say whether every message matches."""
        return self == JobFilter()


@dataclass(frozen=True, slots=True)
class Progress:
    """Be how far a job's newest delivery said it is; `total` None: it does not know."""

    done: float
    total: float | None
    note: str
    at_ms: int

    @property
    def part(self) -> float | None:
        """Return how much of it is done, from 0 to 1; None where nobody knows."""
        return min(self.done / self.total, 1.0) if self.total else None


@dataclass(frozen=True, slots=True)
class JobRow:
    """Be one job as lists show it. `attempts` includes the one that runs now.

    `max_attempts` None means the consumer's default. `lease_left_ms` is None unless processing,
    and negative when the job is stalled. `stop_asked_at_ms` says since when its delivery is, or was,
    asked to stop, `kill_at_ms` from when on by force. `progress` is None until it says something.
    """

    message_id: int
    job_id: str | None
    task: str | None
    queue: str
    state: State
    priority: int
    run: int
    attempts: int
    max_attempts: int | None
    delivery: int
    enqueued_at_ms: int
    due_at_ms: int | None
    expires_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    worker: str | None
    error_type: str | None
    error_message: str | None
    stop_asked_at_ms: int | None = None
    kill_at_ms: int | None = None
    progress: Progress | None = None
    lease_left_ms: int | None = None
    is_started: bool = False


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
    """Be one action of an operator on a job."""

    at_ms: int
    actor: str
    action: str
    reason: str | None
    before: str
    after: str


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


class Reading:
    """Answer operators' questions; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._consumers = consumers

    def counts(self) -> Counts:
        """Count jobs by state; every state is there, also with zero."""
        lease_now_ms = self._clock.lease_ms()

        def work(connection: sqlite3.Connection) -> Counts:
            found = dict(connection.execute(_COUNTS).fetchall())
            return Counts(
                {state: found.get(state.value, 0) for state in State},
                connection.execute(_STALLED, {"lease_now_ms": lease_now_ms}).fetchone()[0],
                connection.execute(_OLDEST_PENDING).fetchone()[0],
            )

        return self._database.read(work)

    def jobs(
        self, chosen: JobFilter, *, limit: int = 50, before: int | None = None
    ) -> list[JobRow]:
        """List jobs newest first, at most `limit`, those with a message id below `before`."""
        where, values = _where(chosen, self._clock.lease_ms())
        values["limit"] = limit
        if before is not None:
            where += " AND m.id < :before"
            values["before"] = min(before, LARGEST_ID)
        query = _JOB_COLUMNS + where + _NEWEST_FIRST
        rows = self._database.read(lambda c: c.execute(query, values).fetchall())
        return self._job_rows(rows)

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
            row = connection.execute(_JOB_COLUMNS + "m.id = :id", {"id": message_id}).fetchone()
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
            row=self._job_rows(rows)[0],
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

    def queues(self) -> list[QueueRow]:
        """List every queue that was declared or holds unfinished messages, by name."""

        def work(connection: sqlite3.Connection) -> list[QueueRow]:
            found = {row[0]: QueueRow(*row) for row in connection.execute(_QUEUES).fetchall()}
            for name, paused_at_ms in connection.execute(_QUEUE_NAMES).fetchall():
                row = found.get(name) or QueueRow(name, 0, 0, 0, None)
                if paused_at_ms is not None:
                    values = {"action": pause_action(name)}
                    who = connection.execute(_WHO_PAUSED, values).fetchone() or (None, None)
                    row = replace(row, pause=Pause(paused_at_ms, *who))
                found[name] = row
            return [found[name] for name in sorted(found)]

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

    def paused(self) -> dict[str, int]:
        """Return the paused queues by name, with how many messages wait in each."""
        return dict(self._database.read(lambda c: c.execute(_PAUSED).fetchall()))

    def broken_invariants(self) -> dict[str, int]:
        """Return what must never be, with how often it was found; empty when all is well."""

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            found = {
                name: connection.execute(query).fetchone()[0] for name, query in _INVARIANTS.items()
            }
            return {name: count for name, count in found.items() if count}

        return self._database.read(work)

    def damage(self, *, full: bool = False) -> list[str]:
        """Run SQLite's own checks and return what they complain of; slow on a large file.

        They see almost no bit rot inside of values (sqlite.org/pragma.html#pragma_quick_check).
        """
        return self._database.read(lambda c: complaints(c, full=full))

    def _job_rows(self, rows: Sequence[tuple[Any, ...]]) -> list[JobRow]:
        lease_now_ms = self._clock.lease_ms()
        running = self._consumers.running() if rows else {}
        found = []
        for given in rows:
            *fields, done, total, note, at_ms, lease_until_ms = given
            left_ms = None if lease_until_ms is None else lease_until_ms - lease_now_ms
            row = JobRow(*fields)
            row = replace(
                row,
                state=State(row.state),
                progress=None if at_ms is None else Progress(done, total, note or "", at_ms),
                lease_left_ms=left_ms,
            )
            noted = running.get(row.message_id)
            if noted and noted[0].delivery == row.delivery and row.state is State.PROCESSING:
                # The count in the row is raised when an attempt ends; the one that runs is noted.
                row = replace(row, attempts=row.attempts + 1, is_started=True)
            found.append(row)
        return found


def _where(chosen: JobFilter, lease_now_ms: int) -> tuple[str, dict[str, object]]:
    """Put constant clauses together; every value is bound."""
    clauses = ["(m.task IS NOT NULL OR m.state = 'permanently_failed')"]
    values: dict[str, object] = {}
    for name, clause in _BY_TEXT.items():
        wanted = getattr(chosen, name)
        if wanted is not None:
            clauses.append(clause)
            values[name] = storable(wanted)
    if chosen.states:
        names = _bind_each(values, "state", [state.value for state in chosen.states])
        clauses.append("m.state IN (" + names + ")")
    if chosen.since_ms is not None:
        clauses.append("coalesce(m.finished_at_ms, m.started_at_ms, m.enqueued_at_ms) >= :since_ms")
        values["since_ms"] = chosen.since_ms
    if chosen.job_ids:
        job_ids = [storable(one) for one in chosen.job_ids]
        clauses.append("m.job_id IN (" + _bind_each(values, "job", job_ids) + ")")
    if chosen.message_ids:
        known = [one for one in chosen.message_ids if one <= LARGEST_ID]
        clauses.append("m.id IN (" + _bind_each(values, "message", known) + ")")
    if chosen.stalled:
        clauses.append("m.state = 'processing' AND m.lease_until_ms <= :lease_now_ms")
        values["lease_now_ms"] = lease_now_ms
    return " AND ".join(clauses), values


def _bind_each(values: dict[str, object], name: str, each: Sequence[object]) -> str:
    for number, value in enumerate(each):
        values[f"{name}_{number}"] = value
    return ", ".join(f":{name}_{number}" for number in range(len(each)))
