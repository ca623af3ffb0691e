"""A worker of one process and one thread: for any broker, for debugging, for a single-task box.

There is no supervisor, so nothing ends a job by force: time limits are raised in the task, which may
ignore them, and the grace time does not end. Leases are extended, and the dead swept
after, by a thread of this process.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sqlqueue.backend import open_backend
from sqlqueue.log import get_logger
from sqlqueue.notify import Notifier
from sqlqueue.stopping import stopped_by_signals
from sqlqueue.worker import interrupts
from sqlqueue.worker.consumer import Consumer, tell_of_paused
from sqlqueue.worker.heartbeat import Heartbeat, interval_s
from sqlqueue_transport.errors import FileReplaced, SchemaChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend

__all__ = ["run_solo"]

log = get_logger(__name__)

_EXIT_FAILED: Final = 1
_EXIT_SCHEMA: Final = 6


def run_solo(
    app: SqlQueue,
    *,
    name: str,
    burst: bool = False,
    max_jobs: int | None = None,
    backend: Backend | None = None,
    handle_signals: bool = True,
    notifier: Notifier | None = None,
    on_ready: Callable[[Consumer], object] = lambda _: None,
) -> int:
    """Run jobs in the calling thread until stopped; return the exit code.

    `backend` is for brokers that live in this process (`memory://`); None opens the settings'.
    `on_ready` is called before the first job is claimed, with what can be told to stop.
    When the presence file is lost, the running job finishes, and the code is 1. The first SIGTERM or
    SIGINT lets the running job finish, the second ends the process at once,
    and with it the attempt. `notifier` None makes one of the environment, in a process of its own
    (`handle_signals`). Raises ConfigError, and the transport's CannotOpen.
    """
    if notifier is None:
        notifier = Notifier() if handle_signals else Notifier({})
    _ = app.keys  # a mistake in them is one of the start, and not of the first job
    own = backend if backend is not None else open_backend(app.conf, keep_leases=True)

    def register() -> None:
        own.register(name=name, kind="worker", queues=app.queues, slots=1)

    consumer = Consumer(
        app,
        own,
        queues=app.queues,
        name=name,
        register=register,
        burst=burst,
        max_jobs=max_jobs,
    )

    def stop() -> None:
        # Nothing bounds what is left of the running job; the service manager's own limit does.
        notifier.stopping(app.conf.worker_grace)
        consumer.stop()

    presence = _Presence(own, name, lose=stop)

    def beat() -> None:
        # From the thread: a job may take longer than the watchdog waits, and is no reason to bite.
        own.beat()
        notifier.alive()
        presence.look()

    signals = stopped_by_signals(stop, reopened=notifier.reloaded)
    code = 0
    try:
        with signals if handle_signals else contextlib.nullcontext():
            if handle_signals:
                interrupts.listen()
            register()
            own.keep_watch()
            every_s = min(interval_s(app.conf.visibility_timeout), notifier.watchdog_every_s)
            heartbeat = Heartbeat(beat, every_s)
            log.info("worker_started", worker=name, pool="solo", queues=list(app.queues))
            notifier.ready()
            notifier.status("working, one job at a time")
            try:
                on_ready(consumer)
                consumer.run()
                code = presence.exit_code
                if burst:
                    with contextlib.suppress(*own.connection_errors):
                        tell_of_paused(own, app.queues, name)
            finally:
                heartbeat.stop()
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", worker=name, error=str(error))
        code = _EXIT_SCHEMA if isinstance(error, SchemaChanged) else _EXIT_FAILED
    finally:
        # Where the store is gone there is nothing to give back.
        with contextlib.suppress(*own.connection_errors):
            own.leave()
        if backend is None:
            with contextlib.suppress(*own.connection_errors):
                own.close()
    log.info("worker_stopped", worker=name, exit_code=code)
    return code


class _Presence:
    """Notice, once, that who comes later will not see this process, as the supervisor does."""

    def __init__(self, backend: Backend, name: str, *, lose: Callable[[], object]) -> None:
        self.exit_code = 0
        self._backend = backend
        self._name = name
        self._lose = lose

    def look(self) -> None:
        """Stop when the presence file is lost. From the heartbeat's thread."""
        try:
            path = self._backend.lost_presence
        except FileReplaced:  # the next transaction says so, and ends the worker
            return
        if path is not None and not self.exit_code:
            self.exit_code = _EXIT_FAILED
            log.error("presence_lost", worker=self._name, path=str(path))
            self._lose()
