"""What is old goes, in portions, by one process at a time; a wall clock set wrong removes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sqlqueue_transport import NewMessage, Store, TickOf
from sqlqueue_transport import clock as clocks
from sqlqueue_transport import housekeeping as module
from sqlqueue_transport.housekeeping import LONGEST_PORTION_S, Portion, Turn
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Fault, Outcome, Settlement
from sqlqueue_transport.pruning import Policy
from sqlqueue_transport.reading import JobFilter
from tests.support import FakeClock, in_forked_child, kill, read_line, run_python, say

DAY_S = 86_400
POLICY = Policy(done_s=7 * DAY_S, dead_s=30 * DAY_S, audit_s=180 * DAY_S)
KEEP_ALL = Policy(done_s=0, dead_s=0, audit_s=0)


@pytest.fixture
def second(store: Store, clock: FakeClock) -> Iterator[Store]:
    """Give another store on the same file, as another process would have."""
    opened = Store(store.path, clock=clock)
    yield opened
    opened.close()


def finish(store: Store, count: int, *, name: str = "w") -> None:
    """Publish and finish `count` jobs."""
    store.publish([NewMessage(body=b"{}", queue="q", task="t")] * count, durable=False)
    store.consumers.register(name=name, kind="client")
    claim = store.claim(["q"], count, lease_s=60)
    store.settle(
        [Settlement(one.message_id, one.delivery, Outcome.done()) for one in claim.deliveries]
    )


def states(store: Store) -> list[State]:
    return [row.state for row in store.reading.jobs(JobFilter(), limit=10_000)]


def whole_round(store: Store, clock: FakeClock, policy: Policy = POLICY) -> dict[str, int]:
    """Turn until a minute's round is over; return what was removed."""
    removed: dict[str, int] = {}
    for _ in range(1000):
        turn = store.housekeeping.turn(policy)
        for kind, count in turn.removed.items():
            removed[kind] = removed.get(kind, 0) + count
        clock.advance(turn.pause_s)
        if turn.pause_s > 30:
            return removed
    raise AssertionError("a round without an end")


def count(store: Store, table: str) -> int:
    query = f"SELECT count(*) FROM {table}"
    found: int = store.database.read(lambda c: c.execute(query).fetchone()[0])
    return found


def change(store: Store, statement: str, **values: object) -> int:
    return store.database.write(lambda c: c.execute(statement, values).rowcount)


# -- what goes, and when ------------------------------------------------------------------------------


def test_done_jobs_go_after_their_time_and_dead_letters_later(
    store: Store, clock: FakeClock
) -> None:
    finish(store, 2)
    store.publish([NewMessage(body=b"{}", queue="q", task="t")], durable=False)
    (waiting,) = store.reading.jobs(JobFilter(states=(State.PENDING,)))
    store.acting.act(Event.FAIL, [(waiting.message_id, State.PENDING)], actor="test")
    clock.advance(6 * DAY_S)
    assert whole_round(store, clock) == {}
    clock.advance(2 * DAY_S)
    assert whole_round(store, clock) == {"done": 2}
    assert states(store) == [State.PERMANENTLY_FAILED]
    clock.advance(30 * DAY_S)
    assert whole_round(store, clock) == {"permanently_failed": 1}
    assert states(store) == []


def test_a_message_takes_its_body_its_attempts_and_its_progress_along(
    store: Store, clock: FakeClock
) -> None:
    store.publish([NewMessage(body=b"x" * 50_000, queue="q", task="t")], durable=False)
    store.consumers.register(name="w", kind="client")
    (one,) = store.claim(["q"], 1, lease_s=60).deliveries
    change(
        store,
        "INSERT INTO progress (message_id, delivery, done, at_ms) VALUES (:id, 1, 0.5, 1)",
        id=one.message_id,
    )
    failed = Outcome.dead(Fault("E", "m", "traceback"))
    store.settle([Settlement(one.message_id, one.delivery, failed)])
    assert count(store, "body") == count(store, "attempt") == count(store, "progress") == 1
    clock.advance(31 * DAY_S)
    whole_round(store, clock)
    assert count(store, "body") == count(store, "attempt") == count(store, "progress") == 0


