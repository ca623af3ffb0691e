"""Pause and resume queues: of a paused one nothing is claimed, by whatever consumer.

The mark stands in the queue's row, and the two statements that say what is ready (`READY`,
`ANY_READY`) obey it. Everything else goes on: publishing, promoting what is due, running what was
claimed before, expiring. A queue that is deleted and made again is not paused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue_transport.errors import InvalidMessage, NotDeclared
from sqlqueue_transport.messages import storable

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

# A queue that nobody declared, but in which messages lie, gets its row here.
_MAKE = """
INSERT INTO queue (name, created_at_ms, unused_since_ms)
SELECT :queue, :now_ms, :now_ms
WHERE EXISTS (SELECT 1 FROM message WHERE state = 'pending' AND queue = :queue)
  OR EXISTS (SELECT 1 FROM message WHERE state IN ('scheduled', 'failed') AND queue = :queue)
  OR EXISTS (SELECT 1 FROM message WHERE state = 'processing' AND queue = :queue)
ON CONFLICT (name) DO NOTHING
"""
_LOOK = """
SELECT auto_delete = 1 OR exclusive = 1 OR expires_ms IS NOT NULL FROM queue
WHERE name = :queue AND gone_at_ms IS NULL
"""
_PAUSE = "UPDATE queue SET paused_at_ms = :now_ms WHERE name = :queue AND paused_at_ms IS NULL"
_RESUME = "UPDATE queue SET paused_at_ms = NULL WHERE name = :queue AND paused_at_ms IS NOT NULL"
_RECORD = """
INSERT INTO audit (at_ms, actor, action, reason, before, after)
VALUES (:now_ms, :actor, :action, :reason, :before, :after)
"""


def pause_action(queue: str) -> str:
    """Return what the audit calls the pausing of a queue; there is no message it could name."""
    return f"pause queue {queue}"


class Pausing:
    """Pause and resume for an operator; one call is one transaction."""

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._consumers = consumers

    def pause(self, queue: str, *, actor: str, reason: str | None = None) -> bool:
        """Let nobody claim from a queue until `resume`; False when it was paused before.

        Raises NotDeclared for a queue that does not exist, and InvalidMessage for one that goes away
        by itself (auto-delete, exclusive, `x-expires`): that is a program's mailbox, and pausing it
        would make the program deaf. If the process dies midway it is paused and audited, or neither.
        """
        return self._mark(_PAUSE, queue, pause_action(queue), actor, reason, is_pause=True)

    def resume(self, queue: str, *, actor: str, reason: str | None = None) -> bool:
        """Let a queue be claimed from again, and wake who sleeps for it; False when it ran.

        Raises NotDeclared for a queue that does not exist.
        """
        resumed = self._mark(_RESUME, queue, f"resume queue {queue}", actor, reason, is_pause=False)
        if resumed:
            # All of them: many messages may wait, and each sleeper takes only its share.
            self._consumers.wake(queue, None, everyone=True)
        return resumed

    def _mark(
        self,
        statement: str,
        queue: str,
        action: str,
        actor: str,
        reason: str | None,
        *,
        is_pause: bool,
    ) -> bool:
        before, after = ("running", "paused") if is_pause else ("paused", "running")

        def work(connection: sqlite3.Connection) -> bool:
            values = {
                "queue": storable(queue),
                "now_ms": self._clock.wall_ms(),
                # They come from a command line, which may hold anything.
                "actor": storable(actor),
                "action": storable(action),
                "reason": storable(reason),
                "before": before,
                "after": after,
            }
            connection.execute(_MAKE, values)
            found = connection.execute(_LOOK, values).fetchone()
            if found is None:
                message = (
                    f"there is no queue {queue!r}; 'sqlqueue inspect queues' lists those there are"
                )
                raise NotDeclared(message)
            if is_pause and found[0]:
                message = (
                    f"queue {queue!r} goes away by itself, as the mailbox of a program does; only"
                    " queues of jobs can be paused"
                )
                raise InvalidMessage(message)
            if not connection.execute(statement, values).rowcount:
                return False
            connection.execute(_RECORD, values)
            return True

        return self._database.write(work, durable=True)
