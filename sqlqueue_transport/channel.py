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
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from amqp.protocol import queue_declare_ok_t  # type: ignore[import-untyped]
from kombu.exceptions import ChannelError
from kombu.transport import virtual

from sqlqueue_transport.errors import CannotOpen, InvalidMessage, LeaseLost, WorkerSwept
from sqlqueue_transport.message import Message as Delivered
from sqlqueue_transport.messages import (
    Claim,
    Fault,
    NewMessage,
    Outcome,
    Settlement,
    TickOf,
    make_tag,
    split_tag,
)
from sqlqueue_transport.publishing import (
    HIGHEST_PRIORITY,
    MAX_ATTEMPTS_PROPERTY,
    UNIQUE_PROPERTY,
    PublishBatch,
    new_message,
)
from sqlqueue_transport.topology import valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlqueue_transport.options import Options
    from sqlqueue_transport.store import Store

# A consumer whose calls are short gets several messages a transaction, so that one transaction
# serves them all; whose calls are long gets one, so that nothing waits behind it while a sibling
# idles.
LARGEST_BATCH = 16
SHORT_CALL_S = 0.005
LONG_CALL_S = 0.05


@dataclass(frozen=True, slots=True)
class Consumer:
    """Be one `basic_consume` of this channel."""

    tag: str
    queue: str
    no_ack: bool
    callback: Callable[[Delivered], object]


