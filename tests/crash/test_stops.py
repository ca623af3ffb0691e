"""Processes that are stopped, and not killed: leases run out, and the late are refused."""

from __future__ import annotations

import os
import signal

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import is_running, run_python, wait_until


def _two_workers(arena: Arena) -> tuple[object, dict[str, object], str]:
    job = arena.publish("held")
    first = arena.worker("-c", 1, "-n", "first", "--visibility-timeout", "2s")
    running = arena.started(job)
    arena.worker("-c", 1, "-n", "second", "--visibility-timeout", "2s")
    wait_until(lambda: arena.logs().count("worker_ready") == 2, what="both workers")
    return first, running, job


def test_a_stopped_child_is_killed_and_its_job_runs_again(arena: Arena) -> None:
    _, running, job = _two_workers(arena)
    pid = int(str(running["pid"]))
    os.kill(pid, signal.SIGSTOP)
    detail = arena.wait_state(job, State.DONE)
    assert detail.row.attempts == 2
    assert detail.attempts[0].outcome == "lost"
    wait_until(lambda: not is_running(pid), what="the stopped child to be killed")
    assert "no heartbeat" in arena.logs()


def test_a_stopped_supervisor_loses_its_leases_and_its_child_is_refused(arena: Arena) -> None:
    first, running, job = _two_workers(arena)
    os.kill(first.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
    again = arena.started(job, attempt=2)
    assert again["worker"] != running["worker"]
    arena.wait_state(job, State.DONE)
    # The child of the stopped supervisor runs on; its settlement comes too late.
    (arena.directory / "go").touch()
    wait_until(lambda: "lease_lost" in arena.logs(), deadline_s=30, what="lease_lost in the log")
    assert arena.job(job).row.attempts == 2
    os.kill(first.pid, signal.SIGCONT)  # type: ignore[attr-defined]


def test_a_stopped_worker_that_wakes_up_again_is_refused(arena: Arena) -> None:
    first, running, job = _two_workers(arena)
    pid = int(str(running["pid"]))
    for each in (first.pid, pid):  # type: ignore[attr-defined]
        os.kill(each, signal.SIGSTOP)
    detail = arena.wait_state(job, State.DONE)
    assert detail.row.attempts == 2
    done_at = detail.row.finished_at_ms
    (arena.directory / "go").touch()
    # Child first: its supervisor would kill it for its silence before it could say anything.
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "lease_lost" in arena.logs(), deadline_s=30, what="lease_lost in the log")
    os.kill(first.pid, signal.SIGCONT)  # type: ignore[attr-defined]
    assert arena.job(job).row.finished_at_ms == done_at
    assert arena.job(job).row.attempts == 2


STOPPED_BEFORE_THE_START = """
import os, signal
from sqlqueue.backend import SqliteBackend

claim = SqliteBackend.claim

def claim_and_stop(self, *arguments):
    taken, refused = claim(self, *arguments)
    if taken:
        try:
            os.close(os.open("stopped.pid", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            with open("stopped.pid", "w") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
    return taken, refused

SqliteBackend.claim = claim_and_stop
"""


@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_what_was_claimed_and_not_started_before_a_long_stop_is_not_started_after_it(
    arena: Arena, pool: str
) -> None:
    app = arena.directory / "crashapp.py"
    app.write_text(app.read_text() + STOPPED_BEFORE_THE_START)
    first = arena.worker("-c", 1, "-P", pool, "-n", "first", "--visibility-timeout", "2s")
    wait_until(lambda: arena.logs().count("worker_ready") == 1, what="the first worker")
    job = arena.publish("work", 0)
    stopped = arena.directory / "stopped.pid"
    wait_until(lambda: stopped.exists() and stopped.read_text(), what="the claim")
    os.kill(first.pid, signal.SIGSTOP)  # or it would kill its silent child
    arena.worker("-c", 1, "-n", "second", "--visibility-timeout", "2s")
    arena.wait_state(job, State.DONE)
    os.kill(int(stopped.read_text()), signal.SIGCONT)
    wait_until(lambda: "lease_lost" in arena.logs(), deadline_s=30, what="lease_lost in the log")
    os.kill(first.pid, signal.SIGCONT)
    assert [line["event"] for line in arena.trace()] == ["start", "end"]
    assert arena.job(job).row.attempts == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_of_the_tree_drains(arena: Arena, number: int) -> None:
    running = [arena.publish("work", 1.5) for _ in range(2)]
    waiting = [arena.publish("work", 0) for _ in range(3)]
    worker = arena.worker("-c", 2)
    for job in running:
        arena.started(job)
    for pid in (worker.pid, *arena.children(worker)):
        os.kill(pid, number)
    assert worker.wait(timeout=30) == 0, arena.logs()
    for job in running:
        assert (arena.state(job), arena.job(job).row.attempts) == (State.DONE, 1)
    for job in waiting:
        assert (arena.state(job), arena.job(job).row.attempts) == (State.PENDING, 0)


