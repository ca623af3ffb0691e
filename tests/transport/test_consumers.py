"""What the dead held is given back once, with the attempts that were started and no others."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sqlqueue_transport import (
    CannotOpen,
    DiskFault,
    Fault,
    NewMessage,
    Outcome,
    Settlement,
    Store,
    WorkerSwept,
    consumers,
)
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.presence import Ended, Note, PresenceFile, Standing
from tests.support import (
    FakeClock,
    finish,
    in_forked_child,
    kill,
    read_line,
    run_python,
    say,
    wait_until,
)
from tests.transport.rows import vanish

WORKER = """
    import os, sys
    from sqlqueue_transport import NewMessage, Outcome, Settlement, Store
    from tests.support import FakeClock
    path, kind, take, started, boot = sys.argv[1:]
    store = Store(path, clock=FakeClock(boot_id=boot)) if boot else Store(path)
    store.consumers.register(name=f"{kind}-{os.getpid()}", kind=kind)
    held = store.claim(["default"], int(take), lease_s=3600).deliveries if int(take) else []
    for place, delivery in enumerate(held[: int(started)]):
        store.consumers.note_start(place, delivery.message_id, delivery.delivery, 0)
    print(store.consumers.worker_id, flush=True)
    for line in sys.stdin:
        print(eval(line), flush=True)
"""


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q.db"


@pytest.fixture
def store(path):
    """Give a store on the machine's own clocks, as other processes have them."""
    one = Store(path)
    yield one
    one.close()


@pytest.fixture
def frozen(path, clock):
    """Give a store whose time stands still."""
    one = Store(path, clock=clock)
    yield one
    one.close()


def start(path, *, kind="child", take=0, started=0, boot=""):
    """Start a consumer that has claimed `take` messages and noted `started` of them."""
    process = run_python(WORKER, path, kind, take, started, boot)
    process.worker_id = int(read_line(process, deadline_s=20))
    return process


def tell(process, expression):
    """Let the consumer evaluate an expression and return what it printed."""
    say(process, expression)
    return read_line(process)


def publish(store, count=1, **fields):
    answers = store.publish(
        [NewMessage(b"x", "default", **{"task": "t", **fields}) for _ in range(count)]
    )
    return [answer.message_id for answer in answers]


def look(store, message_id):
    """Return (state, attempts, unnoted losses) of a message."""
    return store.database.read(
        lambda c: c.execute(
            "SELECT state, attempts, unnoted_losses FROM message WHERE id = ?", (message_id,)
        ).fetchone()
    )


def attempts(store, message_id):
    return store.database.read(
        lambda c: c.execute(
            "SELECT attempt, outcome, error_type FROM attempt WHERE message_id = ? ORDER BY id",
            (message_id,),
        ).fetchall()
    )


def claim(store, count=1):
    return store.claim(["default"], count, lease_s=60).deliveries


# -- killed processes ------------------------------------------------------------------------------------


def test_a_killed_process_loses_the_attempts_it_noted_and_no_others(store, path):
    ids = publish(store, 5)
    process = start(path, take=4, started=2)
    kill(process)
    lost = store.consumers.sweep()
    assert [(one.message_id, one.counted, one.dead) for one in lost] == [
        (ids[0], True, False),
        (ids[1], True, False),
        (ids[2], False, False),
        (ids[3], False, False),
    ]
    assert {one.worker for one in lost} == {f"child-{process.pid}"}
    for message_id in ids[:2]:
        assert look(store, message_id) == ("failed", 1, 0)
        assert attempts(store, message_id) == [(1, "lost", "WorkerLost")]
    for message_id in ids[2:]:
        assert look(store, message_id) == ("pending", 0, 0)
        assert attempts(store, message_id) == []
    assert store.consumers.sweep() == []
    # All of them can be claimed again at once.
    store.consumers.register(name="next", kind="child")
    assert sorted(d.message_id for d in claim(store, 10)) == ids


def test_a_killed_process_is_found_by_whoever_opens_the_file_next(path):
    one = Store(path)
    (message_id,) = publish(one)
    one.close()
    kill(start(path, take=1, started=1))
    another = Store(path)
    assert [lost.message_id for lost in another.consumers.sweep_all()] == [message_id]
    another.close()


