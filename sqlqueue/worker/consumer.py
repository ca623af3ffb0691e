"""The loop that runs jobs: settle and claim, start, collect, again.

No user code starts while a settlement of this process waits of which nobody else could know: the
outcome of one job commits with the claim of the next, or at once and alone when there is nothing to
claim. A kill in between would otherwise run a finished job again, and a job would show `done` only
when its successor ends.

Short jobs are claimed together, run one after the other, and settled together with the next claim, so
that one transaction serves all of them. Three rules keep what is promised:

* An end that waits for its settlement is noted in shared memory (`note_ended`) before the next job
  starts; who finds this process dead settles it instead of running it again. Whatever cannot be noted
  (a failure, a long result, what is sensitive) commits before the next job starts.
* What is claimed and not started is nobody's attempt: a death releases it uncounted.
* `PATIENCE_S` after they were claimed, a thread hands back what has not started, for siblings that idle,
  and settles what has ended. The limits' thread starts it, and does not do so itself: it would wait for a
  busy store while limits are due. A job that holds Python's lock in C for so long keeps them from that.

How many jobs run at once, and where, is the runner's affair. A job has a place, where its start is
noted, until its settlement is committed or its end is noted.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

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

Element = TypeVar("Element")

_BURST_LOOK_S: Final = 0.25
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0
# Claimed together is what typically runs for so long, one after the other.
BATCH_S: Final = 0.01
PATIENCE_S: Final = 0.05
_WEIGHT: Final = 0.1  # of one job in what is typical: a processor that was away must not count


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
        claimed; `count_ended` once its settlement was accepted or refused, or its end was noted. `runner` None runs one
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
        self._limits = Limits(
            raises_hard=raises_hard_limits,
            should_stop=self._should_stop,
            hand_back=self._hand_back_in_time,
        )
        self._free = list(range(self._runner.places))[::-1]
        # By delivery tag, until settled or noted as ended.
        self._started: dict[object, Attempt] = {}
        # Claimed and not started; ended and not settled. Who hands back may empty both: whoever
        # takes something out of them has it alone, and settles under the mutex.
        self._waiting: deque[Taken] = deque()
        self._unsettled: deque[Settled] = deque()
        self._settling = threading.Lock()
        self._handing_back: threading.Thread | None = None
        self._has_to_settle = False  # something ended that could not be noted
        self._noted = 0
        # Only who runs one job at a time can take several; and with weights each job is drawn.
        self._largest_batch = (
            min(1 if app.queue_weights else app.conf.worker_prefetch_multiplier, backend.noted_ends)
            if isinstance(self._runner, Inline)
            else 0
        )
        self._has_batches = False  # since the limits' thread looked
        self._typical_s = BATCH_S
        self._lease_s = app.conf.visibility_timeout
        self._began_s = 0.0  # of the newest start
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
            while True:
                has_claimed = self._settle_and_claim()
                self._run_waiting()
                if has_claimed or self._unsettled:
                    continue
                if not self._started and (
                    self._must_stop or (self._burst and self._nothing_is_left())
                ):
                    return
                self._idle()
        finally:
            self._limits.stop()
            if self._handing_back is not None:
                self._handing_back.join()
            if not self._started:  # or the process ends, and what runs in it
                self._runner.close()

    @property
    def _must_stop(self) -> bool:
        return self._stopping or self._left == 0

    def _wanted(self, settlements: Sequence[Settled]) -> int:
        """Return how many jobs to claim; what is about to be settled makes room."""
        if self._must_stop:
            return 0
        if self._largest_batch:
            wanted = min(self._largest_batch, max(int(BATCH_S / self._typical_s), 1))
        else:
            ending = sum(taken.tag in self._started for taken, _ in settlements)
            wanted = len(self._free) + ending
        if self._lifetime is not None:
            wanted = min(wanted, self._lifetime.jobs_left(self._ran) or wanted)
        return wanted if self._left is None else min(wanted, self._left)

    def _settle_and_claim(self, *, claims: bool = True) -> bool:
        """Commit what waits and take the next jobs, however long the store stays busy.

        A settlement is kept until it is accepted or refused: a job that has run must not run again
        because the disk was full for a minute. Return whether jobs were taken.
        """
        pause_s = _FIRST_PAUSE_S
        with self._settling:
            settlements = _all_of(self._unsettled)
            # What could not be handed back runs first: with more than one claim there would
            # be more ends than notes, and nobody would know whose lease began when.
            claims = claims and not self._waiting
            while settlements or (claims and self._wanted(settlements)):
                try:
                    if self._is_swept:
                        self._backend.leave()
                        self._register()
                        self._is_swept = False
                    if claims:  # what waits was claimed earlier, and its lease goes by that
                        self._claimed_s = time.monotonic()
                    found, refused = self._backend.claim(
                        self._order.draw(),
                        self._wanted(settlements) if claims else 0,
                        settlements,
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
                    self._collect()  # others go on meanwhile
                    settlements += _all_of(self._unsettled)
                else:
                    self._has_to_settle = False
                    self._forget_settled(settlements, refused)
                    if refused:
                        self._release_waiting()
                    self._waiting.extend(found)
                    return bool(found)
        return False

    def _forget_settled(self, settlements: Sequence[Settled], refused: Sequence[Taken]) -> None:
        for taken, _ in settlements:
            self._give_back_place(taken)
        for lost in refused:
            _log_lost(lost)

    def _release_waiting(self) -> None:
        """Start nothing that was claimed with a job whose lease is over: most likely theirs are, too."""
        for taken in _all_of(self._waiting):
            self._release(taken)

    def _run_waiting(self) -> None:
        """Start what was claimed, one after the other where the runner runs one at a time."""
        if self._largest_batch and len(self._waiting) > 1 and not self._has_batches:
            self._has_batches = True
            self._limits.look_by(time.monotonic() + PATIENCE_S)
        while True:
            try:
                taken = self._waiting.popleft()
            except IndexError:
                break
            self._start(taken)
            self._collect()
            if self._has_to_settle and self._largest_batch:
                if not self._waiting:
                    break  # also when the rest is being handed back: it may be put back any moment
                self._settle_and_claim(claims=False)
        self._collect()

    def _start(self, taken: Taken) -> None:
        """Start a job, or release it when a stop came in between, or a whole lease has passed.

        A process that was stopped between claim and start, and then goes on, must not begin what is
        another's by now. The release is refused then, and told.
        """
        self._began_s = time.monotonic()
        if self._stopping or self._is_lease_over():
            self._release(taken)
            return
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
        if self._is_lease_over():
            # Asked again once the note stands: who found the lease over before that saw no start, and
            # let another have the job, uncounted. Who finds it later counts the attempt.
            del self._started[taken.tag]
            self._backend.note_end(attempt.place)
            self._free.append(attempt.place)
            self._release(taken)
            return
        if self._left is not None:
            self._left -= 1
        self._limits.watch(attempt)
        self._runner.start(attempt)

    def _is_lease_over(self) -> bool:
        """Say whether a whole lease has passed since the claim: nobody may have extended it."""
        return time.monotonic() - self._claimed_s >= self._lease_s

    def _release(self, taken: Taken) -> None:
        log.info("job_released", **_named(taken))
        self._unsettled.append((taken, Outcome.release()))

    def _collect(self) -> None:
        """See what has ended since the last call, and note it where that can be done."""
        for attempt, outcome in self._runner.ended():
            self._limits.forget(attempt)
            if self._largest_batch:
                took_s = time.monotonic() - self._began_s
                self._typical_s += (took_s - self._typical_s) * _WEIGHT
                self._note_ended(attempt, outcome)
            self._unsettled.append((attempt.taken, outcome))
            self._after_job()
            self._end_in_time()

    def _note_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        if (
            self._is_swept
            or not self._waiting  # the next claim settles it, at once
            or attempt.is_sensitive
            or not self._backend.note_ended(attempt.place, self._noted, attempt.taken, outcome)
        ):
            self._has_to_settle = True
            return
        self._noted += 1
        self._count_ended()
        del self._started[attempt.taken.tag]
        self._free.append(attempt.place)

    def _hand_back_in_time(self) -> float | None:
        """Let nothing wait long behind others of its batch. Called from the limits' thread.

        Return when to look again, on the monotonic clock; None when it is called before that anyhow.
        """
        if not self._largest_batch:
            return None
        now_s = time.monotonic()
        if not (self._waiting or self._unsettled):
            # Between two batches. It comes again by itself as long as there are some: to wake a thread
            # for each costs more than the batch.
            had_batches, self._has_batches = self._has_batches, False
            return now_s + PATIENCE_S if had_batches else None
        if now_s - self._claimed_s < PATIENCE_S:
            return self._claimed_s + PATIENCE_S
        if self._handing_back is None or not self._handing_back.is_alive():
            thread = threading.Thread(
                target=self._hand_back, name="sqlqueue-hand-back", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no thread to be had: perhaps the next time
                thread.start()
                self._handing_back = thread
        return now_s + PATIENCE_S

    def _hand_back(self) -> None:
        """Hand back what waits behind a job that is not short, and settle what has ended."""
        with self._settling:
            if time.monotonic() - self._claimed_s < PATIENCE_S:
                return  # another batch, by now
            ended, waiting = _all_of(self._unsettled), _all_of(self._waiting)
            settlements = [*ended, *((taken, Outcome.release()) for taken in waiting)]
            try:
                refused = self._backend.settle(settlements) if settlements else []
            except Exception:  # noqa: BLE001 - the consumer meets it, too, and knows what to do
                self._unsettled.extendleft(reversed(ended))
                self._waiting.extendleft(reversed(waiting))
                return
            self._forget_settled(settlements, refused)
        for taken in waiting:
            log.info("job_released", **_named(taken))

    def _note_without_limit(self, settlements: Sequence[Settled]) -> None:
        """Let no time limit end what has ended by itself, and only waits to be settled."""
        for taken, _ in settlements:
            attempt = self._started.get(taken.tag)
            if attempt is not None and not self._is_swept:
                self._backend.note_start(attempt.place, taken, 0.0, attempt.allowed_when_lost)

    def _give_back_place(self, taken: Taken) -> None:
        attempt = self._started.pop(taken.tag, None)
        if attempt is not None:  # or it was never started, or its end was noted
            self._backend.note_end(attempt.place)
            self._free.append(attempt.place)
            self._count_ended()

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


def _all_of(some: deque[Element]) -> list[Element]:
    """Take everything out, each element at once: another thread may do the same."""
    taken = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(some.popleft())
    return taken


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
