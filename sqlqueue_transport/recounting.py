"""Count anew what the file keeps a tally of, where another program has made that wrong.

Triggers keep the tally exact (see `counting`, and schema.sql). A wrong one stops no job, but shows wrong
numbers, and lists may leave jobs out. `doctor --strict` finds it; this mends it while workers go on:
each block of ids is counted in a transaction of some milliseconds, and is exact from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import listing

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from sqlqueue_transport.database import Database

__all__ = ["Recounted", "recount"]

# Not beyond the newest id: what came up to there would never be counted.
_MEND_COUNTED = """
INSERT INTO counted (only, upto)
SELECT 1, (SELECT coalesce(max(id), 0) FROM message) + 1 WHERE true
ON CONFLICT (only) DO UPDATE SET upto = max(1, min(upto, max(excluded.upto, given + 1)))
"""
_FORGET_IMPOSSIBLE = """
DELETE FROM tally
WHERE block < 0 OR block * :size >= (SELECT upto FROM counted WHERE only = 1)
"""
_FIRST_AND_LAST = """
SELECT
  min(
    coalesce((SELECT min(id) FROM message), upto - 1) / :size,
    coalesce((SELECT min(block) FROM tally), (upto - 1) / :size),
    (upto - 1) / :size
  ),
  (upto - 1) / :size
FROM counted WHERE only = 1
"""
_SAID = """
SELECT queue, state, is_job, messages FROM tally
WHERE block = :block AND messages <> 0
ORDER BY queue, state, is_job
"""
_FORGET = "DELETE FROM tally WHERE block = :block"
_COUNT = """
INSERT INTO tally (queue, state, is_job, block, messages)
SELECT queue, state, task IS NOT NULL, :block, count(*) FROM message NOT INDEXED
WHERE id >= :block * :size AND id < (:block + 1) * :size
  AND id < (SELECT upto FROM counted WHERE only = 1)
GROUP BY queue, state, task IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Recounted:
    """Be how many blocks of ids were counted, and of how many the tally was wrong."""

    blocks: int
    wrong: int


def recount(database: Database, tell: Callable[[int, int], None] | None = None) -> Recounted:
    """Make the tally what is there. Reads every message once.

    `tell` is called in this thread after each block with how many are done, of how many; what it
    raises ends it. If the process dies midway, some blocks are right and the others as they were.
    """
    first, last = database.write(_begin)
    wrong = 0
    for block in range(first, last + 1):
        wrong += database.write(lambda connection, block=block: _count(connection, block))  # type: ignore[misc]
        if tell is not None:
            tell(block - first + 1, last - first + 1)
    return Recounted(last - first + 1, wrong)


def _begin(connection: sqlite3.Connection) -> tuple[int, int]:
    size = {"size": listing.BLOCK}
    connection.execute(_MEND_COUNTED)
    connection.execute(_FORGET_IMPOSSIBLE, size)
    first, last = connection.execute(_FIRST_AND_LAST, size).fetchone()
    return first, last


def _count(connection: sqlite3.Connection, block: int) -> bool:
    """Count a block; say whether the tally had been wrong."""
    values: dict[str, Any] = {"block": block, "size": listing.BLOCK}
    said = connection.execute(_SAID, values).fetchall()
    connection.execute(_FORGET, values)
    connection.execute(_COUNT, values)
    is_wrong: bool = said != connection.execute(_SAID, values).fetchall()
    return is_wrong