def test_a_note_cleared_after_its_settlement_costs_nothing(store, path):
    first, second = publish(store, 2)
    process = start(path, take=2, started=1)
    tell(
        process,
        "store.settle([Settlement(held[0].message_id, held[0].delivery, Outcome.done())]),"
        "store.consumers.note_end(0)",
    )
    kill(process)
    assert [one.message_id for one in store.consumers.sweep()] == [second]
    assert look(store, first) == ("done", 1, 0)
    assert look(store, second) == ("pending", 0, 0)


def test_a_process_killed_between_settlement_and_clearing_the_note_counts_once(store, path):
    (message_id,) = publish(store)
    process = start(path, take=1, started=1)
    tell(
        process, "store.settle([Settlement(held[0].message_id, held[0].delivery, Outcome.done())])"
    )
    kill(process)
    assert store.consumers.sweep() == []
    assert look(store, message_id) == ("done", 1, 0)


def test_the_note_of_an_earlier_delivery_counts_nothing_for_a_later_one(store, path):
    (message_id,) = publish(store)
    process = start(path, take=1, started=1)
    tell(
        process,
        "store.settle([Settlement(held[0].message_id, held[0].delivery, Outcome.release())]),"
        "store.claim(['default'], lease_s=3600).deliveries[0].delivery",
    )
    kill(process)
    (lost,) = store.consumers.sweep()
    assert not lost.counted
    assert look(store, message_id) == ("pending", 0, 0)


def test_a_torn_note_counts_nothing(store, path):
    (message_id,) = publish(store)
    process = start(path, take=1, started=1)
    kill(process)
    presence = store.consumers.presence
    (entry,) = presence.entries()
    at = 4096 + entry.slot * 2048 + 128
    presence._memory[at + 3] ^= 0xFF
    (lost,) = store.consumers.sweep()
    assert not lost.counted
    assert look(store, message_id) == ("pending", 0, 0)


def test_of_many_sweepers_one_gives_back_and_counts(store, path):
    ids = publish(store, 60)
    victims = [start(path, take=10, started=5) for _ in range(4)]
    sweepers = [start(path) for _ in range(3)]
    for victim in victims:
        kill(victim)
    for sweeper in sweepers:
        say(sweeper, "len(store.consumers.sweep())")
    mine = len(store.consumers.sweep())
    total = mine + sum(int(read_line(sweeper)) for sweeper in sweepers)
    wait_until(lambda: not store.consumers._sweeper.dead_entries())
    assert total + len(store.consumers.sweep()) == 40
    counts = store.database.read(
        lambda c: c.execute(
            "SELECT state, attempts, count(*) FROM message GROUP BY 1, 2 ORDER BY 1"
        ).fetchall()
    )
    assert counts == [("failed", 1, 20), ("pending", 0, 40)]
    assert len(ids) == 60


def leave_dead_owner(store):
    """Let a process die that had claimed and noted one message."""

    def work():
        store.consumers.register(name="victim", kind="child")
        (delivery,) = claim(store)
        store.consumers.note_start(0, delivery.message_id, delivery.delivery, 0)

    assert in_forked_child(work)


def test_a_sweeper_killed_at_any_statement_leaves_the_rest_to_the_next(path):
    seen = []
    for statement in range(1, 60):
        store = Store(path)
        (message_id,) = publish(store)
        leave_dead_owner(store)
        came_through = in_forked_child(store.consumers.sweep, die_at_statement=statement)
        seen.append(len(store.consumers.sweep()))
        assert look(store, message_id) == ("failed", 1, 0)
        assert attempts(store, message_id) == [(1, "lost", "WorkerLost")]
        assert list(store.consumers.presence.entries()) == []
        store.database.write(lambda c: c.execute("DELETE FROM message").rowcount)
        store.close()
        if came_through:
            break
    assert came_through
    assert len(seen) > 30
    assert seen == sorted(seen, reverse=True)  # given back by us until the commit, then by it
    assert set(seen) == {1, 0}


def test_what_is_given_back_wakes_a_sleeper(store, path):
    publish(store)
    victim = start(path, take=1, started=1)
    sleeper = start(path)
    say(sleeper, "store.consumers.sleep(['default'], 1.0, has_work=lambda _: False)")
    wait_until(lambda: list(store.consumers.presence.sleepers("default", None)))
    kill(victim)
    store.consumers.sweep()
    assert read_line(sleeper) == "True"


# -- what had ended and was not settled ------------------------------------------------------------------


