"""Tasks that do to their process what no task should: each ends as the docs say, and alone.

One worker gets them all, each with a good job behind it. What is asked in the end: the outcome of
each, that every good job ran once, that the worker still works and drains, and that the file is in
order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import is_running, wait_until

pytestmark = pytest.mark.slow

APP = '''
import ctypes, gc, json, multiprocessing, os, resource, signal, sqlite3, sys, threading, time
from crashapp import app, trace

sys.path.append(os.getcwd())


def hostile(function):
    return app.task(name=function.__name__, max_attempts=1, time_limit=20.0)(function)


@hostile
def exits():
    sys.exit(3)


@hostile
def interrupts():
    raise KeyboardInterrupt


@hostile
def exits_hard():
    os._exit(0)


@hostile
def exits_in_a_thread():
    thread = threading.Thread(target=os._exit, args=(3,))
    thread.start()
    time.sleep(20)


@hostile
def a_thread_exits():
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()
    return "here"


@hostile
def segfaults():
    ctypes.string_at(0)


@hostile
def aborts():
    os.abort()


@hostile
def raises_bare():
    raise BaseException("bare")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@hostile
def raises_unprintable():
    raise Unprintable


@hostile
def raises_giant():
    raise ValueError("x" * 100_000_000)


@hostile
def returns_circle():
    value = []
    value.append(value)
    return value


@hostile
def returns_giant():
    return "x" * 5_000_000


@hostile
def returns_object():
    return object()


@hostile
def overflows_the_stack():
    """Lift Python's own limit, and let C code recurse."""
    sys.setrecursionlimit(10**6)
    value = []
    for _ in range(500_000):
        value = [value]
    try:
        return len(repr(value))
    finally:
        sys.setrecursionlimit(1000)


