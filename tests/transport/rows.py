"""Messages to publish, and rows in any state, for the tests of the store."""

from __future__ import annotations

import itertools
from typing import Any

from sqlqueue_transport import statements as sql
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Delivery, Fault, NewMessage, Outcome, Settlement
from sqlqueue_transport.store import Store

LEASE_S = 60.0
FAULT = Fault("ValueError", "no such file", "Traceback …")
_numbers = itertools.count(1)

_INSERT = """
INSERT INTO message (
  id,
  queue, state, task, job_id, delivery, worker_id, lease_until_ms, enqueued_at_ms, due_at_ms,
  started_at_ms, finished_at_ms, expires_at_ms, attempts, body
)
VALUES (
  (SELECT 1 + max(given, coalesce((SELECT max(id) FROM message), 0)) FROM counted),
  :queue, :state, 'tasks.stamp', :job_id, :delivery, :worker_id, :lease_until_ms, :now_ms,
  :due_at_ms, :started_at_ms, :finished_at_ms, :expires_at_ms, :attempts, x'5b5d'
)
"""


def new(queue: str | None = "default", **fields: Any) -> NewMessage:
    """Make a job message; its job id and body are its number unless given."""
    number = next(_numbers)
    given: dict[str, Any] = {
        "body": f"[{number}]".encode(),
        "job_id": f"job-{number}",
        "task": "tasks.stamp",
        **fields,
    }
    return NewMessage(queue=queue, **given)


def publish(store: Store, queue: str = "default", **fields: Any) -> int:
    """Publish one job and return its message id."""
    answers = store.publish([new(queue, **fields)], durable=False)
    assert answers is not None
    return answers[0].message_id


def claim_one(store: Store, queue: str = "default", **fields: Any) -> Delivery:
    """Claim exactly one message."""
    claim = store.claim([queue], 1, lease_s=fields.pop("lease_s", LEASE_S), **fields)
    assert len(claim.deliveries) == 1
    return claim.deliveries[0]


def ended(delivery: Delivery, outcome: Outcome) -> Settlement:
    return Settlement(delivery.message_id, delivery.delivery, outcome)


def bind(store: Store, queue: str, exchange: str, routing_key: str) -> None:
    """Bind a queue to a direct exchange, which is declared if need be."""
    store.topology.declare_exchange(exchange, "direct")
    store.topology.bind(queue, exchange, routing_key)


def row(store: Store, message_id: int) -> dict[str, Any]:
    """Return a message's row as it lies in the file."""

    def work(connection: Any) -> dict[str, Any]:
        cursor = connection.execute("SELECT * FROM message WHERE id = ?", (message_id,))
        names = [column[0] for column in cursor.description]
        found = cursor.fetchone()
        assert found is not None, f"no message {message_id}"
        return dict(zip(names, found, strict=True))

    return store.database.read(work)


def state_of(store: Store, message_id: int) -> State:
    return State(row(store, message_id)["state"])


def rows_of(store: Store, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a SELECT and return its rows."""
    return store.database.read(lambda c: c.execute(query, values).fetchall())


def put(store: Store, state: State, *, queue: str = "default", due: str = "past") -> int:
    """Insert a row that stands in `state`, leased by this store's own worker if need be.

    `due` says where the due time of a scheduled or failed one lies.
    """
    now_ms, lease_ms = store.clock.wall_ms(), store.clock.lease_ms()
    is_processing = state is State.PROCESSING
    finished = state in {State.DONE, State.PERMANENTLY_FAILED, State.CANCELLED, State.EXPIRED}
    waits = state in {State.SCHEDULED, State.FAILED}
    values = {
        "queue": queue,
        "state": state.value,
        "job_id": f"job-{next(_numbers)}",
        "delivery": 0 if state in {State.PENDING, State.SCHEDULED} else 1,
        "worker_id": store.consumers.worker_id if is_processing else None,
        "lease_until_ms": lease_ms + 60_000 if is_processing else None,
        "now_ms": now_ms,
        "due_at_ms": now_ms + (-1000 if due == "past" else 3_600_000) if waits else None,
        "started_at_ms": now_ms if is_processing else None,
        "finished_at_ms": now_ms if finished else None,
        "expires_at_ms": None,
        "attempts": 1 if state in {State.FAILED, State.DONE} else 0,
    }
    inserted: int = store.database.write(lambda c: c.execute(_INSERT, values).lastrowid)
    return inserted


def vanish(store: Store) -> None:
    """Let this store's process look dead: the kernel gives its presence lock back."""
    consumers = store.consumers
    assert consumers._slot is not None
    consumers.presence.give_back(consumers._slot)


def count_in_small_portions(
    store: Store, *, portion: int = 4, tail: int = 3, block: int = 8
) -> None:
    """Let the triggers take messages into the tally as soon as a few newer ones are there."""

    def work(connection: Any) -> None:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND instr(sql, 'tally')"
        ).fetchall()
        for name, text in triggers:
            smaller = (
                text.replace("% 1024", f"% {portion}")
                .replace("- 8192", f"- {tail}")
                .replace("/ 16384", f"/ {block}")
            )
            assert smaller != text
            connection.execute(f"DROP TRIGGER {name}")
            connection.execute(smaller)

    store.database.write(work)


def attempts_of(store: Store, message_id: int) -> list[tuple[Any, ...]]:
    """Return (run, attempt, outcome, error type) of every recorded attempt, oldest first."""
    return rows_of(
        store,
        "SELECT run, attempt, outcome, error_type FROM attempt WHERE message_id = ? ORDER BY id",
        message_id,
    )


SETTLING = {
    "complete": Outcome.done(),
    "retry": Outcome.retry(FAULT, in_s=10),
    "exhaust": Outcome.dead(FAULT),
    "release": Outcome.release(),
    "abort": Outcome.cancelled(FAULT),
}

__all__ = [
    "FAULT",
    "LEASE_S",
    "SETTLING",
    "attempts_of",
    "bind",
    "claim_one",
    "count_in_small_portions",
    "ended",
    "new",
    "publish",
    "put",
    "row",
    "rows_of",
    "sql",
    "state_of",
    "vanish",
]