def end_first_of(store, count=3):
    """Claim messages, start and end the first, start the second; return their ids."""
    ids = publish(store, count)
    store.consumers.register(name="w", kind="child")
    first, second, *_ = claim(store, count)
    store.consumers.note_start(0, first.message_id, first.delivery, 0)
    store.consumers.note_ended(0, 0, Ended(first.message_id, first.delivery, '"x"'))
    store.consumers.note_start(0, second.message_id, second.delivery, 0)
    return ids


def result_of(store, message_id):
    return store.database.read(
        lambda c: c.execute("SELECT result FROM message WHERE id = ?", (message_id,)).fetchone()[0]
    )


def test_whoever_sweeps_settles_what_a_dead_process_had_ended(frozen):
    ids = end_first_of(frozen)
    vanish(frozen)
    lost = frozen.consumers.sweep()
    assert [(one.message_id, one.counted) for one in lost] == [(ids[1], True), (ids[2], False)]
    assert [look(frozen, message_id) for message_id in ids] == [
        ("done", 1, 0),
        ("failed", 1, 0),
        ("pending", 0, 0),
    ]
    assert result_of(frozen, ids[0]) == '"x"'
    assert attempts(frozen, ids[0]) == []


@pytest.mark.parametrize("count", [True, False])
def test_a_supervisor_settles_what_its_child_had_ended(frozen, count):
    ids = end_first_of(frozen)
    lost = frozen.consumers.end_worker(frozen.consumers.worker_id, count=count)
    assert [(one.message_id, one.counted) for one in lost] == [(ids[1], count), (ids[2], False)]
    assert (look(frozen, ids[0]), result_of(frozen, ids[0])) == (("done", 1, 0), '"x"')


def test_a_process_that_leaves_settles_what_it_had_ended(frozen):
    ids = end_first_of(frozen)
    assert [one.message_id for one in frozen.consumers.leave()] == ids[1:]
    assert (look(frozen, ids[0]), result_of(frozen, ids[0])) == (("done", 1, 0), '"x"')


def test_what_had_ended_is_done_also_when_its_lease_is_over(frozen, clock):
    ids = end_first_of(frozen)
    clock.advance(61)
    lost = frozen.consumers.sweep()
    assert [one.message_id for one in lost] == ids[1:]
    assert (look(frozen, ids[0]), result_of(frozen, ids[0])) == (("done", 1, 0), '"x"')


def test_the_end_of_an_older_delivery_says_nothing_of_a_newer_one(frozen):
    (message_id, *_) = end_first_of(frozen)
    frozen.settle([Settlement(message_id, 1, Outcome.release())])
    (again,) = claim(frozen)
    assert (again.message_id, again.delivery) == (message_id, 2)
    vanish(frozen)
    frozen.consumers.sweep()
    assert look(frozen, message_id) == ("pending", 0, 0)


def test_what_an_operator_asked_to_stop_and_ended_well_is_done(frozen):
    (message_id, *_) = end_first_of(frozen)
    frozen.acting.act(Event.TERMINATE, [(message_id, State.PROCESSING)], actor="test")
    vanish(frozen)
    frozen.consumers.sweep()
    assert look(frozen, message_id) == ("done", 1, 0)


def test_an_end_outlives_the_notes_of_what_was_started(frozen):
    """A process that cannot settle any more takes those back; what has ended stays ended."""
    ids = end_first_of(frozen)
    frozen.consumers.forget_starts()
    vanish(frozen)
    assert [one.counted for one in frozen.consumers.sweep()] == [False, False]
    assert [look(frozen, message_id)[0] for message_id in ids] == ["done", "pending", "pending"]


# -- counting ---------------------------------------------------------------------------------------------


def lose(store, message_id, *, noted=True, kind="child"):
    """Claim, perhaps note, and die; return how long the message waits, in seconds."""
    store.consumers.register(name="victim", kind=kind)
    (delivery,) = claim(store)
    assert delivery.message_id == message_id
    if noted:
        store.consumers.note_start(0, delivery.message_id, delivery.delivery, 0)
    vanish(store)
    (lost,) = store.consumers.sweep()
    assert lost.counted == noted
    store.consumers.leave()
    due_ms = store.look([])[1]
    return None if due_ms is None else (due_ms - store.clock.wall_ms()) / 1000


