"""A sleeper is woken by whoever stores what it waits for, at once and by nobody else."""

from __future__ import annotations

import os
import signal
import stat
import statistics
import threading
import time
from pathlib import Path

import pytest

from sqlqueue_transport import (
    NewMessage,
    Outcome,
    Settlement,
    Store,
    presence,
    sleepers,
    wakeup,
)
from sqlqueue_transport.wakeup import Bell, bell_path, ring
from tests.support import in_forked_child, kill, read_line, run_python, say, wait_until

# Sleeps whenever it is told a queue, and says when it was woken (system-wide monotonic clock).
SLEEPER = """
    import sys, time
    from sqlqueue_transport import Store, sleepers, wakeup
    path, longest_s = sys.argv[1:]
    sleepers.LONGEST_SLEEP_S = float(longest_s)
    store = Store(path)
    store.consumers.register(name="sleeper", kind="child")
    print(store.consumers._slot, flush=True)
    for line in sys.stdin:
        queues = line.split()
        # Whoever saw the work before he was rung is rung in vain the next time.
        wakeup.silence(store.consumers.bell.descriptor)
        before = store.database.read_transactions, store.database.write_transactions
        woken = store.consumers.sleep(queues, 30.0, has_work=store.has_work)
        now_ns = time.monotonic_ns()
        after = store.database.read_transactions, store.database.write_transactions
        print(now_ns, int(woken), after[0] - before[0], after[1] - before[1], flush=True)
        while store.claim(queues, 10, lease_s=60).deliveries:
            pass
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "q.db"


@pytest.fixture
def store(path):
    one = Store(path)
    yield one
    one.close()


class Sleeper:
    """A process that sleeps when told to."""

    def __init__(self, store, path, *, longest_s=30.0):
        self.store = store
        self.process = run_python(SLEEPER, path, longest_s)
        self.slot = int(read_line(self.process))

    def sleep(self, *queues):
        """Let it sleep and return when its flag is up."""
        say(self.process, " ".join(queues))
        memory = self.store.consumers.presence._memory
        wait_until(lambda: memory[presence._SLEEPING_AT + self.slot], every_s=0.0005)

    def wait(self):
        """Wait until it is awake; return (when, woken, reads, writes)."""
        at_ns, woken, reads, writes = map(int, read_line(self.process, deadline_s=35).split())
        return at_ns / 1e9, bool(woken), reads, writes


def publish(store, queue="default", **fields):
    store.publish([NewMessage(b"x", queue, **fields)], durable=False)


# -- the bell --------------------------------------------------------------------------------------------


def test_a_bell_sleeps_until_it_is_rung(tmp_path):
    bell = Bell(bell_path(tmp_path, 3))
    assert stat.S_IMODE(bell_path(tmp_path, 3).stat().st_mode) == 0o600
    assert not bell.wait(0.01)
    assert ring(tmp_path, 3)
    assert bell.wait(10)
    assert not bell.wait(0.01)
    bell.ring()
    bell.ring()
    assert bell.wait(10)
    assert not bell.wait(0)
    bell.close()


def test_ringing_where_nobody_listens_says_so(tmp_path):
    assert not ring(tmp_path, 0)
    Bell(bell_path(tmp_path, 0)).close()
    assert not ring(tmp_path, 0)


def test_a_bell_rung_a_million_times_never_blocks(tmp_path):
    bell = Bell(bell_path(tmp_path, 0))
    for _ in range(70_000):  # a FIFO holds 65,536 bytes
        bell.ring()
    assert ring(tmp_path, 0)
    assert bell.wait(0)
    assert not bell.wait(0)
    bell.close()


def test_a_bell_is_taken_over_from_a_dead_predecessor(tmp_path):
    path = bell_path(tmp_path, 0)
    assert in_forked_child(lambda: Bell(path).ring())
    bell = Bell(path)
    assert not bell.wait(0.01)
    assert ring(tmp_path, 0)
    assert bell.wait(10)
    bell.close()


def test_what_is_no_fifo_is_replaced_by_one(tmp_path):
    path = bell_path(tmp_path, 0)
    path.write_text("always readable")
    bell = Bell(path)
    assert not bell.wait(0.01)
    bell.close()


def test_paths_longer_than_a_socket_allows_work(tmp_path):
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    store = Store(directory / "q.db")
    sleeper = Sleeper(store, directory / "q.db")
    sleeper.sleep("default")
    publish(store)
    assert sleeper.wait()[1]
    store.close()


def test_a_signal_handler_may_ring_its_own_bell(tmp_path):
    bell = Bell(bell_path(tmp_path, 0))
    before = signal.signal(signal.SIGALRM, lambda *_: bell.ring())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert bell.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        bell.close()


def test_one_ring_wakes_every_thread_of_a_process(tmp_path):
    """Otherwise a thread could take the byte that was meant for another one."""
    bell = Bell(bell_path(tmp_path, 0))
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(bell.wait(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: bell._somebody_listens and len(bell._changed._waiters) == 3)
    ring(tmp_path, 0)
    for thread in threads:
        thread.join(10)
    assert woken == [True] * 4
    bell.close()


def test_a_ring_that_another_thread_hears_keeps_who_was_about_to_sleep_awake(tmp_path):
    """It has looked, in vain, before the commit; the byte that told of it is somebody else's."""
    bell = Bell(bell_path(tmp_path, 0))
    before_the_look = bell.heard
    other = threading.Thread(target=bell.wait, args=(20,))
    other.start()
    wait_until(lambda: bell._somebody_listens)
    ring(tmp_path, 0)
    other.join(10)
    assert bell.wait(0, since=before_the_look)
    assert not bell.wait(0, since=bell.heard)
    bell.close()


