"""Start a worker with the pool that was asked for: the one door for command line and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue.errors import ConfigError
from sqlqueue.loading import load_app
from sqlqueue.text import did_you_mean, quoted
from sqlqueue.worker.supervisor import Supervisor, ask_app

if TYPE_CHECKING:
    from sqlqueue.notify import Notifier
    from sqlqueue.worker.supervisor import WorkerOptions

__all__ = ["POOLS", "run_worker"]

POOLS = ("processes", "solo")


def run_worker(
    options: WorkerOptions, *, pool: str = "processes", notifier: Notifier | None = None
) -> int:
    """Run a worker until it is stopped; return its exit code. In the main thread.

    `notifier` None makes one of the environment.

    Everything else comes from the settings of the application: concurrency, queues, limits. Raises
    AppImportError and ConfigError before anything is claimed, and the transport's CannotOpen.
    """
    if pool == "processes":
        return Supervisor(options, ask_app(options.app_path), notifier=notifier).run()
    if pool == "solo":
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
        f"there is no pool {quoted(pool)}.{did_you_mean(pool, POOLS)} Choose: {', '.join(POOLS)}"
    )
