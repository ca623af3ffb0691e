"""`app.testing()`: run an application's jobs in a test, on a file and a clock of the test's own.

    with app.testing() as testing:
        add.apply_async((2, 3), countdown=60)
        testing.advance(60)
        (ran,) = testing.drain()
        assert ran.result == 5

Nothing here pretends: jobs are published by Kombu, claimed from a SQLite file, run and settled by a
worker's own loop. What is not there is what a supervisor does: no job is ended by force, neither at
its time limit nor otherwise, and no signal is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import tempfile
import threading
import time
import types
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from sqlqueue import execute
from sqlqueue.errors import JobCancelled, JobFailed, Reject, Retry, TestingError
from sqlqueue.inspection import Inspection
from sqlqueue.text import quoted
from sqlqueue.worker.consumer import Consumer
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.clock import SYSTEM_CLOCK
from sqlqueue_transport.lifecycle import State, target
from sqlqueue_transport.reading import JobFilter
from sqlqueue_transport.stores import clock_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend, Taken
    from sqlqueue_transport.messages import Outcome

__all__ = ["Ran", "StoredJob", "TestClock", "Testing", "testing"]

_STOP_S: Final = 30.0  # how long a worker's running job may take to end after the test
_LATEST_MS: Final = 253_402_300_799_999  # the last moment of the year 9999, and of any datetime

_DECISIONS: Final = (Retry, Reject, JobCancelled)  # of the task itself: no mistakes


@dataclass(frozen=True, slots=True)
class Ran:
    """Be one attempt that `drain` ran.

    `state` is the job's state after it, such as done, failed or permanently_failed. `result` is what
    the task returned, as its readers get it. `error` is the exception itself; for a message that
    could not be run at all a JobFailed; None when all went well.
    """

    job_id: str
    task: str
    queue: str
    attempt: int
    state: str
    result: Any
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """Be one job as it stands in the file. `error` is the newest "Type: message", None without one.

    `due_at` is when a waiting job may start, `expires_at` when it may no more; None means no such
    time. `args` is empty where the message cannot be read.
    """

    id: str
    task: str
    queue: str
    state: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    priority: int
    attempts: int
    result: Any
    error: str | None
    due_at: datetime | None
    expires_at: datetime | None


class TestClock:
    """Tell a time that stands still until it is advanced; any thread may ask.

    Where somebody else has frozen the time (freezegun), the wall clock is his, and what was advanced
    here comes on top.
    """

    __test__ = False  # pytest would take it for a class of tests

    def __init__(self) -> None:
        """Stand still at this moment."""
        self._wall_ms = SYSTEM_CLOCK.wall_ms()
        self._advanced_ms = 0
        self._running_since_ms: int | None = None

    def wall_ms(self) -> int:
        """Return UTC milliseconds since the Unix epoch."""
        # freezegun puts functions in place of the builtin ones.
        if not isinstance(time.time_ns, types.BuiltinFunctionType):
            return SYSTEM_CLOCK.wall_ms() + self._advanced_ms
        return self._wall_ms + self._passed_ms()

    def lease_ms(self) -> int:
        """Return monotonic milliseconds as they are: a task may advance the time and keep its job."""
        return _real_ms()

    def boot(self) -> str:
        """Name the boot in which `lease_ms` counts."""
        return SYSTEM_CLOCK.boot()

    def advance(self, by_ms: int) -> None:
        """Let time pass."""
        self._advanced_ms += by_ms

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Go on by itself inside the block, and stand still after."""
        self._running_since_ms = _real_ms()
        try:
            yield
        finally:
            passed_ms, self._running_since_ms = self._passed_ms(), None
            self._advanced_ms = passed_ms

    def _passed_ms(self) -> int:
        since_ms = self._running_since_ms
        return self._advanced_ms + (0 if since_ms is None else _real_ms() - since_ms)


