"""What operators may see: counts, lists, one job whole, dead letters, queues, workers, schedule.

The command line and the consoles read through this module and no other. It stands on a Backend
alone, turns what that says into what people ask for (arguments decoded, the history of a job with
its success, who serves a queue), and refuses to change anything: acting is `operations`. Nothing
is escaped or cut here; whoever shows it does that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sqlqueue import envelope, failure_groups, plain_json
from sqlqueue.activity import Activity, ActivityMemory, Bin, Bucket, Spread
from sqlqueue.backend import Size
from sqlqueue.config import Settings
from sqlqueue.errors import JobNotFound, UndecodableMessage
from sqlqueue.failure_groups import DeadGroup, ErrorGroup
from sqlqueue.scheduled import Scheduled, scheduled
from sqlqueue.text import HIDDEN
from sqlqueue_transport.clock import SYSTEM_CLOCK
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.log_guard import LIMIT_BYTES
from sqlqueue_transport.reading import JobFilter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlqueue.backend import Backend, WorkerRow
    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.listing import ErrorRow
    from sqlqueue_transport.reading import AttemptRow, AuditRow, JobDetail, JobRow, Pause
    from sqlqueue_transport.schedules import TickRow

__all__ = [
    "MOST_ON_A_PAGE",
    "Activity",
    "Arguments",
    "AuditPage",
    "Bin",
    "Bucket",
    "Call",
    "Counted",
    "DeadGroup",
    "ErrorGroup",
    "Failure",
    "History",
    "Inspection",
    "Job",
    "JobFilter",
    "Page",
    "Queue",
    "Scheduled",
    "Size",
    "Spread",
    "State",
    "Stats",
    "Worker",
]

MOST_ON_A_PAGE: Final = 1000
_DEAD: Final = JobFilter(states=(State.PERMANENTLY_FAILED,))
_ERRORS_AT_ONCE: Final = 5000  # jobs of which little is read
_MOST_ATTEMPTS: Final = 5000  # that errors_since looks at


@dataclass(frozen=True, slots=True)
class Stats:
    """Be the numbers of the whole queue file at one moment.

    Every state is there, also with zero. `oldest_pending_s` is None when nothing waits. `alive`
    counts worker processes (not their children) whose presence is known, `slots` the jobs they
    run at once, together. `paused` are the paused queues, with how many messages wait in each.
    """

    states: Mapping[State, int]
    stalled: int
    oldest_pending_s: float | None
    alive: int
    slots: int
    log_bytes: int
    paused: Mapping[str, int]

    @property
    def log_has_grown(self) -> bool:
        """Say whether the write-ahead log is larger than it would be if nobody read for long."""
        return self.log_bytes > LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class Page:
    """Be a stretch of a list, newest first. `next` is the cursor of the page after; None: the end.

    `is_complete` is False where the time for looking was over before the page was full: there may be
    more, and `next` goes on where it stopped.
    """

    items: tuple[JobRow, ...]
    next: str | None
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class Counted:
    """Be a count; `is_complete` is False where there may be more."""

    count: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Be a stretch of what operators did, newest first; `next` as in Page."""

    items: tuple[AuditRow, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Be an error as an attempt or a job keeps it; `traceback` None where there is none."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Be one ended attempt that counted; the successful one, too. `run` counts requeues from 1.

    `outcome` is done, failed, lost, timed_out, rejected or cancelled.
    """

    run: int
    attempt: int
    worker: str | None
    started_at_ms: int | None
    ended_at_ms: int | None
    outcome: str
    error: Failure | None


@dataclass(frozen=True, slots=True)
class Arguments:
    """Be a message's body read as a call; `problem` says why it could not be read, "" if it was.

    Those of a sensitive task are None, and `is_hidden`: they are handed out to nobody.
    """

    args: tuple[object, ...] | None
    kwargs: Mapping[str, object] | None
    problem: str = ""
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class CeleryResult:
    """Be what Celery's result backend keeps of a job: Celery's own state, result and error.

    `result` is None where there is none, and where it is not JSON that we read.
    """

    state: str
    result: object
    error: Failure | None


@dataclass(frozen=True, slots=True)
class Job:
    """Be one job whole. `others` are older messages with the same job id, newest first.

    `celery` is None for a job whose result Celery did not store in this file. Of one that
    `is_sensitive` arguments, result and what errors say are left out.
    """

    row: JobRow
    max_attempts: int
    arguments: Arguments
    result: object
    error: Failure | None
    history: tuple[History, ...]
    audit: tuple[AuditRow, ...]
    others: tuple[int, ...]
    celery: CeleryResult | None
    is_sensitive: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Be a job with its arguments, as checks of an application want it.

    `args` and `kwargs` are empty where the body cannot be read, and of sensitive tasks: what a check
    says is shown.
    """

    id: str
    message_id: int
    state: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Queue:
    """Be one queue. `later` counts scheduled and failed messages, `servers` the workers alive on it.

    `pause` is None for a queue that runs.
    """

    name: str
    pending: int
    later: int
    processing: int
    oldest_pending_s: float | None
    servers: int
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """Be one consuming process and what it runs now; `row.kind` is worker, child, beat or client."""

    row: WorkerRow
    jobs: tuple[JobRow, ...]


class Inspection:
    """Answer operators' questions; one object belongs to one thread, as its backend does.

    Every method may raise NotAvailable (a broker that cannot look) and the transport's errors.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        settings: Settings | None = None,
        max_attempts: Mapping[str, int] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        shows_sensitive: bool = False,
    ) -> None:
        """Look at a backend. `max_attempts` are those of an application's tasks, by task name.

        `shows_sensitive` is for `testing`: a test may see what it has published itself.
        """
        self.backend = backend
        self.settings = settings or Settings()
        self._max_attempts = dict(max_attempts or {})
        self._clock = clock
        self._shows_sensitive = shows_sensitive
        self._memory = ActivityMemory()

    @property
    def now_ms(self) -> int:
        """Return the time that ages are reckoned from."""
        return self._clock.wall_ms()

    def stats(self) -> Stats:
        """Count jobs and workers."""
        counts = self.backend.counts()
        alive = [
            row for row in self.backend.workers() if row.kind == "worker" and row.is_known_alive
        ]
        return Stats(
            states=counts.states,
            stalled=counts.stalled,
            oldest_pending_s=self._age_s(counts.oldest_pending_ms),
            alive=len(alive),
            slots=sum(row.slots for row in alive),
            log_bytes=self.backend.log_bytes(),
            paused=self.backend.paused(),
        )

    def jobs(
        self,
        chosen: JobFilter,
        *,
        limit: int = 50,
        cursor: str | None = None,
        budget_s: float | None = None,
    ) -> Page:
        """List jobs newest first, at most `limit` (1 to 1000).

        What no index finds (a task, a worker, a piece of an error or of a body) is looked for in all
        jobs, a second or so for a million. With `budget_s` that ends after so many seconds, with the
        page as far as it came. Raises ValueError for a cursor that no page gave out.
        """
        limit = max(1, min(limit, MOST_ON_A_PAGE))
        # One more than is shown tells whether a next page would have anything on it.
        found = self.backend.lists.walk(
            chosen, limit=limit + 1, before=_before(cursor), budget_s=budget_s
        )
        shown = tuple(found.rows[:limit])
        if len(found.rows) > limit:
            return Page(shown, str(shown[-1].message_id))
        if found.seen_to:
            return Page(shown, str(found.seen_to), is_complete=False)
        return Page(shown, None)

    def again(self, message_ids: Sequence[int]) -> tuple[JobRow, ...]:
        """Return these jobs as they are now, in the order given; those that are gone are left out."""
        return tuple(self.backend.lists.again(message_ids))

    def count(
        self, chosen: JobFilter, *, most: int = 100_000, budget_s: float | None = None
    ) -> Counted:
        """Count the jobs of a filter, up to `most`, for at most `budget_s` seconds.

        States and a queue are answered at once and exactly, however many there are.
        """
        return Counted(*self.backend.lists.count(chosen, most=most, budget_s=budget_s))

    def newer(self, chosen: JobFilter, than: int, *, most: int = 1000) -> int:
        """Count the jobs of a filter that came after that message id, up to `most`."""
        count, _ = self.backend.lists.count(chosen, most=most, above=max(than, 0))
        return count

    def active(self, *, most: int = 100) -> tuple[JobRow, ...]:
        """List what is processing, what has run longest in front."""
        return tuple(self.backend.lists.longest_running(limit=most))

    def activity(self, window_s: float, *, buckets: int = 60) -> Activity:
        """Return figures of the last `window_s` seconds, in buckets that are closed.

        The first call for a window may take a tenth of a second with a million jobs in it. What cannot
        change any more is kept in this object, so later ones take milliseconds; jobs that are pruned
        or requeued meanwhile stay counted there.
        """
        return self._memory.activity(self.backend.activity, self.now_ms, window_s, buckets)

    def errors_since(self, window_s: float, *, most: int = 20) -> list[ErrorGroup]:
        """Group the failed attempts of the last `window_s` seconds, the largest group first.

        Of more than 5,000 attempts the newest are taken.
        """
        since_ms = self.now_ms - round(window_s * 1000)
        found = self.backend.activity.newest_failed(since_ms, most=_MOST_ATTEMPTS)
        return failure_groups.error_groups(found)[:most]

    def audit(self, *, limit: int = 50, cursor: str | None = None) -> AuditPage:
        """List what operators did, newest first, at most `limit` (1 to 1000).

        Raises ValueError for a cursor that no page gave out.
        """
        limit = max(1, min(limit, MOST_ON_A_PAGE))
        rows = self.backend.audit(limit=limit + 1, before=_before(cursor))
        shown = rows[:limit]
        return AuditPage(
            tuple(row for _, row in shown), str(shown[-1][0]) if len(rows) > limit else None
        )

    def size(self) -> Size:
        """Return how many bytes the file and its log take, and the disk has left."""
        return self.backend.size()

    def every_job(self, chosen: JobFilter) -> Iterator[JobRow]:
        """Yield all jobs of a filter, newest first, a page at a time: no reader stays long.

        Jobs that change meanwhile are yielded as they were, at most once.
        """
        before: int | None = None
        while before != 0:
            found = self.backend.lists.walk(chosen, limit=MOST_ON_A_PAGE, before=before)
            yield from found.rows
            before = found.seen_to

    def job(self, name: str) -> Job:
        """Return one job whole by its id (the newest message that carries it), or by "#message id".

        Raises JobNotFound.
        """
        message_ids = self.message_ids(name)
        detail = self.backend.job(message_ids[0])
        if detail is None:  # pruned between the two questions
            raise JobNotFound(name)
        others = tuple(message_ids[1:])
        if name.startswith("#") and detail.row.job_id is not None:
            same = self.backend.message_ids_of(detail.row.job_id)
            others = tuple(other for other in same if other != detail.row.message_id)
        return Job(
            row=detail.row,
            max_attempts=self.max_attempts_of(detail.row),
            arguments=self._arguments(detail),
            result=None if self._hides(detail) else _read_result(detail.result),
            error=_newest_error(detail),
            history=_history(detail),
            audit=detail.audit,
            others=others,
            celery=_celery_result(detail),
            is_sensitive=detail.is_sensitive,
        )

    def message_ids(self, name: str) -> list[int]:
        """Return the messages an operator means by a job id or "#message id", newest first.

        Raises JobNotFound when there is none.
        """
        if match := re.fullmatch(r"#([0-9]{1,18})", name):
            found = [int(match[1])] if self.backend.job(int(match[1])) else []
        else:
            found = self.backend.message_ids_of(name)
        if not found:
            raise JobNotFound(name)
        return found

    def jobs_with_arguments(self, *, task: str) -> Iterator[Call]:
        """Yield every job of a task with its arguments, newest first, a page at a time."""
        for row in self.every_job(JobFilter(task=task)):
            detail = self.backend.job(row.message_id)
            if detail is not None:
                arguments = self._arguments(detail)
                yield Call(
                    id=detail.row.name,
                    message_id=row.message_id,
                    state=detail.row.state.value,
                    args=arguments.args or (),
                    kwargs=arguments.kwargs or {},
                )

    def arguments_of(self, message_ids: Sequence[int]) -> dict[int, Arguments]:
        """Return the arguments of these jobs by message id; gone ones are left out.

        A read each, and a body each to parse: for a page of a list, not for a queue.
        """
        details = map(self.backend.job, message_ids)
        return {
            detail.row.message_id: self._arguments(detail)
            for detail in details
            if detail is not None
        }

    def max_attempts_of(self, row: JobRow) -> int:
        """Return how many attempts a job has: its own number, its task's, or the setting's."""
        if row.max_attempts is not None:
            return row.max_attempts
        return self._max_attempts.get(row.task or "", self.settings.task_max_attempts)

    def dead_groups(self, chosen: JobFilter = _DEAD) -> list[DeadGroup]:
        """Group the dead letters, or what else a filter finds, by error, the largest group first."""
        return failure_groups.dead_groups(self._every_error(chosen))

    def jobs_of_group(self, group: DeadGroup, chosen: JobFilter = _DEAD) -> Iterator[JobRow]:
        """Yield the jobs of a group that `dead_groups` made of this filter, as they are now."""
        if group.type and chosen.error is None:
            chosen = replace(chosen, error=f"{group.type}: ")  # leaves most of the others out
        for row in self.every_job(chosen):
            if failure_groups.likeness(row.error_message or "") == group.text and group.type == (
                row.error_type or ""
            ):
                yield row

    def _every_error(self, chosen: JobFilter) -> Iterator[ErrorRow]:
        before: int | None = None
        while rows := self.backend.lists.errors(chosen, limit=_ERRORS_AT_ONCE, before=before):
            yield from rows
            before = rows[-1].message_id

    def queues(self) -> list[Queue]:
        """List queues with the number of living workers that serve each."""
        serving: dict[str, int] = {}
        for row in self.backend.workers():
            if row.is_known_alive and (row.kind == "worker" or row.parent_id is None):
                for queue in row.queues:
                    serving[queue] = serving.get(queue, 0) + 1
        return [
            Queue(
                name=row.name,
                pending=row.pending,
                later=row.later,
                processing=row.processing,
                oldest_pending_s=self._age_s(row.oldest_pending_ms),
                servers=serving.get(row.name, 0),
                pause=row.pause,
            )
            for row in self.backend.queues()
        ]

    def workers(self) -> list[Worker]:
        """List the living processes, each worker before its children, with what they run.

        Other programs are among them as long as they consume from the file.
        """
        # A program that only published, or waited for a result, is none.
        rows = [row for row in self.backend.workers() if row.kind != "client" or row.queues]
        wanted = sorted({message_id for row in rows for message_id in row.running})
        jobs: dict[int, JobRow] = {}
        for start in range(0, len(wanted), MOST_ON_A_PAGE // 2):
            some = JobFilter(message_ids=tuple(wanted[start : start + MOST_ON_A_PAGE // 2]))
            jobs.update((row.message_id, row) for row in self.every_job(some))
        known = {row.id for row in rows}
        ordered = sorted(
            rows,
            key=lambda row: (
                row.parent_id if row.parent_id in known and row.parent_id else row.id,
                row.id,
            ),
        )
        return [
            Worker(row, tuple(jobs[message] for message in row.running if message in jobs))
            for row in ordered
        ]

    def schedule(self) -> list[Scheduled]:
        """List the entries of the schedule: those of the file, and those that beats described."""
        beats = sum(row.kind == "beat" and row.is_known_alive for row in self.backend.workers())
        return [scheduled(row, beats=beats) for row in self.backend.schedules.rows()]

    def ticks(self, entries: Sequence[Scheduled], *, most: int = 20) -> list[TickRow]:
        """List the newest ticks of these entries, at most so many of each, the newest first."""
        found = [
            tick
            for one in entries
            for tick in self.backend.schedules.ticks(one.row.entry, most=most)
        ]
        return sorted(found, key=lambda tick: (-tick.due_ms, tick.entry))

    def _age_s(self, since_ms: int | None) -> float | None:
        # Two clocks, or a due time just ahead: an age is never negative.
        return None if since_ms is None else max(self.now_ms - since_ms, 0) / 1000

    def _hides(self, detail: JobDetail) -> bool:
        return detail.is_sensitive and not self._shows_sensitive

    def _arguments(self, detail: JobDetail) -> Arguments:
        if self._hides(detail):
            return Arguments(None, None, is_hidden=True)
        try:
            call = envelope.parse(
                json.loads(detail.headers),
                detail.body,
                content_type=detail.content_type,
                content_encoding=detail.content_encoding,
                max_bytes=self.settings.max_message_bytes,
            )
        except UndecodableMessage as error:
            return Arguments(None, None, error.reason)
        except (ValueError, RecursionError):
            return Arguments(None, None, "its headers cannot be read")
        return Arguments(call.args, call.kwargs)


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", cursor):
        raise ValueError("that is no cursor: give the 'next' of an earlier page")
    return int(cursor)


def _read_result(text: str | None) -> object:
    """Return a stored result, None where there is none. Only a foreign hand writes an unreadable one."""
    try:
        return None if text is None else plain_json.read(text.encode())
    except plain_json.Unreadable:
        return None


def _celery_result(detail: JobDetail) -> CeleryResult | None:
    """Read what Celery stored, in its own words (celery.backends.base, 5.7).

    Of an error it keeps type and text as a result. What is compressed or in another format is not
    unpacked: its state is known all the same.
    """
    if detail.celery_result is None:
        return None
    state, encoded = detail.celery_result
    try:
        found = plain_json.read(encoded)
    except plain_json.Unreadable:
        found = None
    meta = found if isinstance(found, dict) else {}
    result, traceback = meta.get("result"), meta.get("traceback")
    if not isinstance(result, dict) or "exc_type" not in result:
        return CeleryResult(state, None if detail.is_sensitive else result, None)
    if detail.is_sensitive:
        return CeleryResult(state, None, Failure(str(result["exc_type"]), HIDDEN))
    text = result.get("exc_message")
    if isinstance(text, list):
        text = ", ".join(map(str, text))
    error = Failure(
        str(result["exc_type"]),
        "" if text is None else str(text),
        traceback if isinstance(traceback, str) else None,
    )
    return CeleryResult(state, None, error)


def _failure(kind: str | None, message: str | None, traceback: str | None) -> Failure | None:
    return None if kind is None else Failure(kind, message or "", traceback)


def _newest_error(detail: JobDetail) -> Failure | None:
    """Return a job's error with its traceback.

    The row has type and text; the traceback stands in the attempt that left them, if an attempt
    did: an operator's decision has none.
    """
    row = detail.row
    for attempt in reversed(detail.attempts):
        if attempt.run == row.run and attempt.error_type == row.error_type:
            same = attempt.error_message == row.error_message
            return _failure(row.error_type, row.error_message, attempt.traceback if same else None)
    return _failure(row.error_type, row.error_message, None)


def _history(detail: JobDetail) -> tuple[History, ...]:
    row = detail.row
    ended = [_ended(attempt) for attempt in detail.attempts]
    if row.state is State.DONE:
        # The newest success is the message row itself: a table row for each would cost every job
        # a second write.
        ended.append(
            History(
                run=row.run,
                attempt=row.attempts,
                worker=row.worker,
                started_at_ms=row.started_at_ms,
                ended_at_ms=row.finished_at_ms,
                outcome="done",
                error=None,
            )
        )
    return tuple(ended)


def _ended(attempt: AttemptRow) -> History:
    return History(
        run=attempt.run,
        attempt=attempt.attempt,
        worker=attempt.worker,
        started_at_ms=attempt.started_at_ms,
        ended_at_ms=attempt.ended_at_ms,
        outcome=attempt.outcome,
        error=_failure(attempt.error_type, attempt.error_message, attempt.traceback),
    )
