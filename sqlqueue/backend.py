"""What the framework needs of a broker, and the two that give it: our store, and plain Kombu.

Publishing and consuming go through Kombu on every broker. What Kombu has no verb for (settle with
an outcome, sleep until there is work, count, list, act) is named in the Protocol: the SQLite
backend answers with the channel's extra verbs and the store; the Kombu backend makes do with ack,
reject and publish, and says "not available on this broker" for the rest. Nothing above this module
knows which one it talks to.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, Protocol

import kombu

from sqlqueue import envelope
from sqlqueue.errors import NotAvailable
from sqlqueue_transport.channel import MAX_ATTEMPTS_PROPERTY, UNIQUE_PROPERTY
from sqlqueue_transport.lifecycle import Event
from sqlqueue_transport.messages import Outcome, TickOf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlqueue.config import Settings
    from sqlqueue_transport.acting import Acted
    from sqlqueue_transport.lifecycle import State
    from sqlqueue_transport.reading import Counts, JobDetail, JobFilter, JobRow, QueueRow
    from sqlqueue_transport.schedules import ScheduleRow
    from sqlqueue_transport.store import Store

__all__ = [
    "Backend",
    "KombuBackend",
    "Outcome",
    "Publication",
    "SqliteBackend",
    "Taken",
    "TickOf",
    "WorkerRow",
    "open_backend",
]

IDLE_S: Final = 1.0  # the safety poll: how long a sleep may last when nobody wakes the sleeper


@dataclass(frozen=True, slots=True)
class Publication:
    """Be one call on its way to a queue.

    `unique_key` is the caller's own job id, stored once; None for ids we made. `max_attempts` 0
    means no limit.
    """

    envelope: envelope.Envelope
    queue: str
    priority: int = 0
    max_attempts: int | None = None
    unique_key: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Be one claimed message, on whatever broker.

    `attempts` counts those that ended before in this run; `max_attempts` None means the task's own.
    """

    tag: Any
    headers: Mapping[str, Any]
    body: bytes
    content_type: str | None
    content_encoding: str | None
    queue: str
    attempts: int
    max_attempts: int | None
    delivery: int
    message_id: int = 0
    message: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """Be one living (or, after a lost presence file, unknown) process.

    `heartbeat_age_s` is None when unknown. `running` are the message ids it has started.
    """

    id: int
    name: str
    kind: str
    parent_id: int | None
    pid: int
    host: str
    slots: int
    queues: tuple[str, ...]
    started_at_ms: int
    is_known_alive: bool
    heartbeat_age_s: float | None
    running: tuple[int, ...]


class Backend(Protocol):
    """Be a broker, as the framework sees it. One object belongs to one thread.

    Errors: those of the transport in use (see `connection_errors`), and NotAvailable.
    """

    name: str
    can_fork: bool  # several processes may work on it: leases, presence, sweeping
    can_inspect: bool  # counts, lists and actions are there

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Return the errors that may be waited out."""

    def publish(self, publications: Sequence[Publication], *, tick: TickOf | None = None) -> bool:
        """Publish; with several or a `tick`, in one transaction. False: the tick was there."""

    def register(
        self,
        *,
        name: str,
        kind: str,
        queues: Sequence[str] = (),
        slots: int = 0,
        parent_id: int | None = None,
    ) -> int:
        """Make this process known under a name; return its worker id (0 where there is none)."""

    def leave(self) -> None:
        """Release what this process holds, uncounted, and be forgotten."""

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        """Settle, then take up to `limit` messages; return them and the refused settlements."""

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        """Settle and return the refused ones: their lease is over and nothing was changed."""

    def extend(self, taken: Taken, seconds: float) -> bool:
        """Lengthen a lease; False when it is over."""

    def wait(self, queues: Sequence[str], timeout_s: float) -> None:
        """Sleep until there may be work; `interrupt` ends it."""

    def interrupt(self) -> None:
        """End a `wait` from a signal handler or another thread."""

    def note_start(self, place: int, taken: Taken, time_limit_s: float) -> None:
        """Note, before user code runs, that it will: from here on the attempt counts."""

    def note_end(self, place: int) -> None:
        """Forget that note, once the settlement is committed."""

    def beat(self) -> None:
        """Give a sign of life; called from the heartbeat's thread."""

    def unfinished_since_ms(self, queues: Sequence[str]) -> int | None:
        """Return when the first unfinished message is due; None when nothing is left."""

    def counts(self) -> Counts:
        """Count jobs by state."""

    def jobs(
        self, chosen: JobFilter, *, limit: int = 50, before: int | None = None
    ) -> list[JobRow]:
        """List jobs newest first, with message ids below `before`."""

    def job(self, message_id: int) -> JobDetail | None:
        """Return one job whole."""

    def message_ids_of(self, job_id: str) -> list[int]:
        """Return the messages of a job id, newest first."""

    def queues(self) -> list[QueueRow]:
        """List queues."""

    def workers(self) -> list[WorkerRow]:
        """List living processes."""

    def schedule(self) -> list[ScheduleRow]:
        """List schedule entries as beats described them."""

    def describe_entry(
        self,
        entry: str,
        *,
        description: str,
        target: str,
        next_due_ms: int | None,
        error: str | None = None,
    ) -> int:
        """Write down what a beat knows of an entry; return when it was first seen."""

    def last_tick_ms(self, entry: str) -> int | None:
        """Return the newest enqueued tick of an entry."""

    def act(
        self,
        event: Event,
        targets: Sequence[tuple[int, State]],
        *,
        actor: str,
        reason: str | None = None,
    ) -> list[Acted]:
        """Cancel, fail or requeue messages seen in the given states; compare-and-set, audited."""

    def close(self) -> None:
        """Close the connection; harmless when closed."""