def test_lost_again_and_again_a_job_waits_longer_and_longer(frozen, clock):
    (message_id,) = publish(frozen, max_attempts=20)
    waits_s = []
    for _ in range(10):
        waits_s.append(lose(frozen, message_id))
        clock.advance(waits_s[-1])
    assert waits_s == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_job_that_takes_its_worker_with_it_each_time_is_dead_after_five(frozen, clock):
    (message_id,) = publish(frozen)
    for attempt in range(1, 6):
        lose(frozen, message_id)
        clock.advance(3600)
        state = "failed" if attempt < 5 else "permanently_failed"
        assert look(frozen, message_id) == (state, attempt, 0)
    assert attempts(frozen, message_id) == [(n, "lost", "WorkerLost") for n in range(1, 6)]


def test_its_own_number_of_attempts_is_respected(frozen):
    (message_id,) = publish(frozen, max_attempts=1)
    lose(frozen, message_id)
    assert look(frozen, message_id) == ("permanently_failed", 1, 0)


def test_an_innocent_job_can_be_lost_any_number_of_times(frozen):
    (message_id,) = publish(frozen)
    for _ in range(30):
        assert lose(frozen, message_id, noted=False) is None
    assert look(frozen, message_id) == ("pending", 0, 0)


def test_a_consumer_that_notes_no_starts_may_lose_a_message_twenty_times(frozen):
    (message_id,) = publish(frozen)
    for losses in range(1, 20):
        lose(frozen, message_id, noted=False, kind="client")
        assert look(frozen, message_id) == ("pending", 0, losses)
    lose(frozen, message_id, noted=False, kind="client")
    assert look(frozen, message_id)[:2] == ("permanently_failed", 0)
    error = frozen.database.read(
        lambda c: c.execute("SELECT error_type, error_message FROM message").fetchone()
    )
    assert error == (
        "TooManyDeliveries",
        "delivered 20 times to consumers that vanished with it or handed it back",
    )


@pytest.mark.parametrize("kind", ["client", "child"])
def test_an_orderly_leave_counts_nothing(frozen, kind):
    (message_id,) = publish(frozen)
    for _ in range(30):
        frozen.consumers.register(name="w", kind=kind)
        (delivery,) = claim(frozen)
        frozen.consumers.note_start(0, delivery.message_id, delivery.delivery, 0)
        (lost,) = frozen.consumers.leave()
        assert not lost.counted
        assert frozen.consumers.leave() == []
    assert look(frozen, message_id) == ("pending", 0, 0)
    assert attempts(frozen, message_id) == []
    assert list(frozen.consumers.presence.entries()) == []


def test_a_supervisor_names_the_cause_it_knows(store, path):
    first, second, third = publish(store, 3)
    process = start(path, take=3, started=2)
    kill(process)
    faults = {first: ("timed_out", Fault("TimeLimitExceeded", "ended at 5 s", "Traceback"))}
    lost = store.consumers.end_worker(process.worker_id, faults=faults)
    assert [(one.message_id, one.counted) for one in lost] == [
        (first, True),
        (second, True),
        (third, False),
    ]
    assert attempts(store, first) == [(1, "timed_out", "TimeLimitExceeded")]
    assert attempts(store, second) == [(1, "lost", "WorkerLost")]
    assert store.consumers.sweep() == []
    assert list(store.consumers.presence.entries()) == []


def test_a_supervisor_out_of_grace_counts_nothing(store, path):
    ids = publish(store, 2)
    process = start(path, take=2, started=2)
    kill(process)
    assert [one.counted for one in store.consumers.end_worker(process.worker_id, count=False)] == [
        False,
        False,
    ]
    assert {look(store, message_id) for message_id in ids} == {("pending", 0, 0)}


def test_ending_a_worker_goes_by_its_slot_not_by_any_slot_that_names_its_id(frozen):
    """An id from a rolled back registration is given out again, to somebody else elsewhere."""
    (message_id,) = publish(frozen)
    presence = frozen.consumers.presence
    worker_id = frozen.consumers.register(name="w", kind="child")
    (delivery,) = claim(frozen)
    frozen.consumers.note_start(0, delivery.message_id, delivery.delivery, 0)
    slot = frozen.consumers._slot
    # The remains of a registration that never committed, in a slot that comes first.
    stale = presence.take_free_slot()
    presence.write_entry(stale, worker_id=worker_id, pid=1, heartbeat_ms=0, parent_id=0)
    presence.give_back(stale)
    vanish(frozen)
    presence._memory[2048 + slot], presence._memory[2048 + stale] = 1, 1
    (lost,) = frozen.consumers.end_worker(worker_id)
    assert lost.counted
    assert look(frozen, message_id) == ("failed", 1, 0)
    assert [entry.slot for entry in presence.entries()] == [stale]
    assert frozen.consumers.sweep() == []
    assert list(presence.entries()) == []