def test_what_waits_or_runs_is_never_removed(store: Store, clock: FakeClock) -> None:
    store.publish([NewMessage(body=b"{}", queue="q", task="t")] * 2, durable=False)
    store.consumers.register(name="w", kind="client")
    store.claim(["q"], 1, lease_s=60)
    clock.advance(1000 * DAY_S)
    assert whole_round(store, clock) == {}
    assert len(states(store)) == 2


def test_zero_keeps_for_ever(store: Store, clock: FakeClock) -> None:
    finish(store, 1)
    change(store, "INSERT INTO audit (at_ms, actor, action) VALUES (1, 'a', 'requeue')")
    store.consumers.leave()
    clock.advance(10_000 * DAY_S)
    assert whole_round(store, clock, KEEP_ALL) == {}


def test_ticks_go_after_a_month_but_never_the_newest_of_an_entry(
    store: Store, clock: FakeClock
) -> None:
    """Without its last tick a yearly entry would have its turn again."""
    for entry in ("hourly", "gone", "yearly"):  # no entry is described: all of them are gone
        for hour in range(3):
            tick = TickOf(entry, clock.wall_ms() + hour * 3_600_000, "beat")
            store.publish_tick([NewMessage(body=b"{}", queue="q", task="t")], tick)
    clock.advance(29 * DAY_S)
    store.publish_tick([], TickOf("hourly", clock.wall_ms(), "beat"))
    clock.advance(2 * DAY_S)
    assert whole_round(store, clock) == {"ticks": 7}
    left = store.database.read(lambda c: c.execute("SELECT entry FROM tick").fetchall())
    assert left == [("gone",), ("hourly",), ("yearly",)]


def test_records_of_operators_go_after_their_own_time(store: Store, clock: FakeClock) -> None:
    insert = "INSERT INTO audit (at_ms, actor, action) VALUES (:at_ms, 'a', 'requeue')"
    for day in range(300):
        change(store, insert, at_ms=clock.wall_ms() + day * DAY_S * 1000)
    clock.advance(280 * DAY_S)
    assert whole_round(store, clock) == {"audit": 100}
    assert count(store, "audit") == 200


def test_a_workers_row_stays_as_long_as_a_message_may_name_it(
    store: Store, second: Store, clock: FakeClock
) -> None:
    second.consumers.register(name="lives", kind="worker")
    finish(store, 1, name="ends")
    clock.advance(DAY_S)
    store.consumers.leave()
    clock.advance(29 * DAY_S)
    keeps_done = Policy(done_s=29.5 * DAY_S, dead_s=1, audit_s=0)
    assert whole_round(store, clock, keeps_done) == {"done": 1}
    assert count(store, "worker") == 2
    clock.advance(DAY_S)
    assert whole_round(store, clock, Policy(done_s=1, dead_s=0, audit_s=0)) == {}
    assert whole_round(store, clock, keeps_done) == {"workers": 1}
    assert [worker.name for worker, _ in second.consumers.alive()] == ["lives"]


def test_names_of_queues_that_went_away_are_forgotten_in_portions(
    store: Store, clock: FakeClock
) -> None:
    def work(connection):
        for number in range(500):
            connection.execute(
                "INSERT INTO queue (name, created_at_ms, gone_at_ms) VALUES (?, 0, 1)",
                (f"reply-{number}",),
            )

    store.database.write(work)
    first = 0
    while not first:  # a turn that took long, on a busy machine, leaves the rest to the next
        first = store.housekeeping.turn(POLICY).removed.get("queues", 0)
        clock.advance(1)
    assert first < 500
    assert whole_round(store, clock) == {"queues": 500 - first}


def test_results_that_have_expired_go_without_a_program_of_celery(
    store: Store, clock: FakeClock
) -> None:
    for number in range(3):
        store.results.store(f"celery-task-meta-{number}", "SUCCESS", b"{}", expires_s=60)
    clock.advance(61)
    assert whole_round(store, clock) == {"results": 3}


def test_space_goes_back_to_the_filesystem_but_for_a_share(store: Store, clock: FakeClock) -> None:
    big = [NewMessage(body=b"x" * 100_000, queue="q", task="t")] * 300
    store.publish(big, durable=False)
    size = store.path.stat().st_size + store.path.with_name("queue.db-wal").stat().st_size
    assert size > 30_000_000
    change(store, "DELETE FROM message")
    assert whole_round(store, clock)["pages"] > 5000
    free, pages = store.database.read(
        lambda c: [
            c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count")
        ]
    )
    assert 900 < free <= 1000
    assert pages < 1200
    assert store.reading.damage(full=True) == []


