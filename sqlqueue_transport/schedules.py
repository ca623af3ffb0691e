"""The schedule as the file knows it: entries, and the ticks that were enqueued.

Entries of code and settings are described by the beats that have them; others live here, by `add`.
What an entry means, when it is due and what it enqueues, is JSON that this module hands through and
never reads. A tick is taken in the transaction that stores its messages (`Store.publish_tick`), and
whether it may be (nobody else took it, the entry is not paused, its last jobs have ended) is decided
in that same transaction, so that no beat, worker or operator can come in between.

Every change of the set of entries raises a number and rings the beats, which sleep on the reserved
name `SCHEDULE` as consumers sleep on their queues.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from sqlqueue_transport.messages import TickAnswer, storable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database
    from sqlqueue_transport.messages import TickOf
    from sqlqueue_transport.wakeup import Bell

    NextDue: TypeAlias = Callable[[str, int], int | None]
    Audited: TypeAlias = Callable[[str | None], str | None]

# What beats sleep on. No queue can have this name: it has a control character.
SCHEDULE: Final = "\x01schedule"
_OVER_KEPT_MS: Final = 30 * 86_400_000

_ENTRIES = """
SELECT entry, origin, definition, first_seen_ms, done_ms, paused_at_ms,
  (SELECT max(t.due_ms) FROM tick AS t WHERE t.entry = s.entry AND t.due_ms <= :now_ms),
  (SELECT max(t.due_ms) FROM tick AS t WHERE t.entry = s.entry)
FROM schedule AS s
ORDER BY entry
"""
# The newest tick is asked for by each of its columns: each is one step into the primary key.
_SCHEDULE = """
SELECT s.entry, s.description, s.target, s.origin, s.definition, s.first_seen_ms, s.next_due_ms,
  s.paused_at_ms, s.error, t.due_ms, t.at_ms, t.skipped,
  (SELECT count(*) FROM tick AS every_tick WHERE every_tick.entry = s.entry)
FROM schedule AS s
LEFT JOIN tick AS t ON t.entry = s.entry
  AND t.due_ms = (SELECT max(due_ms) FROM tick AS newest WHERE newest.entry = s.entry)
ORDER BY s.entry
"""
_NEWEST_TICKS = """
SELECT entry, due_ms, at_ms, beat, jobs, skipped FROM tick
WHERE entry = :entry
ORDER BY due_ms DESC
LIMIT :most
"""
_BEATING = "SELECT worker_id, entry FROM beating"
_BEATEN_BY = "SELECT worker_id FROM beating WHERE entry = :entry"
_BEAT = "INSERT INTO beating (worker_id, entry) VALUES (:worker_id, :entry) ON CONFLICT DO NOTHING"
_FORGET_BEATING = """
DELETE FROM beating
WHERE worker_id NOT IN (SELECT id FROM worker WHERE ended_at_ms IS NULL)
  OR worker_id = :worker_id
"""
_DONE = """
SELECT max(
  coalesce((SELECT max(due_ms) FROM tick WHERE entry = :entry AND due_ms <= :now_ms), -1),
  coalesce((SELECT done_ms FROM schedule WHERE entry = :entry AND done_ms <= :now_ms), -1)
)
"""
# A name that the file has for an entry of its own is not taken from it: no row changes then.
_DESCRIBE = """
INSERT INTO schedule (entry, description, target, first_seen_ms, next_due_ms, definition, origin)
VALUES (:entry, :description, :target, :now_ms, :next_due_ms, :definition, :origin)
ON CONFLICT (entry) DO UPDATE SET
  description = excluded.description,
  target = excluded.target,
  next_due_ms = excluded.next_due_ms,
  definition = excluded.definition,
  origin = excluded.origin