def test_an_event_loop_that_hears_the_bell_first_wakes_the_thread_that_listens(tmp_path):
    """Both poll the same FIFO, and who takes the byte takes the readiness from the other."""
    bell = Bell(bell_path(tmp_path, 0))
    woken = []
    listener = threading.Thread(target=lambda: woken.append(bell.wait(20)))
    listener.start()
    wait_until(lambda: bell._somebody_listens)
    bell.hear()
    listener.join(10)
    assert woken == [True]
    assert not bell.wait(0.01)
    bell.close()


# -- one process wakes another -----------------------------------------------------------------------------


def test_a_publisher_wakes_a_sleeper_in_another_process_promptly(store, path):
    sleeper = Sleeper(store, path)
    latencies_ms = []
    for _ in range(30):
        sleeper.sleep("default")
        began_s = time.monotonic()
        publish(store)
        at_s, woken, _, _ = sleeper.wait()
        assert woken
        latencies_ms.append((at_s - began_s) * 1000)
    print(
        f"from publish to awake: median {statistics.median(latencies_ms):.2f} ms, "
        f"worst {max(latencies_ms):.2f} ms"
    )
    assert statistics.median(latencies_ms) < 100


def test_only_who_waits_for_the_queue_is_woken(store, path):
    ours, others = Sleeper(store, path), Sleeper(store, path)
    others.sleep("other", "third")
    ours.sleep("default", "second")
    publish(store, "second")
    assert ours.wait()[1]
    ours.sleep("default")
    publish(store, "third")
    assert others.wait()[1]
    publish(store)
    assert ours.wait()[1]


def test_queues_that_share_a_bit_do_not_take_each_others_wake_ups(store, path):
    """One sleeper is woken for a message; it must be one that can claim it."""
    bit = presence._bit(presence._fingerprint("default"))
    twin = next(
        name
        for name in (f"queue-{n}" for n in range(10_000))
        if presence._bit(presence._fingerprint(name)) == bit
    )
    first, second = Sleeper(store, path), Sleeper(store, path)
    assert first.slot < second.slot
    first.sleep(twin)
    second.sleep("default")
    publish(store)
    assert second.wait()[1]
    publish(store, twin)
    assert first.wait()[1]


def test_a_sleeper_with_many_queues_does_not_keep_a_message_from_the_others(store, path):
    bit = presence._bit(presence._fingerprint("default"))
    names = (f"queue-{n}" for n in range(2000))
    many = [name for name in names if presence._bit(presence._fingerprint(name)) == bit][:12]
    assert len(many) == 12
    first, second = Sleeper(store, path), Sleeper(store, path)
    first.sleep(*many)
    second.sleep("default")
    publish(store)
    assert second.wait()[1]
    assert first.wait()[1]  # in vain, because more than eight queues cannot be told apart


def test_each_of_several_messages_wakes_a_sleeper_of_its_own(store, path):
    sleepers = [Sleeper(store, path) for _ in range(3)]
    for sleeper in sleepers:
        sleeper.sleep("default")
    store.publish([NewMessage(b"x", "default", task="t") for _ in range(3)])
    assert [sleeper.wait()[1] for sleeper in sleepers] == [True] * 3


