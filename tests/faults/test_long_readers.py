"""Somebody who reads for long, while others write: the log stays short, or it is said who keeps it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sqlqueue_transport.log_guard import LIMIT_BYTES, size_of
from sqlqueue_transport.messages import NewMessage
from tests.crash.conftest import Arena
from tests.crash.test_housekeeping import READ
from tests.faults.test_files_that_change import LOOK
from tests.support import ROOT, read_line, run_python, say, wait_until

pytestmark = pytest.mark.slow

LARGE = [NewMessage(body=b"x" * 900_000, queue="other", task="t")] * 10


def test_a_console_left_open_under_load_lets_the_log_stay_short(arena: Arena) -> None:
    path = arena.directory / "queue.db"
    store = arena.store
    looker = run_python(LOOK, path)
    assert read_line(looker) == "looking"
    longest = written = 0
    while written < 4 * LIMIT_BYTES:
        store.publish(LARGE, durable=False)
        written += 9_000_000
        longest = max(longest, size_of(path))
    assert longest < LIMIT_BYTES
    assert looker.poll() is None
    print(f"{written / 1e6:.0f} MB written, the log never above {longest / 1e6:.0f} MB")
    store.close()


def test_a_long_transaction_under_load_is_told_by_worker_and_doctor_with_who_it_is(
    arena: Arena,
) -> None:
    path = arena.directory / "queue.db"
    arena.worker("-c", 1, "--log-format", "json")
    store = arena.store
    reader = run_python(READ, path)
    read_line(reader)
    # The round of housekeeping that looks comes once a minute: let one be due when the log is large.
    while size_of(path) <= LIMIT_BYTES:
        store.publish(LARGE, durable=False)
    store.database.write(
        lambda c: c.execute("DELETE FROM meta WHERE key = 'housekeeping'").rowcount
    )
    arena.worker("-c", 1, "--log-format", "json")
    wait_until(lambda: "wal_grown" in arena.logs(), deadline_s=30, what=arena.logs()[-2000:])
    (said,) = [json.loads(line) for line in arena.logs().splitlines() if "wal_grown" in line]
    assert said["readers"] == [reader.pid]
    doctor = subprocess.run(
        [sys.executable, "-m", "sqlqueue", "--db", path, "doctor", "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=arena.directory,
        env={"PYTHONPATH": str(ROOT)},
    )
    found = {item["name"]: item for item in json.loads(doctor.stdout)["items"]}
    assert doctor.returncode == 1
    assert found["log size"]["level"] == "fail"
    assert found["log size"]["problems"] == [f"process {reader.pid} reads at this moment"]
    # Jobs go on meanwhile, and once it has gone the next commits cut the log.
    job_id = arena.publish("work", 0)
    wait_until(lambda: arena.state(job_id).value == "done", deadline_s=30)
    say(reader)
    reader.wait(timeout=30)

    def is_short() -> bool:
        store.publish(LARGE, durable=False)
        return size_of(path) < LIMIT_BYTES

    wait_until(is_short, deadline_s=30)
    store.close()
