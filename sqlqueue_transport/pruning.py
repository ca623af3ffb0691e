"""What grows old in the file, and how a portion of each kind is deleted.

Each kind is a `Piece`: a function that works through at most `limit` rows inside a transaction of
the caller's and says how far it came. None of them may look at more than that, also when there is
nothing to delete: a table without an index by age is walked in the order of its ids, which is the
order of its ages, and no further than to the first row that is young.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from sqlqueue_transport.options import Options

_TICKS_KEPT_MS = 30 * 86_400_000
_NAMES_KEPT_MS = 86_400_000  # of queues that went away: as long as a late answer may take
# Space goes back to the filesystem when this much of the file is free, and more pages than it would
# soon need again.
_FREE_SHARE = 0.1
_FREE_PAGES = 1000

# The partial index of the history is used because its predicate stands here to the letter. Bodies,
# attempts and progress go with their message (ON DELETE CASCADE).
_PRUNE_MESSAGES = """
DELETE FROM message WHERE id IN (
  SELECT id FROM message
  WHERE finished_at_ms IS NOT NULL
    AND state = :state AND finished_at_ms < :before_ms
  LIMIT :limit
)
"""
_COUNT_ENDED = """
SELECT count(*) FROM message
WHERE finished_at_ms IS NOT NULL
  AND state = :state AND finished_at_ms < :before_ms
