"""What the framework needs of a broker, and our own store as the first that gives it.

Publishing and consuming go through Kombu on every broker. What Kombu has no verb for (settle with
an outcome, sleep until there is work, count, list, act) is named in the Protocols here:
`SqliteBackend` answers with the channel's extra verbs and the store; `kombu_backend` makes do with
ack, reject and publish, and says "not available on this broker" for the rest. Nothing above these
two modules knows which one it talks to.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import kombu

from sqlqueue import envelope
from sqlqueue.errors import NotAvailable
from sqlqueue.housekeeping import log_lost, log_turn
from sqlqueue_transport import files, log_guard
from sqlqueue_transport.channel import MAX_ATTEMPTS_PROPERTY, UNIQUE_PROPERTY
from sqlqueue_transport.lifecycle import Event
from sqlqueue_transport.messages import Outcome, TickAnswer, TickOf
from sqlqueue_transport.presence import ENDED_NOTES, LONGEST_NOTED_RESULT_BYTES, Ended
from sqlqueue_transport.transport import split_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sqlqueue.config import Settings
    from sqlqueue_transport.acting import Acted
    from sqlqueue_transport.activity import Activity
    from sqlqueue_transport.backup import BackupReport
    from sqlqueue_transport.lifecycle import State
    from sqlqueue_transport.listing import Listing
    from sqlqueue_transport.reading import (
        AuditRow,
        Counts,
        JobDetail,
        JobFilter,
        JobRow,
        QueueRow,
    )
    from sqlqueue_transport.recounting import Recounted
    from sqlqueue_transport.schedules import Schedules
    from sqlqueue_transport.store import Store

__all__ = [
    "IDLE_S",
    "Backend",
    "Inspecting",
    "Outcome",
    "Publication",
    "Publisher",
    "Running",
    "Size",
    "SqliteBackend",
    "Taken",
    "TickAnswer",
    "TickOf",
    "WorkerRow",
    "database_path",
    "open_backend",
]

_Answer = TypeVar("_Answer")

IDLE_S: Final = 1.0  # the safety poll: how long a sleep may last when nobody wakes the sleeper


@dataclass(frozen=True, slots=True)
class Publication:
    """Be one call on its way to a queue.

    `unique_key` is the caller's own job id, stored once; None for ids we made. `max_attempts` 0
    means no limit, None the task's own.
    """

    envelope: envelope.Envelope
    queue: str
    priority: int = 0
    max_attempts: int | None = None
    unique_key: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """Be one claimed message, on whatever broker.

    `attempts` counts those that ended before in this run; `max_attempts` is as in Publication.
    `ready_since_ms` is wall-clock time, None where the broker does not know it.
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
    ready_since_ms: int | None = None
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

    @property
    def is_serving(self) -> bool:
        """Say whether it is a worker of ours, or a consuming program such as Celery's worker."""
        return self.kind == "worker" or (self.kind == "client" and bool(self.queues))


@dataclass(frozen=True, slots=True)
class Size:
    """Be how many bytes the file and its write-ahead log take, and the disk has left for us."""

    file_bytes: int
    log_bytes: int
    free_bytes: int


