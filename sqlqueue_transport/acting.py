"""What operators may do to messages: cancel, fail, requeue. Compare-and-set, and audited.

An action names messages by id together with the state they were seen in. If that state has
changed, the message is skipped and reported, never overwritten: either the operator or the
worker wins, and the other is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport.lifecycle import Event, State, sources, target
from sqlqueue_transport.messages import LARGEST_ID, storable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

CHUNK = 500  # rows a transaction, so that workers never wait for an operator

_CANCEL = """
UPDATE message
SET state = :after, finished_at_ms = :now_ms
WHERE id = :id AND state = :before
"""
_FAIL = """
UPDATE message
SET
  state = :after,
  finished_at_ms = :now_ms,
  lease_until_ms = NULL,
  error_type = 'FailedByOperator',
  error_message = :reason
WHERE id = :id AND state = :before
"""
# A success that is run again stays in the history.
_KEEP_SUCCESS = """
INSERT INTO attempt (
  message_id, run, attempt, delivery, worker, started_at_ms, ended_at_ms, outcome
)
SELECT m.id, m.run, m.attempts, m.delivery, w.name, m.started_at_ms, m.finished_at_ms, 'done'
FROM message AS m
LEFT JOIN worker AS w ON w.id = m.worker_id
WHERE m.id = :id AND m.state = 'done' AND :before = 'done'
"""
_REQUEUE = """
UPDATE message
SET
  state = :after,
  run = run + 1,
  attempts = 0,
  unnoted_losses = 0,
  due_at_ms = NULL,
  expires_at_ms = NULL,
  started_at_ms = NULL,
  finished_at_ms = NULL,
  result = NULL,
  error_type = NULL,
  error_message = NULL
WHERE id = :id AND state = :before
"""
_RECORD = """
INSERT INTO audit (at_ms, actor, action, message_id, job_id, reason, before, after)
SELECT :now_ms, :actor, :action, id, job_id, :reason, :before, :after
FROM message WHERE id = :id
"""
_QUEUE_OF = "SELECT queue FROM message WHERE id = :id"

_STATEMENT = {Event.CANCEL: _CANCEL, Event.FAIL: _FAIL, Event.REQUEUE: _REQUEUE}


@dataclass(frozen=True, slots=True)
class Acted:
    """Be what became of one message: `after` None means skipped, because it had changed."""

    message_id: int
    before: State
    after: State | None


class Acting:
    """Change messages for an operator; each chunk of 500 is one transaction."""

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._consumers = consumers

    def act(
        self,
        event: Event,
        targets: Sequence[tuple[int, State]],
        *,
        actor: str,
        reason: str | None = None,
    ) -> list[Acted]:
        """Apply CANCEL, FAIL or REQUEUE to messages seen in the given states.

        A state in which the event is not legal counts as skipped. If the process dies midway,
        the chunks before are done and audited, the rest untouched. Raises ValueError for an
        event that is not an operator's.
        """
        if event not in _STATEMENT:
            message = f"{event.value} is not an operator's action"
            raise ValueError(message)
        acted: list[Acted] = []
        for start in range(0, len(targets), CHUNK):
            chunk = targets[start : start + CHUNK]
            done, queues = self._database.write(
                lambda c, chunk=chunk: self._act(c, event, chunk, actor, reason),  # type: ignore[misc]
                durable=True,
            )
            acted += done
            for queue in queues:
                self._consumers.wake(queue, None)
        return acted

    def _act(
        self,
        connection: sqlite3.Connection,
        event: Event,
        targets: Sequence[tuple[int, State]],
        actor: str,
        reason: str | None,
    ) -> tuple[list[Acted], list[str]]:
        acted: list[Acted] = []
        queues: list[str] = []
        now_ms = self._clock.wall_ms()
        for message_id, before in targets:
            if before not in sources(event) or message_id > LARGEST_ID:
                acted.append(Acted(message_id, before, None))
                continue
            after = target(before, event)
            values = {
                "id": message_id,
                "before": before.value,
                "after": after.value,
                "now_ms": now_ms,
                # They come from a command line, which may hold anything.
                "actor": storable(actor),
                "action": event.value,
                "reason": storable(reason),
            }
            if event is Event.REQUEUE:
                connection.execute(_KEEP_SUCCESS, values)
            if not connection.execute(_STATEMENT[event], values).rowcount:
                acted.append(Acted(message_id, before, None))
                continue
            connection.execute(_RECORD, values)
            acted.append(Acted(message_id, before, after))
            if after is State.PENDING:
                queues.append(connection.execute(_QUEUE_OF, values).fetchone()[0])
        return acted, queues