@hostile
def hogs_memory():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 64_000_000, hard))
    try:
        return len(bytearray(2_000_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@hostile
def becomes_a_daemon():
    pid = os.fork()
    if not pid:
        os.setsid()
        if os.fork():
            os._exit(0)
        with open("daemon.pid", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
        os._exit(0)
    os.waitpid(pid, 0)
    return "here"


@hostile
def opens_the_queue_file():
    with sqlite3.connect("queue.db") as connection:
        connection.execute("SELECT count(*) FROM message").fetchone()
    connection.close()
    open("queue.db", "rb").close()  # drops the POSIX locks of this process (man 2 fcntl)
    return app.send_task("work", (0,), job_id="sent after open").id


@hostile
def wanders():
    os.umask(0)
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
    return "left there"


@hostile
def takes_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    return "here"


@hostile
def leaves_a_timer():
    def ring(*_):
        raise RuntimeError("too late")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    return "here"


@hostile
def leaves_an_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # would end the process
    return "here"


@hostile
def leaves_threads():
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(600,)).start()
    return "here"


@hostile
def stops_collecting():
    gc.disable()
    gc.set_threshold(1)
    return "here"


@hostile
def patches_json():
    def broken(*_, **__):
        raise RuntimeError("patched")

    json.dumps = json.loads = broken
    return "here"


@hostile
def closes_all():
    os.closerange(3, 65_536)
    return "here"


@hostile
def limits_files():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    return "here"


@hostile
def limits_sizes():
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    return "here"


@hostile
def forks_in_c():
    """Fork without Python's hooks, and use the store in the copy."""
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        try:
            app.send_task("work", (0,), job_id="sent by a copy made in C")
            said = "stored"
        except BaseException as error:
            said = type(error).__name__
        with open("c_fork.txt", "w") as file:
            file.write(said)
        os._exit(0)
    os.waitpid(pid, 0)
    with open("c_fork.txt") as file:
        said = file.read()
    app.send_task("work", (0,), job_id="sent by the parent")
    return said


def _enqueue(job_id):
    app.send_task("work", (0,), job_id=job_id)


@hostile
def forks_and_enqueues():
    app.send_task("work", (0,), job_id="sent before")  # the store is open when it forks
    process = multiprocessing.get_context("fork").Process(target=_enqueue, args=("sent by a fork",))
    process.start()
    process.join()
    app.send_task("work", (0,), job_id="sent after")
    return process.exitcode
'''

DONE, DEAD = State.DONE, State.PERMANENTLY_FAILED
# Task: the state it ends in, the outcome of its attempt, and the type of its error.
FAILS = {
    "exits": (DEAD, "failed", "SystemExit"),
    "interrupts": (DEAD, "failed", "KeyboardInterrupt"),
    "raises_bare": (DEAD, "failed", "BaseException"),
    "raises_unprintable": (DEAD, "failed", "Unprintable"),
    "raises_giant": (DEAD, "failed", "ValueError"),
    "returns_circle": (DEAD, "failed", "UnserializableResult"),
    "returns_giant": (DEAD, "failed", "UnserializableResult"),
    "returns_object": (DEAD, "failed", "UnserializableResult"),
    "hogs_memory": (DEAD, "failed", "MemoryError"),
}
DIES = {
    "exits_hard": (DEAD, "lost", "WorkerLost"),
    "exits_in_a_thread": (DEAD, "lost", "WorkerLost"),
    "segfaults": (DEAD, "lost", "WorkerLost"),
    "aborts": (DEAD, "lost", "WorkerLost"),
    "closes_all": (DEAD, "lost", "WorkerLost"),
}
LIVES = dict.fromkeys(
    [
        *("a_thread_exits", "becomes_a_daemon", "opens_the_queue_file", "wanders"),
        *("leaves_a_timer", "leaves_an_alarm", "takes_signals", "leaves_threads"),
        *("stops_collecting", "patches_json", "limits_files", "limits_sizes"),
        *("forks_in_c", "forks_and_enqueues"),
    ],
    (DONE, None, None),
)
# Only the main thread may set signals, which is not a task's in the pool of threads.
NOT_IN_THREADS = {"leaves_a_timer", "leaves_an_alarm", "takes_signals"}
SENT = ("sent after open", "sent by the parent", "sent before", "sent by a fork", "sent after")


@pytest.fixture
def hostile(arena: Arena) -> Any:
    (arena.directory / "hostileapp.py").write_text(APP)
    yield arena
    pid_file = arena.directory / "daemon.pid"
    if pid_file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def run_all(
    arena: Arena, expected: dict[str, tuple[State, str | None, str | None]], *arguments: object
) -> None:
    """Run each hostile task with a good job behind it, and compare what became of all."""
    jobs = {task: (arena.publish(task), arena.publish("work", 0)) for task in expected}
    # One at a time: in a batch, what a task breaks and survives may cost the next one an attempt.
    apart = {"SQLQUEUE_WORKER_PREFETCH_MULTIPLIER": "1"}
    worker = arena.start("worker", "-A", "hostileapp:app", *arguments, env=apart)
    ends = {State.DONE, State.PERMANENTLY_FAILED}
    wait_until(
        lambda: all(row.state in ends for row in arena.all_jobs()),
        deadline_s=120,
        what=f"all jobs to end, log:\n{arena.logs()[-3000:]}",
    )
    found, bad = {}, []
    for task, (job, neighbour) in jobs.items():
        detail, good = arena.job(job), arena.job(neighbour)
        outcome = detail.attempts[-1].outcome if detail.attempts else None
        found[task] = (detail.row.state, outcome, detail.row.error_type)
        assert detail.row.attempts == 1, task
        assert len(detail.row.error_message or "") < 2_100, task
        if (good.row.state, good.row.attempts) != (DONE, 1):
            bad.append((task, good.row.state, good.row.attempts))
    assert found == expected
    assert bad == [], arena.logs()[-5_000:]
    starts = [line["job"] for line in arena.trace() if line["event"] == "start"]
    assert len(starts) == len(set(starts)), "a good job ran twice"
    last = arena.publish("work", 0)
    arena.wait_state(last, DONE)
    worker.terminate()
    assert worker.wait(timeout=60) == 0, arena.logs()[-3000:]
    with contextlib.closing(sqlite3.connect(arena.directory / "queue.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def look_at_what_they_did(arena: Arena) -> None:
    """Look whether the store was safe from what those that live did to it."""
    for job in SENT:
        assert arena.state(job) is DONE, job
    assert arena.app.backend.message_ids_of("sent by a copy made in C") == []
    assert (arena.directory / "c_fork.txt").read_text() == "ForkedStore"
    made = [arena.directory / "queue.db", *arena.directory.glob("queue.db-run/*")]
    assert {oct(path.stat().st_mode & 0o077) for path in made} == {"0o0"}
    assert is_running(int((arena.directory / "daemon.pid").read_text()))


def test_what_a_task_does_to_its_process_is_its_own_affair(hostile: Arena) -> None:
    run_all(hostile, {**FAILS, **DIES, **LIVES}, "-c", 2)
    look_at_what_they_did(hostile)


def test_what_a_task_does_to_its_process_is_survived_by_the_pool_of_threads(hostile: Arena) -> None:
    lives = {task: end for task, end in LIVES.items() if task not in NOT_IN_THREADS}
    # Of those that end it two will do: a child that dies often is started ever later. And one at a
    # time: what ends the process ends all that runs in it, as the docs say.
    dies = {task: DIES[task] for task in ("exits_hard", "closes_all")}
    run_all(hostile, {**FAILS, **dies, **lives}, "-P", "threads", "-c", 1)
    look_at_what_they_did(hostile)


def test_c_code_that_overflows_the_stack_ends_its_own_job_only(hostile: Arena) -> None:
    job, good = hostile.publish("overflows_the_stack"), hostile.publish("work", 0)
    hostile.start("worker", "-A", "hostileapp:app", "-c", 1)
    detail = hostile.wait_state(job, DEAD)
    # Python 3.12 counts the depth of C code for itself, and raises.
    assert detail.attempts[-1].outcome in {"lost", "failed"}
    assert hostile.wait_state(good, DONE).row.attempts == 1


def test_limits_that_a_task_lowers_for_good_end_its_process_and_not_the_worker(
    hostile: Arena,
) -> None:
    file = hostile.directory / "hostileapp.py"
    file.write_text(file.read_text() + LOWERS_FOR_GOOD)
    job, good = hostile.publish("limits_sizes_for_good"), hostile.publish("work", 0)
    hostile.start("worker", "-A", "hostileapp:app", "-c", 1)
    detail = hostile.wait_state(job, DEAD)
    assert detail.attempts[-1].outcome == "lost"
    assert hostile.wait_state(good, DONE).row.attempts == 1


# As for a user who may not raise his own limits again, also where the tests run as root.
LOWERS_FOR_GOOD = """

@hostile
def limits_sizes_for_good():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")
    resource.setrlimit = refuse
"""
