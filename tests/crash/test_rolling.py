"""Workers are replaced by new ones while jobs come in: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import read_line, run_python, say, wait_until

PUBLISHER = """
import sys, threading
from sqlqueue import SqlQueue

app = SqlQueue("publisher", broker_url="sqlqueue:///queue.db")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
published = 0
print("publishing", flush=True)
# Little enough that two cores keep up, steady enough that there is always something to do.
while not stop.wait(0.01):
    app.send_task("work", (0.02,))
    published += 1
app.close()
print(published, flush=True)
"""


def to_the_worker(_: Arena, worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()


def to_every_process(arena: Arena, worker: subprocess.Popen[bytes]) -> None:
    """As systemd does with KillMode=control-group, children first."""
    for pid in (*arena.children(worker), worker.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [to_the_worker, to_every_process])
@pytest.mark.parametrize("recycling", [0, 20])
def test_a_rolling_restart_under_load_loses_no_job_and_counts_no_attempt(
    arena: Arena, stop: Callable[[Arena, subprocess.Popen[bytes]], None], recycling: int
) -> None:
    rounds, at_once = 4, 3

    def start(number: int) -> list[subprocess.Popen[bytes]]:
        names = [f"w{number}-{each}" for each in range(at_once)]
        workers = [
            arena.worker("-c", 2, "-n", name, "--max-jobs-per-child", recycling) for name in names
        ]
        wait_until(
            lambda: arena.logs().count("worker_ready") == at_once * (number + 1),
            deadline_s=60,
            what=f"round {number}, log:\n{arena.logs()[-3000:]}",
        )
        return workers

    publisher = run_python(PUBLISHER, cwd=arena.directory)
    assert read_line(publisher) == "publishing"
    current = start(0)
    for number in range(1, rounds + 1):
        done = len(arena.trace())
        wait_until(lambda done=done: len(arena.trace()) > done + 50, deadline_s=60, what="work")
        fresh = start(number)
        for worker in current:
            stop(arena, worker)
        for worker in current:
            assert worker.wait(timeout=60) == 0, arena.logs()[-3000:]
        current = fresh
    say(publisher)
    published = int(read_line(publisher))
    wait_until(
        lambda: all(row.state is State.DONE for row in arena.all_jobs()),
        deadline_s=120,
        every_s=0.5,
        what="every job to be done",
    )
    for worker in current:
        stop(arena, worker)
        assert worker.wait(timeout=60) == 0

    jobs = arena.all_jobs()
    assert len(jobs) == published > 200
    assert collections.Counter(row.attempts for row in jobs) == {1: published}
    ran = collections.Counter((line["job"], line["event"]) for line in arena.trace())
    assert len(ran) == 2 * published
    assert set(ran.values()) == {1}
    for event in ("job_retry_scheduled", "lease_lost", "child_lost", "child_killed", "grace_over"):
        assert f'"event": "{event}"' not in arena.logs()