"""
# Entries are found by their ticks, because an entry may be gone; a seek each in the primary key.
_NEXT_ENTRY = "SELECT entry, max(due_ms) FROM tick WHERE entry = (SELECT min(entry) FROM tick WHERE entry > :after)"
# Never the newest one, however old: it says that a yearly entry has had its turn.
_PRUNE_TICKS = """
DELETE FROM tick WHERE entry = :entry AND due_ms IN (
  SELECT due_ms FROM tick
  WHERE entry = :entry AND due_ms < :before_ms AND due_ms < :newest_ms
  LIMIT :limit
)
"""
_AUDIT_AFTER = "SELECT id, at_ms FROM audit WHERE id > :after ORDER BY id LIMIT :limit"
_PRUNE_AUDIT = "DELETE FROM audit WHERE id = :id"
_WORKERS_AFTER = """
SELECT id, started_at_ms, ended_at_ms FROM worker WHERE id > :after ORDER BY id LIMIT :limit
"""
_PRUNE_WORKER = "DELETE FROM worker WHERE id = :id AND ended_at_ms IS NOT NULL"
_FORGET_QUEUES = """
DELETE FROM queue WHERE name IN (
  SELECT name FROM queue
  WHERE gone_at_ms IS NOT NULL AND gone_at_ms < :before_ms
  LIMIT :limit
)
"""


@dataclass(frozen=True, slots=True)
class Policy:
    """Say for how many seconds what is kept; 0 keeps for ever."""

    done_s: float
    dead_s: float
    audit_s: float

    @classmethod
    def of(cls, options: Options) -> Policy:
        """Return what the options of a connection say."""
        return cls(options.retention_done, options.retention_dead, options.retention_audit)


@dataclass(frozen=True, slots=True)
class Done:
    """Say how far a piece came: how many rows or pages it removed, and whether there is more."""

    removed: int
    has_more: bool


class Piece(Protocol):
    """Be one kind of what grows old; lives for one round, and may remember how far it is."""

    name: str

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        """Look at no more than `limit` rows and delete those that are old."""


def pieces(policy: Policy, now_ms: int, *, is_time_right: bool = True) -> list[Piece]:
    """Return the pieces of one round, for what was old when it began.

    With `is_time_right` False, those that go by the age of something are left out.
    """
    from sqlqueue_transport import chords, results  # noqa: PLC0415 - late: seldom, and in one process

    if not is_time_right:
        return [_FreePages()]
    found: list[Piece] = [
        ended(name, now_ms - round(age_s * 1000))
        for name, age_s in (
            ("done", policy.done_s),
            ("permanently_failed", policy.dead_s),
            ("cancelled", policy.dead_s),
            ("expired", policy.dead_s),
        )
        if age_s
    ]
    found += [
        _Ticks(now_ms - _TICKS_KEPT_MS),
        _Matching("queues", _FORGET_QUEUES, {"before_ms": now_ms - _NAMES_KEPT_MS}),
        _Function("results", partial(results.delete_expired, now_ms=now_ms)),
        _Function("chord_members", partial(chords.delete_members, now_ms=now_ms)),
        _Function("chords", partial(chords.delete_expired, now_ms=now_ms)),
    ]
    if policy.audit_s:
        found.append(_Audit(now_ms - round(policy.audit_s * 1000)))
    # A message names its worker for as long as it is kept.
    if policy.done_s and policy.dead_s:
        longest_s = max(policy.done_s, policy.dead_s)
        found.append(_Workers(now_ms - round(longest_s * 1000)))
    return [*found, _FreePages()]


def ended(state: str, before_ms: int) -> Piece:
    """Return the piece that deletes messages in a finished state which ended before a moment."""
    return _Matching(state, _PRUNE_MESSAGES, {"state": state, "before_ms": before_ms})


def count_ended(connection: sqlite3.Connection, state: str, before_ms: int) -> int:
    """Count what that piece would delete; walks over as many entries of an index."""
    values = {"state": state, "before_ms": before_ms}
    count: int = connection.execute(_COUNT_ENDED, values).fetchone()[0]
    return count


class _Function:
    """Delete by a function that finds what is old through an index."""

    def __init__(self, name: str, delete: Callable[[sqlite3.Connection, int], int]) -> None:
        self.name = name
        self._delete = delete

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        removed = self._delete(connection, limit)
        return Done(removed, removed >= limit)


class _Matching(_Function):
    """Delete by a statement that finds what is old through an index."""

    def __init__(self, name: str, statement: str, values: dict[str, object]) -> None:
        super().__init__(
            name, lambda c, limit: c.execute(statement, {**values, "limit": limit}).rowcount
        )


class _Ticks:
    """Delete ticks, one entry after the other."""

    name = "ticks"

    def __init__(self, before_ms: int) -> None:
        self._before_ms = before_ms
        self._entry = ""

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        removed = 0
        for _ in range(limit):
            entry, newest_ms = connection.execute(_NEXT_ENTRY, {"after": self._entry}).fetchone()
            if entry is None:
                return Done(removed, has_more=False)
            values = {
                "entry": entry,
                "newest_ms": newest_ms,
                "before_ms": self._before_ms,
                "limit": limit - removed,
            }
            removed += connection.execute(_PRUNE_TICKS, values).rowcount
            if removed >= limit:
                break
            self._entry = entry
        return Done(removed, has_more=True)


class _Audit:
    """Delete records of what operators did."""

    name = "audit"

    def __init__(self, before_ms: int) -> None:
        self._before_ms = before_ms
        self._after = 0

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        values = {"after": self._after, "limit": limit}
        rows = connection.execute(_AUDIT_AFTER, values).fetchall()
        old = [row for row in rows if row[1] < self._before_ms]
        for record_id, _ in old:
            connection.execute(_PRUNE_AUDIT, {"id": record_id})
        if rows:
            self._after = rows[-1][0]
        # A record from a clock that was wrong does not hide what comes after it, unless nothing in
        # the whole portion is old.
        return Done(len(old), has_more=bool(old) and len(rows) == limit)


class _Workers:
    """Delete the rows of processes that ended before anything that still names them could."""

    name = "workers"

    def __init__(self, before_ms: int) -> None:
        self._before_ms = before_ms
        self._after = 0

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        values = {"after": self._after, "limit": limit}
        removed, rows = 0, connection.execute(_WORKERS_AFTER, values).fetchall()
        for worker_id, started_at_ms, ended_at_ms in rows:
            if started_at_ms >= self._before_ms:  # and so all that come after it
                return Done(removed, has_more=False)
            self._after = worker_id
            if ended_at_ms is not None and ended_at_ms < self._before_ms:
                removed += connection.execute(_PRUNE_WORKER, {"id": worker_id}).rowcount
        return Done(removed, has_more=len(rows) == limit)


class _FreePages:
    """Give free pages back to the filesystem, down to a share that will soon be used again."""

    name = "pages"

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        spare = round(free - max(_FREE_PAGES, _FREE_SHARE * pages))
        count = min(spare, limit)
        for _ in range(count):
            # One step of the statement frees one page, and Python makes one step only.
            connection.execute("PRAGMA incremental_vacuum(1)").fetchall()
        return Done(max(count, 0), has_more=spare > limit)
