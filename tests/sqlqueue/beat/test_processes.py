"""Real beats: what changes while they run, and what producers and signals do to them."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from sqlqueue.task import Signature
from tests.support import is_running, kill, run_python, wait_until

BEAT = """
    import contextlib, ctypes, os, stat, subprocess, sys, time
    from sqlqueue import SqlQueue, log
    from sqlqueue.beat.service import run_beat

    log.configure("info", format="json")
    app = SqlQueue("test", broker_url="sqlqueue:///queue.db", beat_producer_timeout=1)

    @app.task(name="t")
    def t(x=None):
        pass

    if "good" in sys.argv:
        @app.producer(name="good", every="0.2s")
        def good(tick):
            yield t.s(tick.due_ms)

    if "sleeps" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def sleeps(tick):
            with open("pids", "a") as file:
                file.write(f"{os.getpid()} {subprocess.Popen(['sleep', '60']).pid}\\n")
            time.sleep(60)
            yield

    if "loops in C" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def loops(tick):
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock
            yield

    if "never ends" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def never_ends(tick):
            while True:
                yield t.s("x" * 100_000)

    if "exits" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def exits(tick):
            os._exit(0)

    if "sys.exits" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def sys_exits(tick):
            yield t.s()
            sys.exit(3)

    if "crashes" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def crashes(tick):
            ctypes.string_at(0)

    if "forks" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def forks(tick):
            os.fork()  # the copy comes back, and must not go on as the producer
            yield t.s("forked")

    if "writes to our pipe" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def writes_to_our_pipe(tick):
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                with contextlib.suppress(OSError):
                    if descriptor > 2 and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                        os.write(descriptor, b"{\\xff\\n")
            yield t.s()

    if "forks and yields" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def forks_and_yields(tick):
            yield from (t.s(i) for i in range(500))
            os.fork()
            yield from (t.s(i) for i in range(500, 1000))

    if "closes" in sys.argv:
        @app.producer(name="bad", every="0.2s")
        def closes(tick):
            os.closerange(3, 1000)
            yield t.s()

    sys.exit(run_beat(app, name="b", max_interval_s=30))