class Running(Protocol):
    """Be what publishers, workers and beats need of a broker. One object belongs to one thread.

    Errors: those of the transport in use (see `connection_errors`), and NotAvailable.
    """

    name: str
    can_fork: bool  # several processes may work on it: leases, presence, sweeping
    can_inspect: bool  # counts, lists and actions are there
    noted_ends: int  # how many ends can be noted before they are settled

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Return the errors that may be waited out."""

    def publish(
        self, publications: Sequence[Publication], *, tick: TickOf | None = None
    ) -> TickAnswer:
        """Publish; with several or a `tick`, in one transaction. Nothing is, unless it is TAKEN."""

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

    def keep_watch(self) -> None:
        """Do what a supervisor would, for a worker without one.

        Give back what dead processes held, now and from now on, and extend the leases of this one.
        """

    def keep_house(self, *, sweep: bool = False) -> float:
        """Do one small piece of housekeeping; return after how many seconds to call again.

        With `sweep` also give back what dead processes held, for a process that has nobody to do so.
        """

    def leave(self) -> None:
        """Release what this process holds, uncounted, and be forgotten."""

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        """Settle, then take up to `limit` messages; return them and the refused settlements.

        Raises WorkerSwept, and has then settled nothing.
        """

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        """Settle and return the refused ones: their lease is over and nothing was changed."""

    def extend(self, taken: Taken, seconds: float) -> bool:
        """Lengthen a lease; False when it is over."""

    def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """Look for work and, where there is none, sleep; say whether there may be some.

        `interrupt` ends the sleep, and so does `timeout_s`, or an implementation's own bound.
        """

    def interrupt(self) -> None:
        """End a `wait` from a signal handler or another thread."""

    def note_start(self, place: int, taken: Taken, time_limit_s: float, max_attempts: int) -> None:
        """Note, before user code runs, that it will: from here on the attempt counts."""

    def note_end(self, place: int) -> None:
        """Forget that note, once the settlement is committed."""

    def note_ended(self, place: int, number: int, taken: Taken, outcome: Outcome) -> bool:
        """Note, instead of that start, how it ended, until the settlement is committed.

        If the process dies before that, whoever notices settles it. `number` counts these notes; the
        last `noted_ends` of them stand. False where such an outcome cannot be noted, and nothing was.
        """

    def forget_starts(self) -> None:
        """Forget all notes of this process, which cannot settle any more and ends: nothing counts."""

    def stops_asked(self, taken: Sequence[Taken]) -> set[int]:
        """Return the message ids of those of these running deliveries that should not go on.

        An operator asked them to stop, or they are not ours any more, so that whatever they end in
        will be refused. One small read, and no write: a heartbeat's thread may ask. Empty on a
        broker that cannot tell.
        """

    def note_progress(self, taken: Taken, done: float, total: float | None, note: str) -> bool:
        """Write down how far a running delivery is; False when it is over. Any thread may.

        One small write, which no power cut is waited for: see `progress` for who calls it how often.
        On a broker that cannot keep it, do nothing.
        """

    def beat(self) -> None:
        """Give a sign of life; called from the heartbeat's thread."""

    @property
    def lost_presence(self) -> Path | None:
        """Return the presence file when those who come later do not see this process; None: they do.

        It was removed or replaced. Whoever works is then to end, and to be started anew. No SQL.
        Called from the heartbeat's thread. None on a broker that keeps no such file. Raises
        FileReplaced when more than this file is gone.
        """

    def unfinished_since_ms(self, queues: Sequence[str]) -> int | None:
        """Return when the first unfinished message is due; None when nothing is left.

        What waits in a paused queue does not count.
        """

    def paused(self) -> dict[str, int]:
        """Return the paused queues by name, with how many messages wait in each."""

    def close(self) -> None:
        """Close the connection; harmless when closed."""


