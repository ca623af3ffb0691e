"""What a `kill -9` costs: one attempt of the job it hit, a second of time, and nothing else.

One kill at a time; tests/proofs/kills.py makes thousands at random moments.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import is_running, wait_until

PROMISED_S = 2.0
DEADLINE_S = 5 * PROMISED_S


def test_a_killed_child_is_replaced_and_its_job_runs_again_at_once(arena: Arena) -> None:
    job = arena.publish("once_slow", 60)
    waiting = [arena.publish("work", 0) for _ in range(5)]
    worker = arena.worker("-c", 1)
    running = arena.started(job)

    killed_s = time.monotonic()
    os.kill(running["pid"], signal.SIGKILL)
    again = arena.started(job, attempt=2, deadline_s=DEADLINE_S)
    print(f"killed child: its job ran again after {again['at'] - killed_s:.3f} s")

    detail = arena.wait_state(job, State.DONE)
    assert detail.row.attempts == 2
    assert [(a.attempt, a.outcome, a.error_type) for a in detail.attempts] == [
        (1, "lost", "WorkerLost")
    ]
    for other in waiting:
        assert arena.wait_state(other, State.DONE).row.attempts == 1
    assert again["pid"] != running["pid"]
    assert worker.poll() is None


def test_children_die_with_their_supervisor_and_another_worker_takes_over(arena: Arena) -> None:
    job = arena.publish("once_slow", 60)
    worker = arena.worker("-c", 2, "--visibility-timeout", "1h")
    running = arena.started(job)
    wait_until(lambda: arena.logs().count("worker_ready") == 1, what="the first worker")
    children = arena.children(worker)
    assert len(children) == 2

    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_until(
        lambda: not any(map(is_running, children)),
        deadline_s=DEADLINE_S,
        what="the children to die",
    )
    arena.worker("-c", 1)
    wait_until(lambda: arena.logs().count("worker_ready") == 2, what="the second worker")
    ready_s = time.monotonic()
    again = arena.started(job, attempt=2, deadline_s=DEADLINE_S)
    print(f"killed supervisor: {max(again['at'] - ready_s, 0):.3f} s after a worker was ready")
    detail = arena.wait_state(job, State.DONE)
    assert detail.row.attempts == 2
    assert again["worker"] != running["worker"]


def test_a_living_worker_takes_over_from_one_that_was_killed_whole(arena: Arena) -> None:
    first = arena.worker("-c", 1, "-n", "first")
    job = arena.publish("once_slow", 60)
    running = arena.started(job)
    arena.worker("-c", 1, "-n", "second")
    wait_until(lambda: arena.logs().count("worker_ready") == 2, what="both workers")

    killed_s = time.monotonic()
    for pid in (*arena.children(first), first.pid):
        os.kill(pid, signal.SIGKILL)
    again = arena.started(job, attempt=2, deadline_s=DEADLINE_S)
    print(f"killed worker: another one ran its job after {again['at'] - killed_s:.3f} s")
    assert running["worker"].startswith("first")
    assert again["worker"].startswith("second")
    assert arena.wait_state(job, State.DONE).row.attempts == 2


def test_a_job_that_kills_its_worker_is_buried_after_five_starts_and_harms_no_neighbour(
    arena: Arena,
) -> None:
    poison = arena.publish("suicide")
    neighbours = [arena.publish("work", 0.01) for _ in range(50)]
    arena.worker("-c", 2)

    detail = arena.wait_state(poison, State.PERMANENTLY_FAILED, deadline_s=60)
    assert detail.row.attempts == 5
    assert [(a.attempt, a.outcome) for a in detail.attempts] == [(n, "lost") for n in range(1, 6)]
    for neighbour in neighbours:
        assert arena.wait_state(neighbour, State.DONE).row.attempts == 1
    assert sum(line["job"] == poison for line in arena.trace()) == 5

    report = arena.start("requeue", poison, "--yes", "--reason", "try again")
    assert report.wait(timeout=30) == 0, arena.logs()
    wait_until(lambda: arena.job(poison).row.run == 2, what="the requeue")
    wait_until(
        lambda: len(arena.job(poison).attempts) >= 6, deadline_s=30, what="an attempt of run 2"
    )
    assert arena.job(poison).attempts[5].run == 2


def test_a_job_that_hangs_in_a_living_child_is_ended_at_its_limit_and_run_again(
    arena: Arena,
) -> None:
    job = arena.publish("hang")
    arena.worker("-c", 1)
    detail = arena.wait_state(job, State.PERMANENTLY_FAILED, deadline_s=30)
    assert [(a.attempt, a.outcome, a.error_type) for a in detail.attempts] == [
        (1, "timed_out", "TimeLimitExceeded"),
        (2, "timed_out", "TimeLimitExceeded"),
    ]
    assert "time limit of 1 s" in (detail.attempts[0].error_message or "")
    starts = [line["at"] for line in arena.trace()]
    assert starts[1] - starts[0] >= 1.0


def test_the_time_limit_reaches_c_code_that_holds_the_gil_and_its_subprocesses(
    arena: Arena,
) -> None:
    job = arena.publish("hang_in_c")
    arena.worker("-c", 1)
    arena.wait_state(job, State.PERMANENTLY_FAILED, deadline_s=30)
    grandchild = int((arena.directory / "grandchild.pid").read_text())
    wait_until(lambda: not is_running(grandchild), what="the task's own subprocess to be ended")


def test_the_time_limit_reaches_what_has_left_the_process_group(arena: Arena) -> None:
    job = arena.publish("leaves_its_group")
    arena.worker("-c", 1)
    (attempt,) = arena.wait_state(job, State.PERMANENTLY_FAILED).attempts
    assert attempt.outcome == "timed_out"
    grandchild = int((arena.directory / "grandchild.pid").read_text())
    wait_until(lambda: not is_running(grandchild), what="the program to be killed, too")
    (line,) = [json.loads(line) for line in arena.logs().splitlines() if '"job_timed_out"' in line]
    assert (line["job_id"], line["task"], line["attempt"]) == (job, "leaves_its_group", 1)


def test_the_reason_of_a_kill_is_kept_while_the_store_is_busy(arena: Arena) -> None:
    job = arena.publish("hang")
    arena.worker("-c", 1)
    arena.started(job)
    holder = sqlite3.connect(arena.directory / "queue.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    wait_until(
        lambda: "store_busy" in arena.logs(), deadline_s=30, what="the supervisor to meet it"
    )
    holder.execute("ROLLBACK")
    holder.close()
    wait_until(lambda: arena.job(job).attempts, deadline_s=30, what="the record")
    assert arena.job(job).attempts[0].outcome == "timed_out"


def test_a_countdown_longer_than_the_visibility_timeout_runs_once(arena: Arena) -> None:
    job = arena.publish("work", 0.1, countdown=3)
    arena.worker("-c", 2, "--visibility-timeout", "1s", "--burst").wait(timeout=60)
    assert arena.state(job) is State.DONE
    assert arena.job(job).row.delivery == 1
    assert [line["event"] for line in arena.trace()] == ["start", "end"]


def test_a_long_job_outlives_many_leases_and_runs_once(arena: Arena) -> None:
    job = arena.publish("work", 4)
    arena.worker("-c", 2, "--visibility-timeout", "1s")
    detail = arena.wait_state(job, State.DONE)
    assert (detail.row.delivery, detail.row.attempts) == (1, 1)
