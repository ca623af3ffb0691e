"""Running jobs that are ended by force: theirs is the process that dies, and nobody else's."""

from __future__ import annotations

import os
import signal

import pytest

from sqlqueue.config import Settings
from sqlqueue.worker.facts import AppFacts
from sqlqueue.worker.places import Child
from sqlqueue.worker.supervisor import Supervisor, WorkerOptions
from sqlqueue_transport.lifecycle import Event, State
from tests.crash.conftest import Arena
from tests.support import is_running, read_line, run_python, say, wait_until

pytestmark = pytest.mark.slow


def _ask(arena: Arena, job: str, *, force_in_s: float | None = None) -> None:
    message_id = arena.job(job).row.message_id
    (acted,) = arena.app.backend.act(
        Event.TERMINATE, [(message_id, State.PROCESSING)], actor="ann", kill_in_s=force_in_s
    )
    assert (acted.after, acted.holder) == (State.PROCESSING, "child")


def test_a_job_that_does_not_stop_is_killed_and_its_neighbour_goes_on(arena: Arena) -> None:
    worker = arena.worker("-c", 2)
    doomed, neighbour = arena.publish("work", 600), arena.publish("work", 3)
    running = arena.started(doomed)
    arena.started(neighbour)
    _ask(arena, doomed, force_in_s=0.5)
    detail = arena.wait_state(doomed, State.CANCELLED)
    wait_until(lambda: not is_running(running["pid"]), what="the child to be killed")
    assert [(one.attempt, one.outcome, one.error_type) for one in detail.attempts] == [
        (1, "cancelled", "JobCancelled")
    ]
    kill_at_ms, finished_at_ms = detail.row.kill_at_ms, detail.row.finished_at_ms
    assert kill_at_ms is not None
    assert finished_at_ms is not None
    late_s = (finished_at_ms - kill_at_ms) / 1000
    print(f"killed {late_s:.2f} s after its time")
    assert 0 <= late_s < 10  # promised within about a second
    found = arena.wait_state(neighbour, State.DONE)
    assert (found.row.attempts, found.attempts) == (1, ())
    # The place is filled again.
    assert arena.wait_state(arena.publish("work", 0), State.DONE)
    assert worker.poll() is None
    assert "ended by force" in arena.logs()
    assert "job_cancelled" in arena.logs()


def test_the_job_that_follows_in_the_same_child_is_not_killed(arena: Arena) -> None:
    """What is killed for is a delivery, not a process: here the job ends before its time is over."""
    arena.worker("-c", 1)
    asked, following = arena.publish("work", 1), arena.publish("work", 3)
    running = arena.started(asked)
    _ask(arena, asked, force_in_s=1.5)
    assert arena.wait_state(asked, State.DONE).row.attempts == 1
    found = arena.wait_state(following, State.DONE)
    assert (found.row.attempts, arena.started(following)["pid"]) == (1, running["pid"])


def test_a_process_that_holds_the_gil_and_ignores_everything_is_ended_all_the_same(
    arena: Arena,
) -> None:
    arena.worker("-c", 1, "--time-limit", "10m")
    job = arena.publish("stubborn")
    arena.started(job)
    _ask(arena, job, force_in_s=0)
    arena.wait_state(job, State.CANCELLED)
    grandchild = int((arena.directory / "grandchild.pid").read_text())
    wait_until(lambda: not is_running(grandchild), what="what it had started to be killed, too")


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_a_process_that_dies_while_its_job_is_asked_to_stop_leaves_it_cancelled(
    arena: Arena, victim: str
) -> None:
    worker = arena.worker("-c", 1)
    job = arena.publish("work", 600)
    running = arena.started(job)
    _ask(arena, job)
    os.kill(running["pid"] if victim == "child" else worker.pid, signal.SIGKILL)
    if victim == "worker":
        worker.wait(timeout=30)
        arena.worker("-c", 1)
    detail = arena.wait_state(job, State.CANCELLED)
    assert [(one.outcome, one.error_type) for one in detail.attempts] == [
        ("cancelled", "WorkerLost")
    ]
    assert len(arena.trace()) == 1


