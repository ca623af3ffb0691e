"""Celery as it is, but for results, which nobody asks for here."""

from __future__ import annotations

import os

from celery import Celery

from tests.benchmarks.frameworks.apps import jobs

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

ENQUEUE = {
    name: app.task(name=name)(getattr(jobs, name)).delay for name in ("nothing", "nap", "mark")
}


def work(arguments: list[str]) -> None:
    """Become a worker in the process that has published."""
    app.worker_main(arguments)
