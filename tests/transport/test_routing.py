"""Where messages go: topic patterns, queues' rules, and rows that move to a dead letter exchange."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest

from sqlqueue_transport import routing
from sqlqueue_transport.errors import QueueFull
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Fault, Outcome, Settlement
from sqlqueue_transport.routing import topic_matches
from sqlqueue_transport.store import Store
from tests.support import FakeClock
from tests.transport.rows import attempts_of, claim_one, new, publish, row, rows_of, state_of

REJECTED = Outcome.dead(Fault("Rejected", "no"), cause="rejected")


def declare(store: Store, name: str, **arguments: Any) -> None:
    """Declare a queue; `dead_letter_exchange=…` is its argument `x-dead-letter-exchange`."""
    store.topology.declare_queue(
        name, arguments={f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    )


def reject(store: Store, queue: str) -> int:
    one = claim_one(store, queue)
    assert store.settle([Settlement(one.message_id, one.delivery, REJECTED)]) == []
    return one.message_id


def queue_of(store: Store, message_id: int) -> tuple[str, str]:
    found = row(store, message_id)
    return found["queue"], found["state"]


def deaths_of(store: Store, message_id: int) -> list[tuple[str, str, int]]:
    deaths = json.loads(row(store, message_id)["headers"])["x-death"]
    return [(one["queue"], one["reason"], one["count"]) for one in deaths]


# -- topics -----------------------------------------------------------------------------------------


def _stands_for(pattern: list[str], words: list[str]) -> bool:
    """Say it the slow and obvious way."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_stands_for(pattern[1:], words[n:]) for n in range(len(words) + 1))
    return bool(words) and pattern[0] in {"*", words[0]} and _stands_for(pattern[1:], words[1:])


def test_a_topic_matches_as_amqp_says_for_every_short_pattern_and_key() -> None:
    parts = [one for n in range(4) for one in itertools.product(["a", "b", "*", "#"], repeat=n)]
    keys = [one for n in range(4) for one in itertools.product(["a", "b", ""], repeat=n)]
    for pattern, words in itertools.product(parts, keys):
        if words == ("",):  # reads the same as no word at all
            continue
        expected = _stands_for(list(pattern), list(words))
        assert topic_matches(".".join(pattern), ".".join(words)) == expected, (pattern, words)


def test_a_hostile_pattern_is_matched_at_once() -> None:
    began_s = time.monotonic()
    assert not topic_matches("#.*." * 60 + "x", "a." * 120 + "b")
    assert time.monotonic() - began_s < 5


# -- a queue's own rules ----------------------------------------------------------------------------


def test_the_sooner_of_ttl_and_expiry_counts(store: Store, clock: FakeClock) -> None:
    declare(store, "q", message_ttl=5000)
    ids = [publish(store, "q"), publish(store, "q", expires_at_ms=clock.wall + 3000)]
    ids.append(publish(store, "q", expires_at_ms=clock.wall + 9000))
    found = [row(store, one)["expires_at_ms"] - clock.wall for one in ids]
    assert found == [5000, 3000, 5000]


def test_the_ttl_of_a_scheduled_message_counts_from_when_it_is_due(
    store: Store, clock: FakeClock
) -> None:
    declare(store, "q", message_ttl=5000)
    later = publish(store, "q", due_at_ms=clock.wall + 60_000)
    assert row(store, later)["expires_at_ms"] == clock.wall + 65_000


def test_a_full_queue_drops_its_oldest_and_keeps_it_among_the_dead_letters(store: Store) -> None:
    declare(store, "q", max_length=2)
    ids = [publish(store, "q") for _ in range(4)]
    assert [state_of(store, one).value for one in ids] == ["permanently_failed"] * 2 + [
        "pending"
    ] * 2
    assert row(store, ids[0])["error_type"] == "QueueOverflow"


def test_what_is_no_job_is_dropped_without_a_trace(store: Store) -> None:
    declare(store, "q", max_length=1)
    for _ in range(3):
        publish(store, "q", task=None)
    assert rows_of(store, "SELECT id, state FROM message") == [(3, "pending")]


def test_a_full_queue_may_refuse_instead(store: Store) -> None:
    declare(store, "q", max_length=1, overflow="reject-publish")
    first = publish(store, "q")
    with pytest.raises(QueueFull, match="holds 1 messages and refuses more"):
        publish(store, "q")
    assert rows_of(store, "SELECT id FROM message") == [(first,)]