class Inspecting(Protocol):
    """Be what operators and beats ask of a broker; one that cannot raises NotAvailable."""

    def counts(self) -> Counts:
        """Count jobs by state."""

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log."""

    def jobs(
        self, chosen: JobFilter, *, limit: int = 50, before: int | None = None
    ) -> list[JobRow]:
        """List jobs newest first, with message ids below `before`."""

    @property
    def lists(self) -> Listing:
        """Return what lists and counts by a filter, with budgets and portions."""

    @property
    def activity(self) -> Activity:
        """Return what answers how much happened when."""

    def audit(self, *, limit: int, before: int | None = None) -> list[tuple[int, AuditRow]]:
        """List what operators did, each with its number, newest first; with numbers below `before`."""

    def size(self) -> Size:
        """Return how large the file and its log are, and how much the disk has left."""

    def job(self, message_id: int) -> JobDetail | None:
        """Return one job whole."""

    def message_ids_of(self, job_id: str) -> list[int]:
        """Return the messages of a job id, newest first."""

    def queues(self) -> list[QueueRow]:
        """List queues."""

    def workers(self) -> list[WorkerRow]:
        """List living processes with what they run."""

    @property
    def schedules(self) -> Schedules:
        """Return the schedule: entries, ticks, and what operators do to them."""

    def act(
        self,
        event: Event,
        targets: Sequence[tuple[int, State]],
        *,
        actor: str,
        reason: str | None = None,
        kill_in_s: float | None = None,
    ) -> list[Acted]:
        """Cancel, terminate, fail or requeue messages seen in the given states.

        Compare-and-set, and audited. `kill_in_s` is for TERMINATE: after so many seconds the process
        of what still runs is killed; None means never.
        """

    def pause(self, queue: str, *, actor: str, reason: str | None = None) -> bool:
        """Let nobody claim from a queue; False when it was paused before. Audited."""

    def resume(self, queue: str, *, actor: str, reason: str | None = None) -> bool:
        """Let a queue be claimed from again; False when it ran. Audited."""

    def purgeable(self, queue: str) -> int:
        """Count what waits in a queue: pending, scheduled and failed."""

    def purge(
        self,
        queue: str,
        *,
        actor: str,
        reason: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> int:
        """Delete what waits in a queue, in portions, audited; see `deleting.Deleting.purge`."""

    def prunable(self, *, older_than_s: float, states: Sequence[State]) -> int:
        """Count what ended in these states more than so many seconds ago."""

    def prune(
        self,
        *,
        older_than_s: float,
        states: Sequence[State],
        actor: str,
        reason: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> int:
        """Delete that, in portions, audited; see `deleting.Deleting.prune`."""

    def check(
        self, *, full: bool = False, tell: Callable[[float | None], None] | None = None
    ) -> tuple[str, ...]:
        """Return what SQLite complains of in the file; see `checking.damage`. Reads only."""

    def backup(
        self,
        destination: Path,
        *,
        force: bool = False,
        tell: Callable[[int, int], None] | None = None,
    ) -> BackupReport:
        """Copy the file while it is in use; see `backup.back_up`. Reads only, of the queue."""

    def recount(self, tell: Callable[[int, int], None] | None = None) -> Recounted:
        """Make the file's counts what is there; see `recounting.recount`."""


class Backend(Running, Inspecting, Protocol):
    """Be a broker, as the framework sees it."""


def open_backend(
    settings: Settings,
    *,
    create: bool = True,
    keep_leases: bool = False,
    read_only: bool = False,
) -> Backend:
    """Connect to the broker of the settings.

    `create` False refuses to make a missing file. `keep_leases` lets `keep_watch` extend leases
    from a thread of this process. With `read_only` the file is opened for looking only: what would
    write raises the transport's ReadOnlyStore, and several threads may ask at once what Inspecting
    names. A broker that is no file cannot promise that: NotAvailable. Raises the transport's
    `connection_errors`.
    """
    connection = kombu.Connection(settings.broker_url)
    is_ours = connection.transport_cls == "sqlqueue"
    connection.transport_options = dict(settings.transport_options)
    if is_ours:
        connection.transport_options = {
            "visibility_timeout": settings.visibility_timeout,
            "durability": settings.durability,
            "retention_done": settings.retention_done,
            "retention_dead": settings.retention_dead,
            "retention_audit": settings.retention_audit,
            **settings.transport_options,
            "create": create,
            "keep_leases": keep_leases,
            **({"read_only": True} if read_only else {}),
        }
    elif read_only:
        raise NotAvailable("opening it for looking only")
    if is_ours:
        # Kombu's connect() would sleep two seconds and try again. A file that is missing is still
        # missing then, and a lock has been waited for already.
        connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        return SqliteBackend(connection)
    # Late: who has our broker never needs it.
    from sqlqueue.kombu_backend import KombuBackend  # noqa: PLC0415

    connection.connect()
    return KombuBackend(connection)


def database_path(broker_url: str) -> Path | None:
    """Return the file a broker URL means; None for a broker that is no file.

    Raises CannotOpen for a URL without a path, or whose directory does not exist.
    """
    if not broker_url.startswith("sqlqueue://"):
        return None
    return files.resolved_path(split_url(broker_url)[0])


class Publisher:
    """Publish through Kombu's Producer, the same way on every broker."""

    def __init__(self, connection: kombu.Connection) -> None:
        """Bind to the default channel of a connection."""
        self.channel: Any = connection.default_channel
        # Bound once; declaring or copying entities per call would cost more than the publish.
        self._producer = kombu.Producer(self.channel, auto_declare=False)
        self._declared: set[str] = set()

    def publish(self, one: Publication) -> None:
        """Publish one message, declaring its queue the first time."""
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
        """Make a queue, once in the life of this object."""
        if queue not in self._declared:
            self.channel.queue_declare(
                queue=queue, durable=True, auto_delete=False, exclusive=False
            )
            self._declared.add(queue)


