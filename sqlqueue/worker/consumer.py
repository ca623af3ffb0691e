"""The loop that runs jobs: settle and claim, run, again. One job at a time.

No user code starts while a settlement of this process waits: the outcome of one job commits with
the claim of the next, or at once and alone when there is nothing to claim. A kill in between would
otherwise run a finished job again, and a job would show `done` only when its successor ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlqueue import execute
from sqlqueue.backend import IDLE_S
from sqlqueue.log import bound_job, get_logger
from sqlqueue_transport.errors import FileReplaced, SchemaChanged, WorkerSwept
from sqlqueue_transport.lifecycle import Event
from sqlqueue_transport.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend, Taken

__all__ = ["Consumer"]

log = get_logger(__name__)

_PLACE: Final = 0  # one job at a time: one note
_BURST_LOOK_S: Final = 0.25
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0


class Consumer:
    """Run jobs of some queues in the calling thread, until stopped or, in a burst, none is left.

    `register` makes this process known to the broker; it is called again if the process was taken
    for dead. If the process dies midway, its started job is counted and run again by whoever
    notices, and what it had only claimed comes back uncounted.
    """

    def __init__(
        self,
        app: SqlQueue,
        backend: Backend,
        *,
        queues: Sequence[str],
        name: str,
        register: Callable[[], object],
        burst: bool = False,
        max_jobs: int | None = None,
        after_job: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare; `run` does the work. `max_jobs` None means no limit.

        `after_job` is called after each job, before the next is claimed.
        """
        self._after_job = after_job
        self._app = app
        self._backend = backend
        self._queues = tuple(queues)
        self._name = name
        self._register = register
        self._burst = burst
        self._left = max_jobs
        self._stopping = False
        self._is_swept = False
        self._said_waiting = False

    def stop(self) -> None:
        """Finish the running job and take no other; safe in a signal handler."""
        self._stopping = True
        self._backend.interrupt()

    def run(self) -> None:
        """Run jobs until `stop`, the end of a burst, or `max_jobs`. Raises what cannot be waited out."""
        settlements: list[tuple[Taken, Outcome]] = []
        while True:
            taken = self._settle_and_claim(settlements)
            settlements = []
            if taken is not None:
                settlements = [(taken, self._work(taken))]
                self._after_job()
            elif self._must_stop or (self._burst and self._nothing_is_left()):
                return
            else:
                self._idle()

    @property
    def _must_stop(self) -> bool:
        return self._stopping or self._left == 0

    def _settle_and_claim(self, settlements: list[tuple[Taken, Outcome]]) -> Taken | None:
        """Commit what waits and take the next job, however long the store stays busy.

        The settlement is kept until it is accepted or refused: a job that has run must not run
        again because the disk was full for a minute.
        """
        pause_s = _FIRST_PAUSE_S
        while settlements or not self._must_stop:
            try:
                if self._is_swept:
                    self._backend.leave()
                    self._register()
                    self._is_swept = False
                found, refused = self._backend.claim(
                    self._queues, 0 if self._must_stop else 1, settlements
                )
            except WorkerSwept:
                # Nothing was settled or claimed. What we held was given back, so that the
                # settlement will be refused, under whatever name we come again.
                log.warning("worker_swept", worker=self._name)
                self._is_swept = True
            except (FileReplaced, SchemaChanged):
                raise
            except self._backend.connection_errors as error:
                log.warning("store_busy", error=str(error), retry_in_s=pause_s)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                if settlements:
                    self._backend.note_end(_PLACE)
                for lost in refused:
                    _log_lost(lost)
                return found[0] if found else None
        return None

    def _work(self, taken: Taken) -> Outcome:
        if self._stopping:
            log.info("job_released", job_id=execute.job_id_of(taken), queue=taken.queue)
            return Outcome.release()
        if self._left is not None:
            self._left -= 1
        prepared = execute.prepare(self._app, taken, worker=self._name)
        if isinstance(prepared, Outcome):
            limit_s, most = 0.0, taken.max_attempts or 0
            most_if_lost = most
        else:
            limit_s, most = prepared.time_limit_s, prepared.request.max_attempts
            most_if_lost = prepared.allowed_when_lost
        # Before user code: from here on a death of this process counts the attempt.
        self._backend.note_start(_PLACE, taken, limit_s, most_if_lost)
        with bound_job(
            job_id=execute.job_id_of(taken),
            task=execute.task_name_of(taken),
            queue=taken.queue,
            attempt=taken.attempts + 1,
            max_attempts=most or None,
        ):
            began_s = time.monotonic()
            if isinstance(prepared, Outcome):
                outcome = prepared
            else:
                log.info("job_started", worker=self._name)
                outcome = execute.run(prepared)
            _log_outcome(outcome, took_s=time.monotonic() - began_s)
        return outcome

    def _idle(self) -> None:
        """Sleep until there may be work.

        Each sleep begins with a look at the store: it is the safety poll, for the case that the
        publisher who should have woken us was killed, and no other look is needed.
        """
        longest_s = _BURST_LOOK_S if self._burst else IDLE_S
        try:
            while not self._backend.wait(self._queues, longest_s):
                if self._must_stop or self._burst:
                    return
        except (FileReplaced, SchemaChanged):
            raise
        except self._backend.connection_errors as error:
            log.warning("store_busy", error=str(error), retry_in_s=_FIRST_PAUSE_S)
            time.sleep(_FIRST_PAUSE_S)

    def _nothing_is_left(self) -> bool:
        try:
            due_ms = self._backend.unfinished_since_ms(self._queues)
        except self._backend.connection_errors as error:
            log.warning("store_busy", error=str(error))
            return False
        if due_ms is None:
            return True
        if not self._said_waiting:
            self._said_waiting = True
            in_s = max(due_ms / 1000 - time.time(), 0.0)
            log.info("burst_waiting", worker=self._name, next_due_in_s=round(in_s, 3))
        return False


def _log_lost(lost: Taken) -> None:
    log.warning(
        "lease_lost",
        job_id=execute.job_id_of(lost),
        task=execute.task_name_of(lost),
        queue=lost.queue,
        delivery=lost.delivery,
    )


def _log_outcome(outcome: Outcome, *, took_s: float) -> None:
    took = round(took_s, 3)
    fault = outcome.fault
    error = f"{fault.type}: {fault.message}" if fault else None
    if outcome.event is Event.COMPLETE:
        log.info("job_done", took_s=took)
    elif outcome.event is Event.RETRY:
        log.warning(
            "job_retry_scheduled", took_s=took, retry_in_s=round(outcome.retry_in_s, 3), error=error
        )
    else:
        log.error("job_permanently_failed", took_s=took, error=error)
