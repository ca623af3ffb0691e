"""The life of a message in the file: publish, claim, settle, extend.

One public call is one transaction. Everything a consumer may do names a delivery (message id
and delivery number), and what does not fit any more is refused, never applied. Who is alive and
what was lost is `consumers`; operators' reading and acting are `reading` and `acting`.

The claim is the heart. The naive form, `UPDATE … WHERE id = (SELECT … WHERE due_at <= now)`,
walks over every future row, sorts when several queues are asked at once, and needs a second
transaction for the settlement of the job before. So: what is due becomes a state (`promote`,
bounded), one queue is asked at a time along its partial index, and the settlements that wait
ride in the same transaction. A read-only probe comes first when there is nothing to settle, so
that an idle consumer writes nothing.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import statements as sql
from sqlqueue_transport.acting import Acting
from sqlqueue_transport.clock import SYSTEM_CLOCK, Clock
from sqlqueue_transport.consumers import Consumers
from sqlqueue_transport.database import BUSY_TIMEOUT_S, Database
from sqlqueue_transport.errors import InvalidMessage, WorkerSwept
from sqlqueue_transport.files import resolved_path
from sqlqueue_transport.housekeeping import Housekeeping
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import (
    Claim,
    Delivery,
    NewMessage,
    Outcome,
    Published,
    Settlement,
    TickOf,
    storable,
)
from sqlqueue_transport.reading import Reading
from sqlqueue_transport.schedules import Schedules
from sqlqueue_transport.topology import Topology

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

# Above this size a body lies in a table of its own: an ack of a 200 kB row took 207 µs, now 11.
INLINE_BODY_BYTES = 16_384
# Ended in one transaction, so that a flood of expired messages never holds the writer for long.
EXPIRED_AT_ONCE = 200
# What SQLite and its Python binding raise for a value that a column cannot hold: a wrong type or a
# broken CHECK, a lone surrogate, an integer beyond 64 bits, a body beyond SQLite's limit.
_NOT_STORABLE = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    UnicodeEncodeError,
    OverflowError,
)

_SETTLE_BY_EVENT = {
    Event.COMPLETE: sql.COMPLETE,
    Event.RETRY: sql.RETRY,
    Event.EXHAUST: sql.EXHAUST,
    Event.RELEASE: sql.RELEASE,
}


class Store:
    """Keep one queue file for this process; safe to share between threads.

    `topology` declares queues and bindings, `consumers` knows who is alive, `schedules` what
    the beats described; `reading` and `acting` serve operators. Errors: `errors.Unavailable`
    kinds when the file cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock = SYSTEM_CLOCK,
        create: bool = True,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        """Open the file at `path`, making it unless `create` is False.

        Raises a CannotOpen that says what is wrong. If the process dies midway there is no file,
        an empty one or a complete one, and each opens again.
        """
        self.path = resolved_path(path)
        self.clock = clock
        self.database = Database(self.path, create=create, busy_timeout_s=busy_timeout_s)
        try:
            self.topology = Topology(self.database, clock)
            self.consumers = Consumers(self.database, clock)
            self.reading = Reading(self.database, clock, self.consumers)
            self.schedules = Schedules(self.database, clock)
            self.housekeeping = Housekeeping(self.database, clock)
            self.acting = Acting(self.database, clock, self.consumers)
            self.database.write(lambda _: None)  # opens and checks
            self.consumers.attach()
        except BaseException:
            self.database.close()
            raise

    # -- publish ----------------------------------------------------------------------------------

    def publish(
        self,
        messages: Sequence[NewMessage],
        *,
        durable: bool = True,
        tick: TickOf | None = None,
    ) -> list[Published] | None:
        """Store messages in one transaction and wake who waits for them.

        Return one answer per message (of several bound queues the first; message id 0 when no
        queue was bound), or None when `tick` had been enqueued before: then nothing is stored.
        With `durable` it survives a power cut once this has returned. Raises InvalidMessage when
        one of them cannot be stored. If the process dies midway, all of it is stored or nothing.
        """
        landed: list[tuple[str, int | None]] = []

        def work(connection: sqlite3.Connection) -> list[Published] | None:
            # Here and below the clocks are read under the writer lock: waiting for it may have
            # taken longer than a lease.
            now_ms = self.clock.wall_ms()
            landed.clear()
            if tick is not None and not _take_tick(connection, tick, len(messages), now_ms):
                return None
            return [_insert(connection, message, now_ms, landed) for message in messages]

        try:
            answers = self.database.write(work, durable=durable)
        except _NOT_STORABLE as error:
            text = f"the message cannot be stored: {error}"
            raise InvalidMessage(text) from error
        self._wake(landed)
        return answers

    # -- claim and settle ---------------------------------------------------------------------------

    def has_work(self, queues: Sequence[str]) -> bool:
        """Look, in a new read transaction, whether a claim on these queues could find something."""
        now_ms = self.clock.wall_ms()

        def work(connection: sqlite3.Connection) -> bool:
            due_ms = connection.execute(sql.NEXT_DUE).fetchone()[0]
            if due_ms is not None and due_ms <= now_ms:
                return True
            return any(
                connection.execute(sql.ANY_READY, {"queue": queue}).fetchone() for queue in queues
            )

        return self.database.read(work)

    def next_due_ms(self) -> int | None:
        """Return when the next scheduled or failed message is due; None when there is none."""
        due_ms: int | None = self.database.read(lambda c: c.execute(sql.NEXT_DUE).fetchone()[0])
        return due_ms

    def claim(
        self,
        queues: Sequence[str],
        limit: int = 1,
        *,
        lease_s: float,
        settlements: Sequence[Settlement] = (),
        durable: bool = False,
        no_ack: bool = False,
    ) -> Claim:
        """Settle what waits, then take up to `limit` ready messages under a lease.

        Queues are asked in the order given, higher priorities first, then first in, first out.
        This process is registered as a plain client if it is not yet. With `no_ack` the messages
        are done at once. Raises WorkerSwept when this process was taken for dead; the settlements
        are then still applied or refused one by one by a later `settle`. If the process dies
        midway, nothing happened, or all of it; then its claims come back with its presence. With
        no queues or a limit of 0 it is the same as `settle`, also for who was taken for dead.
        """
        if limit <= 0 or not queues:
            return Claim(refused=self.settle(settlements, durable=durable))
        if not settlements and not self.has_work(queues):
            return Claim()
        claim = self._claim_once(
            queues, limit, lease_s, settlements, durable=durable, no_ack=no_ack
        )
        while claim.more and not (claim.deliveries or settlements):
            # So many expired messages lay in front that one transaction did not get through. Not
            # with settlements: they are committed, and an error now would hide it.
            claim = self._claim_once(queues, limit, lease_s, (), durable=False, no_ack=no_ack)
        if claim.more:
            # A publisher wakes one sleeper per message it sees; several may have met the same
            # sleeper. Whoever finds more than he takes passes the word on.
            self._wake([(queue, None) for queue in queues])
        return claim

    def _claim_once(
        self,
        queues: Sequence[str],
        limit: int,
        lease_s: float,
        settlements: Sequence[Settlement],
        *,
        durable: bool,
        no_ack: bool,
    ) -> Claim:
        worker_id = self.consumers.worker_id
        waiting: list[tuple[str, int | None]] = []

        def work(connection: sqlite3.Connection) -> Claim:
            now_ms, lease_now_ms = self.clock.wall_ms(), self.clock.lease_ms()
            waiting.clear()
            refused = _settle_all(connection, settlements, now_ms, lease_now_ms, waiting)
            if not connection.execute(
                sql.WORKER_IS_REGISTERED, {"worker_id": worker_id}
            ).fetchone():
                message = f"worker {worker_id} was taken for dead; register again"
                raise WorkerSwept(message)
            connection.execute(sql.PROMOTE, {"now_ms": now_ms})
            lease = {
                "worker_id": worker_id,
                "lease_until_ms": lease_now_ms + round(lease_s * 1000),
                "now_ms": now_ms,
            }
            deliveries: list[Delivery] = []
            more = False
            for queue in queues:
                taken, left = _take(connection, queue, limit - len(deliveries), lease)
                deliveries += taken
                more = more or left
            if no_ack:
                for one in deliveries:
                    ended = Settlement(one.message_id, one.delivery, Outcome.done())
                    _settle(connection, ended, now_ms, lease_now_ms)
            return Claim(deliveries, refused, more)

        claim = self.database.write(work, durable=durable and bool(settlements))
        self._wake(waiting)
        return claim

    def settle(
        self, settlements: Sequence[Settlement], *, durable: bool = False
    ) -> list[Settlement]:
        """End deliveries in one transaction and return those refused because their lease is over.

        If the process dies midway, all of them are applied or none.
        """
        if not settlements:
            return []
        waiting: list[tuple[str, int | None]] = []

        def work(connection: sqlite3.Connection) -> list[Settlement]:
            waiting.clear()
            return _settle_all(
                connection, settlements, self.clock.wall_ms(), self.clock.lease_ms(), waiting
            )

        refused = self.database.write(work, durable=durable)
        self._wake(waiting)
        return refused

    def extend(
        self, deliveries: Sequence[tuple[int, int]], seconds: float
    ) -> list[tuple[int, int]]:
        """Lengthen leases to at least `seconds` from now; return those that are over already.

        If the process dies midway, all are lengthened or none.
        """

        def work(connection: sqlite3.Connection) -> list[tuple[int, int]]:
            lease_now_ms = self.clock.lease_ms()
            until_ms = lease_now_ms + round(seconds * 1000)
            return [
                (message_id, delivery)
                for message_id, delivery in deliveries
                if not connection.execute(
                    sql.EXTEND,
                    {
                        "id": message_id,
                        "delivery": delivery,
                        "lease_until_ms": until_ms,
                        "lease_now_ms": lease_now_ms,
                    },
                ).rowcount
            ]

        return self.database.write(work) if deliveries else []

    def _wake(self, waiting: Sequence[tuple[str, int | None]]) -> None:
        """Wake who sleeps for these (queue, due) pairs, after the commit that stored them."""
        for queue, due_at_ms in waiting:
            self.consumers.wake(queue, due_at_ms)

    def close(self) -> None:
        """Give back what this process still holds, uncounted, and close; harmless when closed."""
        try:
            self.consumers.leave()
        finally:
            self.consumers.detach()
            self.database.close()


