"""A place to break workers in: real processes of the real command line on a file in tmp_path."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sqlqueue_transport import Store
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobDetail, JobFilter
from tests.support import ROOT, end_processes, wait_until

APP = '''
"""Tasks that misbehave, each leaving a trace of every start and end in trace.jsonl."""

import ctypes, json, os, signal, subprocess, sys, time
from sqlqueue import SqlQueue

app = SqlQueue("crashapp", broker_url="sqlqueue:///queue.db")


def trace(task, event):
    line = json.dumps({
        "job": task.request.id, "attempt": task.request.attempt, "event": event,
        "delivery": task.request.delivery, "worker": task.request.worker,
        "pid": os.getpid(), "at": time.monotonic(),
    })
    with open("trace.jsonl", "a") as file:
        file.write(line + "\\n")


@app.task(name="work", bind=True)
def work(self, seconds):
    trace(self, "start")
    time.sleep(seconds)
    trace(self, "end")
    return self.request.attempt


@app.task(name="once_slow", bind=True)
def once_slow(self, seconds):
    """Be slow in the first attempt only."""
    trace(self, "start")
    if self.request.attempt == 1:
        time.sleep(seconds)
    trace(self, "end")


@app.task(name="held", bind=True)
def held(self):
    """Wait for the file `go` in the first attempt only."""
    trace(self, "start")
    while self.request.attempt == 1 and not os.path.exists("go"):
        time.sleep(0.01)
    trace(self, "end")


@app.task(name="suicide", bind=True)
def suicide(self):
    trace(self, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="hang", bind=True, time_limit=1.0, max_attempts=2)
def hang(self):
    trace(self, "start")
    while True:
        time.sleep(1)


@app.task(name="takes_sigterm", bind=True)
def takes_sigterm(self, seconds):
    """Have a handler of its own for the signal to stop."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    trace(self, "start")
    time.sleep(seconds)


@app.task(name="leaves_its_group", bind=True, time_limit=1.0, max_attempts=1)
def leaves_its_group(self):
    """Start a program in a process group of its own, as a shell does with its jobs."""
    child = subprocess.Popen(["sleep", "600"], preexec_fn=lambda: os.setpgid(0, 0))
    with open("grandchild.pid", "w") as file:
        file.write(str(child.pid))
    trace(self, "start")
    time.sleep(600)


@app.task(name="hang_in_c", bind=True, time_limit=1.0, max_attempts=1)
def hang_in_c(self):
    """Hold the GIL in C, and keep a subprocess that ignores SIGTERM."""
    trace(self, "start")
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code])
    with open("grandchild.pid", "w") as file:
        file.write(str(child.pid))
    ctypes.PyDLL(None).sleep(600)


@app.task(name="stubborn", bind=True)
def stubborn(self):
    """The same, without a time limit of its own."""
    hang_in_c.function(self)


@app.task(name="telling", bind=True)
def telling(self, count):
    """Say much of itself at once, and then nothing until the file `go` is there."""
    for number in range(count + 1):
        self.progress(number, count)
    while not os.path.exists("go"):
        time.sleep(0.01)
'''


@dataclass
class Arena:
    """Be a directory with a queue, an application and the processes a test started."""

    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def store(self) -> Store:
        """Open the store anew, as any other process would."""
        return Store(self.directory / "queue.db")

    def start(
        self, *arguments: object, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `sqlqueue …` in the arena; its output goes to a log file there."""
        log = self.directory / f"{arguments[0]}-{len(self.processes)}.log"
        environment = {key: value for key, value in os.environ.items() if "SQLQUEUE" not in key}
        environment |= {"PYTHONPATH": f"{ROOT}:{self.directory}", **(env or {})}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sqlqueue", *map(str, arguments)],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def worker(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a worker of the arena's application."""
        return self.start("worker", "-A", "crashapp:app", *arguments)

    def logs(self) -> str:
        """Return everything the processes logged."""
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("*.log")))

    def publish(self, task: str, *args: object, **options: Any) -> str:
        """Enqueue a call and return its job id."""
        return str(self.app.send_task(task, args, **options).id)

    @property
    def app(self) -> Any:
        """Return an application on the arena's queue, for publishing from the test."""
        from sqlqueue import SqlQueue

        if not hasattr(self, "_app"):
            self._app = SqlQueue("test", broker_url=f"sqlqueue:///{self.directory}/queue.db")
        return self._app

    def job(self, job_id: str) -> JobDetail:
        """Return a job whole."""
        backend = self.app.backend
        detail: JobDetail | None = backend.job(backend.message_ids_of(job_id)[0])
        assert detail is not None
        return detail

    def state(self, job_id: str) -> State:
        """Return a job's state."""
        return self.job(job_id).row.state

    def wait_state(self, job_id: str, state: State, *, deadline_s: float = 30) -> JobDetail:
        """Wait until a job is in a state and return it."""
        wait_until(
            lambda: self.state(job_id) is state,
            deadline_s=deadline_s,
            what=f"{job_id} to be {state.value}, log:\n{self.logs()[-3000:]}",
        )
        return self.job(job_id)

    def trace(self) -> list[dict[str, Any]]:
        """Return every start and end the tasks left, in order."""
        path = self.directory / "trace.jsonl"
        # The last line may be seen while it is written: a reader is not kept out.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def started(self, job_id: str, *, attempt: int = 1, deadline_s: float = 30) -> dict[str, Any]:
        """Wait until an attempt of a job runs and return its trace."""

        def find() -> dict[str, Any] | None:
            return next(
                (
                    line
                    for line in self.trace()
                    if (line["job"], line["attempt"], line["event"]) == (job_id, attempt, "start")
                ),
                None,
            )

        found: dict[str, Any] = wait_until(
            find, deadline_s=deadline_s, what=f"attempt {attempt}, log:\n{self.logs()[-3000:]}"
        )
        return found

    def children(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Return the process ids of a supervisor's children."""
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def all_jobs(self) -> Any:
        """Return every job row."""
        return self.app.backend.jobs(JobFilter(), limit=100_000)


@pytest.fixture
def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """Give an arena, and end every process that was started in it."""
    monkeypatch.chdir(tmp_path)  # a conf/sqlqueue.toml in the working directory would be read
    (tmp_path / "crashapp.py").write_text(APP)
    made = Arena(tmp_path)
    made.store.close()
    yield made
    end_processes()
    if hasattr(made, "_app"):
        made._app.close()
    for process in made.processes:
        if process.poll() is None:
            for pid in (process.pid, *made.children(process)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGKILL)
            process.wait(timeout=30)
