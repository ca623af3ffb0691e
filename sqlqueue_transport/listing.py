"""Lists of jobs, newest first, and how many there would be. Reads only.

Lists are paged by message id (keyset paging: an offset deep into a million rows takes 50 ms, a key
0.1). There are three ways to the rows of a filter, and the first that fits is taken:

* It names few: ids, or a search that meets ids. They are looked up.
* It names rare states: each state has a partial index, so that up to 5,000 ids are taken from there
  and sorted. These two are one read transaction.
* Otherwise the file is walked from the newest id down, a block of ids in each read transaction, so
  that no reader stays long and the log can be emptied in between. The tally (see `counting`) says in
  which blocks nothing of the wanted states and queue is; they are stepped over. So a page of what
  is common is filled from the first block, and only what no index and no count knows (a piece of an
  error, a task, a text in a body) walks through all of them: a second or so for a million rows,
  which is why a walk can be given a budget, and goes on at its next call.

Between two blocks rows may change: a list is what each row was when it was looked at.
"""

from __future__ import annotations

import functools
import json
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlqueue_transport.counting import tally
from sqlqueue_transport.lifecycle import FINISHED, State
from sqlqueue_transport.messages import LARGEST_ID, storable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.consumers import Consumers
    from sqlqueue_transport.database import Database

__all__ = ["ErrorRow", "JobFilter", "JobRow", "Listing", "Progress", "Stretch"]

BLOCK: Final = 16_384  # ids, as in the tally of schema.sql
_FEW: Final = 5000  # ids that are rather sorted than walked for
_AT_ONCE: Final = 500  # ids in one statement
_SHORTEST_PREFIX: Final = 4

