"""A queue that holds something of everything, and a line for each command to try on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

from sqlqueue_transport.schedules import Described
from tests.cli.filling import Filled

LONG_AGO_MS = 1_577_836_800_000  # 2020


class Queue:
    """A queue with a job for each filter to find, and what a command line has made of it."""

    def __init__(self, filled: Filled, cli: Callable[..., Any]) -> None:
        self.directory = filled.path.parent
        self.filled = filled
        self._cli = cli
        self.before = self.states()

    def states(self) -> dict[str, str]:
        """Return the state of each job by its id."""
        items = self._cli("inspect", "jobs", "--json", "--limit", 1000).json["items"]
        return {item["id"]: item["state"] for item in items}

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's document."""
        document: dict[str, Any] = self._cli("inspect", "job", job_id, "--json").json
        return document

    def entry(self, name: str) -> dict[str, Any]:
        """Return an entry of the schedule."""
        items = self._cli("inspect", "schedule", "--json").json["items"]
        [found] = [item for item in items if item["entry"] == name]
        return dict(found)

    def definition(self, name: str) -> dict[str, Any]:
        """Return how an entry is written down in the file."""
        [[text]] = self.filled.store.database.read(
            lambda c: c.execute(
                "SELECT definition FROM schedule WHERE entry = ?", (name,)
            ).fetchall()
        )
        return dict(json.loads(text))


def fill(filled: Filled) -> None:
    """Put a job for each filter to find into a queue; one of them is running, until it is closed."""
    before = Filled(filled.path)
    before.dead(job_id="old")
    before.dead("OSError", "disk full", job_id="mail", task="tasks.mail", queue="mail")
    before.close()
    filled.store.consumers.register(name="w/1", kind="child")
    filled.dead(job_id="dead")
    filled.done(5, job_id="done")
    filled.failed(job_id="failed")
    filled.publish(job_id="running")
    running = filled.claim()
    filled.store.running.note_progress(
        running.message_id, running.delivery, done=3, total=12, note="page 3"
    )
    filled.publish(job_id="waiting")
    filled.publish(job_id="letter", task="tasks.mail", queue="mail")
    filled.publish(job_id="stale")
    for job_id, status in (("dead", "FAILURE"), ("failed", "RETRY")):
        value = json.dumps({"status": status, "result": None}).encode()
        filled.store.results.store(f"celery-task-meta-{job_id}", status, value, expires_s=None)
    filled.store.database.write(
        lambda connection: (
            connection.execute(
                "UPDATE message SET enqueued_at_ms = :at, started_at_ms = NULL,"
                " finished_at_ms = iif(finished_at_ms IS NULL, NULL, :at)"
                " WHERE job_id IN ('old', 'stale')",
                {"at": LONG_AGO_MS},
            ).rowcount
        )
    )
    tidy = Described("tidy", "every 5s", "t", next_due_ms=LONG_AGO_MS, definition='{"every": 5}')
    filled.store.schedules.describe([tidy])


# A line for each command that needs more than its name; `{app}` is an application.
LINES = {
    "call": "t",
    "cancel": "waiting --dry-run",
    "demo": "--count 1 --every 0.1s --min-seconds 0 --max-seconds 0.1s",
    "fail": "waiting --dry-run",
    "inspect job": "dead",
    "pause": "mail",
    "requeue": "dead --dry-run",
    "resume": "mail",
    "schedule add": "e t --every 5s",
    "schedule pause": "tidy",
    "schedule remove": "tidy",
    "schedule resume": "tidy",
    "worker": "-A {app} --burst -P solo",
    "beat": "-A {app} --max-ticks 1",
}
# They start processes, bring or need an application, and tell what they do in their logs.
OF_PROCESSES = {"beat", "demo", "worker"}
WITHOUT_APPLICATION = {"demo"}
WITHOUT_FILE = {"config show"}
UNHEALTHY = {"doctor": 1, "inspect ping": 1}  # nobody works here


def line(command: str, *more: str, app: str) -> list[str]:
    """Return the words of a command's line, with more behind them; `app` is what -A takes."""
    return [*command.split(), *shlex.split(LINES.get(command, "").replace("{app}", app)), *more]
