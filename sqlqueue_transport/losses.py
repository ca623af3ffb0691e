"""What becomes of a delivery whose consumer cannot end it any more: dead, silent, or shutting down.

Runs inside a transaction of the caller. What was noted as ended well is done, with its result: only
its settlement was not committed yet. What an operator had asked to stop is cancelled, however it was
lost. A delivery that was noted as started keeps a counted attempt; the rest is released. Where nobody can know whether it was started (its consumer notes no
starts, or a reboot may have lost the note), the return itself is counted, and the last one of
`max_deliveries` makes a dead letter: a message that kills whoever takes it must come to an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlqueue_transport import routing
from sqlqueue_transport import statements as sql
from sqlqueue_transport.messages import Fault, Lost
from sqlqueue_transport.routing import Unwanted

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.presence import Ended, Note
    from sqlqueue_transport.routing import Landed

DEFAULT_MAX_ATTEMPTS = 5
_LOSS_BACKOFF_S = 1.0
_LOSS_BACKOFF_MAX_S = 60.0
_LEASE_OVER = Fault("LeaseOver", "the worker neither ended the job nor extended its lease in time")


class _Held(NamedTuple):
    """Be one delivery somebody holds, as `HELD_BY_WORKER` and `OVERDUE` select it."""

    message_id: int
    delivery: int
    job_id: str | None
    task: str | None
    queue: str
    run: int
    attempts: int
    max_attempts: int | None
    unnoted_losses: int
    worker: str
    worker_kind: str
    worker_boot: str
    max_deliveries: int
    is_asked_to_stop: int  # 0 or 1


def end_worker(
    connection: sqlite3.Connection,
    clock: Clock,
    worker_id: int,
    notes: Iterable[Note],
    landed: Landed,
    *,
    ended: Iterable[Ended] = (),
    faults: Mapping[int, tuple[str, Fault]] | None = None,
    orderly: bool = False,
) -> list[Lost]:
    """Mark a worker ended, with its consumers, and give back what it holds; `orderly` counts nothing.

    `ended` is what it has noted as ended well. `faults` names by message id what is known better than
    "lost": (outcome for the record, fault).
    """
    rows = connection.execute(sql.HELD_BY_WORKER, {"worker_id": worker_id}).fetchall()
    held = _not_ended(connection, clock, map(_Held._make, rows), ended)
    started = _by_delivery(notes)
    lost = [
        _lose(connection, clock, one, started, faults or {}, landed=landed, orderly=orderly)
        for one in held
    ]
    values = {"worker_id": worker_id, "now_ms": clock.wall_ms()}
    queues = connection.execute(sql.QUEUES_OF, values).fetchall()
    connection.execute(sql.STOP_ALL_CONSUMING, values)
    for (queue,) in queues:
        connection.execute(sql.LEAVE_QUEUE, {**values, "queue": queue})
    connection.execute(sql.END_WORKER, values)
    return lost


def end_overdue(
    connection: sqlite3.Connection,
    clock: Clock,
    notes: Iterable[Note],
    ended: Iterable[Ended],
    landed: Landed,
) -> list[Lost]:
    """Give back what lies under leases that are over, a bounded number of them."""
    rows = connection.execute(sql.OVERDUE, {"lease_now_ms": clock.lease_ms()}).fetchall()
    held = _not_ended(connection, clock, map(_Held._make, rows), ended)
    started = _by_delivery(notes)
    fault = ("lost", _LEASE_OVER)
    return [
        _lose(connection, clock, one, started, {one.message_id: fault}, landed=landed)
        for one in held
    ]


def _not_ended(
    connection: sqlite3.Connection, clock: Clock, held: Iterable[_Held], ended: Iterable[Ended]
) -> list[_Held]:
    """Settle what has ended well, and return the rest."""
    known = {(one.message_id, one.delivery): one for one in ended}
    left = []
    for one in held:
        found = known.get((one.message_id, one.delivery))
        if found is None or not _complete(connection, found, clock.wall_ms()):
            left.append(one)
    return left


def _complete(connection: sqlite3.Connection, ended: Ended, now_ms: int) -> bool:
    values = {
        "id": ended.message_id,
        "delivery": ended.delivery,
        "result": ended.result,
        "now_ms": now_ms,
    }
    return bool(connection.execute(sql.COMPLETE_FOR_ANOTHER, values).rowcount)


def too_many_returns(at_most: int) -> Fault:
    """Say why a message that always comes back is a dead letter now."""
    return Fault(
        "TooManyDeliveries",
        f"delivered {at_most} times to consumers that vanished with it or handed it back",
    )


def _lose(
    connection: sqlite3.Connection,
    clock: Clock,
    held: _Held,
    started: Mapping[tuple[int, int], Note],
    faults: Mapping[int, tuple[str, Fault]],
    *,
    landed: Landed,
    orderly: bool = False,
) -> Lost:
    """End one delivery for somebody who cannot any more."""
    note = started.get((held.message_id, held.delivery))
    counted = not orderly and note is not None
    blind = (
        not orderly
        and not counted
        and (held.worker_kind == "client" or held.worker_boot != clock.boot())
    )
    now_ms = clock.wall_ms()
    cause, fault = faults.get(
        held.message_id,
        ("lost", Fault("WorkerLost", f"worker {held.worker} died while it ran this job")),
    )
    dead = False
    if blind and 0 < held.max_deliveries <= held.unnoted_losses + 1:
        dead = True
        fault = too_many_returns(held.max_deliveries)
    values: dict[str, Any] = {
        "id": held.message_id,
        "delivery": held.delivery,
        "run": held.run,
        "now_ms": now_ms,
        "counted": int(counted),
        "blind": int(blind),
        "outcome": cause,
        "error_type": fault.type,
        "error_message": fault.message,
        "traceback": fault.traceback,
    }
    if held.is_asked_to_stop:
        return _abort(connection, held, fault, values)
    if dead:
        connection.execute(sql.LOSE_TO_DEAD, values)
        routing.dead_letter(connection, held.message_id, Unwanted.DELIVERY_LIMIT, now_ms, landed)
    elif note is not None and counted:
        dead = 0 < _allowed(note, held) <= held.attempts + 1
        if dead:
            connection.execute(sql.LOSE_TO_DEAD, values)
        else:
            (losses,) = connection.execute(sql.COUNT_LOSSES, values).fetchone()
            values["due_at_ms"] = now_ms + round(_loss_wait_s(losses) * 1000)
            connection.execute(sql.LOSE_TO_RETRY, values)
        connection.execute(sql.RECORD_ATTEMPT, values)
    else:
        connection.execute(sql.LOSE_UNCOUNTED, values)
    if not dead:
        landed.append((held.queue, None))
        routing.forget_if_gone(connection, held.message_id)
    return _lost(held, fault if counted or dead else None, counted=counted, dead=dead)


def _abort(
    connection: sqlite3.Connection, held: _Held, fault: Fault, values: dict[str, Any]
) -> Lost:
    """Cancel a delivery that was asked to stop. One that was never started has no error to show."""
    counted = bool(values["counted"])
    if counted:
        values["outcome"] = "cancelled"
    else:
        values.update(error_type=None, error_message=None)
    connection.execute(sql.LOSE_TO_CANCELLED, values)
    if counted:
        connection.execute(sql.RECORD_ATTEMPT, values)
    return _lost(held, fault if counted else None, counted=counted, dead=False, cancelled=True)


def _lost(
    held: _Held, error: Fault | None, *, counted: bool, dead: bool, cancelled: bool = False
) -> Lost:
    return Lost(
        held.message_id,
        held.job_id,
        held.task,
        held.queue,
        held.worker,
        attempt=held.attempts + 1,
        counted=counted,
        dead=dead,
        cancelled=cancelled,
        error=error,
    )


def _by_delivery(notes: Iterable[Note]) -> dict[tuple[int, int], Note]:
    """Index notes by (message id, delivery): an older delivery's note says nothing of this one."""
    return {(note.message_id, note.delivery): note for note in notes}


def _allowed(note: Note, held: _Held) -> int:
    """Return how many attempts a job may have; 0 means no limit."""
    if note.max_attempts is not None:
        return note.max_attempts
    return DEFAULT_MAX_ATTEMPTS if held.max_attempts is None else held.max_attempts


def _loss_wait_s(earlier_losses: int) -> float:
    """Return how long a lost job waits: not at all the first time, then doubling."""
    if not earlier_losses:
        return 0.0
    return min(_LOSS_BACKOFF_S * 2.0 ** min(earlier_losses - 1, 30), _LOSS_BACKOFF_MAX_S)
