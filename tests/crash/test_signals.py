"""Signals that do not stop a worker: its log was moved, or somebody wants to see its stacks."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import ROOT, is_running, open_names, wait_until


@pytest.fixture(autouse=True)
def _heed_sighup() -> Iterator[None]:
    """Whoever runs the tests under nohup, or in a job of some CI, ignores it, and so would all below."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


APP = """
import ctypes, faulthandler, os, pathlib, resource, signal, threading, time
from sqlqueue import SqlQueue

app = SqlQueue("crashapp", broker_url="sqlqueue:///queue.db")

@app.producer(every=3600, name="seldom")
def produce(tick):
    return []

@app.task(name="wait_for_file")
def wait_for_file(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)

@app.task(name="hold_the_gil")
def hold_the_gil():
    ctypes.PyDLL(None).sleep(600)

@app.task(name="take_the_signal")
def take_the_signal(how):
    if how == "handler":
        signal.signal(signal.SIGQUIT, lambda *_: None)
    elif how == "default":
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    elif how == "other file":
        faulthandler.register(signal.SIGQUIT, file=open("elsewhere", "w"))
    elif how == "unregistered":
        faulthandler.unregister(signal.SIGQUIT)

@app.task(name="signals_of_a_fork")
def signals_of_a_fork():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ended_by = []
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(writing, b"x")
            while True:
                signal.pause()
        os.read(reading, 1)  # a signal to a process that is still being forked may get lost
        os.kill(pid, number)
        ended_by.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) + number)
    return ended_by
"""


@pytest.fixture
def arena(arena: Arena) -> Iterator[Arena]:
    (arena.directory / "crashapp.py").write_text(APP)
    yield arena
    (arena.directory / "go").touch()


def events(arena: Arena, *names: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in arena.logs().splitlines() if line.startswith("{")]
    return [one for one in found if one["event"] in names]


def ready(arena: Arena, *arguments: object) -> subprocess.Popen[bytes]:
    worker = arena.worker(*arguments)
    wait_until(lambda: "worker_ready" in arena.logs(), deadline_s=30, what="the worker")
    return worker


def drains(process: subprocess.Popen[bytes]) -> bool:
    process.terminate()
    return process.wait(timeout=30) == 0


def stacks(arena: Arena, worker: subprocess.Popen[bytes], *, times: int = 1) -> str:
    """Ask for the stacks and return everything that was said until they were all printed."""
    os.kill(worker.pid, signal.SIGQUIT)
    wait_until(lambda: len(events(arena, "stacks_printed")) == times, what="the stacks")
    return arena.logs()


def test_sighup_opens_the_log_of_supervisor_and_children_anew(arena: Arena) -> None:
    # With --log-file nothing goes to the file that `arena` reads, which has another name.
    log = arena.directory / "file.txt"
    worker = arena.worker("-c", 2, "--log-file", log)
    wait_until(lambda: log.exists() and "worker_ready" in log.read_text(), deadline_s=30)
    everybody = [worker.pid, *arena.children(worker)]
    old = log.rename(arena.directory / "old.txt")
    assert all(open_names(old, process=pid) for pid in everybody)
    worker.send_signal(signal.SIGHUP)
    # Idle children write nothing, so it is the signal by which they let go of the old one.
    wait_until(lambda: not any(open_names(old, process=pid) for pid in everybody))
    assert all(open_names(log, process=pid) for pid in everybody)
    assert '"event": "log_reopened"' in log.read_text()
    assert [worker.pid, *arena.children(worker)] == everybody
    assert drains(worker)


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_sighup_opens_the_log_of_a_process_without_supervisor_anew(
    arena: Arena, command: str
) -> None:
    log = arena.directory / "file.txt"
    pool = ["-P", "solo"] if command == "worker" else []
    process = arena.start(command, "-A", "crashapp:app", *pool, "--log-file", log)
    wait_until(lambda: log.exists() and f"{command}_started" in log.read_text(), deadline_s=30)
    old = log.rename(arena.directory / "old.txt")
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: not open_names(old, process=process.pid), what="the old file to be closed")
    assert open_names(log, process=process.pid)
    assert drains(process)


@pytest.mark.parametrize(
    ("command", "options"), [("worker", ["-c", "2"]), ("worker", ["-P", "solo"]), ("beat", [])]
)
def test_a_terminal_that_goes_away_ends_what_logs_to_it_in_order(
    arena: Arena, command: str, options: list[str]
) -> None:
    ours, theirs = pty.openpty()

    def own_the_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "sqlqueue", command, "-A", "crashapp:app", *options],
        cwd=arena.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=own_the_terminal,  # noqa: PLW1509 - the test has no threads
    )
    arena.processes.append(process)
    os.close(theirs)
    said = ""
    expected = "worker_ready" if "-c" in options else f"{command}_started"
    while expected not in said:
        said += os.read(ours, 4096).decode()
    os.close(ours)  # the kernel sends SIGHUP to the leader of the session
    assert process.wait(timeout=30) == 0
    assert arena.app.backend.workers() == []


