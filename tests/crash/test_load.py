"""Many producers and workers at once on the job that sqlqueue ships with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import ROOT, wait_until

PRODUCERS, WORKERS, JOBS = 4, 4, 2000

PRODUCE = """
import random, sys
from pathlib import Path
from tasks.producing import write_job_file
from tasks.stamping import stamp
entry, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    name = write_job_file(Path("jobs"), entry, due_ms=1_000 * number, random=random.SystemRandom())
    stamp.delay(name)
"""

QUICK = {
    "SQLQUEUE_DB": "queue.db",
    "SQLQUEUE_APP_MIN_SECONDS": "0",
    "SQLQUEUE_APP_MAX_SECONDS": "0.002",
}
_STAMP = re.compile(
    r"^\S+Z job=(\S+) attempt=(\d+) duration_s=\d+\.\d{3} worker=\S+$", re.MULTILINE
)


def stamps(path: Path) -> list[str]:
    """Return the job ids stamped into a file."""
    return [job for job, _ in _STAMP.findall(path.read_text())]


@pytest.mark.slow
def test_four_producers_and_four_workers_stamp_two_thousand_files_once_each(arena: Arena) -> None:
    (arena.directory / "jobs").mkdir(mode=0o700)
    environment = {**os.environ, **QUICK, "PYTHONPATH": str(ROOT)}
    producers = [
        subprocess.Popen(
            [sys.executable, "-c", PRODUCE, f"producer-{number}", str(JOBS // PRODUCERS)],
            cwd=arena.directory,
            env=environment,
        )
        for number in range(PRODUCERS)
    ]
    workers = [
        arena.start("worker", "-A", "tasks.app:app", "-c", 4, "-n", f"w{number}", env=QUICK)
        for number in range(WORKERS)
    ]
    for producer in producers:
        assert producer.wait(timeout=120) == 0
    wait_until(
        lambda: arena.app.backend.counts().states[State.DONE] == JOBS,
        deadline_s=240,
        every_s=0.1,
        what=f"all jobs to be done: {arena.app.backend.counts()}",
    )
    for worker in workers:
        worker.terminate()
    assert [worker.wait(timeout=60) for worker in workers] == [0] * WORKERS

    rows = arena.all_jobs()
    assert len(rows) == JOBS
    # Delivered once each, so no two leases of a job can ever have overlapped.
    assert {(row.state, row.delivery, row.attempts) for row in rows} == {(State.DONE, 1, 1)}
    files = sorted((arena.directory / "jobs").glob("job-*.txt"))
    assert len(files) == JOBS
    found = [stamps(path) for path in files]
    assert all(len(jobs) == 1 for jobs in found)
    assert {jobs[0] for jobs in found} == {row.job_id for row in rows}
    assert arena.app.backend.store.reading.damage(full=True) == []
    doctor = arena.start("doctor", "-A", "tasks.app:app", env=QUICK)
    assert doctor.wait(timeout=60) == 0, arena.logs()[-2000:]


@pytest.mark.slow
def test_beat_worker_and_demo_killed_together_and_restarted_stamp_every_file_once(
    arena: Arena,
) -> None:
    arguments = ["--every", "0.2s", "--min-seconds", "0.1", "--max-seconds", "0.5"]
    for _ in range(3):
        demo = arena.start("demo", *arguments)
        before = arena.app.backend.counts().states[State.DONE]
        wait_until(
            lambda before=before: arena.app.backend.counts().states[State.DONE] > before + 3,
            deadline_s=60,
            what=f"some jobs to be done:\n{arena.logs()[-2000:]}",
        )
        for pid in _tree(demo.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it died with one that was killed before
        demo.wait(timeout=30)
    enqueued = len(arena.all_jobs())
    last = arena.start("demo", *arguments, "--count", 3)
    assert last.wait(timeout=90) == 0, arena.logs()[-3000:]
    wait_until(
        lambda: all(row.state is State.DONE for row in arena.all_jobs()),
        what="every job to be done",
    )
    rows = arena.all_jobs()
    assert len(rows) >= enqueued + 3
    files = {path.name: stamps(path) for path in (arena.directory / "jobs").glob("job-*.txt")}
    by_job = {job: name for name, jobs in files.items() for job in jobs}
    assert set(by_job) == {row.job_id for row in rows}, "every enqueued file was stamped"
    assert all(len(jobs) <= 1 for jobs in files.values())
    assert all(row.attempts <= 5 for row in rows)


def _tree(pid: int) -> list[int]:
    """Return a process and all below it, children of other sessions included."""
    found = [pid]
    for each in found:
        path = Path(f"/proc/{each}/task/{each}/children")
        if path.exists():
            found += [int(child) for child in path.read_text().split()]
    return found


def test_an_idle_worker_uses_next_to_no_cpu(arena: Arena) -> None:
    """No assertion on speed: the figure is printed, the bound only catches a busy loop."""
    worker = arena.worker("-c", 2)
    wait_until(lambda: len(arena.children(worker)) == 2, what="two children")
    job = arena.publish("work", 0)
    arena.wait_state(job, State.DONE)
    pids = [worker.pid, *arena.children(worker)]
    before_s, began_s = _cpu_s(pids), time.monotonic()
    wait_until(lambda: time.monotonic() - began_s > 3, deadline_s=10, every_s=0.5)
    share = (_cpu_s(pids) - before_s) / (time.monotonic() - began_s)
    print(f"idle worker: {share:.2%} of a core")
    assert share < 0.25


def _cpu_s(pids: list[int]) -> float:
    return sum(
        int(task.joinpath("schedstat").read_text().split()[0]) / 1e9
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    )
