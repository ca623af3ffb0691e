"""Ticks and schedule entries: each tick is enqueued once, whoever wants to, and if it may be."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport import schedules
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Outcome, TickAnswer, TickOf
from sqlqueue_transport.schedules import Changed, Described, ScheduleRow, TickRow
from sqlqueue_transport.store import Store
from tests.support import FakeClock, finish, run_python, say
from tests.transport.rows import FAULT, claim_one, ended, new, publish, rows_of

TAKEN, THERE, SKIPPED, HELD = (
    TickAnswer.TAKEN,
    TickAnswer.THERE,
    TickAnswer.SKIPPED,
    TickAnswer.HELD,
)


def describe(store: Store, *names: str, worker_id: int | None = None, **fields: Any) -> set[str]:
    """Describe entries as a beat does that has them in its code."""
    given = {"description": "every 5s", "target": "t", "next_due_ms": 5000, **fields}
    return store.schedules.describe(
        [Described(name, **given) for name in names], worker_id=worker_id
    )


def add(store: Store, name: str, definition: str = "{}", **fields: Any) -> Changed:
    """Add an entry that lives in the file."""
    given: dict[str, Any] = {"description": "every 5s", "target": "t", "next_due_ms": 5000}
    given |= {"actor": "me", **fields}
    return store.schedules.add(name, definition=definition, **given)


def test_a_tick_is_enqueued_once(store: Store, clock: FakeClock) -> None:
    assert store.publish_tick([new(), new()], TickOf("every-5s", 5000, "beat-1")) is TAKEN
    assert store.publish_tick([new(), new()], TickOf("every-5s", 5000, "beat-2")) is THERE
    assert rows_of(store, "SELECT count(*) FROM message") == [(2,)]
    ticks = rows_of(store, "SELECT entry, due_ms, at_ms, beat, jobs, skipped FROM tick")
    assert ticks == [("every-5s", 5000, clock.wall, "beat-1", 2, None)]


def test_the_newest_ticks_of_an_entry_are_listed_and_of_no_other(
    store: Store, clock: FakeClock
) -> None:
    for due_ms in (5000, 15_000, 10_000):
        store.publish_tick([new()], TickOf("a", due_ms, "beat-1"))
    store.publish_tick([], TickOf("b", 99_000, "beat-2"))
    assert [tick.due_ms for tick in store.schedules.ticks("a")] == [15_000, 10_000, 5000]
    assert store.schedules.ticks("a", most=1) == [
        TickRow("a", 15_000, clock.wall, "beat-1", 1, None)
    ]
    assert [tick.jobs for tick in store.schedules.ticks("b")] == [0]
    assert store.schedules.ticks("c") == []


def test_the_newest_ticks_are_found_without_reading_the_others(store: Store) -> None:
    plan = store.database.read(
        lambda c: c.execute(
            "EXPLAIN QUERY PLAN " + schedules._NEWEST_TICKS, {"entry": "a", "most": 20}
        ).fetchall()
    )
    assert [row[-1] for row in plan] == ["SEARCH tick USING PRIMARY KEY (entry=?)"]


def test_another_entry_or_time_is_another_tick(store: Store) -> None:
    for entry, due_ms in [("a", 5000), ("a", 10_000), ("b", 5000)]:
        assert store.publish_tick([new()], TickOf(entry, due_ms, "beat")) is TAKEN
    assert store.schedules.done_ms("a") == 10_000
    assert store.schedules.done_ms("b") == 5000
    assert store.schedules.done_ms("c") is None


def test_a_tick_without_jobs_is_taken_too(store: Store) -> None:
    assert store.publish_tick([], TickOf("a", 5000, "beat-1")) is TAKEN
    assert store.publish_tick([new()], TickOf("a", 5000, "beat-2")) is THERE


def test_threads_that_race_enqueue_each_tick_once(store: Store) -> None:
    won: list[int] = []

    def beat(name: str) -> None:
        won.extend(
            due_ms
            for due_ms in range(50)
            if store.publish_tick([new()], TickOf("a", due_ms, name), durable=False) is TAKEN
        )

    threads = [threading.Thread(target=beat, args=(f"beat-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(50))
    assert rows_of(store, "SELECT count(*) FROM message") == [(50,)]


BEAT = """
    import sys
    from sqlqueue_transport import NewMessage, Store, TickAnswer, TickOf
    store = Store(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for due_ms in range(100):
        tick = TickOf("a", due_ms, sys.argv[2])
        if store.publish_tick([NewMessage(b"", "q")], tick, durable=False) is TickAnswer.TAKEN:
            print(due_ms, flush=True)
    store.close()
"""


def test_processes_that_race_enqueue_each_tick_once(store: Store, tmp_path: Path) -> None:
    beats = [run_python(BEAT, tmp_path / "queue.db", f"beat-{number}") for number in range(2)]
    for beat in beats:
        assert beat.stdout is not None
        assert beat.stdout.readline() == "ready\n"
    for beat in beats:
        say(beat, "go")
    won = [int(line) for beat in beats for line in finish(beat).splitlines()]
    assert sorted(won) == list(range(100))
    assert rows_of(store, "SELECT count(*) FROM message") == [(100,)]


def test_a_tick_that_lies_ahead_hides_none_before_it(store: Store, clock: FakeClock) -> None:
    now = clock.wall
    for due_ms in (now - 10_000, now + 10 * 366 * 86_400_000):
        store.publish_tick([], TickOf("a", due_ms, "beat"))
    assert store.schedules.done_ms("a") == now - 10_000
    describe(store, "a")
    [row] = store.schedules.entries()
    assert (row.done_ms, row.newest_ms) == (now - 10_000, now + 10 * 366 * 86_400_000)
    assert store.schedules.forget_ticks("a", after_ms=now) == 1
    assert store.schedules.entries()[0].newest_ms == now - 10_000


def test_what_is_done_is_known_when_its_tick_is_pruned(store: Store, clock: FakeClock) -> None:
    describe(store, "a")
    store.publish_tick([], TickOf("a", clock.wall, "beat"))
    store.database.write(lambda c: c.execute("DELETE FROM tick").rowcount)
    assert store.schedules.done_ms("a") == clock.wall
    clock.jump_wall(-60)  # then it lies ahead, and is not done yet
    assert store.schedules.done_ms("a") is None


# -- what beats say of their entries ----------------------------------------------------------------


def test_an_entry_shows_as_it_was_last_described_and_since_when(
    store: Store, clock: FakeClock
) -> None:
    since = clock.wall
    describe(store, "a", next_due_ms=since + 5000)
    clock.advance(60)
    describe(store, "a", description="every 10s", target="u", next_due_ms=None, definition="{1}")
    for due_ms in (1, 3, 2):
        store.publish_tick([new()], TickOf("a", due_ms, "beat", next_due_ms=4))
    assert store.schedules.rows() == [
        ScheduleRow(
            entry="a",
            description="every 10s",
            target="u",
            origin="code",
            definition="{1}",
            first_seen_ms=since,
            next_due_ms=4,
            paused_at_ms=None,
            error=None,
            last_due_ms=3,
            last_at_ms=clock.wall,
            last_skipped=None,
            ticks=3,
        )
    ]


def test_entries_come_in_the_order_of_their_names(store: Store) -> None:
    describe(store, "b", "a", "ü")
    assert [one.entry for one in store.schedules.rows()] == ["a", "b", "ü"]


def test_an_error_is_shown_until_a_tick_is_enqueued(store: Store) -> None:
    describe(store, "a")
    store.schedules.set_error("a", "no file 'b\udce4r'")
    describe(store, "a")  # a beat that starts anew knows nothing better
    assert store.schedules.rows()[0].error == "no file 'b\\udce4r'"
    store.publish_tick([], TickOf("a", 5000, "beat"))
    assert store.schedules.rows()[0].error is None


def test_who_has_an_entry_is_known_as_long_as_it_lives(store: Store, tmp_path: Path) -> None:
    worker_id = store.consumers.register(name="b1", kind="beat")
    describe(store, "a", "b", worker_id=worker_id)
    add(store, "c")
    assert [one.beats for one in store.schedules.rows()] == [("b1",), ("b1",), ("b1",)]
    describe(store, "b", worker_id=worker_id)  # "a" is gone from its code
    assert [one.beats for one in store.schedules.rows()] == [(), ("b1",), ("b1",)]
    store.consumers.leave()
    assert [one.beats for one in store.schedules.rows()] == [(), (), ()]
    describe(store, worker_id=None)
    assert rows_of(store, "SELECT count(*) FROM beating") == [(0,)]


# -- entries that live in the file -------------------------------------------------------------------


def test_a_name_belongs_to_one_origin(store: Store) -> None:
    assert add(store, "mine") is Changed.DONE
    assert add(store, "mine", '{"other": 1}') is Changed.AS_IT_WAS
    assert describe(store, "mine", "theirs") == {"mine"}
    assert add(store, "theirs") is Changed.AS_IT_WAS
    rows = {row.entry: (row.origin, row.definition) for row in store.schedules.rows()}
    assert rows == {"mine": ("file", "{}"), "theirs": ("code", None)}


def never(_definition: str, _now_ms: int) -> None:
    """Tell that an entry is over."""


def test_what_comes_after_a_pause_is_told_by_the_definition(store: Store, clock: FakeClock) -> None:
    describe(store, "without")
    add(store, "mine", "its definition")
    before = {row.entry: row.next_due_ms for row in store.schedules.rows()}
    asked = []

    def next_due(definition: str, now_ms: int) -> None:
        asked.append((definition, now_ms))

    for name in ("mine", "without"):
        store.schedules.pause(name, actor="me")
        store.schedules.resume(name, next_due=next_due, actor="me")
    assert asked == [("its definition", clock.wall)]
    after = {row.entry: row.next_due_ms for row in store.schedules.rows()}
    assert after == {"mine": None, "without": before["without"]}


def test_every_change_raises_the_version_and_is_audited(store: Store) -> None:
    schedules = store.schedules
    describe(store, "b")
    versions = [schedules.version()]
    for changed in (
        lambda: add(store, "a", '{"every": 5}'),
        lambda: schedules.pause("a", actor="me", reason="a fair"),
        lambda: schedules.resume("a", next_due=lambda _text, now_ms: now_ms + 5, actor="me"),
        lambda: schedules.remove("a", actor="me"),
    ):
        assert changed() is Changed.DONE
        versions.append(schedules.version())
    assert versions == [0, 1, 2, 3, 4]
    audit = rows_of(store, "SELECT actor, action, reason, before, after FROM audit ORDER BY id")
    about = {"entry": "a", "definition": '{"every": 5}'}
    assert audit == [
        ("me", "schedule_add", None, None, json.dumps(about)),
        ("me", "schedule_pause", "a fair", None, json.dumps({"entry": "a"})),
        ("me", "schedule_resume", None, None, json.dumps({"entry": "a"})),
        ("me", "schedule_remove", None, json.dumps(about), json.dumps({"entry": "a"})),
    ]


def test_what_changes_nothing_is_neither_audited_nor_told(store: Store) -> None:
    schedules = store.schedules
    add(store, "a")
    schedules.pause("a", actor="me")
    version = schedules.version()
    assert schedules.pause("a", actor="me") is Changed.AS_IT_WAS
    assert add(store, "a") is Changed.AS_IT_WAS
    for change in (schedules.pause, schedules.remove):
        assert change("unknown", actor="me") is Changed.UNKNOWN
    assert schedules.resume("unknown", next_due=never, actor="me") is Changed.UNKNOWN
    assert schedules.version() == version
    assert rows_of(store, "SELECT count(*) FROM audit") == [(2,)]


def test_an_entry_that_a_living_beat_has_in_its_code_cannot_be_removed(store: Store) -> None:
    worker_id = store.consumers.register(name="b1", kind="beat")
    describe(store, "a", worker_id=worker_id)
    store.publish_tick([], TickOf("a", 5000, "b1"))
    assert store.schedules.remove("a", actor="me") is Changed.IN_USE
    store.consumers.leave()
    assert store.schedules.remove("a", actor="me") is Changed.DONE
    assert store.schedules.rows() == []
    assert rows_of(store, "SELECT count(*) FROM tick") == [(0,)]


def test_a_paused_entry_has_no_tick_and_what_it_missed_is_given_up(
    store: Store, clock: FakeClock
) -> None:
    describe(store, "a")
    store.schedules.pause("a", actor="me")
    assert store.publish_tick([new()], TickOf("a", clock.wall, "beat")) is HELD
    assert rows_of(store, "SELECT (SELECT count(*) FROM tick), (SELECT count(*) FROM message)") == [
        (0, 0)
    ]
    clock.advance(60)
    store.schedules.set_error("a", "boom")
    store.schedules.resume("a", next_due=never, actor="me")
    assert store.schedules.rows()[0].error is None
    assert store.schedules.done_ms("a") == clock.wall
    assert store.publish_tick([new()], TickOf("a", clock.wall + 1, "beat")) is TAKEN


def test_an_entry_of_the_file_has_ticks_only_as_it_stands_there(store: Store) -> None:
    add(store, "a", '{"every": 5}')
    assert store.publish_tick([], TickOf("a", 1, "b", definition='{"every": 5}')) is TAKEN
    assert store.publish_tick([], TickOf("a", 2, "b", definition='{"every": 6}')) is HELD
    store.schedules.remove("a", actor="me")
    assert store.publish_tick([], TickOf("a", 3, "b", definition='{"every": 5}')) is HELD


def test_entries_of_the_file_that_are_over_are_forgotten_after_a_month(
    store: Store, clock: FakeClock
) -> None:
    for name in ("over", "failed", "coming"):
        add(store, name)
        store.publish_tick([], TickOf(name, clock.wall, "beat", next_due_ms=None))
    store.schedules.set_error("failed", "boom")
    store.schedules.give_up("coming", done_ms=clock.wall, next_due_ms=clock.wall + 10**10)
    describe(store, "of the code", next_due_ms=None)
    clock.advance(30 * 86_400)
    add(store, "one more")
    assert len(store.schedules.rows()) == 5
    clock.advance(1)
    add(store, "and one")
    names = {row.entry for row in store.schedules.rows()}
    assert names == {"failed", "coming", "of the code", "one more", "and one"}


def test_a_change_rings_all_that_listen(store: Store, tmp_path: Path) -> None:
    with store.schedules.listening(30) as bell:
        before = store.schedules.version()
        other = Store(tmp_path / "queue.db", clock=store.clock)
        try:
            add(other, "a")
        finally:
            other.close()
        assert bell.wait(10)
        assert store.schedules.version() == before + 1


# -- ticks that must not overlap ---------------------------------------------------------------------


def waiting(due_ms: int, entry: str = "a") -> TickOf:
    return TickOf(entry, due_ms, "beat", waits_for_last=True)


@pytest.fixture
def entry(store: Store) -> str:
    describe(store, "a")
    return "a"


def test_a_tick_is_skipped_while_jobs_of_the_last_one_are_unfinished(
    store: Store, clock: FakeClock, entry: str
) -> None:
    publish(store)  # somebody else's, before and after: they do not count
    assert store.publish_tick([new("q"), new("q")], waiting(1)) is TAKEN
    publish(store)
    assert store.publish_tick([new("q")], waiting(2)) is SKIPPED
    assert store.publish_tick([new("q")], waiting(2)) is THERE
    store.settle([ended(claim_one(store, "q"), Outcome.done())])
    assert store.publish_tick([new("q")], waiting(3)) is SKIPPED  # one of two
    last = claim_one(store, "q")
    assert store.publish_tick([new("q")], waiting(4)) is SKIPPED  # it runs
    store.settle([ended(last, Outcome.done())])
    assert store.publish_tick([new("q")], waiting(5)) is TAKEN
    ticks = rows_of(
        store, "SELECT due_ms, jobs, skipped, first_message_id, last_message_id FROM tick"
    )
    assert ticks == [
        (1, 2, None, 2, 3),
        (2, 0, "overlap", None, None),
        (3, 0, "overlap", None, None),
        (4, 0, "overlap", None, None),
        (5, 1, None, 5, 5),
    ]
    assert store.schedules.rows()[0].last_skipped is None


@pytest.mark.parametrize(
    "event", [Event.CANCEL, Event.FAIL], ids=["cancelled", "permanently failed"]
)
def test_jobs_that_were_given_up_hinder_no_tick(store: Store, entry: str, event: Event) -> None:
    store.publish_tick([new()], waiting(1))
    store.acting.act(event, [(1, State.PENDING)], actor="me")
    assert store.publish_tick([new()], waiting(2)) is TAKEN


@pytest.mark.parametrize("in_s", [0, 600])
def test_a_job_that_waits_for_its_next_attempt_is_unfinished(
    store: Store, entry: str, in_s: int
) -> None:
    store.publish_tick([new()], waiting(1))
    store.settle([ended(claim_one(store), Outcome.retry(FAULT, in_s=in_s))])
    assert store.publish_tick([new()], waiting(2)) is SKIPPED


def test_a_job_that_is_due_later_is_unfinished(store: Store, clock: FakeClock, entry: str) -> None:
    store.publish_tick([new(due_at_ms=clock.wall + 60_000)], waiting(1))
    assert store.publish_tick([new()], waiting(2)) is SKIPPED


def test_a_tick_without_jobs_hinders_none_and_hides_none(store: Store, entry: str) -> None:
    store.publish_tick([new()], waiting(1))
    store.settle([ended(claim_one(store), Outcome.done())])
    assert store.publish_tick([], waiting(2)) is TAKEN
    assert store.publish_tick([new()], waiting(3)) is TAKEN
    assert store.publish_tick([], waiting(4)) is SKIPPED


def test_a_job_that_was_there_already_belongs_to_whoever_stored_it(
    store: Store, entry: str
) -> None:
    store.publish_tick([new(unique_key="k"), new(), new(unique_key="k")], waiting(1))
    for _ in range(2):
        store.settle([ended(claim_one(store), Outcome.done())])
    assert store.publish_tick([new(unique_key="k")], waiting(2)) is TAKEN
    assert store.publish_tick([new(unique_key="k"), new()], waiting(3)) is TAKEN
    ids = rows_of(store, "SELECT first_message_id, last_message_id FROM tick ORDER BY due_ms")
    [(newest,)] = rows_of(store, "SELECT max(id) FROM message")
    assert ids == [(1, 2), (None, None), (newest, newest)]
    assert store.publish_tick([new()], waiting(4)) is SKIPPED


def test_whether_ticks_may_overlap_is_the_entrys_own_affair(store: Store, entry: str) -> None:
    describe(store, "b")
    store.publish_tick([new()], waiting(1))
    assert store.publish_tick([new()], waiting(2, "b")) is TAKEN
    assert store.publish_tick([new()], TickOf("a", 3, "beat")) is TAKEN
    assert store.publish_tick([new()], waiting(4)) is SKIPPED


def test_a_skip_can_be_asked_for_before_anything_is_made(store: Store, entry: str) -> None:
    assert store.schedules.skip_overlapping(waiting(1)) is None
    assert store.publish_tick([new()], waiting(1)) is TAKEN
    assert store.schedules.skip_overlapping(waiting(2)) is SKIPPED
    assert store.schedules.skip_overlapping(waiting(2)) is THERE
    assert store.publish_tick([new()], waiting(2)) is THERE
    store.schedules.pause("a", actor="me")
    assert store.schedules.skip_overlapping(waiting(3)) is HELD


RACE = """
    import sys
    from sqlqueue_transport import NewMessage, Outcome, Settlement, Store, TickAnswer, TickOf
    store = Store(sys.argv[1])
    role = sys.argv[2]
    print("ready", flush=True)
    sys.stdin.readline()
    if role == "worker":
        done = 0
        while done < 40:
            for one in store.claim(["q"], 1, lease_s=60).deliveries:
                store.settle([Settlement(one.message_id, one.delivery, Outcome.done())])
                done += 1
    else:
        due_ms, taken = 0, 0
        while store.reading.counts().states and due_ms < 100_000:
            due_ms += 1
            tick = TickOf("a", due_ms, role, waits_for_last=True)
            message = NewMessage(b"", "q", task="t", job_id=f"{role}-{due_ms}")
            store.publish_tick([message], tick, durable=False)
            (count,) = store.database.read(
                lambda c: c.execute("SELECT count(*) FROM message WHERE state='done'").fetchone()
            )
            if count >= 40:
                break
    print("over", flush=True)
    store.close()
"""


def test_two_beats_and_a_worker_that_finishes_never_have_two_jobs_of_an_entry_at_once(
    store: Store, tmp_path: Path, entry: str
) -> None:
    names = ("beat-1", "beat-2", "worker")
    processes = [run_python(RACE, tmp_path / "queue.db", name) for name in names]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        say(process, "go")
    for process in processes:
        assert finish(process) == "over\n"
    # In the order of their storing: none was stored before the one before had ended.
    overlaps = rows_of(
        store,
        """
        SELECT count(*) FROM message AS later JOIN message AS earlier ON earlier.id = later.id - 1
        WHERE later.enqueued_at_ms < earlier.finished_at_ms
        """,
    )
    assert overlaps == [(0,)]
    [(taken, skipped)] = rows_of(
        store, "SELECT sum(skipped IS NULL), sum(skipped = 'overlap') FROM tick"
    )
    print(f"{taken} taken, {skipped} skipped")
    assert taken >= 40
    assert skipped > 0
