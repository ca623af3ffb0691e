"""What operators may see: counts, lists, one job whole, dead letters, queues, workers, schedule.

The command line and the consoles read through this module and no other. It stands on a Backend
alone, turns what that says into what people ask for (arguments decoded, the history of a job with
its success, who serves a queue), and refuses to change anything: acting is `operations`. Nothing
is escaped or cut here; whoever shows it does that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue import envelope, plain_json
from sqlqueue.config import Settings
from sqlqueue.errors import JobNotFound, UndecodableMessage
from sqlqueue.scheduled import Scheduled, scheduled
from sqlqueue_transport.clock import SYSTEM_CLOCK
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.log_guard import LIMIT_BYTES
from sqlqueue_transport.reading import JobFilter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlqueue.backend import Backend, WorkerRow
    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.reading import AttemptRow, AuditRow, JobDetail, JobRow, Pause

__all__ = [
    "MOST_ON_A_PAGE",
    "Arguments",
    "Call",
    "DeadGroup",
    "Failure",
    "History",
    "Inspection",
    "Job",
    "JobFilter",
    "Page",
    "Queue",
    "Scheduled",
    "State",
    "Stats",
    "Worker",
]

MOST_ON_A_PAGE: Final = 1000
_DEAD: Final = JobFilter(states=(State.PERMANENTLY_FAILED,))


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
    """Be a stretch of a list, newest first. `next` is the cursor of the page after; None: the end."""

    items: tuple[JobRow, ...]
    next: str | None
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class Counted:
    """Be how many jobs match; not complete: at least so many."""

    count: int
    is_complete: bool


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
    """Be a message's body read as a call; `problem` says why it could not be read, "" if it was."""

    args: tuple[object, ...] | None
    kwargs: Mapping[str, object] | None
    problem: str = ""


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

    `celery` is None for a job whose result Celery did not store in this file.
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


@dataclass(frozen=True, slots=True)
class Call:
    """Be a job with its arguments, as checks of an application want it.

    `args` and `kwargs` are empty where the body cannot be read.
    """

    id: str
    message_id: int
    state: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class DeadGroup:
    """Be dead letters that died alike: same type, and same text but for numbers, ids and names.

    `example` is the newest one's id, or "#" and its message id.
    """

    type: str
    text: str
    count: int
    newest_at_ms: int
    tasks: tuple[str, ...]
    example: str


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
    ) -> None:
        """Look at a backend. `max_attempts` are those of an application's tasks, by task name."""
        self.backend = backend
        self.settings = settings or Settings()
        self._max_attempts = dict(max_attempts or {})
        self._clock = clock

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

    def again(self, message_ids: Sequence[int]) -> tuple[JobRow, ...]:
        """Return these jobs as they are now; gone ones are left out."""
        if not message_ids:
            return ()
        found = {
            row.message_id: row for row in self.every_job(JobFilter(message_ids=tuple(message_ids)))
        }
        return tuple(found[one] for one in message_ids if one in found)

    def count(
        self, chosen: JobFilter, *, most: int = 100_000, budget_s: float | None = None
    ) -> Counted:
        """Count the jobs of a filter."""
        count = 0
        for _ in self.every_job(chosen):
            count += 1
            if count >= most:
                return Counted(count, is_complete=False)
        return Counted(count, is_complete=True)

    def newer(self, chosen: JobFilter, than: int, *, most: int = 1000) -> int:
        """Count the jobs of a filter that came after a message."""
        count = 0
        for row in self.every_job(chosen):
            if row.message_id <= than or count >= most:
                break
            count += 1
        return count

    def jobs(
        self,
        chosen: JobFilter,
        *,
        limit: int = 50,
        cursor: str | None = None,
        budget_s: float | None = None,
    ) -> Page:
        """List jobs newest first, at most `limit` (1 to 1000).

        Raises ValueError for a cursor that no page gave out.
        """
        limit = max(1, min(limit, MOST_ON_A_PAGE))
        # One more than is shown tells whether a next page would have anything on it.
        rows = self.backend.jobs(chosen, limit=limit + 1, before=_before(cursor))
        shown = rows[:limit]
        return Page(tuple(shown), str(shown[-1].message_id) if len(rows) > limit else None)

    def every_job(self, chosen: JobFilter) -> Iterator[JobRow]:
        """Yield all jobs of a filter, newest first, a page at a time: no reader stays long.

        Jobs that change meanwhile are yielded as they were, at most once.
        """
        before: int | None = None
        while rows := self.backend.jobs(chosen, limit=MOST_ON_A_PAGE, before=before):
            yield from rows
            before = rows[-1].message_id

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
            result=_read_result(detail.result),
            error=_newest_error(detail),
            history=_history(detail),
            audit=detail.audit,
            others=others,
            celery=_celery_result(detail),
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
                    id=detail.row.job_id or f"#{row.message_id}",
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
        found: dict[tuple[str, str], list[JobRow]] = {}
        for row in self.every_job(chosen):
            kind, text = row.error_type or "", _likeness(row.error_message or "")
            found.setdefault((kind, text), []).append(row)
        groups = [
            DeadGroup(
                type=kind,
                text=text,
                count=len(rows),
                newest_at_ms=max(row.finished_at_ms or 0 for row in rows),
                tasks=tuple(sorted({row.task or "" for row in rows})),
                example=rows[0].job_id or f"#{rows[0].message_id}",
            )
            for (kind, text), rows in found.items()
        ]
        return sorted(groups, key=lambda group: (-group.count, -group.newest_at_ms))

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

    def _age_s(self, since_ms: int | None) -> float | None:
        # Two clocks, or a due time just ahead: an age is never negative.
        return None if since_ms is None else max(self.now_ms - since_ms, 0) / 1000

    def _arguments(self, detail: JobDetail) -> Arguments:
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
        return CeleryResult(state, result, None)
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


# What makes texts of one mistake differ: quoted names, hexadecimal ids and addresses, numbers.
_PARTICULARS: Final[Sequence[str]] = (
    r"'[^'\n]*'",
    r'"[^"\n]*"',
    r"\b0x[0-9a-fA-F]+\b",
    r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",
    r"\d+",
)
_PARTICULAR: Final = re.compile("|".join(_PARTICULARS))


def _likeness(message: str) -> str:
    """Return the first line of an error's text with its particulars left out."""
    return _PARTICULAR.sub("…", message.strip().split("\n", 1)[0][:500])