def _take_tick(connection: sqlite3.Connection, tick: TickOf, jobs: int, now_ms: int) -> bool:
    values = {
        "entry": tick.entry,
        "due_ms": tick.due_ms,
        "now_ms": now_ms,
        "beat": tick.beat,
        "jobs": jobs,
    }
    return bool(connection.execute(sql.TAKE_TICK, values).rowcount)


def _insert(
    connection: sqlite3.Connection,
    message: NewMessage,
    now_ms: int,
    landed: list[tuple[str, int | None]],
) -> Published:
    if message.queue is not None:
        return _insert_into(connection, message, message.queue, now_ms, landed)
    routes = connection.execute(
        sql.ROUTE, {"exchange": message.exchange, "routing_key": message.routing_key}
    ).fetchall()
    answers = [_insert_into(connection, message, queue, now_ms, landed) for (queue,) in routes]
    return answers[0] if answers else Published(0, stored=False)


def _insert_into(
    connection: sqlite3.Connection,
    message: NewMessage,
    queue: str,
    now_ms: int,
    landed: list[tuple[str, int | None]],
) -> Published:
    is_later = message.due_at_ms is not None and message.due_at_ms > now_ms
    inline = len(message.body) <= INLINE_BODY_BYTES
    cursor = connection.execute(
        sql.PUBLISH,
        {
            "queue": queue,
            "state": (State.SCHEDULED if is_later else State.PENDING).value,
            "priority": message.priority,
            "job_id": message.job_id,
            "task": message.task,
            "unique_key": message.unique_key,
            "max_attempts": message.max_attempts,
            "now_ms": now_ms,
            "due_at_ms": message.due_at_ms,
            "expires_at_ms": message.expires_at_ms,
            "exchange": message.exchange,
            "routing_key": message.routing_key,
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
            "headers": message.headers,
            "properties": message.properties,
            "body": message.body if inline else None,
        },
    )
    if not cursor.rowcount:
        found = connection.execute(sql.FIND_UNIQUE, {"unique_key": message.unique_key}).fetchone()
        return Published(found[0], stored=False)
    message_id = cursor.lastrowid or 0
    if not inline:
        connection.execute(sql.STORE_BODY, {"id": message_id, "content": message.body})
    landed.append((queue, message.due_at_ms if is_later else None))
    return Published(message_id, stored=True)