# -- in portions --------------------------------------------------------------------------------------


def test_a_call_does_one_portion_and_says_when_the_next_may_come(
    store: Store, clock: FakeClock
) -> None:
    finish(store, 500)
    clock.advance(8 * DAY_S)
    turn = store.housekeeping.turn(POLICY)
    assert turn.removed.keys() == {"done"}
    assert turn.removed["done"] < 500
    assert 0 < turn.pause_s < 1
    before = store.database.write_transactions, store.database.read_transactions
    assert store.housekeeping.turn(POLICY).removed == {}  # too early
    assert (store.database.write_transactions, store.database.read_transactions) == before


def test_a_portion_shrinks_when_it_takes_long_and_grows_slowly() -> None:
    portion = Portion(rows=100)
    portion.measured(2 * LONGEST_PORTION_S)
    assert portion.rows == 50
    portion.measured(LONGEST_PORTION_S * 0.75)
    assert portion.rows == 50
    portion.measured(LONGEST_PORTION_S / 10)
    assert portion.rows == 57
    for _ in range(20):
        portion.measured(1.0)
    assert portion.rows == 1


def test_much_of_one_kind_does_not_keep_the_others_waiting(store: Store, clock: FakeClock) -> None:
    finish(store, 1000)
    store.results.store("celery-task-meta-1", "SUCCESS", b"{}", expires_s=60)
    clock.advance(8 * DAY_S)
    found = []
    while len(found) < 2:
        turn = store.housekeeping.turn(POLICY)
        found += turn.removed
        clock.advance(turn.pause_s)
    assert found == ["done", "results"]


