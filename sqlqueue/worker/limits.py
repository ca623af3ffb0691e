"""Watch over the running attempts of this process from a thread of its own: limits, and wishes to stop.

What must hold whatever a task does (Python's lock held in C, signals ignored) is not done here but
by the supervisor, which kills the process. This thread does what a task can notice: it raises
SoftTimeLimitExceeded, and where other jobs share the process TimeLimitExceeded as well, so that they
need not die with it; and once a second it asks whether an operator wants one of them to stop.

The thread is started by the first attempt, and looks once a second while there is none. A stream of
short jobs wakes it twenty times a second, whatever their number: to see whether some wait behind one
that is not short.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from sqlqueue.errors import SoftTimeLimitExceeded, TimeLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.worker.attempt import Attempt

__all__ = ["Limits"]

_LOOK_EVERY_S: Final = 1.0
_INSIST_EVERY_S: Final = 0.002
# An attempt that ends meets one error at a time: see `execute.run`.
_APART_S: Final = 0.1


class Limits:
    """Throw limits into attempts. The consumer's thread calls everything here."""

    def __init__(
        self,
        *,
        raises_hard: bool,
        should_stop: Callable[[Sequence[Attempt]], Sequence[Attempt]],
        hand_back: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Prepare; the thread starts with the first attempt.

        `raises_hard` says that the time limit, too, is raised here. `should_stop` returns which of the
        attempts are not to go on. `hand_back` has done what is due for jobs that wait behind the running
        one, without waiting for it, and returns when to call it again on the monotonic clock, None for not before `look_by`.
        Both are called from the thread, and must not raise.
        """
        self._raises_hard = raises_hard
        self._should_stop = should_stop
        self._hand_back = hand_back
        self._asked_at_s = time.monotonic()
        self._watched: dict[int, Attempt] = {}
        self._is_sooner = threading.Event()
        self._looks_at_s = float("inf")
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def watch(self, attempt: Attempt) -> None:
        """Watch an attempt from now on."""
        self._watched[attempt.place] = attempt
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sqlqueue-limits", daemon=True)
            self._thread.start()
        elif self._looks_at_s > attempt.soft_at_s or (
            self._raises_hard and self._looks_at_s > attempt.hard_at_s
        ):
            self._is_sooner.set()

    def look_by(self, at_s: float) -> None:
        """Have a look at this time on the monotonic clock, or before."""
        if at_s < self._looks_at_s:
            self._is_sooner.set()

    def forget(self, attempt: Attempt) -> None:
        """Watch it no longer: it has ended."""
        self._watched.pop(attempt.place, None)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._is_stopping = True
        self._is_sooner.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping:
            # In this order what comes in between is never overlooked: it finds either a later look
            # than its own, and says so, or it is seen.
            self._is_sooner.clear()
            self._looks_at_s = float("inf")
            attempts = list(self._watched.values())
            for attempt in attempts:
                self._look_at(attempt)
            if attempts:
                self._ask(attempts)
            hands_back_at_s = self._hand_back()
            # Once a second also when there is nothing to look at. Whoever begins then need not wake us,
            # which would delay its first job.
            looks = [time.monotonic() + _LOOK_EVERY_S, *map(self._next_s, attempts)]
            self._looks_at_s = min(looks if hands_back_at_s is None else [*looks, hands_back_at_s])
            self._is_sooner.wait(max(self._looks_at_s - time.monotonic(), 0.0))

    def _look_at(self, attempt: Attempt) -> None:
        attempt.interrupt.insist()
        now_s = time.monotonic()
        if now_s >= attempt.soft_at_s:
            attempt.soft_at_s = float("inf")
            attempt.hard_at_s = max(attempt.hard_at_s, now_s + _APART_S)
            attempt.interrupt.throw(SoftTimeLimitExceeded)
        elif self._raises_hard and now_s >= attempt.hard_at_s:
            attempt.hard_at_s = float("inf")
            attempt.interrupt.throw(TimeLimitExceeded)

    def _ask(self, attempts: Sequence[Attempt]) -> None:
        if time.monotonic() - self._asked_at_s < _LOOK_EVERY_S:
            return
        self._asked_at_s = time.monotonic()
        for attempt in self._should_stop(attempts):
            attempt.ask_to_stop()

    def _next_s(self, attempt: Attempt) -> float:
        """Return when to look at an attempt again, on the monotonic clock."""
        wait_s = _INSIST_EVERY_S if attempt.interrupt.is_waiting else _LOOK_EVERY_S
        hard_at_s = attempt.hard_at_s if self._raises_hard else float("inf")
        return min(time.monotonic() + wait_s, attempt.soft_at_s, hard_at_s)