def test_something_due_earlier_wakes_and_something_due_later_does_not(store, path):
    sleeper = Sleeper(store, path)
    sleeper.sleep("default")
    publish(store, due_at_ms=store.clock.wall_ms() + 3_600_000)
    memory = store.consumers.presence._memory
    assert memory[presence._SLEEPING_AT + sleeper.slot]
    due_ms = store.clock.wall_ms() + 1000
    publish(store, due_at_ms=due_ms)
    assert sleeper.wait()[1]  # woken now, to sleep anew until it is due
    if store.clock.wall_ms() < due_ms - 200:
        sleeper.sleep("default")
        sleeper.wait()
        assert due_ms <= store.clock.wall_ms() < due_ms + 5000


def test_a_sleeper_wakes_when_something_is_due(store, path):
    sleeper = Sleeper(store, path)
    due_ms = store.clock.wall_ms() + 500
    publish(store, due_at_ms=due_ms)
    say(sleeper.process, "default")
    at_s, _, _, _ = sleeper.wait()
    late_s = at_s - time.monotonic() + (store.clock.wall_ms() - due_ms) / 1000
    print(f"awake {late_s * 1000:.1f} ms after it was due")
    assert -0.01 < late_s < 2.5


def test_who_takes_no_messages_sleeps_on_beside_one_that_is_due(store):
    publish(store, due_at_ms=store.clock.wall_ms() + 1)
    wait_until(lambda: store.has_work(["default"]))
    began_s = time.monotonic()
    assert not store.consumers.sleep(["x"], 0.2, has_work=lambda _: False, until_due=False)
    assert time.monotonic() - began_s >= 0.2


def test_two_threads_that_sleep_are_both_awake_after_one_ring(store):
    """One looks at the file while the other takes the byte from the FIFO."""
    store.consumers.register(name="w", kind="child")
    looked, woken = threading.Event(), []

    def look_while_the_other_hears(_):
        looked.set()
        bell = store.consumers.bell
        wait_until(lambda: bell._somebody_listens)
        heard = bell.heard
        bell.ring()
        wait_until(lambda: bell.heard != heard)
        return False

    def sleep_first():
        looked.wait(10)
        woken.append(store.consumers.sleep(["b"], 1.0, has_work=lambda _: False))

    other = threading.Thread(target=sleep_first)
    other.start()
    assert store.consumers.sleep(["a"], 1.0, has_work=look_while_the_other_hears)
    other.join(10)
    assert woken == [True]


def test_what_was_stored_before_the_flag_went_up_is_seen_by_the_second_look(store):
    store.consumers.register(name="w", kind="child")
    looked = []

    def has_work(queues):
        # The flag is up before the look: no order of the two loses a message.
        looked.append(bool(list(store.consumers.presence.sleepers("default", None))))
        return True

    began_s = time.monotonic()
    assert store.consumers.sleep(["default"], 1.0, has_work=has_work)
    assert looked == [True]
    assert time.monotonic() - began_s < 0.5
    assert list(store.consumers.presence.sleepers("default", None)) == []


def test_the_flag_is_lowered_whatever_happens_in_the_look(store):
    def has_work(_):
        raise KeyError

    with pytest.raises(KeyError):
        store.consumers.sleep(["default"], 1.0, has_work=has_work)
    assert list(store.consumers.presence.sleepers("default", None)) == []


def test_a_killed_sleeper_takes_nobodys_wake_up(store, path):
    dead, living = Sleeper(store, path), Sleeper(store, path)
    dead.sleep("default")
    living.sleep("default")
    kill(dead.process)
    publish(store)
    assert living.wait()[1]


def test_a_killed_sleeper_whose_child_lives_on_takes_nobodys_wake_up(store, path):
    """The child has inherited the bell, but is nobody that could be woken."""
    code = SLEEPER.replace(
        "print(store.consumers._slot, flush=True)",
        "import os, signal\n"
        "    child = os.fork() or (os.setsid(), signal.pause())\n"
        "    print(store.consumers._slot, child, flush=True)",
    )
    dead = run_python(code, path, 30.0)
    slot, child = map(int, read_line(dead).split())
    try:
        living = Sleeper(store, path)
        assert slot < living.slot
        say(dead, "default")
        wait_until(lambda: list(store.consumers.presence.sleepers("default", None)))
        living.sleep("default")
        kill(dead)
        publish(store)
        assert living.wait()[1]
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_of_a_publisher_wakes_as_well(store, path):
    """It has no presence file open yet, and must not be content with that."""
    sleeper = Sleeper(store, path)
    sleeper.sleep("default")
    began_s = time.monotonic()
    assert in_forked_child(lambda: publish(store))
    assert sleeper.wait()[1]
    assert time.monotonic() - began_s < 5


