"""Queue files as they look after hours of work, for tests of what operators see and do.

`working_day` has some of everything, by the store's own verbs under a clock that is set; `million` is
large, and is made by SQL, since a million publishes would take minutes.
"""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlqueue import envelope
from sqlqueue_transport import Fault, Outcome, Store
from sqlqueue_transport.clock import SystemClock
from tests.cli.filling import Filled

HOUR_S = 3600.0
# Whoever shows one of these as it stands runs a script, forges a link, moves text about or hides some.
MARKUP = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    " **bold** [link](javascript:window.hacked=3) :red[colour] $x^2$ `code` <b>b</b> ![i](//evil/x)"
)
INVISIBLE = "a\u202eb\u200bc\x1b[31m\x07d"
HOSTILE = f"{MARKUP} {INVISIBLE}"


class SetClock(SystemClock):
    """Tell the wall clock's time as the test says; leases go by the machine's clock, as always."""

    def __init__(self) -> None:
        self.ahead_ms = 0  # negative: the past

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms

    def set_ago(self, seconds: float) -> None:
        """Let it be so many seconds ago."""
        self.ahead_ms = -round(seconds * 1000)


class Day(Filled):
    """A file whose jobs happened when the test says."""

    def __init__(self, path: Path) -> None:
        self.time = SetClock()
        super().__init__(path, clock=self.time)
        self.random = random.Random(7)

    def run(
        self, outcome: Outcome, *, ago_s: float, waited_s: float = 1, took_s: float = 10, **job: Any
    ) -> str:
        """Have a job enqueued, started and ended so long ago; return its id.

        The queue has to be empty: the next message is taken.
        """
        queue = job.get("queue", "default")
        self.time.set_ago(ago_s + waited_s + took_s)
        job_id = self.publish(**job)
        self.time.set_ago(ago_s + took_s)
        delivery = self.claim(queue, lease_s=3600)
        self.time.set_ago(ago_s)
        self.settle(delivery, outcome)
        self.time.set_ago(0)
        return job_id


ERRORS = (
    ("ConnectionError", "cannot reach mail-3.example:25: timed out after 30 s"),
    ("ConnectionError", "cannot reach mail-7.example:25: timed out after 31 s"),
    ("FileNotFoundError", "[Errno 2] No such file or directory: 'jobs/{n}.json'"),
    ("ValueError", "invalid literal for int() with base 10: 'n/a'"),
    ("TimeLimitExceeded", "ran longer than its time limit of 60 s"),
)
TASKS = (  # task, queue, how long it takes, how often it comes
    ("tasks.stamping.stamp", "default", 11.0, 10),
    ("mail.send", "mail", 0.4, 6),
    ("reports.build", "reports", 95.0, 1),
    ("thumbs.make", "default", 2.5, 3),
)


def working_day(path: Path, *, jobs: int = 600, hours: float = 6.0) -> Day:
    """Fill a file with hours of work, and leave some of every state; close it when it is looked at."""
    day = Day(path)
    chance = day.random
    for number in range(jobs):
        task, queue, long_s, _ = chance.choices(TASKS, [often for *_, often in TASKS])[0]
        ago_s = hours * HOUR_S * (1 - number / jobs) + 120
        took_s = long_s * chance.lognormvariate(0, 0.4)
        job = {"task": task, "queue": queue, "args": _arguments(task, number)}
        kind = chance.random()
        outcome = Outcome.done('{"ok": true}')
        if kind < 0.04:
            outcome = Outcome.dead(_fault(number))
        elif kind < 0.05:
            outcome = Outcome.cancelled(Fault("TaskStopped", "asked to stop by ana@desk"))
        day.run(outcome, ago_s=ago_s, waited_s=chance.expovariate(0.3), took_s=took_s, **job)
    day.time.set_ago(90)
    for number in range(7):
        day.failed(
            *("ConnectionError", f"cannot reach mail-{number}.example:25: timed out"),
            task="mail.send",
            args=(f"user-{number}@example.org",),
            retry_in_s=900,
        )
    day.publish(expires_in_s=0.001, task="mail.send", args=("too late",), queue="expiring")
    day.time.set_ago(60)
    day.store.claim(["expiring"], lease_s=60)  # which notices that it is too late
    for number in range(5):
        day.publish(due_in_s=600 + number, task="reports.build", queue="reports", args=("weekly",))
    for number in range(12):
        day.time.set_ago(60 - number)
        day.publish(task="tasks.stamping.stamp", args=(f"jobs/later-{number}.json",))
    day.time.set_ago(0)
    return day


