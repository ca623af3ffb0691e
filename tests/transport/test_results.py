"""Results in the file: what replaces what, how long it is kept, and who is woken for it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport import results as module
from sqlqueue_transport.chords import CHUNK
from sqlqueue_transport.errors import InvalidMessage
from sqlqueue_transport.results import KEYS_BY_NAME, READ_AT_ONCE, Results
from sqlqueue_transport.store import Store
from tests.support import FakeClock, in_forked_child, kill, read_line, run_python, say, wait_until
from tests.transport.rows import rows_of


@pytest.fixture
def results(store: Store) -> Results:
    return store.results


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Store]:
    """Give a store on the machine's own clocks, as other processes have them."""
    opened = Store(tmp_path / "queue.db")
    yield opened
    opened.close()


def put(results: Results, key: str = "k", status: str = "SUCCESS", **given: Any) -> bool:
    value = given.pop("value", f"{key} {status}".encode())
    return results.store(key, status, value, **{"expires_s": 100, **given})


# -- what replaces what -----------------------------------------------------------------------------


def test_a_result_is_read_back_byte_for_byte(results: Results) -> None:
    value = bytes(range(256))
    assert put(results, value=value)
    assert results.get("k") == value
    assert results.get("other") is None


@pytest.mark.parametrize("late", ["STARTED", "RETRY", "FAILURE", "REVOKED", "SUCCESS"])
def test_a_success_is_never_replaced(results: Results, late: str) -> None:
    put(results, value=b"first")
    assert not put(results, status=late, value=b"late")
    assert results.get("k") == b"first"


@pytest.mark.parametrize("status", ["STARTED", "RETRY", "FAILURE", "REVOKED"])
def test_any_other_state_is_replaced_by_the_next(results: Results, status: str) -> None:
    put(results, status=status)
    assert put(results, status="SUCCESS", value=b"done")
    assert results.get("k") == b"done"


def test_a_success_that_has_expired_is_replaced(results: Results, clock: FakeClock) -> None:
    put(results, expires_s=10)
    clock.advance(10)
    assert put(results, status="STARTED", value=b"again")
    assert results.get("k") == b"again"


def test_what_is_set_replaces_even_a_success(results: Results) -> None:
    put(results)
    assert put(results, value=b"new", keep_success=False)
    assert results.get("k") == b"new"


def test_a_refused_result_wakes_nobody_and_leaves_its_row_alone(store: Store) -> None:
    put(store.results)
    before = rows_of(store, "SELECT * FROM result")
    put(store.results, status="FAILURE")
    assert rows_of(store, "SELECT * FROM result") == before


def test_a_value_that_no_column_holds_is_refused_and_changes_nothing(results: Results) -> None:
    put(results, status="STARTED")
    for wrong in ("text", 1.5, None):
        with pytest.raises(InvalidMessage, match="the result k cannot be stored"):
            put(results, value=wrong)
    with pytest.raises(InvalidMessage):
        put(results, expires_s=1e18)
    assert results.get("k") == b"k STARTED"


def test_many_are_read_in_the_order_asked_for(results: Results) -> None:
    for number in range(10):
        put(results, f"k{number}")
    keys = [f"k{number}" for number in (*range(20), 3, 3)] * 30
    assert len(keys) > READ_AT_ONCE
    found = results.get_many(keys)
    assert found == [f"{key} SUCCESS".encode() if int(key[1:]) < 10 else None for key in keys]
    assert results.get_many([]) == []


def test_what_is_deleted_is_gone(results: Results) -> None:
    put(results)
    assert results.delete("k")
    assert results.get("k") is None
    assert not results.delete("k")


def test_a_kill_at_any_moment_leaves_the_old_result_or_the_new_one(tmp_path: Path) -> None:
    def keep(value: bytes) -> None:
        store = Store(tmp_path / "queue.db")
        store.results.store("k", "STARTED", value, expires_s=None)
        store.close()

    keep(b"old")
    seen = set()
    for number in range(1, 1000):
        is_done = in_forked_child(lambda: keep(b"new"), die_at_statement=number)
        store = Store(tmp_path / "queue.db")
        seen.add(store.results.get("k"))
        assert seen <= {b"old", b"new"}
        if is_done:
            assert store.results.get("k") == b"new"
            break
        store.results.store("k", "STARTED", b"old", expires_s=None)
        store.close()
    store.close()
    assert seen == {b"old", b"new"}