WHERE schedule.origin <> 'file'
"""
_ADD = """
INSERT INTO schedule (entry, description, target, first_seen_ms, next_due_ms, definition, origin)
VALUES (:entry, :description, :target, :now_ms, :next_due_ms, :definition, 'file')
ON CONFLICT DO NOTHING
"""
_FORGET_OVER = """
DELETE FROM schedule
WHERE origin = 'file' AND next_due_ms IS NULL AND error IS NULL AND done_ms < :before_ms
"""
_REMOVE = "DELETE FROM schedule WHERE entry = :entry"
_REMOVE_TICKS = "DELETE FROM tick WHERE entry = :entry"
_FORGET_TICKS = "DELETE FROM tick WHERE entry = :entry AND due_ms > :after_ms"
_PAUSE = """
UPDATE schedule SET paused_at_ms = :now_ms WHERE entry = :entry AND paused_at_ms IS NULL
"""
# Ticks of the pause are given up, not caught up: it was meant. So is one that failed before it; a
# beat that still cannot run the entry says so again.
_RESUME = """
UPDATE schedule
SET paused_at_ms = NULL, done_ms = :now_ms, next_due_ms = :next_due_ms, error = NULL
WHERE entry = :entry AND paused_at_ms IS NOT NULL
"""
_SET_ERROR = "UPDATE schedule SET error = :error WHERE entry = :entry"
_GIVE_UP = """
UPDATE schedule SET done_ms = :done_ms, next_due_ms = :next_due_ms WHERE entry = :entry
"""
_ORIGIN = "SELECT origin, definition FROM schedule WHERE entry = :entry"
_NEXT_DUE = "SELECT definition, next_due_ms FROM schedule WHERE entry = :entry"
_VERSION = "SELECT value FROM meta WHERE key = 'schedule_version'"
_RAISE_VERSION = """
INSERT INTO meta (key, value) VALUES ('schedule_version', '1')
ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)
"""
_AUDIT = """
INSERT INTO audit (at_ms, actor, action, reason, before, after)
VALUES (:now_ms, :actor, :action, :reason, :before, :after)
"""

_STANDING = """
SELECT definition, paused_at_ms, first_message_id, last_message_id
FROM schedule WHERE entry = :entry
"""
_IS_UNFINISHED = """
SELECT EXISTS (
  SELECT 1 FROM message
  WHERE id BETWEEN :first AND :last
    AND state IN ('pending', 'scheduled', 'processing', 'failed')
)
"""
# The primary key makes the second beat's tick a no-op; its messages are then not stored either.
_TAKE = """
INSERT INTO tick (entry, due_ms, at_ms, beat, jobs, skipped)
VALUES (:entry, :due_ms, :now_ms, :beat, :jobs, :skipped)
ON CONFLICT DO NOTHING
"""
_NOTE_TAKEN = """
UPDATE schedule
SET done_ms = :due_ms, next_due_ms = :next_due_ms, error = NULL
WHERE entry = :entry
"""
_NAME_IN_TICK = """
UPDATE tick SET first_message_id = :first, last_message_id = :last
WHERE entry = :entry AND due_ms = :due_ms
"""
_NAME_IN_ENTRY = """
UPDATE schedule SET first_message_id = :first, last_message_id = :last WHERE entry = :entry
"""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """Be one schedule entry as operators see it; times are UTC milliseconds.

    `origin` is code, settings or file. `next_due_ms` None means that nothing comes any more.
    `last_*` tell of the newest tick, None when there was none; `ticks` counts those of 30 days.
    `beats` names the living beats that run it.
    """

    entry: str
    description: str
    target: str
    origin: str
    definition: str | None
    first_seen_ms: int
    next_due_ms: int | None
    paused_at_ms: int | None
    error: str | None
    last_due_ms: int | None
    last_at_ms: int | None
    last_skipped: str | None
    ticks: int
    beats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TickRow:
    """Be one tick: when it was due, when which beat enqueued how many jobs, or why none."""

    entry: str
    due_ms: int
    at_ms: int
    beat: str
    jobs: int
    skipped: str | None


@dataclass(frozen=True, slots=True)
class EntryRow:
    """Be one schedule entry as beats need it.

    `done_ms` is the newest tick up to now that was enqueued or given up, None if there was none;
    `newest_ms` the newest at all, which lies ahead after a clock was set back.
    """

    entry: str
    origin: str
    definition: str | None
    first_seen_ms: int
    is_paused: bool
    done_ms: int | None
    newest_ms: int | None


@dataclass(frozen=True, slots=True)
class Described:
    """Be what a beat says of an entry that it has from code or settings (`origin`)."""

    entry: str
    description: str
    target: str
    next_due_ms: int | None
    definition: str | None = None
    origin: str = "code"


class Changed(Enum):
    """What became of an operator's change of an entry."""

    DONE = "done"
    AS_IT_WAS = "as it was"  # paused already, running already, or the name is taken
    UNKNOWN = "unknown"
    IN_USE = "in use"  # a living beat has it from its application


