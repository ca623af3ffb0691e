"""The Kombu channel: publish, consume, settle. Every verb acts on rows of the store.

Kombu's virtual base re-publishes a message to requeue it (duplicates, lost bindings), keeps
bindings in one process, and files callbacks by queue, so that two channels on one queue
overwrite each other. None of that is used here: a delivery is a row under a lease, and to
requeue it is an UPDATE.

Beyond Kombu's verbs: `settle(tag, outcome)`, `extend(tag, seconds)`, `claim(queues, …)` (settle
and claim in one transaction) and `publishing_together(tick)` (many publishes, one transaction).
Deliveries may be settled from any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual

from sqlqueue_transport.errors import InvalidMessage, LeaseLost
from sqlqueue_transport.message import Message
from sqlqueue_transport.messages import (
    Fault,
    NewMessage,
    Outcome,
    Settlement,
    TickOf,
    make_tag,
    split_tag,
)
from sqlqueue_transport.topology import valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlqueue_transport.options import Options
    from sqlqueue_transport.store import Store

# Properties of our own; other transports ignore what they do not know.
UNIQUE_PROPERTY = "sqlqueue_job_id"
MAX_ATTEMPTS_PROPERTY = "sqlqueue_max_attempts"
LOWEST_PRIORITY, HIGHEST_PRIORITY = 0, 9
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Consumer:
    """Be one `basic_consume` of this channel."""

    tag: str
    queue: str
    no_ack: bool
    callback: Callable[[Message], object]


class Channel(virtual.Channel):  # type: ignore[misc]  # kombu has no types
    """Be one Kombu channel on a store. Not to be shared by consuming threads; acks may be."""

    Message = Message
    do_restore = False
    supports_fanout = False
    max_priority = HIGHEST_PRIORITY

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a channel on a transport."""
        super().__init__(connection, **kwargs)
        self.store: Store = connection.store
        self.options: Options = connection.options
        self.prefetch_count = 0
        self._by_tag: dict[str, Consumer] = {}
        self._turns = itertools.count()
        # Delivery tags this channel holds, in the order it got them.
        self._unacked: dict[int, None] = {}
        self._unacked_mutex = threading.Lock()
        self._together: list[NewMessage] | None = None

    # -- publish ----------------------------------------------------------------------------------

    def basic_publish(
        self,
        message: dict[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool = False,  # noqa: FBT001, FBT002 - Kombu's signature
        **_: Any,
    ) -> None:
        """Store a message for the queues that its exchange and key lead to.

        It is on the disk when this returns, as far as `durability` says. Raises InvalidMessage
        for what cannot be stored, a ChannelError when `mandatory` finds no queue. If the process
        dies midway it may or may not be stored.
        """
        new = self._new_message(message, exchange or "", routing_key or "")
        if self._together is not None:
            self._together.append(new)
            return
        answers = self.store.publish([new], durable=self.options.sync_publish)
        if mandatory and answers and not answers[0].message_id:
            text = f"NO_ROUTE - no queue is bound to exchange {exchange!r} with {routing_key!r}"
            raise ChannelError(text, (60, 40), "Channel.basic_publish", "312")

    @contextlib.contextmanager
    def publishing_together(self, tick: TickOf | None = None) -> Iterator[list[bool]]:
        """Store all publishes of the block in one transaction, or none when the block raises.

        With `tick`, nothing is stored when that tick was enqueued before. The list yielded is
        empty until the block ends and then holds one bool: whether it was stored. One thread.
        """
        if self._together is not None:
            message = "publishing_together inside publishing_together on the same channel"
            raise InvalidMessage(message)
        stored: list[bool] = []
        self._together = []
        try:
            yield stored
            waiting, self._together = self._together, None
            if waiting or tick is not None:
                answers = self.store.publish(
                    waiting, durable=self.options.sync_publish, tick=tick
                )
                stored.append(answers is not None)
        finally:
            self._together = None

    def _new_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> NewMessage:
        headers, properties = message["headers"], message["properties"]
        body = message["body"]
        if not exchange:
            valid_name(routing_key, what="queue")
        job_id, task = headers.get("id"), headers.get("task")
        kept = {name: value for name, value in properties.items() if name not in _NOT_STORED}
        return NewMessage(
            body=_as_bytes(body, message["content-encoding"]),
            queue=None if exchange else routing_key,
            exchange=exchange,
            routing_key=routing_key,
            content_type=message["content-type"],
            content_encoding=message["content-encoding"],
            headers=_as_json(headers, "headers"),
            properties=_as_json(kept, "properties"),
            priority=_priority(properties.get("priority")),
            job_id=job_id if isinstance(job_id, str) else None,
            task=task if isinstance(task, str) else None,
            unique_key=properties.get(UNIQUE_PROPERTY),
            due_at_ms=_time_ms(headers.get("eta")) if self.options.hold_eta else None,
            expires_at_ms=self._expires_ms(headers.get("expires"), properties.get("expiration")),
            max_attempts=properties.get(MAX_ATTEMPTS_PROPERTY),
        )

    def _expires_ms(self, expires: object, expiration: object) -> int | None:
        """Return the earlier of Celery's `expires` header and AMQP's `expiration` (ms, as text)."""
        times = [_time_ms(expires)]
        if expiration is not None:
            try:
                times.append(self.store.clock.wall_ms() + int(str(expiration)))
            except ValueError:
                message = f"expiration {expiration!r} is not a number of milliseconds"
                raise InvalidMessage(message) from None
        return min((time for time in times if time is not None), default=None)

    # -- consume ----------------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,  # noqa: FBT001 - Kombu's signature
        callback: Callable[[Message], object],
        consumer_tag: str | None = None,
        **_: Any,
    ) -> str:
        """Deliver the queue's messages to `callback` when the transport drains; return the tag."""
        tag = consumer_tag or f"sqlqueue-{uuid4().hex}"
        self._by_tag[tag] = Consumer(tag, queue, bool(no_ack), callback)
        self._consumers.add(tag)
        return tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering to a consumer; what it holds stays with it."""
        self._by_tag.pop(consumer_tag, None)
        self._consumers.discard(consumer_tag)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Message | None:  # noqa: FBT001, FBT002
        """Take one message; None when nothing is ready."""
        found = self._claim([queue], 1, no_ack=no_ack)
        return found[0] if found else None

    @property
    def consumed_queues(self) -> list[str]:
        """Return the queues that have a consumer on this channel."""
        return list(dict.fromkeys(one.queue for one in self._by_tag.values()))

    def deliver_ready(self) -> int:
        """Claim what the consumers may have and call them; return how many messages.

        Messages are claimed for one consumer at a time, in turns, so that no queue starves.
        """
        consumers = list(self._by_tag.values())
        if not consumers:
            return 0
        first = next(self._turns) % len(consumers)
        delivered = 0
        for consumer in consumers[first:] + consumers[:first]:
            room = self._room()
            if room <= 0:
                break
            # One at a time without a prefetch count of its own would be slow, all would starve
            # the siblings: a batch is bounded by the prefetch, and by a cap when that is "no limit".
            for message in self._claim([consumer.queue], room, no_ack=consumer.no_ack, tag=consumer.tag):
                delivered += 1
                consumer.callback(message)
        return delivered

    @property
    def has_room(self) -> bool:
        """Say whether the prefetch count lets this channel take more."""
        return self._room() > 0

    def _room(self) -> int:
        return (self.prefetch_count or self.options.max_prefetch) - len(self._unacked)

    def _claim(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        no_ack: bool,
        tag: str | None = None,
    ) -> list[Message]:
        claim = self.store.claim(
            queues, limit, lease_s=self.options.visibility_timeout, no_ack=no_ack
        )
        messages = [Message(delivery, self, tag) for delivery in claim.deliveries]
        if messages and not no_ack:
            with self._unacked_mutex:
                self._unacked.update(dict.fromkeys(message.delivery_tag for message in messages))
            self.connection.keep_leases()
        elif no_ack:
            for message in messages:
                message._state = "ACK"  # noqa: SLF001 - nothing is left to acknowledge
        return messages

    # -- settle -----------------------------------------------------------------------------------

    def claim(
        self,
        queues: Sequence[str],
        limit: int = 1,
        *,
        settlements: Sequence[tuple[int, Outcome]] = (),
    ) -> tuple[list[Message], list[int]]:
        """Settle deliveries and take new ones in one transaction.

        Return the messages, and the tags whose settlement was refused because their lease is
        over. A settled delivery must not be acknowledged again.
        """
        claim = self.store.claim(
            queues,
            limit,
            lease_s=self.options.visibility_timeout,
            settlements=[_settlement(tag, outcome) for tag, outcome in settlements],
            durable=self.options.sync_settle,
        )
        messages = [Message(delivery, self) for delivery in claim.deliveries]
        with self._unacked_mutex:
            for tag, _ in settlements:
                self._unacked.pop(tag, None)
            self._unacked.update(dict.fromkeys(message.delivery_tag for message in messages))
        if messages:
            self.connection.keep_leases()
        return messages, [make_tag(one.message_id, one.delivery) for one in claim.refused]

    def settle(self, delivery_tag: int, outcome: Outcome) -> None:
        """End a delivery with an outcome.

        Raises LeaseLost when its lease is over: then nothing was changed. If the process dies
        midway it is settled or not.
        """
        self._settle_each([delivery_tag], outcome, quiet=False)

    def extend(self, delivery_tag: int, seconds: float) -> None:
        """Lengthen a lease to at least `seconds` from now. Raises LeaseLost when it is over."""
        message_id, delivery = split_tag(delivery_tag)
        if self.store.extend([(message_id, delivery)], seconds):
            raise LeaseLost(message_id, delivery)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:  # noqa: FBT001, FBT002
        """Acknowledge a delivery, or with `multiple` all this channel got up to it.

        A late acknowledgement changes nothing and raises LeaseLost.
        """
        self._settle_each(self._up_to(delivery_tag, multiple=multiple), Outcome.done(), quiet=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        """Hand a delivery back to its old place, or without `requeue` to the dead letters."""
        if requeue:
            outcome = Outcome.release()
        else:
            outcome = Outcome.dead(Fault("Rejected", "the consumer rejected it"), cause="rejected")
        self._settle_each([delivery_tag], outcome, quiet=requeue)

    def basic_recover(self, requeue: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - AMQP always requeues
        """Hand back everything this channel holds."""
        self.release_all()

    def basic_qos(
        self,
        prefetch_size: int = 0,  # noqa: ARG002 - not supported, as in all virtual transports
        prefetch_count: int = 0,
        apply_global: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> None:
        """Bound how many unacknowledged messages this channel may hold; 0 means the cap."""
        self.prefetch_count = prefetch_count or 0

    def release_all(self) -> None:
        """Hand back everything this channel holds, uncounted; late ones are left alone."""
        with self._unacked_mutex:
            tags = list(self._unacked)
        if tags:
            self._settle_each(tags, Outcome.release(), quiet=True)

    @property
    def holds_any(self) -> bool:
        """Say whether a delivery of this channel is unsettled."""
        return bool(self._unacked)

    def _up_to(self, delivery_tag: int, *, multiple: bool) -> list[int]:
        if not multiple:
            return [delivery_tag]
        # This channel's own order: tags are no sequence, a requeued message keeps its old id.
        with self._unacked_mutex:
            tags = list(self._unacked)
        return tags[: tags.index(delivery_tag) + 1] if delivery_tag in tags else [delivery_tag]

    def _settle_each(self, tags: Sequence[int], outcome: Outcome, *, quiet: bool) -> None:
        refused = self.store.settle(
            [_settlement(tag, outcome) for tag in tags], durable=self.options.sync_settle
        )
        with self._unacked_mutex:
            for tag in tags:
                self._unacked.pop(tag, None)
        if refused and not quiet:
            raise LeaseLost(refused[0].message_id, refused[0].delivery)

    # -- queues and exchanges -----------------------------------------------------------------------

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,  # noqa: FBT001, FBT002 - Kombu's signature
        durable: bool = True,  # noqa: FBT001, FBT002
        exclusive: bool = False,  # noqa: FBT001, FBT002
        auto_delete: bool = False,  # noqa: FBT001, FBT002
        arguments: dict[str, Any] | None = None,
        **_: Any,
    ) -> Any:
        """Make a queue, or with `passive` only look; return its name, ready and consumer counts."""
        name = queue or f"amq.gen-{uuid4()}"
        if passive:
            if not self.store.topology.has_queue(name):
                text = f"NOT_FOUND - no queue {name!r} in {self.store.path}"
                raise ChannelError(text, (50, 10), "Channel.queue_declare", "404")
        else:
            self.store.topology.declare_queue(
                name,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )
        return queue_declare_ok_t(
            name, self.store.topology.size(name), self.store.topology.consumers(name)
        )

    def queue_delete(
        self,
        queue: str,
        if_unused: bool = False,  # noqa: FBT001, FBT002
        if_empty: bool = False,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> int:
        """Delete a queue, bound or not; return how many messages were ready in it."""
        return self.store.topology.delete_queue(queue, if_unused=if_unused, if_empty=if_empty)

    def queue_purge(self, queue: str, **_: Any) -> int:
        """Delete what is ready in a queue and return how many."""
        return self.store.topology.purge(queue)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Route messages of an exchange to a queue; the default exchange needs no binding."""
        if exchange:
            self.store.topology.bind(queue, exchange, routing_key or "", arguments)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Remove a binding."""
        if exchange:
            self.store.topology.unbind(queue, exchange, routing_key or "")

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",  # noqa: A002 - Kombu's signature
        durable: bool = False,  # noqa: FBT001, FBT002
        auto_delete: bool = False,  # noqa: FBT001, FBT002
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,  # noqa: ARG002, FBT001, FBT002
        passive: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Make an exchange, or with `passive` only look."""
        kind = type or "direct"
        name = exchange or f"amq.{kind}"
        if passive:
            if self.store.topology.exchange_type(name) is None:
                text = f"NOT_FOUND - no exchange {name!r} in {self.store.path}"
                raise ChannelError(text, (50, 10), "Channel.exchange_declare", "404")
            return
        if kind not in self.connection.implements.exchange_type:
            text = f"NOT_IMPLEMENTED - exchange type {kind!r}; known: direct"
            raise ChannelError(text, (40, 10), "Channel.exchange_declare", "540")
        known = self.store.topology.declare_exchange(
            name, kind, durable=durable, auto_delete=auto_delete, arguments=arguments
        )
        if known != kind:
            text = f"PRECONDITION_FAILED - exchange {name!r} is of type {known!r}, not {kind!r}"
            raise ChannelError(text, (40, 10), "Channel.exchange_declare", "406")

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Delete an exchange and its bindings."""
        self.store.topology.delete_exchange(exchange)

    def list_bindings(self) -> list[tuple[str, str, str]]:
        """Return every binding as (queue, exchange, routing key)."""
        return self.store.topology.bindings()

    def get_exchanges(self) -> list[str]:
        """Return the exchanges that have bindings."""
        return sorted({exchange for _, exchange, _ in self.list_bindings()})

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self.store.topology.has_queue(queue)

    def _size(self, queue: str) -> int:
        return self.store.topology.size(queue)

    def _purge(self, queue: str) -> int:
        return self.store.topology.purge(queue)

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel the consumers and hand back what was not acknowledged; harmless when closed."""
        if self.closed:
            return
        self.closed = True
        for tag in list(self._by_tag):
            self.basic_cancel(tag)
        try:
            self.release_all()
        finally:
            if self.connection is not None:
                self.connection.close_channel(self)
            self.exchange_types = None


