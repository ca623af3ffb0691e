"""One store per file and process, shared by all its users, closed by the last, also at exit."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sqlqueue_transport import (
    CannotOpen,
    DatabaseMissing,
    NewMessage,
    Outcome,
    Settlement,
    Store,
    close_store,
    open_store,
)
from sqlqueue_transport import keeper as keepers
from sqlqueue_transport.clock import SYSTEM_CLOCK
from sqlqueue_transport.housekeeping import Turn
from sqlqueue_transport.keeper import Keeper
from sqlqueue_transport.options import Options
from tests.support import (
    FakeClock,
    database_names,
    finish,
    in_forked_child,
    read_line,
    run_python,
    say,
    wait_until,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q.db"


# -- sharing ----------------------------------------------------------------------------------------------


def test_all_users_of_a_file_share_one_store_until_the_last_has_closed_it(path, tmp_path):
    (tmp_path / "sub").mkdir()
    one = open_store(path)
    two = open_store(str(tmp_path / "sub" / ".." / "q.db"))
    assert one is two
    close_store(one)
    assert two.publish([NewMessage(b"x", "default", task="t")])
    close_store(two)
    assert database_names(path) == []
    with pytest.raises(CannotOpen, match="is closed"):
        two.look([])[1]
    close_store(two)  # harmless
    three = open_store(path)
    assert three is not one
    close_store(three)


def test_files_do_not_share_a_store(tmp_path):
    one, two = open_store(tmp_path / "1.db"), open_store(tmp_path / "2.db")
    assert one is not two
    close_store(one)
    assert two.look([])[1] is None
    close_store(two)


def test_closing_a_store_somebody_else_made_leaves_the_shared_one_alone(path):
    shared, own = open_store(path), Store(path)
    close_store(own)
    assert open_store(path) is shared
    close_store(shared)
    close_store(shared)
    own.close()


def test_an_opening_that_fails_is_not_remembered(path):
    path.mkdir()
    with pytest.raises(CannotOpen):
        open_store(path)
    path.rmdir()
    store = open_store(path)
    assert store.look([])[1] is None
    close_store(store)


def test_a_file_that_was_replaced_is_opened_anew(path):
    old = open_store(path)
    old.publish([NewMessage(b"x", "default", task="t")])
    path.rename(path.with_name("old.db"))
    path.with_name("q.db-wal").rename(path.with_name("old.db-wal"))
    path.with_name("q.db-shm").rename(path.with_name("old.db-shm"))
    Store(path).close()  # somebody else's
    new = open_store(path)
    assert new is not old
    assert not new.has_work(["default"])
    close_store(old)  # not the shared one any more
    assert new.publish([NewMessage(b"x", "default", task="t")])
    close_store(new)


def test_a_file_that_vanished_while_it_was_open_is_not_made_anew_and_may_come_back(tmp_path):
    directory, away = tmp_path / "here", tmp_path / "away"
    directory.mkdir(0o700)
    path = directory / "q.db"
    old = open_store(path)
    old.publish([NewMessage(b"x", "default", task="t")])
    directory.rename(away)
    directory.mkdir(0o700)
    for _ in range(2):
        with pytest.raises(DatabaseMissing, match="was in use by this process and is gone"):
            open_store(path)
    close_store(old)
    assert list(directory.iterdir()) == []
    directory.rmdir()
    away.rename(directory)
    new = open_store(path)
    assert new.has_work(["default"])
    close_store(new)


def test_a_file_that_was_removed_when_nobody_used_it_is_made_anew(path):
    close_store(open_store(path))
    path.unlink()
    close_store(open_store(path))


def test_threads_that_open_at_once_get_the_same_store(path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(open_store(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    for store in found:
        close_store(store)
    assert database_names(path) == []


def test_a_forked_child_goes_on_with_its_parents_store(path):
    store = open_store(path)
    assert in_forked_child(
        lambda: open_store(path).publish([NewMessage(b"x", "default", task="t")])
    )
    assert store.has_work(["default"])
    close_store(store)


# -- the end of a process -----------------------------------------------------------------------------------


HOLD = """
    import os, sys, signal
    from sqlqueue_transport import open_store
    store = open_store(sys.argv[1])
    store.consumers.register(name="w", kind="client")
    held = store.claim(["default"], 1, lease_s=3600).deliveries
    print(len(held), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["falls off the end", "sys.exit(3)", "raise ValueError"])
