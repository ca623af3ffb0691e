"""Queues, exchanges and bindings: rows in the file, the same for every process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlqueue_transport import topology as topology_module
from sqlqueue_transport.errors import InvalidMessage, NotDeclared
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Outcome
from sqlqueue_transport.store import Store
from sqlqueue_transport.topology import valid_name
from tests.support import FakeClock
from tests.transport.rows import bind, claim_one, ended, new, publish, put, rows_of, state_of


@pytest.fixture
def other(store: Store) -> Iterator[Store]:
    opened = Store(store.path, clock=store.clock)
    yield opened
    opened.close()


# -- queues -----------------------------------------------------------------------------------------


def test_a_declared_queue_is_there_for_every_process(store: Store, other: Store) -> None:
    assert not other.topology.has_queue("a")
    store.topology.declare_queue("a", durable=False, arguments={"x-max-priority": 9})
    assert other.topology.has_queue("a")
    assert rows_of(other, "SELECT durable, arguments FROM queue") == [(0, '{"x-max-priority": 9}')]


def test_declaring_again_writes_nothing_and_changes_nothing(store: Store) -> None:
    store.topology.declare_queue("a", durable=True)
    before = store.database.write_transactions
    store.topology.declare_queue("a", durable=False)
    assert store.database.write_transactions == before
    assert rows_of(store, "SELECT durable FROM queue") == [(1,)]


def test_the_size_counts_what_is_ready_in_this_queue(store: Store) -> None:
    for state in State:
        put(store, state, queue="a", due="future")
    publish(store, "b")
    assert store.topology.size("a") == 1
    assert store.topology.size("nobody knows it") == 0


def test_consumers_counts_registered_processes_that_live(store: Store, other: Store) -> None:
    assert store.consumers.count("a") == 0
    store.consumers.register(name="w1", kind="child", queues=["a", "b"])
    other.consumers.register(name="w2", kind="child", queues=["a"])
    assert (store.consumers.count("a"), store.consumers.count("b")) == (2, 1)
    other.consumers.leave()
    assert store.consumers.count("a") == 1


def test_a_queues_name_is_data_wherever_it_goes(store: Store) -> None:
    hostile = "x'; DROP TABLE message; --"
    store.consumers.register(name="w", kind="child", queues=[hostile, '"]'])
    bind(store, hostile, "e", hostile)
    store.publish([new(None, exchange="e", routing_key=hostile)])
    assert store.topology.size(hostile) == 1
    assert store.consumers.count(hostile) == 1
    assert store.topology.purge(hostile) == 1


# -- purging and deleting ---------------------------------------------------------------------------


def test_a_purge_deletes_what_is_ready_and_nothing_else(store: Store) -> None:
    ids = {state: put(store, state, queue="a", due="future") for state in State}
    untouched = publish(store, "b")
    assert store.topology.purge("a") == 1
    left = {message_id for (message_id,) in rows_of(store, "SELECT id FROM message")}
    assert left == {*ids.values(), untouched} - {ids[State.PENDING]}


def test_a_large_purge_goes_in_portions_so_that_nobody_waits_long(store: Store) -> None:
    count = topology_module.PURGED_AT_ONCE * 2 + 1
    store.publish([new("a") for _ in range(count)], durable=False)
    before = store.database.write_transactions
    assert store.topology.purge("a") == count
    assert store.database.write_transactions == before + 3


def test_a_purge_leaves_what_is_published_meanwhile(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology_module, "PURGED_AT_ONCE", 2)
    for _ in range(5):
        publish(store, "a")
    real_write, late = store.database.write, []

    def write(work, **options):
        late.append(publish(other, "a"))
        return real_write(work, **options)

    monkeypatch.setattr(store.database, "write", write)
    assert store.topology.purge("a") == 5
    assert [state_of(store, one) for one in late] == [State.PENDING] * 3


def test_deleting_a_queue_takes_its_bindings_and_what_waits_in_it(store: Store) -> None:
    bind(store, "a", "e", "k")
    bind(store, "b", "e", "k")
    ids = {state: put(store, state, queue="a", due="future") for state in State}
    untouched = publish(store, "b")

    assert store.topology.delete_queue("a") == 1

    assert not store.topology.has_queue("a")
    assert store.topology.bindings() == [("b", "e", "k")]
    left = {message_id for (message_id,) in rows_of(store, "SELECT id FROM message")}
    gone = {ids[state] for state in (State.PENDING, State.SCHEDULED, State.FAILED)}
    assert left == {*ids.values(), untouched} - gone


def test_what_a_consumer_holds_of_a_deleted_queue_stays_his(store: Store) -> None:
    publish(store, "a")
    taken = claim_one(store, "a")
    store.topology.delete_queue("a")
    assert store.settle([ended(taken, Outcome.done())]) == []


def test_an_unbound_queue_is_deleted_too(store: Store) -> None:
    """Kombu's virtual base deletes a queue binding by binding, so one without any never goes."""
    store.topology.declare_queue("a")
    publish(store, "a")
    assert store.topology.delete_queue("a") == 1
    assert not store.topology.has_queue("a")