# What Kombu's virtual base adds for itself; delivery info and tag are made anew at delivery.
_NOT_STORED = frozenset(
    {"delivery_info", "delivery_tag", "body_encoding", UNIQUE_PROPERTY, MAX_ATTEMPTS_PROPERTY}
)


def _settlement(tag: int, outcome: Outcome) -> Settlement:
    return Settlement(*split_tag(tag), outcome)


def _as_bytes(body: object, content_encoding: str | None) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, (bytearray, memoryview)):
        return bytes(body)
    if body is None:
        return b""
    encoding = content_encoding if content_encoding not in {None, "binary"} else "utf-8"
    try:
        return str(body).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError) as error:
        message = f"the body cannot be written as {encoding}: {error}"
        raise InvalidMessage(message) from error


def _as_json(values: dict[str, Any], what: str) -> str:
    try:
        return json.dumps(values, default=_plain, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the {what} of the message cannot be stored as JSON: {error}"
        raise InvalidMessage(message) from error


def _plain(value: object) -> object:
    """Write what Kombu programs put into headers; never with Kombu's decoder in mind.

    Kombu's own decoder revives `__type__` objects, which would make data run code.
    """
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    text = f"{type(value).__name__} is not JSON"
    raise TypeError(text)


def _priority(given: object) -> int:
    """Return 0 to 9, clamped as in Kombu's virtual transports; text or fractions are refused."""
    if given is None:
        return LOWEST_PRIORITY
    if isinstance(given, bool) or not isinstance(given, int):
        message = f"priority {given!r} is not a whole number from 0 to 9"
        raise InvalidMessage(message)
    return max(LOWEST_PRIORITY, min(given, HIGHEST_PRIORITY))


def _time_ms(given: object) -> int | None:
    """Read a time of Celery's headers: ISO 8601 text, a datetime, or None.

    A time without a zone is UTC. What cannot be read is left to the consumer, who reads the same
    header: the message is then delivered at once.
    """
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given.replace("Z", "+00:00"))
        except ValueError:
            return None
    if not isinstance(given, datetime):
        return None
    aware = given if given.tzinfo else given.replace(tzinfo=timezone.utc)
    try:
        return min(round(aware.timestamp() * 1000), _LARGEST_INTEGER)
    except (OverflowError, ValueError):
        return None
