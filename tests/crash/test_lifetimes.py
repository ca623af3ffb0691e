"""Children that end by themselves, and children that cannot begin: how they are replaced."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import is_running, wait_until

# `broken` is what the module does instead of defining the application, while a file of that name is
# there: so that the application breaks after the worker has started, and is mended again.
APP = """
import os, pathlib, signal, sys, time
from sqlqueue import SqlQueue

app = SqlQueue("crashapp", broker_url="sqlqueue:///queue.db")
hoard = []

@app.task(name="who")
def who():
    return os.getpid()

@app.task(name="take")
def take(mebibytes):
    hoard.append(b"x" * (mebibytes * 1024 * 1024))
    return os.getpid()

if pathlib.Path("broken").exists():
    exec(pathlib.Path("broken").read_text())
"""

WAYS_TO_BREAK = {
    "raises": "raise RuntimeError('mend me')",
    "exits": "sys.exit('mend me')",
    "ends its process": "os._exit(3)",
    "kills its process": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture
def arena(arena: Arena) -> Arena:
    (arena.directory / "crashapp.py").write_text(APP)
    return arena


def events(arena: Arena, *names: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in arena.logs().splitlines() if line.startswith("{")]
    return [one for one in found if one["event"] in names]


def pids(arena: Arena, jobs: list[str]) -> list[int]:
    return [int(str(arena.job(job).result)) for job in jobs]


def test_a_child_is_replaced_after_its_jobs_and_that_is_no_failure(arena: Arena) -> None:
    jobs = [arena.publish("who") for _ in range(7)]
    worker = arena.worker("-c", 1, "--burst", "--max-jobs-per-child", 2)
    assert worker.wait(timeout=60) == 0, arena.logs()
    ran_by = pids(arena, jobs)
    assert [ran_by.count(pid) for pid in dict.fromkeys(ran_by)] == [2, 2, 2, 1]
    assert all(arena.job(job).row.attempts == 1 for job in jobs)
    recycled = events(arena, "child_recycled")
    assert [one["why"] for one in recycled] == ["it has run 2 jobs, of 2 a child may run"] * 3
    assert events(arena, "child_lost", "child_start_failed", "job_released") == []


@pytest.mark.slow
@pytest.mark.parametrize("per_child", [1, 2, 3])
def test_max_jobs_is_exact_whatever_a_child_may_run(arena: Arena, per_child: int) -> None:
    for _ in range(20):
        arena.publish("who")
    worker = arena.worker("-c", 3, "--max-jobs", 11, "--max-jobs-per-child", per_child)
    assert worker.wait(timeout=120) == 0, arena.logs()
    assert sum(row.state is State.DONE for row in arena.all_jobs()) == 11
    assert all(row.attempts == 0 for row in arena.all_jobs() if row.state is not State.DONE)


def test_a_child_is_replaced_when_it_takes_too_much_memory(arena: Arena) -> None:
    jobs = [arena.publish("take", size) for size in (1, 300, 1)]
    worker = arena.worker("-c", 1, "--burst", "--max-memory-per-child", "250MiB")
    assert worker.wait(timeout=60) == 0, arena.logs()
    small, large, next_one = pids(arena, jobs)
    assert small == large != next_one
    [recycled] = events(arena, "child_recycled")
    assert recycled["why"].endswith("of 250.0 MiB a child may take")
    assert not is_running(large)


def test_a_child_that_others_told_to_stop_is_replaced(arena: Arena) -> None:
    worker = arena.worker("-c", 1)
    wait_until(lambda: events(arena, "worker_ready"), deadline_s=30, what="the worker")
    [told] = arena.children(worker)
    os.kill(told, signal.SIGTERM)
    wait_until(lambda: not is_running(told), what="the end of the child")
    job = arena.publish("who")
    detail = arena.wait_state(job, State.DONE)
    assert detail.result != str(told)
    assert events(arena, "child_lost") == []
    worker.terminate()
    assert worker.wait(timeout=30) == 0


@pytest.mark.parametrize("how", WAYS_TO_BREAK)
def test_an_application_that_cannot_be_imported_ends_the_worker_at_once(
    arena: Arena, how: str
) -> None:
    (arena.directory / "broken").write_text(WAYS_TO_BREAK[how])
    worker = arena.worker("-c", 2)
    assert worker.wait(timeout=30) == 2, arena.logs()
    assert "error: cannot import app 'crashapp:app'" in arena.logs()
    assert "Traceback" not in arena.logs()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
def test_an_import_that_ends_its_process_is_told_with_how(
    arena: Arena, code: str, how: str
) -> None:
    (arena.directory / "crashapp.py").write_text(code)
    worker = arena.worker("-c", 2)
    assert worker.wait(timeout=30) == 2, arena.logs()
    assert f"the import ended its process ({how})" in arena.logs()


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS_TO_BREAK)
def test_an_application_that_breaks_later_is_tried_with_back_off_until_it_is_mended(
    arena: Arena, how: str
) -> None:
    worker = arena.worker("-c", 1)
    wait_until(lambda: events(arena, "worker_ready"), deadline_s=30, what="the worker")
    (arena.directory / "broken").write_text(WAYS_TO_BREAK[how])
    os.kill(arena.children(worker)[0], signal.SIGKILL)
    wait_until(lambda: len(events(arena, "child_start_failed")) == 3, deadline_s=30)
    tries = events(arena, "child_start_failed")
    assert [(one["times"], one["retry_in_s"]) for one in tries] == [(1, 0.5), (2, 1.0), (3, 2.0)]
    if how in {"raises", "exits"}:
        assert "mend me" in events(arena, "app_import_failed")[0]["error"]
    job = arena.publish("who")
    (arena.directory / "broken").unlink()
    arena.wait_state(job, State.DONE)
    assert len(events(arena, "worker_started")) == 1
    # And the count begins anew: the next one that dies is replaced at once.
    os.kill(arena.children(worker)[0], signal.SIGKILL)
    again = arena.publish("who")
    arena.wait_state(again, State.DONE)
    assert len(events(arena, "child_start_failed")) == 3
    (arena.directory / "broken").write_text(WAYS_TO_BREAK[how])
    os.kill(arena.children(worker)[0], signal.SIGKILL)
    wait_until(lambda: len(events(arena, "child_start_failed")) == 4, deadline_s=30)
    assert events(arena, "child_start_failed")[-1]["times"] == 1
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def test_a_first_import_that_takes_long_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sqlqueue import log
    from sqlqueue.errors import AppImportError
    from sqlqueue.worker import facts

    (tmp_path / "slow.py").write_text("import os\nos.read(int(os.environ['WAITS_FOR']), 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    reading, writing = os.pipe()
    monkeypatch.setenv("WAITS_FOR", str(reading))
    monkeypatch.setattr(facts, "_FIRST_WARNING_S", 0.05)
    # Where the log goes is a setting of the application, so it is the standard library's by now.
    monkeypatch.setattr(log, "_active", None)
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            if len(told) == 3:
                os.write(writing, b"x")

    listener = Listener()
    logging.getLogger("sqlqueue.worker.facts").addHandler(listener)
    try:
        with pytest.raises(AppImportError, match="has no attribute 'app'"):
            facts.ask_app("slow")
    finally:
        logging.getLogger("sqlqueue.worker.facts").removeHandler(listener)
        os.close(reading)
        os.close(writing)
    assert told[:3] == [
        f"app_import_delayed app=slow waited_s={seconds}" for seconds in (0.05, 0.1, 0.2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("hang", ["time.sleep(600)", "__import__('ctypes').PyDLL(None).sleep(600)"])
def test_an_import_that_hangs_is_told_of_and_ends_at_once_when_the_worker_is_stopped(
    arena: Arena, hang: str
) -> None:
    worker = arena.worker("-c", 1, "--grace", "1h")
    wait_until(lambda: events(arena, "worker_ready"), deadline_s=30, what="the worker")
    (arena.directory / "broken").write_text(hang)
    os.kill(arena.children(worker)[0], signal.SIGKILL)
    [delayed] = wait_until(
        lambda: events(arena, "child_start_delayed"), deadline_s=60, what="the warning"
    )
    [hanging] = arena.children(worker)
    assert delayed["pid"] == hanging
    worker.terminate()
    assert worker.wait(timeout=30) == 0, arena.logs()
    assert not is_running(hanging)
    assert events(arena, "child_start_failed", "grace_over") == []
