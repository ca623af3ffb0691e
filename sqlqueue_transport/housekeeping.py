"""Keep the file small: bounded work, done by whatever process is alive, and by one at a time.

There is no leader to lose. The file holds a mark: who last did some of it, and when on the lease
clock. A process that finds the mark a minute old puts its own in its place, compare-and-set, and
so has the next round; it renews the mark with each portion it does. When it dies, the mark grows
old, and another process goes on. A mark that was taken from a process that had been stopped ends
that process's round.

A portion is one transaction of a few milliseconds. How many rows that is depends on the rows and on
the machine, so it is measured: too long halves the next portion of its kind, short lets it grow.
Between two portions all others have the file for nine times as long as the portion took.

Age is told by the wall clock, and a wall clock can be set wrong: nothing is removed for a day after
a jump (`clock.JumpWatch`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlqueue_transport import statements as sql
from sqlqueue_transport.clock import JumpWatch
from sqlqueue_transport.log_guard import LogGrown, LogGuard

if TYPE_CHECKING:
    import sqlite3

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database
    from sqlqueue_transport.pruning import Piece, Policy

EVERY_MS = 60_000
# What SQLite may take for one portion, its commit not counted: that costs about as much again, and
# once in a while, as anybody's commit, some ten milliseconds to copy a part of the log back.
LONGEST_PORTION_S = 0.0025
_REST = 9  # times as long as a portion took
_SHORTEST_REST_S = 0.02
_MARK = "housekeeping"


@dataclass(frozen=True, slots=True)
class Turn:
    """Be what one call did: rows removed by kind (and "pages").

    Another call does nothing before `pause_s` seconds have passed. `log_grown` is there when
    somebody should hear of it.
    """

    pause_s: float
    removed: dict[str, int] = field(default_factory=dict)
    log_grown: LogGrown | None = None


@dataclass(slots=True)
class Portion:
    """Be how many rows of a kind are worked through at once."""

    rows: int = 50

    def measured(self, took_s: float) -> None:
        """Halve what took too long; let grow by an eighth what took less than half of that."""
        if took_s > LONGEST_PORTION_S:
            self.rows = max(self.rows // 2, 1)
        elif took_s < LONGEST_PORTION_S / 2:
            self.rows = min(self.rows + self.rows // 8 + 1, 2000)


class Housekeeping:
    """Do the housekeeping of one file; one object per store, cheap to call often."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._jumps = JumpWatch(clock)
        self._guard = LogGuard(database, clock)
        self._next_ms = 0  # on the lease clock, which does not jump
        self._mark = ""  # "": this process has no round
        self._left: deque[Piece] = deque()
        self._portions: defaultdict[str, Portion] = defaultdict(Portion)
        self._working = threading.Lock()
        self._pid = os.getpid()

    def turn(self, policy: Policy) -> Turn:
        """Do at most one portion of what is due, and say when to ask again.

        Any thread of any process may call this as often as it likes: before its time comes, a call
        costs no transaction, and none at all in a thread while another one is at it. Raises the
        database's errors. If the process dies midway, a portion is gone or still there, and another
        process goes on after a minute.
        """
        if self._pid != os.getpid():  # the fork may have copied the lock taken, and the round
            self._pid, self._working = os.getpid(), threading.Lock()
            self._mark, self._left = "", deque()
        now_ms = self._clock.lease_ms()
        if now_ms < self._next_ms or not self._working.acquire(blocking=False):
            return Turn(max(self._next_ms - now_ms, 1000 * _SHORTEST_REST_S) / 1000)
        try:
            # Set before: also after an error the next call comes a minute later.
            self._next_ms = now_ms + EVERY_MS
            if not self._mark and not self._take_round(policy, now_ms):
                return Turn((self._next_ms - now_ms) / 1000)
            removed, took_s = self._portion(now_ms)
            grown = None
            if not self._left:
                self._mark = ""
                grown = self._guard.look()
            else:
                rest_s = max(_REST * took_s, _SHORTEST_REST_S)
                self._next_ms = now_ms + round(1000 * (took_s + rest_s))
            return Turn((self._next_ms - now_ms) / 1000, removed, grown)
        finally:
            self._working.release()

    def _take_round(self, policy: Policy, now_ms: int) -> bool:
        """Put our mark in the place of one that is a minute old; say whether that succeeded."""
        found = self._database.read(lambda c: c.execute(sql.GET_META, {"key": _MARK}).fetchone())
        if found is not None:
            boot, at_ms, _ = found[0].split()
            age_ms = now_ms - int(at_ms)
            if boot == self._clock.boot() and 0 <= age_ms < EVERY_MS:
                self._next_ms = now_ms + EVERY_MS - age_ms
                return False
        mark = self._new_mark(now_ms)

        def work(connection: sqlite3.Connection) -> int:
            if found is None:
                return connection.execute(sql.ADD_META, {"key": _MARK, "value": mark}).rowcount
            values = {"key": _MARK, "value": mark, "seen": found[0]}
            return connection.execute(sql.REPLACE_META, values).rowcount

        if not self._database.write(work):
            return False
        from sqlqueue_transport.pruning import pieces  # noqa: PLC0415 - late: seldom, and in one process

        is_time_right = not self._jumps.pauses()
        self._mark = mark
        self._left = deque(pieces(policy, self._clock.wall_ms(), is_time_right=is_time_right))
        return True

    def _portion(self, now_ms: int) -> tuple[dict[str, int], float]:
        """Renew the mark and work until something was removed, or for as long as a portion may.

        Return how much was removed of what, and how long others had to wait for it.
        """
        began_s = 0.0
        removed: dict[str, int] = {}
        mark = self._new_mark(now_ms)

        def work(connection: sqlite3.Connection) -> bool:
            nonlocal began_s
            began_s = time.monotonic()  # here, because now the lock is ours
            removed.clear()
            values = {"key": _MARK, "value": mark, "seen": self._mark}
            if not connection.execute(sql.REPLACE_META, values).rowcount:
                return False
            while self._left and not removed:
                piece_began_s = time.monotonic()
                piece = self._left.popleft()
                portion = self._portions[piece.name]
                done = piece.work(connection, portion.rows)
                now_s = time.monotonic()
                if done.removed or done.has_more:  # nothing to do says nothing of what it costs
                    portion.measured(now_s - piece_began_s)
                if done.removed:
                    removed[piece.name] = done.removed
                if done.has_more:  # behind the others, so that each gets on
                    self._left.append(piece)
                if now_s - began_s > LONGEST_PORTION_S:
                    break
            return True

        if self._database.write(work):
            self._mark = mark
        else:
            self._left.clear()  # somebody took this process for dead
        return removed, time.monotonic() - began_s

    def _new_mark(self, now_ms: int) -> str:
        return f"{self._clock.boot()} {now_ms} {os.getpid()}"
