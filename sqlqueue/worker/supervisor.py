"""The supervisor: forks children, watches over them, and runs no user code.

It has one thread and imports only our own modules, so a fork is safe, and holds no connection at
that moment (the store's fork hook closes it). It does not hand out jobs: children claim for
themselves. What it does, several times a second at most, is to

* replace children that died, and give back what they held (`sweep`),
* extend the leases of children whose heartbeat is fresh,
* kill a child that went silent for a whole visibility timeout, one whose job is over its time
  limit, and one that sits on the writer lock: always first the kill, then the release,
* on SIGTERM or SIGINT let the children finish, and after the grace time release uncounted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sqlqueue.backend import SqliteBackend, open_backend
from sqlqueue.config import Settings
from sqlqueue.errors import AppImportError, ConfigError
from sqlqueue.loading import load_app
from sqlqueue.log import get_logger
from sqlqueue.worker import child as child_process
from sqlqueue.worker.beat_child import BeatChild, forked_beat
from sqlqueue.worker.heartbeat import interval_s
from sqlqueue_transport.errors import Busy, FileReplaced, SchemaChanged, Unavailable
from sqlqueue_transport.messages import Fault
from sqlqueue_transport.writer_lock import read_holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlqueue_transport.messages import Lost
    from sqlqueue_transport.presence import Entry, Note

__all__ = ["AppFacts", "Supervisor", "WorkerOptions", "ask_app"]

log = get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_SCHEMA: Final = 6
EXIT_STOPPED: Final = 130

_LOCK_LIMIT_S: Final = 10.0
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_YOUNG_S: Final = 2.0  # a child that dies younger than this without a job failed to start
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Be what the command line says beyond the settings. `max_jobs` None means no limit."""

    app_path: str
    name: str
    burst: bool = False
    max_jobs: int | None = None
    beat: bool = False


@dataclass(frozen=True, slots=True)
class AppFacts:
    """Be what a supervisor knows of the application it must not import."""

    settings: Settings
    queues: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(slots=True)
class Child:
    """Be one living child. `left` is how many jobs it may still run, None without a limit."""

    index: int
    pid: int
    started_s: float
    left: int | None


@dataclass(slots=True)
class Place:
    """Be one of the worker's `concurrency` places, which a child fills."""

    left: int | None
    is_over: bool = False
    not_before_s: float = 0.0
    failures: int = 0


