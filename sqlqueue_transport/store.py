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

import contextlib
import functools
import json
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import routing
from sqlqueue_transport import statements as sql
from sqlqueue_transport.clock import SYSTEM_CLOCK, Clock
from sqlqueue_transport.consumers import Consumers
from sqlqueue_transport.database import BUSY_TIMEOUT_S, Database, Result
from sqlqueue_transport.errors import Unavailable, WorkerSwept
from sqlqueue_transport.files import resolved_path
from sqlqueue_transport.housekeeping import Housekeeping
from sqlqueue_transport.late import Late
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.losses import too_many_returns
from sqlqueue_transport.messages import (
    Claim,
    Delivery,
    NewMessage,
    Outcome,
    Published,
    Settlement,
    TickAnswer,
    TickOf,
    storable,
)
from sqlqueue_transport.publishing import time_ms
from sqlqueue_transport.room import Room
from sqlqueue_transport.routing import EXPIRED_AT_ONCE, Landed, Unwanted
from sqlqueue_transport.running import RunningDeliveries
from sqlqueue_transport.sqlite_errors import NOT_STORABLE, refused, refused_values
from sqlqueue_transport.topology import Topology

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sqlqueue_transport.acting import Acting
    from sqlqueue_transport.deleting import Deleting
    from sqlqueue_transport.pausing import Pausing
    from sqlqueue_transport.reading import Reading
    from sqlqueue_transport.results import Results
    from sqlqueue_transport.schedules import Schedules

_SETTLE_BY_EVENT = {
    Event.RETRY: sql.RETRY,
    Event.EXHAUST: sql.EXHAUST,
    Event.RELEASE: sql.RELEASE,
    Event.ABORT: sql.ABORT,
}

# How long, and for how many pairs of exchange and routing key, it is remembered that a queue wants
# what is published there; see `Store.publish`.
_WANTED_FOR_S = 1.0
_MOST_WAYS = 1024


