"""The supervisor: forks children, watches over them, and runs no user code.

It has one thread and imports only our own modules, so a fork is safe, and holds no connection at
that moment: the first children are forked before the file is opened, so that they import the
application meanwhile, and for later ones the store's fork hook closes it. It does not hand out jobs: children claim for
themselves. What it does, several times a second at most, is to

* replace children that died, and give back what they held (`sweep`),
* extend the leases of children whose heartbeat is fresh,
* kill a child that went silent for a whole visibility timeout, one whose job is over its time
  limit or was to be ended by force, and one that sits on the writer lock: always first the kill,
  then the release,
* on SIGTERM or SIGINT let the children finish, and after the grace time release uncounted,
* on SIGHUP open the log anew, on SIGQUIT print everybody's stacks, and tell the service manager how
  it goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import gc
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from sqlqueue.backend import SqliteBackend, open_backend
from sqlqueue.errors import ConfigError
from sqlqueue.forks import flush_output, kill_session
from sqlqueue.housekeeping import log_lost
from sqlqueue.log import get_logger
from sqlqueue.log import reopen as reopen_log
from sqlqueue.notify import Notifier
from sqlqueue.stopping import hangup_ends
from sqlqueue.worker import child as child_process
from sqlqueue.worker.board import Board
from sqlqueue.worker.consumer import tell_of_paused
from sqlqueue.worker.enforcing import LOCK_LIMIT_S, Enforcer
from sqlqueue.worker.heartbeat import interval_s
from sqlqueue.worker.places import Child, places_for
from sqlqueue.worker.stacks import Asked, Stacks
from sqlqueue_transport.errors import Busy, FileReplaced, SchemaChanged, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlqueue.worker.beat_child import BeatChild
    from sqlqueue.worker.facts import AppFacts
    from sqlqueue_transport.consumers import Consumers

__all__ = ["Supervisor", "WorkerOptions"]

log = get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_SCHEMA: Final = 6
EXIT_STOPPED: Final = 130

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_HEEDED: Final = (*_SIGNALS, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Be what the command line says beyond the settings. `max_jobs` None means no limit.

    `pool` is one of `start.POOLS`.
    """

    app_path: str
    name: str
    pool: str = "processes"
    burst: bool = False
    max_jobs: int | None = None
    beat: bool = False


