"""Clocks that are wrong, machines that sleep and boot: real workers and beats on clocks of the test."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import time

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.faults.injecting import Injector
from tests.support import is_running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.debian("cc")]

HOUR_S, YEAR_S = 3600, 365 * 86_400
BEAT = """
from sqlqueue import SqlQueue
app = SqlQueue("beatapp", broker_url="sqlqueue:///queue.db")
app.producer(every="1s", name="each", catch_up="one")(lambda tick: [])
"""


def worker_of(arena: Arena, *arguments: object, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker of the arena's application in this environment."""
    return arena.start("worker", "-A", "crashapp:app", *arguments, env=env)


def ticks(arena: Arena) -> list[str]:
    """Return the due times that the beat has enqueued, in its order."""
    lines = [json.loads(line) for line in arena.logs().splitlines() if "tick_enqueued" in line]
    return [line["due"] for line in lines]


@pytest.mark.parametrize(
    "jump_s",
    [HOUR_S, -HOUR_S, 10 * YEAR_S, -10 * YEAR_S],
    ids=["hour on", "hour back", "ten years on", "ten years back"],
)
def test_a_clock_that_is_set_moves_no_lease_and_what_is_due_follows_it(
    arena: Arena, injector: Injector, jump_s: int
) -> None:
    (arena.directory / "beatapp.py").write_text(BEAT)
    env = injector.environment
    worker_of(arena, "-c", 2, env={**env, "SQLQUEUE_VISIBILITY_TIMEOUT": "3s"})
    arena.start("beat", "-A", "beatapp:app", "--log-format", "json", env=env)
    running = arena.publish("work", 6)
    later = arena.publish("work", 0, countdown=HOUR_S / 2)
    arena.started(running)
    wait_until(lambda: ticks(arena), deadline_s=30, what=arena.logs())
    injector.set_wall(jump_s)
    before = len(ticks(arena))
    # As many as there are seconds, on the new clock, though that one has been through these before.
    wait_until(lambda: len(ticks(arena)) >= before + 3, deadline_s=30, what=arena.logs()[-2000:])
    told = dt.datetime.fromisoformat(ticks(arena)[-1]).timestamp()
    assert abs(told - time.time() - jump_s) < 60
    if jump_s > 0:
        arena.wait_state(later, State.DONE)
    row = arena.wait_state(running, State.DONE).row
    # It outlived two leases, and nobody took it away or let it go on without one.
    assert (row.delivery, row.attempts) == (1, 1), arena.logs()
    assert "lease_lost" not in arena.logs()
    assert "job_timed_out" not in arena.logs()
    if jump_s < 0:
        assert arena.state(later) is State.SCHEDULED


def test_a_machine_that_slept_goes_on_with_its_leases_and_runs_what_came_due(
    arena: Arena, injector: Injector
) -> None:
    """CLOCK_MONOTONIC stood still meanwhile: no lease is over, though the wall clock went on."""
    worker = worker_of(
        arena, "-c", 1, env={**injector.environment, "SQLQUEUE_VISIBILITY_TIMEOUT": "3s"}
    )
    running = arena.publish("work", 5)
    later = arena.publish("work", 0, countdown=7 * HOUR_S)
    arena.started(running)
    injector.suspend(8 * HOUR_S)
    arena.wait_state(later, State.DONE)
    row = arena.job(running).row
    assert (row.state, row.delivery, row.attempts) == (State.DONE, 1, 1)
    assert worker.poll() is None


@pytest.mark.parametrize("boots", [True, False])
def test_a_boot_voids_leases_and_without_one_a_lost_presence_file_does_not(
    arena: Arena, injector: Injector, boots: bool
) -> None:
    """Power cut and boot, the side files lost with it: who held the job cannot live any more."""
    env = injector.environment
    injector.reboot("first")
    worker = worker_of(arena, "-c", 1, env=env)
    job_id = arena.publish("once_slow", 600)
    first = arena.started(job_id)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not is_running(first["pid"]), deadline_s=10)
    (arena.directory / "queue.db-run" / "presence").unlink()
    if boots:
        injector.reboot("second")
    began_s = time.monotonic()
    worker_of(arena, "-c", 1, env=env)
    if boots:
        # The notes of what had been started are lost, so that nothing is counted.
        arena.wait_state(job_id, State.PROCESSING)
        wait_until(lambda: arena.job(job_id).row.delivery == 2, deadline_s=10, what=arena.logs())
        print(f"runs again {time.monotonic() - began_s:.2f} s after the boot")
    else:
        other = arena.publish("work", 0)
        arena.wait_state(other, State.DONE)
        row = arena.job(job_id).row
        assert (row.state, row.delivery) == (
            State.PROCESSING,
            1,
        )  # until its lease of an hour is over


def test_everything_works_beyond_january_2038(arena: Arena, injector: Injector) -> None:
    (arena.directory / "beatapp.py").write_text(BEAT)
    env = injector.environment
    injector.set_wall(2**31 - time.time() - 3)
    worker_of(arena, "-c", 1, env=env)
    arena.start("beat", "-A", "beatapp:app", "--log-format", "json", env=env)
    beyond = "2038-01-19T03:14:1"
    wait_until(lambda: any(due.startswith(beyond) for due in ticks(arena)), deadline_s=30)
    job_id = arena.publish("work", 0)
    row = arena.wait_state(job_id, State.DONE).row
    assert row.finished_at_ms > 2**31 * 1000
    assert len(set(ticks(arena))) == len(ticks(arena))