def test_an_idle_file_is_read_once_a_minute_and_written_twice(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PORTION_S", 60.0)  # however busy this machine is
    whole_round(store, clock)
    before = store.database.write_transactions, store.database.read_transactions
    for _ in range(60):
        store.housekeeping.turn(POLICY)
        clock.advance(1)
    after = store.database.write_transactions, store.database.read_transactions
    assert (after[0] - before[0], after[1] - before[1]) == (2, 1)


# -- one at a time ------------------------------------------------------------------------------------


def test_a_round_that_takes_minutes_stays_with_one_process(
    store: Store, second: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PORTION_S", 0.0)  # so every portion shrinks, to one row
    finish(store, 300)
    clock.advance(8 * DAY_S)
    store.housekeeping.turn(POLICY)
    before = second.database.write_transactions
    minutes = 0.0
    while states(store):
        store.housekeeping.turn(POLICY)
        assert second.housekeeping.turn(POLICY).removed == {}
        clock.advance(1)
        minutes += 1 / 60
    assert minutes > 3
    assert second.database.write_transactions == before


def test_when_the_one_that_does_it_dies_another_goes_on_after_a_minute(
    store: Store, second: Store, clock: FakeClock
) -> None:
    finish(store, 300)
    clock.advance(8 * DAY_S)
    first = store.housekeeping.turn(POLICY).removed["done"]
    clock.advance(59)
    assert second.housekeeping.turn(POLICY).removed == {}
    clock.advance(1)
    assert whole_round(second, clock)["done"] == 300 - first


def test_one_that_was_stopped_for_long_leaves_the_round_to_who_took_it(
    store: Store, second: Store, clock: FakeClock
) -> None:
    finish(store, 500)
    clock.advance(8 * DAY_S)
    store.housekeeping.turn(POLICY)
    clock.advance(61)
    assert second.housekeeping.turn(POLICY).removed
    assert store.housekeeping.turn(POLICY).removed == {}
    assert store.housekeeping.turn(POLICY).pause_s > 1
    clock.advance(20)  # a busy machine rests for longer, too
    assert second.housekeeping.turn(POLICY).removed


def test_a_killed_process_leaves_its_round_to_another(tmp_path, monkeypatch) -> None:
    code = """
        import sys, time
        from sqlqueue_transport import Store
        from sqlqueue_transport.pruning import Policy
        store = Store(sys.argv[1])
        turn = store.housekeeping.turn(Policy(0.001, 0.001, 0))
        print(sum(turn.removed.values()), flush=True)
        sys.stdin.readline()
    """
    path = tmp_path / "queue.db"
    store = Store(path)
    finish(store, 400)
    process = run_python(code, path)
    removed = int(read_line(process))
    assert 0 < removed < 400
    policy = Policy(0.001, 0.001, 0)
    assert store.housekeeping.turn(policy).removed == {}  # the other one is at it
    kill(process)
    store.housekeeping._next_ms = 0
    assert store.housekeeping.turn(policy).removed == {}  # nobody can know yet
    monkeypatch.setattr(module, "EVERY_MS", 0)
    store.housekeeping._next_ms = 0
    while len(states(store)):
        time.sleep(store.housekeeping.turn(policy).pause_s)
    store.close()


def test_ten_processes_remove_everything_once(tmp_path) -> None:
    code = """
        import sys, time
        from sqlqueue_transport import Store, housekeeping
        from sqlqueue_transport.pruning import Policy
        housekeeping.EVERY_MS = 200
        store = Store(sys.argv[1])
        print(flush=True)
        sys.stdin.readline()
        removed, deadline = 0, time.monotonic() + 20
        while store.reading.counts().states["done"] and time.monotonic() < deadline:
            turn = store.housekeeping.turn(Policy(0.001, 0.001, 0))
            removed += turn.removed.get("done", 0)
            time.sleep(min(turn.pause_s, 0.05))
        print(removed, flush=True)
    """
    path = tmp_path / "queue.db"
    store = Store(path)
    finish(store, 2000)
    processes = [run_python(code, path) for _ in range(5)]
    for process in processes:
        read_line(process)
    for process in processes:
        say(process)
    assert sum(int(read_line(process)) for process in processes) == 2000
    assert states(store) == []
    store.close()


# -- the clock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [-10, 10])
def test_a_jump_of_the_wall_clock_pauses_removal_for_a_day(
    store: Store, clock: FakeClock, years: int
) -> None:
    finish(store, 1)
    clock.jump_wall(years * 365 * DAY_S)
    assert whole_round(store, clock) == {}
    clock.advance(DAY_S / 2)
    assert whole_round(store, clock) == {}
    clock.jump_wall(-years * 365 * DAY_S)  # somebody noticed
    assert whole_round(store, clock) == {}
    clock.advance(9 * DAY_S)
    assert whole_round(store, clock) == {"done": 1}


def test_a_machine_that_slept_is_not_taken_for_one_whose_clock_jumped(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it sleeps the monotonic clock stands still; the boot clock tells how long."""
    finish(store, 1)
    whole_round(store, clock)
    slept_ms = clocks.suspended_ms()
    clock.jump_wall(9 * DAY_S)
    monkeypatch.setattr(clocks, "suspended_ms", lambda: slept_ms + 9 * DAY_S * 1000)
    assert whole_round(store, clock) == {"done": 1}


def test_the_machine_says_how_long_it_slept() -> None:
    first, second = clocks.suspended_ms(), clocks.suspended_ms()
    assert first >= 0
    assert abs(second - first) <= 1000


def test_an_error_ends_the_round_and_the_next_one_comes_a_minute_later(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(store, 1)
    clock.advance(8 * DAY_S)
    with monkeypatch.context() as patched:
        patched.setattr(store.database, "write", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.housekeeping.turn(POLICY)
        assert store.housekeeping.turn(POLICY) == Turn(pause_s=60.0)
    clock.advance(60)
    assert whole_round(store, clock) == {"done": 1}


def test_a_process_killed_in_a_portion_leaves_a_file_that_is_in_order(tmp_path) -> None:
    def keep(path):
        opened = Store(path)
        while opened.housekeeping.turn(Policy(0.001, 0.001, 0.001)).removed:
            opened.housekeeping._next_ms = 0

    path = tmp_path / "queue.db"
    store = Store(path)
    finish(store, 60)
    store.consumers.leave()
    store.close()
    for statement in range(20, 1000, 7):
        came_through = in_forked_child(lambda: keep(path), die_at_statement=statement)
        again = Store(path)
        assert again.reading.damage(full=True) == []
        assert again.reading.broken_invariants() == {}
        change(again, "DELETE FROM meta WHERE key = 'housekeeping'")  # a minute passes
        left = len(states(again))
        again.close()
        if came_through:
            break
    assert came_through
    assert left == 0