def test_sighup_of_a_shell_and_of_the_kernel_are_one(arena: Arena) -> None:
    job = arena.publish("wait_for_file", "go")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sqlqueue", "worker", "-A", "crashapp:app", "-c", "1"],
        cwd=arena.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    )
    arena.processes.append(process)
    said = ""
    while "job_started" not in said:
        said += os.read(ours, 4096).decode()
    for times in (1, 2):
        process.send_signal(signal.SIGHUP)
        while times == 1 and "worker_draining" not in said:
            said += os.read(ours, 4096).decode()
    assert process.poll() is None
    (arena.directory / "go").touch()
    assert process.wait(timeout=30) == 0
    assert arena.job(job).row.attempts == 1
    assert arena.state(job) is State.DONE
    os.close(ours)
    os.close(theirs)


def test_what_a_task_forks_has_the_default_signals(arena: Arena) -> None:
    for arguments in (["-c", 1], ["-P", "solo"]):
        job = arena.publish("signals_of_a_fork")
        assert arena.worker("--burst", *arguments).wait(timeout=30) == 0, arena.logs()
        assert json.loads(str(arena.job(job).result)) == [0, 0, 0]


def test_sigquit_prints_the_stacks_of_all_and_ends_nobody(arena: Arena) -> None:
    waiting = arena.publish("wait_for_file", "go")
    worker = ready(arena, "-c", 2)
    wait_until(lambda: events(arena, "job_started"), what="the job")
    children = arena.children(worker)
    said = stacks(arena, worker)
    assert said.count("--- worker") == 2
    for pid in children:
        assert f", process {pid}, runs" in said
    [runs] = [line for line in said.splitlines() if f"runs job {waiting}" in line]
    assert said.index(runs) < said.index(" in wait_for_file")
    assert " in _sleep" in said.partition("--- worker")[0], "the supervisor's own"
    assert "did not answer" not in said
    # All threads: the one that stamps the slot, too.
    assert "heartbeat.py" in said
    (arena.directory / "go").touch()
    assert arena.wait_state(waiting, State.DONE).row.attempts == 1
    assert arena.children(worker) == children
    # An old answer is not taken for a new one, nor does anything of it stay.
    os.kill(children[0], signal.SIGSTOP)
    said = stacks(arena, worker, times=2)
    assert said.count("did not answer") == 1
    assert "\\x00" not in said
    os.kill(children[0], signal.SIGCONT)
    assert drains(worker)


def test_sigquit_shows_who_holds_the_gil_in_c_and_who_does_not_answer(arena: Arena) -> None:
    held = arena.publish("hold_the_gil")
    worker = ready(arena, "-c", 2)
    wait_until(lambda: events(arena, "job_started"), what="the job")
    [row] = [row for row in arena.app.backend.workers() if row.running]
    [stopped] = set(arena.children(worker)) - {row.pid}
    os.kill(stopped, signal.SIGSTOP)
    said = stacks(arena, worker)
    about = {block.split(",")[1]: block for block in said.split("--- ")[1:]}
    assert f"runs job {held}" in about[f" process {row.pid}"]
    assert " in hold_the_gil" in about[f" process {row.pid}"]
    assert "did not answer" in about[f" process {stopped}"]
    os.kill(stopped, signal.SIGCONT)
    # What it says now, belatedly, is not taken for the next answer.
    said = stacks(arena, worker, times=2)
    assert said.count("did not answer") == 1
    assert all(is_running(pid) for pid in (worker.pid, row.pid, stopped))


@pytest.mark.parametrize("how", ["handler", "default", "other file", "unregistered"])
def test_a_task_that_takes_sigquit_has_it_for_that_job_only(arena: Arena, how: str) -> None:
    taker = arena.publish("take_the_signal", how)
    waiting = arena.publish("wait_for_file", "go")
    worker = ready(arena, "-c", 1)
    arena.wait_state(taker, State.DONE)
    wait_until(lambda: len(events(arena, "job_started")) == 2, what="the second job")
    said = stacks(arena, worker)
    assert " in wait_for_file" in said
    assert "did not answer" not in said
    (arena.directory / "go").touch()
    arena.wait_state(waiting, State.DONE)
    assert drains(worker)


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_sigquit_prints_the_stacks_of_a_process_without_supervisor(
    arena: Arena, command: str
) -> None:
    pool = ["-P", "solo"] if command == "worker" else []
    process = arena.start(command, "-A", "crashapp:app", *pool)
    wait_until(lambda: events(arena, f"{command}_started"), deadline_s=30, what="the start")
    process.send_signal(signal.SIGQUIT)
    file = "solo.py" if command == "worker" else "service.py"
    wait_until(lambda: Path(file).name in arena.logs(), what="its stack")
    assert "(most recent call first)" in arena.logs()
    assert drains(process)
