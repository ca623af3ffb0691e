"""One look at the queue: all that the ops page shows, of one moment.

Everybody who looks shares a `Memory` of what does not change from look to look, so that the tenth
screen costs hardly more than the first.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import kombu

from sqlqueue.backend import SqliteBackend
from sqlqueue.consoles.ops.lists import arguments_text
from sqlqueue.errors import JobNotFound
from sqlqueue_transport import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlqueue.backend import WorkerRow
    from sqlqueue.consoles.ops.view import Window
    from sqlqueue.inspection import (
        Activity,
        ErrorGroup,
        Inspection,
        Queue,
        Scheduled,
        Size,
        Stats,
        Worker,
    )
    from sqlqueue_transport.files import FileIdentity
    from sqlqueue_transport.reading import JobRow

__all__ = ["Memory", "Snapshot", "take"]

MOST_ACTIVE: Final = 50
MOST_ERRORS: Final = 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Be what was seen. `arguments` are those of the active jobs by message id, as one line each."""

    now_ms: int
    window: Window
    path: str
    sqlite_version: str
    lease_s: float
    stats: Stats
    activity: Activity
    active: tuple[JobRow, ...]
    arguments: Mapping[int, str]
    errors: Sequence[ErrorGroup]
    workers: Sequence[Worker]
    queues: Sequence[Queue]
    schedule: Sequence[Scheduled]
    size: Size

    @property
    def serving(self) -> tuple[WorkerRow, ...]:
        """Return the processes that take jobs: workers, and other programs that consume."""
        return tuple(one.row for one in self.workers if one.row.is_serving)

    @property
    def long(self) -> tuple[JobRow, ...]:
        """Return the active jobs that run for longer than the visibility timeout, and may hang."""
        since_ms = self.now_ms - self.lease_s * 1000
        return tuple(
            row
            for row in self.active
            if row.started_at_ms is not None and row.started_at_ms < since_ms
        )


class Memory:
    """Keep what ended buckets hold, and the arguments of what runs. Any thread may use it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._mutex = threading.Lock()
        self._file: FileIdentity | None = None
        self._activities: dict[Window, Activity] = {}
        self._arguments: dict[int, str] = {}

    def belong_to(self, file: FileIdentity | None) -> None:
        """Forget everything when it is of another file than this one: ids begin anew there."""
        with self._mutex:
            if file != self._file:
                self._activities, self._arguments = {}, {}
            self._file = file

    def activity(self, inspection: Inspection, window: Window) -> Activity:
        """Return the activity of a window; it is read anew when another bucket has ended.

        Until then a chart of it stays the very same, and is not drawn again.
        """
        with self._mutex:
            known = self._activities.get(window)
            if known is not None and 0 <= inspection.now_ms - known.until_ms < known.bucket_ms:
                return known
            found = inspection.activity(window.seconds, buckets=window.buckets)
            self._activities[window] = found
            return found

    def arguments(self, inspection: Inspection, rows: Sequence[JobRow]) -> Mapping[int, str]:
        """Return the arguments of these jobs; those seen before are not read and parsed again."""
        with self._mutex:
            self._arguments = {
                row.message_id: self._arguments[row.message_id]
                if row.message_id in self._arguments
                else _arguments(inspection, row)
                for row in rows
            }
            return self._arguments


def take(inspection: Inspection, window: Window, memory: Memory) -> Snapshot:
    """Look once. Raises what `Inspection` does, NotAvailable for a broker that cannot tell."""
    backend = inspection.backend
    path = backend.store.path if isinstance(backend, SqliteBackend) else None
    memory.belong_to(None if path is None else files.identity_of(path))
    stats = inspection.stats()
    active = inspection.active(most=MOST_ACTIVE)
    return Snapshot(
        now_ms=inspection.now_ms,
        window=window,
        path=backend.name if path is None else str(path),
        sqlite_version=_sqlite_version(),
        lease_s=inspection.settings.visibility_timeout,
        stats=stats,
        activity=memory.activity(inspection, window),
        active=active,
        arguments=memory.arguments(inspection, active),
        errors=inspection.errors_since(window.seconds, most=MOST_ERRORS),
        workers=inspection.workers(),
        queues=inspection.queues(),
        schedule=inspection.schedule(),
        size=inspection.size(),
    )


def _arguments(inspection: Inspection, row: JobRow) -> str:
    try:
        return arguments_text(inspection.job(f"#{row.message_id}").arguments)
    except JobNotFound:  # it has ended, and was pruned or deleted, since the list was read
        return ""


def _sqlite_version() -> str:
    # Asked of the transport, because sqlite3 itself is imported there and nowhere else.
    return str(kombu.Connection("sqlqueue:///").transport.driver_version())
