"""Ticks and schedule entries: each tick is enqueued once, whoever wants to."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlqueue_transport.messages import TickOf
from sqlqueue_transport.schedules import ScheduleRow
from sqlqueue_transport.store import Store
from tests.support import FakeClock, finish, run_python
from tests.transport.rows import new, rows_of


def test_a_tick_is_enqueued_once(store: Store, clock: FakeClock) -> None:
    first = store.publish([new(), new()], tick=TickOf("every-5s", 5000, "beat-1"))
    second = store.publish([new(), new()], tick=TickOf("every-5s", 5000, "beat-2"))
    assert first is not None
    assert len(first) == 2
    assert second is None
    assert rows_of(store, "SELECT count(*) FROM message") == [(2,)]
    ticks = rows_of(store, "SELECT entry, due_ms, at_ms, beat, jobs FROM tick")
    assert ticks == [("every-5s", 5000, clock.wall, "beat-1", 2)]


def test_another_entry_or_time_is_another_tick(store: Store) -> None:
    for entry, due_ms in [("a", 5000), ("a", 10_000), ("b", 5000)]:
        assert store.publish([new()], tick=TickOf(entry, due_ms, "beat")) is not None
    assert store.schedules.last_tick_ms("a") == 10_000
    assert store.schedules.last_tick_ms("b") == 5000
    assert store.schedules.last_tick_ms("c") is None


def test_a_tick_without_jobs_is_taken_too(store: Store) -> None:
    assert store.publish([], tick=TickOf("a", 5000, "beat-1")) == []
    assert store.publish([new()], tick=TickOf("a", 5000, "beat-2")) is None


def test_threads_that_race_enqueue_each_tick_once(store: Store) -> None:
    won: list[int] = []

    def beat(name: str) -> None:
        won.extend(
            due_ms
            for due_ms in range(50)
            if store.publish([new()], tick=TickOf("a", due_ms, name), durable=False) is not None
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
    from sqlqueue_transport import NewMessage, Store, TickOf
    store = Store(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for due_ms in range(100):
        answers = store.publish(
            [NewMessage(b"", "q")], tick=TickOf("a", due_ms, sys.argv[2]), durable=False
        )
        if answers is not None:
            print(due_ms, flush=True)
    store.close()
"""


def test_processes_that_race_enqueue_each_tick_once(store: Store, tmp_path: Path) -> None:
    beats = [run_python(BEAT, tmp_path / "queue.db", f"beat-{number}") for number in range(2)]
    for beat in beats:
        assert beat.stdout is not None
        assert beat.stdout.readline() == "ready\n"
    for beat in beats:
        assert beat.stdin is not None
        beat.stdin.write("go\n")
        beat.stdin.flush()
    won = [int(line) for beat in beats for line in finish(beat).splitlines()]
    assert sorted(won) == list(range(100))
    assert rows_of(store, "SELECT count(*) FROM message") == [(100,)]


# -- what beats say of their entries ----------------------------------------------------------------


def test_an_entry_shows_as_it_was_last_described_and_since_when(
    store: Store, clock: FakeClock
) -> None:
    since = clock.wall
    assert (
        store.schedules.describe(
            "a", description="every 5 s", target="tasks.stamp", next_due_ms=since + 5000
        )
        == since
    )
    clock.advance(60)
    assert (
        store.schedules.describe(
            "a", description="every 10 s", target="tasks.other", next_due_ms=None, error="boom"
        )
        == since
    )
    for due_ms in (1, 3, 2):
        store.publish([new()], tick=TickOf("a", due_ms, "beat"))

    assert store.schedules.rows() == [
        ScheduleRow(
            entry="a",
            description="every 10 s",
            target="tasks.other",
            first_seen_ms=since,
            next_due_ms=None,
            error="boom",
            last_due_ms=3,
            ticks=3,
        )
    ]


def test_entries_come_in_the_order_of_their_names(store: Store) -> None:
    for entry in ("b", "a", "ü"):
        store.schedules.describe(entry, description="", target="t", next_due_ms=None)
    assert [one.entry for one in store.schedules.rows()] == ["a", "b", "ü"]


def test_an_error_that_quotes_an_undecodable_file_name_can_be_shown(store: Store) -> None:
    store.schedules.describe(
        "a", description="d", target="t", next_due_ms=None, error="no file 'b\udce4r'"
    )
    assert store.schedules.rows()[0].error == "no file 'b\\udce4r'"
