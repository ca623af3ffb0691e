"""The store against a dictionary: whatever is done in whatever order, both end alike.

Consumers are stores of their own on one file. A crash is what the kernel makes of it: the lock on
the slot is given back, and nothing else is tidied up. Deliveries that were ever handed out are kept
for ever, so that every settlement is also tried late, twice, and by somebody else.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sqlqueue_transport import pruning
from sqlqueue_transport.lifecycle import FINISHED, TRANSITIONS, WAITING, Event, State
from sqlqueue_transport.messages import Fault, NewMessage, Outcome, Settlement
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import count_in_small_portions, rows_of, vanish

QUEUES = ("a", "b")
DEFAULT_MAX_ATTEMPTS = 5
LEASE_S = 10
FAULT = Fault("ValueError", "no")
LATER = (State.SCHEDULED, State.FAILED)


@dataclass
class Message:
    """Be what the model knows of one message."""

    id: int
    queue: str
    priority: int
    state: State
    key: str | None = None
    due_ms: int | None = None
    expires_ms: int | None = None
    max_attempts: int | None = None
    attempts: int = 0
    run: int = 1
    delivery: int = 0
    holder: int | None = None
    lease_until_ms: int | None = None
    losses: int = 0  # in this run
    records: int = 0  # rows of the table of attempts
    is_asked_to_stop: bool = False
    history: list[str] = field(default_factory=list)


@dataclass
class Consumer:
    """Be one process: its store, and the starts it has noted by place."""

    store: Store
    worker_id: int
    notes: dict[int, tuple[int, int]] = field(default_factory=dict)


class StoreModel(RuleBasedStateMachine):
    """Do to the store and to a dictionary the same things."""

    deliveries = Bundle("deliveries")
    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="sqlqueue-model-"))
        self.clock = FakeClock()
        self.model: dict[int, Message] = {}
        self.consumers: list[Consumer] = []
        self.dead: list[Consumer] = []
        self.paused: set[str] = set()

    @initialize(target=messages, priorities=st.lists(st.integers(0, 2), min_size=1, max_size=6))
    def open(self, priorities: list[int]) -> Any:
        self.consumers = [self._new_consumer() for _ in range(2)]
        # So that most of what is done here is done to messages old enough to be in the tally.
        count_in_small_portions(self.store)
        for queue in QUEUES:
            self.store.topology.declare_queue(queue)
        return multiple(
            *(
                self._published(NewMessage(b"[]", "a", task="t", priority=priority))
                for priority in priorities
            )
        )

    def teardown(self) -> None:
        for one in self.consumers:
            one.store.close()
        shutil.rmtree(self.directory)

    def _new_consumer(self) -> Consumer:
        store = Store(self.directory / "queue.db", clock=self.clock)
        return Consumer(store, store.consumers.register(name="w", kind="child"))

    @property
    def store(self) -> Store:
        return self.consumers[0].store

    # -- publish --------------------------------------------------------------------------------

    @rule(
        target=messages,
        queue=st.sampled_from(QUEUES),
        priority=st.integers(0, 2),
        delay_s=st.sampled_from([None, -1, 0, 3, 12]),
        expires_s=st.sampled_from([None, None, 0, 4]),
        max_attempts=st.sampled_from([None, 0, 1, 2]),
        key=st.sampled_from([None, None, "k1", "k2"]),
        count=st.integers(1, 3),
    )
    def publish(
        self,
        queue: str,
        priority: int,
        delay_s: int | None,
        expires_s: int | None,
        max_attempts: int | None,
        key: str | None,
        count: int,
    ) -> Any:
        now_ms = self.clock.wall
        message = NewMessage(
            b"[]",
            queue,
            task="t",
            priority=priority,
            unique_key=key,
            due_at_ms=None if delay_s is None else now_ms + delay_s * 1000,
            expires_at_ms=None if expires_s is None else now_ms + expires_s * 1000,
            max_attempts=max_attempts,
        )
        return multiple(*{self._published(message) for _ in range(count)})

    def _published(self, message: NewMessage) -> int:
        answers = self.store.publish([message], durable=False)
        assert answers is not None
        (answer,) = answers
        key = message.unique_key
        known = next((one for one in self.model.values() if key and one.key == key), None)
        assert answer.stored == (known is None)
        if known is not None:
            assert answer.message_id == known.id
            return known.id
        assert answer.message_id > max(self.model, default=0)
        is_later = message.due_at_ms is not None and message.due_at_ms > self.clock.wall
        self.model[answer.message_id] = Message(
            answer.message_id,
            str(message.queue),
            message.priority,
            State.SCHEDULED if is_later else State.PENDING,
            key=key,
            due_ms=message.due_at_ms,
            expires_ms=message.expires_at_ms,
            max_attempts=message.max_attempts,
        )
        return answer.message_id

    # -- claim and settle -----------------------------------------------------------------------

    @rule(
        target=deliveries,
        who=st.integers(0, 1),
        queues=st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a")]),
        limit=st.integers(1, 3),
        no_ack=st.sampled_from([False, False, False, True]),
    )
    def claim(self, who: int, queues: tuple[str, ...], limit: int, *, no_ack: bool) -> Any:
        return self._claim(who, queues, limit, [], no_ack=no_ack)

    @rule(
        target=deliveries,
        who=st.integers(0, 1),
        settled=deliveries,
        outcome=st.sampled_from(["done", "retry", "dead", "release", "cancelled"]),
        in_s=st.sampled_from([0, 3]),
    )
    def settle_and_claim(self, who: int, settled: tuple[int, int], outcome: str, in_s: int) -> Any:
        return self._claim(who, QUEUES, 1, [(settled, outcome, in_s)])

    def _claim(
        self,
        who: int,
        queues: tuple[str, ...],
        limit: int,
        settled: list[tuple[tuple[int, int], str, int]],
        *,
        no_ack: bool = False,
    ) -> Any:
        consumer = self.consumers[who]
        claim = consumer.store.claim(
            queues,
            limit,
            lease_s=LEASE_S,
            settlements=[_settlement(*one) for one in settled],
            no_ack=no_ack,
        )

        assert len(claim.refused) == sum(not self._settled(*one) for one in settled)
        due = [m for m in self.model.values() if m.state in LATER and m.due_ms <= self.clock.wall]
        open_queues = tuple(queue for queue in queues if queue not in self.paused)
        ready = [
            m for m in self.model.values() if m.state is State.PENDING and m.queue in open_queues
        ]
        expected = []
        if settled or due or ready:
            for message in due:
                message.state = State.PENDING
            expected = self._take(open_queues, limit)
        assert [one.message_id for one in claim.deliveries] == [one.id for one in expected]
        for one, message in zip(claim.deliveries, expected, strict=True):
            message.delivery += 1
            message.holder = consumer.worker_id
            assert (one.delivery, one.attempts) == (message.delivery, message.attempts)
            if no_ack:
                message.state = State.DONE
                message.attempts += 1
            else:
                message.state = State.PROCESSING
                message.lease_until_ms = self.clock.lease + LEASE_S * 1000
        return multiple(*((one.message_id, one.delivery) for one in claim.deliveries))

    def _take(self, queues: tuple[str, ...], limit: int) -> list[Message]:
        """Return what a claim takes: by queue, priority and age; what expired in front ends."""
        taken: list[Message] = []
        for queue in queues:
            ready = sorted(
                (m for m in self.model.values() if m.state is State.PENDING and m.queue == queue),
                key=lambda message: (-message.priority, message.id),
            )
            for message in ready:
                if len(taken) == limit:
                    break
                if message.expires_ms is not None and message.expires_ms <= self.clock.wall:
                    message.state = State.EXPIRED
                else:
                    taken.append(message)
        return taken

    @rule(
        delivery=deliveries,
        outcome=st.sampled_from(["done", "retry", "dead", "release", "cancelled"]),
        in_s=st.sampled_from([0, 3]),
        who=st.integers(0, 1),
    )
    def settle(self, delivery: tuple[int, int], outcome: str, in_s: int, who: int) -> None:
        """Often late: the bundle keeps every delivery there ever was."""
        refused = self.consumers[who].store.settle([_settlement(delivery, outcome, in_s)])
        assert bool(refused) != self._settled(delivery, outcome, in_s)
        for consumer in self.consumers:
            for place, noted in list(consumer.notes.items()):
                if noted == delivery:
                    consumer.store.consumers.note_end(place)
                    del consumer.notes[place]

    @precondition(lambda self: self._running())
    @rule(
        which=st.integers(0, 5),
        outcome=st.sampled_from(["done", "retry", "dead", "release", "cancelled"]),
        in_s=st.sampled_from([0, 3]),
        later_s=st.sampled_from([0, 0, LEASE_S - 0.001, LEASE_S]),
        who=st.integers(0, 1),
    )
    def settle_running(self, which: int, outcome: str, in_s: int, later_s: float, who: int) -> None:
        """Settle what runs now, in time or just too late, before anybody has swept."""
        running = self._running()
        message = running[which % len(running)]
        self.clock.advance(later_s)
        self.settle((message.id, message.delivery), outcome, in_s, who)

    def _running(self) -> list[Message]:
        return [one for one in self.model.values() if one.state is State.PROCESSING]

    def _settled(self, delivery: tuple[int, int], outcome: str, in_s: int) -> bool:
        """Settle in the model; say whether it counted."""
        message = self._held(delivery)
        if message is None:
            return False
        message.lease_until_ms = None
        if outcome != "release":
            message.attempts += 1
        if outcome in {"retry", "dead", "cancelled"}:
            message.records += 1
        if message.is_asked_to_stop and outcome != "done":
            outcome = "cancelled"
        if outcome == "retry":
            message.due_ms = self.clock.wall + in_s * 1000
        event = {
            "done": Event.COMPLETE,
            "retry": Event.RETRY,
            "dead": Event.EXHAUST,
            "release": Event.RELEASE,
            "cancelled": Event.ABORT,
        }[outcome]
        message.state = TRANSITIONS[message.state, event]
        return True

    def _held(self, delivery: tuple[int, int]) -> Message | None:
        """Return the message if this delivery still has the right to settle it."""
        message = self.model.get(delivery[0])
        if (
            message is not None
            and message.state is State.PROCESSING
            and message.delivery == delivery[1]
            and message.lease_until_ms is not None
            and message.lease_until_ms > self.clock.lease
        ):
            return message
        return None

    @rule(delivery=deliveries, seconds=st.sampled_from([1, 30]), who=st.integers(0, 1))
    def extend(self, delivery: tuple[int, int], seconds: int, who: int) -> None:
        refused = self.consumers[who].store.extend([delivery], seconds)
        message = self._held(delivery)
        assert refused == ([] if message else [delivery])
        if message is not None and message.lease_until_ms is not None:
            message.lease_until_ms = max(message.lease_until_ms, self.clock.lease + seconds * 1000)

    # -- processes ------------------------------------------------------------------------------

    @precondition(lambda self: self._running())
    @rule(which=st.integers(0, 5))
    def start(self, which: int) -> None:
        """Note, in the slot of whoever holds it, that the task was started."""
        running = self._running()
        message = running[which % len(running)]
        delivery = (message.id, message.delivery)
        for consumer in self.consumers:
            if consumer.worker_id == message.holder:
                place = next(
                    (p for p, noted in consumer.notes.items() if noted[0] == delivery[0]),
                    next(p for p in range(48) if p not in consumer.notes),
                )
                consumer.store.consumers.note_start(place, *delivery, 0)
                consumer.notes[place] = delivery

    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        """Let a process die and another start in its place, which sweeps nothing yet."""
        store = self.consumers[who].store
        vanish(store)
        self.dead.append(self.consumers[who])
        store.consumers.bell.close()
        store.consumers.detach()
        store.database.close()
        self.consumers[who] = self._new_consumer()

    @rule(who=st.integers(0, 1))
    def sweep(self, who: int) -> None:
        lost = {
            (one.message_id, one.counted, one.dead, one.cancelled)
            for one in self.consumers[who].store.consumers.sweep()
        }
        expected = set()
        notes = {noted for one in (*self.consumers, *self.dead) for noted in one.notes.values()}
        gone = {one.worker_id for one in self.dead}
        for message in self.model.values():
            if message.state is State.PROCESSING and message.lease_until_ms is not None:
                is_over = message.lease_until_ms <= self.clock.lease
                if message.holder in gone or is_over:
                    counted = (message.id, message.delivery) in notes
                    self._lose(message, counted=counted)
                    dead = message.state is State.PERMANENTLY_FAILED
                    cancelled = message.state is State.CANCELLED
                    expected.add((message.id, counted, dead, cancelled))
        # Also in queues that nobody claims from.
        for message in self.model.values():
            is_old = message.expires_ms is not None and message.expires_ms <= self.clock.wall
            if message.state is State.PENDING and is_old:
                message.state = State.EXPIRED
        self.dead.clear()
        assert lost == expected

    @rule(who=st.integers(0, 1))
    def leave(self, who: int) -> None:
        """End a process in order: what it held is released uncounted."""
        consumer = self.consumers[who]
        consumer.store.close()
        for message in self.model.values():
            if message.state is State.PROCESSING and message.holder == consumer.worker_id:
                self._lose(message, counted=False)
        self.consumers[who] = self._new_consumer()

    def _lose(self, message: Message, *, counted: bool) -> None:
        message.lease_until_ms = None
        if counted:
            message.attempts += 1
            message.records += 1
        if message.is_asked_to_stop:
            message.state = State.CANCELLED
            return
        if not counted:
            message.state = State.PENDING
            return
        allowed = DEFAULT_MAX_ATTEMPTS if message.max_attempts is None else message.max_attempts
        if 0 < allowed <= message.attempts:  # 0: no limit
            message.state = State.PERMANENTLY_FAILED
            return
        message.state = State.FAILED
        wait_s = 0 if not message.losses else min(2 ** (message.losses - 1), 60)
        message.due_ms = self.clock.wall + wait_s * 1000
        message.losses += 1

    # -- operators ------------------------------------------------------------------------------

    @rule(
        message_id=messages,
        event=st.sampled_from([Event.CANCEL, Event.TERMINATE, Event.FAIL, Event.REQUEUE]),
        seen=st.sampled_from([None, None, *State]),
    )
    def act(self, message_id: int, event: Event, seen: State | None) -> None:
        """Act on the state as it is, or as somebody saw it earlier."""
        message = self.model.get(message_id)
        before = seen or (message.state if message else State.PENDING)
        (acted,) = self.store.acting.act(event, [(message_id, before)], actor="op")
        after = TRANSITIONS.get((before, event))
        if message is None or message.state is not before or after is None:
            assert acted.after is None
            return
        assert acted.after is after
        message.state = after
        if event is Event.TERMINATE:
            message.is_asked_to_stop = True
            return
        message.lease_until_ms = None
        if event is Event.REQUEUE:
            message.is_asked_to_stop = False
            if before is State.DONE:
                message.records += 1
            message.run += 1
            message.attempts = 0
            message.losses = 0
            message.due_ms = message.expires_ms = None

    @precondition(lambda self: self._running())
    @rule(which=st.integers(0, 5))
    def terminate(self, which: int) -> None:
        """Ask something that runs to stop."""
        running = self._running()
        message = running[which % len(running)]
        self.act(message.id, Event.TERMINATE, None)

    @rule(delivery=deliveries, who=st.integers(0, 1))
    def ask(self, delivery: tuple[int, int], who: int) -> None:
        """Look, as who runs it does, whether a delivery should stop."""
        message = self._held(delivery)
        goes_on = message is not None and not message.is_asked_to_stop
        found = self.consumers[who].store.running.to_stop([delivery])
        assert found == (set() if goes_on else {delivery})

    @rule(queue=st.sampled_from(QUEUES), is_pause=st.booleans())
    def pause(self, queue: str, *, is_pause: bool) -> None:
        """Pause or resume a queue, which is there since `open`."""
        pausing = self.store.pausing
        changed = (pausing.pause if is_pause else pausing.resume)(queue, actor="op")
        assert changed == (is_pause != (queue in self.paused))
        (self.paused.add if is_pause else self.paused.discard)(queue)

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        gone = [m.id for m in self.model.values() if m.state is State.PENDING and m.queue == queue]
        assert self.store.topology.purge(queue) == len(gone)
        for message_id in gone:
            del self.model[message_id]

    @rule(state=st.sampled_from([State.DONE, State.PERMANENTLY_FAILED, State.CANCELLED]))
    def prune(self, state: State) -> None:
        """Delete what has ended in a state, as when it has grown old."""
        values = {"state": state.value, "before_ms": 2**62, "limit": 1000}
        gone = [one.id for one in self.model.values() if one.state is state]
        assert self.store.database.write(
            lambda c: c.execute(pruning._PRUNE_MESSAGES, values).rowcount
        ) == len(gone)
        for message_id in gone:
            del self.model[message_id]

    @precondition(lambda self: self.model)
    @rule(message_id=consumes(messages))
    def forget(self, message_id: int) -> None:
        """Let operators lose interest, so that they look at the others."""

    # -- time -----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 1, 4, LEASE_S]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-3.16e8, -3600, -5, 5, 3600, 3.16e8]))
    def jump_wall(self, seconds: float) -> None:
        self.clock.jump_wall(seconds)

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def file_and_dictionary_are_alike(self) -> None:
        if not self.consumers:
            return
        found = rows_of(
            self.store,
            """
            SELECT m.id, m.queue, m.priority, m.state, m.attempts, m.run, m.delivery,
              m.lease_until_ms, m.due_at_ms, m.worker_id, m.stop_asked_at_ms IS NOT NULL,
              (SELECT count(*) FROM attempt AS a WHERE a.message_id = m.id)
            FROM message AS m ORDER BY m.id
            """,
        )
        expected = [
            (
                m.id, m.queue, m.priority, m.state.value, m.attempts, m.run, m.delivery,
                m.lease_until_ms, m.due_ms, m.holder, m.is_asked_to_stop, m.records,
            )
            for _, m in sorted(self.model.items())
        ]  # fmt: skip
        assert found == expected

    @invariant()
    def tally_and_tail_are_what_is_there(self) -> None:
        if not self.consumers:
            return
        expected = dict.fromkeys(State, 0)
        for message in self.model.values():
            expected[message.state] += 1
        assert self.store.reading.counts().states == expected
        assert self.store.reading.counting.wrong_tallies() == 0
        ((old,),) = rows_of(self.store, "SELECT coalesce(sum(messages), 0) FROM tally")
        ((there,),) = rows_of(
            self.store, "SELECT count(*) FROM message WHERE id < (SELECT upto FROM counted)"
        )
        assert old == there

    @invariant()
    def no_promise_is_broken(self) -> None:
        if not self.consumers:
            return
        for message in self.model.values():
            assert message.state in {*WAITING, *FINISHED, State.PROCESSING}
        # What a dead worker held is swept, and only then is everything in order.
        if not self.dead:
            broken = self.store.reading.broken_invariants()
            # A consumer may settle as often as it likes: how many attempts a job is worth is
            # the business of whoever runs it.
            broken.pop("jobs with more attempts than allowed", None)
            assert broken == {}


def _settlement(delivery: tuple[int, int], outcome: str, in_s: int) -> Settlement:
    return Settlement(
        *delivery,
        {
            "done": Outcome.done(),
            "retry": Outcome.retry(FAULT, in_s=in_s),
            "dead": Outcome.dead(FAULT),
            "release": Outcome.release(),
            "cancelled": Outcome.cancelled(FAULT),
        }[outcome],
    )


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)  # it takes seconds, but a failure is first made small
def test_the_store_is_a_dictionary_that_survives() -> None:
    _run(60, 40)


@pytest.mark.slow
def test_the_store_is_a_dictionary_that_survives_at_length() -> None:
    _run(400, 60)