# -- registering --------------------------------------------------------------------------------------------


def test_worker_ids_are_never_used_again(store, path):
    ids = [start(path).worker_id for _ in range(2)]
    for _ in range(3):
        ids.append(store.consumers.register(name="w", kind="child"))
        store.consumers.leave()
    assert ids == sorted(set(ids))


def test_registering_twice_is_registering_once(store):
    first = store.consumers.register(name="w", kind="worker")
    assert store.consumers.register(name="w", kind="worker") == first == store.consumers.worker_id
    assert len(store.consumers.alive()) == 1


def test_two_stores_of_one_process_are_two_consumers(path):
    one, two = Store(path), Store(path)
    assert one.consumers.register(name="1", kind="client") != two.consumers.register(
        name="2", kind="client"
    )
    assert one.consumers.presence is two.consumers.presence
    assert {worker.name for worker, _ in one.consumers.alive()} == {"1", "2"}
    assert one.consumers.sweep() == two.consumers.sweep() == []
    vanish(one)
    two.consumers.sweep()
    assert {worker.name for worker, _ in two.consumers.alive()} == {"2"}
    two.close()
    one.close()


def take_slot_zero(self):
    return 0 if self.take(0) else -1


def test_who_takes_over_a_slot_gives_back_what_its_last_owner_held(store, path, monkeypatch):
    ids = publish(store, 3)
    victim = start(path, take=2, started=1)
    kill(victim)
    monkeypatch.setattr(PresenceFile, "take_free_slot", take_slot_zero)
    store.consumers.register(name="w", kind="child")
    assert store.consumers._slot == 0
    assert [look(store, message_id) for message_id in ids] == [
        ("failed", 1, 0),
        ("pending", 0, 0),
        ("pending", 0, 0),
    ]
    assert store.consumers.presence.notes(0) == {}
    assert [worker.name for worker, _ in store.consumers.alive()] == ["w"]


def test_a_process_killed_while_it_registers_loses_nothing_of_the_slots_last_owner(path):
    for statement in range(1, 60):
        store = Store(path)
        (message_id,) = publish(store)
        leave_dead_owner(store)

        def register(store=store):
            PresenceFile.take_free_slot = take_slot_zero
            store.consumers.register(name="w", kind="child")

        came_through = in_forked_child(register, die_at_statement=statement)
        store.consumers.sweep()
        assert look(store, message_id) == ("failed", 1, 0)
        assert store.consumers.alive() == []
        store.database.write(lambda c: c.execute("DELETE FROM message").rowcount)
        store.close()
        if came_through:
            break
    assert came_through
    assert statement > 30


def test_a_registration_that_fails_leaves_no_slot_behind(store, monkeypatch):
    def refuse(*_):
        raise CannotOpen("not today")

    monkeypatch.setattr(consumers.Consumers, "_register", refuse)
    with pytest.raises(CannotOpen, match="not today"):
        store.consumers.register(name="w", kind="child")
    assert store.consumers.presence.is_free(0)
    monkeypatch.undo()
    store.consumers.register(name="w", kind="child")
    assert store.consumers._slot == 0


def test_a_process_taken_for_dead_cannot_claim_until_it_registers_anew(store):
    publish(store, 2)
    first = store.consumers.register(name="w", kind="child")
    (delivery,) = claim(store)
    store.consumers.end_worker(first)
    with pytest.raises(WorkerSwept):
        claim(store)
    late = Settlement(delivery.message_id, delivery.delivery, Outcome.done())
    assert store.settle([late]) == [late]
    store.consumers.leave()
    assert store.consumers.register(name="w", kind="child") > first
    assert len(claim(store, 2)) == 2


def test_leaving_a_slot_that_somebody_else_has_taken_over_leaves_it_alone(store, path):
    store.consumers.register(name="w", kind="child")
    vanish(store)
    other = start(path)
    presence = store.consumers.presence
    presence.take(0)
    presence.write_entry(0, worker_id=4711, pid=1, heartbeat_ms=0, parent_id=0)
    store.consumers.leave()
    assert presence.entry(0).worker_id == 4711
    kill(other)