def ask_app(path: str) -> AppFacts:
    """Import the application in a process of its own and return what a supervisor needs.

    Raises AppImportError or ConfigError with the text of the import's own error.
    """
    reading, writing = os.pipe()
    _flush()
    parent_pid = os.getpid()
    pid = os.fork()
    if not pid:
        os.close(reading)
        child_process.die_with(parent_pid)
        _answer(path, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        # A line, not to the end: a process that the import has started may hold the pipe for ever.
        answer = pipe.readline()
    os.waitpid(pid, 0)
    if not answer:
        raise AppImportError(f"cannot import app {path!r}: the import ended its process")
    found: dict[str, Any] = json.loads(answer)
    if "error" in found:
        kind = ConfigError if found["kind"] == "ConfigError" else AppImportError
        raise kind(found["error"])
    found["settings"]["worker_queues"] = tuple(found["settings"]["worker_queues"])
    return AppFacts(Settings(**found["settings"]), tuple(found["queues"]), tuple(found["tasks"]))


def _answer(path: str, writing: int) -> NoReturn:
    try:
        app = load_app(path)
        settings = {
            field.name: getattr(app.conf, field.name)
            for field in dataclasses.fields(Settings)
            if field.name not in {"app", "beat"}
        }
        answer = json.dumps(
            {
                "settings": settings,
                "queues": app.queues,
                "tasks": sorted(app.tasks),
            },
            default=dict,
        )
    except BaseException as error:  # noqa: BLE001 - importing an application is user code
        text = str(error) or type(error).__name__
        answer = json.dumps({"error": text, "kind": type(error).__name__})
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(answer.encode() + b"\n")
    os._exit(0)


class Supervisor:
    """Run one worker; `run` returns its exit code. One per process, in its only thread."""

    def __init__(self, options: WorkerOptions, facts: AppFacts) -> None:
        """Prepare; nothing is opened or forked yet."""
        self._options = options
        self._settings = facts.settings
        self._facts = facts
        self._lease_s = facts.settings.visibility_timeout
        self._children: dict[int, Child] = {}
        self._places = _places(facts.settings.worker_concurrency, options.max_jobs)
        self._beat = self._make_beat() if options.beat else None
        self._signals = 0
        self._grace_until_s: float | None = None
        self._swept_s = self._extended_s = 0.0
        self._exit_code = EXIT_OK
        self._worker_id = 0
        self._wake_reading, self._wake_writing = os.pipe()
        self._lifeline_reading, self._lifeline_writing = os.pipe()
        for descriptor in (self._wake_reading, self._wake_writing):
            os.set_blocking(descriptor, False)
        self._wake_poll = select.poll()  # select() knows no descriptor above 1023
        self._wake_poll.register(self._wake_reading, select.POLLIN)
        # A child must not be waited for longer than we look after the others.
        options_of_ours = {**facts.settings.transport_options, "busy_timeout": _LOCK_LIMIT_S / 2}
        backend = open_backend(
            dataclasses.replace(facts.settings, transport_options=options_of_ours)
        )
        if not isinstance(backend, SqliteBackend):
            backend.close()
            raise ConfigError(
                f"the pool 'processes' needs a sqlqueue:// broker, not {backend.name}; run"
                " the worker with '-P solo', and several of them for more concurrency"
            )
        self._backend = backend
        self._consumers = self._backend.store.consumers
        self._lock_path = self._backend.store.database.run_directory / "writer.lock"

    def run(self) -> int:
        """Supervise until told to stop or nothing is left; return the exit code.

        If the supervisor dies midway its children die with it, and whoever sweeps next gives back
        what they held.
        """
        with self._handling_signals():
            try:
                self._start()
                while True:
                    self._turn()
                    if not self._children and not self._wanted() and not self._beat_runs():
                        break
                    self._sleep()
            except (FileReplaced, SchemaChanged) as error:
                log.error("store_gone", worker=self._options.name, error=str(error))
                self._exit_code = EXIT_SCHEMA if isinstance(error, SchemaChanged) else EXIT_FAILED
                self._kill_all(count=True)
            self._stop()
        return self._exit_code

    # -- the loop ---------------------------------------------------------------------------------

    def _start(self) -> None:
        self._worker_id = self._backend.register(
            name=self._options.name,
            kind="worker",
            queues=self._facts.queues,
            slots=self._settings.worker_concurrency,
        )
        self._log_lost(self._consumers.sweep_all())
        log.info(
            "worker_started",
            worker=self._options.name,
            pid=os.getpid(),
            app=self._options.app_path,
            tasks=list(self._facts.tasks),
            queues=list(self._facts.queues),
            concurrency=self._settings.worker_concurrency,
            broker=self._settings.broker_url,
            visibility_timeout_s=self._lease_s,
        )
        self._fill_places()
        log.info("worker_ready", worker=self._options.name)

    def _turn(self) -> None:
        """Do everything that is due; a busy store is waited out, children run on meanwhile."""
        try:
            self._consumers.beat()
            self._reap()
            self._look_after_children()
            self._extend_leases()
            if time.monotonic() - self._swept_s >= self._settings.sweep_interval:
                self._swept_s = time.monotonic()
                self._log_lost(self._consumers.sweep())
                self._backend.store.database.look_at_path()
                self._watch_lock()
                self._keep_house()
            self._fill_places()
            if self._beat is not None:
                self._beat.keep(unless=lambda: self._draining)
        except Busy as busy:
            log.warning("store_busy", error=str(busy))
            self._watch_lock()  # whoever holds it at this instant may have it only now
        except (FileReplaced, SchemaChanged):
            raise
        except Unavailable as error:
            log.warning("store_busy", error=str(error))
        if self._grace_until_s is not None and time.monotonic() >= self._grace_until_s:
            log.warning("grace_over", worker=self._options.name, running=len(self._children))
            self._kill_all(count=False)

    def _sleep(self) -> None:
        """Sleep until a signal, a child's end, a time limit, or the next turn."""
        timeout_s = min(self._settings.sweep_interval, interval_s(self._lease_s))
        if self._grace_until_s is not None:
            timeout_s = min(timeout_s, self._grace_until_s - time.monotonic())
        now_ms = self._backend.store.clock.lease_ms()
        for _, notes in self._consumers.children_of(self._worker_id):
            for note in notes.values():
                if note.deadline_ms:
                    timeout_s = min(timeout_s, (note.deadline_ms - now_ms) / 1000)
        self._wake_poll.poll(max(timeout_s, 0.0) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reading, 4096)

    # -- children ---------------------------------------------------------------------------------

    @property
    def _draining(self) -> bool:
        return self._signals > 0

    def _wanted(self) -> list[int]:
        """Return the places that need a child, now or later."""
        if self._draining:
            return []
        taken = {child.index for child in self._children.values()}
        return [
            index
            for index, place in enumerate(self._places)
            if index not in taken and not place.is_over
        ]

    def _fill_places(self) -> None:
        for index in self._wanted():
            if time.monotonic() >= self._places[index].not_before_s:
                self._fork_child(index)

    def _fork_child(self, index: int) -> None:
        order = child_process.ChildOrder(
            app_path=self._options.app_path,
            name=f"{self._options.name}/{index + 1}",
            parent_pid=os.getpid(),
            parent_id=self._worker_id,
            queues=self._facts.queues,
            burst=self._options.burst,
            max_jobs=self._places[index].left,
            lifeline=self._lifeline_reading,
        )
        _flush()
        # Blocked, so that a signal between the fork and the child's own handlers is not lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            # Asked here: whoever is told to stop before this does not know the child yet.
            if self._draining:
                return
            pid = os.fork()
            if not pid:
                _become_child(
                    order, (self._wake_reading, self._wake_writing, self._lifeline_writing)
                )
            # Known before signals come in again: the handler tells every child it knows.
            self._children[pid] = Child(index, pid, time.monotonic(), self._places[index].left)
        except OSError as error:  # no memory, no process to be had: the others go on
            self._places[index].not_before_s = time.monotonic() + _LONGEST_BACKOFF_S
            log.error("child_start_failed", worker=order.name, error=str(error))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        log.info("child_started", worker=order.name, pid=pid)

    def _beat_runs(self) -> bool:
        return self._beat is not None and self._beat.pid is not None

    def _make_beat(self) -> BeatChild:
        name, parent_pid = f"{self._options.name}/beat", os.getpid()

        def run(unblock: Callable[[], object]) -> int:
            return forked_beat(
                self._options.app_path,
                name=name,
                parent_pid=parent_pid,
                lifeline=self._lifeline_reading,
                unblock=unblock,
            )

        def become() -> NoReturn:
            ours = (self._wake_reading, self._wake_writing, self._lifeline_writing)
            _become(run, name, ours)

        return BeatChild(name, become)

    def _reap(self) -> None:
        """Notice children that ended, and give back at once what they held."""
        ended = False
        while self._children or self._beat_runs():
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            child = self._children.pop(pid, None)
            if child is not None:
                self._note_end(child, os.waitstatus_to_exitcode(status))
                ended = True
            elif self._beat is not None and pid == self._beat.pid:
                code = os.waitstatus_to_exitcode(status)
                self._beat.note_end(code, is_wanted=not self._draining)
                ended = True
        if ended:
            self._log_lost(self._consumers.sweep())

    def _note_end(self, child: Child, code: int) -> None:
        place = self._places[child.index]
        place.left = self._jobs_left(child)
        name = f"{self._options.name}/{child.index + 1}"
        if code == child_process.FINISHED:
            place.is_over = True
            log.info("child_stopped", worker=name, pid=child.pid)
            return
        if code == child_process.FILE_GONE:
            # Our own next write would find out, too; raise what the child met right away.
            database = self._backend.store.database
            database.look_at_path()
            database.write(lambda _: None)
        is_young = time.monotonic() - child.started_s < _YOUNG_S
        if code == child_process.START_FAILED or (is_young and place.failures):
            place.failures += 1
        else:
            place.failures = 1 if is_young else 0
        wait_s = 0.0
        if code == child_process.START_FAILED or place.failures > 3:
            doubled_s = _FIRST_BACKOFF_S * 2 ** min(place.failures - 1, 16)
            wait_s = min(doubled_s, _LONGEST_BACKOFF_S)
        place.not_before_s = time.monotonic() + wait_s
        if place.left == 0:
            place.is_over = True
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.warning("child_lost", worker=name, pid=child.pid, why=why, replaced_in_s=wait_s)

    def _jobs_left(self, child: Child) -> int | None:
        if child.left is None:
            return None
        for entry, _ in self._consumers.children_of(self._worker_id):
            if entry.pid == child.pid:
                return max(child.left - entry.jobs_ended, 0)
        return child.left

    def _look_after_children(self) -> None:
        """Kill who went silent or is over the time limit; first the kill, then the release."""
        now_ms = self._backend.store.clock.lease_ms()
        for entry, notes in self._consumers.children_of(self._worker_id):
            child = self._children.get(entry.pid)
            if child is None:
                continue
            if now_ms - entry.heartbeat_ms >= self._lease_s * 1000:
                self._kill(child, f"no heartbeat for {self._lease_s:g} s")
                self._end(entry, child, {})
            elif any(_is_over(note, now_ms) for note in notes.values()):
                self._end_overdue(entry, child)

    def _end_overdue(self, entry: Entry, child: Child) -> None:
        """Kill a child whose job is over its time limit, but not the innocent job after it.

        The child is stopped before its notes are read again: between our first look and the kill
        it might have finished that job and started another.
        """
        os.kill(child.pid, signal.SIGSTOP)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):  # it ended just now
            self._children.pop(child.pid)
            self._note_end(child, os.waitstatus_to_exitcode(status))
            return
        now_ms = self._backend.store.clock.lease_ms()
        notes = self._consumers.presence.notes(entry.slot)
        over = [note for note in notes.values() if _is_over(note, now_ms)]
        if not over:
            os.kill(child.pid, signal.SIGCONT)
            return
        limit_s = (over[0].deadline_ms - over[0].started_ms) / 1000
        self._kill(child, f"its job is over its time limit of {limit_s:g} s")
        fault = Fault("TimeLimitExceeded", f"ended by force at its time limit of {limit_s:g} s")
        for note in over:
            log.error("job_timed_out", message_id=note.message_id, limit_s=limit_s)
        self._end(entry, child, {note.message_id: ("timed_out", fault) for note in over})

    def _end(self, entry: Entry, child: Child, faults: dict[int, tuple[str, Fault]]) -> None:
        self._places[child.index].left = self._jobs_left(child)
        self._log_lost(self._consumers.end_worker(entry.worker_id, faults=faults))

    def _kill(self, child: Child, why: str) -> None:
        """End a child and everything in its session, and wait until it is gone."""
        log.warning(
            "child_killed",
            worker=f"{self._options.name}/{child.index + 1}",
            pid=child.pid,
            why=why,
        )
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        self._children.pop(child.pid, None)

    def _extend_leases(self) -> None:
        if time.monotonic() - self._extended_s < self._lease_s / 3:
            return
        now_ms = self._backend.store.clock.lease_ms()
        fresh = [
            entry.worker_id
            for entry, notes in self._consumers.children_of(self._worker_id)
            if notes and now_ms - entry.heartbeat_ms < self._lease_s * 1000
        ]
        self._consumers.extend_worker(fresh, self._lease_s)
        self._extended_s = time.monotonic()

    def _watch_lock(self) -> None:
        """Kill a child of ours that holds the writer lock for too long: it stops everybody."""
        holder = read_holder(self._lock_path)
        if holder is None or holder.pid not in self._children:
            return
        if time.monotonic() - holder.since_s > _LOCK_LIMIT_S:
            self._kill(self._children[holder.pid], "it sat on the writer lock")

    def _keep_house(self) -> None:
        self._backend.store.housekeeping.prune(
            done_s=self._settings.retention_done, dead_s=self._settings.retention_dead
        )

    # -- the end ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGCHLD)}
        waking = signal.set_wakeup_fd(self._wake_writing, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waking)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: object) -> None:
        self._signals += 1
        if self._signals == 1:
            self._grace_until_s = time.monotonic() + self._settings.worker_grace
            log.info(
                "worker_draining",
                worker=self._options.name,
                signal=signal.Signals(number).name,
                running=len(self._children),
                grace_s=self._settings.worker_grace,
            )
            for pid in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if self._beat is not None:
                self._beat.tell_to_stop()
        else:
            self._grace_until_s = time.monotonic()
            self._exit_code = EXIT_STOPPED

    def _kill_all(self, *, count: bool) -> None:
        """Kill every child; without `count` their jobs are released as if never started."""
        if self._beat is not None:
            self._beat.kill()
        slots = {entry.pid: entry for entry, _ in self._consumers.children_of(self._worker_id)}
        for child in list(self._children.values()):
            entry = slots.get(child.pid)
            if entry is not None and not count:
                # Stopped and its notes taken back before it dies: another process may sweep it
                # before we come to, and must not count an attempt either.
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(child.pid, signal.SIGSTOP)
                    os.waitpid(child.pid, os.WUNTRACED)
                self._consumers.presence.clear_notes(entry.slot)
            self._kill(child, "the worker stops")
            if entry is not None:
                with contextlib.suppress(Unavailable):
                    self._log_lost(self._consumers.end_worker(entry.worker_id, count=count))
        self._signals = max(self._signals, 1)

    def _stop(self) -> None:
        with contextlib.suppress(Unavailable):
            self._log_lost(self._consumers.sweep())
            self._backend.leave()
        with contextlib.suppress(Unavailable):
            self._backend.close()
        for descriptor in (
            self._wake_reading,
            self._wake_writing,
            self._lifeline_reading,
            self._lifeline_writing,
        ):
            os.close(descriptor)
        log.info("worker_stopped", worker=self._options.name, exit_code=self._exit_code)

    def _log_lost(self, lost: Sequence[Lost]) -> None:
        for one in lost:
            event = "job_permanently_failed" if one.dead else "job_retry_scheduled"
            say = log.error if one.dead else log.warning
            if not one.counted and not one.dead:
                event, say = "job_released", log.info
            say(
                event,
                job_id=one.job_id,
                task=one.task,
                queue=one.queue,
                worker=one.worker,
                error="its worker is gone" if one.counted else None,
            )


