"""What a delivery that runs asks and tells: whether to go on, and how far it is.

Nothing here ends a delivery: settling is the store's, and giving up for the dead is `losses`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue_transport import statements as sql
from sqlqueue_transport.messages import storable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

LONGEST_NOTE = 500  # characters; the beginning is kept


class RunningDeliveries:
    """Answer those who run deliveries and those who watch over them; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def to_stop(self, deliveries: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return those of these (message id, delivery) that should not go on.

        An operator asked them to stop; or they are not the asker's any more (settled, taken over,
        failed by an operator, the lease over), and whatever they end in will be refused. One small
        read; writes nothing.
        """
        if not deliveries:
            return set()
        lease_now_ms = self._clock.lease_ms()

        def work(connection: sqlite3.Connection) -> set[tuple[int, int]]:
            return {
                (message_id, delivery)
                for message_id, delivery in deliveries
                if not connection.execute(
                    sql.GOES_ON,
                    {"id": message_id, "delivery": delivery, "lease_now_ms": lease_now_ms},
                ).fetchone()
            }

        return self._database.read(work)

    def to_kill(self) -> dict[int, set[tuple[int, int]]]:
        """Return by worker id the (message id, delivery) whose process is to be killed now.

        At most 200 at once. One read over what is processing.
        """
        values = {"now_ms": self._clock.wall_ms()}
        rows = self._database.read(lambda c: c.execute(sql.KILLS_DUE, values).fetchall())
        found: dict[int, set[tuple[int, int]]] = {}
        for message_id, delivery, worker_id in rows:
            found.setdefault(worker_id, set()).add((message_id, delivery))
        return found

    def note_progress(
        self, message_id: int, delivery: int, *, done: float, total: float | None, note: str
    ) -> bool:
        """Write down how far a delivery is; False when it is over, and then nothing is written.

        `total` None means that it is not known. Of a note the first 500 characters are kept. Not
        flushed to the disk: a power cut may lose the newest word. If the process dies midway, it is
        written or not.
        """
        text = storable(note[:LONGEST_NOTE])
        values = {
            "id": message_id,
            "delivery": delivery,
            "done": done,
            "total": total,
            "note": text or None,
            "now_ms": self._clock.wall_ms(),
        }
        return bool(self._database.write(lambda c: c.execute(sql.NOTE_PROGRESS, values).rowcount))