JOB_COLUMNS: Final = """
SELECT
  m.id, m.job_id, m.task, m.queue, m.state, m.priority, m.run, m.attempts, m.max_attempts,
  m.delivery, m.enqueued_at_ms, m.due_at_ms, m.expires_at_ms, m.started_at_ms, m.finished_at_ms,
  w.name, m.error_type, m.error_message, m.stop_asked_at_ms, m.kill_at_ms,
  p.done, p.total, p.note, p.at_ms, m.lease_until_ms
"""
# NOT INDEXED: the ids say which rows, whatever SQLite thinks of the other indexes.
FROM_MESSAGES: Final = """
FROM message AS m NOT INDEXED
LEFT JOIN worker AS w ON w.id = m.worker_id
LEFT JOIN progress AS p ON p.message_id = m.id AND p.delivery = m.delivery
WHERE """
_COUNT = "SELECT count(*)"
_ERRORS = """
SELECT m.id, m.job_id, m.task, m.error_type, m.error_message, m.finished_at_ms
"""
_NEWEST_FIRST = " ORDER BY m.id DESC LIMIT :limit"
_IN_BLOCK = " AND m.id >= :low AND m.id < :high"
_NEWEST = "SELECT max(id) FROM message"
_COUNTED_UPTO = "SELECT upto FROM counted WHERE only = 1"
_BLOCKS = """
SELECT DISTINCT block FROM tally
WHERE messages <> 0 AND (is_job = 1 OR state = 'permanently_failed')
"""
# Each repeats the predicate of its index to the letter.
_PENDING_IDS = "SELECT id FROM message WHERE state = 'pending' LIMIT :few"
_PENDING_IDS_OF_QUEUE = """
SELECT id FROM message WHERE state = 'pending' AND queue = :queue LIMIT :few
"""
_LATER_IDS = "SELECT id FROM message WHERE state IN ('scheduled', 'failed') LIMIT :few"
_LATER_IDS_OF_QUEUE = """
SELECT id FROM message WHERE state IN ('scheduled', 'failed') AND queue = :queue LIMIT :few
"""
_PROCESSING_IDS = "SELECT id FROM message WHERE state = 'processing' LIMIT :few"
_STALLED_IDS = """
SELECT id FROM message WHERE state = 'processing' AND lease_until_ms <= :lease_now_ms
"""
_FINISHED_IDS = """
SELECT id FROM message
WHERE finished_at_ms IS NOT NULL
  AND state = :state AND finished_at_ms >= :since_ms AND finished_at_ms <= :until_ms
LIMIT :few
"""
_LONGEST_RUNNING_IDS = """
SELECT id FROM message WHERE state = 'processing' ORDER BY started_at_ms, +id LIMIT :few
"""
_IDS_OF_JOB = "SELECT id FROM message WHERE job_id = :job_id AND job_id IS NOT NULL LIMIT :few"
_IDS_OF_PREFIX = """
SELECT id FROM message
WHERE job_id >= :job_id AND job_id < :job_id_end AND job_id IS NOT NULL
LIMIT :few
"""
# What a filter's texts mean, by their names.
_BY_TEXT = {
    "queue": "m.queue = :queue",
    "task": "m.task = :task",
    "worker": "(w.name = :worker OR substr(w.name, 1, length(:worker) + 1) = :worker || '/')",
    "error": "instr(m.error_type || ': ' || m.error_message, :error) > 0",
    "celery_state": """EXISTS (
      SELECT 1 FROM result AS r
      WHERE r.key = 'celery-task-meta-' || m.job_id AND r.status = :celery_state
    )""",
}
_LAST_CHANGE = "coalesce(m.finished_at_ms, m.started_at_ms, m.enqueued_at_ms)"
_HAS_PREFIX = "m.job_id >= :job_id AND m.job_id < :job_id_end"
# A text is looked for as it is, and as JSON writes it. What is found in a body tells something of it,
# so those of sensitive messages are left out (messages.SENSITIVE_HEADER). The mark is looked for as
# text: headers that a foreign hand wrote need not be JSON, and must not end the search.
_IN_TEXTS = """(
  instr(m.task, :search) > 0
  OR instr(m.job_id, :search) > 0
  OR (instr(m.headers, '"sqlqueue-sensitive"') = 0 AND (
    instr(m.body, :search_body) > 0 OR instr(m.body, :search_json) > 0
    OR (m.body IS NULL AND EXISTS (
      SELECT 1 FROM body AS b
      WHERE b.message_id = m.id
        AND (instr(b.content, :search_body) > 0 OR instr(b.content, :search_json) > 0)
    ))
  ))
)"""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Say which messages are meant; None or empty means any. Times are UTC milliseconds.

    `error` is a piece of the newest error's "Type: message", `celery_state` what Celery's result
    backend says of the job, FAILURE for example. `since_ms` and `until_ms` (both included) are about
    when a job ended, or started, or came.

    `search` is what somebody typed into a box: a job id, or its first four characters or more, or
    "#" and a message id; if no job has such an id, a piece of an id, of a task's name or of a body as
    it is stored; the bodies of sensitive messages are left out.
    """

    states: tuple[State, ...] = ()
    queue: str | None = None
    task: str | None = None
    worker: str | None = None
    error: str | None = None
    since_ms: int | None = None
    job_ids: tuple[str, ...] = ()
    message_ids: tuple[int, ...] = ()
    stalled: bool = False
    celery_state: str | None = None
    search: str | None = None
    until_ms: int | None = None

    @property
    def is_empty(self) -> bool:
        """Say whether every message matches."""
        return self == JobFilter()

    @property
    def is_counted(self) -> bool:
        """Say whether the tally answers how many match: nothing but states and a queue is asked."""
        return self == JobFilter(states=self.states, queue=self.queue)


@dataclass(frozen=True, slots=True)
class Progress:
    """Be how far a job's newest delivery said it is; `total` None: it does not know."""

    done: float
    total: float | None
    note: str
    at_ms: int

    @property
    def part(self) -> float | None:
        """Return how much of it is done, from 0 to 1; None where nobody knows."""
        return min(self.done / self.total, 1.0) if self.total else None


