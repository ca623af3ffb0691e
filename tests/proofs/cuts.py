"""The power is cut at any moment: every acknowledged publish is there, and the queue goes on.

Real processes use a queue and are recorded (`recording`, `recorded`). For each cut a moment of a
recording is taken, one of the contents that a disk may have then is made (`disk`), and the product
opens it: nothing that was promised by then may be missing, nothing may be there that was never
asked for, and everything must work.

A cut is known by its recording, its seed and its number: `python -m tests.proofs.cuts RECORDING SEED
TOTAL NUMBER` makes it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlqueue_transport import Store, migrations
from sqlqueue_transport.errors import TransportError
from sqlqueue_transport.messages import Outcome, Settlement
from tests.proofs import disk
from tests.proofs.recorded import DATABASE, LARGE, MIDDLE, QUEUE, SMALL, body_of, message
from tests.proofs.recording import Kind, Recording
from tests.support import ROOT, FakeClock

PROCESSES = 2
CUTS_A_ROUND = 3_000
FIXTURES = Path(__file__).parent.parent / "transport" / "fixtures"
_MEMORY = Path("/dev/shm")  # noqa: S108 - only made-up disks are in it
_ROWS = """
SELECT m.job_id, m.state, m.result, m.attempts, coalesce(m.body, b.content),
  (SELECT count(*) FROM attempt a WHERE a.message_id = m.id), m.queue