def test_who_cannot_write_when_it_leaves_is_ended_by_the_next_sweep(store, path, monkeypatch):
    """Its process goes on, and would hold what it held for as long as a lease."""
    publish(store, 1)
    claim(store)

    def refuse(*_, **__):
        message = "disk full"
        raise DiskFault(message)

    with monkeypatch.context() as patched:
        patched.setattr(store.database, "write", refuse)
        with pytest.raises(DiskFault):
            store.consumers.leave()
    other = Store(path)
    other.consumers.sweep()
    assert other.has_work(["default"])
    assert other.consumers.alive() == []
    other.close()


def test_a_killed_owner_is_not_alive_and_a_stopped_one_is(store, path):
    process = start(path)
    assert [worker.pid for worker, _ in store.consumers.alive()] == [process.pid]
    process.send_signal(signal.SIGSTOP)
    assert [worker.pid for worker, _ in store.consumers.alive()] == [process.pid]
    kill(process)
    assert store.consumers.alive() == []


def test_a_grandchild_that_survives_keeps_nobody_alive(store, path):
    (message_id,) = publish(store)
    process = start(path, take=1, started=1)
    grandchild = int(
        tell(process, "os.fork() or (os.setsid(), __import__('signal').pause(), os._exit(0))")
    )
    kill(process)
    try:
        os.kill(grandchild, 0)
        assert [one.message_id for one in store.consumers.sweep()] == [message_id]
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_supervisor_sees_its_children_and_what_they_have_started(store, path):
    parent = store.consumers.register(name="w", kind="worker")
    publish(store, 2)
    code = WORKER.replace("kind=kind)", f"kind=kind, parent_id={parent})")
    process = run_python(code, path, "child", 2, 1, "")
    worker_id = int(read_line(process))
    ((entry, notes),) = store.consumers.children_of(parent)
    assert (entry.worker_id, entry.pid) == (worker_id, process.pid)
    assert [(note.message_id, note.delivery, note.deadline_ms) for note in notes.values()] == [
        (1, 1, 0)
    ]
    assert {k: w for k, (_, w) in store.consumers.running().items()} == {1: worker_id}
    kill(process)
    # Until it is swept its notes can be read, but nothing of it runs.
    assert store.consumers.children_of(parent) == [(entry, notes)]
    assert store.consumers.running() == {}


def test_of_several_notes_for_a_message_the_newest_delivery_is_the_one_that_runs(frozen):
    presence = frozen.consumers.presence
    for worker_id, delivery in ((1, 2), (2, 1)):
        slot = presence.take_free_slot()
        presence.write_entry(slot, worker_id=worker_id, pid=1, heartbeat_ms=0, parent_id=0)
        presence.own(slot)
        presence.write_note(slot, 0, Note(7, delivery, 0, 0))
    note, worker_id = frozen.consumers.running()[7]
    assert (note.delivery, worker_id) == (2, 1)


# -- leases ---------------------------------------------------------------------------------------------------


def test_a_stopped_process_loses_its_lease_and_its_late_settlement_is_refused(store, path):
    first, second = publish(store, 2)
    code = WORKER.replace("lease_s=3600", "lease_s=0.5")
    process = run_python(code, path, "child", 2, 1, "")
    read_line(process)
    process.send_signal(signal.SIGSTOP)
    lost = wait_until(store.consumers.sweep)
    assert [(one.message_id, one.counted) for one in lost] == [(first, True), (second, False)]
    assert attempts(store, first) == [(1, "lost", "LeaseOver")]
    store.consumers.register(name="next", kind="child")
    assert len(claim(store, 2)) == 2
    process.send_signal(signal.SIGCONT)
    refused = tell(
        process,
        "[(s.message_id, s.delivery) for s in store.settle("
        "[Settlement(d.message_id, d.delivery, Outcome.done()) for d in held])]",
    )
    assert refused == f"[({first}, 1), ({second}, 1)]"
    assert look(store, first)[0] == "processing"
    kill(process)