# -- growing old ------------------------------------------------------------------------------------


def test_an_expired_result_reads_as_absent_at_once(results: Results, clock: FakeClock) -> None:
    put(results, expires_s=10)
    clock.advance(9.999)
    assert results.get("k") is not None
    clock.advance(0.001)
    assert results.get("k") is None
    assert results.newer(0, lambda _: True).found == []


@pytest.mark.parametrize("forever", [None, 0])
def test_a_result_without_a_lifetime_is_kept_for_ever(
    results: Results, clock: FakeClock, forever: float | None
) -> None:
    put(results, expires_s=forever)
    put(results, "other", expires_s=5)
    results.expire("other", forever)
    clock.advance(10 * 366 * 86_400)
    assert results.prune(force=True) == 0
    assert results.get("k") is not None
    assert results.get("other") is not None


def test_a_lifetime_can_be_changed(results: Results, clock: FakeClock) -> None:
    put(results, expires_s=None)
    results.expire("k", 10)
    clock.advance(10)
    assert results.get("k") is None


def test_what_has_expired_is_deleted_a_chunk_at_a_time(
    store: Store, results: Results, clock: FakeClock
) -> None:
    for number in range(CHUNK + 20):
        put(results, f"k{number}", expires_s=10)
    put(results, "young")
    clock.advance(10)
    assert results.prune() == CHUNK
    assert results.prune() == 20
    assert results.prune(force=True) == 0
    assert rows_of(store, "SELECT key FROM result") == [("young",)]


def test_pruning_comes_round_once_a_minute(results: Results, clock: FakeClock) -> None:
    put(results, "a", expires_s=10)
    put(results, "b", expires_s=50)
    clock.advance(20)
    assert results.prune() == 1
    clock.advance(59)
    assert results.prune() == 0
    clock.advance(1)
    assert results.prune() == 1


def test_nothing_is_deleted_for_a_day_after_a_jump_of_the_wall_clock(
    results: Results, clock: FakeClock
) -> None:
    put(results, expires_s=3600)
    clock.jump_wall(86_400 * 365)
    assert results.get("k") is None
    assert results.prune() == results.prune(force=True) == 0
    clock.jump_wall(-86_400 * 365)
    assert results.get("k") is not None
    assert results.prune() == 0  # that was a jump, too
    clock.advance(2 * 86_400)
    assert results.prune() == 1


# -- what is new ------------------------------------------------------------------------------------


def test_only_what_is_newer_than_what_was_seen_is_read(results: Results) -> None:
    put(results, "a", status="STARTED")
    seen = results.newest()
    put(results, "b")
    put(results, "a")
    news = results.newer(seen, {"a", "c"}.__contains__)
    assert news.found == [("a", b"a SUCCESS")]
    assert results.newer(news.seen, lambda _: True).found == []


def test_a_deleted_result_takes_no_later_one_with_it(results: Results) -> None:
    """A reused row id would lie below what a waiter has seen."""
    put(results, "a")
    seen = results.newest()
    results.delete("a")
    assert results.newest() == 0
    put(results, "b")
    assert results.newer(seen, lambda _: True).found == [("b", b"b SUCCESS")]


def test_one_among_thousands_of_new_results_is_found(results: Results) -> None:
    for number in range(2 * READ_AT_ONCE + 3):
        put(results, f"k{number}")
    last = f"k{2 * READ_AT_ONCE + 2}"
    news = results.newer(0, {last}.__contains__)
    assert [key for key, _ in news.found] == [last]
    assert news.seen == 2 * READ_AT_ONCE + 3
    seen, found = 0, 0
    while news := results.newer(seen, lambda _: True).found:
        found += len(news)
        seen += len(news)
    assert found == 2 * READ_AT_ONCE + 3


# -- waking -----------------------------------------------------------------------------------------

WRITER = """
    import sys, time
    from sqlqueue_transport import Store
    store = Store(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        began_ns = time.monotonic_ns()
        store.results.store(line.strip(), "SUCCESS", b"x", expires_s=None)
        print(began_ns, flush=True)
"""


