"""The store against its model: whatever is done in whatever order, both end alike.

Consumers are stores of their own on one file. A crash is what the kernel makes of it: the lock on
the slot is given back, and nothing else is tidied up. A reboot is the same for all at once, under a
new boot id and with a lease clock that starts anew; what the presence file noted may be lost by it,
or the file itself. Deliveries that were ever handed out are kept for ever, so that every settlement
is also tried late, twice, and by somebody else.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from sqlqueue_transport import pruning
from sqlqueue_transport.errors import QueueFull
from sqlqueue_transport.lifecycle import FINISHED, TRANSITIONS, WAITING, Event, State
from sqlqueue_transport.messages import Fault, NewMessage, Outcome, Settlement
from sqlqueue_transport.presence import ENDED_NOTES, LONGEST_NOTED_RESULT_BYTES, Ended
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.model import (
    EXCHANGE,
    MOST_RETURNS,
    QUEUES,
    Delivery,
    Holder,
    Lost,
    Message,
    Model,
    QueueIsFull,
    Rules,
)
from tests.transport.rows import count_in_small_portions, rows_of, vanish

LEASE_S = 10
LONGEST_RESULT = f'"{"x" * (LONGEST_NOTED_RESULT_BYTES - 2)}"'
FAULT = Fault("ValueError", "no")
OPERATORS = (Event.CANCEL, Event.TERMINATE, Event.FAIL, Event.REQUEUE)
OUTCOMES = {
    "done": lambda _: Outcome.done(),
    "retry": lambda in_s: Outcome.retry(FAULT, in_s=in_s),
    "dead": lambda _: Outcome.dead(FAULT),
    "rejected": lambda _: Outcome.dead(FAULT, cause="rejected"),
    "release": lambda _: Outcome.release(),
    "returned": lambda _: Outcome.returned(at_most=MOST_RETURNS),
    "cancelled": lambda _: Outcome.cancelled(FAULT),
}

outcomes = st.sampled_from([*OUTCOMES, "retry", "rejected"])
results = st.sampled_from([None, '"x"', LONGEST_RESULT])  # of an end that is noted
waits = st.sampled_from([0, 3, 12])  # of a retry, in seconds
# None first and often: what has no rule is the most of what there is.
rules = st.builds(
    Rules,
    max_length=st.sampled_from([None, None, None, None, 0, 1, 3]),
    refuses=st.sampled_from([False, False, True]),
    ttl_ms=st.sampled_from([None, None, None, None, 0, 5000]),
    max_priority=st.sampled_from([None, None, 0, 1]),
    dead_letter=st.sampled_from(
        [None, ("", "a"), ("", "b"), ("", "c"), ("", None), (EXCHANGE, None)]
    ),
)
# What is published, with times in seconds from now; None is no such time.
calls = st.fixed_dictionaries(
    {
        "queue": st.sampled_from([*QUEUES, *QUEUES, None]),
        "priority": st.integers(0, 2),
        "due_in_s": st.sampled_from([None, None, -1, 0, 3, 12]),
        "expires_in_s": st.sampled_from([None, None, None, 0, 4]),
        "max_attempts": st.sampled_from([None, 0, 1, 2]),
        "unique_key": st.sampled_from([None, None, None, "k1", "k2"]),
        "task": st.sampled_from(["t", "t", "t", None]),
    }
)


@dataclass
class Consumer:
    """Be one process: its store, its slot, and the starts it has noted there by place."""

    store: Store
    worker_id: int
    slot: int
    notes: dict[int, tuple[Delivery, int | None]] = field(default_factory=dict)
    # And the ends it has noted, by number, with their results: of so many the newest ones count.
    ends: dict[int, tuple[Delivery, str | None]] = field(default_factory=dict)

    def end(self, number: int, delivery: Delivery, result: str | None) -> None:
        self.ends[number] = delivery, result
        self.ends.pop(number - ENDED_NOTES, None)


class StoreMachine(RuleBasedStateMachine):
    """Do to the store and to the model the same things."""

    deliveries = Bundle("deliveries")

    home: ClassVar[Path | None] = None  # where the files lie; None: among the temporary ones
    done: ClassVar[Counter[object]] = Counter()  # what all machines of this process went through

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="sqlqueue-model-", dir=self.home))
        self.clock = FakeClock()
        self.model = Model(self.clock, {})
        self.consumers: list[Consumer] = []
        self.kinds = ["child", "child"]
        self.dead: list[Consumer] = []  # their slots say so
        self.unseen: list[Consumer] = []  # only their rows do: the presence file was lost
        self.done["examples"] += 1

    @initialize(
        given=st.tuples(rules, rules, rules),
        kind=st.sampled_from(["child", "child", "client"]),
        first=st.lists(calls, min_size=3, max_size=8),
    )
    def open(self, given: tuple[Rules, ...], kind: str, first: list[dict[str, Any]]) -> None:
        """Declare the queues and publish something; the second consumer may be none of ours."""
        self.kinds[1] = kind
        self.model.rules = dict(zip(QUEUES, given, strict=True))
        self.consumers = [self._new_consumer(who) for who in (0, 1)]
        # So that most of what is done here is done to messages old enough to be in the tally.
        count_in_small_portions(self.store)
        topology = self.store.topology
        topology.declare_exchange(EXCHANGE, "fanout")
        for queue, its in self.model.rules.items():
            topology.declare_queue(queue, arguments=its.arguments())
            topology.bind(queue, EXCHANGE, "")
        for one in first:
            self.publish([one])

    def teardown(self) -> None:
        for one in self.consumers:
            one.store.close()
        shutil.rmtree(self.directory)
        self.done.update(self.model.steps)
        self.done["ends settled by others"] += self.model.completed_for_another

    def _new_consumer(self, who: int) -> Consumer:
        kind = self.kinds[who]
        store = Store(self.directory / "queue.db", clock=self.clock)
        store.consumers.max_deliveries = MOST_RETURNS
        worker_id = store.consumers.register(name="w", kind=kind)
        self.model.holders[worker_id] = Holder(kind, self.clock.boot_id, MOST_RETURNS)
        if kind == "client":  # it sweeps by itself: nobody else may be there to do it
            self._model_sweep(by_rows=True)
        slot = store.consumers._slot
        assert slot is not None
        return Consumer(store, worker_id, slot)

    @property
    def store(self) -> Store:
        return self.consumers[0].store

    # -- publish --------------------------------------------------------------------------------

    @rule(batch=st.lists(calls, min_size=1, max_size=3))
    def publish(self, batch: list[dict[str, Any]]) -> None:
        """Publish in one transaction."""
        new = [self._message(**one) for one in batch]
        expected: list[tuple[int, bool]] | None
        try:
            expected = self.model.publish(new)
        except QueueIsFull:
            expected = None
        try:
            answers = self.store.publish(new, durable=False)
        except QueueFull:
            assert expected is None
            self.done["refused publishes"] += 1
        else:
            assert [(one.message_id, one.stored) for one in answers] == expected
            self.done["publishes"] += len(new)

    def _message(
        self, *, queue: str | None, due_in_s: int | None, expires_in_s: int | None, **fields: Any
    ) -> NewMessage:
        now_ms = self.clock.wall
        return NewMessage(
            b"[]",
            queue,
            exchange=EXCHANGE if queue is None else "",
            due_at_ms=None if due_in_s is None else now_ms + due_in_s * 1000,
            expires_at_ms=None if expires_in_s is None else now_ms + expires_in_s * 1000,
            **fields,
        )

    # -- claim and settle -----------------------------------------------------------------------

    @precondition(lambda self: self._waiting())
    @rule(
        target=deliveries,
        who=st.integers(0, 1),
        queues=st.sampled_from([QUEUES, QUEUES[::-1], *((one,) for one in QUEUES)]),
        limit=st.integers(1, 4),
        no_ack=st.sampled_from([False, False, False, False, False, True]),
    )
    def claim(self, who: int, queues: tuple[str, ...], limit: int, *, no_ack: bool) -> Any:
        return self._claim(who, queues, limit, [], no_ack=no_ack)

    @precondition(lambda self: self.model.running())
    @rule(
        target=deliveries,
        who=st.integers(0, 1),
        which=st.integers(0, 5),
        outcome=outcomes,
        in_s=waits,
    )
    def settle_and_claim(self, who: int, which: int, outcome: str, in_s: int) -> Any:
        """Settle what runs and claim the next in one transaction, as workers do."""
        message = self._running(which)
        return self._claim(who, QUEUES, 1, [((message.id, message.delivery), outcome, in_s)])

    @precondition(lambda self: self._waiting())
    @rule(target=deliveries, noted=st.integers(0, 4), allowed=st.sampled_from([None, None, 0, 1]))
    def work(self, noted: int, allowed: int | None) -> Any:
        """Claim as a worker with many children does, of which some have started."""
        claimed = self._claim(0, QUEUES, 4, [])
        for which in range(min(noted, len(self.model.running()))):
            self.start(which, allowed)
        return claimed

    @precondition(lambda self: self._waiting())
    @rule(
        target=deliveries,
        who=st.integers(0, 1),
        ended=st.integers(1, 4),
        results=st.lists(results, min_size=4, max_size=4),
        is_killed=st.booleans(),
    )
    def work_in_a_batch(
        self, who: int, ended: int, results: list[str | None], *, is_killed: bool
    ) -> Any:
        """Claim some and end the first of them, all by notes; perhaps that is the end of it."""
        before = {one.id for one in self.model.running()}
        claimed = self._claim(who, QUEUES, 4, [])
        taken = [one for one in self.model.running() if one.id not in before]
        for message, result in zip(taken[:ended], results, strict=False):
            self._note_ended(message, result)
        if is_killed:
            self._die(who)
            self.consumers[who] = self._new_consumer(who)
        return claimed

    def _waiting(self) -> bool:
        return any(one.state in WAITING for one in self.model.messages.values())

    def _claim(
        self,
        who: int,
        queues: tuple[str, ...],
        limit: int,
        settled: list[tuple[Delivery, str, int]],
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

        refused = sum(not self.model.settle(*one) for one in settled)
        assert len(claim.refused) == refused
        self._count_settled(len(settled), refused)
        expected: list[Message] = []
        if settled or self.model.has_work(queues):
            expected = self.model.claim(queues, limit, consumer.worker_id, LEASE_S)
        found = [
            (one.message_id, one.delivery, one.queue, one.attempts) for one in claim.deliveries
        ]
        assert found == [(one.id, one.delivery, one.queue, one.attempts) for one in expected]
        if no_ack:
            for one in expected:
                assert self.model.settle((one.id, one.delivery), "done")
        self.done["deliveries"] += len(found)
        return multiple(*(one[:2] for one in found))

    @precondition(lambda self: self.model.running())
    @rule(
        delivery=deliveries,
        outcome=outcomes,
        in_s=waits,
        who=st.integers(0, 1),
    )
    def settle(self, delivery: Delivery, outcome: str, in_s: int, who: int) -> None:
        """Often late: the bundle keeps every delivery there ever was."""
        refused = self.consumers[who].store.settle([_settlement(delivery, outcome, in_s)])
        assert bool(refused) != self.model.settle(delivery, outcome, in_s)
        self._count_settled(1, len(refused))
        for consumer in self.consumers:
            for place, (noted, _) in list(consumer.notes.items()):
                if noted == delivery:
                    consumer.store.consumers.note_end(place)
                    del consumer.notes[place]

    def _count_settled(self, tried: int, refused: int) -> None:
        self.done["settlements"] += tried - refused
        self.done["settlements refused"] += refused

    @precondition(lambda self: self.model.running())
    @rule(
        which=st.integers(0, 5),
        outcome=outcomes,
        in_s=waits,
        later_s=st.sampled_from([0, 0, LEASE_S - 0.001, LEASE_S]),
        who=st.integers(0, 1),
    )
    def settle_running(self, which: int, outcome: str, in_s: int, later_s: float, who: int) -> None:
        """Settle what runs now, in time or just too late, before anybody has swept."""
        message = self._running(which)
        self.clock.advance(later_s)
        self.settle((message.id, message.delivery), outcome, in_s, who)

    def _running(self, which: int) -> Message:
        running = self.model.running()
        return running[which % len(running)]

    @precondition(lambda self: self.model.running())
    @rule(delivery=deliveries, seconds=st.sampled_from([1, 30]), who=st.integers(0, 1))
    def extend(self, delivery: Delivery, seconds: int, who: int) -> None:
        """Extend a delivery, and look whether it should go on, as who runs it does."""
        store = self.consumers[who].store
        is_held = self.model.extend(delivery, seconds)
        assert store.extend([delivery], seconds) == ([] if is_held else [delivery])
        message = self.model.held(delivery)
        goes_on = message is not None and not message.is_asked_to_stop
        assert store.running.to_stop([delivery]) == (set() if goes_on else {delivery})

    @precondition(lambda self: self.model.running())
    @rule(who=st.integers(0, 1), seconds=st.sampled_from([1, 30]))
    def extend_all(self, who: int, seconds: int) -> None:
        """Extend what a process holds, as its supervisor does."""
        consumer = self.consumers[who]
        held = [one for one in self.model.running() if one.holder == consumer.worker_id]
        expected = sum(self.model.extend((one.id, one.delivery), seconds) for one in held)
        assert self.store.consumers.extend_worker([consumer.worker_id], seconds) == expected

    # -- processes ------------------------------------------------------------------------------

    @precondition(lambda self: self.model.running())
    @rule(which=st.integers(0, 5), allowed=st.sampled_from([None, None, 0, 1, 3]))
    def start(self, which: int, allowed: int | None) -> None:
        """Note, in the slot of whoever holds it, that the task was started."""
        self._start(self._running(which), allowed)

    def _start(self, message: Message, allowed: int | None) -> None:
        for consumer in self.consumers:
            if consumer.worker_id == message.holder:
                place = next(
                    (p for p, (noted, _) in consumer.notes.items() if noted[0] == message.id),
                    next(p for p in range(40) if p not in consumer.notes),
                )
                consumer.store.consumers.note_start(
                    place, message.id, message.delivery, 0, max_attempts=allowed
                )
                consumer.notes[place] = (message.id, message.delivery), allowed

    @precondition(lambda self: self.model.running())
    @rule(which=st.integers(0, 5), result=results)
    def note_ended(self, which: int, result: str | None) -> None:
        """Note that a start ended well, in the slot of whoever holds it; nothing is settled yet."""
        self._note_ended(self._running(which), result)

    def _note_ended(self, message: Message, result: str | None) -> None:
        delivery = message.id, message.delivery
        self._start(message, None)
        for consumer in self.consumers:
            if consumer.worker_id == message.holder:
                place = next(p for p, (noted, _) in consumer.notes.items() if noted == delivery)
                number = max(consumer.ends, default=-1) + 1
                consumer.store.consumers.note_ended(place, number, Ended(*delivery, result))
                del consumer.notes[place]
                consumer.end(number, delivery, result)
                self.done["ends noted"] += 1

    @precondition(lambda self: self.model.running())
    @rule(who=st.integers(0, 1), in_order=st.booleans())
    def end_process(self, who: int, *, in_order: bool) -> None:
        """Let a process end, by itself or by a kill, and another start in its place.

        One of ours sweeps nothing yet when it starts.
        """
        if in_order:
            consumer = self.consumers[who]
            consumer.store.close()
            ends = dict(consumer.ends.values())
            self.model.end_worker(consumer.worker_id, {}, ends, orderly=True)
        else:
            self._die(who)
        self.consumers[who] = self._new_consumer(who)

    def _die(self, who: int) -> None:
        self.done["crashes"] += 1
        store = self.consumers[who].store
        vanish(store)
        self.dead.append(self.consumers[who])
        store.consumers.bell.close()
        store.consumers.detach()
        store.database.close()

    @precondition(lambda self: self.model.running())
    @rule(
        down_s=st.sampled_from([0, 60]),
        lease_ms=st.sampled_from([1000, 2_000_000]),
        presence=st.sampled_from(["whole", "no notes", "lost"]),
    )
    def reboot(self, down_s: int, lease_ms: int, presence: str) -> None:
        """Let every process die, and the lease clock start anew, below or above where it was."""
        self.done["reboots"] += 1
        file = self.store.consumers.presence
        if presence == "no notes":
            for one in (*self.consumers, *self.dead):
                file.clear_notes(one.slot)
                file._clear_ended(one.slot)
                one.notes.clear()
                one.ends.clear()
        path = file.path
        for who in (0, 1):
            self._die(who)
        if presence == "lost":
            path.unlink()
            for one in self.dead:
                one.notes.clear()
                one.ends.clear()
            self.unseen += self.dead
            self.dead.clear()
        self.clock.boot_id = f"boot-{self.done['reboots'] + 1}"
        self.clock.wall += down_s * 1000
        self.clock.lease = lease_ms
        self.consumers = [self._new_consumer(who) for who in (0, 1)]

    @precondition(lambda self: self.dead or self.unseen or self.model.has_overdue())
    @rule(who=st.integers(0, 1), by_rows=st.booleans())
    def sweep(self, who: int, *, by_rows: bool) -> None:
        consumers = self.consumers[who].store.consumers
        found = consumers.sweep_all() if by_rows else consumers.sweep()
        lost = [(one.message_id, one.counted, one.dead, one.cancelled) for one in found]
        assert sorted(lost) == sorted(self._model_sweep(by_rows=by_rows))
        self.done["jobs swept"] += len(lost)

    def _model_sweep(self, *, by_rows: bool) -> list[Lost]:
        gone = [*self.unseen, *self.dead] if by_rows else self.dead
        # By their rows in the order of their ids, by their slots in the order of these.
        gone.sort(key=lambda one: one.worker_id if by_rows else one.slot)
        lost: list[Lost] = []
        for one in gone:
            lost += self.model.end_worker(
                one.worker_id, dict(one.notes.values()), dict(one.ends.values())
            )
        self.dead.clear()
        if by_rows:
            self.unseen.clear()
        notes = [note for one in self.consumers for note in one.notes.values()]
        ends = [end for one in self.consumers for end in one.ends.values()]
        lost += self.model.end_overdue(dict(notes), dict(ends))
        self.model.expire()
        return lost

    # -- operators ------------------------------------------------------------------------------

    @precondition(lambda self: self.model.messages)
    @rule(
        back=st.integers(0, 12),
        event=st.sampled_from(OPERATORS),
        seen=st.sampled_from([None, *State]),
    )
    def act(self, back: int, event: Event, seen: State | None) -> None:
        """Act on some message, as it is or as somebody saw it earlier; or on one that never was."""
        message_id = self.model.last_id + 1 - back
        message = self.model.messages.get(message_id)
        self._act(message_id, event, seen or (message.state if message else State.PENDING), None)

    def _act(self, message_id: int, event: Event, seen: State, kill_in_s: int | None) -> None:
        acting = self.store.acting
        (acted,) = acting.act(event, [(message_id, seen)], actor="op", kill_in_s=kill_in_s)
        assert acted.after is self.model.act(message_id, event, seen, kill_in_s)
        self.done["actions"] += 1

    @precondition(lambda self: self.model.messages)
    @rule(
        kind=st.integers(0, 20),
        which=st.integers(0, 5),
        kill_in_s=st.sampled_from([None, 0, 4]),
    )
    def act_now(self, kind: int, which: int, kill_in_s: int | None) -> None:
        """Do some step that an operator can do now: each kind of step is as likely as another."""
        there: dict[tuple[State, Event], list[int]] = {}
        for message in self.model.messages.values():
            for event in OPERATORS:
                if (message.state, event) in TRANSITIONS:
                    there.setdefault((message.state, event), []).append(message.id)
        (seen, event), ids = [*there.items()][kind % len(there)]
        self._act(ids[which % len(ids)], event, seen, kill_in_s)

    @precondition(lambda self: self.model.paused or self.model.running())
    @rule(queue=st.sampled_from(QUEUES), is_pause=st.sampled_from([False, False, True]))
    def pause(self, queue: str, *, is_pause: bool) -> None:
        """Pause or resume a queue, which is there since `open`."""
        paused = self.model.paused
        pausing = self.store.pausing
        changed = (pausing.pause if is_pause else pausing.resume)(queue, actor="op")
        assert changed == (is_pause != (queue in paused))
        (paused.add if is_pause else paused.discard)(queue)

    @precondition(lambda self: len(self.model.messages) > 12)
    @rule(what=st.sampled_from([*QUEUES, *sorted(FINISHED)]))
    def remove(self, what: str | State) -> None:
        """Purge a queue, or prune what has ended in a state as when it has grown old."""
        if isinstance(what, State):
            gone = [one.id for one in self.model.messages.values() if one.state is what]
            values = {"state": what.value, "before_ms": 2**62, "limit": 1000}
            removed = self.store.database.write(
                lambda c: c.execute(pruning._PRUNE_MESSAGES, values).rowcount
            )
        else:
            gone = [one.id for one in self.model.waiting(what)]
            removed = self.store.topology.purge(what)
        assert removed == len(gone)
        self.model.forget(gone)

    # -- time -----------------------------------------------------------------------------------

    @precondition(lambda self: self.model.running() or self.model.has_times())
    @rule(seconds=st.sampled_from([0.001, 1, 1, 4, LEASE_S]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.model.has_times())
    @rule(seconds=st.sampled_from([-3.16e8, -3600, -5, 5, 3600, 3.16e8]))
    def jump_wall(self, seconds: float) -> None:
        self.done["clock jumps"] += 1
        self.clock.jump_wall(seconds)

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def file_and_model_are_alike(self) -> None:
        if not self.consumers:
            return
        self.done["steps"] += 1
        found = rows_of(
            self.store,
            """
            SELECT m.id, m.queue, m.priority, m.state, m.attempts, m.run, m.delivery,
              m.lease_until_ms, m.due_at_ms, m.expires_at_ms, m.worker_id, m.unnoted_losses,
              m.stop_asked_at_ms IS NOT NULL, m.kill_at_ms, m.exchange, m.routing_key, m.task,
              (SELECT count(*) FROM attempt AS a WHERE a.message_id = m.id), m.result,
              m.headers
            FROM message AS m ORDER BY m.id
            """,
        )
        expected = [
            (
                m.id, m.queue, m.priority, m.state.value, m.attempts, m.run, m.delivery,
                m.lease_until_ms, m.due_ms, m.expires_ms, m.holder, m.returns,
                m.is_asked_to_stop, m.kill_at_ms, m.exchange, m.routing_key,
                "t" if m.is_job else None, m.records, m.result,
                m.deaths,
            )
            for _, m in sorted(self.model.messages.items())
        ]  # fmt: skip
        assert [(*row[:-1], _deaths(row[-1])) for row in found] == expected

    @invariant()
    def tally_and_tail_are_what_is_there(self) -> None:
        if not self.consumers:
            return
        expected = dict.fromkeys(State, 0)
        for message in self.model.messages.values():
            if message.is_job or message.state is State.PERMANENTLY_FAILED:
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
        kills = self.store.running.to_kill()
        assert {one for found in kills.values() for one in found} == self.model.to_kill()
        nameless = (
            "SELECT id FROM message WHERE state = 'permanently_failed' AND error_type IS NULL"
        )
        assert rows_of(self.store, nameless) == []  # every dead letter says why
        broken = self.store.reading.broken_invariants()
        # A consumer may settle as often as it likes: how many attempts a job is worth is
        # the business of whoever runs it.
        broken.pop("jobs with more attempts than allowed", None)
        assert broken == {}


def _settlement(delivery: Delivery, outcome: str, in_s: int) -> Settlement:
    return Settlement(*delivery, OUTCOMES[outcome](in_s))


def _deaths(headers: str) -> list[tuple[str, str]]:
    """Return what a row's headers say of its deaths, as the model has them."""
    return [(one["queue"], one["reason"]) for one in json.loads(headers).get("x-death", ())]


def at_length(examples: int, steps: int) -> settings:
    """Return the settings for so many examples of so many steps each."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
