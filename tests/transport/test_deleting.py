"""Purging queues and pruning history for an operator: what goes, what stays, and what is recorded."""

from __future__ import annotations

import pytest

from sqlqueue_transport import deleting
from sqlqueue_transport.lifecycle import FINISHED, WAITING, State
from sqlqueue_transport.store import Store
from tests.support import in_forked_child
from tests.transport.rows import publish, put, rows_of, state_of


def audit(store: Store) -> list[tuple[object, ...]]:
    return rows_of(store, "SELECT action, actor, reason, before, after FROM audit ORDER BY id")


def count(store: Store) -> int:
    [(found,)] = rows_of(store, "SELECT count(*) FROM message")
    return int(str(found))


# -- purging ----------------------------------------------------------------------------------------------


def test_a_purge_takes_what_waits_and_leaves_what_runs_and_what_has_ended(store):
    ids = {state: put(store, state, due="future") for state in State}
    other = put(store, State.PENDING, queue="other")
    assert store.deleting.purgeable("default") == len(WAITING)
    assert store.deleting.purge("default", actor="me", reason="wrong batch") == len(WAITING)
    left = {message_id for (message_id,) in rows_of(store, "SELECT id FROM message")}
    assert left == {ids[State.PROCESSING], other, *(ids[state] for state in FINISHED)}
    assert audit(store) == [
        ("purge queue default", "me", "wrong batch", "3 waiting", "3 deleted"),
    ]
    assert store.deleting.purgeable("default") == 0


def test_a_purge_of_nothing_is_not_recorded(store):
    put(store, State.DONE)
    assert store.deleting.purge("default", actor="me") == 0
    assert store.deleting.purge("unknown", actor="me") == 0
    assert audit(store) == []


def test_a_purge_goes_in_portions_with_one_record_that_is_right_after_each(store, monkeypatch):
    monkeypatch.setattr(deleting, "PURGED_AT_ONCE", 4)
    for number in range(10):
        put(store, State.PENDING if number % 2 else State.FAILED, due="future")
    told: list[tuple[int, object]] = []

    def tell(done: int) -> None:
        told.append((done, audit(store)[0][-1]))

    assert store.deleting.purge("default", actor="me", tell=tell) == 10
    assert told == [(4, "4 deleted"), (8, "8 deleted"), (10, "10 deleted")]
    assert len(audit(store)) == 1


def test_what_comes_during_a_purge_stays(store, monkeypatch):
    monkeypatch.setattr(deleting, "PURGED_AT_ONCE", 2)
    for _ in range(4):
        put(store, State.PENDING)
    came: list[int] = []
    store.deleting.purge("default", actor="me", tell=lambda _: came.append(publish(store)))
    assert len(came) == 2
    assert [state_of(store, message_id) for message_id in came] == [State.PENDING] * 2


@pytest.mark.parametrize("statement", range(1, 45, 3))
def test_the_record_of_a_purge_that_is_killed_says_how_many_are_gone(
    tmp_path, monkeypatch, statement
):
    monkeypatch.setattr(deleting, "PURGED_AT_ONCE", 2)
    store = Store(tmp_path / "queue.db")
    for _ in range(6):
        put(store, State.PENDING)
    before = count(store)
    store.close()

    def purge() -> None:
        opened = Store(tmp_path / "queue.db")
        opened.deleting.purge("default", actor="me")
        opened.close()

    in_forked_child(purge, die_at_statement=statement)
    store = Store(tmp_path / "queue.db")
    gone = before - count(store)
    rows = audit(store)
    assert [row[-1] for row in rows] == ([f"{gone} deleted"] if gone else [])
    store.close()


def test_what_tell_raises_ends_a_purge_where_it_stands(store, monkeypatch):
    monkeypatch.setattr(deleting, "PURGED_AT_ONCE", 2)
    for _ in range(6):
        put(store, State.PENDING)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.deleting.purge("default", actor="me", tell=stop)
    assert store.deleting.purgeable("default") == 4
    assert audit(store)[0][-1] == "2 deleted"


# -- pruning ----------------------------------------------------------------------------------------------


def test_a_prune_takes_what_ended_before_in_the_states_it_names(store, clock):
    old = {state: put(store, state) for state in State}
    clock.advance(3600)
    young = {state: put(store, state) for state in State}
    clock.advance(60)
    states = (State.DONE, State.CANCELLED)
    assert store.deleting.prunable(older_than_s=600, states=states) == 2
    assert store.deleting.prune(older_than_s=600, states=states, actor="me", reason="room") == 2
    left = {message_id for (message_id,) in rows_of(store, "SELECT id FROM message")}
    assert left == {*old.values(), *young.values()} - {old[State.DONE], old[State.CANCELLED]}
    assert audit(store) == [
        ("prune", "me", "room", "done, cancelled, ended more than 600 s ago", "2 deleted")
    ]
    assert store.deleting.prune(older_than_s=0, states=tuple(FINISHED), actor="me") == 6


@pytest.mark.parametrize("state", sorted(set(State) - FINISHED))
def test_what_has_not_ended_is_never_pruned(store, state):
    put(store, state)
    for states in ((state,), (State.DONE, state), ()):
        with pytest.raises(ValueError, match="only what has ended can be pruned"):
            store.deleting.prune(older_than_s=0, states=states, actor="me")
        with pytest.raises(ValueError, match="only what has ended can be pruned"):
            store.deleting.prunable(older_than_s=0, states=states)
    assert count(store) == 1
    assert audit(store) == []


def test_a_prune_goes_in_measured_portions_with_one_record(store, clock):
    for _ in range(120):
        put(store, State.DONE)
    put(store, State.EXPIRED)
    clock.advance(1)
    told: list[int] = []
    states = (State.DONE, State.EXPIRED)
    assert store.deleting.prune(older_than_s=0, states=states, actor="me", tell=told.append) == 121
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == 121
    assert [row[-1] for row in audit(store)] == ["121 deleted"]


def test_hostile_names_are_kept_as_text(store):
    publish(store, "mail'; DROP TABLE message; --")
    name = "mail'; DROP TABLE message; --"
    assert store.deleting.purge(name, actor="\udcff", reason="\udcff") == 1
    assert audit(store)[0][:3] == (f"purge queue {name}", "\\udcff", "\\udcff")
