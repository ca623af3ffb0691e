"""What is recorded for the power cuts: how a queue begins, and the processes that use it then."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlqueue_transport import Store, migrations
from sqlqueue_transport.messages import Outcome, Settlement
from tests.proofs import disk
from tests.proofs.recorded import DATABASE, MIDDLE, QUEUE, SMALL, body_of, message
from tests.proofs.recording import Kind, Recording

FIXTURES = Path(__file__).parent.parent / "transport" / "fixtures"


def _empty(_: Recording) -> None:
    """Begin with an empty directory."""


def _filled(recording: Recording) -> None:
    """Begin with a queue that has many jobs, most of them done."""
    tokens = [f"filled-{i}-{MIDDLE if i % 2 else SMALL}" for i in range(160)]
    other = [f"other-{i}-{SMALL}" for i in range(40)]
    store = Store(recording.queue / DATABASE)
    store.publish([message(token) for token in tokens])
    store.publish([message(token, queue="other") for token in other])
    deliveries = store.claim([QUEUE], 140, lease_s=60).deliveries
    store.settle(
        [Settlement(d.message_id, d.delivery, Outcome.done(f'"{d.job_id}"')) for d in deliveries]
    )
    store.close()
    _begin(recording, tokens + other, [str(one.job_id) for one in deliveries])


def _begin(recording: Recording, tokens: list[str], done: Sequence[str] = ()) -> None:
    recording.begin()
    recording.note("publishing", tokens=tokens)
    recording.note("published", tokens=tokens, durable=True)
    for token in done:
        recording.note("settling", token=token, to="done")
        recording.note("settled", token=token, to="done", durable=True)


def _old(version: int, *, is_closed: bool) -> Callable[[Recording], None]:
    """Begin with a file of an older schema; unless it was closed, its jobs are in the log still."""

    def prepare(recording: Recording) -> None:
        path = recording.queue / DATABASE
        tokens = [f"old-{i}-{SMALL}" for i in range(60)]
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.executescript((FIXTURES / f"schema-{version}.sql").read_text())
        connection.executescript(
            f"PRAGMA application_id = {migrations.APPLICATION_ID}; PRAGMA user_version = {version};"
            "INSERT INTO queue (name, created_at_ms) VALUES ('default', 1)"
        )
        connection.execute("PRAGMA wal_checkpoint").fetchall()
        connection.executemany(
            "INSERT INTO message (queue, state, task, job_id, enqueued_at_ms, body)"
            " VALUES ('default', 'pending', 't', ?, 1, ?)",
            [(token, body_of(token)) for token in tokens],
        )
        connection.commit()
        if not is_closed:  # as after a kill
            left = recording.directory / "left"
            shutil.copytree(recording.queue, left)
        connection.close()
        if not is_closed:
            shutil.rmtree(recording.queue)
            left.rename(recording.queue)
        for file in recording.queue.iterdir():
            file.chmod(0o600)
        _begin(recording, tokens)
        recording.note("old", version=version)

    return prepare


def _after_a_cut(recording: Recording) -> None:
    """Begin with what a machine found after an earlier cut."""
    earlier = record("durable settlements", recording.directory / "earlier")
    model, records = disk.Disk(earlier), list(earlier.records())
    until = len(records) * 3 // 5
    for one in records[:until]:
        model.follow(one)
    disk.write(model.after_cut(random.Random(0)), recording.queue)
    recording.begin()
    for one in records[:until]:
        if one.kind is Kind.NOTE:
            recording.note(**one.note)


@dataclass(frozen=True)
class Scenario:
    """Be something to record: how it begins, the programs at work, and its share of the cuts."""

    prepare: Callable[[Recording], None]
    programs: list[tuple[object, ...]]
    share: int


SCENARIOS = {
    "traffic": Scenario(
        _empty,
        [
            ("publisher", "p1", 90),
            ("publisher", "p2", 90),
            ("worker", "w1", 90, "publish"),
            ("worker", "w2", 90, "publish"),
        ],
        30,
    ),
    "durable settlements": Scenario(
        _empty,
        [("publisher", "p1", 50), ("worker", "w1", 40, "full"), ("worker", "w2", 40, "full")],
        15,
    ),
    "creation": Scenario(_empty, [("creator", "c1")], 10),
    "two creators": Scenario(_empty, [("creator", "c1"), ("creator", "c2")], 5),
    "schema 1": Scenario(_old(1, is_closed=True), [("creator", "c1")], 5),
    "schema 2": Scenario(_old(2, is_closed=False), [("creator", "c1")], 5),
    "schema 3": Scenario(_old(3, is_closed=False), [("creator", "c1")], 5),
    "schema 4": Scenario(_old(4, is_closed=False), [("creator", "c1")], 5),
    "killed migration": Scenario(_old(1, is_closed=False), [("mortals", "m", 9)], 5),
    "backups": Scenario(_filled, [("publisher", "p1", 30), ("saver", 6)], 5),
    "deleting": Scenario(_filled, [("publisher", "p1", 15), ("pruner",)], 5),
    "two beats": Scenario(_empty, [("beat", "b1", 40), ("beat", "b2", 40)], 5),
    "application": Scenario(_empty, [("caller", 20), ("served", 40)], 5),
    "second cut": Scenario(
        _after_a_cut, [("creator", "c1"), ("worker", "w3", 8, "full"), ("publisher", "p3", 5)], 5
    ),
    "killed processes": Scenario(
        _empty, [("mortals", "m", 10), ("mortals", "n", 10), ("publisher", "p1", 10)], 10
    ),
    "forks": Scenario(_empty, [("forking", "f1", 12), ("forking", "f2", 12)], 5),
    "an operator": Scenario(_filled, [("operator",)], 5),
    "quiet files": Scenario(_empty, [("keeper", "k1", 20), ("keeper", "k2", 5)], 10),
}


def record(name: str, directory: Path, *, way: str = "") -> Recording:
    """Record a scenario in a new directory, its programs broken in a way of `broken`, if any."""
    scenario = SCENARIOS[name]
    recording = Recording(directory)
    recording.queue.mkdir(parents=True, mode=0o700)
    scenario.prepare(recording)
    if not recording.log.exists():
        recording.begin()
    programs = [("-m", "tests.proofs.recorded", *one) for one in scenario.programs]
    recording.run(programs, env={"BREAK": way})
    return recording