def test_what_a_process_holds_at_its_exit_is_given_back_uncounted(path, way):
    store = Store(path)
    store.publish([NewMessage(b"x", "default", task="t")])
    process = run_python(HOLD + ("" if way.startswith("falls") else f"    {way}\n"), path)
    assert read_line(process) == "1"
    assert not store.has_work(["default"])
    say(process)
    process.wait(timeout=30)
    assert store.has_work(["default"])
    assert store.consumers.alive() == []
    losses = store.database.read(
        lambda c: c.execute("SELECT attempts, unnoted_losses FROM message").fetchone()
    )
    assert losses == (0, 0)
    store.close()


def test_a_child_that_ends_gives_back_nothing_of_its_parents(path):
    code = HOLD.replace(
        "print(len(held)",
        "pid = os.fork()\n"
        "    if not pid:\n"
        "        sys.exit()\n"
        "    os.waitpid(pid, 0)\n"
        "    print(len(held)",
    )
    store = Store(path)
    store.publish([NewMessage(b"x", "default", task="t")])
    process = run_python(code, path)
    assert read_line(process) == "1"
    assert not store.has_work(["default"])
    assert len(store.consumers.alive()) == 1
    say(process)
    finish(process)
    store.close()


def test_an_exit_while_another_process_sits_on_the_lock_is_bounded(path):
    store = Store(path)
    code = HOLD.replace("open_store(sys.argv[1])", "open_store(sys.argv[1], busy_timeout_s=0.2)")
    process = run_python(code, path)
    read_line(process)

    def work(_):
        say(process)
        return process.wait(timeout=30)

    assert store.database.write(work) == 0
    assert store.consumers.alive() == []  # its lock died with it
    store.close()


# -- the keeper of a plain Kombu consumer's leases ------------------------------------------------------------


class Held:
    """A store with one claimed message, and a keeper for it."""

    def __init__(self, path, *, lease_s):
        self.store = Store(path)
        self.store.publish([NewMessage(b"x", "default", task="t")])
        (self.delivery,) = self.store.claim(["default"], lease_s=lease_s).deliveries
        self.holds_any = True
        named = (self.delivery.message_id, self.delivery.delivery)
        self.keeper = Keeper(
            self.store,
            Options(visibility_timeout=lease_s),
            lambda: [named] if self.holds_any else [],
        )

    def lease_left_s(self):
        (until_ms,) = self.store.database.read(
            lambda c: c.execute("SELECT lease_until_ms FROM message").fetchone()
        )
        return None if until_ms is None else (until_ms - SYSTEM_CLOCK.lease_ms()) / 1000

    def close(self):
        self.keeper.stop()
        self.store.close()


def threads_of(keeper):
    return [t for t in threading.enumerate() if t.name == "sqlqueue-keeper"]


def test_a_keeper_keeps_a_lease_much_longer_than_it_lasts(path):
    held = Held(path, lease_s=0.4)
    held.keeper.ensure_running()
    others = Store(path)
    clock_ms = SYSTEM_CLOCK.lease_ms()
    wait_until(lambda: others.consumers.sweep() or SYSTEM_CLOCK.lease_ms() - clock_ms > 1000)
    assert held.lease_left_s() > 0
    settlement = Settlement(held.delivery.message_id, held.delivery.delivery, Outcome.done())
    assert held.store.settle([settlement]) == []
    others.close()
    held.close()


def test_a_keeper_leaves_leases_alone_when_nothing_is_held(path):
    held = Held(path, lease_s=0.3)
    held.holds_any = False
    held.keeper.ensure_running()
    wait_until(lambda: held.store.has_work(["default"]))  # swept, by the keeper itself
    held.close()