def _become_child(order: child_process.ChildOrder, descriptors: tuple[int, ...]) -> NoReturn:
    _become(lambda unblock: child_process.forked(order, unblock=unblock), order.name, descriptors)


def _become(
    run: Callable[[Callable[[], object]], int], name: str, descriptors: tuple[int, ...]
) -> NoReturn:
    code = EXIT_FAILED
    try:
        signal.set_wakeup_fd(-1)
        for descriptor in descriptors:
            os.close(descriptor)
        code = run(lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS))
    except BaseException as error:  # noqa: BLE001 - nothing of the supervisor may run in here
        log.error("child_crashed", worker=name, error=f"{type(error).__name__}: {error}")
    finally:
        try:
            _flush()
        finally:
            os._exit(code)


def _flush() -> None:
    """Write out what was printed, so that no fork prints it twice; a task may have closed it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _places(concurrency: int, max_jobs: int | None) -> list[Place]:
    """Divide the jobs a worker may run among its places, so that their sum is exact."""
    if max_jobs is None:
        return [Place(None) for _ in range(concurrency)]
    whole, rest = divmod(max_jobs, concurrency)
    shares = [whole + (index < rest) for index in range(concurrency)]
    return [Place(share) for share in shares if share]


def _is_over(note: Note, now_ms: int) -> bool:
    return bool(note.deadline_ms) and now_ms >= note.deadline_ms
