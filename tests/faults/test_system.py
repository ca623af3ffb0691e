"""A whole system on a disk that fails and recovers: publishers, a worker, a beat, a doctor."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.faults.injecting import Call, File, Injector
from tests.faults.publishing import Publishers, plain_messages
from tests.support import ROOT, small_disk, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.debian("cc")]

APP = """
import os, time
from sqlqueue import SqlQueue

app = SqlQueue("faultapp", broker_url="sqlqueue:///queue.db")


@app.task(name="ran")
def ran(padding=""):
    return None


@app.task(name="waits")
def waits():
    open("started", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)


app.periodic("tick", ran.s(), every="0.5s")
"""


@pytest.fixture
def doctor(arena: Arena) -> Callable[[Path, dict[str, str]], dict[str, dict[str, str]]]:
    def call(path: Path, env: dict[str, str]) -> dict[str, dict[str, str]]:
        said = subprocess.run(
            [sys.executable, "-m", "sqlqueue", "--db", path, "doctor", "--json"],
            check=False,
            capture_output=True,
            text=True,
            cwd=arena.directory,
            env={"PYTHONPATH": str(ROOT), **env},
        )
        assert said.stdout, said.stderr
        return {item["name"]: item for item in json.loads(said.stdout)["items"]}

    return call


@pytest.mark.parametrize(
    ("calls", "files", "error", "words"),
    [
        (Call.WRITE, File.ALL, errno.EIO, "disk I/O error"),
        (Call.SYNC, File.ALL, errno.EIO, "may or may not be stored|disk I/O error"),
        (
            Call.READ | Call.WRITE,
            File.DATABASE | File.LOG,
            errno.EIO,
            "cannot be read|disk I/O error",
        ),
    ],
    ids=["write", "flush", "all"],
)
def test_publishers_are_told_a_worker_survives_and_all_go_on_when_the_disk_does(
    arena: Arena, injector: Injector, doctor, calls: Call, files: File, error: int, words: str
) -> None:
    path, env = arena.directory / "queue.db", injector.environment
    (arena.directory / "faultapp.py").write_text(APP)
    worker = arena.start("worker", "-A", "faultapp:app", "-c", 2, "--log-format", "json", env=env)
    beat = arena.start("beat", "-A", "faultapp:app", "--log-format", "json", env=env)
    publishers = Publishers(arena, path, env)
    publishers.wait_for_more("ok")
    wait_until(lambda: arena.logs().count("job_done") > 3, deadline_s=30, what=arena.logs())
    running = arena.publish("waits")
    wait_until((arena.directory / "started").exists, deadline_s=30, what=arena.logs())
    with injector.failing(calls, files, error=error):
        publishers.wait_for_more("refused")
        for name in ("own", "plain"):
            assert re.search(words, publishers.answers(name, "refused")[-1])
            assert str(path) in publishers.answers(name, "refused")[-1]
        wait_until(lambda: said_by(arena, "beat", "store_busy"), deadline_s=30, what=arena.logs())
        (arena.directory / "go").touch()  # and so it ends while nothing can be written
        if calls & Call.WRITE:
            wait_until(lambda: said_by(arena, "worker", "store_busy"), deadline_s=30)
        found = doctor(path, env)
        assert re.search(
            f"{words}|Input/output error",
            str([one for one in found.values() if one["level"] == "fail"]),
        )
    publishers.wait_for_more("ok")
    ticks = arena.logs().count("tick_enqueued")
    wait_until(lambda: arena.logs().count("tick_enqueued") > ticks, deadline_s=60)
    publishers.end()
    assert (worker.poll(), beat.poll()) == (None, None)
    acknowledged = publishers.answers("own", "ok")
    wait_until(
        lambda: all(arena.state(job_id) is State.DONE for job_id in acknowledged),
        deadline_s=60,
        what=f"all to be done: {arena.logs()[-3000:]}",
    )
    row = arena.wait_state(running, State.DONE).row
    assert (row.delivery, row.attempts) == (1, 1)  # it did not run again
    # What was refused may be there, too: never twice.
    there = plain_messages(path)
    assert {int(number) for number in publishers.answers("plain", "ok")} <= set(there)
    assert len(there) == len(set(there))
    found = doctor(path, env)
    assert found["integrity"]["level"] == found["invariants"]["level"] == "ok"
    assert found["writing"]["level"] == "ok"
    for process in (worker, beat):
        process.terminate()
        assert process.wait(timeout=30) == 0, arena.logs()
    print(
        f"{len(acknowledged)} and {len(there)} messages,"
        f" {len(publishers.answers('own', 'refused'))} refused, 0 lost"
    )


def said_by(arena: Arena, program: str, event: str) -> bool:
    """Say whether a program has logged an event."""
    return any(event in log.read_text() for log in arena.directory.glob(f"{program}-*.log"))


@pytest.fixture
def small(arena: Arena) -> Iterator[Path]:
    """Give the path of a queue on a disk of 8 MB; what is logged lies elsewhere."""
    with small_disk(arena.directory / "small", megabytes=8) as directory:
        yield directory / "queue.db"
        for process in arena.processes:
            process.kill()
            process.wait()


def test_a_system_fills_a_small_disk_drains_on_it_and_goes_on_when_there_is_room(
    arena: Arena, small: Path, doctor
) -> None:
    env = {"SQLQUEUE_BROKER_URL": f"sqlqueue:///{small}", "SQLQUEUE_RETENTION_DONE": "1s"}
    (arena.directory / "faultapp.py").write_text(APP)
    publishers = Publishers(arena, small, env)
    publishers.wait_for_more("ok")
    ballast = small.with_name("ballast")
    with ballast.open("wb") as file:  # another program that fills the disk, to the last byte
        while not publishers.answers("own", "refused"):
            try:
                file.write(bytes(100_000))
                file.flush()
            except OSError:
                publishers.wait_for_more("refused")
    publishers.wait_for_more("refused")
    assert "nearly full" in publishers.answers("own", "refused")[-1]
    assert "free some space" in publishers.answers("plain", "refused")[-1]
    found = doctor(small, env)
    assert "nearly full" in found["writing"]["summary"]
    assert "free some space" in found["filesystem"]["hint"]
    # Full to the last byte nothing can be ended. A worker waits, and so does a beat.
    worker = arena.start("worker", "-A", "faultapp:app", "-c", 2, env=env)
    beat = arena.start("beat", "-A", "faultapp:app", env=env)
    acknowledged = publishers.answers("own", "ok")
    ballast.unlink()
    publishers.wait_for_more("ok")
    wait_until(lambda: said_by(arena, "beat", "tick_enqueued"), deadline_s=30, what=arena.logs())
    publishers.end()
    acknowledged = publishers.answers("own", "ok")
    lost = set(acknowledged) - done_of(arena)
    wait_until(lambda: not set(acknowledged) - done_of(arena), deadline_s=60, what=f"{lost}")
    there = plain_messages(small)
    assert {int(number) for number in publishers.answers("plain", "ok")} <= set(there)
    assert (worker.poll(), beat.poll()) == (None, None)
    print(f"{len(acknowledged)} jobs and {len(there)} messages, 0 lost")


def done_of(arena: Arena) -> set[str]:
    """Return the jobs that the log says are done: the file may have removed them already."""
    lines = [
        line
        for log in arena.directory.glob("worker-*.log")
        for line in log.read_text().rpartition("\n")[0].splitlines()
    ]
    return {json.loads(line)["job_id"] for line in lines if '"job_done"' in line}
