"""A child process: imports the application, then runs jobs until it is told to stop.

It is forked by the supervisor with no connection open, leads a session of its own (so that ctrl-c
reaches only the supervisor, and a hard limit ends its subprocesses, too), and dies with its
supervisor: a worker nobody watches over would run jobs whose leases nobody extends.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.backend import open_backend
from sqlqueue.errors import SqlQueueError
from sqlqueue.forks import die_with, give_forks_default_signals
from sqlqueue.loading import load_app
from sqlqueue.log import get_logger
from sqlqueue.worker.consumer import Consumer
from sqlqueue.worker.heartbeat import Heartbeat, interval_s
from sqlqueue_transport.errors import FileReplaced, SchemaChanged, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FILE_GONE", "FINISHED", "START_FAILED", "ChildOrder", "die_with", "forked"]

log = get_logger(__name__)

# Exit codes by which the supervisor knows why a child ended by itself.
# Not 0: that is how a task's own `os._exit(0)` looks.
FINISHED: Final = 77  # told to stop, or the burst or the job limit is over
START_FAILED: Final = 78  # EX_CONFIG of sysexits.h
FILE_GONE: Final = 79


@dataclass(frozen=True, slots=True)
class ChildOrder:
    """Say what one child shall do. `lifeline` is a pipe's reading end that ends with the parent."""

    app_path: str
    name: str
    parent_pid: int
    parent_id: int
    queues: tuple[str, ...]
    burst: bool
    max_jobs: int | None
    lifeline: int


def forked(order: ChildOrder, *, unblock: Callable[[], object]) -> int:
    """Run a child in this just forked process and return its exit code.

    `unblock` lets signals in again; the supervisor blocked them around the fork, so that none is
    lost between the fork and our own handlers.
    """
    os.setsid()
    die_with(order.parent_pid, order.lifeline)
    told = _Told()
    told.listen()
    give_forks_default_signals()
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    unblock()
    try:
        app = load_app(order.app_path)
        backend = open_backend(app.conf)
    except (SqlQueueError, TransportError) as error:
        log.error("child_start_failed", worker=order.name, error=str(error))
        return START_FAILED

    def register() -> None:
        backend.register(
            name=order.name,
            kind="child",
            queues=order.queues,
            slots=1,
            parent_id=order.parent_id,
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
            after_job=told.listen,
        )
        told.consumer = consumer
        if told.is_stopped:
            consumer.stop()
        consumer.run()
        heartbeat.stop()
        backend.leave()
        backend.close()
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", worker=order.name, error=str(error))
        return FILE_GONE
    except TransportError as error:
        log.error("child_start_failed", worker=order.name, error=str(error))
        return START_FAILED
    return FINISHED


class _Told:
    """Remember a stop that came before there was anything to stop."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.consumer: Consumer | None = None

    def listen(self) -> None:
        """Take the signals; again after every job, because a task may have taken them away."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)

    def stop(self, *_: object) -> None:
        self.is_stopped = True
        if self.consumer is not None:
            self.consumer.stop()
