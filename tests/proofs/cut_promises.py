"""Know what was promised when the power was cut, and look whether a queue keeps it afterwards.

What may be there and what must be there differ: what was asked for and not answered may be there or
not, as long as it is whole.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlqueue_transport import Store, migrations
from sqlqueue_transport.errors import TransportError
from sqlqueue_transport.messages import Outcome, Settlement
from tests.proofs import disk
from tests.proofs.recorded import DATABASE, QUEUE, SMALL, body_of, message
from tests.support import FakeClock

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


def examine(
    directory: Path, found: dict[str, bytes | None], told: Told, *, drains: bool
) -> Counter[str]:
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
            value = store.database.read(lambda c, q=query: c.execute(q).fetchone())
            assert (value and value[0]) in values, f"{query}: {value}, not one of {values}"
        _examine_ticks({due // 1000 for (due,) in ticks}, {row[0] for row in rows}, told)
        _use(
            store, {row[0] for row in rows if row[1] in _UNENDED and row[6] == QUEUE}, drains=drains
        )
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
        assert least <= recorded, f"{token} lost an attempt"
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
    """Demand that the file is as it was, or that the backup from before is whole beside it."""
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
