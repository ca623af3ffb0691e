"""A worker of one process and one thread: for any broker, for debugging, for a single-task box.

There is no supervisor, so nothing ends a job by force: neither time limits nor the grace time are
enforced here. Leases are extended, and the dead swept after, by a thread of this process.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sqlqueue.backend import open_backend
from sqlqueue.log import get_logger
from sqlqueue.stopping import stopped_by_signals
from sqlqueue.worker.consumer import Consumer
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
    on_ready: Callable[[Consumer], object] = lambda _: None,
) -> int:
    """Run jobs in the calling thread until stopped; return the exit code.

    `backend` is for brokers that live in this process (`memory://`); None opens the settings'.
    `on_ready` is called before the first job is claimed, with what can be told to stop.
    The first SIGTERM or SIGINT lets the running job finish, the second ends the process at once,
    and with it the attempt. Raises the transport's CannotOpen.
    """
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
    code = 0
    try:
        with stopped_by_signals(consumer.stop) if handle_signals else contextlib.nullcontext():
            register()
            own.keep_watch()
            heartbeat = Heartbeat(own.beat, interval_s(app.conf.visibility_timeout))
            log.info("worker_started", worker=name, pool="solo", queues=list(app.queues))
            try:
                on_ready(consumer)
                consumer.run()
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