@dataclass(frozen=True, slots=True)
class JobRow:
    """Be one job as lists show it. `attempts` includes the one that runs now.

    `max_attempts` None means the consumer's default. `lease_left_ms` is None unless processing,
    and negative when the job is stalled. `stop_asked_at_ms` says since when its delivery is, or was,
    asked to stop, `kill_at_ms` from when on by force. `progress` is None until it says something.
    """

    message_id: int
    job_id: str | None
    task: str | None
    queue: str
    state: State
    priority: int
    run: int
    attempts: int
    max_attempts: int | None
    delivery: int
    enqueued_at_ms: int
    due_at_ms: int | None
    expires_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    worker: str | None
    error_type: str | None
    error_message: str | None
    stop_asked_at_ms: int | None = None
    kill_at_ms: int | None = None
    progress: Progress | None = None
    lease_left_ms: int | None = None
    is_started: bool = False

    @property
    def name(self) -> str:
        """Return what people are shown and may say for it: the job id, or "#" and the message id."""
        return self.job_id or f"#{self.message_id}"


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Be the error a job shows, without the rest of it."""

    message_id: int
    job_id: str | None
    task: str | None
    error_type: str | None
    error_message: str | None
    finished_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Be what a walk has found, newest first.

    Everything of the filter with a message id of `seen_to` or more was found, 0 meaning that the walk
    is at its end.
    """

    rows: list[JobRow]
    seen_to: int


