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
    "bench": "--jobs 100 -c 1",
    "completion": "bash",
    "console": "ops --no-browser",
    "db backup": "copy.db --force",
    "demo": "--count 1 --every 0.1s --min-seconds 0 --max-seconds 0.1s",
    "fail": "waiting --dry-run",
    "init": "project",
    "inspect job": "dead",
    "pause": "mail",
    "prune": "--older-than 0s --dry-run",
    "purge": "mail --dry-run",
    "requeue": "dead --dry-run",
    "resume": "mail",
    "schedule add": "e t --every 5s",
    "schedule pause": "tidy",
    "schedule remove": "tidy",
    "schedule resume": "tidy",
    "worker": "-A {app} --burst -P solo",
    "beat": "-A {app} --max-ticks 1",
}
# They start processes, or go on until they are stopped.
OF_PROCESSES = {"beat", "bench", "console", "demo", "worker"}
WITHOUT_FILE = {"config show"}  # what it says of a file is its name
UNHEALTHY = {"doctor": 1, "inspect ping": 1}  # nobody works here

# A line that goes wrong where a settings file that is missing does not.
WRONG = {"bench": "--dir missing", "completion": "tcsh", "init": "no/such/directory"}

# Shared options that have nothing to say to a command, and why. They are taken all the same, because
# they may come from the environment, and change nothing.
_NO_QUEUE = "it opens no queue, and goes by no settings"
_OWN_QUEUE = "it measures on a file, an application and settings of its own"
_LOG_ONLY = "it prints no data; its log has --log-format"
_LOG_IS_UTC = "the times of its log are in UTC"
_NO_TIME = "it tells no time of day"
MEANINGLESS: dict[str, dict[str, str]] = {
    "beat": {"--output": _LOG_ONLY, "--utc": _LOG_IS_UTC},
    "bench": {**dict.fromkeys(("--app", "--db", "--config"), _OWN_QUEUE), "--utc": _NO_TIME},
    "completion": {
        **dict.fromkeys(("--app", "--db", "--config"), _NO_QUEUE),
        "--output": "what it prints is for a shell to run",
    },
    "console": {"--output": "it prints a link; all else is on a page"},
    "demo": {"--app": "its application is its own", "--utc": _NO_TIME},
    "init": dict.fromkeys(("--app", "--db", "--config"), _NO_QUEUE),
    "worker": {"--output": _LOG_ONLY, "--utc": _LOG_IS_UTC},
}

# Where options are tried that need more than a line: the test, or how its name begins.
_BENCH = "tests/cli/test_bench.py::"
_CONSOLE = "tests/consoles/test_launch.py::"
_HERE = "tests/cli/test_every_option.py::"
_PROCESS = "tests/cli/test_processes.py::"
_MEASURES = f"{_BENCH}test_bench_measures_with_real_workers"
_DEMO = f"{_HERE}test_the_demo_heeds_each_of_its_options"
_WATCH = "tests/cli/test_watch.py::test_json_is_a_document_a_line_and_each_comes_at_once"
TRIED_IN: dict[str, dict[str, str]] = {
    "beat": {"--quiet": f"{_PROCESS}test_process_that_is_to_be_quiet_does_not_greet"},
    "bench": {
        **dict.fromkeys(
            ("--jobs", "--concurrency", "--payload", "--durability", "--dir", "--output"), _MEASURES
        ),
        "--quiet": f"{_BENCH}test_bench_goes_by_no_settings_of_others",
    },
    "console": {
        "--port": f"{_CONSOLE}test_busy_port_is_told",
        "--host": f"{_CONSOLE}test_console_on_another_loopback_address_is_known_by_it",
        "--token": f"{_CONSOLE}test_token_that_could_be_guessed_is_refused",
        "--allow-host": f"{_CONSOLE}test_console_answers_to_the_names_it_was_given",
        "--browser": f"{_CONSOLE}test_browser_is_opened_where_it_is_wanted",
        "--no-browser": f"{_CONSOLE}test_browser_is_opened_where_it_is_wanted",
        "--quiet": f"{_CONSOLE}test_token_of_the_environment_is_taken",
        "--utc": f"{_CONSOLE}test_pages_are_told_to_show_times_in_utc",
    },
    "db migrate": {"--dry-run": "tests/cli/test_database.py::test_a_dry_run_tells_the_versions"},
    "demo": {
        **dict.fromkeys(("--count", "--every", "--min-seconds", "--max-seconds"), _DEMO),
        **dict.fromkeys(("--concurrency", "--producers", "--dir", "--output"), _DEMO),
        "--quiet": "tests/cli/test_demo.py::test_progress_is_told_in_lines",
    },
    **{
        f"inspect {what}": {"--watch": _WATCH}
        for what in ("dead", "jobs", "queues", "schedule", "stats", "workers")
    },
    "worker": {
        "--beat": f"{_HERE}test_a_worker_with_beat_runs_what_its_beat_enqueues",
        "--quiet": f"{_PROCESS}test_process_that_is_to_be_quiet_does_not_greet",
    },
}


def is_apart(command: str, option: str) -> bool:
    """Say whether a shared option means nothing to a command, or is tried in another place."""
    return option in MEANINGLESS.get(command, {}) or option in TRIED_IN.get(command, {})


def line(command: str, *more: str, app: str) -> list[str]:
    """Return the words of a command's line, with more behind them; `app` is what -A takes."""
    return [*command.split(), *shlex.split(LINES.get(command, "").replace("{app}", app)), *more]


def wrong_line(command: str, *, app: str) -> list[str]:
    """Return the words of a line that ends with an error of usage."""
    if command in WRONG:
        return [*command.split(), *WRONG[command].split()]
    return line(command, "--config", "nope.toml", app=app)