class Store:
    """Keep one queue file for this process; safe to share between threads.

    `topology` declares queues and bindings, `consumers` knows who is alive, `schedules` what
    the beats described, `results` what Celery's jobs returned; `running` is for those who run
    deliveries; `reading`, `acting`, `deleting` and `pausing` serve operators. Errors: `errors.Unavailable` kinds when the file cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock = SYSTEM_CLOCK,
        create: bool = True,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        read_only: bool = False,
    ) -> None:
        """Open the file at `path`, making it unless `create` is False.

        With `read_only` it is opened for looking, and never made: see `read_only`. Whatever would
        write then raises ReadOnlyStore. Raises a CannotOpen that says what is wrong. If the process dies midway there is no file,
        an empty one or a complete one, and each opens again.
        """
        self.path = resolved_path(path)
        self.clock = clock
        self.database = (
            _read_only(self.path, busy_timeout_s)
            if read_only
            else Database(self.path, create=create, busy_timeout_s=busy_timeout_s)
        )
        try:
            self.topology = Topology(self.database, clock)
            self.consumers = Consumers(self.database, clock, self.topology)
            self.housekeeping = Housekeeping(self.database, clock)
            self.running = RunningDeliveries(self.database, clock)
            self._room = Room(self.path)
            self._collecting = threading.local()
            self._wanted_until_s: dict[tuple[str, str], float] = {}
            self._owed: deque[Callable[[], object]] = deque()
            if read_only:
                self.database.read(lambda _: None)
            else:
                self.database.write(lambda _: None)  # opens and checks
            self.consumers.attach()
        except BaseException:
            self.database.close()
            raise

    # -- parts that few processes use -------------------------------------------------------------

    # Imported at first use: a worker needs none of them, and without them it starts 10 ms sooner.

    @Late
    def reading(self) -> Reading:
        """Return what lists and counts, for operators."""
        from sqlqueue_transport.reading import Reading  # noqa: PLC0415 - late, see above

        return Reading(self.database, self.clock, self.consumers)

    @Late
    def schedules(self) -> Schedules:
        """Return what the beats described."""
        from sqlqueue_transport.schedules import Schedules  # noqa: PLC0415 - late, see above

        return Schedules(self.database, self.clock, self.consumers)

    @Late
    def acting(self) -> Acting:
        """Return what operators do to messages."""
        from sqlqueue_transport.acting import Acting  # noqa: PLC0415 - late, see above

        return Acting(self.database, self.clock, self.consumers)

    @Late
    def deleting(self) -> Deleting:
        """Return what operators delete with."""
        from sqlqueue_transport.deleting import Deleting  # noqa: PLC0415 - late, see above

        return Deleting(self.database, self.clock)

    @Late
    def pausing(self) -> Pausing:
        """Return what pauses queues and resumes them."""
        from sqlqueue_transport.pausing import Pausing  # noqa: PLC0415 - late, see above

        return Pausing(self.database, self.clock, self.consumers)

    @Late
    def results(self) -> Results:
        """Return what Celery's jobs returned."""
        from sqlqueue_transport.results import Results  # noqa: PLC0415 - late, see above

        return Results(self.database, self.clock, self.consumers)

    # -- publish ----------------------------------------------------------------------------------

    def publish(
        self,
        messages: Sequence[NewMessage],
        *,
        durable: bool = True,
    ) -> list[Published]:
        """Store messages in one transaction and wake who waits for them.

        Return one answer per message (of several bound queues the first; message id 0 when no
        queue was bound). With `durable` it survives a power cut once this has returned, unless all are `transient`.
        Raises InvalidMessage when one of them cannot be stored, NotDeclared, QueueFull, DiskFault
        also on a disk that is nearly full, except for what is transient or goes on: see `room`. If the
        process dies midway, all of it is stored or nothing.
        """
        collected: list[NewMessage] | None = getattr(self._collecting, "messages", None)
        if collected is not None:
            collected += messages
            return [Published(0, stored=True)] * len(messages)
        if self._are_for_nobody(messages):
            return [Published(0, stored=False)] * len(messages)
        if durable and messages:
            durable = not all(one.transient for one in messages)
        landed: Landed = []

        def work(connection: sqlite3.Connection) -> list[Published]:
            # Here and below the clocks are read under the writer lock: waiting for it may have
            # taken longer than a lease.
            now_ms = self.clock.wall_ms()
            landed.clear()
            return self.insert(connection, messages, now_ms, landed)

        self._refuse_when_scarce(messages)
        # They begin while we wait for the disk: see `docs/decisions.md`, "The bell before the flush".
        return self.database.write(work, durable=durable, committed=lambda: self.wake_for(landed))

    def publish_tick(
        self, messages: Sequence[NewMessage], tick: TickOf, *, durable: bool = True
    ) -> TickAnswer:
        """Take a tick and store its messages, in one transaction, and wake who waits for them.

        Anything but TAKEN means that none of them is stored. Raises as `publish` does. If the
        process dies midway, tick and messages are there, or neither.
        """
        from sqlqueue_transport import schedules  # noqa: PLC0415 - late: for beats only

        landed: Landed = []

        def work(connection: sqlite3.Connection) -> TickAnswer:
            now_ms = self.clock.wall_ms()
            landed.clear()
            answer = schedules.take(connection, tick, now_ms, jobs=len(messages))
            if answer is TickAnswer.TAKEN:
                published = self.insert(connection, messages, now_ms, landed)
                stored = [one.message_id for one in published if one.stored]
                schedules.name_messages(connection, tick, stored)
            return answer

        self._refuse_when_scarce(messages)
        return self.database.write(work, durable=durable, committed=lambda: self.wake_for(landed))

    def _refuse_when_scarce(self, messages: Sequence[NewMessage]) -> None:
        sizes = [len(one.body) for one in messages if not (one.transient or one.goes_on)]
        if sizes:
            self._room.refuse_when_scarce(sum(sizes))

    def _are_for_nobody(self, messages: Sequence[NewMessage]) -> bool:
        """Say whether no queue wants any of these: events, mostly, while nobody listens.

        They need not wait for the writer. A queue bound a moment later gets what comes later. What
        led to a queue a moment ago is not asked again (22 µs): the transaction finds out.
        """
        for message in messages:
            if message.queue is not None:
                return False
        ways = {(message.exchange, message.routing_key) for message in messages}
        now_s = time.monotonic()
        if any(now_s < self._wanted_until_s.get(way, 0.0) for way in ways):
            return False
        with refused_values("the message cannot be stored"):
            wanted = self.database.read(
                lambda c: next((way for way in ways if routing.routes(c, *way)), None)
            )
        if wanted is None:
            return True
        if len(self._wanted_until_s) >= _MOST_WAYS:
            self._wanted_until_s.clear()
        self._wanted_until_s[wanted] = now_s + _WANTED_FOR_S
        return False

    def insert(
        self,
        connection: sqlite3.Connection,
        messages: Sequence[NewMessage],
        now_ms: int,
        landed: Landed,
    ) -> list[Published]:
        """Store messages in a transaction of the caller, who calls `wake_for` after its commit."""
        try:
            return routing.publish(connection, messages, now_ms, landed)
        except NOT_STORABLE as error:  # not `refused_values`, which takes 0.7 µs each time
            raise refused("the message cannot be stored", error) from error

    @contextlib.contextmanager
    def collecting(self) -> Iterator[list[NewMessage]]:
        """Keep what this thread publishes to this file in a list, instead of storing it.

        For who wants to store it later, with `insert`, together with something else. In a block
        inside a block the inner one collects. A tick is stored all the same.
        """
        outer = getattr(self._collecting, "messages", None)
        collected: list[NewMessage] = []
        self._collecting.messages = collected
        try:
            yield collected
        finally:
            self._collecting.messages = outer

    # -- claim and settle ---------------------------------------------------------------------------

    def has_work(self, queues: Sequence[str]) -> bool:
        """Look, in a new read transaction, whether a claim on these queues could find something."""
        now_ms = self.clock.wall_ms()

        def work(connection: sqlite3.Connection) -> bool:
            due_ms = _next_due_ms(connection)
            if due_ms is not None and due_ms <= now_ms:
                return True
            return any(_has_ready(connection, queue) for queue in queues)

        return self.database.read(work)

    def look(self, queues: Sequence[str]) -> tuple[list[str], int | None]:
        """Look once for all of these queues, in a new read transaction.

        Return those on which a claim could find something now, and when the next message of the
        file is due; None when none is. What is overdue could be in any of them.
        """
        now_ms = self.clock.wall_ms()

        def work(connection: sqlite3.Connection) -> tuple[list[str], int | None]:
            due_ms = _next_due_ms(connection)
            if due_ms is not None and due_ms <= now_ms:
                return list(queues), due_ms
            return [queue for queue in queues if _has_ready(connection, queue)], due_ms

        return self.database.read(work)

    def claim(
        self,
        queues: Sequence[str],
        limit: int = 1,
        *,
        lease_s: float,
        settlements: Sequence[Settlement] = (),
        durable: bool = False,
        no_ack: bool = False,
        hands_over_expired: bool = False,
        looks_first: bool = True,
    ) -> Claim:
        """Settle what waits, then take up to `limit` ready messages under a lease.

        Queues are asked in the order given, higher priorities first, then first in, first out.
        This process is registered as a plain client if it is not yet. With `no_ack` the messages
        are done at once. With `hands_over_expired` a job whose `expires` header has passed is
        delivered like any other: Celery's workers end it themselves, with a result and for the
        chord it belongs to; what a queue or a publisher limits by AMQP's own means is ended here
        all the same. Who has just been woken need not look first, by a read, whether there is
        anything: `looks_first` False goes to the writer lock at once. Raises WorkerSwept when this process was taken for dead; the settlements
        are then still applied or refused one by one by a later `settle`. If the process dies
        midway, nothing happened, or all of it; then its claims come back with its presence. With
        no queues or a limit of 0 it is the same as `settle`, also for who was taken for dead.
        """
        if limit <= 0 or not queues:
            return Claim(refused=self.settle(settlements, durable=durable))
        if looks_first and not settlements and not self.has_work(queues):
            return Claim()
        claim_once = functools.partial(
            self._claim_once,
            queues,
            limit,
            lease_s,
            settlements,
            durable=durable,
            no_ack=no_ack,
            hands_over_expired=hands_over_expired,
        )
        claim = claim_once()
        while claim.more and not (claim.deliveries or settlements):
            # So many expired messages lay in front that one transaction did not get through. Not
            # with settlements: they are committed, and an error now would hide it.
            claim = claim_once()
        if claim.more:
            # A publisher wakes one sleeper per message it sees; several may have met the same
            # sleeper. Whoever finds more than he takes passes the word on.
            self.wake_for([(queue, None) for queue in queues])
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
        hands_over_expired: bool,
    ) -> Claim:
        worker_id = self.consumers.worker_id
        landed: Landed = []

        def work(connection: sqlite3.Connection) -> Claim:
            now_ms, lease_now_ms = self.clock.wall_ms(), self.clock.lease_ms()
            landed.clear()
            refused = _settle_all(connection, settlements, now_ms, lease_now_ms, landed)
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
                taken, left = _take(
                    connection,
                    queue,
                    limit - len(deliveries),
                    lease,
                    landed,
                    hands_over_expired=hands_over_expired,
                )
                deliveries += taken
                more = more or left
            if no_ack:
                done = [
                    Settlement(one.message_id, one.delivery, Outcome.done()) for one in deliveries
                ]
                _settle_all(connection, done, now_ms, lease_now_ms, landed)
            return Claim(deliveries, refused, more)

        claim = self.database.write(work, durable=durable and bool(settlements))
        self.wake_for(landed)
        return claim

    def settle(
        self, settlements: Sequence[Settlement], *, durable: bool = False
    ) -> list[Settlement]:
        """End deliveries in one transaction and return those refused because their lease is over.

        If the process dies midway, all of them are applied or none.
        """
        if not settlements:
            return []
        landed: Landed = []

        def work(connection: sqlite3.Connection) -> list[Settlement]:
            landed.clear()
            return _settle_all(
                connection, settlements, self.clock.wall_ms(), self.clock.lease_ms(), landed
            )

        refused = self.database.write(work, durable=durable)
        self.wake_for(landed)
        return refused

    def do_or_owe(self, work: Callable[[], Result]) -> Result:
        """Do what ends something of this process, now or as soon as the file can be written.

        For what nobody will ask for again, such as the end of a connection or of a delivery: while
        this process lives, nobody would take it for dead and do it. `work` may run twice. Raises
        Unavailable all the same; then it is owed.
        """
        try:
            return work()
        except Unavailable:
            self.owe(work)
            raise

    def owe(self, work: Callable[[], object]) -> None:
        """Do it within about a second, as long as a keeper runs, and at the latest before closing."""
        self._owed.append(work)

    def do_what_is_owed(self) -> None:
        """Try again what could not be done, in its order. Any thread may. Raises Unavailable."""
        with contextlib.suppress(IndexError):  # another thread took the last one
            while self._owed:
                work = self._owed.popleft()
                try:
                    work()
                except Unavailable:
                    self._owed.appendleft(work)
                    raise

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

    def try_writing(self, *, in_reserve: bool = False) -> float:
        """Write a mark into the file as durably as a publish; return the seconds that took.

        Raises what keeps one from publishing: Busy, DiskFault also on a disk that is nearly full,
        FileReplaced. With `in_reserve`, what keeps workers from writing down what ended: they may
        have the room that is kept from publishers (`room`). If the process dies midway, the mark is there or the one before.
        """
        if not in_reserve:
            Room(self.path).refuse_when_scarce(0)
        began_s = time.monotonic()
        values = {"key": "tried_writing", "value": str(self.clock.wall_ms())}
        self.database.write(lambda c: c.execute(sql.SET_META, values).rowcount, durable=True)
        return time.monotonic() - began_s

    def wake_for(self, landed: Landed) -> None:
        """Wake who sleeps for these (queue, due) pairs, after the commit that stored them."""
        self.consumers.wake_for(landed)

    def close(self) -> None:
        """Give back what this process still holds, uncounted, and close; harmless when closed."""
        try:
            # First, or the release below would give a job back that is done.
            with contextlib.suppress(Unavailable):
                self.do_what_is_owed()
            self.consumers.leave()
        finally:
            self.consumers.detach()
            self.database.close()


