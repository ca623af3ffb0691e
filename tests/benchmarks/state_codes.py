"""Compare states as text with states as integers: a publish, claim, ack loop on both.

    python -m tests.benchmarks.state_codes [--rows 20000] [--rounds 7]

The schema and the statements are the store's own; for the integers their literals are replaced in
a throw-away copy. Plain sqlite3 runs them, one transaction a publish and one for each "settle and
claim", unsynced, so that what differs weighs as much as it can. Processor time is counted, so that
other programs matter less. The two take turns, and medians are shown; compare within one run only.
"""

from __future__ import annotations

import argparse
import platform
import re
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sqlqueue_transport import statements as sql
from sqlqueue_transport.lifecycle import State

STATEMENTS = ("PUBLISH", "PROMOTE", "READY", "CLAIM", "COMPLETE", "WORKER_IS_REGISTERED")
SCHEMA = resources.files("sqlqueue_transport").joinpath("schema.sql").read_text("utf-8")
CODES = {state.value: number for number, state in enumerate(State)}
BODY = b'[["job-producer-1-1795324267000.txt"],{},{"callbacks":null,"errbacks":null}]'
HEADERS = '{"lang":"py","task":"tasks.stamping.stamp","id":"%s","retries":0,"argsrepr":"[]"}'


@dataclass(frozen=True)
class Way:
    """Be one way to write states down."""

    name: str
    schema: str
    statements: dict[str, str]
    pending: Any


def _with_codes(text: str) -> str:
    for state, code in CODES.items():
        text = re.sub(rf"'{state}'", str(code), text)
    return text


def _ways() -> list[Way]:
    plain = {name: getattr(sql, name) for name in STATEMENTS}
    # Only the message table and its indexes: attempts and actions keep their words.
    start = SCHEMA.index("CREATE TABLE message (")
    end = SCHEMA.index("CREATE TABLE body (")
    coded = _with_codes(SCHEMA[start:end]).replace(
        "state            TEXT NOT NULL", "state            INTEGER NOT NULL"
    )
    return [
        Way("text", SCHEMA, plain, State.PENDING.value),
        Way(
            "integer",
            SCHEMA[:start] + coded + SCHEMA[end:],
            {name: _with_codes(text) for name, text in plain.items()},
            CODES[State.PENDING.value],
        ),
    ]


def _publish(connection: sqlite3.Connection, way: Way, rows: int) -> None:
    task = "tasks.stamping.stamp"
    content = ("default", "application/json", "utf-8")
    properties = '{"delivery_mode":2,"priority":0}'
    for number in range(rows):
        job_id = f"0199f3c4-0000-7000-8000-{number:012d}"
        now_ms = 1_795_324_267_000 + number
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            way.statements["PUBLISH"],
            (
                *("default", way.pending, 0, job_id, task, None, 5, now_ms, None, None),
                *("", *content, HEADERS % job_id, properties, BODY),
            ),
        )
        connection.execute("COMMIT")


def _work(connection: sqlite3.Connection, way: Way) -> int:
    done, held = 0, None
    while True:
        now_ms = 1_795_324_300_000 + done
        connection.execute("BEGIN IMMEDIATE")
        if held is not None:
            connection.execute(
                way.statements["COMPLETE"],
                {"id": held, "delivery": 1, "now_ms": now_ms, "lease_now_ms": 1, "result": "null"},
            )
        connection.execute(way.statements["WORKER_IS_REGISTERED"], {"worker_id": 1}).fetchone()
        connection.execute(way.statements["PROMOTE"], {"now_ms": now_ms})
        rows = connection.execute(
            way.statements["READY"], {"queue": "default", "limit": 1}
        ).fetchall()
        held = rows[0][0] if rows else None
        if held is not None:
            done += connection.execute(
                way.statements["CLAIM"],
                {"id": held, "worker_id": 1, "lease_until_ms": 5000, "now_ms": now_ms},
            ).rowcount
        connection.execute("COMMIT")
        if held is None:
            return done


def _round(way: Way, rows: int) -> tuple[float, float, int]:
    """Return microseconds a publish, microseconds a settle and claim, and the file's bytes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "states.db"
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(way.schema)
        began_s = time.process_time()
        _publish(connection, way, rows)
        published_s = time.process_time()
        done = _work(connection, way)
        worked_s = time.process_time()
        assert done == rows, f"{done} of {rows} were done"
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        size = path.stat().st_size
    return (
        (published_s - began_s) / rows * 1e6,
        (worked_s - published_s) / rows * 1e6,
        size,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    ways = _ways()
    found: dict[str, list[tuple[float, float, int]]] = {way.name: [] for way in ways}
    for number in range(chosen.rounds):
        for way in ways if number % 2 else reversed(ways):
            found[way.name].append(_round(way, chosen.rows))

    print(
        f"{chosen.rows} rows, {chosen.rounds} interleaved rounds, medians of processor time; "
        f"SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}"
    )
    print(f"{'states as':<10} {'publish µs':>11} {'settle+claim µs':>16} {'both µs':>9} {'MB':>7}")
    both = {}
    for name, rounds in found.items():
        publish_us, work_us = (statistics.median(one[place] for one in rounds) for place in (0, 1))
        both[name] = statistics.median(one[0] + one[1] for one in rounds)
        size_mb = rounds[0][2] / 1e6
        print(f"{name:<10} {publish_us:>11.2f} {work_us:>16.2f} {both[name]:>9.2f} {size_mb:>7.2f}")
    print(f"integers need {(1 - both['integer'] / both['text']) * 100:+.1f} % less time than text")


if __name__ == "__main__":
    main()