@pytest.mark.parametrize("others", [0, KEYS_BY_NAME, 2000])
def test_a_waiter_is_woken_by_another_process_and_does_not_poll(real: Store, others: int) -> None:
    writer = run_python(WRITER, real.path)
    read_line(writer)
    keys = [f"other-{number}" for number in range(others)]
    latencies_ms = []
    for number in range(20):
        key = f"k{number}"
        asleep = threading.Event()
        woken_ns: list[int] = []

        def has_news(key: str = key, asleep: threading.Event = asleep) -> bool:
            asleep.set()
            return real.results.get(key) is not None

        def wait(
            key: str = key,
            has_news: Any = has_news,
            woken_ns: list[int] = woken_ns,
        ) -> None:
            while not has_news():
                real.results.sleep([*keys, key], 1.0, has_news=has_news)
            woken_ns.append(time.monotonic_ns())

        thread = threading.Thread(target=wait)
        thread.start()
        asleep.wait(10)
        wait_until(lambda: real.consumers.bell and real.consumers.bell._somebody_listens)
        say(writer, key)
        began_ns = int(read_line(writer))
        thread.join(10)
        latencies_ms.append((woken_ns[0] - began_ns) / 1e6)
    print(
        f"from storing to seen, waiting for {others + 1}: median "
        f"{statistics.median(latencies_ms):.2f} ms, worst {max(latencies_ms):.2f} ms"
    )
    # Forgotten wake-ups would be seen after a second each.
    assert statistics.median(latencies_ms) < 500


def test_every_process_that_waits_for_a_result_is_woken(real: Store, tmp_path: Path) -> None:
    code = """
        import sys
        from sqlqueue_transport import Store, sleepers
        sleepers.LONGEST_SLEEP_S = 60.0  # the others are still starting
        store = Store(sys.argv[1])
        def has_news():
            print("asleep", flush=True)
            return False
        print(store.results.sleep(["k"], 60.0, has_news=has_news), flush=True)
    """
    waiters = [run_python(code, real.path) for _ in range(3)]
    for waiter in waiters:
        assert read_line(waiter) == "asleep"
    put(real.results)
    assert [read_line(waiter) for waiter in waiters] == ["True"] * 3


def test_who_waits_for_another_result_sleeps_on(real: Store) -> None:
    real.consumers.register(name="w", kind="client")
    stored = threading.Event()

    def has_news() -> bool:
        put(real.results, "other")
        stored.set()
        return False

    assert not real.results.sleep(["k"], 0.2, has_news=has_news)
    assert stored.is_set()


def test_what_is_stored_while_one_lies_down_is_not_missed(real: Store) -> None:
    """The look runs with the flag up, and the ring waits in the FIFO for who is not asleep yet."""

    def has_news() -> bool:
        put(real.results, "k")  # after this look would have looked
        return False

    assert real.results.sleep(["k"], 1.0, has_news=has_news)  # False: slept to the end


def test_a_message_that_is_due_does_not_keep_a_waiter_awake(real: Store) -> None:
    from sqlqueue_transport import NewMessage

    real.publish([NewMessage(b"", "q", due_at_ms=real.clock.wall_ms() + 1)])
    wait_until(lambda: real.has_work(["q"]))
    looks = []
    deadline_s = time.monotonic() + 0.3
    while (left_s := deadline_s - time.monotonic()) > 0:
        real.results.sleep(["k"], left_s, has_news=lambda: bool(looks.append(1)))
    assert len(looks) < 10


def test_a_waiter_that_was_killed_keeps_nobody_from_being_woken(real: Store) -> None:
    code = """
        import sys
        from sqlqueue_transport import Store
        store = Store(sys.argv[1])
        store.results.sleep(["k"], 1.0, has_news=lambda: print("asleep", flush=True))
        sys.stdin.readline()
    """
    dead = run_python(code, real.path)
    assert read_line(dead) == "asleep"
    kill(dead)
    put(real.results)
    assert real.results.get("k") is not None


def test_names_a_waiter_sleeps_on_can_be_no_queues() -> None:
    from sqlqueue_transport.topology import valid_name

    with pytest.raises(InvalidMessage):
        valid_name(module.PSEUDO_QUEUE + "k", what="queue")
