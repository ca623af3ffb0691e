"""What a caller holds after `delay`: the job's id, and questions about it.

Nothing is cached: every answer is read from the broker when it is asked for. A job id that several
messages share (Celery's own retries reuse it) means the newest of them.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sqlqueue.errors import JobFailed, JobNotFound, ResultTimeout
from sqlqueue_transport.lifecycle import FINISHED, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue.backend import Backend
    from sqlqueue_transport.reading import JobDetail, JobRow

__all__ = ["NOT_FOUND", "AsyncResult"]

R_co = TypeVar("R_co", covariant=True)

NOT_FOUND: Final = "not_found"
_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.1


class AsyncResult(Generic[R_co]):
    """Ask after one job. Any thread may use it; brokers that cannot look raise NotAvailable."""

    def __init__(
        self,
        job_id: str,
        backend: Callable[[], Backend],
        *,
        before_waiting: Callable[[str, State], object] = lambda _, __: None,
    ) -> None:
        """Remember the id; nothing is looked up yet.

        `before_waiting` is called by `get` whenever it is about to wait, with id and state, and may
        raise: where nobody runs jobs, as in `app.testing`, waiting would have no end.
        """
        self.id = job_id
        self._backend = backend
        self._before_waiting = before_waiting

    def __repr__(self) -> str:
        """Show the id."""
        return f"<AsyncResult {self.id}>"

    @property
    def state(self) -> str:
        """Return the job's state, or "not_found": never stored, or removed by retention."""
        row = self._row()
        return row.state.value if row else NOT_FOUND

    @property
    def attempts(self) -> int:
        """Return how many attempts were started, the running one included; 0 when not found."""
        row = self._row()
        return row.attempts if row else 0

    @property
    def error(self) -> str | None:
        """Return the newest failure as "Type: message"; None when there is none, or it was mended."""
        row = self._row()
        if row is None or row.error_type is None:
            return None
        return f"{row.error_type}: {row.error_message}" if row.error_message else row.error_type

    @property
    def traceback(self) -> str | None:
        """Return the traceback of `error`; None when there is none (a lost worker leaves none)."""
        row = self._row()
        detail = self._backend().job(row.message_id) if row else None
        return _traceback_of_error(detail) if detail else None

    def get(self, timeout: float | None = None) -> R_co:
        """Wait for the job to end and return what its task returned.

        `timeout` is in seconds; None waits for ever. Raises ResultTimeout, JobFailed (also for
        cancelled and expired jobs), JobNotFound.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        pause_s = _FIRST_PAUSE_S
        while True:
            row = self._row()
            if row is None:
                raise JobNotFound(self.id)
            if row.state in FINISHED:
                return self._ended(row.message_id)
            self._before_waiting(self.id, row.state)
            left_s = _LONGEST_PAUSE_S if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                raise ResultTimeout(
                    f"job {self.id} is {row.state.value} after {timeout} s; it goes on. Is a"
                    f" worker serving the queue {row.queue!r}?"
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def _ended(self, message_id: int) -> R_co:
        found = self._backend().job(message_id)
        if found is None:  # retention was faster
            raise JobNotFound(self.id)
        if found.row.state is State.DONE:
            result: Any = json.loads(found.result) if found.result is not None else None
            return result  # type: ignore[no-any-return]
        raise JobFailed(
            self.id,
            found.row.error_type or found.row.state.value,
            error_message=found.row.error_message or "",
            traceback=_traceback_of_error(found),
        )

    def _row(self) -> JobRow | None:
        """Look at the newest message of the job, without its body."""
        from sqlqueue_transport.reading import JobFilter  # noqa: PLC0415 - late: a worker asks for none

        found = self._backend().jobs(JobFilter(job_ids=(self.id,)), limit=1)
        return found[0] if found else None


def _traceback_of_error(found: JobDetail) -> str | None:
    """Return the traceback that belongs to the error shown, not that of an earlier, other one."""
    newest = found.attempts[-1] if found.attempts else None
    shown = (found.row.error_type, found.row.error_message)
    if newest is None or (newest.error_type, newest.error_message) != shown:
        return None
    return newest.traceback
