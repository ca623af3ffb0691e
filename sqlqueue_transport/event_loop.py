"""Consume inside of Kombu's event loop (`kombu.asynchronous.Hub`), as a Celery worker does.

The loop polls descriptors; we give it two, and a turn. The turn comes before each poll. It commits
what was acknowledged since the one before, together with the claim that uses the room (`acks`),
and delivers. When there is nothing to deliver it raises the flag and looks at the file once more.
So a message is either seen by that look, or its publisher sees the flag and rings, and the poll
ends. The flag stays up until a message is fetched or somebody has rung, and turns in between do
not look again.

What the poll cannot know, because its timeout was computed before the turn (Kombu 5.7), is told by
a byte in our own pipe, which ends it at once: that something was delivered, or that a message is
due sooner than anything the loop waits for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from sqlqueue_transport import forking, wakeup
from sqlqueue_transport.sleepers import LONGEST_SLEEP_S

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlqueue_transport.acks import HeldAcks
    from sqlqueue_transport.store import Store

# Messages a turn; the loop has other work, too.
BATCH = 64
_WORD = b"!"


class Sources(Protocol):
    """Be asked for messages: see `Transport`."""

    def deliver_arrived(self) -> bool:
        """Deliver one message that was fetched; say whether there was one."""

    def fetch(self, ready: Collection[str] | None) -> bool:
        """Claim messages of one of these queues, or of any; say whether there were any."""

    def open_queues(self) -> list[str]:
        """Return the queues whose messages may be taken now."""


class LoopSide:
    """Be what one transport has in an event loop; made in the loop's thread, and closed there.

    `wake` may be called from any thread.
    """

    fork_order = 2  # its lock is held by nobody who takes another, so any will do

    def __init__(self, loop: Any, store: Store, acks: HeldAcks, sources: Sources) -> None:
        """Enter the loop. Raises OSError when there are no more descriptors."""
        self._loop = loop
        self._store = store
        self._acks = acks
        self._sources = sources
        self._is_open = True
        # Other threads wake the loop while its own leaves it: see `wake`. Reentrant, because a
        # signal handler may do so, too.
        self._mutex = threading.RLock()
        self._thread: int | None = None
        self._is_delivering = False
        self._is_awake = False
        self._due_ms: int | None = None
        self._due_timer: Any = None
        # While the flag is up: for which queues, what the bell had heard by then, and until when
        # that is to be trusted.
        self._nap: tuple[int, int] | None = None
        self._watched: frozenset[str] = frozenset()
        self._heard = 0
        self._look_again_s = 0.0
        _, self._bell = store.consumers.ready_to_sleep()
        # A descriptor of our own for the same FIFO: two transports in one loop must not take
        # each other's reader away.
        self._ears = os.dup(self._bell.descriptor)
        self._reading, self._writing = os.pipe()
        for descriptor in (self._reading, self._writing):
            os.set_blocking(descriptor, False)
        self._bell.add_echo(self._writing)
        loop.add_reader(self._ears, self._bell.hear)
        loop.add_reader(self._reading, self._hush)
        loop.on_tick.add(self.turn)
        loop.on_close.add(self._on_loop_closed)
        # The safety look: a publisher may be killed between its commit and the ring.
        self._look = loop.call_repeatedly(LONGEST_SLEEP_S, _do_nothing)
        forking.guard(self)

    def turn(self) -> None:
        """Deliver a batch, then make sure that what comes next ends the loop's poll.

        Whatever was acknowledged since the last turn, or in this one, is committed when this
        returns. What a callback raises passes through, and so do the transport's errors.
        """
        self._thread = threading.get_ident()
        self._acks.begin()
        if self._is_awake:
            self._hush()  # it asked for this turn
        self._is_delivering = True
        may_sleep = False
        try:
            may_sleep = self._deliver()
        finally:
            self._is_delivering = False
            if not may_sleep:
                self.wake()
            self._acks.settle()

    def _deliver(self) -> bool:
        """Deliver what is ready, up to a batch; say whether the loop may sleep.

        It may not after a delivery, although nothing may be left: what a callback put off by
        `call_soon`, as Celery does its acknowledgements, and what changes for the program around
        `run_once`, the loop looks at before a poll and not because of it (Kombu 5.7).
        """
        count = self._deliver_arrived(BATCH)
        queues = self._sources.open_queues()
        unknown = self._not_watched(queues)
        if self._acks and unknown:
            # A transaction is due in any case, and may claim as well.
            ready = unknown if len(unknown) == 1 else self._store.look(unknown)[0]
            count += self._fetch_and_deliver(ready, BATCH - count)
        if count:
            return False
        if not unknown:
            return True  # full, or all of them are watched: whoever changes that wakes us
        ready, due_ms = self._lie_down_and_look(queues)
        if ready:
            self._get_up()
            self._fetch_and_deliver(ready, BATCH)
            return False
        self._wait_for_due(due_ms)
        return True

    def _fetch_and_deliver(self, ready: Collection[str], limit: int) -> int:
        count = 0
        while count < limit and self._sources.fetch(ready):
            count += self._deliver_arrived(limit - count)
        return count

    def _deliver_arrived(self, limit: int) -> int:
        for count in range(limit):
            if not self._sources.deliver_arrived():
                return count
        return limit

    def _not_watched(self, queues: list[str]) -> list[str]:
        """Return those of which nobody would have told us, were there something in them."""
        if (
            self._nap is None
            or self._bell.heard != self._heard
            or self._bell is not self._store.consumers.bell  # registered anew meanwhile
            or time.monotonic() >= self._look_again_s
        ):
            return queues
        return [queue for queue in queues if queue not in self._watched]

    def _lie_down_and_look(self, queues: list[str]) -> tuple[list[str], int | None]:
        """Raise the flag for these queues, for as long as a turn may be away, and look at them.

        It stays up over further turns, which need not look at what is watched: a worker that is
        full watches its remote control all the time, and must not pay for it.
        """
        slot, bell = self._store.consumers.ready_to_sleep()
        if bell is not self._bell:
            self._change_bell(bell)
        self._get_up()
        self._heard = bell.heard
        # The poll that begins just before the next look may take as long as the longest sleep.
        self._look_again_s = time.monotonic() + LONGEST_SLEEP_S * 0.9
        nap = self._store.consumers.sleepers.lie_down(slot, queues, 2 * LONGEST_SLEEP_S)
        self._nap, self._watched = (slot, nap), frozenset(queues)
        return self._store.look(queues)

    def wake(self) -> None:
        """End the loop's poll, now or the next one; do nothing when the loop was left.

        By then the pipe's number may be another file's, the database's perhaps. Within a turn its
        own thread needs no waking: the turn ends with a look.
        """
        if self._is_delivering and self._thread == threading.get_ident():
            return
        with self._mutex:
            if self._is_open and not self._is_awake:
                self._is_awake = True
                with contextlib.suppress(BlockingIOError):  # full of echoes: it is awake already
                    os.write(self._writing, _WORD)

    def _hush(self) -> None:
        with self._mutex:
            if self._is_open:
                self._is_awake = False
                wakeup.silence(self._reading)

    def _wait_for_due(self, due_ms: int | None) -> None:
        """Have a timer for what is due before the next safety look, made once for each time."""
        if due_ms == self._due_ms:
            return
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._due_ms = self._due_timer = None
        left_s = LONGEST_SLEEP_S
        if due_ms is not None:
            left_s = (due_ms - self._store.clock.wall_ms()) / 1000
        if left_s < LONGEST_SLEEP_S:
            self._due_ms = due_ms
            self._due_timer = self._loop.call_later(max(left_s, 0.0), self._on_due)
            self._is_delivering = False  # or it would not be woken
            self.wake()  # so that the loop computes its timeout again, with this timer

    def _on_due(self) -> None:
        self._due_ms = self._due_timer = None
        self._look_again_s = 0.0
        self.wake()

    def _get_up(self) -> None:
        nap, self._nap = self._nap, None
        if nap is not None:
            self._store.consumers.sleepers.get_up(*nap)

    def _change_bell(self, bell: wakeup.Bell) -> None:
        self._loop.remove_reader(self._ears)
        os.close(self._ears)
        self._bell = bell
        self._ears = os.dup(bell.descriptor)
        bell.add_echo(self._writing)
        self._loop.add_reader(self._ears, bell.hear)

    def close(self) -> None:
        """Leave the loop, with no timer, reader or descriptor left behind; harmless twice."""
        if not self._is_open:
            return
        loop = self._loop
        loop.on_tick.discard(self.turn)
        loop.on_close.discard(self._on_loop_closed)
        self._acks.end()
        self._look.cancel()
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._get_up()
        for descriptor in (self._ears, self._reading):
            loop.remove_reader(descriptor)
        self._bell.remove_echo(self._writing)
        self._close_descriptors()

    def _on_loop_closed(self, _: Any) -> None:
        """Commit, because no turn will: what the loop has left to call is called after this."""
        self._acks.end()

    def _close_descriptors(self) -> None:
        with self._mutex:
            self._is_open = False
            for descriptor in (self._ears, self._reading, self._writing):
                os.close(descriptor)
        forking.forget(self)

    def before_fork(self) -> None:
        """Have nothing to close: the parent goes on with it."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Close the copies, so that nobody seems to listen when the parent is dead.

        The loop's own poller is shared with the parent and must not be touched.
        """
        self._mutex = threading.RLock()
        self._acks.forget()
        if self._is_open:
            self._close_descriptors()


def _do_nothing() -> None:
    """Be the timer that bounds the loop's poll; the turn before it does the looking."""