def _take(
    connection: sqlite3.Connection,
    queue: str,
    limit: int,
    lease: dict[str, Any],
) -> tuple[list[Delivery], bool]:
    """Claim up to `limit` of one queue; say whether more was ready. Expired ones end here."""
    taken: list[Delivery] = []
    expired = 0
    while len(taken) < limit and expired < EXPIRED_AT_ONCE:
        wanted = limit - len(taken)
        rows = connection.execute(sql.READY, {"queue": queue, "limit": wanted}).fetchall()
        for *fields, expires_at_ms in rows:
            if expires_at_ms is not None and expires_at_ms <= lease["now_ms"]:
                connection.execute(sql.EXPIRE, {"id": fields[0], "now_ms": lease["now_ms"]})
                expired += 1
                continue
            connection.execute(sql.CLAIM, {"id": fields[0], **lease})
            fields[1] += 1
            taken.append(Delivery(*fields))
        if len(rows) < wanted:
            return taken, False
    return taken, bool(connection.execute(sql.ANY_READY, {"queue": queue}).fetchone())


def _settle_all(
    connection: sqlite3.Connection,
    settlements: Sequence[Settlement],
    now_ms: int,
    lease_now_ms: int,
    waiting: list[tuple[str, int | None]],
) -> list[Settlement]:
    refused = []
    for settlement in settlements:
        if not _settle(connection, settlement, now_ms, lease_now_ms):
            refused.append(settlement)
        elif settlement.outcome.event in {Event.RETRY, Event.RELEASE}:
            queue, due_at_ms, state = connection.execute(
                sql.WHERE_IT_WAITS, {"id": settlement.message_id}
            ).fetchone()
            waiting.append((queue, due_at_ms if state == State.FAILED else None))
    return refused


def _settle(
    connection: sqlite3.Connection,
    settlement: Settlement,
    now_ms: int,
    lease_now_ms: int,
) -> bool:
    outcome = settlement.outcome
    fault = outcome.fault
    values: dict[str, Any] = {
        "id": settlement.message_id,
        "delivery": settlement.delivery,
        "now_ms": now_ms,
        "lease_now_ms": lease_now_ms,
        # An error's text comes from anywhere, often from a file's name. What SQLite cannot hold
        # must not keep a delivery from ending.
        "result": storable(outcome.result),
        "due_at_ms": now_ms + round(outcome.retry_in_s * 1000),
        "error_type": storable(fault.type) if fault else None,
        "error_message": storable(fault.message) if fault else None,
        "traceback": storable(fault.traceback) if fault else None,
        "outcome": outcome.cause,
    }
    if not connection.execute(_SETTLE_BY_EVENT[outcome.event], values).rowcount:
        return False
    if outcome.event in {Event.RETRY, Event.EXHAUST}:
        connection.execute(sql.RECORD_ATTEMPT, values)
    return True
