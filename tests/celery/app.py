"""An ordinary Celery application: its tasks leave a trace of every start and end.

Whoever starts a process of it decides the settings, as JSON in CELERY_SETTINGS, and the directory
of the trace, in CELERY_TRACES. Nothing of this project is imported in here: that the URL scheme is
known, and the result backend, is what installing the package is for.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject, SoftTimeLimitExceeded
from kombu import Exchange, Queue
from kombu.common import Broadcast

app = Celery("traces")
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="celery",
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
settings = json.loads(os.environ.get("CELERY_SETTINGS", "{}"))
if settings.pop("with_exchanges", False):
    app.conf.task_queues = [
        Queue("celery"),
        Broadcast("everyone"),
        Queue("reports", Exchange("papers", "topic"), routing_key="report.#"),
        Queue("daily", Exchange("papers", "topic"), routing_key="*.daily"),
    ]
app.conf.update(settings)


# Not shared: a test process makes this application anew for each test, and Celery gives the shared
# tasks of one to all others of the process.
task = functools.partial(app.task, bind=True, shared=False)


class TryAgain(Exception):
    """Say that this attempt failed and the next one may not."""


def note(task, event, **more):
    """Append a line to the trace: one write, so that lines of many processes never mix."""
    line = {
        "task": task.name,
        "id": task.request.id,
        "event": event,
        "worker": task.request.hostname,
        "pid": os.getpid(),
        "at": time.monotonic(),
        **more,
    }
    path = Path(os.environ["CELERY_TRACES"]) / "trace.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(descriptor)


@task(name="add")
def add(self, x, y):
    note(self, "start")
    return x + y


@task(name="total")
def total(self, numbers):
    """Be the body of a chord."""
    note(self, "start", numbers=numbers)
    return sum(numbers)


@task(name="stamp")
def stamp(self, label=None):
    note(self, "start", label=label)


@task(name="stamp_late", acks_late=True)
def stamp_late(self, label=None):
    note(self, "start", label=label)


@task(name="work")
def work(self, seconds, label=None):
    note(self, "start", label=label)
    time.sleep(seconds)
    note(self, "end", label=label)


@task(name="work_late", acks_late=True)
def work_late(self, seconds, label=None):
    note(self, "start", label=label)
    time.sleep(seconds)
    note(self, "end", label=label)


@task(name="hold_late", acks_late=True)
def hold_late(self, name):
    """Run until somebody makes a file of that name."""
    note(self, "start")
    path, give_up_s = Path(os.environ["CELERY_TRACES"]) / name, time.monotonic() + 120
    while not path.exists() and time.monotonic() < give_up_s:
        time.sleep(0.01)
    note(self, "end")


@task(
    name="flaky",
    autoretry_for=(TryAgain,),
    max_retries=3,
    retry_backoff=1,
    retry_jitter=False,
)
def flaky(self, failures):
    """Fail that often, then return how many tries it took."""
    note(self, "start", retries=self.request.retries)
    if self.request.retries < failures:
        raise TryAgain
    return self.request.retries + 1


@task(name="stubborn", max_retries=2, acks_late=True)
def stubborn(self):
    """Fail always."""
    note(self, "start", retries=self.request.retries)
    raise self.retry(exc=TryAgain("still not"), countdown=0.1)


@task(name="rejected", acks_late=True)
def rejected(self):
    note(self, "start")
    raise Reject("unwanted", requeue=False)


@task(name="poison", acks_late=True, reject_on_worker_lost=True)
def poison(self):
    """Kill the process that runs this, each time."""
    note(self, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="patient", soft_time_limit=1)
def patient(self):
    note(self, "start")
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        note(self, "end")
        return "out of time"


@task(name="limited", rate_limit="5/s")
def limited(self):
    note(self, "start")