def _real_ms() -> int:
    """Return monotonic milliseconds as the kernel has them: freezegun does not know this call."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000


class Testing:
    """Run, look at and move the time of an application's jobs. Made by `app.testing()`.

    Any thread may publish and look; one at a time drains.
    """

    __test__ = False  # pytest would take it for a class of tests

    def __init__(self, app: SqlQueue, path: Path) -> None:
        """Take an application that works on the file `path` from now on."""
        self.app = app
        self.path = path
        self.clock = TestClock()
        self._at_work = threading.Lock()
        self._worker: _Worker | None = None

    # -- time -----------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """Return the application's time, aware, in UTC."""
        return _moment(self.clock.wall_ms())

    def advance(self, by: float | timedelta) -> datetime:
        """Let time pass, seconds or a timedelta; return the new time. Nothing runs by that.

        Raises TestingError for less than 0, for what is neither, and beyond the year 9999.
        """
        seconds: object = by.total_seconds() if isinstance(by, timedelta) else by
        if not isinstance(seconds, (int, float)):
            raise TestingError(f"advance({quoted(by)}): give seconds as a number, or a timedelta")
        if not 0 <= seconds < math.inf:  # also NaN is not
            raise TestingError(f"advance({by!r}): time only goes forward; give seconds, 0 or more")
        # Compared first: a float as large as they come has no product.
        if seconds > _LATEST_MS or self.clock.wall_ms() + round(seconds * 1000) > _LATEST_MS:
            raise TestingError(
                f"advance({quoted(by)}): there is no time after the year 9999; it is {self.now} now"
            )
        self.clock.advance(round(seconds * 1000))
        return self.now

    # -- running --------------------------------------------------------------------------------------

    def drain(
        self, *, reraise: bool = True, until_empty: bool = False, max_jobs: int = 1000
    ) -> list[Ran]:
        """Run in this thread whatever is due now, of all queues; return the attempts in their order.

        What a task enqueues for now runs, too. With `until_empty` time is advanced from one due job
        to the next until none is left, so that retries and delayed jobs run to their end.

        With `reraise` the exception of a task is raised, once everything has run and is settled: the
        first of those whose job did not end well in this call. `Retry` and `Reject` are no
        accidents and are never raised; KeyboardInterrupt always is, and at once. Raises
        TestingError when `max_jobs` attempts were not enough, when a task drains, while a worker
        runs, and, if the application has async tasks, in a thread whose event loop is running.
        """
        self._refuse_running_loop()
        if not self._at_work.acquire(blocking=False):
            raise TestingError(
                "drain() while jobs are run already, by another drain() or by a worker. A task must"
                " not drain; with a worker, wait for results instead."
            )
        try:
            ran = self._drained(until_empty=until_empty, max_jobs=max_jobs)
        finally:
            self._at_work.release()
        if reraise:
            for one in {one.job_id: one for one in ran}.values():
                if one.error is not None and not isinstance(one.error, _DECISIONS):
                    raise one.error
        return ran

    def _refuse_running_loop(self) -> None:
        """Raise TestingError where no async task could be run: a thread runs one loop at a time."""
        is_async = next((task.name for task in self.app.tasks.values() if task.is_async), None)
        if is_async is None:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        # Also where only others are due: they may enqueue it, and nothing is to be left half done.
        raise TestingError(
            f"drain() inside of a running event loop, which the async task {quoted(is_async)} needs"
            " for itself. Call it from a plain test function, or 'await"
            " asyncio.to_thread(testing.drain)'."
        )

    def _drained(self, *, until_empty: bool, max_jobs: int) -> list[Ran]:
        drain = _Drain(self.app, self.app.backend)
        while True:
            queues = [row.name for row in self.app.backend.queues()]
            due_ms = self.app.backend.unfinished_since_ms(queues) if queues else None
            now_ms = self.clock.wall_ms()
            if drain.interrupt is not None:
                raise drain.interrupt
            if due_ms is None or (due_ms > now_ms and not until_empty):
                return drain.ran
            if drain.attempts >= max_jobs:
                raise TestingError(
                    f"{max_jobs} attempts have run, and there is more to do; the last one was of"
                    f" the task {drain.last_task}. Does a task enqueue itself, or is it retried"
                    " for ever? Else give more max_jobs."
                )
            self.clock.advance(max(due_ms - now_ms, 0))
            drain.run(queues, max_jobs - drain.attempts)

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """Have a real worker run jobs in a thread, with time going on by itself, inside the block.

        It serves the queues of the application, and ends when its running job has. Raises
        TestingError when it crashed, or when its job has not ended after 30 seconds.
        """
        if not self._at_work.acquire(blocking=False):
            raise TestingError("a worker, or drain(), is at work already")
        try:
            with self.clock.running():
                self._worker = _Worker(self.app)
                try:
                    yield
                finally:
                    self._worker.stop()
        finally:
            self._worker = None
            self._at_work.release()

    def refuse_waiting(self, job_id: str, state: State) -> None:
        """Raise TestingError where `AsyncResult.get` would wait for a job that nobody runs."""
        if self._worker is None:
            raise TestingError(
                f"job {job_id} is {state.value}, and nobody runs jobs now. Call drain() before"
                " get(), or wait inside of a worker()."
            )
        self._worker.refuse_crashed()

    # -- looking --------------------------------------------------------------------------------------

    def jobs(
        self,
        *,
        state: State | str | None = None,
        task: str | None = None,
        queue: str | None = None,
    ) -> list[StoredJob]:
        """Return the jobs in the file, the first published first. Raises ValueError for no state."""
        chosen = JobFilter(states=() if state is None else (State(state),), task=task, queue=queue)
        inspection = Inspection(
            self.app.backend,
            settings=self.app.conf,
            clock=self.clock,
            shows_sensitive=True,
        )
        found = [self._stored(inspection, row.message_id) for row in inspection.every_job(chosen)]
        return found[::-1]

    @staticmethod
    def _stored(inspection: Inspection, message_id: int) -> StoredJob:
        job = inspection.job(f"#{message_id}")
        row, error = job.row, job.error
        return StoredJob(
            id=row.name,
            task=row.task or "",
            queue=row.queue,
            state=row.state.value,
            args=job.arguments.args or (),
            kwargs=job.arguments.kwargs or {},
            priority=row.priority,
            attempts=row.attempts,
            result=job.result,
            error=None if error is None else f"{error.type}: {error.message}",
            due_at=None if row.due_at_ms is None else _moment(row.due_at_ms),
            expires_at=None if row.expires_at_ms is None else _moment(row.expires_at_ms),
        )