def test_a_wake_up_that_fails_is_no_failure_of_the_publish(store, path, monkeypatch):
    """The message is stored; an error would make the caller publish it a second time."""
    sleeper = Sleeper(store, path, longest_s=1.0)
    sleeper.sleep("default")

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(wakeup, "ring", refuse)
    publish(store)
    sleeper.wait()
    assert store.database.read(lambda c: c.execute("SELECT count(*) FROM message").fetchone()) == (
        1,
    )


def test_a_store_closed_by_another_thread_is_no_failure_of_the_publish(store, monkeypatch):
    """The commit came first; only the look at who sleeps comes too late."""
    presence_file = store.consumers.presence
    sleepers = presence_file.sleepers

    def closed_just_now(queue, due_ms):
        store.consumers.detach()
        return sleepers(queue, due_ms)

    monkeypatch.setattr(presence_file, "sleepers", closed_just_now)
    publish(store)
    assert store.has_work(["default"])


def test_a_sleeping_consumer_asks_the_file_no_more_than_once_a_second(store, path):
    sleeper = Sleeper(store, path, longest_s=30.0)
    sleeper.sleep("default")
    wait_until(lambda: lies_still(sleeper.process.pid))
    seen = switches(sleeper.process.pid)
    publish(store, "somebody else's")
    publish(store, "default", due_at_ms=store.clock.wall_ms() + 3_600_000)
    assert switches(sleeper.process.pid) == seen  # it has not even been on a processor
    publish(store)
    _, woken, reads, writes = sleeper.wait()
    assert woken
    assert (reads, writes) == (2, 0)  # is there work, and when is the next due


def lies_still(pid):
    """Say whether a process sleeps, and was on no processor between two looks."""
    before = switches(pid)
    time.sleep(0.02)
    return status(pid)["State"].startswith("S") and switches(pid) == before


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def switches(pid):
    found = status(pid)
    return found["voluntary_ctxt_switches"], found["nonvoluntary_ctxt_switches"]


def test_several_threads_of_a_process_sleep_each_for_its_own_queues(store, path, monkeypatch):
    awake = []

    def sleep(queue):
        while not store.has_work([queue]):
            store.consumers.sleep([queue], 30.0, has_work=store.has_work)
        awake.append(queue)

    monkeypatch.setattr(sleepers, "LONGEST_SLEEP_S", 20.0)
    threads = {name: threading.Thread(target=sleep, args=(name,)) for name in ("a", "b", "c")}
    for thread in threads.values():
        thread.start()
    wait_until(lambda: len(store.consumers.sleepers._asleep) == 3)
    publisher = Store(path)
    for left, name in enumerate(("b", "a", "c"), start=1):
        publish(publisher, name)
        threads[name].join(10)
        assert awake[-1:] == [name]
        wait_until(lambda left=left: len(store.consumers.sleepers._asleep) == 3 - left)
    publisher.close()


# -- many of them ------------------------------------------------------------------------------------------


STRESS = """
    import sys, time
    from sqlqueue_transport import Outcome, Settlement, Store, sleepers
    sleepers.LONGEST_SLEEP_S = 20.0  # a lost wake-up must be seen, not slept over
    store, queue = Store(sys.argv[1]), "default"
    store.consumers.register(name=queue, kind="child")
    print(flush=True)
    while True:
        claim = store.claim([queue], 1, lease_s=60)
        for d in claim.deliveries:
            store.settle([Settlement(d.message_id, d.delivery, Outcome.done())])
            print(d.message_id, flush=True)
        if not claim.deliveries:
            store.consumers.sleep([queue], 20.0, has_work=store.has_work)
"""


def stress(store, path, *, rounds, processes):
    """Publish one message at a time and wait for its end; return the times that took."""
    running = [run_python(STRESS, path) for _ in range(processes)]
    for process in running:
        read_line(process)
    done = threading.Semaphore(0)

    def listen(process):
        for _ in process.stdout:
            done.release()

    listeners = [threading.Thread(target=listen, args=(process,)) for process in running]
    for listener in listeners:
        listener.start()
    took_s = []
    for number in range(rounds):
        if number % 3 == 0:  # sometimes all are asleep, sometimes one is just lying down
            wait_until(
                lambda: list(store.consumers.presence.sleepers("default", None)), every_s=0.0002
            )
        began_s = time.monotonic()
        publish(store)
        assert done.acquire(timeout=15), f"lost a wake-up in round {number}"
        took_s.append(time.monotonic() - began_s)
    for process in running:
        kill(process)
    for listener in listeners:
        listener.join()
    return took_s