class Schedules:
    """Keep entries and look up ticks; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._consumers = consumers

    # -- looking ----------------------------------------------------------------------------------

    def rows(self) -> list[ScheduleRow]:
        """List all entries with their newest tick and the beats alive that run them."""
        alive = {
            worker.id: worker.name for worker, _ in self._consumers.alive() if worker.kind == "beat"
        }

        def work(connection: sqlite3.Connection) -> list[ScheduleRow]:
            beats: dict[str, list[str]] = {}
            for worker_id, entry in connection.execute(_BEATING).fetchall():
                if worker_id in alive:
                    beats.setdefault(entry, []).append(alive[worker_id])
            rows = [ScheduleRow(*row) for row in connection.execute(_SCHEDULE).fetchall()]
            return [_with_beats(row, beats, [*alive.values()]) for row in rows]

        return self._database.read(work)

    def ticks(self, entry: str, *, most: int = 20) -> list[TickRow]:
        """List the newest ticks of an entry, the newest first; those of 30 days are kept."""
        values = {"entry": entry, "most": most}
        rows = self._database.read(lambda c: c.execute(_NEWEST_TICKS, values).fetchall())
        return [TickRow(*row) for row in rows]

    def entries(self) -> list[EntryRow]:
        """List all entries as beats need them; cheap."""
        values = {"now_ms": self._clock.wall_ms()}
        return [
            EntryRow(
                entry=entry,
                origin=origin,
                definition=definition,
                first_seen_ms=first_seen_ms,
                is_paused=paused_at_ms is not None,
                done_ms=_newest(last_ms, done_ms, upto_ms=values["now_ms"]),
                newest_ms=newest_ms,
            )
            for (
                entry,
                origin,
                definition,
                first_seen_ms,
                done_ms,
                paused_at_ms,
                last_ms,
                newest_ms,
            ) in self._database.read(lambda c: c.execute(_ENTRIES, values).fetchall())
        ]

    def done_ms(self, entry: str) -> int | None:
        """Return the newest tick up to now that was enqueued or given up; None: there is none."""
        values = {"entry": entry, "now_ms": self._clock.wall_ms()}
        (due_ms,) = self._database.read(lambda c: c.execute(_DONE, values).fetchone())
        return None if due_ms < 0 else int(due_ms)

    def version(self) -> int:
        """Return a number that every change of the set of entries raises."""
        row = self._database.read(lambda c: c.execute(_VERSION).fetchone())
        return 0 if row is None else int(row[0])

    @contextlib.contextmanager
    def listening(self, timeout_s: float) -> Iterator[Bell]:
        """Ask to be rung for changes during the block, and hand out the bell to sleep on.

        Compare `version` inside the block and before the sleep: what changed earlier rings nobody.
        `timeout_s` is how long the sleep may last. Registers this process if need be.
        """
        slot, bell = self._consumers.ready_to_sleep()
        sleepers = self._consumers.sleepers
        nap = sleepers.lie_down(slot, [SCHEDULE], timeout_s)
        try:
            yield bell
        finally:
            sleepers.get_up(slot, nap)

    # -- beats ------------------------------------------------------------------------------------

    def describe(self, described: Sequence[Described], *, worker_id: int | None = None) -> set[str]:
        """Write down the entries a beat has from code and settings; return those refused.

        Refused is a name that the file has for an entry of its own: that one keeps it. `worker_id`
        is the beat's, None for nobody who runs them. If the process dies midway the old
        descriptions stand.
        """
        now_ms = self._clock.wall_ms()

        def work(connection: sqlite3.Connection) -> set[str]:
            refused = set()
            connection.execute(_FORGET_BEATING, {"worker_id": worker_id})
            for one in described:
                values = {
                    "entry": one.entry,
                    "description": storable(one.description),
                    "target": storable(one.target),
                    "next_due_ms": one.next_due_ms,
                    "definition": storable(one.definition),
                    "origin": one.origin,
                    "now_ms": now_ms,
                    "worker_id": worker_id,
                }
                if not connection.execute(_DESCRIBE, values).rowcount:
                    refused.add(one.entry)
                elif worker_id is not None:
                    connection.execute(_BEAT, values)
            return refused

        return self._database.write(work)

    def set_error(self, entry: str, error: str) -> None:
        """Note why an entry's newest tick could not be enqueued; the next one that is clears it."""
        # A producer's error may quote any file name.
        values = {"entry": entry, "error": storable(error)}
        self._database.write(lambda c: c.execute(_SET_ERROR, values).rowcount)

    def give_up(self, entry: str, *, done_ms: int, next_due_ms: int | None) -> None:
        """Note that every tick up to `done_ms` was left out on purpose, and which comes next."""
        values = {"entry": entry, "done_ms": done_ms, "next_due_ms": next_due_ms}
        self._database.write(lambda c: c.execute(_GIVE_UP, values).rowcount)

    def forget_ticks(self, entry: str, *, after_ms: int) -> int:
        """Forget ticks of a future that was taken back, so that they can come; return how many."""
        values = {"entry": entry, "after_ms": after_ms}
        return self._database.write(lambda c: c.execute(_FORGET_TICKS, values).rowcount)

    def skip_overlapping(self, tick: TickOf) -> TickAnswer | None:
        """Answer for a tick before anything is made for it; None: go on, and ask again then.

        SKIPPED, when jobs of the entry's last tick are unfinished: then it is recorded so.
        """

        def work(connection: sqlite3.Connection) -> TickAnswer | None:
            answer = _hindrance(connection, tick)
            if answer is TickAnswer.SKIPPED:
                return _record(connection, tick, self._clock.wall_ms(), jobs=0, skipped="overlap")
            return answer

        return self._database.write(work)

    # -- operators --------------------------------------------------------------------------------

    def add(
        self,
        entry: str,
        *,
        description: str,
        target: str,
        definition: str,
        audited: str | None = None,
        next_due_ms: int | None,
        actor: str,
    ) -> Changed:
        """Add an entry that lives in the file; AS_IT_WAS when the name is taken, by whomever.

        `audited` is what the audit keeps of the definition; None: all, by whoever has no secrets.
        Entries of the file that were over 30 days ago are forgotten by the way. If the process
        dies midway the entry is there, for every beat, or not.
        """
        now_ms = self._clock.wall_ms()
        values = {
            "entry": entry,
            "description": storable(description),
            "target": storable(target),
            "definition": storable(definition),
            "next_due_ms": next_due_ms,
            "now_ms": now_ms,
        }

        def work(connection: sqlite3.Connection) -> Changed:
            connection.execute(_FORGET_OVER, {"before_ms": now_ms - _OVER_KEPT_MS})
            if not connection.execute(_ADD, values).rowcount:
                return Changed.AS_IT_WAS
            after = {"definition": definition if audited is None else audited}
            self._note(connection, entry, "schedule_add", actor, after=after)
            return Changed.DONE

        return self._change(work)

    def remove(
        self, entry: str, *, audited: Audited | None = None, actor: str, reason: str | None = None
    ) -> Changed:
        """Remove an entry of the file, or one of code that no living beat has; with its ticks.

        `audited` is called in the transaction with the definition, and returns what the audit keeps
        of it; None: all.
        IN_USE when a living beat has it from its application. Jobs it has enqueued stay. If the
        process dies midway it is gone whole, or not at all.
        """
        alive = {worker.id for worker, _ in self._consumers.alive()}
        values = {"entry": entry}

        def work(connection: sqlite3.Connection) -> Changed:
            row = connection.execute(_ORIGIN, values).fetchone()
            if row is None:
                return Changed.UNKNOWN
            if row[0] != "file" and any(
                worker_id in alive for (worker_id,) in connection.execute(_BEATEN_BY, values)
            ):
                return Changed.IN_USE
            connection.execute(_REMOVE, values)
            connection.execute(_REMOVE_TICKS, values)
            before = {"definition": row[1] if audited is None else audited(row[1])}
            self._note(connection, entry, "schedule_remove", actor, reason, before=before)
            return Changed.DONE

        return self._change(work)

    def pause(self, entry: str, *, actor: str, reason: str | None = None) -> Changed:
        """Let no tick of an entry be taken from now on, whichever beat asks."""
        values = {"entry": entry, "now_ms": self._clock.wall_ms()}

        def work(connection: sqlite3.Connection) -> Changed:
            if connection.execute(_ORIGIN, values).fetchone() is None:
                return Changed.UNKNOWN
            if not connection.execute(_PAUSE, values).rowcount:
                return Changed.AS_IT_WAS
            self._note(connection, entry, "schedule_pause", actor, reason)
            return Changed.DONE

        return self._change(work)

    def resume(
        self, entry: str, *, next_due: NextDue, actor: str, reason: str | None = None
    ) -> Changed:
        """Let an entry go on; what was due during the pause is given up, and its error forgotten.

        `next_due` is called in the transaction with the entry's definition and the time, and
        returns what comes after that; None: nothing. Of an entry without a definition it is not
        asked. If the process dies midway the entry rests as before.
        """

        def work(connection: sqlite3.Connection) -> Changed:
            row = connection.execute(_NEXT_DUE, {"entry": entry}).fetchone()
            if row is None:
                return Changed.UNKNOWN
            definition, next_due_ms = row
            now_ms = self._clock.wall_ms()
            if definition is not None:
                next_due_ms = next_due(definition, now_ms)
            values = {"entry": entry, "now_ms": now_ms, "next_due_ms": next_due_ms}
            if not connection.execute(_RESUME, values).rowcount:
                return Changed.AS_IT_WAS
            self._note(connection, entry, "schedule_resume", actor, reason)
            return Changed.DONE

        return self._change(work)

    def _note(
        self,
        connection: sqlite3.Connection,
        entry: str,
        action: str,
        actor: str,
        reason: str | None = None,
        *,
        before: Mapping[str, str | None] | None = None,
        after: Mapping[str, str | None] | None = None,
    ) -> None:
        """Raise the version and write the audit, in the change's own transaction."""
        connection.execute(_RAISE_VERSION)
        about = {"entry": entry}
        connection.execute(
            _AUDIT,
            {
                "now_ms": self._clock.wall_ms(),
                "actor": storable(actor),
                "action": action,
                "reason": storable(reason),
                "before": json.dumps({**about, **before}) if before else None,
                "after": json.dumps({**about, **(after or {})}),
            },
        )

    def _change(self, work: Callable[[sqlite3.Connection], Changed]) -> Changed:
        changed = self._database.write(work, durable=True)
        if changed is Changed.DONE:
            self._consumers.wake(SCHEDULE, None, everyone=True)
        return changed


