"""The worker of one process: it ends in order, and does alone what a supervisor would."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sqlqueue.errors import ConfigError
from sqlqueue.worker import start
from sqlqueue.worker.solo import run_solo
from sqlqueue.worker.supervisor import WorkerOptions
from tests.support import kill, read_line, run_python, wait_until

# A worker process: `mode` decides what its one task does.
WORKER = """
    import os, signal, sys, threading, time
    from sqlqueue import SqlQueue, log
    from sqlqueue.worker.consumer import Consumer
    from sqlqueue.worker.solo import run_solo

    log.configure("info", format="json")
    app = SqlQueue("test", broker_url="sqlqueue:///queue.db", visibility_timeout=1.0)

    @app.task(name="t")
    def t():
        print("started", flush=True)
        if sys.argv[1] == "wait":
            sys.stdin.readline()
        elif sys.argv[1] != "run":
            time.sleep(60)
        return "finished"

    if sys.argv[1] == "nested":
        stop = Consumer.stop
        Consumer.stop = lambda self: (os.kill(os.getpid(), signal.SIGINT), stop(self))

    print("ready", flush=True)
    sys.exit(run_solo(app, name=f"w-{os.getpid()}"))
"""


@pytest.fixture
def worker(here):
    """Start worker processes; they are killed in the end."""
    started = []

    def begin(mode="run"):
        process = run_python(WORKER, mode, cwd=here)
        started.append(process)
        assert read_line(process) == "ready"
        return process

    yield begin
    for process in started:
        kill(process)
        process.communicate()


def ended(process):
    out, error = process.communicate(timeout=30)
    return process.returncode, out + error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_idle_ends_it_with_code_0(app, worker, number):
    process = worker()
    wait_until(lambda: [one for one in app.backend.workers() if one.name.startswith("w-")])
    process.send_signal(number)
    code, said = ended(process)
    assert code == 0
    assert '"event": "worker_stopped"' in said
    assert app.backend.workers() == []


def test_a_signal_lets_the_running_job_finish_and_a_second_ends_it_at_once(app, worker):
    results = [app.send_task("t"), app.send_task("t")]
    process = worker("wait")
    assert read_line(process) == "started"
    process.send_signal(signal.SIGTERM)
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert ended(process)[0] == 0
    assert results[0].get(timeout=0) == "finished"
    assert (results[1].state, results[1].attempts) == ("pending", 0)

    process = worker("sleep")
    assert read_line(process) == "started"
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: process.poll() is not None or _has_handled(process))
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    # Nobody else is there yet who could notice.
    assert results[1].state == "processing"


def _has_handled(process):
    """Say whether SIGTERM is no longer on its way: its handler has run, or runs."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    waiting = [int(line.split()[1], 16) for line in lines if line[:6] in {"SigPnd", "ShdPnd"}]
    return not any(one & 1 << (signal.SIGTERM - 1) for one in waiting)


def test_an_idle_one_runs_the_job_of_a_killed_one_though_nobody_supervises(app, worker):
    result = app.send_task("t")
    victim = worker("sleep")
    assert read_line(victim) == "started"
    rescuer = worker()
    wait_until(lambda: len([w for w in app.backend.workers() if w.kind == "worker"]) == 2)
    kill(victim)
    assert result.get(timeout=10) == "finished"
    assert result.attempts == 2
    rescuer.terminate()
    assert ended(rescuer)[0] == 0


def test_a_job_longer_than_the_lease_keeps_it(app, worker):
    result = app.send_task("t")
    process = worker("wait")
    assert read_line(process) == "started"
    other = worker()  # it would run what is overdue
    # Twice the visibility timeout of a second.
    threading.Event().wait(2.0)
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert result.get(timeout=10) == "finished"
    assert result.attempts == 1
    for each in (process, other):
        each.terminate()
        code, said = ended(each)
        assert code == 0
        assert "lease_lost" not in said


def test_a_replaced_file_ends_an_idle_one_with_code_1(app, worker, here):
    process = worker()
    wait_until(lambda: [one for one in app.backend.workers() if one.name.startswith("w-")])
    shutil.move(here / "queue.db", here / "moved.db")
    code, said = ended(process)
    assert code == 1
    assert '"event": "store_gone"' in said
    assert "Traceback" not in said
    shutil.move(here / "moved.db", here / "queue.db")


def test_a_migrated_file_ends_it_with_the_schemas_exit_code(app):
    @app.task(name="t")
    def t():
        app.backend.store.database.write(lambda c: c.execute("PRAGMA user_version = 99").rowcount)

    t.delay()
    assert run_solo(app, name="w", handle_signals=False) == 6
    with contextlib.closing(sqlite3.connect("queue.db")) as connection, connection:
        # Whoever comes with the newer software gives it back.
        assert connection.execute("SELECT state FROM jobs").fetchall() == [("processing",)]
        connection.execute("PRAGMA user_version = 1")


def test_signal_handlers_are_as_before_when_it_has_ended(app):
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    app.task(name="t")(lambda: seen.append(signal.getsignal(signal.SIGTERM))).delay()
    assert run_solo(app, name="w", burst=True) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert seen[0] is not before


def test_it_leaves_no_thread_and_no_registration_behind(app):
    app.task(name="t")(lambda: None).delay()
    assert run_solo(app, name="w", burst=True, handle_signals=False) == 0
    assert [one.name for one in threading.enumerate() if one.name.startswith("sqlqueue")] == []
    assert app.backend.workers() == []


def test_the_start_chooses_the_pool(here, monkeypatch):
    (here / "solo_app.py").write_text(
        "from sqlqueue import SqlQueue\napp = SqlQueue('solo')\n@app.task\ndef t():\n    return 7\n"
    )
    monkeypatch.syspath_prepend(here)
    import solo_app

    result = solo_app.t.delay()
    options = WorkerOptions("solo_app:app", "w", pool="solo", burst=True)
    assert start.run_worker(options) == 0
    assert result.get(timeout=0) == 7
    with pytest.raises(ConfigError, match=r"there is no pool 'sola'. Did you mean 'solo'\?"):
        start.run_worker(replace(options, pool="sola"))
    solo_app.app.close()


def test_the_process_id_in_the_list_of_workers_is_its_own(app, worker):
    process = worker()
    (row,) = wait_until(lambda: [w for w in app.backend.workers() if w.name.startswith("w-")])
    assert (row.pid, row.slots, row.queues) == (process.pid, 1, ("default",))
    assert row.pid != os.getpid()


def test_a_second_signal_that_comes_while_the_first_is_handled_counts(app, worker):
    """One that was taken for the first again would leave the job running, and the process."""
    app.send_task("t")
    process = worker("nested")
    assert read_line(process) == "started"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130