def _take(
    connection: sqlite3.Connection,
    queue: str,
    limit: int,
    lease: dict[str, Any],
    landed: Landed,
    *,
    hands_over_expired: bool,
) -> tuple[list[Delivery], bool]:
    """Claim up to `limit` of one queue; say whether more was ready. Expired ones end here.

    With `hands_over_expired` those do not that expired by their own header.
    """
    taken: list[Delivery] = []
    expired = 0
    while len(taken) < limit and expired < EXPIRED_AT_ONCE:
        wanted = limit - len(taken)
        rows = connection.execute(sql.READY, {"queue": queue, "limit": wanted}).fetchall()
        moved = len(landed)
        for *fields, expires_at_ms in rows:
            if (
                expires_at_ms is not None
                and expires_at_ms <= lease["now_ms"]
                and not (hands_over_expired and _expired_by_header(fields, expires_at_ms))
            ):
                routing.discard(connection, fields[0], Unwanted.EXPIRED, lease["now_ms"], landed)
                expired += 1
                if len(landed) > moved:
                    # A dead letter exchange moved it. What is dropped elsewhere to make room may
                    # come here, and what was read of this queue may have been dropped for that.
                    break
                continue
            lease["id"] = fields[0]
            connection.execute(sql.CLAIM, lease)
            fields[1] += 1
            taken.append(Delivery._make(fields))
        else:
            if len(rows) < wanted:
                return taken, False
    return taken, _has_ready(connection, queue)