def stall(day: Filled, **job: Any) -> str:
    """Leave a job in processing whose lease is over, though whoever took it is alive."""
    job_id = day.publish(queue="stuck", **job)
    day.claim("stuck", lease_s=0.001)
    return job_id


def _arguments(task: str, number: int) -> tuple[Any, ...]:
    if task == "mail.send":
        return (f"user-{number}@example.org", {"template": "welcome", "tries": 3})
    if task == "reports.build":
        return ("2026-11",)
    return (f"jobs/2026-11-28-{number:05}.json",)


def _fault(number: int) -> Fault:
    kind, message = ERRORS[number % len(ERRORS)]
    message = message.format(n=number)
    trace = (
        "Traceback (most recent call last):\n"
        '  File "/srv/app/tasks/mail.py", line 41, in send\n'
        "    with connection(host) as smtp:\n"
        f"{kind}: {message}\n"
    )
    return Fault(kind, message, trace)


def hostile(path: Path) -> Day:
    """Fill a file with text of an enemy in every field that he can write."""
    day = Day(path)
    queue = MARKUP[:120]
    job: dict[str, Any] = {
        "task": HOSTILE,
        "args": (HOSTILE, {"k": HOSTILE}),
        "kwargs": {HOSTILE: HOSTILE},
    }
    fault = Fault(HOSTILE, HOSTILE, f"Traceback\n  {HOSTILE}\n{HOSTILE}")
    day.run(Outcome.done(f'["{MARKUP[:30]}"]'), ago_s=50, job_id=f"done-{MARKUP}", **job)
    day.run(Outcome.dead(fault), ago_s=40, job_id=f"dead-{MARKUP}", **job)
    day.run(Outcome.dead(fault), ago_s=30, queue=queue, **job)
    day.publish(body=b"\xff\xfe<script>window.hacked=4</script>", job_id="unreadable", task=HOSTILE)
    day.publish(queue=queue, **job)
    day.store.pausing.pause(queue, actor=HOSTILE, reason=HOSTILE)
    return day


_MILLION = """
INSERT INTO message (
  queue, state, job_id, task, attempts, delivery, worker_id, enqueued_at_ms, started_at_ms,
  finished_at_ms, content_type, content_encoding, headers, body, result, error_type, error_message
)
WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :jobs),
job (n, state, at_ms) AS (
  SELECT n,
    CASE
      WHEN n % 200 = 0 THEN 'permanently_failed'
      WHEN n > :jobs - :jobs / 50 THEN 'pending'
      ELSE 'done'
    END,
    :now_ms - (:jobs - n) * :spread_ms / :jobs - 60000
  FROM number
)
SELECT
  CASE n % 3 WHEN 0 THEN 'mail' ELSE 'default' END,
  state,
  printf('%08x-aaaa-7bbb-8ccc-dddddddddddd', n),
  CASE n % 5 WHEN 0 THEN 'mail.send' ELSE 'tasks.stamping.stamp' END,
  state <> 'pending', state <> 'pending', 1, at_ms,
  CASE WHEN state <> 'pending' THEN at_ms + 500 END,
  CASE WHEN state <> 'pending' THEN at_ms + 500 + n * 7919 % 20000 END,
  :content_type, :content_encoding,
  json_object('task', 'tasks.stamping.stamp', 'id', printf('%08x-aaaa-7bbb-8ccc-dddddddddddd', n)),
  CAST(printf('[["jobs/%d.json"], {}, {"callbacks": null}]', n) AS BLOB),
  CASE state WHEN 'done' THEN 'null' END,
  CASE state WHEN 'permanently_failed' THEN 'ValueError' END,
  CASE state WHEN 'permanently_failed' THEN printf('job %d is no good', n) END
FROM job
"""
_ATTEMPTS = """
INSERT INTO attempt (message_id, run, attempt, delivery, worker, started_at_ms, ended_at_ms, outcome,
  error_type, error_message, traceback)
SELECT id, 1, 1, 1, 'w1/1', started_at_ms, finished_at_ms, 'failed', error_type, error_message,
  'Traceback (most recent call last):' || char(10) || 'ValueError: ' || error_message
FROM message WHERE state = 'permanently_failed'
"""


def million(path: Path, *, jobs: int = 1_000_000, hours: float = 24.0) -> None:
    """Make a file of so many jobs of the last hours: done, but for 2 % pending and 0.5 % dead."""
    Store(path).close()
    now_ms = time.time_ns() // 1_000_000
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            _MILLION,
            {
                "jobs": jobs,
                "now_ms": now_ms,
                "spread_ms": round(hours * 3_600_000),
                "content_type": envelope.CONTENT_TYPE,
                "content_encoding": envelope.CONTENT_ENCODING,
            },
        )
        connection.execute(_ATTEMPTS)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