def open_backend(settings: Settings, *, create: bool = True, keep_leases: bool = False) -> Backend:
    """Connect to the broker of the settings.

    `create` False refuses to make a missing file. `keep_leases` extends leases from a thread of
    this process, for where no supervisor does. Raises the transport's `connection_errors`.
    """
    options = {
        "visibility_timeout": settings.visibility_timeout,
        "durability": settings.durability,
        **settings.transport_options,
        "create": create,
        "keep_leases": keep_leases,
    }
    connection = kombu.Connection(settings.broker_url, transport_options=options)
    is_ours = connection.transport_cls == "sqlqueue"
    if not is_ours:
        connection = kombu.Connection(
            settings.broker_url, transport_options=dict(settings.transport_options)
        )
    connection.connect()
    return SqliteBackend(connection) if is_ours else KombuBackend(connection)


class _Publisher:
    """Publish through Kombu's Producer, the same way on every broker."""

    def __init__(self, connection: kombu.Connection) -> None:
        self.channel = connection.default_channel
        # Bound once; declaring or copying entities per call would cost more than the publish.
        self._producer = kombu.Producer(self.channel, auto_declare=False)
        self._declared: set[str] = set()

    def publish(self, one: Publication) -> None:
        self.declare(one.queue)
        properties: dict[str, Any] = dict(one.envelope.properties)
        if one.unique_key is not None:
            properties[UNIQUE_PROPERTY] = one.unique_key
        if one.max_attempts is not None:
            properties[MAX_ATTEMPTS_PROPERTY] = one.max_attempts
        self._producer.publish(
            one.envelope.body,
            exchange="",
            routing_key=one.queue,
            headers=one.envelope.headers,
            priority=one.priority,
            content_type=envelope.CONTENT_TYPE,
            content_encoding=envelope.CONTENT_ENCODING,
            **properties,
        )

    def declare(self, queue: str) -> None:
        if queue not in self._declared:
            self.channel.queue_declare(
                queue=queue, durable=True, auto_delete=False, exclusive=False
            )
            self._declared.add(queue)