def test_a_name_that_went_away_takes_nothing_until_it_is_declared_again(
    store: Store, clock: FakeClock
) -> None:
    declare(store, "answers", expires=1000)
    publish(store, "answers")
    clock.advance(1.0)
    store.consumers.sweep()
    assert not store.topology.has_queue("answers")
    (late,) = store.publish([new("answers")]) or []
    assert not late.stored
    assert rows_of(store, "SELECT count(*) FROM message") == [(0,)]
    declare(store, "answers")
    assert publish(store, "answers")


# -- dead letter exchanges --------------------------------------------------------------------------


@pytest.fixture
def dlx(store: Store) -> Store:
    """Let the queue `work` lead its dead letters to the queue `dead`."""
    declare(store, "work", dead_letter_exchange="dlx", max_length=3)
    store.topology.declare_exchange("dlx", "fanout")
    declare(store, "dead")
    store.topology.bind("dead", "dlx", "")
    return store


def test_a_rejected_message_moves_with_its_history(dlx: Store) -> None:
    message_id = publish(dlx, "work")
    assert reject(dlx, "work") == message_id
    assert queue_of(dlx, message_id) == ("dead", "pending")
    assert deaths_of(dlx, message_id) == [("work", "rejected", 1)]
    assert attempts_of(dlx, message_id) == [(1, 1, "rejected", "Rejected")]
    again = claim_one(dlx, "dead")
    assert (again.message_id, again.attempts, again.exchange) == (message_id, 0, "dlx")


def test_a_moved_message_cannot_be_settled_by_who_had_it_before(dlx: Store) -> None:
    publish(dlx, "work")
    old = claim_one(dlx, "work")
    for _ in range(2):
        refused = dlx.settle([Settlement(old.message_id, old.delivery, REJECTED)])
    assert len(refused) == 1


def test_expired_and_overflowing_messages_move_as_well(dlx: Store, clock: FakeClock) -> None:
    expired = publish(dlx, "work", expires_at_ms=clock.wall + 1000)
    clock.advance(1.0)
    dlx.consumers.sweep()
    assert deaths_of(dlx, expired) == [("work", "expired", 1)]
    assert row(dlx, expired)["expires_at_ms"] is None  # else it would expire there, too
    overflowing, *_ = [publish(dlx, "work") for _ in range(4)]
    assert deaths_of(dlx, overflowing) == [("work", "maxlen", 1)]
    assert queue_of(dlx, overflowing) == ("dead", "pending")


def test_several_queues_get_a_copy_each(dlx: Store) -> None:
    declare(dlx, "graveyard")
    dlx.topology.bind("graveyard", "dlx", "")
    message_id = publish(dlx, "work", body=b"x" * 100_000)
    reject(dlx, "work")
    assert queue_of(dlx, message_id) == ("dead", "pending")
    copy = claim_one(dlx, "graveyard")
    assert copy.message_id != message_id
    assert copy.body == b"x" * 100_000
    assert json.loads(copy.headers)["x-death"][0]["queue"] == "work"


def test_an_exchange_that_leads_nowhere_leaves_a_dead_letter_in_place(store: Store) -> None:
    declare(store, "work", dead_letter_exchange="nobody made it")
    message_id = publish(store, "work")
    reject(store, "work")
    assert queue_of(store, message_id) == ("work", "permanently_failed")


def test_a_retry_by_a_waiting_queue_goes_round_and_counts(store: Store, clock: FakeClock) -> None:
    """The way to delay a retry in RabbitMQ: reject into a queue with a TTL that leads back."""
    declare(store, "work", dead_letter_exchange="", dead_letter_routing_key="waiting")
    declare(
        store,
        "waiting",
        message_ttl=1000,
        dead_letter_exchange="",
        dead_letter_routing_key="work",
    )
    message_id = publish(store, "work")
    for round_ in range(1, 4):
        reject(store, "work")
        assert queue_of(store, message_id) == ("waiting", "pending")
        clock.advance(1.0)
        store.consumers.sweep()
        assert queue_of(store, message_id) == ("work", "pending")
        assert deaths_of(store, message_id) == [
            ("waiting", "expired", round_),
            ("work", "rejected", round_),
        ]


def test_a_circle_without_a_rejection_ends(store: Store, clock: FakeClock) -> None:
    declare(store, "a", message_ttl=1000, dead_letter_exchange="", dead_letter_routing_key="b")
    declare(store, "b", message_ttl=1000, dead_letter_exchange="", dead_letter_routing_key="a")
    message_id = publish(store, "a")
    for _ in range(3):
        clock.advance(1.0)
        store.consumers.sweep()
    assert queue_of(store, message_id) == ("b", "expired")


def test_two_full_queues_that_lead_to_each_other_come_to_an_end(store: Store) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        declare(store, name, max_length=1, dead_letter_exchange="", dead_letter_routing_key=other)
    for _ in range(3):
        publish(store, "a")
    states = rows_of(store, "SELECT queue, state FROM message WHERE state = 'pending' ORDER BY 1")
    assert states == [("a", "pending"), ("b", "pending")]


