"""Chords: members count once, and the last one's commit holds the body, whoever dies or races."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport import NewMessage
from sqlqueue_transport.chords import CHUNK, UNANNOUNCED_S, Chords, Member, Size, Standing
from sqlqueue_transport.errors import InvalidMessage
from sqlqueue_transport.store import Store
from tests.support import FakeClock, finish, in_forked_child, read_line, run_python, say
from tests.transport.rows import rows_of

DAY_S = 86_400


@pytest.fixture
def chords(store: Store) -> Chords:
    return store.results.chords


def member(name: str, index: int | None = 0, **given: Any) -> Member:
    return Member(name, index, name.encode(), **given)


def advance(store: Store, change: Member | Size, *, key: str = "c", **given: Any) -> bool:
    """Make a change as the backend does: look, prepare, advance. The body holds the values."""
    chords = store.results.chords
    looked = chords.look(key, change)
    body = json.dumps([value.decode() for value in looked.values]).encode()

    def publish(connection: sqlite3.Connection, now_ms: int) -> None:
        store.insert(connection, [NewMessage(body, "bodies")], now_ms, [])

    given = {"expires_s": 100, "prepared": looked, "publish": publish, **given}
    return chords.advance(key, change, **given)


def bodies(store: Store) -> list[list[str]]:
    return [
        json.loads(body)
        for (body,) in rows_of(store, "SELECT body FROM message WHERE queue = 'bodies' ORDER BY id")
    ]


def runs(store: Store) -> list[tuple[Any, ...]]:
    return rows_of(store, "SELECT key, begun, size, added, counted FROM chord ORDER BY id")


# -- counting ---------------------------------------------------------------------------------------


def test_the_body_is_published_with_the_last_member_and_not_before(store: Store) -> None:
    store.results.chords.begin("c", expires_s=100)
    advance(store, Size(3))
    for name, index in (("b", 1), ("c", 2)):
        assert advance(store, member(name, index))
        assert bodies(store) == []
    assert advance(store, member("a", 0))
    assert bodies(store) == [["a", "b", "c"]]


def test_nothing_is_left_of_a_run_that_is_over(store: Store) -> None:
    advance(store, Size(1))
    advance(store, member("a"))
    assert runs(store) == []
    assert rows_of(store, "SELECT * FROM chord_member") == []


def test_a_member_that_is_delivered_again_counts_once_with_its_first_word(store: Store) -> None:
    advance(store, Size(2))
    for word in (b"first", b"second", b"third"):
        advance(store, Member("a", 0, word))
    assert bodies(store) == []
    advance(store, member("b", 1))
    assert bodies(store) == [["first", "b"]]


def test_two_entries_of_a_header_may_share_one_task_id(store: Store) -> None:
    advance(store, Size(2))
    advance(store, member("a", 0))
    advance(store, member("a", 1))
    assert bodies(store) == [["a", "a"]]


def test_members_without_an_index_stand_behind_the_others_in_the_order_they_ended(
    store: Store,
) -> None:
    advance(store, Size(4))
    for name, index in (("y", None), ("x", None), ("b", 10), ("a", 9)):
        advance(store, member(name, index))
    assert bodies(store) == [["a", "b", "y", "x"]]


def test_late_members_of_a_run_that_is_over_publish_nothing(store: Store) -> None:
    advance(store, Size(2))
    for name in ("a", "b", "b", "a", "b", "a"):
        advance(store, member(name, ord(name)))
    assert bodies(store) == [["a", "b"]]


def test_other_chords_are_not_counted(store: Store) -> None:
    for key in ("c", "d"):
        advance(store, Size(2), key=key)
    advance(store, member("a", 0), key="c")
    advance(store, member("a", 0), key="d")
    assert bodies(store) == []
    advance(store, member("b", 1), key="d")
    assert bodies(store) == [["a", "b"]]
    assert [run[0] for run in runs(store)] == ["c"]


def test_a_look_changes_nothing(store: Store, chords: Chords) -> None:
    advance(store, Size(1))
    before = runs(store)
    assert chords.look("c", member("a")).is_complete
    assert chords.look("c", Size(5)).total == 5
    assert chords.look("other", member("a")) == Standing(0, 1, None)
    assert runs(store) == before
    assert rows_of(store, "SELECT * FROM chord_member") == []


def test_more_members_than_a_transaction_deletes_are_cleared_away(store: Store) -> None:
    many = 2 * CHUNK + 1
    advance(store, Size(many))
    for number in range(many):
        advance(store, member(f"m{number}", number))
    assert [len(body) for body in bodies(store)] == [many]
    assert runs(store) == []
    assert rows_of(store, "SELECT count(*) FROM chord_member") == [(0,)]


# -- the size ---------------------------------------------------------------------------------------


def test_a_size_that_becomes_known_last_publishes_the_body(store: Store, chords: Chords) -> None:
    advance(store, member("a", 0, body=b"signature"))
    advance(store, member("b", 1, body=b"another"))
    assert chords.look("c", Size(2)).body == b"signature"
    assert bodies(store) == []
    advance(store, Size(2))
    assert bodies(store) == [["a", "b"]]


def test_a_complete_run_of_which_nobody_knows_the_body_is_left_to_the_next_member(
    store: Store,
) -> None:
    advance(store, member("a", 0))
    assert advance(store, Size(1), publish=None)
    assert bodies(store) == []
    advance(store, member("a", 0))
    assert bodies(store) == [["a"]]


def test_a_size_without_members_publishes_nothing(store: Store) -> None:
    assert advance(store, Size(0))
    assert advance(store, Size(2))
    assert bodies(store) == []


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (2, 1, 2)])
def test_the_largest_size_counts(store: Store, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        advance(store, Size(size))
    advance(store, member("a", 0))
    assert bodies(store) == []
    advance(store, member("b", 1))
    assert bodies(store) == [["a", "b"]]


# -- growing ----------------------------------------------------------------------------------------


def test_a_member_that_another_adds_is_waited_for(store: Store, chords: Chords) -> None:
    advance(store, Size(1))
    chords.add("c", "x", "+a:0:1", expires_s=100)
    advance(store, member("a", 0))
    assert bodies(store) == []
    advance(store, member("x", 0))
    assert bodies(store) == [["a", "x"]]


def test_what_a_member_adds_when_it_is_delivered_again_fills_the_same_place(
    store: Store, chords: Chords
) -> None:
    """Its first life was killed after it had added, and its addition was sent or not."""
    advance(store, Size(1))
    chords.add("c", "x", "+a:0:1", expires_s=100)
    chords.add("c", "y", "+a:0:1", expires_s=100)
    assert runs(store) == [("c", 0, 1, 1, 0)]
    advance(store, member("y", 0))
    advance(store, member("x", 0))
    assert bodies(store) == []
    advance(store, member("a", 0))
    assert bodies(store) == [["y", "a"]]


def test_a_run_that_grew_after_the_look_is_not_published(store: Store, chords: Chords) -> None:
    advance(store, Size(1))
    looked = chords.look("c", member("a"))
    assert looked.is_complete
    chords.add("c", "x", "+a:0:1", expires_s=100)
    assert advance(store, member("a"), prepared=looked)
    assert bodies(store) == []
    advance(store, member("x"))
    assert len(bodies(store)) == 1


# -- two last members at once -----------------------------------------------------------------------


def test_a_complete_run_that_nobody_prepared_for_is_not_stored_at_all(
    store: Store, chords: Chords
) -> None:
    advance(store, Size(2))
    first, second = member("a", 0), member("b", 1)
    looked = chords.look("c", first), chords.look("c", second)
    assert not any(one.is_complete for one in looked)
    assert advance(store, first, prepared=looked[0])
    before = runs(store)
    assert not advance(store, second, prepared=looked[1])
    assert runs(store) == before
    assert rows_of(store, "SELECT slot FROM chord_member") == [("a:0",)]
    assert bodies(store) == []
    assert advance(store, second)
    assert bodies(store) == [["a", "b"]]


def test_what_was_prepared_for_other_members_is_not_published(store: Store, chords: Chords) -> None:
    advance(store, Size(2))
    advance(store, member("old", 0))
    stale = chords.look("c", member("b", 1))
    assert stale.is_complete
    advance(store, member("b", 1))  # the same one, delivered twice at once
    advance(store, Size(2))  # and then a new run
    advance(store, member("new", 0))
    assert chords.look("c", member("b", 1)).mark != stale.mark
    assert not advance(store, member("b", 1), prepared=stale)
    assert bodies(store) == [["old", "b"]]


def test_a_last_member_that_runs_twice_at_once_publishes_once(store: Store, chords: Chords) -> None:
    advance(store, Size(1))
    looked = chords.look("c", member("a"))
    assert advance(store, member("a"), prepared=looked)
    assert advance(store, member("a"), prepared=looked)
    assert len(bodies(store)) == 1


# -- runs -------------------------------------------------------------------------------------------


def test_a_chord_that_is_applied_again_publishes_again(store: Store, chords: Chords) -> None:
    for _ in range(3):
        chords.begin("c", expires_s=100)
        advance(store, member("a", 0))
        advance(store, Size(2))
        advance(store, member("b", 1))
        advance(store, member("a", 0))  # late
    assert bodies(store) == [["a", "b"]] * 3


def test_a_new_run_does_not_count_late_members_of_the_last_one(
    store: Store, chords: Chords
) -> None:
    chords.begin("c", expires_s=100)
    advance(store, Size(1))
    advance(store, member("a"))
    advance(store, Member("a", 0, b"late"))
    chords.begin("c", expires_s=100)
    advance(store, Size(1))
    assert bodies(store) == [["a"]]
    advance(store, Member("a", 0, b"new"))
    assert bodies(store) == [["a"], ["new"]]


def test_a_run_whose_sender_was_killed_goes_on_when_it_is_sent_again(
    store: Store, chords: Chords
) -> None:
    chords.begin("c", expires_s=100)
    advance(store, member("a", 0))
    chords.begin("c", expires_s=100)
    advance(store, Size(2))
    advance(store, member("b", 1))
    assert bodies(store) == [["a", "b"]]


@pytest.mark.parametrize("announced", [True, False])
def test_no_order_of_ends_and_sizes_keeps_the_body_from_being_published_once(
    store: Store, chords: Chords, announced: bool
) -> None:
    """Celery sends the last member after it has set the size."""
    import itertools

    steps: list[Any] = [member("a", 0, body=b"s"), member("b", 1, body=b"s"), Size(3)]
    for number, order in enumerate(itertools.permutations([*steps, *steps])):
        key = f"c{number}"
        if announced:
            chords.begin(key, expires_s=100)
        for step in order:
            assert advance(store, step, key=key)
        assert advance(store, member("c", 2, body=b"s"), key=key)
        assert len(bodies(store)) == number + 1, order


# -- growing old ------------------------------------------------------------------------------------


def test_every_member_prolongs_a_run_and_the_last_one_may_be_too_late(
    store: Store, clock: FakeClock
) -> None:
    advance(store, Size(3), expires_s=100)
    for name, index in (("a", 0), ("b", 1)):
        clock.advance(99)
        advance(store, member(name, index), expires_s=100)
    clock.advance(100)
    advance(store, member("c", 2), expires_s=100)
    assert bodies(store) == []
    assert runs(store) == [(None, 0, 3, 0, 2), ("c", 0, None, 0, 1)]


def test_what_has_expired_is_deleted_a_chunk_at_a_time(store: Store, clock: FakeClock) -> None:
    for number in range(CHUNK + 1):
        advance(store, member(f"m{number}", number), expires_s=10)
    advance(store, Size(5), key="young", expires_s=100)
    clock.advance(10)
    assert store.results.prune(force=True) == CHUNK
    while store.results.prune(force=True):
        pass
    assert [run[0] for run in runs(store)] == ["young"]
    assert rows_of(store, "SELECT count(*) FROM chord_member") == [(0,)]


@pytest.mark.parametrize("forever", [None, 0])
def test_chords_kept_for_ever_are_but_what_nobody_announced_is_not(
    store: Store, chords: Chords, clock: FakeClock, forever: float | None
) -> None:
    chords.begin("begun", expires_s=forever)
    advance(store, Size(2), key="begun", expires_s=forever)
    advance(store, Size(2), key="running", expires_s=forever)
    advance(store, member("a"), key="running", expires_s=forever)
    advance(store, member("late"), key="over", expires_s=forever)
    advance(store, Size(2), key="nobody's", expires_s=forever)
    clock.advance(UNANNOUNCED_S)
    while store.results.prune(force=True):
        pass
    assert [run[0] for run in runs(store)] == ["begun", "running"]


# -- what cannot be stored --------------------------------------------------------------------------


def test_a_body_that_cannot_be_stored_leaves_the_chord_as_it_was(
    store: Store, chords: Chords
) -> None:
    advance(store, Size(1))
    before = runs(store)

    def publish(connection: sqlite3.Connection, now_ms: int) -> None:
        store.insert(connection, [NewMessage(b"", "q", priority=10)], now_ms, [])

    with pytest.raises(InvalidMessage):
        advance(store, member("a"), publish=publish)
    assert runs(store) == before
    with pytest.raises(InvalidMessage, match="the chord d cannot be counted"):
        advance(store, replace(member("a"), value="text"), key="d")  # type: ignore[arg-type]
    assert runs(store) == before


def test_an_index_may_be_any_number(store: Store) -> None:
    advance(store, Size(2))
    advance(store, member("last", math.inf))  # type: ignore[arg-type]
    advance(store, member("first", -1))
    assert bodies(store) == [["first", "last"]]


# -- dying and racing -------------------------------------------------------------------------------


def test_a_kill_at_any_moment_leaves_all_members_and_the_body_or_neither(tmp_path: Path) -> None:
    def end_last(path: Path) -> None:
        store = Store(path)
        while not advance(store, member("b", 1)):
            pass
        store.close()

    states = set()
    for number in range(1, 1000):
        path = tmp_path / f"{number}.db"
        store = Store(path)
        advance(store, Size(2))
        advance(store, member("a", 0))
        store.close()
        is_done = in_forked_child(lambda: end_last(path), die_at_statement=number)  # noqa: B023 - called at once
        store = Store(path)
        is_in = not rows_of(store, "SELECT 1 FROM chord WHERE key = 'c' AND counted = 1")
        assert bodies(store) == ([["a", "b"]] if is_in else []), number
        states.add(is_in)
        # What was not acknowledged is delivered again.
        while not advance(store, member("b", 1)):
            pass
        assert bodies(store) == [["a", "b"]]
        store.close()
        if is_done:
            break
    assert states == {True, False}


RACER = """
    import sys
    from sqlqueue_transport import Store
    from sqlqueue_transport.chords import Size
    from tests.transport.test_chords import advance, member
    path, name, chords = sys.argv[1:]
    store = Store(path)
    print("ready", flush=True)
    sys.stdin.readline()
    again = 0
    for number in range(int(chords)):
        while not advance(store, member(name, int(name)), key=f"c{number}"):
            again += 1
    print(again, flush=True)
    store.close()
"""


def test_members_that_end_in_eight_processes_at_once_publish_each_body_once(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "queue.db")
    chords, processes = 200, 8
    for number in range(chords):
        store.results.chords.begin(f"c{number}", expires_s=DAY_S)
        advance(store, Size(processes), key=f"c{number}")
    racers = [run_python(RACER, store.path, number, chords) for number in range(processes)]
    for racer in racers:
        read_line(racer)
    for racer in racers:
        say(racer)
    again = sum(int(finish(racer, deadline_s=100)) for racer in racers)
    print(f"{chords} chords of {processes}: {again} times two were the last at once")
    assert bodies(store) == [[str(number) for number in range(processes)]] * chords
    assert runs(store) == []
    store.close()


def test_threads_that_race_publish_each_body_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue.db")
    for number in range(50):
        advance(store, Size(4), key=f"c{number}")

    def race(name: int) -> None:
        for number in range(50):
            while not advance(store, member(str(name), name), key=f"c{number}"):
                pass

    threads = [threading.Thread(target=race, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bodies(store) == [["0", "1", "2", "3"]] * 50
    with contextlib.closing(store):
        assert runs(store) == []
