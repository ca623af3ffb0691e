"""A place to run unmodified Celery in: its own command line, real processes, one queue file.

`CELERY_TESTS_BROKER=redis://127.0.0.1:6379/0` runs the same tests against another broker, to learn
whether a surprise is ours or Celery's, and CELERY_TESTS_BACKEND against another store of results.
The Redis database behind such a URL is emptied before each test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobDetail, JobFilter, JobRow
from sqlqueue_transport.store import Store
from tests.celery.running import end_all
from tests.support import ROOT, is_running, wait_until

OTHER_BROKER = os.environ.get("CELERY_TESTS_BROKER")
OTHER_BACKEND = os.environ.get("CELERY_TESTS_BACKEND", OTHER_BROKER)
APP = Path(__file__).with_name("app.py")
START_DEADLINE_S = 60
_numbers = itertools.count()


@dataclass
class Program:
    """Be a program that was started in an arena, in a session of its own, and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        """Return all that it has written so far."""
        return self.log.read_text(errors="replace")

    def wait_text(self, wanted: str, *, deadline_s: float = 30) -> None:
        """Wait until it has written something; fail at once when it has ended instead."""

        def is_there() -> bool:
            ended = self.process.poll() is not None
            if wanted in self.text:
                return True
            assert not ended, f"{self.name} ended with {self.process.returncode}:\n{self.text}"
            return False

        wait_until(is_there, deadline_s=deadline_s, what=f"{wanted!r} of {self.name}", every_s=0.02)

    @property
    def children(self) -> list[int]:
        """Return the children that run; Celery leaves a dead one unwaited-for for five seconds."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        found = path.read_text().split() if path.exists() else []
        return [pid for pid in map(int, found) if is_running(pid)]

    def signal(self, number: int) -> None:
        """Send a signal to the program's main process alone."""
        self.process.send_signal(number)

    def kill_group(self) -> None:
        """End the program and all its children as `kill -9` does; harmless when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def wait(self, *, deadline_s: float = 60) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self.process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            message = f"{self.name} still runs after {deadline_s} s:\n{self.text[-3000:]}"
            raise AssertionError(message) from None


@dataclass
class Arena:
    """Be a directory with a queue file, an application on it, and the programs a test started."""

    directory: Path
    broker: str
    settings: dict[str, Any] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    _module: ModuleType | None = None

    # -- the publisher's side ---------------------------------------------------------------------

    @property
    def tasks(self) -> Any:
        """Return the application's module as this process imports it, once all is configured."""
        if self._module is None:
            specification = importlib.util.spec_from_file_location(f"app_{next(_numbers)}", APP)
            assert specification is not None
            assert specification.loader is not None
            self._module = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(self._module)
            self._module.app.conf.update(self.all_settings())
        return self._module

    @property
    def app(self) -> Any:
        return self.tasks.app

    def all_settings(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "broker_url": self.broker,
            "result_backend": OTHER_BACKEND or self.broker,
            **self.settings,
            **(settings or {}),
        }

    # -- the worker's side ------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *command: object,
        settings: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> Program:
        """Start a command in the arena, in its own session; what it writes goes to a log there."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=self.directory,
                env=self.environment(settings) | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program(name, process, log)
        self.programs.append(program)
        return program

    def environment(self, settings: dict[str, Any] | None = None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if "SQLQUEUE" not in key}
        return kept | {
            "PYTHONPATH": str(ROOT),
            "CELERY_SETTINGS": json.dumps(self.all_settings(settings)),
            "CELERY_TRACES": str(self.directory),
        }

    def celery(self, name: str, *arguments: object, **more: Any) -> Program:
        """Start `celery -A the-application …`."""
        return self.start(
            name, sys.executable, "-m", "celery", "-A", "tests.celery.app", *arguments, **more
        )

    def worker(
        self,
        name: str = "worker",
        *arguments: object,
        pool: str = "prefork",
        concurrency: int = 2,
        wait: bool = True,
        **more: Any,
    ) -> Program:
        """Start a worker `name@arena` and wait until it is ready."""
        program = self.celery(
            name,
            *("worker", "-n", f"{name}@arena", "-P", pool, "-c", concurrency, "-l", "info"),
            *arguments,
            **more,
        )
        if wait:
            program.wait_text("@arena ready.", deadline_s=START_DEADLINE_S)
        return program

    def python(self, name: str, code: str, *arguments: object, **more: Any) -> Program:
        """Start a Python program on `code`, in which `arguments` are `sys.argv[1:]`."""
        return self.start(name, sys.executable, "-c", textwrap.dedent(code), *arguments, **more)

    def sqlqueue(self, *arguments: object) -> Program:
        """Run a command of the operators' command line on the queue file to its end."""
        number = len(self.programs)
        program = self.start(
            f"sqlqueue-{number}", sys.executable, "-m", "sqlqueue", "--db", self.file, *arguments
        )
        program.wait()
        return program

    # -- what came of it --------------------------------------------------------------------------

    def trace(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the starts and ends that tasks left, in order; only those that match."""
        path = self.directory / "trace.jsonl"
        # The last line may be seen while it is written: a reader is not kept out.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if wanted.items() <= line.items()]

    def wait_trace(
        self, count: int = 1, *, deadline_s: float = 30, **wanted: Any
    ) -> list[dict[str, Any]]:
        """Wait until at least that many lines of the trace match, and return them."""
        return self.wait(
            lambda: len(lines := self.trace(**wanted)) >= count and lines,
            deadline_s=deadline_s,
            what=lambda: f"{count} lines of {wanted} where {len(self.trace(**wanted))} are",
        )

    def wait(self, condition: Any, *, what: Any, deadline_s: float = 30) -> Any:
        """Wait until a condition holds; when it fails to, say `what()` and what the logs say."""
        try:
            return wait_until(condition, deadline_s=deadline_s, every_s=0.02)
        except AssertionError:
            message = f"waited {deadline_s} s in vain for {what()}; log:\n{self.logs()[-4000:]}"
            raise AssertionError(message) from None

    def let_go(self, name: str) -> None:
        """End the tasks `hold_late` of that name."""
        (self.directory / name).touch()

    def logs(self) -> str:
        """Return everything the programs wrote."""
        return "\n".join(path.read_text(errors="replace") for path in self.directory.glob("*.log"))

    # -- what stands in the file ------------------------------------------------------------------

    @property
    def file(self) -> Path:
        return self.directory / "queue" / "queue.db"

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """Open the queue file as any other process would."""
        store = Store(self.file)
        try:
            yield store
        finally:
            store.close()

    def rows(self, job_id: str | None = None) -> list[JobRow]:
        """Return the messages of a job, or of all, newest first."""
        wanted = JobFilter(job_ids=(job_id,) if job_id else ())
        with self.store() as store:
            return list(store.reading.jobs(wanted, limit=100_000))

    def detail(self, job_id: str) -> JobDetail:
        """Return a job that has one message, whole."""
        (row,) = self.rows(job_id)
        with self.store() as store:
            detail = store.reading.job(row.message_id)
        assert detail is not None
        return detail

    def wait_state(self, job_id: str, state: State, *, deadline_s: float = 30) -> JobRow:
        """Wait until every message of a job is in a state; return the newest."""
        self.wait(
            lambda: (rows := self.rows(job_id)) and {row.state for row in rows} == {state},
            deadline_s=deadline_s,
            what=lambda: f"{state.value} where there is {self.rows(job_id)}",
        )
        return self.rows(job_id)[0]

    def wait_settled(self, *, deadline_s: float = 30) -> None:
        """Wait until nothing waits or runs any more."""
        settled = {State.DONE, State.PERMANENTLY_FAILED}
        self.wait(
            lambda: all(row.state in settled for row in self.rows()),
            deadline_s=deadline_s,
            what=lambda: f"{settled} where there is {self.rows()}",
        )

    def close(self) -> None:
        """End every program, and what this process has open."""
        for program in self.programs:
            program.kill_group()
        if self._module is not None:
            self.app.close()
        end_all()


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """Give an arena, and end every program that was started in it."""
    if OTHER_BACKEND:
        import redis

        redis.Redis.from_url(OTHER_BACKEND).flushdb()
    # In a directory of its own, because a test moves it away.
    (tmp_path / "queue").mkdir(mode=0o700)
    made = Arena(tmp_path, OTHER_BROKER or f"sqlqueue:///{tmp_path}/queue/queue.db")
    yield made
    made.close()


ours_only = pytest.mark.skipif(
    bool(OTHER_BROKER), reason="about the queue file, and another broker was asked for"
)