def test_a_queue_is_deleted_only_if_the_condition_is_met(store: Store) -> None:
    store.topology.declare_queue("a")
    publish(store, "a")
    assert store.topology.delete_queue("a", if_empty=True) == 0
    assert store.topology.has_queue("a")
    assert store.topology.size("a") == 1
    store.topology.purge("a")

    store.consumers.register(name="w", kind="child", queues=["a"])
    assert store.topology.delete_queue("a", if_unused=True) == 0
    assert store.topology.has_queue("a")
    store.consumers.leave()

    store.topology.delete_queue("a", if_unused=True, if_empty=True)
    assert not store.topology.has_queue("a")


# -- queues that go away by themselves --------------------------------------------------------------


def _left_queue(store: Store, name: str) -> None:
    """Make an auto-delete queue whose only consumer was killed: nobody has ended it yet."""
    store.topology.declare_queue(name, auto_delete=True)
    store.consumers.consume("tag", name)
    store.database.write(lambda c: c.execute("DELETE FROM consumer").rowcount)
    store.database.write(lambda c: c.execute("UPDATE queue SET unused_since_ms = 1").rowcount)


def test_a_queue_that_is_used_again_keeps_its_messages(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look that found it unused and the transaction that would end it."""
    other.consumers.register(name="w", kind="child")
    _left_queue(store, "a")
    real_write = store.database.write

    def write(work, **options):
        other.consumers.consume("late", "a")
        publish(other, "a")
        return real_write(work, **options)

    monkeypatch.setattr(store.database, "write", write)
    store.topology.end_unused()
    assert store.topology.has_queue("a")
    assert store.topology.size("a") == 1


@pytest.mark.parametrize("state", [State.PENDING, State.SCHEDULED, State.FAILED])
def test_all_that_waits_in_a_queue_goes_with_it_in_portions(
    store: Store, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    monkeypatch.setattr(topology_module, "PURGED_AT_ONCE", 2)
    for _ in range(5):
        put(store, state, queue="a", due="future")
    _left_queue(store, "a")
    before = store.database.write_transactions
    store.topology.end_unused()
    assert not store.topology.has_queue("a")
    assert rows_of(store, "SELECT state FROM message") == []
    assert store.database.write_transactions == before + 3


# -- exchanges and bindings -------------------------------------------------------------------------


def test_an_exchange_keeps_its_first_type(store: Store, other: Store) -> None:
    assert store.topology.exchange_type("e") is None
    assert store.topology.declare_exchange("e", "direct") == "direct"
    assert other.topology.declare_exchange("e", "topic") == "direct"
    assert other.topology.exchange_type("e") == "direct"


def test_deleting_an_exchange_takes_its_bindings_and_leaves_the_queues(store: Store) -> None:
    store.topology.declare_exchange("e", "direct")
    bind(store, "a", "e", "k")
    bind(store, "a", "f", "k")
    publish(store, "a")

    store.topology.delete_exchange("e", if_unused=True)
    assert store.topology.exchange_type("e") == "direct"

    store.topology.delete_exchange("e")
    assert store.topology.exchange_type("e") is None
    assert store.topology.bindings() == [("a", "f", "k")]
    assert store.topology.has_queue("a")
    assert store.topology.size("a") == 1


def test_binding_makes_the_queue_and_binding_again_writes_nothing(
    store: Store, other: Store
) -> None:
    bind(store, "a", "e", "k")
    assert other.topology.has_queue("a")
    before = other.database.write_transactions
    bind(other, "a", "e", "k")
    assert other.database.write_transactions == before
    assert other.topology.bindings() == [("a", "e", "k")]


def test_a_queue_that_went_away_is_not_made_anew_by_a_binding(store: Store) -> None:
    """It would be an ordinary one then, fed by its exchange for ever."""
    store.topology.declare_exchange("e", "fanout")
    store.topology.declare_queue("a", auto_delete=True)
    store.consumers.consume("tag", "a")
    store.consumers.stop_consuming({"tag": "a"})
    with pytest.raises(NotDeclared, match="declare it anew"):
        store.topology.bind("a", "e", "")
    assert not store.topology.has_queue("a")
    assert store.topology.bindings() == []


def test_unbinding_removes_one_binding(store: Store) -> None:
    for key in ("k", "l"):
        bind(store, "a", "e", key)
    store.topology.unbind("a", "e", "k")
    store.topology.unbind("a", "e", "never there")
    assert store.topology.bindings() == [("a", "e", "l")]


def test_a_binding_survives_its_process(store: Store, tmp_path: Path) -> None:
    bind(store, "a", "e", "k")
    store.close()
    again = Store(tmp_path / "queue.db", clock=FakeClock())
    again.publish([new(None, exchange="e", routing_key="k")])
    assert claim_one(again, "a").exchange == "e"
    again.close()


# -- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "celery",
        "Größe",
        "名前",
        "\u202egnp",
        "<script>",
        "[bold]",
        "=cmd|'/c calc'!A0",
        "x" * 255,
    ],
)
def test_a_name_may_be_any_text_that_fits_a_line(store: Store, name: str) -> None:
    bind(store, name, name, name)
    assert store.topology.has_queue(name)
    assert store.topology.bindings() == [(name, name, name)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "needs a name"),
        (None, "needs a name"),
        (7, "needs a name"),
        (b"bytes", "needs a name"),
        ("x" * 256, "too long"),
        ("ü" * 128, "too long"),  # 256 bytes
        ("x" * 300, "too long"),
        ("a\nb", "control characters"),
        ("a\r\nb", "control characters"),
        ("\0", "control characters"),
        ("\x1b[31m", "control characters"),
        ("\x1b]0;title\x07", "control characters"),
        ("\x7f", "control characters"),
        ("\x9b", "control characters"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_with_the_reason(
    store: Store, name: object, says: str
) -> None:
    for attempt in (
        lambda: valid_name(name, what="queue"),  # type: ignore[arg-type]
        lambda: store.topology.declare_queue(name),  # type: ignore[arg-type]
        lambda: store.topology.has_queue(name),  # type: ignore[arg-type]
        lambda: store.topology.declare_exchange(name, "direct"),  # type: ignore[arg-type]
        lambda: bind(store, name, "e", "k"),  # type: ignore[arg-type]
        lambda: bind(store, "q", name, "k"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidMessage, match=says):
            attempt()
    if name:
        with pytest.raises(InvalidMessage, match=says):
            bind(store, "q", "e", name)  # type: ignore[arg-type]
    assert rows_of(store, "SELECT * FROM queue") == []
    assert rows_of(store, "SELECT * FROM binding") == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x-max-length", "many"),
        ("x-max-length", -1),
        ("x-max-length", 2**70),
        ("x-message-ttl", math.nan),
        ("x-message-ttl", math.inf),
        ("x-message-ttl", True),
        ("x-expires", 0),
        ("x-max-priority", [9]),
        ("x-dead-letter-exchange", 7),
        ("x-dead-letter-routing-key", "x" * 256),
        ("x-dead-letter-routing-key", "a\nb"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(store: Store, argument: str, value: object) -> None:
    with pytest.raises(InvalidMessage):
        store.topology.declare_queue("a", arguments={argument: value})
    assert not store.topology.has_queue("a")