def test_full_queues_that_lead_to_each_other_come_to_an_end_however_long_they_are(
    store: Store,
) -> None:
    """Each drop makes the other too long; one within the other that was deeper than Python's stack."""
    declare(store, "a", max_length=500, dead_letter_exchange="", dead_letter_routing_key="b")
    declare(
        store,
        "b",
        max_length=500,
        max_priority=0,  # so that what arrives is not the next to be dropped
        dead_letter_exchange="",
        dead_letter_routing_key="a",
    )
    store.publish([new("b") for _ in range(500)], durable=False)
    store.publish([new("a", priority=9) for _ in range(500)], durable=False)
    publish(store, "a")
    waiting = rows_of(
        store, "SELECT queue, count(*) FROM message WHERE state = 'pending' GROUP BY queue"
    )
    assert waiting == [("a", 500), ("b", 500)]
    # Each of them was dropped once, which ended with the last whose way round was over.
    ((died,),) = rows_of(store, "SELECT count(*) FROM message WHERE instr(headers, 'x-death')")
    assert died == 1000


def test_a_queue_is_shortened_to_its_length_and_no_further_when_what_it_drops_comes_round(
    store: Store,
) -> None:
    declare(
        store,
        "b",
        max_length=20,
        max_priority=0,
        dead_letter_exchange="",
        dead_letter_routing_key="a",
    )
    store.publish([new("b") for _ in range(20)], durable=False)
    store.publish([new("a", priority=9) for _ in range(50)], durable=False)  # not declared yet
    declare(store, "a", max_length=10, dead_letter_exchange="", dead_letter_routing_key="b")
    publish(store, "a")
    waiting = rows_of(
        store, "SELECT queue, count(*) FROM message WHERE state = 'pending' GROUP BY queue"
    )
    assert waiting == [("a", 10), ("b", 20)]


def test_a_copy_of_a_dead_letter_never_keeps_its_settlement_from_happening(store: Store) -> None:
    """What one queue of the exchange drops for it may fill another one that refuses more."""
    declare(store, "work", dead_letter_exchange="all")
    declare(store, "first")
    declare(store, "full", max_length=1, dead_letter_exchange="", dead_letter_routing_key="last")
    declare(store, "last", max_length=1, overflow="reject-publish")
    store.topology.declare_exchange("all", "fanout")
    for queue in ("first", "full", "last"):
        store.topology.bind(queue, "all", "")
    publish(store, "full")
    message_id = publish(store, "work")
    assert reject(store, "work") == message_id
    assert queue_of(store, message_id) == ("first", "pending")
    waiting = rows_of(store, "SELECT queue FROM message WHERE state = 'pending' ORDER BY queue")
    assert waiting == [("first",), ("full",), ("last",)]


def test_a_time_to_live_does_not_revive_what_expired_in_1970(store: Store) -> None:
    declare(store, "q", message_ttl=5000)
    assert row(store, publish(store, "q", expires_at_ms=0))["expires_at_ms"] == 0


def _lead_to_each_other(store: Store, clock: FakeClock) -> int:
    """Make a message which, leaving its queue as expired, pushes another one out; return that one.

    It moves to `tight`, which drops a crumb to make room. That comes to `work`, which is then too
    long for what became due there meanwhile, and drops the first two: the crumb, and who was next.
    """
    store.consumers.register(name="w", kind="child")  # now: a plain client sweeps when it does
    declare(store, "work", max_length=2, dead_letter_exchange="", dead_letter_routing_key="tight")
    declare(store, "tight", max_length=1, dead_letter_exchange="", dead_letter_routing_key="work")
    publish(store, "tight", priority=9)
    publish(store, "work", priority=9, expires_at_ms=clock.wall + 500)
    due_at_ms = clock.wall + 400
    pushed = publish(store, "work", priority=8, due_at_ms=due_at_ms, expires_at_ms=clock.wall + 600)
    for _ in range(2):
        publish(store, "work", priority=8, due_at_ms=due_at_ms)
    return pushed


def test_a_claim_hands_out_nothing_that_an_expired_message_pushed_out_of_the_queue(
    store: Store, clock: FakeClock
) -> None:
    pushed = _lead_to_each_other(store, clock)
    clock.advance(0.5)
    taken = [one.message_id for one in store.claim(["work"], 4, lease_s=60).deliveries]
    assert len(taken) == 2
    assert [queue_of(store, one) for one in taken] == [("work", "processing")] * 2
    assert queue_of(store, pushed) == ("tight", "pending")