def _has_ready(connection: sqlite3.Connection, queue: str) -> bool:
    return connection.execute(sql.ANY_READY, {"queue": queue}).fetchone() is not None


def _next_due_ms(connection: sqlite3.Connection) -> int | None:
    due_ms: int | None = connection.execute(sql.NEXT_DUE).fetchone()[0]
    return due_ms


def _expired_by_header(fields: Sequence[Any], expires_at_ms: int) -> bool:
    """Say whether it is a job's own `expires` header that has passed, and not AMQP's `expiration`.

    The sooner of the two is the row's, so they need only be compared.
    """
    task, headers = fields[4], fields[8]
    if task is None:
        return False
    try:
        expires = json.loads(headers).get("expires")
    except (ValueError, RecursionError, AttributeError):
        return False
    return time_ms(expires) == expires_at_ms


def _settle_all(
    connection: sqlite3.Connection,
    settlements: Sequence[Settlement],
    now_ms: int,
    lease_now_ms: int,
    landed: Landed,
) -> list[Settlement]:
    refused = []
    for settlement in settlements:
        if not _settle(connection, settlement, now_ms, lease_now_ms, landed):
            refused.append(settlement)
        elif settlement.outcome.event in {Event.RETRY, Event.RELEASE}:
            waits = connection.execute(sql.WHERE_IT_WAITS, {"id": settlement.message_id}).fetchone()
            if waits is None:  # handed back once too often, and then dropped as no job
                continue
            queue, due_at_ms, state = waits
            landed.append((queue, due_at_ms if state == State.FAILED else None))
            routing.forget_if_gone(connection, settlement.message_id)
    return refused


