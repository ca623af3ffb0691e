"""Delete for an operator: what waits in a queue, and what ended long ago. In portions, and audited.

Each portion is one transaction, so that workers never wait long for an operator. The first one writes
the record of who, when and why; each one writes into it how many are deleted by then. So the audit is
right at every moment, also when the process dies in the middle.

What runs is never touched here, nor what was published after a purge began.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlqueue_transport import pruning
from sqlqueue_transport import statements as sql
from sqlqueue_transport.housekeeping import Portion
from sqlqueue_transport.lifecycle import FINISHED, State
from sqlqueue_transport.messages import storable
from sqlqueue_transport.pruning import Done
from sqlqueue_transport.topology import PURGED_AT_ONCE, newest_message, purge_some

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database
    from sqlqueue_transport.pruning import Piece

_LATER_COUNT = """
SELECT count(*) FROM message WHERE state IN ('scheduled', 'failed') AND queue = :queue
"""
_RECORD = """
INSERT INTO audit (at_ms, actor, action, reason, before, after)
VALUES (:now_ms, :actor, :action, :reason, :before, :after)
"""
_RECORD_MORE = "UPDATE audit SET after = :after WHERE id = :record_id"


class Deleting:
    """Delete messages for an operator; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    # -- what waits in a queue ----------------------------------------------------------------------

    def purgeable(self, queue: str) -> int:
        """Return how many messages wait in a queue: pending, scheduled and failed ones."""
        values = {"queue": storable(queue)}

        def work(connection: sqlite3.Connection) -> int:
            ready: int = connection.execute(sql.READY_COUNT, values).fetchone()[0]
            later: int = connection.execute(_LATER_COUNT, values).fetchone()[0]
            return ready + later

        return self._database.read(work)

    def purge(
        self,
        queue: str,
        *,
        actor: str,
        reason: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> int:
        """Delete what waits in a queue and return how many messages that were.

        What runs, what has ended and what comes meanwhile stays. `tell` is called in this thread
        after each portion with how many are deleted by then; what it raises ends the purge. If the
        process dies midway, a part is deleted, and the record says how many.
        """
        waiting = self.purgeable(queue)
        piece = _Waiting(storable(queue) or "", self._database.read(newest_message))
        record = self._record(
            tell,
            action=f"purge queue {queue}",
            before=f"{waiting} waiting",
            actor=actor,
            reason=reason,
        )
        while record.portion(piece, PURGED_AT_ONCE).has_more:
            pass
        return record.deleted

    # -- what has ended -----------------------------------------------------------------------------

    def prunable(self, *, older_than_s: float, states: Sequence[State]) -> int:
        """Return how many messages in these states ended more than so many seconds ago.

        Raises ValueError for a state that is no end.
        """
        _refuse_unended(states)
        before_ms = self._before_ms(older_than_s)
        return self._database.read(
            lambda c: sum(
                pruning.count_ended(c, state.value, before_ms) for state in dict.fromkeys(states)
            )
        )

    def prune(
        self,
        *,
        older_than_s: float,
        states: Sequence[State],
        actor: str,
        reason: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> int:
        """Delete messages in these states that ended more than so many seconds ago; return how many.

        Bodies, attempts and progress go with them. Portions are as long as housekeeping's, and others
        have the file for as long in between. `tell` and a death midway are as with `purge`. Raises
        ValueError for a state that is no end.
        """
        _refuse_unended(states)
        before_ms = self._before_ms(older_than_s)
        names = ", ".join(dict.fromkeys(state.value for state in states))
        what = f"{names}, ended more than {older_than_s:g} s ago"
        record = self._record(tell, action="prune", before=what, actor=actor, reason=reason)
        for state in dict.fromkeys(states):
            piece, portion = pruning.ended(state.value, before_ms), Portion()
            while record.portion(piece, portion.rows).has_more:
                portion.measured(record.took_s)
                time.sleep(record.took_s)
        return record.deleted

    def _record(self, tell: Callable[[int], None] | None, **row: str | None) -> _Record:
        return _Record(self._database, self._clock.wall_ms, tell, **row)

    def _before_ms(self, older_than_s: float) -> int:
        return self._clock.wall_ms() - round(older_than_s * 1000)


class _Waiting:
    """Delete what waits in a queue and was there when the purge began."""

    name = "waiting"

    def __init__(self, queue: str, newest: int) -> None:
        self._queue = queue
        self._newest = newest

    def work(self, connection: sqlite3.Connection, limit: int) -> Done:
        removed = purge_some(connection, self._queue, newest=self._newest, limit=limit)
        return Done(removed, has_more=removed >= limit)


class _Record:
    """Delete portions, and keep one row of the audit at how many that were."""

    def __init__(
        self,
        database: Database,
        now_ms: Callable[[], int],
        tell: Callable[[int], None] | None,
        **row: str | None,
    ) -> None:
        """`row` is what the audit says of it, but for the outcome."""
        self._database = database
        self._now_ms = now_ms
        self._tell = tell
        # Names and reasons come from a command line, which may hold anything.
        self._row = {name: storable(text) for name, text in row.items()}
        self._id: int | None = None
        self.deleted = 0
        self.took_s = 0.0  # what SQLite took for the newest portion, its commit not counted

    def portion(self, piece: Piece, limit: int) -> Done:
        """Delete at most `limit` rows in one transaction, together with what the audit says of it."""

        def work(connection: sqlite3.Connection) -> tuple[Done, int | None]:
            began_s = time.monotonic()  # here, because now the lock is ours
            done = piece.work(connection, limit)
            self.took_s = time.monotonic() - began_s
            values: dict[str, object] = {
                **self._row,
                "after": f"{self.deleted + done.removed} deleted",
            }
            if self._id is not None:
                connection.execute(_RECORD_MORE, {**values, "record_id": self._id})
                return done, self._id
            if not done.removed:  # nothing happened, so there is nothing to tell
                return done, None
            values["now_ms"] = self._now_ms()
            return done, connection.execute(_RECORD, values).lastrowid

        done, self._id = self._database.write(work, durable=True)
        self.deleted += done.removed
        if self._tell is not None and done.removed:
            self._tell(self.deleted)
        return done


def _refuse_unended(states: Sequence[State]) -> None:
    wrong = [state.value for state in states if state not in FINISHED]
    if wrong or not states:
        message = f"only what has ended can be pruned, not {', '.join(wrong) or 'nothing at all'}"
        raise ValueError(message)