class _OfStore(Generic[_Answer]):
    """Be a part of the store's that few processes ask for, and that is imported when they do."""

    def __init__(self, found_in: Callable[[Store], _Answer]) -> None:
        self._found_in = found_in

    def __get__(self, backend: SqliteBackend, _: object = None) -> _Answer:
        return self._found_in(backend.store)


class SqliteBackend:
    """Work on our own transport; `store` is for what only it can do (doctor, the supervisor)."""

    name = "sqlqueue"
    can_fork = True
    can_inspect = True
    noted_ends = ENDED_NOTES

    # What the store answers word for word; the Protocols say what it means.
    unfinished_since_ms = _OfStore(lambda store: store.reading.unfinished_since_ms)
    paused = _OfStore(lambda store: store.reading.paused)
    counts = _OfStore(lambda store: store.reading.counts)
    jobs = _OfStore(lambda store: store.reading.jobs)
    lists = _OfStore(lambda store: store.reading.lists)
    activity = _OfStore(lambda store: store.reading.activity)
    audit = _OfStore(lambda store: store.reading.audit)
    job = _OfStore(lambda store: store.reading.job)
    message_ids_of = _OfStore(lambda store: store.reading.message_ids_of)
    queues = _OfStore(lambda store: store.reading.queues)
    schedules = _OfStore(lambda store: store.schedules)
    act = _OfStore(lambda store: store.acting.act)
    pause = _OfStore(lambda store: store.pausing.pause)
    resume = _OfStore(lambda store: store.pausing.resume)
    purgeable = _OfStore(lambda store: store.deleting.purgeable)
    purge = _OfStore(lambda store: store.deleting.purge)
    prunable = _OfStore(lambda store: store.deleting.prunable)
    prune = _OfStore(lambda store: store.deleting.prune)

    def __init__(self, connection: kombu.Connection) -> None:
        """Take a connected Kombu connection of our transport."""
        self._connection = connection
        self._publisher = Publisher(connection)
        self._channel: Any = self._publisher.channel
        self.store: Store = self._channel.store
        self._swept_s = 0.0
        # As those above. Bound once, for each job asks for them.
        self.leave = self.store.consumers.leave
        self.note_end = self.store.consumers.note_end
        self.forget_starts = self.store.consumers.forget_starts
        self.beat = self.store.consumers.beat

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Return the errors that may be waited out."""
        found: tuple[type[BaseException], ...] = self._connection.connection_errors
        return found

    @property
    def lost_presence(self) -> Path | None:
        """Return the presence file when it is not the one this process is registered in."""
        if not self.store.consumers.has_lost_presence:
            return None
        self.store.database.look_at_path()
        return self.store.database.presence_path

    def publish(
        self, publications: Sequence[Publication], *, tick: TickOf | None = None
    ) -> TickAnswer:
        """Publish in one transaction, as far as the tick allows it."""
        if tick is None and len(publications) == 1:
            self._publisher.publish(publications[0])
            return TickAnswer.TAKEN
        for one in publications:
            self._publisher.declare(one.queue)
        with self._channel.publishing_together(tick) as stored:
            for one in publications:
                self._publisher.publish(one)
        return stored[0] if stored else TickAnswer.TAKEN

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

    def keep_watch(self) -> None:
        """Sweep, and start the transport's thread that sweeps and extends."""
        self.store.consumers.sweep_all()
        watching: Any = self._connection.transport
        watching.keep_watch()

    def keep_house(self, *, sweep: bool = False) -> float:
        """Do at most one portion of what is due, and log what somebody should hear of."""
        if sweep and time.monotonic() - self._swept_s >= IDLE_S:
            self._swept_s = time.monotonic()
            log_lost(self.store.consumers.sweep())
        from sqlqueue_transport.pruning import Policy  # noqa: PLC0415 - late: one process asks

        transport: Any = self._connection.transport
        turn = self.store.housekeeping.turn(Policy.of(transport.options))
        log_turn(turn)
        return turn.pause_s

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        """Settle and claim in one transaction."""
        messages, refused_tags = self._channel.claim(
            queues, limit, settlements=[(taken.tag, outcome) for taken, outcome in settlements]
        )
        refused = [taken for taken, _ in settlements if taken.tag in refused_tags]
        return [_taken(message) for message in messages], refused

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        """Settle in one transaction, also for a process that was taken for dead."""
        return self.claim((), 0, settlements)[1]

    def extend(self, taken: Taken, seconds: float) -> bool:
        """Lengthen a lease; False when it is over."""
        return not self.store.extend([(taken.message_id, taken.delivery)], seconds)

    def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """Sleep until a publisher wakes us, something is due, or the safety poll."""
        return self.store.consumers.sleep(queues, timeout_s, has_work=self.store.has_work)

    def interrupt(self) -> None:
        """End a `wait`; safe in a signal handler."""
        bell = self.store.consumers.bell
        if bell is not None:
            with contextlib.suppress(OSError):  # closed just now: nobody sleeps on it
                bell.ring()

    def note_start(self, place: int, taken: Taken, time_limit_s: float, max_attempts: int) -> None:
        """Note a start in this process's slot; no SQL."""
        self.store.consumers.note_start(
            place, taken.message_id, taken.delivery, time_limit_s, max_attempts=max_attempts
        )

    def note_ended(self, place: int, number: int, taken: Taken, outcome: Outcome) -> bool:
        """Note a success whose result is short; no SQL."""
        result = outcome.result
        if outcome.event is not Event.COMPLETE or (
            # Four bytes are the most that a character takes.
            result is not None and len(result) * 4 > LONGEST_NOTED_RESULT_BYTES
        ):
            return False
        ended = Ended(taken.message_id, taken.delivery, result)
        self.store.consumers.note_ended(place, number, ended)
        return True

    def log_bytes(self) -> int:
        """Return the size of the file's write-ahead log; no SQL."""
        return log_guard.size_of(self.store.path)

    def size(self) -> Size:
        """Ask the filesystem; no SQL, and nothing is opened."""
        path = self.store.path
        return Size(path.stat().st_size, self.log_bytes(), shutil.disk_usage(path.parent).free)

    def stops_asked(self, taken: Sequence[Taken]) -> set[int]:
        """Return the message ids of those running deliveries that should not go on."""
        deliveries = [(one.message_id, one.delivery) for one in taken]
        return {message_id for message_id, _ in self.store.running.to_stop(deliveries)}

    def note_progress(self, taken: Taken, done: float, total: float | None, note: str) -> bool:
        """Write down how far a running delivery is; False when it is over."""
        return self.store.running.note_progress(
            taken.message_id, taken.delivery, done=done, total=total, note=note
        )

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

    def check(
        self, *, full: bool = False, tell: Callable[[float | None], None] | None = None
    ) -> tuple[str, ...]:
        """Return what SQLite complains of in the file."""
        from sqlqueue_transport.checking import damage  # noqa: PLC0415 - late: operators only

        return damage(self.store.path, full=full, tell=tell)

    def backup(
        self,
        destination: Path,
        *,
        force: bool = False,
        tell: Callable[[int, int], None] | None = None,
    ) -> BackupReport:
        """Copy the file while it is in use."""
        from sqlqueue_transport.backup import back_up  # noqa: PLC0415 - late: operators only

        return back_up(self.store.path, destination, force=force, tell=tell)

    def recount(self, tell: Callable[[int, int], None] | None = None) -> Recounted:
        """Make the file's counts what is there."""
        from sqlqueue_transport.recounting import recount  # noqa: PLC0415 - late: operators only

        return recount(self.store.database, tell)

    def close(self) -> None:
        """Close the connection; the last one of a process closes the store."""
        self._connection.release()


def _taken(message: Any) -> Taken:
    delivery = message.delivery
    try:
        headers = message.headers
    except (ValueError, RecursionError):
        headers = None
    return Taken(
        tag=delivery.tag,
        # Not readable, or no object: then somebody else wrote the row. It is claimed all the same
        # and goes to the dead letters, as a message without headers.
        headers=headers if isinstance(headers, dict) else {},
        body=delivery.body,
        content_type=delivery.content_type,
        content_encoding=delivery.content_encoding,
        queue=delivery.queue,
        attempts=delivery.attempts,
        max_attempts=delivery.max_attempts,
        delivery=delivery.delivery,
        message_id=delivery.message_id,
        ready_since_ms=delivery.ready_since_ms,
        message=message,
    )
