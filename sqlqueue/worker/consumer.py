"""The loop that runs jobs: settle and claim, start, collect, again.

No user code starts while a settlement of this process waits: the outcome of one job commits with
the claim of the next, or at once and alone when there is nothing to claim. A kill in between would
otherwise run a finished job again, and a job would show `done` only when its successor ends.

How many jobs run at once, and where, is the runner's affair. A job has a place, where its start is
noted, until its settlement is committed.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlqueue import execute
from sqlqueue.backend import IDLE_S
from sqlqueue.log import get_logger
from sqlqueue.worker.attempt import Attempt
from sqlqueue.worker.limits import Limits
from sqlqueue.worker.queue_order import QueueOrder
from sqlqueue.worker.runners import Inline
from sqlqueue_transport.errors import FileReplaced, SchemaChanged, WorkerSwept
from sqlqueue_transport.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.app import SqlQueue
    from sqlqueue.backend import Backend, Taken
    from sqlqueue.worker.lifetime import Lifetime
    from sqlqueue.worker.runners import Runner

    Settled: TypeAlias = tuple[Taken, Outcome]

__all__ = ["Consumer", "tell_of_paused"]

log = get_logger(__name__)

_BURST_LOOK_S: Final = 0.25
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0


class Consumer:
    """Run jobs of some queues until stopped or, in a burst, none is left.

    `register` makes this process known to the broker; it is called again if the process was taken
    for dead. If the process dies midway, its started jobs are counted and run again by whoever
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
        runner: Runner | None = None,
        raises_hard_limits: bool = True,
        lifetime: Lifetime | None = None,
        count_ended: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare; `run` does the work, and closes the runner.

        `max_jobs` None means no limit. `after_job` is called after each job, before the next is
        claimed; `count_ended` once its settlement was accepted or refused. `runner` None runs one
        job at a time, in the calling thread. Without `raises_hard_limits` only soft limits are
        raised in tasks: a supervisor does the rest. `lifetime` says when to end between two jobs.
        """
        self._lifetime = lifetime
        self._count_ended = count_ended
        self._ran = 0
        self.is_recycled = False
        self._after_job = after_job
        self._app = app
        self._backend = backend
        self._queues = tuple(queues)
        self._name = name
        self._register = register
        self._order = QueueOrder(self._queues, app.queue_weights)
        self._burst = burst
        self._left = max_jobs
        self._runner = Inline() if runner is None else runner
        self._limits = Limits(raises_hard=raises_hard_limits, should_stop=self._should_stop)
        self._free = list(range(self._runner.places))[::-1]
        self._started: dict[object, Attempt] = {}  # by delivery tag, until settled
        self._stopping = False
        self._is_swept = False
        self._said_waiting = False
        self._claimed_s = 0.0  # just before the newest claim, on the monotonic clock

    def stop(self) -> None:
        """Finish what runs and take no other; safe in a signal handler."""
        self._stopping = True
        self._backend.interrupt()

    def run(self) -> None:
        """Run jobs until `stop`, the end of a burst, or `max_jobs`. Raises what cannot be waited out."""
        try:
            settlements: list[Settled] = []
            while True:
                taken = self._settle_and_claim(settlements)
                settlements = [one for one in map(self._start, taken) if one is not None]
                settlements += self._collected()
                if taken or settlements:
                    continue
                if not self._started and (
                    self._must_stop or (self._burst and self._nothing_is_left())
                ):
                    return
                self._idle()
        finally:
            self._limits.stop()
            if not self._started:  # or the process ends, and what runs in it
                self._runner.close()

    @property
    def _must_stop(self) -> bool:
        return self._stopping or self._left == 0

    def _wanted(self, settlements: Sequence[Settled]) -> int:
        """Return how many jobs to claim, to run at once; what is about to be settled makes room."""
        if self._must_stop:
            return 0
        ending = sum(taken.tag in self._started for taken, _ in settlements)
        return min(
            len(self._free) + ending, self._runner.places if self._left is None else self._left
        )

    def _settle_and_claim(self, settlements: list[Settled]) -> list[Taken]:
        """Commit what waits and take the next jobs, however long the store stays busy.

        A settlement is kept until it is accepted or refused: a job that has run must not run again
        because the disk was full for a minute.
        """
        pause_s = _FIRST_PAUSE_S
        while settlements or self._wanted(settlements):
            try:
                if self._is_swept:
                    self._backend.leave()
                    self._register()
                    self._is_swept = False
                self._claimed_s = time.monotonic()
                found, refused = self._backend.claim(
                    self._order.draw(), self._wanted(settlements), settlements
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
                self._note_without_limit(settlements)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                settlements += self._collected()  # others go on meanwhile
            else:
                for taken, _ in settlements:
                    self._give_back_place(taken)
                for lost in refused:
                    _log_lost(lost)
                return found
        return []

    def _start(self, taken: Taken) -> Settled | None:
        """Start a job; return its release when a stop came in between, or a whole lease has passed.

        A process that was stopped between claim and start, and then goes on, must not begin what is
        another's by now. The release is refused then, and told.
        """
        waited_s = time.monotonic() - self._claimed_s
        if self._stopping or waited_s >= self._app.conf.visibility_timeout:
            log.info("job_released", **_named(taken))
            return taken, Outcome.release()
        if self._left is not None:
            self._left -= 1
        prepared = execute.prepare(self._app, taken, worker=self._name)
        attempt = self._started[taken.tag] = Attempt(
            self._free.pop(),
            taken,
            prepared,
            write_progress=functools.partial(self._note_progress, taken),
        )
        # Before user code: from here on a death of this process counts the attempt.
        self._backend.note_start(
            attempt.place, taken, attempt.time_limit_s, attempt.allowed_when_lost
        )
        self._limits.watch(attempt)
        self._runner.start(attempt)
        return None

    def _collected(self) -> list[Settled]:
        """Return what has ended since the last call."""
        ended = self._runner.ended()
        for attempt, _ in ended:
            self._limits.forget(attempt)
            self._after_job()
            self._end_in_time()
        return [(attempt.taken, outcome) for attempt, outcome in ended]

    def _note_without_limit(self, settlements: Sequence[Settled]) -> None:
        """Let no time limit end what has ended by itself, and only waits to be settled."""
        for taken, _ in settlements:
            attempt = self._started.get(taken.tag)
            if attempt is not None and not self._is_swept:
                self._backend.note_start(attempt.place, taken, 0.0, attempt.allowed_when_lost)

    def _give_back_place(self, taken: Taken) -> None:
        attempt = self._started.pop(taken.tag, None)
        if attempt is not None:
            self._backend.note_end(attempt.place)
            self._count_ended()
            self._free.append(attempt.place)

    def _should_stop(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Return which of these are not to go on. Called from the limits' thread."""
        try:
            asked = self._backend.stops_asked([attempt.taken for attempt in attempts])
        except self._backend.connection_errors:
            return []  # the next look will do; a store that is gone shows with the settlement
        return [attempt for attempt in attempts if attempt.taken.message_id in asked]

    def _note_progress(self, taken: Taken, done: float, total: float | None, note: str) -> bool:
        """Write how far a job is; a store that cannot be written must not fail it."""
        try:
            return self._backend.note_progress(taken, done, total, note)
        except self._backend.connection_errors as error:
            # The next word will do, and whether the store is gone for good shows with the settlement.
            log.warning("store_busy", error=str(error))
            return True

    def _end_in_time(self) -> None:
        """Stop, as if told to, when this process has lived long enough."""
        self._ran += 1
        reason = self._lifetime.reason_to_end(self._ran) if self._lifetime else None
        if reason and not self._must_stop:
            log.info("child_recycled", worker=self._name, why=reason)
            self.is_recycled = True
            self.stop()

    def _idle(self) -> None:
        """Sleep until there may be work, or something has ended.

        Each sleep begins with a look at the store: it is the safety poll, for the case that the
        publisher who should have woken us was killed, and no other look is needed.
        """
        longest_s = _BURST_LOOK_S if self._burst else IDLE_S
        if not self._wanted(()):
            self._runner.wait(longest_s)
            return
        try:
            while not self._backend.wait(self._queues, longest_s):
                if self._must_stop or self._burst or self._runner.has_ended:
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


def tell_of_paused(backend: Backend, queues: Sequence[str], worker: str) -> None:
    """Log what a burst that has ended did not wait for: what lies in paused queues."""
    left = {queue: count for queue, count in backend.paused().items() if count and queue in queues}
    if left:
        log.warning("burst_left_paused", worker=worker, queues=left)


def _log_lost(lost: Taken) -> None:
    log.warning("lease_lost", **_named(lost), delivery=lost.delivery)


def _named(taken: Taken) -> dict[str, object]:
    """Return what every line about a job has."""
    return {
        "job_id": execute.job_id_of(taken),
        "task": execute.task_name_of(taken),
        "queue": taken.queue,
        "attempt": taken.attempts + 1,
    }