FROM message m LEFT JOIN body b ON b.message_id = m.id
"""


# -- what was promised ------------------------------------------------------------------------------


@dataclass
class Told:
    """Know from the notes of a recording, up to a moment, what may be in the file and what must."""

    batches: list[list[str]] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)  # also what need not be durable
    promised: set[str] = field(default_factory=set)
    ticks: dict[int, list[str]] = field(default_factory=dict)
    settling: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    settled: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    deletes_ended: bool = False
    deletes_queue: str | None = None
    saving: dict[str, set[str]] = field(default_factory=dict)  # by name: what must be in the copy
    begun: dict[str, set[str]] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    old_version: int | None = None
    acted: set[str] = field(default_factory=set)  # jobs that an operator was asked to change
    facts: dict[str, list[object]] = field(default_factory=dict)  # by query: what it may find

    def hear(self, note: dict[str, Any]) -> None:
        """Take in the next note."""
        what = note["what"]
        if what == "publishing":
            self.batches.append(note["tokens"])
            self.asked.update(note["tokens"])
            if "tick" in note:
                self.ticks[note["tick"]] = note["tokens"]
        elif what == "published":
            self.acknowledged.update(note["tokens"])
            if note["durable"]:
                self.promised.update(note["tokens"])
        elif what == "settling":
            self.settling[note["token"]].add(note["to"])
        elif what == "settled":
            if note["durable"]:
                self.settled[note["token"]].add(note["to"])
        elif what == "deleting":
            self.deletes_ended, self.deletes_queue = note["ended"], note["queue"]
        elif what == "backing up":
            self.begun[note["name"]] = set(self.acknowledged)
            self.saving.setdefault(note["name"], set(self.acknowledged))
        elif what == "backed up":
            self.saving[note["name"]] = self.begun[note["name"]]
            self.saved.add(note["name"])
        elif what == "acting":
            self.acted.add(note["token"])
        elif what == "changing":
            self.facts.setdefault(note["query"], [note["before"]]).append(note["value"])
        elif what == "changed":
            self.facts[note["query"]] = [note["value"]]
        else:
            self.old_version = note["version"]

    def may_be_deleted(self, token: str) -> bool:
        """Say whether somebody was asked to delete this job by now."""
        if self.deletes_queue and token.startswith(f"{self.deletes_queue}-"):
            return True
        return self.deletes_ended and bool(self.settling[token] & {"done", "dead"})


# -- what is found ----------------------------------------------------------------------------------


def examine(directory: Path, found: dict[str, bytes | None], told: Told, *, drains: bool) -> Counter[str]:
    """Let the product open what a machine found, and use it. Raises AssertionError for a broken promise."""
    figures: Counter[str] = Counter(cuts=1)
    if told.old_version is not None:
        disk.write(found, directory)
        figures += _examine_migration(directory, told, told.old_version)
    disk.write(found, directory)
    for name in set(told.saving) & set(found) | told.saved:
        figures += _examine_copy(directory, name, told.saving[name])
    clock = FakeClock(wall=round(time.time() * 1000) + 1000, boot_id="the boot after the cut")
    try:
        store = Store(directory / DATABASE, clock=clock)
    except (TransportError, sqlite3.Error, OSError) as error:
        message = f"it does not open: {error!r}"
        raise AssertionError(message) from error
    try:
        assert (complaints := store.reading.damage(full=True)) == [], complaints
        assert (broken := store.reading.broken_invariants(full=True)) == {}, broken
        rows = store.database.read(lambda c: c.execute(_ROWS).fetchall())
        figures += _examine_jobs(rows, told)
        ticks = store.database.read(lambda c: c.execute("SELECT due_ms FROM tick").fetchall())
        for query, values in told.facts.items():
            value = store.database.read(lambda c, q=query: c.execute(q).fetchone())  # type: ignore[misc]
            assert (value and value[0]) in values, f"{query}: {value}, not one of {values}"
        _examine_ticks({due // 1000 for (due,) in ticks}, {row[0] for row in rows}, told)
        _use(store, {row[0] for row in rows if row[1] in _UNENDED and row[6] == QUEUE}, drains=drains)
    finally:
        store.close()
    return figures


_UNENDED = {"pending", "scheduled", "processing", "failed"}
_ENDS = {"done": "done", "permanently_failed": "dead"}


def _examine_jobs(rows: list[tuple[Any, ...]], told: Told) -> Counter[str]:
    figures: Counter[str] = Counter()
    there = {row[0] for row in rows}
    assert len(there) == len(rows), "a job is there twice"
    assert there <= told.asked, f"never published: {sorted(there - told.asked)}"
    lost = {token for token in told.promised - there if not told.may_be_deleted(token)}
    assert not lost, f"{len(lost)} acknowledged publishes are lost: {sorted(lost)[:10]}"
    for batch in told.batches:
        missing = {token for token in batch if token not in there}
        is_part = missing and len(missing) < len(set(batch))
        if is_part and not all(map(told.may_be_deleted, missing)):
            raise AssertionError(f"of a batch only a part is there: {sorted(missing)} are not")
    for token, state, result, attempts, body, recorded, _ in rows:
        assert body == body_of(token), f"{token} has another body"
        if token in told.acted:
            continue
        asked, settled = told.settling[token], told.settled[token]
        end = _ENDS.get(state)
        assert state in _UNENDED or end in asked, f"{token} is {state}, which nobody asked for"
        for to in settled & set(_ENDS.values()):
            assert end == to, f"{token} was durably settled as {to}, and is {state}"
        assert result == (f'"{token}"' if state == "done" else None), f"{token}: result {result}"
        most = ("retry" in asked) + ("dead" in asked)
        least = ("retry" in settled) + ("dead" in settled)
        assert least <= recorded or told.old_version is not None, f"{token} lost an attempt"
        assert bool(recorded) <= bool(most), f"{token} has {recorded} attempts of {most}"
        assert attempts >= recorded, f"{token} counts {attempts} attempts of {recorded} recorded"
        figures["again"] += state in _UNENDED and bool(asked & set(_ENDS.values()))
    figures["jobs"] = len(rows)
    figures["promised"] = len(told.promised)
    figures["unasked"] = len(told.asked - there)
    return figures


def _examine_ticks(ticks: set[int], there: set[str], told: Told) -> None:
    for due, tokens in told.ticks.items():
        jobs = len(there & set(tokens))
        assert jobs == (len(tokens) if due in ticks else 0), (
            f"tick {due} is {'there' if due in ticks else 'not there'}, with {jobs} of its jobs"
        )


def _examine_copy(directory: Path, name: str, needed: set[str]) -> Counter[str]:
    assert (directory / name).exists(), f"the backup {name} was finished and is not there"
    with contextlib.closing(sqlite3.connect(directory / name)) as copy:
        try:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = copy.execute(_ROWS).fetchall()
        except sqlite3.Error as error:
            raise AssertionError(f"the backup {name} is broken: {error!r}") from error
    there = {row[0] for row in rows}
    assert needed <= there, f"the backup {name} lacks {sorted(needed - there)[:10]}"
    assert all(row[4] == body_of(row[0]) for row in rows), f"a body in the backup {name} is wrong"
    return Counter(backups=1)


def _examine_migration(directory: Path, told: Told, old: int) -> Counter[str]:
    """The file is as it was, or the backup from before the first step is whole beside it."""
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == old:
        return Counter(old=1)
    backup = migrations.backup_path_of(directory / DATABASE, old)
    assert backup.exists(), f"migrated to {version}, and {backup.name} is not there"
    with contextlib.closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = copy.execute("PRAGMA user_version").fetchone()[0]
        assert found == old, f"migrated to {version}, and {backup.name} is of version {found}"
        there = {token for (token,) in copy.execute("SELECT job_id FROM message")}
    needed = {token for token in told.promised if token.startswith("old-")}
    assert needed <= there, f"{backup.name} lacks {sorted(needed - there)[:10]}"
    return Counter(new=1)


def _use(store: Store, unended: set[str], *, drains: bool) -> None:
    """Publish, claim and settle as if nothing had been; with `drains` until nothing is left."""
    (answer,) = store.publish([message(f"after-0-{SMALL}")])
    assert answer.stored
    unended = unended | {f"after-0-{SMALL}"}
    claimed: set[str] = set()
    for _ in range(len(unended) + 1 if drains else 1):
        deliveries = store.claim([QUEUE], 50 if drains else 3, lease_s=60).deliveries
        if not deliveries:
            break
        claimed |= {str(one.job_id) for one in deliveries}
        settlements = [Settlement(d.message_id, d.delivery, Outcome.done()) for d in deliveries]
        assert store.settle(settlements, durable=True) == []
    assert claimed <= unended
    assert claimed
    if drains:
        assert claimed == unended, f"nobody can claim {sorted(unended - claimed)[:10]}"


# -- scenarios --------------------------------------------------------------------------------------


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
    "backups": Scenario(_filled, [("publisher", "p1", 30), ("saver", 6)], 5),
    "deleting": Scenario(_filled, [("publisher", "p1", 15), ("pruner",)], 5),
    "two beats": Scenario(_empty, [("beat", "b1", 40), ("beat", "b2", 40)], 5),
    "application": Scenario(_empty, [("caller", 20), ("served", 40)], 5),
    "second cut": Scenario(
        _after_a_cut, [("creator", "c1"), ("worker", "w3", 8, "full"), ("publisher", "p3", 5)], 5
    ),
    "killed processes": Scenario(
        _empty, [("mortals", "m", 20), ("mortals", "n", 20), ("publisher", "p1", 10)], 10
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


# -- cutting ----------------------------------------------------------------------------------------


def cut(
    recording: Recording,
    numbers: range,
    *,
    total: int,
    seed: int,
    ignores: str = "",
) -> Iterator[Counter[str]]:
    """Make the cuts of these numbers, of `total` that are spread over the recording.

    Raises AssertionError with the words to make it again when a promise is broken.
    """
    records = list(recording.records())
    first = next(i for i, one in enumerate(records) if one.kind is not Kind.NOTE)
    model, told, at = disk.Disk(recording, ignores=ignores), Told(), 0
    with tempfile.TemporaryDirectory(
        prefix="sqlqueue-cuts-", dir=_MEMORY if _MEMORY.is_dir() else recording.directory
    ) as place:
        for number in numbers:
            rng = random.Random(f"{seed} {number}")
            moment = first + int((number + rng.random()) * (len(records) + 1 - first) / total)
            while at < moment:
                model.follow(records[at])
                if records[at].kind is Kind.NOTE:
                    told.hear(records[at].note)
                at += 1
            found = model.after_cut(rng)
            try:
                yield examine(Path(place), found, told, drains=number % 10 == 0)
            except (AssertionError, TransportError, sqlite3.Error) as error:
                words = f"{recording.directory} {seed} {total} {number}"
                message = (
                    f"{error or error!r}\nafter {moment} of {len(records)} records; "
                    f"again: python -m tests.proofs.cuts {words}"
                )
                raise AssertionError(message) from error


def main(directory: str, seed: str, total: str, first: str, end: str = "") -> None:
    """Make some cuts of a recording and print their figures as JSON."""
    numbers = range(int(first), int(end) if end else int(first) + 1)
    figures: Counter[str] = Counter()
    for one in cut(Recording(Path(directory)), numbers, total=int(total), seed=int(seed)):
        figures += one
    print(json.dumps({**figures, "cpu_ms": round(time.process_time() * 1000)}))


def prove(
    directory: Path, *, cuts: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Record every scenario and cut its power, `cuts` times in all. Return figures for people.

    For each few thousand cuts all is recorded anew: what happens between processes is never the
    same twice. A recording whose cuts failed stays in `directory`.
    """
    sums: Counter[str] = Counter()
    rounds = -(-cuts // CUTS_A_ROUND)
    for number in range(rounds):
        share = cuts * (number + 1) // rounds - cuts * number // rounds
        sums += _round(directory / f"round-{number}", share, seed + number, say)
    assert sums["log resets"], "no log was begun anew: the recordings are too short"
    return [
        f"{sums['cuts']:,} power cuts, {sums['promised']:,} acknowledged publishes looked for: 0 lost; "
        f"{sums['again']:,} settlements were not on the disk: all run again",
        f"{sums['records']:,} records of {sums['recordings']} recordings, {sums['log resets']} logs begun "
        f"anew; {sums['old']:,} files found as before a migration, {sums['new']:,} migrated, each with "
        f"a whole backup; {sums['backups']:,} backups found, all whole",
    ]


def _round(directory: Path, cuts: int, seed: int, say: Callable[[str], object]) -> Counter[str]:
    shares = sum(scenario.share for scenario in SCENARIOS.values())
    sums: Counter[str] = Counter()
    done = 0
    for name, scenario in SCENARIOS.items():
        recording = record(name, directory / name.replace(" ", "-"))
        done += scenario.share
        total = cuts * done // shares - sums["cuts"]
        if total:
            figures = _cut_in_parallel(recording, total=total, seed=seed)
            say(f"{name}: {total:,} cuts, {figures['cpu_ms'] / total:.1f} ms each")
            sums += figures
        sums += _measured(recording)
        shutil.rmtree(recording.directory)
    directory.rmdir()
    return sums


def _measured(recording: Recording) -> Counter[str]:
    """Count the records, and how often a log was begun anew in place."""
    figures: Counter[str] = Counter(recordings=1)
    logs: dict[int, int] = {}
    for one in recording.records():
        figures["records"] += 1
        if one.kind is Kind.CREATE and one.names[0].endswith("-wal"):
            logs[one.inode] = 0
        elif one.kind is Kind.WRITE and one.inode in logs and one.at == 0:
            figures["log resets"] += logs[one.inode]
            logs[one.inode] = 1
    return figures


def _cut_in_parallel(recording: Recording, *, total: int, seed: int) -> Counter[str]:
    bounds = [total * part // PROCESSES for part in range(PROCESSES + 1)]
    command = [sys.executable, "-m", "tests.proofs.cuts", recording.directory, seed, total]
    processes = [
        subprocess.Popen(
            [str(part) for part in (*command, first, end)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first, end in zip(bounds, bounds[1:], strict=False)
        if first < end
    ]
    figures: Counter[str] = Counter()
    try:
        for process in processes:
            out, error = process.communicate(timeout=60 + total)
            assert process.returncode == 0, error
            figures += Counter(json.loads(out))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:])
