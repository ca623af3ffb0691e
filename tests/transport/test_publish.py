"""Publishing: what is stored, once, together, and what is refused before it is."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport import routing
from sqlqueue_transport.errors import InvalidMessage, NotDeclared
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import NewMessage, Outcome, Published, TickOf
from sqlqueue_transport.routing import INLINE_BODY_BYTES
from sqlqueue_transport.store import Store
from tests.support import FakeClock, finish, run_python
from tests.transport.rows import bind, claim_one, ended, new, publish, row, rows_of, state_of

SURROGATE = "\udcff"


def _count(store: Store) -> int:
    return int(rows_of(store, "SELECT count(*) FROM message")[0][0])


# -- one message ------------------------------------------------------------------------------------


def test_a_message_comes_back_as_it_was_published(store: Store) -> None:
    given = NewMessage(
        body=b"\x00\xff body",
        queue="Größe \u202e gnp",
        routing_key="Größe \u202e gnp",
        content_type="application/x-own",
        content_encoding="binary",
        headers=json.dumps({"a": "\x00\ud800", "n": 10**300, "deep": [[[]]]}),
        properties='{"correlation_id":"7"}',
        priority=4,
        job_id="x" * 300,
        task="<script>alert(1)</script>",
        max_attempts=3,
    )
    store.publish([given])

    (taken,) = store.claim([given.queue or ""], 5, lease_s=60).deliveries

    for name in (
        "body", "queue", "routing_key", "content_type", "content_encoding", "headers",
        "properties", "priority", "job_id", "task", "max_attempts",
    ):  # fmt: skip
        assert getattr(taken, name) == getattr(given, name), name
    assert (taken.delivery, taken.attempts) == (1, 0)


def test_a_nul_in_a_name_comes_back(store: Store) -> None:
    publish(store, job_id="a\0b", task="t\0")
    taken = claim_one(store)
    assert (taken.job_id, taken.task) == ("a\0b", "t\0")


@pytest.mark.parametrize(
    "size", [0, 1, INLINE_BODY_BYTES, INLINE_BODY_BYTES + 1, 3_000_000], ids=str
)
def test_a_body_of_any_size_is_intact_and_large_ones_lie_apart(store: Store, size: int) -> None:
    body = bytes(index * 7 % 256 for index in range(1000)) * (size // 1000 + 1)
    message_id = publish(store, body=body[:size])

    is_apart = size > INLINE_BODY_BYTES
    assert (row(store, message_id)["body"] is None) == is_apart
    assert len(rows_of(store, "SELECT * FROM body")) == is_apart
    taken = claim_one(store)
    assert taken.body == body[:size]
    store.settle([ended(taken, Outcome.done())])
    detail = store.reading.job(message_id)
    assert detail is not None
    assert detail.body == body[:size]


def test_an_ack_of_a_large_message_does_not_write_its_body_again(
    store: Store, tmp_path: Path
) -> None:
    publish(store, body=b"x" * 2_000_000)
    taken = claim_one(store)
    wal = tmp_path / "queue.db-wal"
    before = wal.stat().st_size
    store.settle([ended(taken, Outcome.done())])
    assert wal.stat().st_size - before < 100_000


def test_due_later_is_scheduled_and_due_now_is_pending(store: Store, clock: FakeClock) -> None:
    later = publish(store, due_at_ms=clock.wall + 1)
    now = publish(store, due_at_ms=clock.wall)
    past = publish(store, due_at_ms=-62_135_596_800_000)  # the year 1
    assert [state_of(store, one) for one in (later, now, past)] == [
        State.SCHEDULED,
        State.PENDING,
        State.PENDING,
    ]


def test_publishing_nothing_is_no_fault(store: Store) -> None:
    assert store.publish([]) == []


# -- once -------------------------------------------------------------------------------------------


def test_a_unique_key_is_stored_once_and_answers_with_the_first(store: Store) -> None:
    first = store.publish([new(unique_key="invoice-7")])
    again = store.publish([new(unique_key="invoice-7"), new(unique_key="invoice-8")])
    assert first is not None
    assert again is not None
    assert first == [Published(first[0].message_id, stored=True)]
    assert again[0] == Published(first[0].message_id, stored=False)
    assert again[1].stored
    assert _count(store) == 2


def test_a_unique_key_is_stored_once_even_after_the_job_is_done(store: Store) -> None:
    message_id = publish(store, unique_key="invoice-7")
    store.settle([ended(claim_one(store), Outcome.done())])

    assert store.publish([new(unique_key="invoice-7", body=b"another")]) == [
        Published(message_id, stored=False)
    ]
    assert state_of(store, message_id) is State.DONE
    assert _count(store) == 1


def test_a_second_body_under_a_taken_key_leaves_nothing_behind(store: Store) -> None:
    publish(store, unique_key="k", body=b"x" * 20_000)
    publish(store, unique_key="k", body=b"y" * 20_000)
    assert len(rows_of(store, "SELECT * FROM body")) == 1
    assert claim_one(store).body == b"x" * 20_000


def test_a_job_id_alone_never_deduplicates(store: Store) -> None:
    """Celery's own retries publish the same id again while the original is not acknowledged."""
    publish(store, job_id="same")
    publish(store, job_id="same")
    assert _count(store) == 2


