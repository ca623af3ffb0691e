"""What happened in a stretch of time: how much ended and how, how long it took and waited. Reads only.

What is finished is counted along the index of the history, a range of it for each state, and failed
attempts along an index of their own: a hundred milliseconds for a million jobs in the stretch. Who
asks again and again keeps what cannot change any more and asks for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlqueue_transport.database import Database
    from sqlqueue_transport.lifecycle import State

__all__ = ["Activity", "EndedJob", "FailedAttempt"]

# The history's predicate to the letter, then the state that is meant.
_ENDED = """
SELECT finished_at_ms / :bucket_ms, count(*) FROM message
WHERE finished_at_ms IS NOT NULL
  AND state = :state AND finished_at_ms >= :since_ms AND finished_at_ms < :until_ms
GROUP BY finished_at_ms / :bucket_ms
"""
_FAILED = """
SELECT ended_at_ms / :bucket_ms, count(*) FROM attempt
WHERE outcome IN ('failed', 'lost', 'timed_out')
  AND ended_at_ms >= :since_ms AND ended_at_ms < :until_ms
GROUP BY ended_at_ms / :bucket_ms
"""
# Since when a job could run: a retry from its own time on. Of one that an operator requeued nothing
# in the row says when that was.
_NEWEST_DONE = """
SELECT
  finished_at_ms,
  finished_at_ms - started_at_ms,
  iif(run > 1 AND due_at_ms IS NULL, NULL,
    started_at_ms - max(enqueued_at_ms, coalesce(due_at_ms, 0)))
FROM message
WHERE finished_at_ms IS NOT NULL
  AND state = 'done' AND finished_at_ms >= :since_ms AND finished_at_ms < :until_ms
ORDER BY finished_at_ms DESC
LIMIT :most
"""
_NEWEST_FAILED = """
SELECT a.message_id, m.job_id, a.ended_at_ms, a.error_type, a.error_message
FROM attempt AS a
JOIN message AS m ON m.id = a.message_id
WHERE a.outcome IN ('failed', 'lost', 'timed_out') AND a.ended_at_ms >= :since_ms
ORDER BY a.ended_at_ms DESC
LIMIT :most
"""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """Be how long one done job ran and had waited; None where the row does not tell."""

    finished_at_ms: int
    run_ms: int | None
    wait_ms: int | None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """Be one attempt that failed, was lost, or ran out of its time."""

    message_id: int
    job_id: str | None
    ended_at_ms: int
    error_type: str | None
    error_message: str | None


class Activity:
    """Answer what happened when; safe to share between threads. Each call is one read transaction.

    Times are UTC milliseconds; `since_ms` is included, `until_ms` is not. A bucket's number is its
    start divided by its length.
    """

    def __init__(self, database: Database) -> None:
        """Remember where."""
        self._database = database

    def ended(
        self, state: State, since_ms: int, until_ms: int, *, bucket_ms: int
    ) -> dict[int, int]:
        """Count by bucket what ended in a state, and is still in it."""
        return self._by_bucket(_ENDED, since_ms, until_ms, bucket_ms, state)

    def failed(self, since_ms: int, until_ms: int, *, bucket_ms: int) -> dict[int, int]:
        """Count by bucket the attempts that failed, were lost, or ran out of their time."""
        return self._by_bucket(_FAILED, since_ms, until_ms, bucket_ms, None)

    def _by_bucket(
        self, query: str, since_ms: int, until_ms: int, bucket_ms: int, state: State | None
    ) -> dict[int, int]:
        values = {
            "since_ms": since_ms,
            "until_ms": until_ms,
            "bucket_ms": bucket_ms,
            "state": state.value if state else None,
        }
        return dict(self._database.read(lambda c: c.execute(query, values).fetchall()))

    def newest_done(self, since_ms: int, until_ms: int, *, most: int) -> list[EndedJob]:
        """Return the newest done jobs of a time, newest first."""
        values = {"since_ms": since_ms, "until_ms": until_ms, "most": most}
        rows = self._database.read(lambda c: c.execute(_NEWEST_DONE, values).fetchall())
        return [EndedJob(*row) for row in rows]

    def newest_failed(self, since_ms: int, *, most: int) -> list[FailedAttempt]:
        """Return the newest failed attempts since a time, newest first."""
        values = {"since_ms": since_ms, "most": most}
        rows = self._database.read(lambda c: c.execute(_NEWEST_FAILED, values).fetchall())
        return [FailedAttempt(*row) for row in rows]