def test_a_signal_that_a_task_had_taken_still_drains(arena: Arena) -> None:
    worker = arena.worker("-c", 1)
    running = arena.publish("takes_sigterm", 2)
    waiting = [arena.publish("work", 0) for _ in range(3)]
    arena.started(running)
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    assert arena.state(running) is State.DONE
    assert {arena.state(one) for one in waiting} == {State.PENDING}


def test_what_is_not_finished_within_the_grace_time_is_released_uncounted(arena: Arena) -> None:
    job = arena.publish("work", 60)
    worker = arena.worker("-c", 1, "--grace", "1s")
    running = arena.started(job)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(timeout=30) == 0, arena.logs()
    detail = arena.job(job)
    assert (detail.row.state, detail.row.attempts, detail.attempts) == (State.PENDING, 0, ())
    assert not is_running(running["pid"])


def test_a_second_signal_stops_at_once(arena: Arena) -> None:
    job = arena.publish("work", 60)
    worker = arena.worker("-c", 1, "--grace", "1h")
    arena.started(job)
    os.kill(worker.pid, signal.SIGINT)
    wait_until(lambda: "worker_draining" in arena.logs(), what="the drain")
    os.kill(worker.pid, signal.SIGINT)
    assert worker.wait(timeout=30) == 130, arena.logs()
    assert (arena.state(job), arena.job(job).row.attempts) == (State.PENDING, 0)


def test_a_signal_while_the_children_start_still_drains(arena: Arena) -> None:
    worker = arena.worker("-c", 4)
    wait_until(lambda: "child_started" in arena.logs(), what="the first child")
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait(timeout=30) == 0, arena.logs()


SIGNALLED_BEFORE_A_FORK = """
import os, signal, sys
from sqlqueue.worker import facts, supervisor

flush, calls, ours = supervisor.flush_output, 0, os.getpid()

def flush_and_be_told():
    global calls
    flush()
    if os.getpid() == ours:
        calls += 1
        if calls == int(sys.argv[1]):  # the first is that of the process which asks the application
            os.kill(ours, signal.SIGTERM)

facts.flush_output = supervisor.flush_output = flush_and_be_told
found = facts.ask_app("crashapp:app")
sys.exit(supervisor.Supervisor(supervisor.WorkerOptions("crashapp:app", "w"), found).run())
"""


@pytest.mark.parametrize("before_child", [1, 2, 3])
def test_a_signal_just_before_a_fork_reaches_the_child_or_prevents_it(
    arena: Arena, before_child: int
) -> None:
    settings = {"SQLQUEUE_WORKER_CONCURRENCY": "3", "SQLQUEUE_WORKER_GRACE": "1h"}
    worker = run_python(
        SIGNALLED_BEFORE_A_FORK, before_child + 1, cwd=arena.directory, env=settings
    )
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said


def test_max_jobs_is_exact_over_all_children(arena: Arena) -> None:
    for _ in range(20):
        arena.publish("work", 0)
    assert arena.worker("-c", 3, "--max-jobs", 7).wait(timeout=30) == 0, arena.logs()
    assert sum(row.state is State.DONE for row in arena.all_jobs()) == 7


def test_a_burst_ends_when_nothing_is_left(arena: Arena) -> None:
    jobs = [arena.publish("work", 0) for _ in range(20)]
    assert arena.worker("-c", 3, "--burst").wait(timeout=30) == 0, arena.logs()
    assert {arena.state(job) for job in jobs} == {State.DONE}
