"""Plain Kombu as a backend: any transport with ack, reject and publish; one process.

`backend.py` names what the framework needs; this makes do with Kombu's own verbs and says "not
available on this broker" for the rest. It refuses to pretend: what cannot be done in one step is
done so that a crash leaves a job twice, never not at all.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from kombu.exceptions import ChannelError

from sqlqueue import envelope
from sqlqueue.backend import Publication, Publisher, Taken, TickAnswer
from sqlqueue.errors import NotAvailable
from sqlqueue.log import get_logger
from sqlqueue_transport.channel import MAX_ATTEMPTS_PROPERTY
from sqlqueue_transport.lifecycle import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import kombu

    from sqlqueue_transport.messages import Outcome, TickOf

__all__ = ["KombuBackend"]

log = get_logger(__name__)

_LOOK_EVERY_S = 0.05


def _not_available(feature: str) -> Callable[..., NoReturn]:
    """Return a method that says so, whatever it is asked."""

    def answer(*_: object, **__: object) -> NoReturn:
        raise NotAvailable(feature)

    return answer


class KombuBackend:
    """Work on any Kombu transport; nothing to inspect, one process.

    A retry is a new message and then an ack. Messages with a future `eta` are held here, because
    plain brokers deliver them at once.
    """

    can_fork = False
    can_inspect = False
    noted_ends = 0
    lost_presence = None  # nobody is seen by a file

    counts = _not_available("counting jobs")
    log_bytes = _not_available("the log's size")
    size = _not_available("the file's size")
    jobs = _not_available("listing jobs")
    lists = property(_not_available("listing jobs"))
    activity = property(_not_available("figures over time"))
    audit = _not_available("what operators did")
    job = _not_available("looking at a job")
    message_ids_of = _not_available("looking up a job")
    queues = _not_available("listing queues")
    workers = _not_available("listing workers")
    schedules = property(_not_available("a schedule, and a beat"))
    act = _not_available("changing stored jobs")
    pause = _not_available("pausing a queue")
    resume = _not_available("resuming a queue")
    purgeable = _not_available("counting what waits in a queue")
    purge = _not_available("purging a queue")
    prunable = _not_available("counting jobs that have ended")
    prune = _not_available("deleting jobs that have ended")
    check = _not_available("examining a file")
    backup = _not_available("a backup")
    recount = _not_available("counting anew")

    def __init__(self, connection: kombu.Connection) -> None:
        """Take a connected Kombu connection."""
        self._connection = connection
        self._publisher = Publisher(connection)
        self._channel = self._publisher.channel
        self.name = str(connection.transport.driver_type)
        # What came too early: due time, a number that keeps equal ones in order, the message.
        self._held: list[tuple[float, int, Taken]] = []
        self._numbers = itertools.count()

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Return the errors that may be waited out."""
        found: tuple[type[BaseException], ...] = self._connection.connection_errors
        return found

    def publish(
        self, publications: Sequence[Publication], *, tick: TickOf | None = None
    ) -> TickAnswer:
        """Publish one by one. Ticks and unique keys need a store: NotAvailable."""
        if tick is not None:
            raise NotAvailable("enqueueing a tick once")
        if any(one.unique_key is not None for one in publications):
            raise NotAvailable("storing a job_id once")
        for one in publications:
            self._publisher.publish(one)
        return TickAnswer.TAKEN

    def register(self, *, queues: Sequence[str] = (), **_: object) -> int:
        """Declare the queues; plain brokers know no workers."""
        for queue in queues:
            self._publisher.declare(queue)
        return 0

    def keep_watch(self) -> None:
        """Do nothing: a broker notices by itself that a connection is gone."""

    def keep_house(self, *, sweep: bool = False) -> float:
        """Have nothing to do: a broker keeps its own house."""
        del sweep
        return math.inf

    def leave(self) -> None:
        """Requeue what is held for later."""
        while self._held:
            _, _, taken = heapq.heappop(self._held)
            taken.message.requeue()

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        """Settle, then get messages one by one; what has expired ends here."""
        refused = self.settle(settlements)
        found: list[Taken] = []
        while len(found) < limit:
            taken = self._next(queues)
            if taken is None:
                break
            if _time_s(taken.headers.get("expires"), otherwise=float("inf")) <= time.time():
                taken.message.reject(requeue=False)
                log.info("job_expired", job_id=str(taken.headers.get("id")), queue=taken.queue)
            else:
                found.append(taken)
        return found, refused

    def _next(self, queues: Sequence[str]) -> Taken | None:
        """Return a message that is due; hold those that are not."""
        if self._held and self._held[0][0] <= time.time():
            return heapq.heappop(self._held)[2]
        for queue in queues:
            while (message := self._channel.basic_get(queue, no_ack=False)) is not None:
                taken = _taken(self._channel.message_to_python(message), queue)
                due_s = _time_s(taken.headers.get("eta"), otherwise=0.0)
                if due_s <= time.time():
                    return taken
                heapq.heappush(self._held, (due_s, next(self._numbers), taken))
        return None

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        """Ack, requeue or reject; a retry is published first and acknowledged after."""
        for taken, outcome in settlements:
            if outcome.event in {Event.COMPLETE, Event.ABORT}:
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
                priority=_count(taken.message.properties.get("priority")) or 0,
                max_attempts=taken.max_attempts,
            )
        )

    def extend(self, *_: object) -> bool:
        """Say that nothing has to be done: plain brokers keep a delivery while we are connected."""
        return True

    def wait(self, _: Sequence[str], timeout_s: float) -> bool:
        """Sleep a little: Kombu has no verb for "wake me when a get would find something"."""
        time.sleep(min(timeout_s, _LOOK_EVERY_S))
        return True

    def interrupt(self) -> None:
        """Do nothing: the sleeps are short."""

    def note_start(self, *_: object) -> None:
        """Do nothing: plain brokers count no attempts of the dead."""

    def note_ended(self, *_: object) -> bool:
        """Note nothing: nobody would read it."""
        return False

    def note_end(self, *_: object) -> None:
        """Do nothing."""

    def forget_starts(self) -> None:
        """Do nothing."""

    def stops_asked(self, *_: object) -> set[int]:
        """Return nothing: there is no place where an operator could ask."""
        return set()

    def note_progress(self, *_: object) -> bool:
        """Do nothing: there is no place where anybody could look."""
        return True

    def beat(self) -> None:
        """Do nothing."""

    def unfinished_since_ms(self, queues: Sequence[str]) -> int | None:
        """Return 0 when something waits in the queues or is held here; None when nothing does."""
        is_any_left = bool(self._held) or any(self._ready(queue) for queue in queues)
        return 0 if is_any_left else None

    def paused(self) -> dict[str, int]:
        """Return nothing: plain brokers know no pause."""
        return {}

    def _ready(self, queue: str) -> int:
        """Return how many messages of a queue are ready; Redis knows no queue that is empty."""
        try:
            count: int = self._channel.queue_declare(queue=queue, passive=True).message_count
        except ChannelError:
            return 0
        return count

    def close(self) -> None:
        """Close the connection."""
        self.leave()
        self._connection.release()


def _taken(message: Any, queue: str) -> Taken:
    headers = message.headers or {}
    body = message.body
    return Taken(
        tag=message.delivery_tag,
        headers=headers,
        body=body if isinstance(body, bytes) else str(body).encode("utf-8", "surrogatepass"),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        queue=queue,
        attempts=_count(headers.get("retries")) or 0,
        max_attempts=_count(message.properties.get(MAX_ATTEMPTS_PROPERTY)),
        delivery=1,
        message=message,
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _time_s(text: object, *, otherwise: float) -> float:
    """Read a time of the headers; what cannot be read is left to `execute`, which refuses it."""
    if not isinstance(text, str):
        return otherwise
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return otherwise
