"""What the store is to do, said with dictionaries: the model of `machine`.

It knows the promises and the table of transitions, and nothing of SQL, transactions or processes.
Every method does what the store's verb of that name is to do, and returns what that is to answer.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlqueue_transport.lifecycle import TRANSITIONS, Event, State
from sqlqueue_transport.messages import NewMessage
from tests.support import FakeClock

QUEUES = ("a", "b", "c")
EXCHANGE = "all"  # a fanout, to all three
DEFAULT_MAX_ATTEMPTS = 5
MOST_RETURNS = 3  # `max_deliveries` of who says so
LATER = (State.SCHEDULED, State.FAILED)
SETTLING = {
    "done": Event.COMPLETE,
    "retry": Event.RETRY,
    "dead": Event.EXHAUST,
    "rejected": Event.EXHAUST,
    "release": Event.RELEASE,
    "returned": Event.RELEASE,
    "cancelled": Event.ABORT,
}

Delivery = tuple[int, int]
# (message id, whether its attempt counted, whether it is dead, whether it is cancelled)
Lost = tuple[int, bool, bool, bool]


class QueueIsFull(Exception):
    """A publish is refused, and all of its transaction with it."""


@dataclass(frozen=True)
class Rules:
    """Be the arguments a queue was declared with; `dead_letter` is (exchange, routing key)."""

    max_length: int | None = None
    refuses: bool = False
    ttl_ms: int | None = None
    max_priority: int | None = None
    dead_letter: tuple[str, str | None] | None = None

    def arguments(self) -> dict[str, object]:
        """Return them as AMQP has them."""
        exchange, key = self.dead_letter or (None, None)
        given = {
            "x-max-length": self.max_length,
            "x-overflow": "reject-publish" if self.refuses else None,
            "x-message-ttl": self.ttl_ms,
            "x-max-priority": self.max_priority,
            "x-dead-letter-exchange": exchange,
            "x-dead-letter-routing-key": key,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class Message:
    """Be what the model knows of one message."""

    id: int
    queue: str
    priority: int
    state: State
    is_job: bool
    key: str | None = None
    due_ms: int | None = None
    expires_ms: int | None = None
    max_attempts: int | None = None
    exchange: str = ""
    routing_key: str = ""
    attempts: int = 0
    run: int = 1
    delivery: int = 0
    holder: int | None = None
    lease_until_ms: int | None = None
    losses: int = 0  # counted ones of this run
    returns: int = 0  # that nobody can know of whether it was started
    records: int = 0  # rows of the table of attempts
    result: str | None = None
    is_asked_to_stop: bool = False
    kill_at_ms: int | None = None
    deaths: list[tuple[str, str]] = field(default_factory=list)  # (queue, reason), newest first


@dataclass(frozen=True)
class Holder:
    """Be a registered process, as its row says."""

    kind: str
    boot: str
    most_returns: int


class Model:
    """Be the file."""

    def __init__(self, clock: FakeClock, rules: Mapping[str, Rules]) -> None:
        self.clock = clock
        self.rules = rules
        self.messages: dict[int, Message] = {}
        self.holders: dict[int, Holder] = {}
        self.paused: set[str] = set()
        self.last_id = 0
        self.completed_for_another = 0
        self.steps: Counter[tuple[State, Event]] = Counter()
        self._grown: dict[str, None] = {}  # a set that knows which came last

    def _step(self, message: Message, event: Event) -> None:
        """Do a step of the table; what is no job leaves no trace where a job would be kept."""
        self.steps[message.state, event] += 1
        message.state = TRANSITIONS[message.state, event]
        if not message.is_job and event in {Event.COMPLETE, Event.EXPIRE, Event.OVERFLOW}:
            del self.messages[message.id]

    def waiting(self, queue: str) -> list[Message]:
        """Return what is ready in a queue, the next one first."""
        return sorted(
            (m for m in self.messages.values() if m.state is State.PENDING and m.queue == queue),
            key=lambda message: (-message.priority, message.id),
        )

    def running(self) -> list[Message]:
        return [one for one in self.messages.values() if one.state is State.PROCESSING]

    # -- publish --------------------------------------------------------------------------------

    def publish(self, batch: Sequence[NewMessage]) -> list[tuple[int, bool]]:
        """Store all or, raising QueueIsFull, nothing; return (id, whether it was stored) of each."""
        before = copy.deepcopy(self.messages), self.last_id
        answers = []
        try:
            for new in batch:
                queues = QUEUES if new.queue is None else (new.queue,)
                first, *_ = [self._published(new, queue) for queue in queues]
                answers.append(first)
                self._shorten()
        except QueueIsFull:
            self._grown.clear()
            self.messages, self.last_id = before
            raise
        return answers

    def _published(self, new: NewMessage, queue: str) -> tuple[int, bool]:
        known = next(
            (m for m in self.messages.values() if new.unique_key and m.key == new.unique_key), None
        )
        if known is not None:
            if self._is_full(queue):
                raise QueueIsFull
            return known.id, False
        now_ms = self.clock.wall
        is_later = new.due_at_ms is not None and new.due_at_ms > now_ms
        message = Message(
            0,
            queue,
            new.priority,
            State.SCHEDULED if is_later else State.PENDING,
            new.task is not None,
            key=new.unique_key,
            due_ms=new.due_at_ms,
            expires_ms=new.expires_at_ms,
            max_attempts=new.max_attempts,
            exchange=new.exchange,
            routing_key=new.routing_key,
        )
        return self._insert(message), True

    def _insert(self, message: Message) -> int:
        """Store one message by its queue's rules."""
        if self._is_full(message.queue):
            raise QueueIsFull
        rules = self.rules[message.queue]
        if rules.max_priority is not None:
            message.priority = min(message.priority, rules.max_priority)
        if rules.ttl_ms is not None:
            is_later = message.state is State.SCHEDULED
            since_ms = message.due_ms if is_later and message.due_ms else self.clock.wall
            ends = [since_ms + rules.ttl_ms]
            message.expires_ms = min(
                [*ends, *([] if message.expires_ms is None else [message.expires_ms])]
            )
        self.last_id += 1
        message.id = self.last_id
        self.messages[message.id] = message
        self._grown[message.queue] = None
        return message.id

    def _is_full(self, queue: str) -> bool:
        rules = self.rules[queue]
        return (
            rules.refuses
            and rules.max_length is not None
            and len(self.waiting(queue)) >= rules.max_length
        )

    def _shorten(self) -> None:
        """Drop the next ones of every queue that got more than it may hold, newest growth first."""
        while self._grown:
            queue, _ = self._grown.popitem()
            most = self.rules[queue].max_length
            if most is None:
                continue
            ready = self.waiting(queue)
            for message in ready[: max(0, len(ready) - most)]:
                self._end(message, Event.OVERFLOW, "maxlen")

    # -- dead letters ---------------------------------------------------------------------------

    def _end(self, message: Message, event: Event, why: str) -> None:
        """Let a pending message go: to its dead letter exchange, or to its end."""
        if not self._dead_letter(message, why):
            self._step(message, event)

    def _dead_letter(self, message: Message, why: str) -> bool:
        dead_letter = self.rules[message.queue].dead_letter
        if dead_letter is None:
            return False
        exchange, key = dead_letter
        key = message.routing_key if key is None else key
        targets = QUEUES if exchange == EXCHANGE else (key,) if key else ()
        death = message.queue, why
        deaths = [death, *(one for one in message.deaths if one != death)]
        targets = tuple(
            one for one in targets if not _goes_round(deaths, one) and not self._is_full(one)
        )
        if not targets:
            return False
        first, *others = targets
        moved = {"exchange": exchange, "routing_key": key, "deaths": deaths, "due_ms": None}
        for queue in others:
            new = Message(0, queue, message.priority, State.PENDING, message.is_job)
            self._insert(replace(new, max_attempts=message.max_attempts, **moved))
        self._step(message, Event.DEAD_LETTER)
        rules = self.rules[first]
        most = message.priority if rules.max_priority is None else rules.max_priority
        ttl_ms = rules.ttl_ms
        for name, value in {
            **moved,
            "queue": first,
            "priority": min(message.priority, most),
            "run": message.run + 1,
            "attempts": 0,
            "losses": 0,
            "returns": 0,
            "expires_ms": None if ttl_ms is None else self.clock.wall + ttl_ms,
            "is_asked_to_stop": False,
            "kill_at_ms": None,
        }.items():
            setattr(message, name, value)
        self._grown[first] = None
        return True

    # -- claim and settle -----------------------------------------------------------------------

    def has_work(self, queues: Collection[str]) -> bool:
        return bool(self._due()) or any(
            self.waiting(queue) for queue in queues if queue not in self.paused
        )

    def _due(self) -> list[Message]:
        return [
            one
            for one in self.messages.values()
            if one.state in LATER and one.due_ms is not None and one.due_ms <= self.clock.wall
        ]

    def claim(
        self, queues: Sequence[str], limit: int, holder: int, lease_s: float
    ) -> list[Message]:
        """Promote what is due and return what was taken, each with its new delivery."""
        for message in self._due():
            self._step(message, Event.PROMOTE)
        taken: list[Message] = []
        for queue in queues:
            while queue not in self.paused and len(taken) < limit and self.waiting(queue):
                message = self.waiting(queue)[0]
                if _is_over(message.expires_ms, self.clock.wall):
                    self._end(message, Event.EXPIRE, "expired")
                    self._shorten()
                    continue
                self._step(message, Event.CLAIM)
                message.delivery += 1
                message.holder = holder
                message.lease_until_ms = self.clock.lease + round(lease_s * 1000)
                taken.append(message)
        return taken

    def held(self, delivery: Delivery) -> Message | None:
        """Return the message if this delivery still has the right to settle it."""
        message = self.messages.get(delivery[0])
        if (
            message is not None
            and message.state is State.PROCESSING
            and message.delivery == delivery[1]
            and not _is_over(message.lease_until_ms, self.clock.lease)
        ):
            return message
        return None

    def settle(self, delivery: Delivery, outcome: str, in_s: float = 0) -> bool:
        """Settle; say whether it counted."""
        message = self.held(delivery)
        if message is None:
            return False
        message.lease_until_ms = None
        is_orderly = outcome in {"release", "returned"}  # and says nothing of an attempt
        if message.is_asked_to_stop and outcome != "done":
            outcome = "cancelled"
        elif outcome == "returned":
            if message.returns + 1 < MOST_RETURNS:
                message.returns += 1
            else:
                outcome, is_orderly = "too many", False
        message.attempts += not is_orderly
        message.records += not is_orderly and outcome != "done"
        if outcome == "retry":
            message.due_ms = self.clock.wall + round(in_s * 1000)
        if outcome == "done":
            message.result = None
        self._step(message, SETTLING.get(outcome, Event.EXHAUST))
        why = {"rejected": "rejected", "too many": "delivery_limit"}.get(outcome)
        if why is not None:
            self._dead_letter(message, why)
            self._shorten()
        return True

    def extend(self, delivery: Delivery, seconds: float) -> bool:
        message = self.held(delivery)
        if message is None or message.lease_until_ms is None:
            return False
        message.lease_until_ms = max(
            message.lease_until_ms, self.clock.lease + round(seconds * 1000)
        )
        return True

    # -- what dies and what grows old -----------------------------------------------------------

    def end_worker(
        self,
        holder: int,
        notes: Mapping[Delivery, int | None],
        ended: Mapping[Delivery, str | None],
        *,
        orderly: bool = False,
    ) -> list[Lost]:
        """Take from a process what it holds.

        `notes` are the starts known of, with their limits; `ended` the ends, with their results.
        """
        held = [one for one in self.running() if one.holder == holder]
        held = self._not_ended(sorted(held, key=lambda message: message.id), ended)
        return [self._lose(one, notes, orderly=orderly) for one in held]

    def end_overdue(
        self, notes: Mapping[Delivery, int | None], ended: Mapping[Delivery, str | None]
    ) -> list[Lost]:
        over = [m for m in self.running() if _is_over(m.lease_until_ms, self.clock.lease)]
        over.sort(key=lambda message: (message.lease_until_ms, message.id))
        return [self._lose(one, notes) for one in self._not_ended(over, ended)]

    def _not_ended(
        self, held: Sequence[Message], ended: Mapping[Delivery, str | None]
    ) -> list[Message]:
        """Complete the jobs that had ended well, whatever else was asked of them; return the rest."""
        left = []
        for message in held:
            delivery = message.id, message.delivery
            if delivery not in ended or not message.is_job:
                left.append(message)
                continue
            message.lease_until_ms = None
            message.attempts += 1
            message.result = ended[delivery]
            self._step(message, Event.COMPLETE)
            self.completed_for_another += 1
        return left

    def has_times(self) -> bool:
        """Say whether anything waits for a time of the wall clock."""
        return any(
            one.state in LATER
            or (one.state is State.PENDING and one.expires_ms is not None)
            or (one.state is State.PROCESSING and one.kill_at_ms is not None)
            for one in self.messages.values()
        )

    def has_overdue(self) -> bool:
        """Say whether a sweep finds a lease that is over, or something that has expired."""
        return any(
            _is_over(one.lease_until_ms, self.clock.lease)
            or (one.state is State.PENDING and _is_over(one.expires_ms, self.clock.wall))
            for one in self.messages.values()
        )

    def expire(self) -> None:
        """End what has expired, also in queues that nobody claims from."""
        old = [
            (m.expires_ms, m.id)
            for m in self.messages.values()
            if m.state is State.PENDING and _is_over(m.expires_ms, self.clock.wall)
        ]
        for _, message_id in sorted(old):
            # What was dropped or moved meanwhile, to make room for another, has not expired there.
            message = self.messages.get(message_id)
            if (
                message is not None
                and message.state is State.PENDING
                and _is_over(message.expires_ms, self.clock.wall)
            ):
                self._end(message, Event.EXPIRE, "expired")
                self._shorten()

    def _lose(
        self, message: Message, notes: Mapping[Delivery, int | None], *, orderly: bool = False
    ) -> Lost:
        delivery = message.id, message.delivery
        counted = not orderly and delivery in notes
        holder = self.holders[message.holder or 0]
        is_blind = (
            not orderly
            and not counted
            and (holder.kind == "client" or holder.boot != self.clock.boot_id)
        )
        message.lease_until_ms = None
        message.attempts += counted
        message.records += counted
        if message.is_asked_to_stop:
            self._step(message, Event.ABORT)
            return message.id, counted, False, True
        if counted:
            allowed = notes[delivery]
            if allowed is None:
                allowed = message.max_attempts
            if allowed is None:
                allowed = DEFAULT_MAX_ATTEMPTS
            if 0 < allowed <= message.attempts:  # 0: no limit
                self._step(message, Event.EXHAUST)
                return message.id, True, True, False
            wait_s = 0 if not message.losses else min(2 ** (message.losses - 1), 60)
            message.due_ms = self.clock.wall + wait_s * 1000
            message.losses += 1
            self._step(message, Event.RETRY)
        elif is_blind and 0 < holder.most_returns <= message.returns + 1:
            self._step(message, Event.EXHAUST)
            self._dead_letter(message, "delivery_limit")
            self._shorten()
            return delivery[0], False, True, False
        else:
            message.returns += is_blind
            self._step(message, Event.RELEASE)
        return message.id, counted, False, False

    # -- operators ------------------------------------------------------------------------------

    def act(
        self, message_id: int, event: Event, before: State, kill_in_s: float | None = None
    ) -> State | None:
        """Act on a message seen in a state; return its new state, None when it was skipped."""
        message = self.messages.get(message_id)
        if message is None or message.state is not before or (before, event) not in TRANSITIONS:
            return None
        if event is Event.TERMINATE:
            if self.holders[message.holder or 0].kind == "client":
                return None  # it would not look
            message.is_asked_to_stop = True
            if kill_in_s is not None:
                kill_at_ms = self.clock.wall + round(kill_in_s * 1000)
                message.kill_at_ms = min(message.kill_at_ms or kill_at_ms, kill_at_ms)
        message.records += event is Event.REQUEUE and before is State.DONE
        self._step(message, event)
        if event is not Event.TERMINATE:
            message.lease_until_ms = None
        if event is Event.REQUEUE:
            message.run += 1
            message.attempts = message.losses = message.returns = 0
            message.due_ms = message.expires_ms = message.kill_at_ms = None
            message.result = None
            message.is_asked_to_stop = False
        return message.state

    def to_kill(self) -> set[Delivery]:
        """Return the deliveries whose process is to be killed now."""
        return {
            (m.id, m.delivery) for m in self.running() if _is_over(m.kill_at_ms, self.clock.wall)
        }

    def forget(self, gone: Collection[int]) -> None:
        """Delete messages, as a purge or the retention does."""
        for message_id in gone:
            del self.messages[message_id]


def _is_over(until_ms: int | None, now_ms: int) -> bool:
    return until_ms is not None and until_ms <= now_ms


def _goes_round(deaths: Sequence[tuple[str, str]], queue: str) -> bool:
    """Say whether a message died in this queue before, and was not rejected anywhere since."""
    for number, (where, _) in enumerate(deaths):
        if where == queue:
            return all(why != "rejected" for _, why in deaths[: number + 1])
    return False