def test_a_sweep_ends_nothing_as_expired_that_was_moved_to_where_it_is_not(
    store: Store, clock: FakeClock
) -> None:
    pushed = _lead_to_each_other(store, clock)
    clock.advance(0.4)
    store.claim(["somewhere else"], 1, lease_s=60)  # which promotes what is due
    clock.advance(0.2)
    store.consumers.sweep()
    assert queue_of(store, pushed) == ("tight", "pending")
    assert deaths_of(store, pushed) == [("work", "maxlen", 1)]


def test_an_old_rejection_does_not_let_a_message_go_round_for_ever(store: Store) -> None:
    """Where a TTL is 0, it would be in one and the same claim."""
    declare(store, "work", message_ttl=0, dead_letter_exchange="", dead_letter_routing_key="work")
    deaths = [{"queue": "elsewhere", "reason": "rejected", "count": 1}]
    message_id = publish(store, "work", headers=json.dumps({"x-death": deaths}))
    assert store.claim(["work"], 1, lease_s=60).deliveries == []
    assert queue_of(store, message_id) == ("work", "expired")


@pytest.mark.parametrize(
    "deaths",
    [
        "no list",
        [1, None],
        [{"queue": 3, "count": "x"}],
        {},
        [{"queue": ["a"], "reason": "expired"}],
        [{"queue": "work", "reason": {}}],
        [{"queue": "work", "reason": "rejected", "count": -5}],
        [{"queue": "work", "reason": "rejected", "count": 10**4300 - 1}],
    ],
)
def test_deaths_that_anybody_may_have_written_do_no_harm(dlx: Store, deaths: Any) -> None:
    message_id = publish(dlx, "work", headers=json.dumps({"x-death": deaths}))
    reject(dlx, "work")
    newest = json.loads(row(dlx, message_id)["headers"])["x-death"][0]
    assert (newest["queue"], newest["reason"], newest["count"]) == ("work", "rejected", 1)
    assert queue_of(dlx, message_id) == ("dead", "pending")


@pytest.mark.parametrize("headers", ["", "[]", "{", "[" * 100_000])
def test_a_message_whose_headers_cannot_be_read_is_a_dead_letter_in_place(
    dlx: Store, headers: str
) -> None:
    message_id = publish(dlx, "work", headers=headers)
    reject(dlx, "work")
    assert queue_of(dlx, message_id) == ("work", "permanently_failed")


def test_headers_that_can_just_be_read_but_not_written_keep_a_message_in_place(
    dlx: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(routing.json, "dumps", refuse)
    message_id = publish(dlx, "work")
    reject(dlx, "work")
    assert queue_of(dlx, message_id) == ("work", "permanently_failed")


def test_a_dead_letter_is_not_moved_to_a_queue_without_a_name(store: Store) -> None:
    """The default exchange takes the routing key for a name, and a fanout needs no key."""
    store.topology.declare_exchange("all", "fanout")
    declare(store, "work", dead_letter_exchange="")
    store.topology.bind("work", "all", "")
    store.publish([new(None, exchange="all", routing_key="")])
    message_id = reject(store, "work")
    assert queue_of(store, message_id) == ("work", "permanently_failed")


def test_a_message_that_always_comes_back_is_dead_in_the_end(store: Store) -> None:
    message_id = publish(store)
    for number in range(1, 4):
        one = claim_one(store)
        outcome = Outcome.returned(at_most=3)
        assert store.settle([Settlement(one.message_id, one.delivery, outcome)]) == []
        expected = State.PENDING if number < 3 else State.PERMANENTLY_FAILED
        assert state_of(store, message_id) is expected
    assert row(store, message_id)["error_type"] == "TooManyDeliveries"


def test_a_limit_of_deliveries_leads_to_the_dead_letter_exchange(dlx: Store) -> None:
    message_id = publish(dlx, "work")
    one = claim_one(dlx, "work")
    dlx.settle([Settlement(one.message_id, one.delivery, Outcome.returned(at_most=1))])
    assert deaths_of(dlx, message_id) == [("work", "delivery_limit", 1)]


def test_what_was_handed_back_too_often_may_be_dropped_where_it_is_moved_to(store: Store) -> None:
    """What is no job is deleted there, and the settlement must not look for it any more."""
    declare(store, "work", dead_letter_exchange="", dead_letter_routing_key="nothing")
    declare(store, "nothing", max_length=0)
    publish(store, "work", task=None)
    one = claim_one(store, "work")
    returned = Settlement(one.message_id, one.delivery, Outcome.returned(at_most=1))
    assert store.settle([returned]) == []
    assert rows_of(store, "SELECT * FROM message") == []