def test_the_stale_note_of_a_stopped_process_does_not_hide_the_newer_one(frozen, clock, path):
    """Two slots note the same message: each delivery is counted by its own note."""
    (message_id,) = publish(frozen)
    process = start(path, boot="boot-1")  # shares the frozen clock, and sleeps from now on
    presence = frozen.consumers.presence
    stopped = next(e.slot for e in presence.entries() if e.pid == process.pid)
    frozen.consumers.register(name="w", kind="child")
    (delivery,) = claim(frozen)
    presence.write_note(stopped, 0, Note(message_id, delivery.delivery - 1, 0, 0))
    frozen.consumers.note_start(0, message_id, delivery.delivery, 0)
    assert (stopped, frozen.consumers._slot) == (0, 1)
    presence.write_note(stopped, 1, Note(message_id, delivery.delivery + 1, 0, 0))
    clock.advance(61)
    (lost,) = frozen.consumers.sweep()
    assert lost.counted
    assert look(frozen, message_id) == ("failed", 1, 0)


def test_extending_a_worker_lengthens_what_it_holds_and_nothing_else(frozen, clock, path):
    mine, others = publish(frozen, 2)
    frozen.consumers.register(name="w", kind="child")
    claim(frozen)
    other = Store(path, clock=clock)
    other.consumers.register(name="o", kind="child")
    claim(other)
    clock.advance(59)
    assert frozen.consumers.extend_worker([frozen.consumers.worker_id], 60) == 1
    assert frozen.consumers.extend_worker([], 60) == 0
    clock.advance(2)
    assert [one.message_id for one in frozen.consumers.sweep()] == [others]
    clock.advance(58)
    assert frozen.consumers.extend_worker([frozen.consumers.worker_id], 60) == 0  # over
    assert [one.message_id for one in frozen.consumers.sweep()] == [mine]
    other.close()


def test_a_sweep_that_finds_nothing_writes_nothing(store, path):
    publish(store)
    start(path, take=1, started=1)
    before = store.database.write_transactions
    for _ in range(5):
        assert store.consumers.sweep() == []
        assert store.consumers.sweep_all() == []
    assert store.database.write_transactions == before


# -- unknown presence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "replaced", "rubbish"])
def test_without_its_presence_file_a_process_is_unknown_until_its_lease_is_over(path, clock, harm):
    one = Store(path, clock=clock)
    (message_id,) = publish(one)
    one.consumers.register(name="w", kind="child")
    claim(one)
    one.consumers.note_start(0, message_id, 1, 0)
    presence_file = path.with_name("q.db-run") / "presence"
    presence_file.unlink()
    if harm == "replaced":
        PresenceFile.create(presence_file)
    elif harm == "rubbish":
        presence_file.write_bytes(b"rubbish")
    another = Store(path, clock=clock)
    assert another.consumers.presence is not one.consumers.presence
    assert [(w.name, entry) for w, entry in another.consumers.alive()] == [("w", None)]
    assert another.consumers.sweep_all() == []
    clock.advance(61)
    (lost,) = another.consumers.sweep_all()
    assert (lost.message_id, lost.counted) == (message_id, False)
    # Who registers from now on is known again, whichever file it had open.
    one.consumers.leave()
    one.consumers.register(name="again", kind="child")
    assert [(w.name, e is not None) for w, e in another.consumers.alive()] == [("again", True)]
    another.close()
    one.close()


def test_a_sweep_ends_who_died_in_a_slot_not_who_has_that_slot_in_a_lost_file(path, clock):
    one = Store(path, clock=clock)
    (message_id,) = publish(one)
    unknown = one.consumers.register(name="unknown", kind="child")
    claim(one)
    (path.with_name("q.db-run") / "presence").unlink()
    another = Store(path, clock=clock)
    another.consumers.register(name="dead", kind="child")
    assert one.consumers._slot == another.consumers._slot == 0
    vanish(another)
    third = Store(path, clock=clock)
    assert third.consumers.sweep() == third.consumers.sweep_all() == []
    assert [worker.id for worker, _ in third.consumers.alive()] == [unknown]
    assert look(third, message_id)[0] == "processing"
    for store in (third, another, one):
        store.close()


def test_after_a_reboot_everybody_from_before_is_dead(path, clock):
    one = Store(path, clock=clock)
    noted, unnoted = publish(one, 2)
    one.consumers.register(name="w", kind="child")
    claim(one, 2)
    one.consumers.note_start(0, noted, 1, 0)
    vanish(one)  # the kernel and all its locks are gone
    later = FakeClock(wall=clock.wall + 60_000, lease=5_000, boot_id="boot-2")
    another = Store(path, clock=later)
    lost = another.consumers.sweep_all()
    assert [(o.message_id, o.counted) for o in lost] == [(noted, True), (unnoted, False)]
    # A power cut may have lost the newest notes, so an unnoted one is held against the message.
    assert look(another, unnoted) == ("pending", 0, 1)
    another.close()