class Channel(virtual.Channel):
    """Be one Kombu channel on a store. Not to be shared by consuming threads; acks may be."""

    Message = Delivered  # type: ignore[assignment]  # ours is made from a row
    do_restore = False
    supports_fanout = False
    max_priority = HIGHEST_PRIORITY

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a channel on a transport."""
        super().__init__(connection, **kwargs)
        self.store: Store = connection.store
        self.options: Options = connection.options
        self.prefetch_count = 0
        self._pid = os.getpid()
        self._by_tag: dict[str, Consumer] = {}
        self._turns = itertools.count()
        self._batch = 1
        # Claimed, and not yet handed to its consumer.
        self._arrived: deque[tuple[Consumer, Delivered]] = deque()
        # Delivery tags that were handed over and not settled, in that order.
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
        new = self.new_message(message, exchange, routing_key)
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
        empty until the block ends and then holds one bool: whether it was stored; it stays empty
        when there was nothing to store. One thread.
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
                stored.append(self.publish_all(waiting, tick))
        finally:
            self._together = None

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what `Producer.batch` publishes through: one transaction a flush."""
        return PublishBatch(self, max_size)

    def new_message(
        self, message: dict[str, Any], exchange: str | None, routing_key: str | None
    ) -> NewMessage:
        """Make the row of a message that Kombu prepared. Raises InvalidMessage."""
        return new_message(
            message,
            exchange or "",
            routing_key or "",
            now_ms=self.store.clock.wall_ms(),
            hold_eta=self.options.hold_eta,
        )

    def publish_all(self, messages: Sequence[NewMessage], tick: TickOf | None = None) -> bool:
        """Store messages in one transaction; False when the tick had been enqueued before."""
        if not messages and tick is None:
            return True
        answers = self.store.publish(messages, durable=self.options.sync_publish, tick=tick)
        return answers is not None

    # -- consume ----------------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,  # noqa: FBT001 - Kombu's signature
        callback: Callable[[Delivered], object],
        consumer_tag: str | None = None,
        **_: Any,
    ) -> str:
        """Deliver the queue's messages to `callback` when the transport drains; return the tag."""
        self._refuse_closed()
        tag = consumer_tag or f"sqlqueue-{uuid4().hex}"
        self._by_tag[tag] = Consumer(tag, valid_name(queue, what="queue"), bool(no_ack), callback)
        self._consumers.add(tag)
        return tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering to a consumer; what it was handed stays with it."""
        self._by_tag.pop(consumer_tag, None)
        self._consumers.discard(consumer_tag)
        unseen = [message for consumer, message in self._arrived if consumer.tag == consumer_tag]
        self._arrived = deque(pair for pair in self._arrived if pair[0].tag != consumer_tag)
        self._release([message.delivery_tag for message in unseen])

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Delivered | None:  # noqa: FBT001, FBT002
        """Take one message; None when nothing is ready."""
        found = self._claim(valid_name(queue, what="queue"), 1, no_ack=no_ack)
        for message in found:
            self._hand_over(message)
        return found[0] if found else None

    @property
    def open_queues(self) -> list[str]:
        """Return the queues whose messages a consumer of this channel may take now."""
        has_room = self._room() > 0
        return list(
            dict.fromkeys(
                one.queue for one in list(self._by_tag.values()) if has_room or one.no_ack
            )
        )

    @property
    def is_consuming(self) -> bool:
        """Say whether the channel has a consumer."""
        return bool(self._by_tag)

    def deliver_one(self) -> bool:
        """Hand the next message to its consumer; say whether there was one.

        What a callback raises passes through; the message is then still this channel's.
        """
        if not self._arrived:
            self._fetch()
        try:
            consumer, message = self._arrived.popleft()
        except IndexError:
            return False
        self._hand_over(message)
        began_s = time.monotonic()
        consumer.callback(message)
        took_s = time.monotonic() - began_s
        if took_s < SHORT_CALL_S:
            self._batch = min(self._batch * 2, LARGEST_BATCH)
        elif took_s > LONG_CALL_S:
            self._batch = 1
            self._release_arrived()
        return True

    def _fetch(self) -> None:
        """Claim for one consumer, in turns, so that no queue starves."""
        consumers = list(self._by_tag.values())
        if not consumers:
            return
        first = next(self._turns) % len(consumers)
        for consumer in consumers[first:] + consumers[:first]:
            # Without acknowledgements a message is done when it is claimed, so one at a time: if
            # the process dies, one is lost, as everywhere with no_ack.
            limit = 1 if consumer.no_ack else min(self._room(), self._batch)
            if limit <= 0:
                continue
            messages = self._claim(consumer.queue, limit, no_ack=consumer.no_ack, tag=consumer.tag)
            if messages:
                self._arrived.extend((consumer, message) for message in messages)
                return

    def _room(self) -> int:
        """Return how many more messages the prefetch count allows."""
        allowed = self.prefetch_count or self.options.max_prefetch
        return allowed - len(self._unacked) - len(self._arrived)

    def _claim(
        self, queue: str, limit: int, *, no_ack: bool, tag: str | None = None
    ) -> list[Delivered]:
        self._refuse_closed()
        claim = self._claim_registered(queue, limit, no_ack=no_ack)
        if claim.deliveries and not no_ack:
            self.connection.keep_leases()
        return [Delivered(one, self, tag, is_settled=no_ack) for one in claim.deliveries]

    def _claim_registered(self, queue: str, limit: int, *, no_ack: bool) -> Claim:
        lease_s = self.options.visibility_timeout
        try:
            return self.store.claim([queue], limit, lease_s=lease_s, no_ack=no_ack)
        except WorkerSwept:
            # Whoever took us for dead gave back what we held; our late settlements of that will
            # be refused. A plain consumer just goes on under a new worker id.
            self.store.consumers.leave()
            return self.store.claim([queue], limit, lease_s=lease_s, no_ack=no_ack)

    def _hand_over(self, message: Delivered) -> None:
        if not message.is_settled:
            with self._unacked_mutex:
                self._unacked[message.delivery_tag] = None

    def _refuse_closed(self) -> None:
        if self.closed:
            message = "this channel is closed; open another one"
            raise CannotOpen(message)

    # -- settle -----------------------------------------------------------------------------------

    def claim(
        self,
        queues: Sequence[str],
        limit: int = 1,
        *,
        settlements: Sequence[tuple[int, Outcome]] = (),
    ) -> tuple[list[Delivered], list[int]]:
        """Settle deliveries and take new ones in one transaction.

        Return the messages, and the tags whose settlement was refused because their lease is
        over. A settled delivery must not be acknowledged again. Raises WorkerSwept, and has then
        changed nothing.
        """
        self._refuse_closed()
        claim = self.store.claim(
            queues,
            limit,
            lease_s=self.options.visibility_timeout,
            settlements=[_settlement(tag, outcome) for tag, outcome in settlements],
            durable=self.options.sync_settle,
        )
        messages = [Delivered(delivery, self) for delivery in claim.deliveries]
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
        self._settle_each(
            self._up_to(delivery_tag, multiple=multiple), Outcome.done(), quiet=multiple
        )

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        """Hand a delivery back to its old place, or without `requeue` to the dead letters."""
        if requeue:
            outcome = Outcome.release()
        else:
            outcome = Outcome.dead(Fault("Rejected", "the consumer rejected it"), cause="rejected")
        self._settle_each([delivery_tag], outcome, quiet=requeue)

    def basic_recover(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - AMQP always requeues
        """Hand back everything this channel holds."""
        self.release_all()

    def basic_qos(
        self,
        prefetch_size: int = 0,
        prefetch_count: int = 0,
        apply_global: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Bound how many unacknowledged messages this channel may hold; 0 means the cap."""
        self.prefetch_count = prefetch_count or 0

    def release_all(self) -> None:
        """Hand back everything this channel holds, uncounted; late ones are left alone.

        In a forked child nothing is handed back: what the parent's channel held is the parent's.
        """
        with self._unacked_mutex:
            tags = list(self._unacked)
        tags += self._forget_arrived()
        if self._pid == os.getpid():
            self._release(tags)

    @property
    def holds_any(self) -> bool:
        """Say whether a delivery of this channel is unsettled."""
        return bool(self._unacked or self._arrived)

    def _up_to(self, delivery_tag: int, *, multiple: bool) -> list[int]:
        if not multiple:
            return [delivery_tag]
        # This channel's own order: tags are no sequence, a requeued message keeps its old id.
        with self._unacked_mutex:
            tags = list(self._unacked)
        return tags[: tags.index(delivery_tag) + 1] if delivery_tag in tags else [delivery_tag]

    def _release_arrived(self) -> None:
        self._release(self._forget_arrived())

    def _forget_arrived(self) -> list[int]:
        arrived, self._arrived = self._arrived, deque()
        return [message.delivery_tag for _, message in arrived if not message.is_settled]

    def _release(self, tags: Sequence[int]) -> None:
        if tags:
            self._settle_each(tags, Outcome.release(), quiet=True)

    def _settle_each(self, tags: Sequence[int], outcome: Outcome, *, quiet: bool) -> None:
        had_room = self._room() > 0
        refused = self.store.settle(
            [_settlement(tag, outcome) for tag in tags], durable=self.options.sync_settle
        )
        with self._unacked_mutex:
            for tag in tags:
                self._unacked.pop(tag, None)
        if not had_room and self.connection is not None:
            self.connection.make_room()
        if refused and not quiet:
            raise LeaseLost(refused[0].message_id, refused[0].delivery)

    # -- queues and exchanges -----------------------------------------------------------------------

    def queue_declare(  # noqa: PLR0917 - Kombu's signature, as below
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
        arguments: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Remove a binding."""
        if exchange:
            self.store.topology.unbind(queue, exchange, routing_key or "")

    def exchange_declare(  # noqa: PLR0917
        self,
        exchange: str | None = None,
        type: str = "direct",  # noqa: A002 - Kombu's signature
        durable: bool = False,  # noqa: FBT001, FBT002
        auto_delete: bool = False,  # noqa: FBT001, FBT002
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,  # noqa: FBT001, FBT002
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

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:  # noqa: FBT001, FBT002
        """Delete an exchange and its bindings; with `if_unused` only when it has none."""
        self.store.topology.delete_exchange(exchange, if_unused=if_unused)

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
        self._by_tag.clear()
        self._consumers.clear()
        try:
            self.release_all()
        finally:
            if self.connection is not None:
                self.connection.close_channel(self)
            self.exchange_types = {}


def _settlement(tag: int, outcome: Outcome) -> Settlement:
    return Settlement(*split_tag(tag), outcome)


__all__ = ["MAX_ATTEMPTS_PROPERTY", "UNIQUE_PROPERTY", "Channel", "Consumer"]
