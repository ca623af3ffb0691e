"""The places of a worker, each for one child: what runs there, and how it went with its predecessors.

Bookkeeping of the supervisor; it forks nothing and logs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from sqlqueue_transport.presence import NOTES

__all__ = ["FIRST_WARNING_S", "Child", "Place", "backoff_s", "places_for"]

FIRST_WARNING_S: Final = 10.0  # a start that takes longer is told of
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_YOUNG_S: Final = 2.0  # where children in a row die younger than this, the next ones wait
_YOUNG_IN_A_ROW: Final = 3  # so many are replaced at once


@dataclass(slots=True)
class Child:
    """Be one living child. `left` is how many jobs it may still run, None without a limit."""

    index: int
    name: str
    pid: int
    started_s: float
    left: int | None
    warn_after_s: float = FIRST_WARNING_S


@dataclass(slots=True)
class Place:
    """Be a place for one child. `threads` is how many jobs that runs at once, 0 one without any.

    `left` is how many jobs may still be run in this place, None without a limit; `not_before_s` is
    when the next child may start, on the monotonic clock.
    """

    threads: int
    left: int | None
    is_over: bool = False
    not_before_s: float = 0.0
    failures: int = 0  # children in a row that died young
    failed_starts: int = 0  # children in a row that did not get as far as claiming

    def note_good_end(self) -> None:
        """Let the next child start at once."""
        self.failures, self.failed_starts, self.not_before_s = 0, 0, 0.0

    def note_death(self, child: Child) -> float:
        """Return after how many seconds a child that died at work is replaced."""
        self.failed_starts = 0
        is_young = time.monotonic() - child.started_s < _YOUNG_S
        self.failures = self.failures + 1 if is_young else 0
        return self._rest(self.failures if self.failures > _YOUNG_IN_A_ROW else 0)

    def note_failed_start(self) -> float:
        """Return after how many seconds the next start is tried."""
        self.failed_starts += 1
        return self._rest(self.failed_starts)

    def _rest(self, failures: int) -> float:
        wait_s = backoff_s(failures)
        self.not_before_s = time.monotonic() + wait_s
        return wait_s


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row: not at all after none, then doubling."""
    doubled_s = _FIRST_BACKOFF_S * float(2 ** min(failures - 1, 16)) if failures else 0.0
    return min(doubled_s, _LONGEST_BACKOFF_S)


def places_for(concurrency: int, max_jobs: int | None, *, threads: bool) -> list[Place]:
    """Make the children's places, and divide among them the jobs at once and the jobs in all.

    A child notes what it has started in a slot with room for `NOTES` jobs, so of many threads each
    child gets its share.
    """
    children = -(-concurrency // NOTES) if threads else concurrency
    at_once = _shares(concurrency, children) if threads else [0] * children
    lefts = [None] * children if max_jobs is None else _shares(max_jobs, children)
    return [Place(count, left) for count, left in zip(at_once, lefts, strict=True) if left != 0]


def _shares(whole: int, parts: int) -> list[int]:
    """Divide a number so that the sum is exact."""
    share, rest = divmod(whole, parts)
    return [share + (index < rest) for index in range(parts)]
