"""What became of jobs, kept for who asked: the results of a Celery application.

A result is a row under Celery's own key, in Celery's own encoding. Every change of it is a new row
with a new id, so that a process waiting for thousands of results reads only what is newer than what
it has seen. Who stores one wakes, after the commit, every process that waits for it; nobody polls.

What is decided about a result is decided in the one transaction that stores it. Chords, which count
results and publish when they are all in, are `chords`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlqueue_transport.chords import CHUNK, Chords, expires_at_ms
from sqlqueue_transport.clock import JumpWatch
from sqlqueue_transport.sqlite_errors import refused_values

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

Item = TypeVar("Item")

# Read in one transaction, so that it stays short.
READ_AT_ONCE = 500
# What a waiting process sleeps on: a queue's name that no queue can have, with a key or alone. Beyond
# so many keys it asks for every result, because a flag has no room for the names.
PSEUDO_QUEUE = "\x00"
KEYS_BY_NAME = 4
_PRUNE_EVERY_MS = 60_000

# One statement, so that no state comes between the look and the change. OR REPLACE deletes the old
# row, and AUTOINCREMENT gives the new one an id above all there ever were.
_STORE = """
INSERT OR REPLACE INTO result (key, status, expires_at_ms, value)
SELECT :key, :status, :expires_at_ms, :value
WHERE NOT EXISTS (
  SELECT 1 FROM result
  WHERE key = :key AND status = 'SUCCESS' AND :keep_success
    AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)
)
"""
# What has expired is absent at once, long before it is deleted.
_GET = """
SELECT value FROM result
WHERE key = :key AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)
"""
_DELETE = "DELETE FROM result WHERE key = :key"
# In its place: nobody waits for a change of this kind.
_EXPIRE = "UPDATE result SET expires_at_ms = :expires_at_ms WHERE key = :key"
# Without the values: most of what is new in a busy file is nobody's here.
_NEWER = """
SELECT id, key FROM result
WHERE id > :since AND (expires_at_ms IS NULL OR expires_at_ms > :now_ms)
ORDER BY id
LIMIT :limit
"""
_VALUE = "SELECT value FROM result WHERE id = :id"
_NEWEST = "SELECT coalesce(max(id), 0) FROM result"
# The index's predicate stands here to the letter.
_PRUNE = """
DELETE FROM result WHERE id IN (
  SELECT id FROM result
  WHERE expires_at_ms IS NOT NULL AND expires_at_ms <= :now_ms
  LIMIT :chunk
)
"""


@dataclass(frozen=True, slots=True)
class News:
    """Be what was found for a waiter: pairs of key and value, and the id it has now seen."""

    found: list[tuple[str, bytes]]
    seen: int


class Results:
    """Keep results by key; safe to share between threads. `chords` counts members of chords.

    Keys are text, values bytes. Lifetimes are seconds from now; 0 and None mean for ever.
    """

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._consumers = consumers
        self.chords = Chords(database, clock)
        self._jumps = JumpWatch(clock)
        self._prune_next_ms = 0  # on the lease clock, which does not jump

    # -- one by one -------------------------------------------------------------------------------

    def store(
        self,
        key: str,
        status: str,
        value: bytes,
        *,
        expires_s: float | None,
        keep_success: bool = True,
        durable: bool = False,
    ) -> bool:
        """Keep a result under its key, and wake who waits for it; say whether it was taken.

        With `keep_success` it is not when the key holds a SUCCESS already: a lost worker's late
        word never replaces the result of the job that was run again. Raises InvalidMessage when
        SQLite cannot hold the value. With `durable` it survives a power cut once this has returned.
        If the process dies midway the old result stands, or the new one; a waiter that nobody wakes
        looks by itself within a second.
        """

        def work(connection: sqlite3.Connection) -> bool:
            now_ms = self._clock.wall_ms()
            values = {
                "key": key,
                "status": status,
                "value": value,
                "keep_success": keep_success,
                "now_ms": now_ms,
                "expires_at_ms": expires_at_ms(now_ms, expires_s),
            }
            return bool(connection.execute(_STORE, values).rowcount)

        with refused_values(f"the result {key} cannot be stored"):
            was_taken = self._database.write(work, durable=durable)
        if was_taken:
            self._consumers.wake(PSEUDO_QUEUE + key, None, everyone=True)
            self._consumers.wake(PSEUDO_QUEUE, None, everyone=True)
        return was_taken

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key; None when there is nothing, or it has expired."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what is kept under each key, as `get` does, in the same order."""
        found: list[bytes | None] = []
        for some in _in_chunks(keys):
            found += self._database.read(partial(self._values, keys=some))
        return found

    def _values(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[bytes | None]:
        now_ms = self._clock.wall_ms()
        rows = (connection.execute(_GET, {"key": key, "now_ms": now_ms}).fetchone() for key in keys)
        return [row[0] if row else None for row in rows]

    def delete(self, key: str) -> bool:
        """Forget what is kept under a key; say whether there was anything."""
        return self._database.write(lambda c: bool(c.execute(_DELETE, {"key": key}).rowcount))

    def expire(self, key: str, after_s: float | None) -> None:
        """Give what is kept under a key another lifetime, from now."""

        def work(connection: sqlite3.Connection) -> None:
            at_ms = expires_at_ms(self._clock.wall_ms(), after_s)
            connection.execute(_EXPIRE, {"key": key, "expires_at_ms": at_ms})

        self._database.write(work)

    # -- waiting ----------------------------------------------------------------------------------

    def newest(self) -> int:
        """Return a number below the id of every result that is stored from now on."""
        newest: int = self._database.read(lambda c: c.execute(_NEWEST).fetchone()[0])
        return newest

    def newer(self, seen: int, wants: Callable[[str], bool]) -> News:
        """Return the results stored after `seen` whose key somebody wants, oldest first."""
        while True:
            news, there_is_more = self._database.read(partial(self._newer, seen=seen, wants=wants))
            if news.found or not there_is_more:
                return news
            seen = news.seen

    def _newer(
        self, connection: sqlite3.Connection, seen: int, wants: Callable[[str], bool]
    ) -> tuple[News, bool]:
        values = {"since": seen, "now_ms": self._clock.wall_ms(), "limit": READ_AT_ONCE}
        rows = connection.execute(_NEWER, values).fetchall()
        found = [
            (key, connection.execute(_VALUE, {"id": row_id}).fetchone()[0])
            for row_id, key in rows
            if wants(key)
        ]
        return News(found, rows[-1][0] if rows else seen), len(rows) == READ_AT_ONCE

    def sleep(self, keys: Sequence[str], timeout_s: float, *, has_news: Callable[[], bool]) -> bool:
        """Sleep until one of these results may be there, at most `timeout_s` and one second.

        `has_news` is the caller's look at the file. It runs when whoever stores a result would wake
        us already, so that nothing is missed in between. Return True when there is or may be news.
        """
        names = (
            [PSEUDO_QUEUE + key for key in keys] if len(keys) <= KEYS_BY_NAME else [PSEUDO_QUEUE]
        )
        return self._consumers.sleep(
            names, timeout_s, has_work=lambda _: has_news(), until_due=False
        )

    def stir(self) -> None:
        """Wake the threads of this process that sleep here, for example to wait for more."""
        bell = self._consumers.bell
        if bell is not None:
            bell.ring()

    # -- growing old ------------------------------------------------------------------------------

    def prune(self, *, force: bool = False) -> int:
        """Delete up to a chunk each of what has expired; return how many rows.

        Does nothing more than once a minute unless the last call filled its chunk, or with `force`,
        and pauses for a day after a jump of the wall clock: an expired result is absent, but comes
        back with the right time. If the process dies midway a chunk is gone or still there.
        """
        lease_now_ms = self._clock.lease_ms()
        if self._jumps.pauses() or (lease_now_ms < self._prune_next_ms and not force):
            return 0
        # Set before: other threads of the process need not do the same.
        self._prune_next_ms = lease_now_ms + _PRUNE_EVERY_MS
        now_ms = self._clock.wall_ms()
        count = self._database.write(lambda c: delete_expired(c, CHUNK, now_ms=now_ms))
        in_chords = self.chords.prune(now_ms)
        if max(count, in_chords) >= CHUNK:
            self._prune_next_ms = 0
        return count + in_chords


def delete_expired(connection: sqlite3.Connection, limit: int, *, now_ms: int) -> int:
    """Delete up to `limit` results that have expired; return how many."""
    return connection.execute(_PRUNE, {"now_ms": now_ms, "chunk": limit}).rowcount


def _in_chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), READ_AT_ONCE):
        yield items[start : start + READ_AT_ONCE]