def test_a_time_limit_of_a_job_that_is_asked_to_stop_cancels_it(arena: Arena) -> None:
    arena.worker("-c", 1)
    job = arena.publish("hang")
    arena.started(job)
    _ask(arena, job)
    detail = arena.wait_state(job, State.CANCELLED)
    assert [(one.outcome, one.error_type) for one in detail.attempts] == [
        ("cancelled", "TimeLimitExceeded")
    ]


def test_a_drain_whose_grace_is_over_cancels_what_was_asked_to_stop_uncounted(arena: Arena) -> None:
    worker = arena.worker("-c", 2, "--grace", "1s")
    asked, other = arena.publish("work", 600), arena.publish("work", 600)
    for job in (asked, other):
        arena.started(job)
    _ask(arena, asked)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    assert (arena.state(asked), arena.job(asked).row.attempts) == (State.CANCELLED, 0)
    assert (arena.state(other), arena.job(other).row.attempts) == (State.PENDING, 0)


def test_a_paused_queue_is_left_alone_by_a_running_worker_until_it_is_resumed(
    arena: Arena,
) -> None:
    worker = arena.worker("-c", 2, "-Q", "default,other")
    arena.wait_state(arena.publish("work", 0), State.DONE)
    arena.app.backend.pause("default", actor="ann")
    kept = [arena.publish("work", 0) for _ in range(5)]
    # Both children have had work since, and did not take it from there.
    for _ in range(6):
        arena.wait_state(arena.publish("work", 0, queue="other"), State.DONE)
    assert {arena.state(job) for job in kept} == {State.PENDING}
    arena.app.backend.resume("default", actor="ann")
    for job in kept:
        arena.wait_state(job, State.DONE)
    assert worker.poll() is None


def test_a_burst_leaves_what_is_paused_and_says_so_once(arena: Arena) -> None:
    kept = arena.publish("work", 0)
    arena.app.backend.pause("default", actor="ann")
    other = arena.publish("work", 0, queue="other")
    worker = arena.worker("-c", 2, "-Q", "default,other", "--burst")
    assert worker.wait(timeout=60) == 0, arena.logs()
    assert (arena.state(kept), arena.state(other)) == (State.PENDING, State.DONE)
    assert arena.logs().count("burst_left_paused") == 1


def test_progress_is_seen_while_the_job_runs(arena: Arena) -> None:
    arena.worker("-c", 1)
    job = arena.publish("telling", 100)

    def progress() -> float | None:
        found = arena.job(job).row.progress
        return found and found.done

    # All of it is said within a moment; then the task is silent.
    wait_until(lambda: progress() == 100, what="the last word")
    assert arena.state(job) is State.PROCESSING
    (arena.directory / "go").touch()
    arena.wait_state(job, State.DONE)


def test_a_child_that_goes_on_to_another_job_between_look_and_kill_is_not_killed(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race itself, held open: the supervisor has just read of a delivery that is over by now."""
    arena.publish("work", 0)
    supervisor = Supervisor(
        WorkerOptions("crashapp:app", "w"),
        AppFacts(Settings(broker_url=arena.app.conf.broker_url), ("default",), ()),
    )
    supervisor.open()
    supervisor._worker_id = supervisor._consumers.register(name="w", kind="worker")
    child = run_python(CHILD, arena.directory / "queue.db", supervisor._worker_id)
    worker_id, message_id = map(int, read_line(child).split())
    supervisor._children[child.pid] = Child(0, "w/1", child.pid, 0.0, None)
    running = supervisor._backend.store.running

    def look(delivery: int) -> None:
        monkeypatch.setattr(running, "to_kill", lambda: {worker_id: {(message_id, delivery)}})
        supervisor._enforcer.end_terminated(supervisor._worker_id)

    look(99)  # not what it runs
    say(child, "are you there?")
    assert read_line(child) == "yes"
    look(1)
    wait_until(lambda: not is_running(child.pid), what="it to be killed for what it does run")
    assert supervisor._children == {}
    supervisor._stop()


CHILD = """
    import sys
    from sqlqueue_transport import Store

    store = Store(sys.argv[1])
    worker_id = store.consumers.register(name="w/1", kind="child", parent_id=int(sys.argv[2]))
    (one,) = store.claim(["default"], 1, lease_s=60).deliveries
    store.consumers.note_start(0, one.message_id, one.delivery, 0)
    print(worker_id, one.message_id, flush=True)
    for line in sys.stdin:
        print("yes", flush=True)
"""
