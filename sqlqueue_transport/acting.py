"""What operators may do to messages: cancel, terminate, fail, requeue. Compare-and-set, and audited.

An action names messages by id together with the state they were seen in. If that state has
changed, the message is skipped and reported, never overwritten: either the operator or the
worker wins, and the other is told.

To terminate is to leave a mark on a running delivery, which only a worker of ours reads: it tells the
task, and its supervisor kills where a time was set for that. Of other consumers (Celery's) nobody
would do either, so there the mark is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue_transport.lifecycle import Event, State, sources, target
from sqlqueue_transport.messages import LARGEST_ID, storable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

CHUNK = 500  # rows a transaction, so that workers never wait for an operator

_CANCEL = """
UPDATE message
SET state = :after, finished_at_ms = :now_ms
WHERE id = :id AND state = :before
"""
# Asked again, the first time stays, and so does the sooner of two ends: a wish is not taken back.
_TERMINATE = """
UPDATE message
SET
  stop_asked_at_ms = coalesce(stop_asked_at_ms, :now_ms),
  kill_at_ms = coalesce(
    min(kill_at_ms, :now_ms + :kill_in_ms), kill_at_ms, :now_ms + :kill_in_ms
  )
WHERE id = :id AND state = :before AND worker_id IN (
  SELECT id FROM worker WHERE kind IN ('worker', 'child')
)
"""
_HOLDER = """
SELECT w.kind FROM message AS m
JOIN worker AS w ON w.id = m.worker_id
WHERE m.id = :id AND m.state = :before AND m.state = 'processing'
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
  error_message = NULL,
  stop_asked_at_ms = NULL,
  kill_at_ms = NULL
WHERE id = :id AND state = :before
"""
_FORGET_PROGRESS = "DELETE FROM progress WHERE message_id = :id"
_RECORD = """
INSERT INTO audit (at_ms, actor, action, message_id, job_id, reason, before, after)
SELECT :now_ms, :actor, :action, id, job_id, :reason, :before, :after
FROM message WHERE id = :id
"""
_QUEUE_OF = "SELECT queue FROM message WHERE id = :id"

_STATEMENT = {
    Event.CANCEL: _CANCEL,
    Event.TERMINATE: _TERMINATE,
    Event.FAIL: _FAIL,
    Event.REQUEUE: _REQUEUE,
}


@dataclass(frozen=True, slots=True)
class Acted:
    """Be what became of one message: `after` None means skipped, because it had changed.

    `holder` is the kind of process that runs a message which was to be terminated: "child"; "worker"
    for a worker without children, which nobody can kill for its job; "client" for a consumer that is
    none of ours, and then it was skipped for that. None where nobody was asked.
    """

    message_id: int
    before: State
    after: State | None
    holder: str | None = None


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
        kill_in_s: float | None = None,
    ) -> list[Acted]:
        """Apply CANCEL, TERMINATE, FAIL or REQUEUE to messages seen in the given states.

        `kill_in_s` is for TERMINATE: in how many seconds the process of what still runs then is to
        be killed; None means never. A state in which the event is not legal counts as skipped. If
        the process dies midway, the chunks before are done and audited, the rest untouched. Raises
        ValueError for an event that is not an operator's.
        """
        if event not in _STATEMENT:
            message = f"{event.value} is not an operator's action"
            raise ValueError(message)
        # They come from a command line, which may hold anything.
        how = {
            "actor": storable(actor),
            "reason": storable(reason),
            "action": event.value,
            "kill_in_ms": None if kill_in_s is None else round(kill_in_s * 1000),
        }
        acted: list[Acted] = []
        for start in range(0, len(targets), CHUNK):
            chunk = targets[start : start + CHUNK]
            done, queues = self._database.write(
                lambda c, chunk=chunk: self._act(c, event, chunk, how),  # type: ignore[misc]
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
        how: Mapping[str, object],
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
                **how,
            }
            holder = None
            if event is Event.REQUEUE:
                connection.execute(_KEEP_SUCCESS, values)
            elif event is Event.TERMINATE:
                (holder,) = connection.execute(_HOLDER, values).fetchone() or (None,)
            if not connection.execute(_STATEMENT[event], values).rowcount:
                acted.append(Acted(message_id, before, None, holder))
                continue
            if event is Event.REQUEUE:
                connection.execute(_FORGET_PROGRESS, values)
            connection.execute(_RECORD, values)
            acted.append(Acted(message_id, before, after, holder))
            if after is State.PENDING:
                queues.append(connection.execute(_QUEUE_OF, values).fetchone()[0])
        return acted, queues