PUBLISH_KEYS = """
    import sys
    from sqlqueue_transport import Store, NewMessage
    store = Store(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(200):
        (one,) = store.publish(
            [NewMessage(sys.argv[2].encode(), "q", unique_key=f"key-{number}")], durable=False
        )
        print(one.message_id, int(one.stored), flush=True)
    store.close()
"""


def test_two_processes_that_race_for_the_same_keys_store_each_once(
    store: Store, tmp_path: Path
) -> None:
    racers = [run_python(PUBLISH_KEYS, tmp_path / "queue.db", name) for name in "ab"]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = [
        [tuple(map(int, line.split())) for line in finish(racer).splitlines()] for racer in racers
    ]

    assert _count(store) == 200
    for one, other in zip(*answers, strict=True):
        assert one[0] == other[0]  # both are told the same message
        assert one[1] + other[1] == 1  # and one of them that it is his


# -- together ---------------------------------------------------------------------------------------


def test_a_batch_is_one_transaction(store: Store) -> None:
    before = store.database.write_transactions
    store.publish([new() for _ in range(100)])
    assert store.database.write_transactions == before + 1
    assert _count(store) == 100


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_with_one_message_that_cannot_be_stored_stores_none(
    store: Store, place: int
) -> None:
    batch = [new(), new(body=b"x" * 20_000)]
    batch.insert(place, new(task=SURROGATE))
    with pytest.raises(InvalidMessage):
        store.publish_tick(batch, TickOf("every-5s", 5000, "beat-1"))
    assert _count(store) == 0
    assert rows_of(store, "SELECT * FROM body") == []
    assert store.schedules.done_ms("every-5s") is None


def test_a_publish_after_a_refused_one_works(store: Store) -> None:
    with pytest.raises(InvalidMessage):
        publish(store, priority=11)
    assert state_of(store, publish(store)) is State.PENDING


# -- routing ----------------------------------------------------------------------------------------


def test_an_exchange_leads_to_every_queue_bound_with_the_key(store: Store) -> None:
    for queue in ("a", "b"):
        bind(store, queue, "news", "sport")
    bind(store, "c", "news", "weather")

    (answer,) = store.publish([new(None, exchange="news", routing_key="sport")]) or []

    assert rows_of(store, "SELECT queue FROM message ORDER BY queue") == [("a",), ("b",)]
    assert row(store, answer.message_id)["queue"] == "a"


def test_a_message_no_queue_is_bound_for_is_stored_nowhere(store: Store) -> None:
    store.topology.declare_exchange("news", "direct")
    before = store.database.write_transactions
    assert store.publish([new(None, exchange="news", routing_key="nobody")]) == [
        Published(0, stored=False)
    ]
    assert store.database.write_transactions == before  # nobody waits for the writer for nothing
    assert _count(store) == 0


def test_what_led_to_a_queue_a_moment_ago_is_not_asked_again(store: Store) -> None:
    bind(store, "a", "news", "sport")
    message = new(None, exchange="news", routing_key="sport")
    store.publish([message])
    before = store.database.read_transactions
    store.publish([message])
    assert store.database.read_transactions == before
    assert _count(store) == 2

    store.topology.unbind("a", "news", "sport")
    assert store.publish([message]) == [Published(0, stored=False)]
    assert _count(store) == 2


def test_an_exchange_that_was_never_declared_is_an_error(store: Store) -> None:
    with pytest.raises(NotDeclared, match="'news' was never declared"):
        store.publish([new(None, exchange="news", routing_key="nobody")])


# -- what cannot be stored --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"task": SURROGATE},
        {"job_id": SURROGATE},
        {"unique_key": SURROGATE},
        {"headers": SURROGATE},
        {"queue": SURROGATE},
        {"queue": None, "exchange": SURROGATE},
        {"queue": None, "exchange": "e", "routing_key": SURROGATE},
        {"priority": 10},
        {"priority": -1},
        {"priority": 2**63},
        {"priority": "high"},
        {"priority": 1.5},
        {"priority": float("nan")},
        {"due_at_ms": 2**63},
        {"due_at_ms": -(2**63) - 1},
        {"expires_at_ms": 2**64},
        {"max_attempts": -1},
        {"max_attempts": "five"},
        {"unique_key": {"no": "text"}},
        {"unique_key": b"bytes"},
        {"task": b"bytes"},
        {"headers": None},
        {"body": "text"},
    ],
    ids=repr,
)
def test_what_sqlite_cannot_hold_is_an_invalid_message(
    store: Store, fields: dict[str, Any]
) -> None:
    store.topology.declare_exchange("e", "direct")
    with pytest.raises(InvalidMessage, match="cannot be stored"):
        store.publish([new(**{"queue": "q", **fields})])
    assert _count(store) == 0


def test_a_store_that_is_not_usable_is_another_error_than_a_bad_message(store: Store) -> None:
    store.database.write(lambda c: c.execute("ALTER TABLE message RENAME TO moved").rowcount)
    with pytest.raises(Exception, match="no such table") as caught:
        publish(store)
    assert not isinstance(caught.value, (InvalidMessage, sqlite3.Error))


def test_the_limit_of_inline_bodies_is_where_acks_become_dear() -> None:
    assert routing.INLINE_BODY_BYTES == 16_384
