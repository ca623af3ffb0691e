"""Files with a million messages in them: made once a run by a single statement, then copied.

The statement goes into the file that our Store makes, through its indexes and triggers, so that the
counts and everything else are as if each message had been published and, where it is done, had run.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from sqlqueue_transport import Store
from tests.benchmarks.programs.on_sqlite import BODY, QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Together", "filled"]

_FILL = """
WITH RECURSIVE numbers (number) AS (
  SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < :count
)
INSERT INTO message (
  queue, state, job_id, task, attempts, delivery, worker_id, enqueued_at_ms, due_at_ms,
  started_at_ms, finished_at_ms, routing_key, content_type, body
)
SELECT
  :queue, :state, printf('0000-%032d', number), 'nothing', :ran, :ran, iif(:ran, 1, NULL),
  :now_ms - :count + number, iif(:state = 'scheduled', :now_ms + 86400000 + number, NULL),
  iif(:ran, :now_ms, NULL), iif(:ran, :now_ms, NULL), :queue, 'application/json', :body
FROM numbers
"""


def filled(directory: Path, count: int, state: str = "pending") -> Path:
    """Return a new file in `directory` that holds so many messages in one state, none with 0.

    `state` is pending, scheduled (for tomorrow) or done. The original stays beside `directory`.
    """
    original = directory.parent / f"{count}-{state}.db"
    if not original.exists():
        _fill(original, count, state)
    path = directory / f"{count}-{state}.db"
    shutil.copyfile(original, path)
    # What is written back to the disk while one measures would be measured, too.
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


def _fill(path: Path, count: int, state: str) -> None:
    making = path.with_suffix(".making")
    Store(making).close()
    if count:
        with closing(sqlite3.connect(making, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF").fetchall()
            connection.execute("PRAGMA cache_size = -400000").fetchall()  # 400 MB
            values = {
                "count": count,
                "queue": QUEUE,
                "state": state,
                "ran": int(state == "done"),
                "now_ms": time.time_ns() // 1_000_000,
                "body": BODY,
            }
            connection.execute(_FILL, values)
    making.rename(path)


class Together:
    """Measure what a group of subjects has in common once, and hand it out subject by subject.

    For subjects whose differences are small: they are measured in turns of a few milliseconds, in one
    process, where those of other levels take turns of seconds.
    """

    def __init__(self, measure: Callable[[str, Path, float], dict[str, dict[str, float]]]) -> None:
        """`measure` is given a group, a directory and the scale, and returns figures by member."""
        self._measure = measure
        self._found: dict[tuple[str, str], dict[str, float]] = {}

    def figures(self, group: str, member: str, directory: Path, scale: float) -> dict[str, float]:
        """Return a member's figures, which nobody was given before."""
        if (group, member) not in self._found:
            for name, figures in self._measure(group, directory, scale).items():
                self._found[group, name] = figures
        return self._found.pop((group, member))