def test_a_keeper_does_not_write_each_second_for_a_lease_of_an_hour(path, monkeypatch):
    monkeypatch.setattr(keepers, "SWEEP_EVERY_S", 0.01)
    held = Held(path, lease_s=3600)
    sweeps = []
    sweep = held.store.consumers.sweep
    monkeypatch.setattr(held.store.consumers, "sweep", lambda: (sweeps.append(1), sweep())[1])
    before = held.store.database.write_transactions
    held.keeper.ensure_running()
    wait_until(lambda: len(sweeps) > 30)
    assert held.store.database.write_transactions - before <= 1
    held.close()


def test_a_keeper_sweeps_for_the_dead_meanwhile(path, monkeypatch):
    monkeypatch.setattr(keepers, "SWEEP_EVERY_S", 0.05)
    held = Held(path, lease_s=3600)
    held.keeper.ensure_running()
    held.store.publish([NewMessage(b"y", "other")])
    code = HOLD.replace('"default"', '"other"')
    process = run_python(code, path)
    assert read_line(process) == "1"
    assert not held.store.has_work(["other"])
    process.kill()
    wait_until(lambda: held.store.has_work(["other"]))
    held.close()


def test_a_keeper_keeps_house_as_often_as_it_is_asked_to(path, monkeypatch):
    """One portion a minute would be less than a busy application leaves behind."""
    monkeypatch.setattr(keepers, "HOUSE_AFTER_S", 0.01)
    held = Held(path, lease_s=3600)
    pauses = [0.01, 0.01, 0.01, 60.0]
    monkeypatch.setattr(
        held.store.housekeeping, "turn", lambda _: Turn(pauses.pop(0) if pauses else 60.0)
    )
    held.keeper.ensure_running()
    wait_until(lambda: not pauses, deadline_s=5)
    held.close()


def test_a_keeper_goes_on_after_the_file_was_busy(path, monkeypatch):
    monkeypatch.setattr(keepers, "SWEEP_EVERY_S", 0.02)
    held = Held(path, lease_s=3600)
    failures = []

    def fail():
        failures.append(1)
        error = OSError(5, "Input/output error") if len(failures) % 2 else CannotOpen("busy")
        raise error

    monkeypatch.setattr(held.store.consumers, "sweep", fail)
    held.keeper.ensure_running()
    wait_until(lambda: len(failures) > 5)
    held.close()


def test_a_keeper_is_one_thread_whoever_asks_and_ends_when_told(path):
    held = Held(path, lease_s=3600)
    asking = [threading.Thread(target=held.keeper.ensure_running) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(threads_of(held.keeper)) == 1
    held.keeper.stop()
    assert threads_of(held.keeper) == []
    held.close()


def test_a_keeper_runs_in_a_forked_child_when_that_needs_it(path, monkeypatch):
    monkeypatch.setattr(keepers, "SWEEP_EVERY_S", 0.02)
    held = Held(path, lease_s=3600)
    held.keeper.ensure_running()
    sweep = held.store.consumers.sweep

    def work():
        signal.alarm(20)
        sweeps = []
        held.store.consumers.sweep = lambda: (sweeps.append(1), sweep())
        assert threads_of(held.keeper) == []
        held.keeper.ensure_running()
        assert len(threads_of(held.keeper)) == 1
        wait_until(lambda: len(sweeps) > 3)
        assert not held.store.consumers.is_registered  # it extends nothing for nobody
        os._exit(0)

    with held.keeper._starting:  # copied taken
        assert in_forked_child(work)
    held.close()


def test_a_fake_clock_and_the_systems_speak_the_same_language():
    for clock in (FakeClock(), SYSTEM_CLOCK):
        assert isinstance(clock.wall_ms(), int)
        assert isinstance(clock.lease_ms(), int)
        assert isinstance(clock.boot(), str)
    assert SYSTEM_CLOCK.boot() == SYSTEM_CLOCK.boot() != ""
    assert SYSTEM_CLOCK.wall_ms() > 1_700_000_000_000
    assert SYSTEM_CLOCK.lease_ms() <= SYSTEM_CLOCK.lease_ms()
