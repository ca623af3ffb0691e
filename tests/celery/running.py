"""Run the jobs of a Celery application one at a time, in the test's own process and order.

Celery's own tracer runs each; what a worker does around it is left out. So a test decides which
member of a chord ends when, and whether its message is acknowledged.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu.pools
from celery import Celery
from celery.app.trace import build_tracer

from sqlqueue_transport import stores

QUEUE = "celery"


def application(path: Any, *, backend: str | None = None, **settings: Any) -> Celery:
    """Make an application whose broker and results lie in the file at `path`."""
    app = Celery("tests", broker=f"sqlqueue:///{path}")
    app.conf.update(
        result_backend=backend or f"sqlqueue:///{path}",
        worker_hijack_root_logger=False,
        task_publish_retry=False,
        **settings,
    )

    @app.task(name="add", shared=False)
    def add(*numbers: Any) -> Any:
        return sum(numbers)

    @app.task(name="total", shared=False)
    def total(numbers: Any) -> Any:
        return sum(numbers)

    @app.task(name="echo", shared=False)
    def echo(*values: Any) -> Any:
        return list(values) if len(values) != 1 else values[0]

    @app.task(name="fail", shared=False)
    def fail(*_: Any) -> None:
        raise ValueError("no such file")

    @app.task(name="note_error", shared=False)
    def note_error(task_id: str) -> str:
        return f"noted {task_id}"

    app.finalize()
    return app


def take(app: Celery) -> Any:
    """Take the next message; None when there is none."""
    with app.connection_for_read() as connection:
        return connection.default_channel.basic_get(QUEUE, no_ack=True)


def run(app: Celery, message: Any) -> Any:
    """Run a message's job as a worker's child does; return what the tracer returns."""
    args, kwargs, embed = message.decode()
    headers = message.headers
    request = {
        **headers,
        **embed,
        "args": args,
        "kwargs": kwargs,
        "hostname": "tests@here",
        "delivery_info": message.delivery_info,
        "is_eager": False,
    }
    task = app.tasks[headers["task"]]
    tracer = build_tracer(headers["task"], task, app=app, hostname="tests@here")
    return tracer(headers["id"], args, kwargs, request)


def run_all(app: Celery, *, backwards: bool = False) -> list[str]:
    """Run messages until there are none; return the names of the tasks in their order.

    In a thread of its own, which has a backend of its own, as another process would have: Celery
    before 5.7 mixes up result objects of one job that share a backend. With `backwards`, what is
    ready at once is run in the reverse order.
    """
    ran: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_run_all, app, ran, backwards).result()
    return ran


def _run_all(app: Celery, ran: list[str], backwards: bool) -> None:
    app.set_current()
    try:
        while waiting := list(iter(lambda: take(app), None)) if backwards else [take(app)]:
            if waiting == [None]:
                return
            for message in reversed(waiting):
                ran.append(message.headers["task"])
                run(app, message)
                assert len(ran) < 10_000, ran[-10:]
    finally:
        app.backend.close()


def end(app: Celery) -> None:
    """Give back what the application holds open, but for the backends of its ended threads."""
    app.backend.close()
    app.close()
    kombu.pools.reset()  # Celery leaves the connections it publishes with


def end_all() -> None:
    """Give back whatever applications of this process hold open."""
    kombu.pools.reset()
    stores._close_all()