"""


@pytest.fixture
def start(here):
    started = []

    def begin(*producers):
        process = run_python(BEAT, *producers, cwd=here)
        started.append(process)
        return process

    yield begin
    for process in started:
        kill(process)
        process.communicate()


def ticks(app, entry):
    return app.backend.store.database.read(
        lambda c: c.execute(
            "SELECT due_ms, jobs FROM tick WHERE entry = ? ORDER BY due_ms", (entry,)
        ).fetchall()
    )


def running(app):
    return [row for row in app.backend.workers() if row.kind == "beat"]


def ended(process):
    out, error = process.communicate(timeout=30)
    return process.returncode, out + error


# --- changes while it runs ------------------------------------------------------------------------


def test_a_running_beat_takes_up_changes_at_once_though_it_sleeps_for_long(app, start):
    process = start()  # would look again after 30 s
    wait_until(lambda: running(app))
    began_s = time.monotonic()
    app.schedules.add("mine", Signature("t"), every="0.1s")
    wait_until(lambda: len(ticks(app, "mine")) >= 3, deadline_s=5)
    print(f"added: {time.monotonic() - began_s:.2f} s until the third tick of 0.1 s")
    app.schedules.pause("mine")
    count = len(ticks(app, "mine"))  # none is taken after the pause has returned
    app.schedules.add("other", Signature("t"), every="0.1s")
    wait_until(lambda: len(ticks(app, "other")) >= 3, deadline_s=5)
    assert len(ticks(app, "mine")) == count
    app.schedules.resume("mine")
    wait_until(lambda: len(ticks(app, "mine")) > count, deadline_s=5)
    app.schedules.remove("mine")
    assert ticks(app, "mine") == []
    count = len(ticks(app, "other"))
    wait_until(lambda: len(ticks(app, "other")) >= count + 3, deadline_s=5)
    assert ticks(app, "mine") == []
    process.terminate()
    assert ended(process)[0] == 0


def test_a_beat_without_entries_uses_no_time(app, start):
    from tests.support import cpu_s

    process = start()
    wait_until(lambda: running(app))
    before_s, began_s = cpu_s(process.pid), time.monotonic()
    wait_until(lambda: time.monotonic() - began_s > 1.0)
    used_s = cpu_s(process.pid) - before_s
    print(f"{used_s * 1000:.1f} ms of CPU in a second")
    assert used_s < 0.3


# --- producers that are no good -------------------------------------------------------------------

BAD = {
    "sleeps": "ProducerTimeout: it had not ended after 1 s",
    "loops in C": "ProducerTimeout: it had not ended after 1 s",
    "never ends": "Producer",  # too much, or too long, whichever comes first
    "exits": "ProducerEnded: it ended its process (exit code 0)",
    "sys.exits": "SystemExit: 3",
    "crashes": "ProducerEnded: it ended its process (signal 11)",
    "closes": "Producer",
    "writes to our pipe": "ProducerGarbled: something beside its calls was written to its pipe",
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind, marks=pytest.mark.slow if "Timeout" in said or said == "Producer" else ()
        )
        for kind, said in BAD.items()
    ],
)
def test_a_producer_that_is_no_good_stops_nothing_else_and_is_reported(app, start, kind):
    process = start("good", kind)

    def error():
        found = {row.entry: row.error for row in app.schedules.list()}
        return found.get("bad")

    wait_until(error, deadline_s=20)
    assert error().startswith(BAD[kind])
    count = len(ticks(app, "good"))
    wait_until(lambda: len(ticks(app, "good")) >= count + 10, deadline_s=20)
    good = [due for due, _ in ticks(app, "good")]
    # While the bad one was waited for, too: each tick of the good one is there.
    assert [after - before for before, after in itertools.pairwise(good)] == [200] * (len(good) - 1)
    assert ticks(app, "bad") == []
    process.terminate()
    code, said = ended(process)
    assert code == 0
    assert '"event": "producer_failed"' in said


def test_a_producer_that_forks_enqueues_its_calls_once(app, start):
    process = start("forks")
    wait_until(lambda: len(ticks(app, "bad")) >= 5, deadline_s=20)
    process.terminate()
    assert ended(process)[0] == 0
    assert {jobs for _, jobs in ticks(app, "bad")} == {1}
    assert sum(app.backend.counts().states.values()) == len(ticks(app, "bad"))


def test_a_copy_that_goes_on_yielding_adds_nothing_to_its_producers_tick(app, start):
    process = start("forks and yields")
    wait_until(lambda: len(ticks(app, "bad")) >= 3, deadline_s=20)
    process.terminate()
    assert ended(process)[0] == 0
    assert {jobs for _, jobs in ticks(app, "bad")} == {1000}


@pytest.mark.slow
def test_what_a_producer_has_started_dies_with_it_at_its_time_limit(app, here, start):
    process = start("sleeps")
    wait_until(lambda: (here / "pids").exists() and (here / "pids").read_text().count("\n") >= 2)
    first = [int(pid) for pid in (here / "pids").read_text().split()[:2]]
    assert not any(map(is_running, first))
    process.terminate()
    assert ended(process)[0] == 0
    every = [int(pid) for pid in (here / "pids").read_text().split()]
    assert not any(map(is_running, every))


def test_producers_die_with_a_beat_that_is_killed(app, here, start):
    process = start("sleeps")
    wait_until(lambda: (here / "pids").exists() and (here / "pids").read_text().endswith("\n"))
    producer = int((here / "pids").read_text().split()[0])
    assert is_running(producer)
    kill(process)
    wait_until(lambda: not is_running(producer))
    # What it started itself leads no life of ours, and is the test's to end.
    os.kill(int((here / "pids").read_text().split()[1]), signal.SIGKILL)


def test_a_stop_of_the_whole_group_lets_a_producer_finish(here, app):
    """As systemd does it: SIGTERM to every process of the service."""
    program = """
        import sys, time
        from sqlqueue import SqlQueue
        from sqlqueue.beat.service import run_beat

        app = SqlQueue("test", broker_url="sqlqueue:///queue.db")

        @app.producer(every="0.1s", name="p")
        def produce(tick):
            import os
            print(os.getpid(), flush=True)
            sys.stdin.readline()
            return []

        sys.exit(run_beat(app, name="b"))
    """
    process = run_python(program, cwd=here)
    producer = int(process.stdout.readline())
    os.kill(producer, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    os.kill(producer, signal.SIGTERM)
    process.stdin.write("\n")
    process.stdin.flush()
    assert ended(process)[0] == 0
    assert len(ticks(app, "p")) == 1


@pytest.mark.slow
def test_a_producer_that_hangs_keeps_no_beat_from_stopping(app, here):
    program = BEAT.replace("beat_producer_timeout=1", "beat_producer_timeout=600")
    process = run_python(program, "sleeps", cwd=here)
    wait_until(lambda: (here / "pids").exists() and (here / "pids").read_text().endswith("\n"))
    began_s = time.monotonic()
    process.terminate()
    code, _ = ended(process)
    print(f"stopped after {time.monotonic() - began_s:.1f} s")
    assert code == 0
    assert not any(is_running(int(pid)) for pid in (here / "pids").read_text().split())
    assert ticks(app, "bad") == []
    [row] = app.schedules.list()
    assert row.next_due_ms is not None
    said = "ProducerStopped: it had not ended 5 s after the beat was told to stop"
    assert row.error.startswith(said)


@pytest.mark.parametrize(
    ("limit_s", "grace_s", "said"),
    [
        (1, 600, "ProducerTimeout: it had not ended after 1 s"),
        (600, 0.1, "ProducerStopped: it had not ended 0.1 s after the beat was told to stop"),
    ],
)
def test_the_earlier_of_deadline_and_grace_ends_a_producer_and_the_fault_says_which(
    app, here, limit_s, grace_s, said
):
    program = BEAT.replace("beat_producer_timeout=1", f"beat_producer_timeout={limit_s}").replace(
        "sys.exit(run_beat", f"run_beat.__globals__['_GRACE_S'] = {grace_s}; sys.exit(run_beat"
    )
    process = run_python(program, "sleeps", cwd=here)
    wait_until(lambda: (here / "pids").exists() and (here / "pids").read_text().endswith("\n"))
    process.terminate()
    code, log = ended(process)
    [row] = app.schedules.list()
    assert (code, row.error[: len(said)]) == (0, said)
    # Whether the signal comes before a deadline of 1 s is the machine's affair.
    assert limit_s == 1 or '"retry_in_s": null' in log
    assert not any(is_running(int(pid)) for pid in (here / "pids").read_text().split())
    assert ticks(app, "bad") == []