def test_after_a_reboot_that_lost_the_presence_file_everybody_from_before_is_dead(path, clock):
    one = Store(path, clock=clock)
    (message_id,) = publish(one)
    one.consumers.register(name="w", kind="child")
    claim(one)
    (path.with_name("q.db-run") / "presence").unlink()
    vanish(one)
    another = Store(path, clock=FakeClock(lease=5_000, boot_id="boot-2"))
    assert [o.message_id for o in another.consumers.sweep_all()] == [message_id]
    another.close()


def test_after_a_reboot_a_client_finds_what_only_the_rows_still_show(path, clock):
    """The row was on the disk, the slot's page was not; and no framework's worker sweeps here."""
    one = Store(path, clock=clock)
    (message_id,) = publish(one)
    one.consumers.register(name="w", kind="client")
    claim(one)
    one.consumers.presence.clear_entry(one.consumers._slot)
    vanish(one)
    another = Store(path, clock=FakeClock(lease=5_000, boot_id="boot-2"))
    another.consumers.register(name="c", kind="client")
    assert look(another, message_id) == ("pending", 0, 1)
    another.close()


def test_processes_of_another_kernel_or_time_namespace_are_refused(store, path):
    process = start(path, boot="another boot")
    for opening in (Store, lambda path: Store(path, clock=FakeClock())):
        with pytest.raises(CannotOpen, match=f"in use by process {process.pid} of another kernel"):
            opening(path)
    with pytest.raises(CannotOpen, match="of another kernel"):
        store.consumers.register(name="w", kind="child")
    Store(path, clock=FakeClock(boot_id="another boot")).close()
    kill(process)
    Store(path).close()
    store.consumers.register(name="w", kind="child")


def test_of_two_kernels_that_look_at_the_same_moment_one_is_refused(store, path, monkeypatch):
    """Both find nobody; then they register, one after the other."""
    process = start(path, boot="another boot")
    monkeypatch.setattr(store.consumers, "attach", lambda: None)
    with pytest.raises(CannotOpen, match="of another kernel"):
        store.consumers.register(name="w", kind="child")
    assert [worker.pid for worker, _ in store.consumers.alive()] == [process.pid]


def test_somebody_who_sweeps_the_dead_of_an_earlier_boot_is_not_taken_for_them(path, clock):
    """After a reboot many processes start at once: one sweeps a slot, the others must not refuse."""
    one = Store(path, clock=clock)
    one.consumers.register(name="w", kind="child")
    vanish(one)
    holding = """
        import sys
        from pathlib import Path
        from sqlqueue_transport.presence import PresenceFile
        file = PresenceFile.attach(Path(sys.argv[1]))
        print(file.take(0), flush=True)
        sys.stdin.readline()
    """
    process = run_python(holding, path.with_name("q.db-run") / "presence")
    assert read_line(process) == "True"
    later = FakeClock(lease=5_000, boot_id="boot-2")
    another = Store(path, clock=later)
    assert one.consumers.presence.standing(0) is Standing.CHANGING
    another.consumers.register(name="x", kind="child")
    assert another.consumers._slot == 1
    say(process)
    finish(process)
    another.close()


# -- threads ----------------------------------------------------------------------------------------------------


def test_threads_that_register_at_once_are_one_consumer(store):
    ids = []
    threads = [
        threading.Thread(
            target=lambda: ids.append(store.consumers.register(name="w", kind="client"))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1
    assert len(store.consumers.alive()) == 1


@pytest.mark.parametrize(("allowed", "expected"), [(2, "permanently_failed"), (0, "failed")])
def test_the_note_says_how_many_attempts_a_lost_job_may_have(store, allowed, expected):
    """The message need not say it: Celery's do not, nor does a call by name. 0 is no limit."""
    (message_id,) = publish(store)

    def work():
        store.consumers.register(name="victim", kind="child")
        (delivery,) = claim(store)
        store.consumers.note_start(
            0, delivery.message_id, delivery.delivery, 0, max_attempts=allowed
        )

    for _ in range(allowed or 7):
        store.database.write(
            lambda c: c.execute("UPDATE message SET due_at_ms = 0 WHERE state = 'failed'").rowcount
        )
        assert in_forked_child(work)
        assert len(store.consumers.sweep()) == 1
    assert look(store, message_id) == (expected, allowed or 7, 0)