@dataclass(frozen=True, slots=True)
class _Portion:
    """Be what is looked at at once: the lowest id, and the clause and values that mean it."""

    low: int
    clause: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Way:
    """Be how to get to the rows of a filter: by ids, newest first, or (None) through blocks."""

    where: str
    values: dict[str, object]
    ids: tuple[int, ...] | None
    newest: int
    upto: int
    blocks: tuple[int, ...]  # below upto, the newest first

    def look(
        self, connection: sqlite3.Connection, *, columns: str, portion: _Portion, limit: int
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a portion, newest first."""
        query = columns + FROM_MESSAGES + self.where + portion.clause + _NEWEST_FIRST
        values = {**self.values, **portion.values, "limit": limit}
        return connection.execute(query, values).fetchall()

    def count(self, connection: sqlite3.Connection, *, portion: _Portion) -> int:
        """Count the rows of a portion."""
        query = _COUNT + FROM_MESSAGES + self.where + portion.clause
        found: int = connection.execute(query, {**self.values, **portion.values}).fetchone()[0]
        return found

    def portions(self, before: int | None, above: int) -> Iterator[_Portion]:
        """Yield the portions from the newest to the oldest, of ids below `before`, and `above`."""
        top = self.newest + 1 if before is None else min(before, self.newest + 1)
        if self.ids is not None:
            ids = [one for one in self.ids if above < one < top]
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                values: dict[str, Any] = {}
                names = bind_each(values, "id", some)
                yield _Portion(some[-1], " AND m.id IN (" + names + ")", values)
            return
        while top > self.upto and top > above + 1:
            low = max(self.upto, top - BLOCK, above + 1)
            yield _Portion(low, _IN_BLOCK, {"low": low, "high": top})
            top = low
        for block in self.blocks:
            low, high = max(block * BLOCK, above + 1), min((block + 1) * BLOCK, top)
            if low < high:
                yield _Portion(low, _IN_BLOCK, {"low": low, "high": high})


class Listing:
    """List jobs and count what a list would hold; safe to share between threads."""

    def __init__(self, database: Database, clock: Clock, consumers: Consumers) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._consumers = consumers

    def jobs(
        self, chosen: JobFilter, *, limit: int = 50, before: int | None = None
    ) -> list[JobRow]:
        """List jobs newest first, at most `limit`, those with a message id below `before`."""
        return self.walk(chosen, limit=limit, before=before).rows

    def walk(
        self,
        chosen: JobFilter,
        *,
        limit: int,
        before: int | None = None,
        budget_s: float | None = None,
    ) -> Stretch:
        """List jobs as `jobs` does, and stop after `budget_s` seconds with what was found.

        One portion is always looked at, so that whoever goes on gets on.
        """
        rows, seen_to = self._collected(
            JOB_COLUMNS, chosen, limit=limit, before=before, budget_s=budget_s
        )
        return Stretch(self.job_rows(rows), seen_to)

    def errors(self, chosen: JobFilter, *, limit: int, before: int | None = None) -> list[ErrorRow]:
        """List jobs as `jobs` does, but only what is to know of their errors."""
        rows, _ = self._collected(_ERRORS, chosen, limit=limit, before=before, budget_s=None)
        return [ErrorRow(*row) for row in rows]

    def count(
        self,
        chosen: JobFilter,
        *,
        most: int,
        above: int = 0,
        budget_s: float | None = None,
    ) -> tuple[int, bool]:
        """Count the jobs of a filter with a message id larger than `above`, up to `most`.

        The second answer says whether these are all. Where the tally knows, it is asked, and `most`
        is no limit.
        """
        if chosen.is_counted and not above:
            return self._database.read(lambda c: _tallied(c, chosen)), True
        give_up_s = _deadline_s(budget_s)
        way = self._database.read(lambda c: self._way(c, chosen))
        count, looked = 0, False
        for portion in way.portions(None, above):
            if count >= most or (looked and time.monotonic() >= give_up_s):
                return min(count, most), False
            looked = True
            count += self._database.read(functools.partial(way.count, portion=portion))
        return min(count, most), count <= most

    def again(self, message_ids: Sequence[int]) -> list[JobRow]:
        """Return these jobs as they are now, in the order given; those that are gone are left out."""
        found: dict[int, JobRow] = {}
        for start in range(0, len(message_ids), _AT_ONCE):
            chosen = JobFilter(message_ids=tuple(message_ids[start : start + _AT_ONCE]))
            found.update((row.message_id, row) for row in self.jobs(chosen, limit=_AT_ONCE))
        return [found[one] for one in message_ids if one in found]

    def longest_running(self, *, limit: int) -> list[JobRow]:
        """List what is processing, what was started first in front."""
        rows = self._database.read(
            lambda c: c.execute(_LONGEST_RUNNING_IDS, {"few": limit}).fetchall()
        )
        found = self.again([message_id for (message_id,) in rows])
        return [row for row in found if row.state is State.PROCESSING]

    def job_rows(self, rows: Sequence[tuple[Any, ...]]) -> list[JobRow]:
        """Make jobs of rows of `JOB_COLUMNS`, with what their workers noted of them."""
        lease_now_ms = self._clock.lease_ms()
        running = self._consumers.running() if rows else {}
        found = []
        for given in rows:
            *fields, done, total, note, at_ms, lease_until_ms = given
            row = JobRow(*fields)
            state = State(row.state)
            noted = running.get(row.message_id)
            # The count in the row is raised when an attempt ends; the one that runs is noted.
            is_started = (
                noted is not None
                and noted[0].delivery == row.delivery
                and state is State.PROCESSING
            )
            row = replace(
                row,
                state=state,
                attempts=row.attempts + is_started,
                progress=None if at_ms is None else Progress(done, total, note or "", at_ms),
                lease_left_ms=None if lease_until_ms is None else lease_until_ms - lease_now_ms,
                is_started=is_started,
            )
            found.append(row)
        return found

    def _collected(
        self,
        columns: str,
        chosen: JobFilter,
        *,
        limit: int,
        before: int | None,
        budget_s: float | None,
    ) -> tuple[list[tuple[Any, ...]], int]:
        give_up_s = _deadline_s(budget_s)

        def begin(connection: sqlite3.Connection) -> tuple[_Way, list[tuple[Any, ...]]]:
            way = self._way(connection, chosen)
            found: list[tuple[Any, ...]] = []
            # Few ids are looked up at once: who asks for one job again and again pays for one look.
            for portion in way.portions(before, 0) if way.ids is not None else ():
                if len(found) >= limit:
                    break
                found += way.look(
                    connection, columns=columns, portion=portion, limit=limit - len(found)
                )
            return way, found

        way, rows = self._database.read(begin)
        if way.ids is not None:
            return rows, rows[-1][0] if rows and len(rows) >= limit else 0
        for portion in way.portions(before, 0):
            left = limit - len(rows)
            rows += self._database.read(
                functools.partial(way.look, columns=columns, portion=portion, limit=left)
            )
            if len(rows) >= limit:
                return rows, rows[-1][0] if rows else portion.low
            if time.monotonic() >= give_up_s:
                return rows, portion.low
        return rows, 0

    def _way(self, connection: sqlite3.Connection, chosen: JobFilter) -> _Way:
        lease_now_ms = self._clock.lease_ms()
        where, values = _where(chosen, lease_now_ms)
        (newest,) = connection.execute(_NEWEST).fetchone()
        ids = _named(connection, chosen, lease_now_ms)
        if ids is None and chosen.search is not None:
            values |= _search_values(chosen.search)
            ids, clause = _searched(connection, chosen.search, values)
            where += clause
        if ids is None and chosen.states:
            ids = _rare(connection, chosen)
        if ids is not None:
            ids = sorted(set(ids), reverse=True)
            return _Way(where, values, tuple(ids), newest or 0, 0, ())
        (upto,) = connection.execute(_COUNTED_UPTO).fetchone()
        return _Way(where, values, None, newest or 0, upto, _blocks(connection, chosen))


def _tallied(connection: sqlite3.Connection, chosen: JobFilter) -> int:
    return sum(
        count
        for (queue, state, is_job), count in tally(connection).items()
        if (is_job or state is State.PERMANENTLY_FAILED)
        and (not chosen.states or state in chosen.states)
        and chosen.queue in {None, queue}
    )


def _deadline_s(budget_s: float | None) -> float:
    return float("inf") if budget_s is None else time.monotonic() + budget_s


def _named(
    connection: sqlite3.Connection, chosen: JobFilter, lease_now_ms: int
) -> list[int] | None:
    """Return the ids that a filter names, whatever else it asks of them; None: it names none."""
    if chosen.message_ids:
        return [one for one in chosen.message_ids if 0 < one <= LARGEST_ID]
    if chosen.job_ids:
        found = []
        for job_id in chosen.job_ids:
            found += _ids(connection, _IDS_OF_JOB, {"job_id": storable(job_id), "few": -1})
        return found
    if chosen.stalled:
        return _ids(connection, _STALLED_IDS, {"lease_now_ms": lease_now_ms})
    return None


def _searched(
    connection: sqlite3.Connection, text: str, values: dict[str, Any]
) -> tuple[list[int] | None, str]:
    """Return the ids that a search means, or (None) the clause to walk with."""
    if match := re.fullmatch(r"#([0-9]{1,18})", text):
        return [int(match[1])], ""
    if found := _ids(connection, _IDS_OF_JOB, {**values, "few": -1}):
        return found, ""
    if len(text) >= _SHORTEST_PREFIX:
        found = _ids(connection, _IDS_OF_PREFIX, {**values, "few": _FEW + 1})
        if found:
            return (found, "") if len(found) <= _FEW else (None, " AND " + _HAS_PREFIX)
    return None, " AND " + _IN_TEXTS


def _rare(connection: sqlite3.Connection, chosen: JobFilter) -> list[int] | None:
    """Return the ids of all that is in a filter's states, and perhaps some more; None: many are."""
    few = {"few": _FEW + 1, "queue": storable(chosen.queue)}
    found: list[int] = []
    if State.PENDING in chosen.states:
        query = _PENDING_IDS if chosen.queue is None else _PENDING_IDS_OF_QUEUE
        found += _ids(connection, query, few)
    if len(found) <= _FEW and {State.SCHEDULED, State.FAILED} & {*chosen.states}:
        query = _LATER_IDS if chosen.queue is None else _LATER_IDS_OF_QUEUE
        found += _ids(connection, query, few)
    if len(found) <= _FEW and State.PROCESSING in chosen.states:
        found += _ids(connection, _PROCESSING_IDS, few)
    # Of what is finished, when it ended is when it changed last.
    times = {
        "since_ms": -LARGEST_ID if chosen.since_ms is None else chosen.since_ms,
        "until_ms": LARGEST_ID if chosen.until_ms is None else chosen.until_ms,
    }
    for state in chosen.states:
        if state in FINISHED and len(found) <= _FEW:
            found += _ids(connection, _FINISHED_IDS, {**few, **times, "state": state.value})
    return found if len(found) <= _FEW else None


def _ids(connection: sqlite3.Connection, query: str, values: dict[str, Any]) -> list[int]:
    return [message_id for (message_id,) in connection.execute(query, values).fetchall()]


def _blocks(connection: sqlite3.Connection, chosen: JobFilter) -> tuple[int, ...]:
    """Return the blocks of the tally in which something may be for a filter, the newest first."""
    query, values = _BLOCKS, {}
    if chosen.queue is not None:
        query += " AND queue = :queue"
        values["queue"] = storable(chosen.queue)
    if chosen.states:
        query += " AND state IN (" + bind_each(values, "state", _names(chosen.states)) + ")"
    return tuple(
        block for (block,) in connection.execute(query + " ORDER BY block DESC", values).fetchall()
    )


def _where(chosen: JobFilter, lease_now_ms: int) -> tuple[str, dict[str, Any]]:
    """Put constant clauses together; every value is bound. Ids and search are not among them."""
    # Jobs, and what a worker put to the dead letters because it was none: nothing vanishes unseen.
    clauses = ["(m.task IS NOT NULL OR m.state = 'permanently_failed')"]
    values: dict[str, Any] = {}
    for name, clause in _BY_TEXT.items():
        wanted = getattr(chosen, name)
        if wanted is not None:
            clauses.append(clause)
            values[name] = storable(wanted)
    if chosen.states:
        clauses.append("m.state IN (" + bind_each(values, "state", _names(chosen.states)) + ")")
    if chosen.since_ms is not None:
        clauses.append(_LAST_CHANGE + " >= :since_ms")
        values["since_ms"] = chosen.since_ms
    if chosen.until_ms is not None:
        clauses.append(_LAST_CHANGE + " <= :until_ms")
        values["until_ms"] = chosen.until_ms
    if chosen.job_ids and chosen.message_ids:  # named by the other, and to be both
        job_ids = [storable(one) for one in chosen.job_ids]
        clauses.append("m.job_id IN (" + bind_each(values, "job", job_ids) + ")")
    if chosen.stalled:
        clauses.append("m.state = 'processing' AND m.lease_until_ms <= :lease_now_ms")
        values["lease_now_ms"] = lease_now_ms
    return " AND ".join(clauses), values


def _search_values(text: str) -> dict[str, Any]:
    known = storable(text) or ""
    return {
        "job_id": known,
        "job_id_end": known + "\U0010ffff",
        "search": known,
        "search_body": known.encode(),
        "search_json": json.dumps(known)[1:-1].encode(),
    }


def _names(states: Sequence[State]) -> list[str]:
    return [state.value for state in states]


def bind_each(values: dict[str, Any], name: str, each: Sequence[object]) -> str:
    """Bind each value by a name of its own; return the list of the names."""
    for number, value in enumerate(each):
        values[f"{name}_{number}"] = value
    return ", ".join(f":{name}_{number}" for number in range(len(each)))
