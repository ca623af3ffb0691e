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
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from amqp.exceptions import (  # type: ignore[import-untyped]
    NotFound,
    PreconditionFailed,
    ResourceLocked,
)
from amqp.protocol import queue_declare_ok_t  # type: ignore[import-untyped]
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments

from sqlqueue_transport.errors import (
    CannotOpen,
    InvalidMessage,
    LeaseLost,
    NotDeclared,
    QueueFull,
    QueueLocked,
    TransportError,
    Unavailable,
    WorkerSwept,
)
from sqlqueue_transport.message import Message as Delivered
from sqlqueue_transport.messages import (
    Fault,
    NewMessage,
    Outcome,
    Settlement,
    TickAnswer,
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
from sqlqueue_transport.routing import EXCHANGE_TYPES
from sqlqueue_transport.showing import shown
from sqlqueue_transport.topology import valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlqueue_transport.acks import HeldAcks
    from sqlqueue_transport.options import Options
    from sqlqueue_transport.store import Store

# A consumer whose calls are short gets several messages a transaction, so that one transaction
# serves them all; whose calls are long gets one, so that nothing waits behind it while a sibling
# idles. The largest batch of short calls is about as long as one long call.
LARGEST_BATCH = 64
SHORT_CALL_S = 0.001
LONG_CALL_S = 0.05
LONGEST_WAIT_S = 0.5  # for what has arrived, if all calls before it take as long as the last one
# How Kombu names the queue of a program that answers questions about itself (kombu.pidbox).
_MAILBOX = ".pidbox"
_channel_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Consumer:
    """Be one `basic_consume` of this channel; `name` is its tag, unique in this process."""

    tag: str
    name: str
    queue: str
    no_ack: bool
    callback: Callable[[Delivered], object]


class Channel(virtual.Channel):
    """Be one Kombu channel on a store. Not to be shared by consuming threads; acks may be."""

    Message = Delivered  # type: ignore[assignment]  # ours is made from a row
    do_restore = False
    supports_fanout = True
    max_priority = HIGHEST_PRIORITY

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a channel on a transport."""
        super().__init__(connection, **kwargs)
        self.store: Store = connection.store
        self._acks: HeldAcks = connection.acks
        self.options: Options = connection.options
        # How many unsettled messages all consumers of this channel may have together, and each of
        # them; 0 means no bound of the caller's.
        self.prefetch_count = 0
        self.consumer_prefetch_count = 0
        self._number = next(_channel_numbers)
        self._pid = os.getpid()
        self._by_tag: dict[str, Consumer] = {}
        self._batch = 1
        # Claimed, and not yet handed to its consumer.
        self._arrived: deque[tuple[Consumer, Delivered]] = deque()
        # Delivery tags that were handed over and not settled, in that order, each with the tag of
        # its consumer; None was got or claimed by the program itself.
        self._unacked: dict[int, str | None] = {}
        # How many each consumer has been given, those that have only arrived included.
        self._given: defaultdict[str | None, int] = defaultdict(int)
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
        for what cannot be stored, a ChannelError for an exchange that was never declared, for a
        queue that refuses more, and when `mandatory` finds no queue. If the process dies midway
        it may or may not be stored.
        """
        new = self.new_message(message, exchange, routing_key)
        if self._together is not None:
            self._together.append(new)
            return
        self._acks.settle()
        try:
            answers = self.store.publish([new], durable=self.options.sync_publish)
        except (NotDeclared, QueueLocked, QueueFull) as error:
            raise _as_channel_error(error, "Channel.basic_publish") from error
        if mandatory and answers and not (answers[0].stored or answers[0].message_id):
            text = f"NO_ROUTE - no queue is bound to exchange {exchange!r} with {routing_key!r}"
            raise ChannelError(text, (60, 40), "Channel.basic_publish", "312")

    @contextlib.contextmanager
    def publishing_together(self, tick: TickOf | None = None) -> Iterator[list[TickAnswer]]:
        """Store all publishes of the block in one transaction, or none when the block raises.

        With `tick`, what becomes of that decides whether anything is stored. The list yielded is
        empty until the block ends and then holds the answer: TAKEN, where something was stored; it
        stays empty when there was nothing to store. One thread.
        """
        if self._together is not None:
            message = "publishing_together inside publishing_together on the same channel"
            raise InvalidMessage(message)
        stored: list[TickAnswer] = []
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

    def publish_all(self, messages: Sequence[NewMessage], tick: TickOf | None = None) -> TickAnswer:
        """Store messages in one transaction; with `tick`, if that may be taken."""
        if tick is None and not messages:
            return TickAnswer.TAKEN
        is_durable = self.options.sync_publish
        self._acks.settle()
        if tick is not None:
            return self.store.publish_tick(messages, tick, durable=is_durable)
        with _as_channel_errors("Channel.basic_publish"):
            self.store.publish(messages, durable=is_durable)
        return TickAnswer.TAKEN

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
        self._refuse_locked(valid_name(queue, what="queue"))
        tag = consumer_tag or f"sqlqueue-{uuid4().hex}"
        consumer = Consumer(tag, f"{self._number}.{tag}", queue, bool(no_ack), callback)
        with _as_channel_errors("Channel.basic_consume"):
            self.store.consumers.consume(consumer.name, queue)
        self._by_tag[tag] = consumer
        self._consumers.add(tag)
        if queue.endswith(_MAILBOX):
            # The program's own name, `celery@host`, tells an operator more than a process id.
            self.store.consumers.name_worker(queue.removesuffix(_MAILBOX).rpartition(".")[0])
        # From the start, not from the first message on: an idle consumer watches over the others.
        self.connection.keep_watch()
        self.connection.make_room()
        return tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering to a consumer; what it was handed stays with it."""
        consumer = self._by_tag.pop(consumer_tag, None)
        self._consumers.discard(consumer_tag)
        if consumer is None:
            return
        self.connection.forget_consumer(consumer.name)
        unseen = self._forget_arrived(consumer_tag)
        self._hand_back(unseen, {consumer.name: consumer.queue})
        self.connection.make_room()

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Delivered | None:  # noqa: FBT001, FBT002
        """Take one message; None when nothing is ready."""
        self._refuse_closed()
        self._refuse_locked(valid_name(queue, what="queue"))
        self.store.topology.touch(queue)
        found = self._claim(queue, 1, no_ack=no_ack)
        for message in found:
            self._hand_over(message, None)
        return found[0] if found else None

    @property
    def open_consumers(self) -> list[tuple[Consumer, int]]:
        """Return the consumers that may be given messages now, and how many each."""
        found = []
        for one in list(self._by_tag.values()):
            # Without acknowledgements a message is done when it is claimed, so one at a time: if
            # the process dies, one is lost, as everywhere with no_ack.
            limit = 1 if one.no_ack else min(self._room(one.tag), self._batch)
            if limit > 0:
                found.append((one, limit))
        return found

    @property
    def is_consuming(self) -> bool:
        """Say whether the channel has a consumer."""
        return bool(self._by_tag)

    def deliver_arrived(self) -> bool:
        """Hand the next message that was fetched to its consumer; say whether there was one.

        What a callback raises passes through; the message is then still this channel's.
        """
        try:
            consumer, message = self._arrived.popleft()
        except IndexError:
            return False
        self._hand_over(message, consumer.tag)
        began_s = time.monotonic()
        consumer.callback(message)
        took_s = time.monotonic() - began_s
        if took_s < SHORT_CALL_S:
            self._batch = min(self._batch * 2, LARGEST_BATCH)
        else:
            self._slow_down(took_s)
        return True

    def _slow_down(self, took_s: float) -> None:
        """Let nothing wait behind calls that are not short: acknowledgements, messages, siblings."""
        self._acks.settle()
        if took_s > LONG_CALL_S or took_s * len(self._arrived) > LONGEST_WAIT_S:
            self._batch = 1
            self._release_arrived()

    def fetch(self, consumer: Consumer, limit: int) -> bool:
        """Claim up to `limit` messages for a consumer, to be delivered; say whether there were any.

        What waits to be acknowledged is committed in the same transaction.
        """
        messages = self._claim(consumer.queue, limit, no_ack=consumer.no_ack, tag=consumer.tag)
        if not consumer.no_ack:
            with self._unacked_mutex:
                self._given[consumer.tag] += len(messages)
        self._arrived.extend((consumer, message) for message in messages)
        return bool(messages)

    def _room(self, tag: str) -> int:
        """Return how many more messages a consumer may be given, by its own count and by all."""
        with self._unacked_mutex:
            of_all, own = sum(self._given.values()), self._given.get(tag, 0)
        if self.consumer_prefetch_count:
            room = self.consumer_prefetch_count - own
            return min(room, self.prefetch_count - of_all) if self.prefetch_count else room
        return (self.prefetch_count or self.options.max_prefetch) - of_all

    def _claim(
        self, queue: str, limit: int, *, no_ack: bool, tag: str | None = None
    ) -> list[Delivered]:
        acks = self._acks
        try:
            claim = acks.claim(
                lambda waiting: self.store.claim(
                    [queue],
                    limit,
                    lease_s=self.options.visibility_timeout,
                    settlements=waiting,
                    durable=self.options.sync_settle,
                    no_ack=no_ack,
                    hands_over_expired=True,
                )
            )
        except WorkerSwept as error:
            # Whoever took us for dead gave back what we held, counts our consumers no more, and
            # has let queues go that lived for us. All of that has to be made anew.
            self.store.consumers.leave()
            raise CannotOpen(str(error)) from error
        if claim.deliveries and not no_ack:
            self.connection.keep_watch()
        return [Delivered(one, self, tag, is_settled=no_ack) for one in claim.deliveries]

    def _hand_over(self, message: Delivered, tag: str | None) -> None:
        if not message.is_settled:
            with self._unacked_mutex:
                self._unacked[message.delivery_tag] = tag

    def _refuse_locked(self, queue: str) -> None:
        """Raise AMQP's RESOURCE_LOCKED for a queue that is exclusive to another connection."""
        valid_name(queue, what="queue")  # what is no text may not even be hashable
        topology, consumers = self.store.topology, self.store.consumers
        mine = queue in self.connection.exclusive_queues
        owner_id = consumers.worker_id if mine else None
        try:
            topology.refuse_locked(queue, owner_id)
        except QueueLocked:
            # Its owner may have been killed a moment ago, and be started anew under the same name.
            consumers.sweep_all()
            with _as_channel_errors("Channel.queue_declare"):
                topology.refuse_locked(queue, owner_id)

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
        looks_first: bool = True,
    ) -> tuple[list[Delivered], list[int]]:
        """Settle deliveries and take new ones in one transaction; `looks_first` as in the store's.

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
            looks_first=looks_first,
        )
        messages = [Delivered(delivery, self) for delivery in claim.deliveries]
        self._forget([tag for tag, _ in settlements])
        with self._unacked_mutex:
            self._unacked.update(dict.fromkeys(message.delivery_tag for message in messages))
        if messages:
            self.connection.keep_watch()
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
        self._acks.settle()
        if self.store.extend([(message_id, delivery)], seconds):
            raise LeaseLost(message_id, delivery)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:  # noqa: FBT001, FBT002
        """Acknowledge a delivery, or with `multiple` all this channel got up to it.

        A late acknowledgement changes nothing and raises LeaseLost. After one that raised
        Unavailable this channel holds the delivery no longer; its process acknowledges it as soon
        as the file can be written, and if it ends before that, the delivery comes again.

        In the thread of an event loop it is committed with others at the end of the loop's turn
        and raises neither: see `acks`.
        """
        tags = self._up_to(delivery_tag, multiple=multiple)
        if self._acks.hold(tags):
            self._let_go(tags)
        else:
            self._settle_each(tags, Outcome.done(), quiet=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        """Hand a delivery back to its old place, or without `requeue` to the dead letters.

        What is handed back again and again is a dead letter in the end (`max_deliveries`).
        """
        if requeue:
            outcome = Outcome.returned(at_most=self.options.max_deliveries)
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
        """Bound how many messages may be unacknowledged; 0 means the cap `max_prefetch`.

        With `apply_global` all consumers of this channel share the bound; without, each of them
        has its own (as RabbitMQ reads the flag), those that consume already included.
        """
        if apply_global:
            self.prefetch_count = prefetch_count or 0
        else:
            self.consumer_prefetch_count = prefetch_count or 0
        self.connection.make_room()

    def release_all(self) -> None:
        """Hand back everything this channel holds, uncounted; late ones are left alone.

        In a forked child nothing is handed back: what the parent's channel held is the parent's.
        """
        with self._unacked_mutex:
            tags = list(self._unacked)
        tags += self._forget_arrived()
        if self._pid == os.getpid():
            self._release(tags)

    def held_tags(self) -> list[int]:
        """Return the delivery tags of all that this channel holds, handed over or not."""
        with self._unacked_mutex:
            tags = list(self._unacked)
        return tags + [message.delivery_tag for _, message in list(self._arrived)]

    def _up_to(self, delivery_tag: int, *, multiple: bool) -> list[int]:
        if not multiple:
            return [delivery_tag]
        # This channel's own order: tags are no sequence, a requeued message keeps its old id.
        with self._unacked_mutex:
            tags = list(self._unacked)
        return tags[: tags.index(delivery_tag) + 1] if delivery_tag in tags else [delivery_tag]

    def _release_arrived(self) -> None:
        self._release(self._forget_arrived())

    def _forget_arrived(self, consumer_tag: str | None = None) -> list[int]:
        """Drop what has arrived, for one consumer or all; return the tags to hand back."""
        arrived, self._arrived = self._arrived, deque()
        tags = []
        for consumer, message in arrived:
            if consumer_tag not in {None, consumer.tag}:
                self._arrived.append((consumer, message))
            elif not message.is_settled:
                tags.append(message.delivery_tag)
                with self._unacked_mutex:
                    self._given[consumer.tag] -= 1
        return tags

    def _release(self, tags: Sequence[int]) -> None:
        if tags:
            self._settle_each(tags, Outcome.release(), quiet=True)

    def _hand_back(self, tags: Sequence[int], consuming: dict[str, str]) -> None:
        """Release deliveries and count consumers no more; when the file is full or busy, later."""
        releases = [_settlement(tag, Outcome.release()) for tag in tags]
        store, acks = self.store, self._acks

        def work() -> None:
            acks.settle(releases)
            store.consumers.stop_consuming(consuming)

        store.do_or_owe(work)

    def _settle_each(self, tags: Sequence[int], outcome: Outcome, *, quiet: bool) -> None:
        """Settle, now or as soon as the file can be written; raises Unavailable all the same.

        A consumer does not come back to an acknowledgement that failed: it waits for the connection
        to break, and for the message to come again. Here neither happens when the file is full,
        busy or away for a moment only.
        """
        settlements = [_settlement(tag, outcome) for tag in tags]
        acks = self._acks
        try:
            refused = self.store.do_or_owe(lambda: acks.settle(settlements))
        except Unavailable:
            self._let_go(tags)
            raise
        self._let_go(tags)
        if refused and not quiet:
            raise LeaseLost(refused[0].message_id, refused[0].delivery)

    def _let_go(self, tags: Sequence[int]) -> None:
        self._forget(tags)
        if self.connection is not None:
            self.connection.make_room()

    def _forget(self, tags: Sequence[int]) -> None:
        with self._unacked_mutex:
            for tag in tags:
                consumer_tag = self._unacked.pop(tag, None)
                if consumer_tag is not None:
                    self._given[consumer_tag] -= 1

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
        topology, consumers = self.store.topology, self.store.consumers
        self._refuse_locked(name)
        if passive:
            if not topology.has_queue(name):
                text = f"NOT_FOUND - no queue {name!r} in {self.store.path}"
                raise NotFound(text, (50, 10), "Channel.queue_declare")
        elif not topology.declare_queue(
            name,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=arguments,
            owner_id=consumers.worker_id if exclusive else None,
        ):
            self._refuse_locked(name)  # somebody else may have made it meanwhile
        elif exclusive:
            self.connection.exclusive_queues.add(name)
            self.connection.keep_watch()
        return queue_declare_ok_t(name, topology.size(name), consumers.count(name))

    def prepare_queue_arguments(self, arguments: Any, **options: Any) -> Any:
        """Turn Kombu's `expires`, `message_ttl` and so on into AMQP's arguments."""
        return to_rabbitmq_queue_arguments(arguments, **options)

    def queue_delete(
        self,
        queue: str,
        if_unused: bool = False,  # noqa: FBT001, FBT002
        if_empty: bool = False,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> int:
        """Delete a queue, bound or not; return how many messages were ready in it."""
        self._refuse_locked(queue)
        self.connection.exclusive_queues.discard(queue)
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
            self._refuse_locked(queue)
            with _as_channel_errors("Channel.queue_bind"):
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
        # Compared one by one, and before it is made part of a name: it may be anything at all.
        if kind not in EXCHANGE_TYPES and not (passive and exchange):
            text = (
                f"NOT_IMPLEMENTED - exchange type {shown(kind)}; known: {', '.join(EXCHANGE_TYPES)}"
            )
            raise ChannelError(text, (40, 10), "Channel.exchange_declare", "540")
        name = exchange or f"amq.{kind}"
        if passive:
            if self.store.topology.exchange_type(name) is None:
                text = f"NOT_FOUND - no exchange {name!r} in {self.store.path}"
                raise NotFound(text, (50, 10), "Channel.exchange_declare")
            return
        known = self.store.topology.declare_exchange(
            name, kind, durable=durable, auto_delete=auto_delete, arguments=arguments
        )
        if known != kind:
            text = f"PRECONDITION_FAILED - exchange {name!r} is of type {known!r}, not {kind!r}"
            raise PreconditionFailed(text, (40, 10), "Channel.exchange_declare")

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
        """Cancel the consumers and hand back what was not acknowledged; harmless when closed.

        When the file cannot be written now, a thread of this process does it later.
        """
        if self.closed:
            return
        self.closed = True
        consuming = {one.name: one.queue for one in self._by_tag.values()}
        self._by_tag.clear()
        self._consumers.clear()
        with self._unacked_mutex:
            tags = list(self._unacked)
            self._unacked.clear()
            self._given.clear()
        tags += self._forget_arrived()
        try:
            # In a forked child nothing is handed back: see `release_all`.
            if self._pid == os.getpid():
                self._hand_back(tags, consuming)
        finally:
            if self.connection is not None:
                self.connection.close_channel(self)
            self.exchange_types = {}


@contextlib.contextmanager
def _as_channel_errors(method: str) -> Iterator[None]:
    """Say what only we have own errors for as AMQP does: by its reply codes (AMQP 0-9-1, 1.1)."""
    try:
        yield
    except (NotDeclared, QueueLocked, QueueFull) as error:
        raise _as_channel_error(error, method) from error


def _as_channel_error(error: TransportError, method: str) -> ChannelError:
    if isinstance(error, NotDeclared):
        return NotFound(f"NOT_FOUND - {error}", (60, 40), method)
    if isinstance(error, QueueLocked):
        return ResourceLocked(f"RESOURCE_LOCKED - {error}", (50, 10), method)
    # 506; amqp's own class of it is a connection error, which callers would try again.
    return ChannelError(f"RESOURCE_ERROR - {error}", (60, 40), method, "506")


def _settlement(tag: int, outcome: Outcome) -> Settlement:
    return Settlement(*split_tag(tag), outcome)


__all__ = ["MAX_ATTEMPTS_PROPERTY", "UNIQUE_PROPERTY", "Channel", "Consumer"]
