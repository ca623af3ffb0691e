"""What became of the demo's jobs: read from the queue a few times a second, without counting it all.

Jobs that have ended do not change by themselves, so each is looked at until it has ended, and new
ones are found by their message ids. A queue that has run for weeks costs no more than a new one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from sqlqueue.inspection import Inspection
    from sqlqueue_transport.reading import JobRow

__all__ = ["STAMP_TASK", "Progress", "Running", "Seen", "Stamped"]

STAMP_TASK: Final = "tasks.stamping.stamp"
MOST_STAMPED: Final = 6
_CHUNK: Final = 500
_LAST_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Running:
    """Be one job that runs: on which worker, on which file, for how long in seconds."""

    worker: str
    file: str
    for_s: float


@dataclass(frozen=True, slots=True)
class Stamped:
    """Be one stamped file and its last line."""

    file: str
    line: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Be one look at the demo. Counts are by state's name.

    `counts` include jobs an earlier demo left unfinished, `of_this_run` do not. `unfinished` are
    jobs of this run that have not ended. `next_due_ms` is the next tick; None before the beat runs.
    """

    counts: Mapping[str, int]
    of_this_run: Mapping[str, int]
    unfinished: int
    running: tuple[Running, ...]
    stamped: tuple[Stamped, ...]
    alive: int
    slots: int
    next_due_ms: int | None
    now_ms: int


class Progress:
    """Follow the stamping jobs of a queue from now on."""

    def __init__(self, inspection: Inspection, directory: Path) -> None:
        """Find out where the queue stands; what comes later belongs to this run."""
        from sqlqueue.inspection import JobFilter, State

        self._inspection = inspection
        self._directory = directory
        self._every = JobFilter(task=STAMP_TASK)
        newest = inspection.jobs(JobFilter(), limit=1).items
        self._baseline = self._newest = newest[0].message_id if newest else 0
        self._open: dict[int, JobRow] = {}
        self._ended: Counter[str] = Counter()
        self._ended_before: Counter[str] = Counter()
        self._stamped: deque[Stamped] = deque(maxlen=MOST_STAMPED)
        self._names: dict[int, str] = {}
        waiting = (State.PENDING, State.SCHEDULED, State.FAILED, State.PROCESSING)
        for row in inspection.every_job(JobFilter(task=STAMP_TASK, states=waiting)):
            self._open[row.message_id] = row

    def look(self) -> Seen:
        """Look again."""
        from sqlqueue.inspection import JobFilter

        changed: list[JobRow] = []
        known = sorted(self._open)
        for start in range(0, len(known), _CHUNK):
            some = JobFilter(message_ids=tuple(known[start : start + _CHUNK]))
            changed += self._inspection.backend.jobs(some, limit=_CHUNK)
        new = list(self._new())
        self._newest = max([self._newest, *(row.message_id for row in new)])
        self._take([*changed, *new])
        stats = [
            row
            for row in self._inspection.backend.workers()
            if row.kind == "worker" and row.is_known_alive
        ]
        due = [
            row.row.next_due_ms
            for row in self._inspection.schedule()
            if row.row.next_due_ms is not None
        ]
        of_this_run = self._ended + self._counted(
            row for row in self._open.values() if row.message_id > self._baseline
        )
        now_ms = self._inspection.now_ms
        return Seen(
            counts=self._ended + self._ended_before + self._counted(self._open.values()),
            of_this_run=of_this_run,
            unfinished=sum(message_id > self._baseline for message_id in self._open),
            running=tuple(self._running(now_ms)),
            stamped=tuple(self._stamped),
            alive=len(stats),
            slots=sum(row.slots for row in stats),
            next_due_ms=min((each for each in due if each > now_ms), default=None),
            now_ms=now_ms,
        )

    def _new(self) -> Iterable[JobRow]:
        for row in self._inspection.every_job(self._every):
            if row.message_id <= self._newest:
                return
            yield row

    def _take(self, rows: Iterable[JobRow]) -> None:
        from sqlqueue_transport.lifecycle import FINISHED

        done: list[JobRow] = []
        for row in rows:
            if row.state not in FINISHED:
                self._open[row.message_id] = row
                continue
            self._open.pop(row.message_id, None)
            is_ours = row.message_id > self._baseline
            (self._ended if is_ours else self._ended_before)[row.state.value] += 1
            if row.state.value == "done":
                done.append(row)
            else:
                self._names.pop(row.message_id, None)
        for row in sorted(done, key=lambda row: row.finished_at_ms or 0)[-MOST_STAMPED:]:
            file = self._file(row)
            self._stamped.append(Stamped(file, _last_line(self._directory, file)))
        for row in done:
            self._names.pop(row.message_id, None)

    def _running(self, now_ms: int) -> Iterable[Running]:
        running = [row for row in self._open.values() if row.is_started]
        for row in sorted(running, key=lambda row: row.worker or ""):
            for_s = max(now_ms - (row.started_at_ms or now_ms), 0) / 1000
            yield Running(row.worker or "", self._file(row), for_s)

    def _file(self, row: JobRow) -> str:
        """Return the file a job is about."""
        name = self._names.get(row.message_id)
        if name is None:
            args = self._inspection.job(f"#{row.message_id}").arguments.args
            name = str(args[0]) if args else "?"
            self._names[row.message_id] = name
        return name

    @staticmethod
    def _counted(rows: Iterable[JobRow]) -> Counter[str]:
        return Counter(row.state.value for row in rows)


def _last_line(directory: Path, name: str) -> str:
    """Return the end of a job file; "" for what is no plain file there: the name is a stranger's."""
    if "/" in name or "\0" in name:
        return ""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(directory / name, flags)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor has no path
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode):
                stream.seek(max(found.st_size - _LAST_BYTES, 0))
                lines = stream.read(_LAST_BYTES).decode(errors="replace").splitlines()
                return lines[-1] if lines else ""
    return ""
