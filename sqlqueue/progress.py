"""How far a running job is: from `Task.progress` to the broker, no more often than is worth a write.

The first word is written at once, by whoever says it. What follows within half a second is held back,
and the newest of it is written by a thread when the half second is over: a loop may report each of a
million rows, and its last word is seen all the same while the task goes on with something long.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlqueue.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reporter", "Word", "word"]

EVERY_S: Final = 0.5


class Word(NamedTuple):
    """Be what a task said: `total` None means that it does not know."""

    done: float
    total: float | None
    note: str


def word(done: float, total: float | None, note: object) -> Word:
    """Check what a task says of itself. Raises ValueError for what is no amount, or no text."""
    if not isinstance(note, str):
        raise ValueError(f"progress(note={quoted(note)}): give a text")  # noqa: TRY004 - one kind
    return Word(_amount(done, "done"), None if total is None else _amount(total, "total"), note)


def _amount(value: Any, name: str) -> float:
    try:
        amount = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        amount = math.nan
    if not (math.isfinite(amount) and amount >= 0):
        raise ValueError(f"progress({name}={quoted(value)}): give a finite number, 0 or more")
    return amount


class Reporter:
    """Pass on what one run of a job says, at most twice a second. Any thread may report.

    `write` stores a word and returns False when the job is not ours any more: then nothing more is
    written. It may take as long as a write takes, and must not raise. `clock` counts seconds.
    """

    def __init__(
        self,
        write: Callable[[float, float | None, str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is written before the first word."""
        self._write = write
        self._clock = clock
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._written_s = -math.inf
        self._held: Word | None = None
        self._timer: threading.Timer | None = None
        self._is_over = False

    def report(self, said: Word) -> None:
        """Write a word now, or soon; a newer one takes the place of one that is held back.

        In a process that the task has forked nothing happens: its words are not the job's.
        """
        if os.getpid() != self._pid:
            return
        with self._mutex:
            if self._is_over:
                return
            wait_s = self._written_s + EVERY_S - self._clock()
            if wait_s <= 0:
                self._say(said)
                return
            self._held = said
            if self._timer is None:
                self._timer = threading.Timer(wait_s, self._say_held)
                self._timer.name = "sqlqueue-progress"
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write what is held back, and nothing from then on: before the job's outcome is settled."""
        with self._mutex:
            timer, self._timer = self._timer, None
            if self._held is not None and not self._is_over:
                self._say(self._held)
            self._is_over = True
        if timer is not None:
            timer.cancel()

    def _say_held(self) -> None:
        with self._mutex:
            self._timer = None
            if self._held is not None and not self._is_over:
                self._say(self._held)

    def _say(self, said: Word) -> None:
        """Write, with the mutex held."""
        self._held = None
        self._is_over = self._write(*said) is False
        self._written_s = self._clock()
