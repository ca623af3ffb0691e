"""Sleep until a queue may have work, and wake who sleeps: the two sides of `wakeup`.

A sleeper raises its flag, looks at the file once more, and sleeps on its bell. Who commits
something reads the flags afterwards. One process has one flag and one bell, however many threads
sleep in it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import TYPE_CHECKING

from sqlqueue_transport import statements as sql
from sqlqueue_transport import wakeup
from sqlqueue_transport.errors import TransportError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database, Result
    from sqlqueue_transport.presence import PresenceFile
    from sqlqueue_transport.routing import Landed

LONGEST_SLEEP_S = 1.0


class Sleepers:
    """Let threads of this process sleep, and wake sleepers of any; safe to share.

    `presence` returns the presence file, attaching it if need be, `slot` the slot that this
    process holds at the moment.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        presence: Callable[[], PresenceFile],
        slot: Callable[[], int | None],
    ) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock
        self._presence = presence
        self._own_slot = slot
        self._last_woken = -1
        # Who sleeps: which queues each waits for, and until when.
        self._asleep: dict[int, tuple[Sequence[str], int]] = {}
        self._naps = itertools.count()
        self._mutex = threading.Lock()

    def sleep(
        self,
        slot: int,
        bell: wakeup.Bell,
        queues: Sequence[str],
        timeout_s: float,
        *,
        has_work: Callable[[Sequence[str]], bool],
        until_due: bool = True,
    ) -> bool:
        """Sleep on `bell` until one of these queues may have work, at most `timeout_s` and 1 s.

        With `until_due` False a message that becomes due does not end it.
        """
        timeout_s = min(timeout_s, LONGEST_SLEEP_S)
        heard = bell.heard
        nap = self.lie_down(slot, queues, timeout_s)
        try:
            if has_work(queues):
                return True
            due_in_s = self.due_in_s() if until_due else None
            if due_in_s is not None:
                timeout_s = min(timeout_s, due_in_s)
            return bell.wait(timeout_s, since=heard)
        finally:
            self.get_up(slot, nap)

    def lie_down(self, slot: int, queues: Sequence[str], timeout_s: float) -> int:
        """Raise the flag for these queues; pair it with `get_up` of the number returned.

        Look at the file afterwards, and only then sleep: what was committed before the flag was up
        rings nobody.
        """
        nap = next(self._naps)
        until_ms = self._clock.wall_ms() + round(timeout_s * 1000)
        with self._mutex:
            self._asleep[nap] = tuple(queues), until_ms
            self._show(slot)
        return nap

    def get_up(self, slot: int, nap: int) -> None:
        """Lower the flag again, as far as this sleeper is concerned."""
        with self._mutex:
            self._asleep.pop(nap, None)
            self._show(slot)

    def due_in_s(self) -> float | None:
        """Return in how many seconds the next message is due; None when none is to come."""
        due_ms = self._database.read(lambda c: c.execute(sql.NEXT_DUE).fetchone()[0])
        return None if due_ms is None else (due_ms - self._clock.wall_ms()) / 1000

    def _show(self, slot: int) -> None:
        """Raise the flag for all that sleep in this process, or lower it when none does."""
        if slot != self._own_slot():
            return  # another thread gave it back, and it may be somebody else's now
        presence = self._presence()
        if not self._asleep:
            presence.lower_flag(slot)
            return
        queues = dict.fromkeys(queue for queues, _ in self._asleep.values() for queue in queues)
        presence.raise_flag(slot, list(queues), max(until for _, until in self._asleep.values()))

    def wake_for(self, landed: Landed) -> None:
        """Wake for what landed in queues, after the commit that stored it. Never raises, as `wake`."""
        try:
            anybody_sleeps = self._presence().anybody_sleeps
            for queue, due_ms in landed:
                if not anybody_sleeps():
                    return
                self.wake(queue, due_ms)
        except (OSError, TransportError, ValueError):  # as in `wake`
            pass

    def wake(self, queue: str, due_ms: int | None, *, everyone: bool = False) -> None:
        """Wake one sleeper that can claim from `queue`, after the commit that made it worth while.

        With `due_ms` only one that would sleep longer than that; with `everyone` all of them. Never
        raises: what was stored is stored, and a sleeper that is not woken looks by itself within a
        second.
        """
        # ValueError: another thread has closed the store, and with it the mapped file.
        with contextlib.suppress(OSError, TransportError, ValueError):
            presence = self._presence()
            asleep = list(presence.sleepers(queue, due_ms))
            # In turns: always the first would leave the others idle, and cold, for ever.
            asleep.sort(key=lambda sleeper: sleeper[0] <= self._last_woken)
            for slot, consumes_it in asleep:
                # Lowered by us, so that the next message wakes the next sleeper.
                if not presence.lower_flag(slot) or not self._ring(slot) or everyone:
                    continue
                if consumes_it:
                    self._last_woken = slot
                    return

    def _ring(self, slot: int) -> bool:
        with contextlib.suppress(OSError):
            return wakeup.ring(self._database.run_directory, slot)
        return False

    def after_fork_in_child(self) -> None:
        """Forget the parent's sleepers: their threads are not here."""
        self._mutex = threading.Lock()
        self._asleep.clear()

    def write(self, work: Callable[[sqlite3.Connection, Landed], Result]) -> Result:
        """Run `work` in a transaction, and wake for what it notes as landed in a queue."""
        landed: Landed = []

        def fresh(connection: sqlite3.Connection) -> Result:
            landed.clear()
            return work(connection, landed)

        result = self._database.write(fresh)
        self.wake_for(landed)
        return result
