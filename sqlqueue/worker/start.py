"""Start a worker with the pool that was asked for: the one door for command line and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue.errors import ConfigError
from sqlqueue.loading import load_app
from sqlqueue.text import did_you_mean, quoted
from sqlqueue.worker.facts import ask_app
from sqlqueue.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from sqlqueue.notify import Notifier
    from sqlqueue.worker.facts import AppFacts
    from sqlqueue.worker.supervisor import WorkerOptions

__all__ = ["POOLS", "run_worker"]

POOLS = ("processes", "threads", "solo")


def run_worker(
    options: WorkerOptions, facts: AppFacts | None = None, *, notifier: Notifier | None = None
) -> int:
    """Run a worker until it is stopped; return its exit code. In the main thread.

    `facts` are those of its application, for who has asked already; `notifier` None makes one of the
    environment. Everything else comes from the settings of the application: concurrency, queues,
    limits. Raises AppImportError and ConfigError before anything is claimed, and the transport's
    CannotOpen.
    """
    if options.pool in {"processes", "threads"}:
        return Supervisor(options, facts or ask_app(options.app_path), notifier=notifier).run()
    if options.pool == "solo":
        # Imported here and not above: a supervisor needs none of it.
        from sqlqueue.worker.solo import run_solo  # noqa: PLC0415

        return run_solo(
            load_app(options.app_path),
            name=options.name,
            burst=options.burst,
            max_jobs=options.max_jobs,
            notifier=notifier,
        )
    raise ConfigError(
        f"there is no pool {quoted(options.pool)}.{did_you_mean(options.pool, POOLS)}"
        f" Choose: {', '.join(POOLS)}"
    )