class SqliteBackend:
    """Work on our own transport; `store` is for what only it can do (doctor, the supervisor)."""

    name = "sqlqueue"
    can_fork = True
    can_inspect = True

    def __init__(self, connection: kombu.Connection) -> None:
        """Take a connected Kombu connection of our transport."""
        self._connection = connection
        self._publisher = _Publisher(connection)
        self._channel = self._publisher.channel
        self.store: Store = self._channel.store

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Return the errors that may be waited out."""
        found: tuple[type[BaseException], ...] = self._connection.connection_errors
        return found

    def publish(self, publications: Sequence[Publication], *, tick: TickOf | None = None) -> bool:
        """Publish in one transaction; False when the tick was enqueued before."""
        if tick is None and len(publications) == 1:
            self._publisher.publish(publications[0])
            return True
        for one in publications:
            self._publisher.declare(one.queue)
        with self._channel.publishing_together(tick) as stored:
            for one in publications:
                self._publisher.publish(one)
        return all(stored)

    def register(
        self,
        *,
        name: str,
        kind: str,
        queues: Sequence[str] = (),
        slots: int = 0,
        parent_id: int | None = None,
    ) -> int:
        """Take a slot in the presence file and a worker id; declare the queues."""
        for queue in queues:
            self._publisher.declare(queue)
        return self.store.consumers.register(
            name=name, kind=kind, queues=queues, slots=slots, parent_id=parent_id
        )

    def leave(self) -> None:
        """Release what this process holds and give its slot back."""
        self.store.consumers.leave()

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        """Settle and claim in one transaction."""
        messages, refused_tags = self._channel.claim(
            queues, limit, settlements=[(taken.tag, outcome) for taken, outcome in settlements]
        )
        refused = [taken for taken, _ in settlements if taken.tag in set(refused_tags)]
        return [_taken(message) for message in messages], refused

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        """Settle in one transaction."""
        return self.claim((), 0, settlements)[1] if settlements else []

    def extend(self, taken: Taken, seconds: float) -> bool:
        """Lengthen a lease; False when it is over."""
        return not self.store.extend([(taken.message_id, taken.delivery)], seconds)

    def wait(self, queues: Sequence[str], timeout_s: float) -> None:
        """Sleep until a publisher wakes us, something is due, or the safety poll."""
        self.store.consumers.sleep(queues, timeout_s, has_work=self.store.has_work)

    def interrupt(self) -> None:
        """End a `wait`; safe in a signal handler."""
        bell = self.store.consumers.bell
        if bell is not None:
            bell.ring()

    def note_start(self, place: int, taken: Taken, time_limit_s: float) -> None:
        """Note a start in this process's slot; no SQL."""
        self.store.consumers.note_start(place, taken.message_id, taken.delivery, time_limit_s)

    def note_end(self, place: int) -> None:
        """Forget a start."""
        self.store.consumers.note_end(place)

    def beat(self) -> None:
        """Stamp this process's slot."""
        self.store.consumers.beat()

    def unfinished_since_ms(self, queues: Sequence[str]) -> int | None:
        """Return when the first unfinished message is due; None when nothing is left."""
        return self.store.reading.unfinished_since_ms(queues)

    def counts(self) -> Counts:
        """Count jobs by state."""
        return self.store.reading.counts()

    def jobs(
        self, chosen: JobFilter, *, limit: int = 50, before: int | None = None
    ) -> list[JobRow]:
        """List jobs newest first."""
        return self.store.reading.jobs(chosen, limit=limit, before=before)

    def job(self, message_id: int) -> JobDetail | None:
        """Return one job whole."""
        return self.store.reading.job(message_id)

    def message_ids_of(self, job_id: str) -> list[int]:
        """Return the messages of a job id, newest first."""
        return self.store.reading.message_ids_of(job_id)

    def queues(self) -> list[QueueRow]:
        """List queues."""
        return self.store.reading.queues()

    def workers(self) -> list[WorkerRow]:
        """List living processes with what they run."""
        consumers = self.store.consumers
        now_ms = self.store.clock.lease_ms()
        running: dict[int, list[int]] = {}
        for message_id, (_, worker_id) in consumers.running().items():
            running.setdefault(worker_id, []).append(message_id)
        return [
            WorkerRow(
                id=worker.id,
                name=worker.name,
                kind=worker.kind,
                parent_id=worker.parent_id,
                pid=worker.pid,
                host=worker.host,
                slots=worker.slots,
                queues=worker.queues,
                started_at_ms=worker.started_at_ms,
                is_known_alive=entry is not None,
                heartbeat_age_s=(now_ms - entry.heartbeat_ms) / 1000 if entry else None,
                running=tuple(sorted(running.get(worker.id, ()))),
            )
            for worker, entry in consumers.alive()
        ]

    def schedule(self) -> list[ScheduleRow]:
        """List schedule entries."""
        return self.store.schedules.rows()

    def describe_entry(
        self,
        entry: str,
        *,
        description: str,
        target: str,
        next_due_ms: int | None,
        error: str | None = None,
    ) -> int:
        """Write down what a beat knows of an entry; return when it was first seen."""
        return self.store.schedules.describe(
            entry, description=description, target=target, next_due_ms=next_due_ms, error=error
        )

    def last_tick_ms(self, entry: str) -> int | None:
        """Return the newest enqueued tick of an entry."""
        return self.store.schedules.last_tick_ms(entry)

    def act(
        self,
        event: Event,
        targets: Sequence[tuple[int, State]],
        *,
        actor: str,
        reason: str | None = None,
    ) -> list[Acted]:
        """Cancel, fail or requeue; compare-and-set, audited."""
        return self.store.acting.act(event, targets, actor=actor, reason=reason)

    def close(self) -> None:
        """Close the connection; the last one of a process closes the store."""
        self._connection.release()