@pytest.mark.parametrize("processes", [1, 3])
def test_no_wake_up_is_lost_in_hundreds_of_rounds(store, path, processes):
    took_s = stress(store, path, rounds=400, processes=processes)
    print(
        f"{processes} consumers: median {statistics.median(took_s) * 1000:.2f} ms, "
        f"worst {max(took_s) * 1000:.1f} ms"
    )
    assert max(took_s) < 10


@pytest.mark.slow
def test_no_wake_up_is_lost_in_many_thousand_rounds(store, path):
    assert max(stress(store, path, rounds=20_000, processes=2)) < 10


def test_a_burst_wakes_as_many_as_it_needs(store, path):
    """Who finds more than he takes passes the word on."""
    processes = [run_python(STRESS, path) for _ in range(3)]
    for process in processes:
        read_line(process)
    wait_until(lambda: len(list(store.consumers.presence.sleepers("default", None))) == 3)
    store.publish([NewMessage(b"x", "default", task="t") for _ in range(60)])
    wait_until(
        lambda: (
            store.database.read(
                lambda c: c.execute("SELECT count(*) FROM message WHERE state = 'done'").fetchone()
            )
            == (60,)
        )
    )
    workers = store.database.read(
        lambda c: c.execute("SELECT count(DISTINCT worker_id) FROM message").fetchone()[0]
    )
    assert workers >= 2


def test_a_release_or_a_retry_wakes_who_could_take_it(store, path):
    store.consumers.register(name="w", kind="child")
    publish(store)
    (delivery,) = store.claim(["default"], lease_s=60).deliveries
    sleeper = Sleeper(store, path)
    sleeper.sleep("default")
    store.settle([Settlement(delivery.message_id, delivery.delivery, Outcome.release())])
    assert sleeper.wait()[1]


# -- closing while others use it --------------------------------------------------------------------


def test_a_closed_bell_touches_no_file_that_has_got_its_numbers(tmp_path):
    """The database would be such a file, and a byte at its beginning the end of it."""
    bell = Bell(tmp_path / "wake.1")
    echo_reading, echo = os.pipe()
    bell.add_echo(echo)
    numbers = (bell.descriptor, bell._word_reading, bell._word_writing)
    bell.close()
    victims = []
    for number in numbers:
        # Never the number itself, or it would be closed again.
        opened = os.open(tmp_path / f"victim-{number}", os.O_RDWR | os.O_CREAT)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        os.write(number, b"data")
        os.lseek(number, 0, os.SEEK_SET)
        victims.append(number)
    bell.ring()
    bell.hear()
    assert bell.wait(0.01)
    bell.close()
    assert [os.lseek(number, 0, os.SEEK_CUR) for number in victims] == [0, 0, 0]
    assert [os.read(number, 9) for number in victims] == [b"data"] * 3
    for number in (*victims, echo_reading, echo):
        os.close(number)


def test_closing_a_bell_wakes_all_who_wait_for_it(tmp_path):
    bell = Bell(tmp_path / "wake.1")
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(bell.wait(60.0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: bell._somebody_listens)
    bell.close()
    for thread in threads:
        thread.join(timeout=10)
    assert woken == [True] * 3


def test_a_bell_is_closed_in_a_child_whoever_held_its_lock_in_the_parent(tmp_path):
    bell = Bell(tmp_path / "wake.1")
    is_held, may_go = threading.Event(), threading.Event()

    def hold():
        with bell._changed:
            is_held.set()
            may_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(10)
    try:
        assert in_forked_child(bell.close_in_child)
    finally:
        may_go.set()
        thread.join()
        bell.close()


def test_a_publisher_rings_before_the_disk_has_its_message(store, path, monkeypatch):
    """What has slept begins while the publisher still waits for the flush; awake ones always did."""
    sleeper = Sleeper(store, path, longest_s=3)
    sleeper.sleep("default")
    may_flush = threading.Event()
    real = os.fdatasync

    def fdatasync(descriptor):
        assert may_flush.wait(20)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    publisher = threading.Thread(target=store.publish, args=([NewMessage(b"x", "default")],))
    publisher.start()
    try:
        assert sleeper.wait()[1]
        assert publisher.is_alive()
    finally:
        may_flush.set()
        publisher.join()
