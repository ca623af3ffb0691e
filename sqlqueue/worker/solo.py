"""A worker of one process and one thread: for any broker, for debugging, for a single-task box.

There is no supervisor, so nothing ends a job by force: time limits are not enforced here. Leases
are extended by a thread of this process.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import FileReplaced, SchemaChanged

from sqlqueue.backend import open_backend
from sqlqueue.log import get_logger
from sqlqueue.worker.consumer import Consumer
from sqlqueue.worker.heartbeat import Heartbeat, interval_s

if TYPE_CHECKING:
    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend

__all__ = ["run_solo"]

log = get_logger(__name__)


def run_solo(
    app: SqlQueue,
    *,
    name: str,
    burst: bool = False,
    max_jobs: int | None = None,
    backend: Backend | None = None,
    handle_signals: bool = True,
) -> int:
    """Run jobs in the calling thread until stopped; return the exit code.

    `backend` is for brokers that live in this process (`memory://`); None opens the settings'.
    The first SIGTERM or SIGINT lets the running job finish, the second interrupts it.
    """
    own = backend if backend is not None else open_backend(app.conf, keep_leases=True)

    def register() -> None:
        own.register(name=name, kind="worker", queues=app.queues, slots=1)

    register()
    consumer = Consumer(
        app,
        own,
        queues=app.queues,
        name=name,
        register=register,
        burst=burst,
        max_jobs=max_jobs,
    )
    if handle_signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _stop_once(consumer))
    heartbeat = Heartbeat(own.beat, interval_s(app.conf.visibility_timeout))
    log.info("worker_started", worker=name, pool="solo", queues=list(app.queues))
    code = 0
    try:
        consumer.run()
    except (FileReplaced, SchemaChanged) as error:
        log.error("store_gone", worker=name, error=str(error))
        code = 1
    finally:
        heartbeat.stop()
        own.leave()
        if backend is None:
            own.close()
    log.info("worker_stopped", worker=name, exit_code=code)
    return code


def _stop_once(consumer: Consumer) -> None:
    consumer.stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
