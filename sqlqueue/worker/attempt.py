"""One started delivery in this process: from its note to its outcome, with a log line at both ends."""

from __future__ import annotations

import contextvars
import time
from typing import TYPE_CHECKING, Any, Final

from sqlqueue import execute
from sqlqueue.errors import JobCancelled
from sqlqueue.log import bind_job, get_logger
from sqlqueue.progress import Reporter
from sqlqueue.worker.interrupts import LoopInterrupt, ThreadInterrupt
from sqlqueue_transport.lifecycle import Event
from sqlqueue_transport.messages import Outcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from sqlqueue.backend import Taken
    from sqlqueue.execute import Prepared
    from sqlqueue.worker.interrupts import Interrupt

__all__ = ["Attempt"]

log = get_logger(__name__)

_NEVER_S: Final = float("inf")


class Attempt:
    """Run one claimed message: `run` in this thread, or `run_on` an event loop. Never raises.

    `place` is where its start is noted. `soft_at_s` and `hard_at_s` are its limits on the monotonic
    clock, without end where there is none; they count from the making of this object.
    """

    def __init__(
        self,
        place: int,
        taken: Taken,
        prepared: Prepared | Outcome,
        *,
        write_progress: Callable[[float, float | None, str], bool],
    ) -> None:
        """Take a message as `execute.prepare` has left it.

        `write_progress` stores what the task says of itself, as `progress.Reporter` wants it.
        """
        self.place = place
        self.taken = taken
        self._prepared = prepared
        if self.is_sensitive:
            write_all = write_progress

            def write_progress(done: float, total: float | None, _: str) -> bool:
                return write_all(done, total, "")

        self._reporter = Reporter(write_progress)
        self._fields: dict[str, object] = {
            "job_id": execute.job_id_of(taken),
            "task": execute.task_name_of(taken),
            "queue": taken.queue,
            "attempt": taken.attempts + 1,
        }
        if self.max_attempts:
            self._fields["max_attempts"] = self.max_attempts
        self._was_asked_to_stop = False
        self._thread_interrupt = ThreadInterrupt()
        self.interrupt: Interrupt = self._thread_interrupt
        self.soft_at_s = self.hard_at_s = _NEVER_S
        if not isinstance(prepared, Outcome):
            prepared.request.stop.raise_pending = self._thread_interrupt.raise_pending
            now_s = time.monotonic()
            if prepared.soft_time_limit_s:
                self.soft_at_s = now_s + prepared.soft_time_limit_s
            if prepared.time_limit_s:
                self.hard_at_s = now_s + prepared.time_limit_s

    @property
    def time_limit_s(self) -> float:
        """Return the time limit in seconds; 0 means none."""
        return 0.0 if isinstance(self._prepared, Outcome) else self._prepared.time_limit_s

    @property
    def max_attempts(self) -> int:
        """Return how many attempts the job may have; 0 means no limit."""
        if isinstance(self._prepared, Outcome):
            return self.taken.max_attempts or 0
        return self._prepared.request.max_attempts

    @property
    def allowed_when_lost(self) -> int:
        """Return how many attempts there may be when a lost process ends them; 0 means no limit."""
        if isinstance(self._prepared, Outcome):
            return self.taken.max_attempts or 0
        return self._prepared.allowed_when_lost

    @property
    def is_async(self) -> bool:
        """Say whether its task is an async function, for an event loop to run."""
        return not isinstance(self._prepared, Outcome) and self._prepared.task.is_async

    @property
    def is_sensitive(self) -> bool:
        """Say whether nothing is to be told of what it says."""
        return not isinstance(self._prepared, Outcome) and self._prepared.is_sensitive

    def ask_to_stop(self) -> None:
        """Let the task know that it is not to go on: once. Any thread may."""
        if self._was_asked_to_stop or isinstance(self._prepared, Outcome):
            return
        self._was_asked_to_stop = True
        stop = self._prepared.request.stop
        stop.is_asked = True
        if isinstance(self.interrupt, LoopInterrupt):
            # A checkpoint may be quicker than the next await; its clean-up is then not to be cut short.
            self.interrupt.throw(JobCancelled, unless=lambda: stop.was_raised)

    def run(self) -> Outcome:
        """Run it here and now."""
        began_s = self._tell_started()
        if isinstance(self._prepared, Outcome):
            outcome = self._prepared
        else:
            # In a context of its own: what the task binds or clears there is not the worker's, nor the
            # next job's. (An async one has the context of its own asyncio task.)
            outcome = contextvars.copy_context().run(self._run, self._prepared)
        self._tell_ended(outcome, began_s)
        return outcome

    def _run(self, prepared: Prepared) -> Outcome:
        bind_job(self._fields)
        return execute.run(prepared, self._thread_interrupt, self._reporter)

    def run_on(self, loop: asyncio.AbstractEventLoop) -> Coroutine[Any, Any, Outcome]:
        """Return the coroutine that runs it on this loop, in an asyncio task of its own."""
        self.interrupt = interrupt = LoopInterrupt(loop)
        return self._run_on(interrupt)

    async def _run_on(self, interrupt: LoopInterrupt) -> Outcome:
        if isinstance(self._prepared, Outcome):
            return self.run()
        began_s = self._tell_started()
        bind_job(self._fields)
        outcome = await execute.run_async(self._prepared, interrupt.steer, self._reporter)
        self._tell_ended(outcome, began_s)
        return outcome

    def _tell_started(self) -> float:
        """Return when it began, on the monotonic clock."""
        if log.tells_info and not isinstance(self._prepared, Outcome):
            log.info(
                "job_started",
                **self._fields,
                worker=self._prepared.request.worker,
                waited_s=_waited_s(self.taken),
            )
        return time.monotonic()

    def _tell_ended(self, outcome: Outcome, began_s: float) -> None:
        self._reporter.close()
        if outcome.event is not Event.COMPLETE or log.tells_info:
            self._log_outcome(outcome, took_s=time.monotonic() - began_s)

    def _log_outcome(self, outcome: Outcome, *, took_s: float) -> None:
        fields = {**self._fields, "took_s": round(took_s, 3)}
        fault = outcome.fault
        error = f"{fault.type}: {fault.message}" if fault else None
        if outcome.event is Event.COMPLETE:
            log.info("job_done", **fields)
        elif outcome.event is Event.ABORT or self._was_asked_to_stop:  # the store makes it that
            log.warning("job_cancelled", **fields, error=error)
        elif outcome.event is Event.RETRY:
            in_s = round(outcome.retry_in_s, 3)
            log.warning("job_retry_scheduled", **fields, retry_in_s=in_s, error=error)
        else:
            log.error("job_permanently_failed", **fields, error=error)


def _waited_s(taken: Taken) -> float | None:
    if taken.ready_since_ms is None:
        return None
    # The wall clock may have been set back meanwhile.
    return round(max(time.time() - taken.ready_since_ms / 1000, 0.0), 3)