def _settle(
    connection: sqlite3.Connection,
    settlement: Settlement,
    now_ms: int,
    lease_now_ms: int,
    landed: Landed,
) -> bool:
    if settlement.outcome.event is Event.COMPLETE:
        # A success stays a success, also of what an operator had asked to stop: what is done is done.
        # What is no job has no history: see `lifecycle`.
        done = {
            "id": settlement.message_id,
            "delivery": settlement.delivery,
            "now_ms": now_ms,
            "lease_now_ms": lease_now_ms,
            "result": storable(settlement.outcome.result),
        }
        return bool(
            connection.execute(sql.COMPLETE, done).rowcount
            or connection.execute(sql.DELETE_DONE, done).rowcount
        )
    outcome = _unless_asked_to_stop(connection, settlement)
    why = Unwanted.REJECTED if outcome.cause == "rejected" else None
    statement = _SETTLE_BY_EVENT[outcome.event]
    if outcome.most_returns:
        statement = sql.RETURN
        (returns,) = connection.execute(sql.RETURNS, {"id": settlement.message_id}).fetchone() or (
            0,
        )
        if returns + 1 >= outcome.most_returns:
            outcome = Outcome.dead(too_many_returns(outcome.most_returns), cause="rejected")
            statement, why = sql.EXHAUST, Unwanted.DELIVERY_LIMIT
    fault = outcome.fault
    values: dict[str, Any] = {
        "id": settlement.message_id,
        "delivery": settlement.delivery,
        "now_ms": now_ms,
        "lease_now_ms": lease_now_ms,
        # An error's text comes from anywhere, often from a file's name. What SQLite cannot hold
        # must not keep a delivery from ending.
        "due_at_ms": now_ms + round(outcome.retry_in_s * 1000),
        "error_type": storable(fault.type) if fault else None,
        "error_message": storable(fault.message) if fault else None,
        "traceback": storable(fault.traceback) if fault else None,
        "outcome": outcome.cause,
        "counted": int(fault is not None),  # of ABORT: one without a fault was never started
    }
    if not connection.execute(statement, values).rowcount:
        return False
    if outcome.event in {Event.RETRY, Event.EXHAUST} or (outcome.event is Event.ABORT and fault):
        connection.execute(sql.RECORD_ATTEMPT, values)
    if outcome.event is Event.EXHAUST and why is not None:
        routing.dead_letter(connection, settlement.message_id, why, now_ms, landed)
    return True


def _read_only(path: Path, busy_timeout_s: float) -> Database:
    from sqlqueue_transport.read_only import ReadOnlyDatabase  # noqa: PLC0415 - late: consoles only

    return ReadOnlyDatabase(path, create=False, busy_timeout_s=busy_timeout_s)


def _unless_asked_to_stop(connection: sqlite3.Connection, settlement: Settlement) -> Outcome:
    """Return the outcome of what failed, or "cancelled" for what an operator had asked to stop.

    Asked here and not by the worker, who may not know yet.
    """
    outcome = settlement.outcome
    if outcome.event is Event.ABORT:
        return outcome
    values = {"id": settlement.message_id, "delivery": settlement.delivery}
    if not connection.execute(sql.WAS_ASKED_TO_STOP, values).fetchone():
        return outcome
    return Outcome(Event.ABORT, fault=outcome.fault, cause="cancelled")