@contextlib.contextmanager
def testing(app: SqlQueue) -> Iterator[Testing]:
    """Do what `app.testing` says. The file is in a new temporary directory and goes with it."""
    directory = Path(tempfile.mkdtemp(prefix="sqlqueue-testing-"))
    try:
        path = directory / "queue.db"
        mode = Testing(app, path)
        url = f"sqlqueue:///{quote(str(path))}"
        with clock_of(path, mode.clock), app.working_for(mode, broker_url=url):
            yield mode
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Drain:
    """Run a worker's own loop until nothing is due, and note what it settled."""

    def __init__(self, app: SqlQueue, backend: Backend) -> None:
        self.ran: list[Ran] = []
        self.attempts = 0  # also those whose settlement was refused: the test failed their job
        self.last_task = ""
        self.interrupt: KeyboardInterrupt | None = None
        self._app = app
        self._backend = backend
        self._errors: dict[str, BaseException] = {}
        self._consumer: Consumer | None = None

    def run(self, queues: Sequence[str], max_jobs: int) -> None:
        def register() -> None:
            self._backend.register(name="testing", kind="worker", queues=queues, slots=1)

        register()
        self._consumer = Consumer(
            self._app,
            cast("Backend", _Watched(self._backend, self._note)),
            queues=queues,
            name="testing",
            register=register,
            burst=True,
            max_jobs=max_jobs,
        )
        try:
            with execute.errors_told_to(self._keep):
                self._consumer.run()
        finally:
            self._backend.leave()

    def _keep(self, job_id: str, error: BaseException) -> None:
        self._errors[job_id] = error
        if isinstance(error, KeyboardInterrupt) and self._consumer is not None:
            self.interrupt = error  # a person is waiting
            self._consumer.stop()

    def _note(self, taken: Taken, outcome: Outcome, *, accepted: bool) -> None:
        job_id, task = execute.job_id_of(taken), execute.task_name_of(taken)
        error = self._errors.pop(job_id, None)
        fault = outcome.fault
        self.attempts, self.last_task = self.attempts + 1, task
        if not accepted:
            return
        if error is None and fault is not None:
            error = JobFailed(
                job_id, fault.type, error_message=fault.message, traceback=fault.traceback
            )
        self.ran.append(
            Ran(
                job_id=job_id,
                task=task,
                queue=taken.queue,
                attempt=taken.attempts + 1,
                state=target(State.PROCESSING, outcome.event).value,
                result=None if outcome.result is None else json.loads(outcome.result),
                error=error,
            )
        )


class _Watched:
    """Be a backend that tells what was settled, and for which only what is due now is left to do."""

    def __init__(self, backend: Backend, note: Callable[..., object]) -> None:
        self._backend = backend
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    noted_ends = 0  # one job after the other: each sees those before it settled

    def claim(
        self, queues: Sequence[str], limit: int, settlements: Sequence[tuple[Taken, Outcome]]
    ) -> tuple[list[Taken], list[Taken]]:
        found, refused = self._backend.claim(queues, limit, settlements)
        self._note_all(settlements, refused)
        return found, refused

    def settle(self, settlements: Sequence[tuple[Taken, Outcome]]) -> list[Taken]:
        refused = self._backend.settle(settlements)
        self._note_all(settlements, refused)
        return refused

    def unfinished_since_ms(self, _: Sequence[str]) -> None:
        """Say that nothing is left: what is not due will not become so while time stands still."""

    def _note_all(
        self, settlements: Sequence[tuple[Taken, Outcome]], refused: Sequence[Taken]
    ) -> None:
        for taken, outcome in settlements:
            self._note(taken, outcome, accepted=taken not in refused)


class _Worker:
    """Run a solo worker in a thread from the start, which waits for it, until `stop`."""

    def __init__(self, app: SqlQueue) -> None:
        self._app = app
        self._consumer: Consumer | None = None
        self._is_up = threading.Event()
        self._code: int | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sqlqueue-testing", daemon=True)
        self._thread.start()
        self._is_up.wait()
        self.refuse_crashed()

    def _run(self) -> None:
        try:
            self._code = run_solo(
                self._app, name="testing", handle_signals=False, on_ready=self._ready
            )
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._error = error
        finally:
            self._is_up.set()

    def _ready(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._is_up.set()

    def stop(self) -> None:
        if self._consumer is not None:
            self._consumer.stop()
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            raise TestingError(
                f"the worker's running job has not ended {_STOP_S:g} s after the test; nothing can"
                " end a task by force in here. Let it end."
            )
        self.refuse_crashed()

    def refuse_crashed(self) -> None:
        if self._error is not None:
            raise TestingError(
                f"the worker crashed: {type(self._error).__name__}: {self._error}"
            ) from self._error
        if self._code:
            raise TestingError(f"the worker ended with exit code {self._code}; see its log")


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(0, tz=timezone.utc) + timedelta(milliseconds=at_ms)