def take(connection: sqlite3.Connection, tick: TickOf, now_ms: int, *, jobs: int) -> TickAnswer:
    """Take a tick in a transaction of the caller, who stores its messages if the answer is TAKEN."""
    answer = _hindrance(connection, tick)
    if answer is TickAnswer.SKIPPED:
        return _record(connection, tick, now_ms, jobs=0, skipped="overlap")
    return answer or _record(connection, tick, now_ms, jobs=jobs)


def name_messages(connection: sqlite3.Connection, tick: TickOf, message_ids: Sequence[int]) -> None:
    """Note which messages a tick has stored, in the transaction that did.

    Ids of one transaction follow each other, so first and last name them all. A message that was
    deduplicated belongs to whoever stored it, and is not among them.
    """
    if message_ids:
        values = {
            "entry": tick.entry,
            "due_ms": tick.due_ms,
            "first": message_ids[0],
            "last": message_ids[-1],
        }
        connection.execute(_NAME_IN_TICK, values)
        connection.execute(_NAME_IN_ENTRY, values)


def _hindrance(connection: sqlite3.Connection, tick: TickOf) -> TickAnswer | None:
    """Say why a tick may not be enqueued: HELD or SKIPPED; None when it may."""
    row = connection.execute(_STANDING, {"entry": tick.entry}).fetchone()
    if row is None:
        return None if tick.definition is None else TickAnswer.HELD
    definition, paused_at_ms, first, last = row
    if paused_at_ms is not None or (tick.definition is not None and tick.definition != definition):
        return TickAnswer.HELD
    if tick.waits_for_last and first is not None:
        values = {"first": first, "last": last}
        if connection.execute(_IS_UNFINISHED, values).fetchone()[0]:
            return TickAnswer.SKIPPED
    return None


def _record(
    connection: sqlite3.Connection,
    tick: TickOf,
    now_ms: int,
    *,
    jobs: int,
    skipped: str | None = None,
) -> TickAnswer:
    values = {
        "entry": tick.entry,
        "due_ms": tick.due_ms,
        "next_due_ms": tick.next_due_ms,
        "now_ms": now_ms,
        "beat": tick.beat,
        "jobs": jobs,
        "skipped": skipped,
    }
    if not connection.execute(_TAKE, values).rowcount:
        return TickAnswer.THERE
    connection.execute(_NOTE_TAKEN, values)
    return TickAnswer.TAKEN if skipped is None else TickAnswer.SKIPPED


def _newest(*times_ms: int | None, upto_ms: int) -> int | None:
    return max((one for one in times_ms if one is not None and one <= upto_ms), default=None)


def _with_beats(row: ScheduleRow, beats: dict[str, list[str]], everybody: list[str]) -> ScheduleRow:
    names = everybody if row.origin == "file" else beats.get(row.entry, [])
    return replace(row, beats=tuple(sorted(names)))