class KombuBackend:
    """Work on any Kombu transport with ack, reject and publish; one process, no inspection.

    A retry is a new message and an ack: between the two a crash leaves both, never none. Messages
    with a future `eta` are held here, because plain brokers deliver them at once.
    """

    can_fork = False
    can_inspect = False

    def __init__(self, connection: kombu.Connection) -> None:
        """Take a connected Kombu connection."""
        self._connection = connection
        self._publisher = _Publisher(connection)
        self._channel = self._publisher.channel
        self.name = str(connection.transport.driver_type)
        self._held: list[tuple[float, int, Taken]] = []
        self._numbers = itertools.count()

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Return the errors that may be waited out."""
        found: tuple[type[BaseException], ...] = self._connection.connection_errors
        return found

    def publish(self, publications: Sequence[Publication], *, tick: TickOf | None = None) -> bool:
        """Publish one by one. Ticks and unique keys need a store: NotAvailable."""
        if tick is not None:
            raise NotAvailable("enqueueing a tick once")
        if any(one.unique_key is not None for one in publications):
            raise NotAvailable("storing a job_id once")
        for one in publications:
            self._publisher.publish(one)
        return True

    def register(
        self,
        *,
        name: str,  # noqa: ARG002 - nobody to tell
        kind: str,  # noqa: ARG002
        queues: Sequence[str] = (),
        slots: int = 0,  # noqa: ARG002
        parent_id: int | None = None,  # noqa: ARG002
    ) -> int:
        """Declare the queues; plain brokers know no workers."""
        for queue in queues:
            self._publisher.declare(queue)
        return 0

    def leave(self) -> None:
        """Requeue what is held for later."""
        for _, _, taken in self._held:
            taken.message.requeue()
        self._held.clear()

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        """Settle, then get messages one by one."""
        refused = self.settle(settlements)
        found: list[Taken] = []
        while len(found) < limit and self._held and self._held[0][0] <= time.time():
            found.append(heapq.heappop(self._held)[2])
        for queue in queues:
            while len(found) < limit:
                message = self._channel.basic_get(queue, no_ack=False)
                if message is None:
                    break
                taken = _plainly_taken(self._channel.message_to_python(message), queue)
                due_s = _eta_s(taken.headers.get("eta"))
                if due_s > time.time():
                    heapq.heappush(self._held, (due_s, next(self._numbers), taken))
                else:
                    found.append(taken)
        return found, refused

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        """Ack, requeue or reject; a retry is published first and acknowledged after."""
        for taken, outcome in settlements:
            if outcome.event is Event.COMPLETE:
                taken.message.ack()
            elif outcome.event is Event.RELEASE:
                taken.message.requeue()
            elif outcome.event is Event.RETRY:
                self._publish_again(taken, outcome.retry_in_s)
                taken.message.ack()
            else:
                taken.message.reject(requeue=False)
        return []

    def _publish_again(self, taken: Taken, in_s: float) -> None:
        due = datetime.fromtimestamp(time.time() + in_s, tz=timezone.utc)
        headers = {**taken.headers, "retries": taken.attempts + 1, "eta": due.isoformat()}
        again = envelope.Envelope(
            headers, taken.body.decode(), {"correlation_id": str(headers.get("id")), "reply_to": ""}
        )
        self._publisher.publish(
            Publication(
                again,
                taken.queue,
                priority=taken.message.properties.get("priority") or 0,
                max_attempts=taken.max_attempts,
            )
        )

    def extend(self, taken: Taken, seconds: float) -> bool:  # noqa: ARG002 - nothing to extend
        """Say that nothing has to be done: plain brokers keep a delivery while we are connected."""
        return True

    def wait(self, queues: Sequence[str], timeout_s: float) -> None:  # noqa: ARG002
        """Sleep a little: Kombu has no verb for "wake me when a get would find something"."""
        time.sleep(min(timeout_s, 0.05))

    def interrupt(self) -> None:
        """Do nothing: the sleeps are short."""

    def note_start(self, place: int, taken: Taken, time_limit_s: float) -> None:
        """Do nothing: plain brokers count no attempts of the dead."""

    def note_end(self, place: int) -> None:
        """Do nothing."""

    def beat(self) -> None:
        """Do nothing."""

    def unfinished_since_ms(self, queues: Sequence[str]) -> int | None:
        """Return 0 when something waits in the queues or is held here; None when nothing does."""
        waiting = any(
            self._channel.queue_declare(queue=queue, passive=True).message_count for queue in queues
        )
        return 0 if waiting or self._held else None

    def counts(self) -> Counts:
        """Raise NotAvailable."""
        raise NotAvailable("counting jobs")

    def jobs(
        self, chosen: JobFilter, *, limit: int = 50, before: int | None = None
    ) -> list[JobRow]:
        """Raise NotAvailable."""
        raise NotAvailable("listing jobs")

    def job(self, message_id: int) -> JobDetail | None:
        """Raise NotAvailable."""
        raise NotAvailable("looking at a job")

    def message_ids_of(self, job_id: str) -> list[int]:
        """Raise NotAvailable."""
        raise NotAvailable("looking up a job")

    def queues(self) -> list[QueueRow]:
        """Raise NotAvailable."""
        raise NotAvailable("listing queues")

    def workers(self) -> list[WorkerRow]:
        """Raise NotAvailable."""
        raise NotAvailable("listing workers")

    def schedule(self) -> list[ScheduleRow]:
        """Raise NotAvailable."""
        raise NotAvailable("listing the schedule")

    def describe_entry(
        self,
        entry: str,
        *,
        description: str,
        target: str,
        next_due_ms: int | None,
        error: str | None = None,
    ) -> int:
        """Raise NotAvailable."""
        raise NotAvailable("a beat")

    def last_tick_ms(self, entry: str) -> int | None:
        """Raise NotAvailable."""
        raise NotAvailable("a beat")

    def act(
        self,
        event: Event,
        targets: Sequence[tuple[int, State]],
        *,
        actor: str,
        reason: str | None = None,
    ) -> list[Acted]:
        """Raise NotAvailable."""
        raise NotAvailable(f"{event.value} of stored jobs")

    def close(self) -> None:
        """Close the connection."""
        self.leave()
        self._connection.release()


def _taken(message: Any) -> Taken:
    delivery = message.delivery
    return Taken(
        tag=delivery.tag,
        headers=message.headers,
        body=delivery.body,
        content_type=delivery.content_type,
        content_encoding=delivery.content_encoding,
        queue=delivery.queue,
        attempts=delivery.attempts,
        max_attempts=delivery.max_attempts,
        delivery=delivery.delivery,
        message_id=delivery.message_id,
        message=message,
    )


def _plainly_taken(message: Any, queue: str) -> Taken:
    headers = message.headers or {}
    retries = headers.get("retries")
    body = message.body
    return Taken(
        tag=message.delivery_tag,
        headers=headers,
        body=body if isinstance(body, bytes) else str(body).encode(),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        queue=queue,
        attempts=retries if isinstance(retries, int) else 0,
        max_attempts=message.properties.get(MAX_ATTEMPTS_PROPERTY),
        delivery=1,
        message=message,
    )


def _eta_s(eta: object) -> float:
    if not isinstance(eta, str):
        return 0.0
    try:
        at = datetime.fromisoformat(eta.replace("Z", "+00:00"))
    except ValueError:
        return 0.0  # the worker reads the same header and says what is wrong with it
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