class Supervisor:
    """Run one worker; `run` returns its exit code. One per process, in its only thread."""

    def __init__(
        self, options: WorkerOptions, facts: AppFacts, *, notifier: Notifier | None = None
    ) -> None:
        """Prepare; nothing is opened or forked yet. `notifier` None makes one of the environment."""
        self._notifier = notifier or Notifier()
        self._options = options
        self._settings = facts.settings
        self._facts = facts
        self._lease_s = facts.settings.visibility_timeout
        self._children: dict[int, Child] = {}
        self._places = places_for(
            facts.settings.worker_concurrency,
            options.max_jobs,
            threads=options.pool == "threads",
        )
        self._board = Board(len(self._places))
        self._stacks = Stacks()
        self._beat = self._make_beat() if options.beat else None
        self._signals = 0
        self._is_unseen = False
        self._is_ready = self._hangup_ends = self._hung_up = self._stacks_asked = False
        self._grace_until_s: float | None = None
        self._swept_s = self._extended_s = self._house_s = 0.0
        self._exit_code = EXIT_OK
        self._worker_id = 0
        self._wake_reading, self._wake_writing = os.pipe()
        self._lifeline_reading, self._lifeline_writing = os.pipe()
        for descriptor in (self._wake_reading, self._wake_writing):
            os.set_blocking(descriptor, False)
        self._wake_poll = select.poll()  # select() knows no descriptor above 1023
        self._wake_poll.register(self._wake_reading, select.POLLIN)
        # What `open` makes.
        self._is_open = False
        self._backend: SqliteBackend
        self._consumers: Consumers
        self._enforcer: Enforcer

    def run(self) -> int:
        """Supervise until told to stop or nothing is left; return the exit code.

        If the supervisor dies midway its children die with it, and whoever sweeps next gives back
        what they held. Raises ConfigError, and the transport's CannotOpen.
        """
        with self._handling_signals():
            self._fork_first()
            try:
                self.open()
            except BaseException:
                self._abandon()
                raise
            try:
                self._start()
                while True:
                    self._heed()
                    self._turn()
                    if not self._children and not self._wanted() and not self._beat_runs():
                        break
                    self._sleep()
            except (FileReplaced, SchemaChanged) as error:
                log.error("store_gone", worker=self._options.name, error=str(error))
                self._exit_code = EXIT_SCHEMA if isinstance(error, SchemaChanged) else EXIT_FAILED
                # No child can settle any more. That is no failure of what they run.
                self._kill_all(count=False)
            self._stop()
        return self._exit_code

    def open(self) -> None:
        """Open the file, for `run`. Raises ConfigError, and the transport's CannotOpen."""
        # A child must not be waited for longer than we look after the others.
        transport_options = {
            **self._settings.transport_options,
            "busy_timeout": LOCK_LIMIT_S / 2,
        }
        backend = open_backend(
            dataclasses.replace(self._settings, transport_options=transport_options)
        )
        pool = self._options.pool
        if not isinstance(backend, SqliteBackend):
            backend.close()
            raise ConfigError(
                f"the pool {pool!r} needs a sqlqueue:// broker, not {backend.name}; run"
                " the worker with '-P solo', and several of them for more concurrency"
            )
        self._backend = backend
        self._consumers = backend.store.consumers
        self._enforcer = Enforcer(
            backend.store,
            self._children,
            lease_s=self._lease_s,
            # A job that shares its process is first asked to end at its limit, by the process itself.
            lenience_s=1.0 if pool == "threads" else 0.0,
            before_end=self._count_jobs,
            ended=self._note_end,
        )
        self._is_open = True

    # -- the loop ---------------------------------------------------------------------------------

    def _fork_first(self) -> None:
        """Fork the children that import the application while we open the file.

        One after the other, and with nothing in between: a page of memory that we write to is no
        longer shared with those forked before. Nor would it be when the garbage collector walks over
        it, so what there is by now is kept out of its way.
        """
        gc.freeze()
        self._fill_places()

    def _abandon(self) -> None:
        """End children that wait for a file which cannot be opened, and hold nothing."""
        for child in self._children.values():
            kill_session(child.pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
        self._children.clear()

    def _start(self) -> None:
        self._worker_id = self._backend.register(
            name=self._options.name,
            kind="worker",
            queues=self._facts.queues,
            slots=self._settings.worker_concurrency,
        )
        log_lost(self._consumers.sweep_all())
        self._board.let_go(self._worker_id)
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
        for child in self._children.values():
            log.info("child_started", worker=child.name, pid=child.pid)
        # Not at once, when the children need the processors, and the writer lock, for their start.
        self._swept_s = time.monotonic()
        self._house_s = self._swept_s + self._settings.sweep_interval

    def _turn(self) -> None:
        """Do everything that is due; a busy store is waited out, children run on meanwhile.

        The service manager's watchdog is told when the turn is over, also of one that the store
        refused: a start anew would not mend that, and would end the jobs that run. What it is for
        is a turn that never ends.
        """
        try:
            self._consumers.beat()
            self._enforcer.do_what_is_owed()
            self._reap()
            self._enforcer.look_after(self._worker_id)
            self._extend_leases()
            if time.monotonic() - self._swept_s >= self._settings.sweep_interval:
                self._swept_s = time.monotonic()
                log_lost(self._consumers.sweep())
                self._enforcer.end_terminated(self._worker_id)
                self._backend.store.database.look_at_path()
                self._look_at_presence()
                self._enforcer.watch_lock()
            self._keep_house()
            self._fill_places()
            if self._beat is not None:
                self._beat.keep(unless=lambda: self._draining)
        except Busy as busy:
            log.warning("store_busy", error=str(busy))
            self._enforcer.watch_lock()  # whoever holds it at this instant may have it only now
        except (FileReplaced, SchemaChanged):
            raise
        except Unavailable as error:
            log.warning("store_busy", error=str(error))
        if self._grace_until_s is not None and time.monotonic() >= self._grace_until_s:
            log.warning("grace_over", worker=self._options.name, running=self._running())
            self._kill_all(count=False)
        self._tell_how_it_goes()

    def _look_at_presence(self) -> None:
        """Drain, to be started anew, when the presence file was removed or replaced.

        We see the children that are registered in the old one, and nobody else does. One that came
        later would register in a new one, and we would neither extend its leases nor end its jobs at
        their limits.
        """
        if self._is_unseen or not self._consumers.has_lost_presence:
            return
        self._is_unseen = True
        self._exit_code = EXIT_FAILED
        log.error(
            "presence_lost",
            worker=self._options.name,
            path=str(self._backend.store.database.presence_path),
        )
        if not self._signals:
            self._drain(None)

    def _tell_how_it_goes(self) -> None:
        starting = self._starting()
        if not self._is_ready and not starting and not self._draining and not self._unfilled():
            self._is_ready = True
            log.info("worker_ready", worker=self._options.name)
            self._notifier.ready()
        for child in starting:
            waited_s = time.monotonic() - child.started_s
            if waited_s >= child.warn_after_s and not self._draining:
                child.warn_after_s *= 2
                log.warning(
                    "child_start_delayed",
                    worker=child.name,
                    pid=child.pid,
                    waited_s=round(waited_s, 1),
                )
        up = len(self._children) - len(starting)
        self._notifier.status(
            f"{'stopping' if self._draining else 'working'}: jobs running: {self._running()},"
            f" children up: {up} of {len(self._places)}"
        )
        self._notifier.alive()

    def _running(self) -> int:
        """Return how many jobs run now."""
        if not self._is_open:
            return 0
        return sum(len(notes) for _, notes in self._consumers.children_of(self._worker_id))

    def _starting(self) -> list[Child]:
        return [one for one in self._children.values() if not self._board.is_up(one.index)]

    def _unfilled(self) -> list[int]:
        """Return the places that have no child now, and are not over."""
        taken = {child.index for child in self._children.values()}
        return [i for i, place in enumerate(self._places) if i not in taken and not place.is_over]

    def _sleep(self) -> None:
        """Sleep until a signal, a child's end, a time limit, or the next turn."""
        timeout_s = min(
            self._settings.sweep_interval,
            interval_s(self._lease_s),
            self._notifier.watchdog_every_s,
        )
        now_s = time.monotonic()
        for child in self._starting():
            # It says so on the board, which wakes nobody: looked at often in the beginning only.
            timeout_s = min(timeout_s, max((now_s - child.started_s) / 10, 0.02))
        for index in self._wanted():
            wait_s = self._places[index].not_before_s - now_s
            timeout_s = min(timeout_s, wait_s) if wait_s > 0 else timeout_s
        if self._grace_until_s is not None:
            timeout_s = min(timeout_s, self._grace_until_s - time.monotonic())
        if self._house_s > time.monotonic():  # else the store was busy: it may wait for the turn
            timeout_s = min(timeout_s, self._house_s - time.monotonic())
        timeout_s = min(timeout_s, self._enforcer.due_in_s(self._worker_id))
        self._wake_poll.poll(max(timeout_s, 0.0) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reading, 4096)

    # -- children ---------------------------------------------------------------------------------

    @property
    def _draining(self) -> bool:
        return self._signals > 0 or self._is_unseen

    def _wanted(self) -> list[int]:
        """Return the places that need a child, now or later."""
        return [] if self._draining else self._unfilled()

    def _fill_places(self) -> None:
        for index in self._wanted():
            if time.monotonic() >= self._places[index].not_before_s:
                self._fork_child(index)

    def _fork_child(self, index: int) -> None:
        order = child_process.ChildOrder(
            app_path=self._options.app_path,
            name=f"{self._options.name}/{index + 1}",
            parent_pid=os.getpid(),
            queues=self._facts.queues,
            burst=self._options.burst,
            max_jobs=self._places[index].left,
            threads=self._places[index].threads,
            lifeline=self._lifeline_reading,
            stacks=self._stacks.descriptor_of(index),
            board=self._board,
            place=index,
        )
        self._board.clear(index)
        flush_output()
        # Blocked, so that a signal between the fork and the child's own handlers is not lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            # Asked here: whoever is told to stop before this does not know the child yet.
            if self._draining:
                return
            pid = os.fork()
            if not pid:
                self._stacks.close_others(order.stacks)
                _become_child(
                    order, (self._wake_reading, self._wake_writing, self._lifeline_writing)
                )
            # Known before signals come in again: the handler tells every child it knows.
            self._children[pid] = Child(
                index, order.name, pid, time.monotonic(), self._places[index].left
            )
        except OSError as error:  # no memory, no process to be had: the others go on
            self._note_failed_start(index, order.name, str(error), pid=None)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
        if self._is_open:  # or it is told once the worker is
            log.info("child_started", worker=order.name, pid=pid)

    def _beat_runs(self) -> bool:
        return self._beat is not None and self._beat.pid is not None

    def _make_beat(self) -> BeatChild:
        # Late: most workers have none.
        from sqlqueue.worker.beat_child import BeatChild, forked_beat  # noqa: PLC0415

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
            log_lost(self._consumers.sweep())

    def _note_end(self, child: Child, code: int) -> None:
        self._count_jobs(child)
        place = self._places[child.index]
        place.is_over = code == child_process.FINISHED or place.left == 0
        was_up = self._board.is_up(child.index)
        ended_well = code in {
            child_process.FINISHED,
            child_process.RECYCLED,
            child_process.TOLD,  # if by others than us, it is replaced
        }
        if ended_well or (self._draining and not was_up):
            place.note_good_end()
            log.info("child_stopped", worker=child.name, pid=child.pid)
            return
        if code == child_process.FILE_GONE:
            # Our own next write would find out, too; raise what the child met right away.
            database = self._backend.store.database
            database.look_at_path()
            database.write(lambda _: None)
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not was_up:
            self._note_failed_start(child.index, child.name, why, pid=child.pid)
            return
        wait_s = place.note_death(child)
        log.warning("child_lost", worker=child.name, pid=child.pid, why=why, replaced_in_s=wait_s)

    def _note_failed_start(self, index: int, name: str, why: str, *, pid: int | None) -> None:
        place = self._places[index]
        wait_s = place.note_failed_start()
        log.error(
            "child_start_failed",
            worker=name,
            pid=pid,
            why=why,
            times=place.failed_starts,
            retry_in_s=wait_s,
        )

    def _count_jobs(self, child: Child) -> None:
        """Take what a child has run from what its place may run."""
        if child.left is not None:
            left = max(child.left - self._board.jobs_ended(child.index), 0)
            self._places[child.index].left = left

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

    def _keep_house(self) -> None:
        """Do a portion of the housekeeping if one is due; it costs nothing while none is."""
        if time.monotonic() >= self._house_s:
            self._house_s = time.monotonic() + self._settings.sweep_interval  # if it fails
            self._house_s = time.monotonic() + self._backend.keep_house()

    # -- what a signal asks for ---------------------------------------------------------------------

    def _heed(self) -> None:
        """Do what SIGHUP and SIGQUIT have asked for since the last turn."""
        if self._hung_up:
            self._hung_up = False
            reopen_log()
            for pid in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
            if self._beat is not None:
                self._beat.tell(signal.SIGHUP)
            log.info("log_reopened", worker=self._options.name)
            self._notifier.reloaded()
        if self._stacks_asked:
            self._stacks_asked = False
            self._stacks.ask([self._asked(child) for child in self._children.values()])
            if self._beat is not None:
                self._beat.tell(signal.SIGQUIT)  # it writes to standard error, as we do
            log.info("stacks_printed", worker=self._options.name, children=len(self._children))

    def _asked(self, child: Child) -> Asked:
        jobs = [
            self._job_id_of(note.message_id)
            for entry, notes in self._consumers.children_of(self._worker_id)
            if entry.pid == child.pid
            for note in notes.values()
        ]
        does = f"runs {', '.join(jobs)}" if jobs else "runs no job"
        return Asked(child.index, child.pid, f"{child.name}, process {child.pid}, {does}")

    def _job_id_of(self, message_id: int) -> str:
        with contextlib.suppress(Unavailable):
            detail = self._backend.job(message_id)
            if detail is not None:
                return f"job {detail.row.job_id}"
        return f"message {message_id}"

    # -- the end ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in (*_HEEDED, signal.SIGCHLD)}
        waking = signal.set_wakeup_fd(self._wake_writing, warn_on_full_buffer=False)
        self._hangup_ends = hangup_ends()
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        signal.signal(signal.SIGQUIT, self._on_quit)
        # Our own stack is written at once, wherever we are; the children are asked in the next turn.
        faulthandler.register(signal.SIGQUIT, file=2, all_threads=True, chain=True)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waking)
            faulthandler.unregister(signal.SIGQUIT)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_hangup(self, number: int, _: object) -> None:
        if not self._hangup_ends:
            self._hung_up = True
        elif not self._draining:  # shell and kernel both tell that the terminal is gone
            self._on_signal(number, None)

    def _on_quit(self, *_: object) -> None:
        self._stacks_asked = True

    def _on_signal(self, number: int, _: object) -> None:
        self._signals += 1
        if self._signals > 1:
            self._grace_until_s = time.monotonic()
            self._exit_code = EXIT_STOPPED
        elif not self._is_unseen:  # or it drains already
            self._drain(signal.Signals(number).name)

    def _drain(self, signal_name: str | None) -> None:
        """Let the children finish what they run, and take no other; None: no signal asked for it."""
        self._grace_until_s = time.monotonic() + self._settings.worker_grace
        self._board.tell_to_stop()
        log.info(
            "worker_draining",
            worker=self._options.name,
            signal=signal_name,
            running=self._running(),
            grace_s=self._settings.worker_grace,
        )
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if self._beat is not None:
            self._beat.tell(signal.SIGTERM)
        self._notifier.stopping(self._settings.worker_grace)

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
            self._enforcer.kill(child, "the worker stops")
            if entry is not None:
                with contextlib.suppress(Unavailable):
                    log_lost(self._consumers.end_worker(entry.worker_id, count=count))
        self._signals = max(self._signals, 1)

    def _stop(self) -> None:
        with contextlib.suppress(Unavailable):
            log_lost(self._consumers.sweep())
            if self._options.burst and not self._draining:
                tell_of_paused(self._backend, self._facts.queues, self._options.name)
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
        self._stacks.close()
        log.info("worker_stopped", worker=self._options.name, exit_code=self._exit_code)


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
        code = run(lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED))
    except BaseException as error:  # noqa: BLE001 - nothing of the supervisor may run in here
        log.error("child_crashed", worker=name, error=f"{type(error).__name__}: {error}")
    finally:
        try:
            flush_output()
        finally:
            os._exit(code)
