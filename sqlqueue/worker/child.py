"""A child process: imports the application, then runs jobs until it is told to stop.

It is forked by the supervisor with no connection open, and opens the file itself once the supervisor
has: the application is imported meanwhile. It leads a session of its own (so that ctrl-c
reaches only the supervisor, and a hard limit ends its subprocesses, too), and dies with its
supervisor: a worker nobody watches over would run jobs whose leases nobody extends.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.backend import open_backend
from sqlqueue.errors import SqlQueueError
from sqlqueue.forks import die_with, give_forks_default_signals
from sqlqueue.loading import load_app
from sqlqueue.log import get_logger
from sqlqueue.log import reopen as log_reopen
from sqlqueue.stopping import answer_to_sigquit, handle
from sqlqueue.worker import interrupts
from sqlqueue.worker.belongings import Belongings
from sqlqueue.worker.consumer import Consumer
from sqlqueue.worker.heartbeat import Heartbeat, interval_s
from sqlqueue.worker.lifetime import Lifetime
from sqlqueue.worker.runners import Threads
from sqlqueue_transport.errors import FileReplaced, SchemaChanged, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend
    from sqlqueue.worker.board import Board

__all__ = [
    "FILE_GONE",
    "FINISHED",
    "RECYCLED",
    "START_FAILED",
    "TOLD",
    "ChildOrder",
    "forked",
]

log = get_logger(__name__)

# Exit codes by which the supervisor knows why a child ended by itself.
# Not 0: that is how a task's own `os._exit(0)` looks.
FINISHED: Final = 77  # the burst or the job limit is over
START_FAILED: Final = 78  # EX_CONFIG of sysexits.h
FILE_GONE: Final = 79
RECYCLED: Final = 80  # it has lived long enough: another one, please
TOLD: Final = 81  # to stop, by a signal
CRIPPLED: Final = 82  # by a task, beyond repair

_LOOK_EVERY_S: Final = 0.001  # whether the file may be opened; ten times as seldom after a while


@dataclass(frozen=True, slots=True)
class ChildOrder:
    """Say what one child shall do.

    `threads` is how many jobs it runs at once, in threads and on an event loop; 0 means one at a time,
    in its main thread. `lifeline` is a pipe's reading end that ends with the parent; `stacks` is the
    descriptor it answers SIGQUIT on; `place` is its cell on the board.
    """

    app_path: str
    name: str
    parent_pid: int
    queues: tuple[str, ...]
    burst: bool
    max_jobs: int | None
    threads: int
    lifeline: int
    stacks: int
    board: Board
    place: int


def forked(order: ChildOrder, *, unblock: Callable[[], object]) -> int:
    """Run a child in this just forked process and return its exit code.

    `unblock` lets signals in again; the supervisor blocked them around the fork, so that none is
    lost between the fork and our own handlers.
    """
    os.setsid()
    die_with(order.parent_pid, order.lifeline)
    told = _Told(order.stacks, order.board, Belongings(stops_timers=not order.threads))
    told.listen()
    give_forks_default_signals()
    # Who is told to stop while it imports has nothing to finish, and the import may hang where no
    # handler of ours would run.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    unblock()
    try:
        app = load_app(order.app_path)
        told.listen()
        _ = app.keys  # a mistake in them is one of the start, and not of the first job
        parent_id = _parent_id(order.board, unless=lambda: told.is_stopped)
        if not parent_id:
            return TOLD
        backend = open_backend(app.conf)
    except SqlQueueError as error:
        log.error("app_import_failed", worker=order.name, error=str(error))
        return START_FAILED
    except TransportError as error:
        log.error("child_crashed", worker=order.name, error=str(error))
        return START_FAILED

    def register() -> None:
        backend.register(
            name=order.name,
            kind="child",
            queues=order.queues,
            slots=max(order.threads, 1),
            parent_id=parent_id,
        )

    try:
        register()
        heartbeat = Heartbeat(backend.beat, interval_s(app.conf.visibility_timeout))
        consumer = Consumer(
            app,
            backend,
            queues=order.queues,
            name=order.name,
            register=register,
            burst=order.burst,
            max_jobs=order.max_jobs,
            after_job=told.after_job,
            runner=_threads(order.threads, app, backend) if order.threads else None,
            # One job alone in its process is killed at its limit; among others it is asked first.
            raises_hard_limits=order.threads > 0,
            lifetime=Lifetime(
                max_jobs=app.conf.worker_max_jobs_per_child,
                max_memory_bytes=app.conf.worker_max_memory_per_child,
            ),
            count_ended=lambda: order.board.count_ended(order.place),
        )
        told.consumer = consumer
        if told.is_stopped:
            consumer.stop()
        order.board.note_up(order.place)
        # What there is by now stays: the garbage collector need not walk over the application again and
        # again, nor write to pages that are shared.
        gc.freeze()
        consumer.run()
        heartbeat.stop()
        backend.leave()
        backend.close()
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", worker=order.name, error=str(error))
        # What has run cannot be settled by us. That is no failure of the job: where it was its last
        # attempt, an update of the software would make a dead letter of it.
        backend.forget_starts()
        return FILE_GONE
    except TransportError as error:
        log.error("child_crashed", worker=order.name, error=str(error))
        return START_FAILED
    if told.is_stopped:
        return TOLD
    return RECYCLED if consumer.is_recycled else FINISHED


def _parent_id(board: Board, *, unless: Callable[[], bool]) -> int:
    """Wait until the supervisor has opened the file; return its worker id, 0 when told to stop.

    Looked for, and not waited for on a pipe: an import takes longer than opening a file, so nearly
    always it is there already. Whoever waits dies with the supervisor, as ever.
    """
    looks = 0
    while not (parent_id := board.parent_id()) and not unless():
        time.sleep(_LOOK_EVERY_S if looks < 50 else 10 * _LOOK_EVERY_S)
        looks += 1
    return parent_id


def _threads(places: int, app: SqlQueue, backend: Backend) -> Threads:
    return Threads(places, on_end=backend.interrupt, on_thread_end=app.close)


class _Told:
    """Remember a stop that came before there was anything to stop."""

    def __init__(self, stacks: int, board: Board, belongings: Belongings) -> None:
        self.is_stopped = False
        self.consumer: Consumer | None = None
        self._stacks = stacks
        self._board = board
        self._belongings = belongings

    def listen(self) -> None:
        """Take the signals; again after every job, because a task may have taken them away."""
        for number in (signal.SIGTERM, signal.SIGINT):
            handle(number, self.stop)
        interrupts.listen()
        handle(signal.SIGHUP, _reopen_log)
        answer_to_sigquit(self._stacks)

    def after_job(self) -> None:
        """Take back what a task may have taken, and see whether the signal to stop went to it."""
        self.listen()
        if not self._belongings.take_back():
            # The job could never be settled here. Whoever finds it settles it: as lost.
            log.error("child_crashed", error="a task has lowered the process's limits for good")
            os._exit(CRIPPLED)
        if self._board.is_told_to_stop():
            self.stop()

    def stop(self, *_: object) -> None:
        self.is_stopped = True
        if self.consumer is not None:
            self.consumer.stop()


def _reopen_log(*_: object) -> None:
    log_reopen()
