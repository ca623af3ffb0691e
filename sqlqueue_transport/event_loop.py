"""Consume inside of Kombu's event loop (`kombu.asynchronous.Hub`), as a Celery worker does.

The loop polls descriptors; we give it two, and a turn. The turn comes before each poll: it gets
up, delivers a batch of what is ready, lies down again (raises the flag) and looks at the file
once more. So a message is either seen by that look, or its publisher sees the flag and rings, and
the poll ends. What the poll cannot know, because its timeout was computed before the turn
(Kombu 5.7), is told by a byte in our own pipe, which ends it at once: that a batch left something
behind, or that a message is due sooner than anything the loop waits for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from sqlqueue_transport import forking, wakeup
from sqlqueue_transport.sleepers import LONGEST_SLEEP_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue_transport.store import Store

# Messages a turn; the loop has other work, too.
BATCH = 32
_WORD = b"!"


class LoopSide:
    """Be what one transport has in an event loop; made in the loop's thread, and closed there.

    `deliver_one` says whether there was a message to deliver, `open_queues` from which queues one
    might be. `wake` may be called from any thread.
    """

    fork_order = 2  # its lock is held by nobody who takes another, so any will do

    def __init__(
        self,
        loop: Any,
        store: Store,
        *,
        deliver_one: Callable[[], bool],
        open_queues: Callable[[], list[str]],
    ) -> None:
        """Enter the loop. Raises OSError when there are no more descriptors."""
        self._loop = loop
        self._store = store
        self._deliver_one = deliver_one
        self._open_queues = open_queues
        self._is_open = True
        # Other threads wake the loop while its own leaves it: see `wake`. Reentrant, because a
        # signal handler may do so, too.
        self._mutex = threading.RLock()
        self._due_ms: int | None = None
        self._due_timer: Any = None
        self._nap: tuple[int, int] | None = None
        _, self._bell = store.consumers.ready_to_sleep()
        # A descriptor of our own for the same FIFO: two transports in one loop must not take
        # each other's reader away.
        self._ears = os.dup(self._bell.descriptor)
        self._reading, self._writing = os.pipe()
        for descriptor in (self._reading, self._writing):
            os.set_blocking(descriptor, False)
        self._bell.add_echo(self._writing)
        loop.add_reader(self._ears, self._bell.hear)
        loop.add_reader(self._reading, wakeup.silence, self._reading)
        loop.on_tick.add(self.turn)
        # The safety look: a publisher may be killed between its commit and the ring.
        self._look = loop.call_repeatedly(LONGEST_SLEEP_S, _do_nothing)
        forking.guard(self)

    def turn(self) -> None:
        """Deliver a batch, then make sure that what comes next ends the loop's poll.

        What a callback raises passes through, and so do the transport's errors.
        """
        self._get_up()
        for _ in range(BATCH):
            if not self._deliver_one():
                break
        else:
            self.wake()
            return
        queues = self._open_queues()
        if not queues:
            return  # full: whoever makes room wakes us
        slot, bell = self._store.consumers.ready_to_sleep()
        if bell is not self._bell:  # registered anew meanwhile
            self._change_bell(bell)
        self._nap = slot, self._store.consumers.sleepers.lie_down(slot, queues, LONGEST_SLEEP_S)
        if self._store.has_work(queues):
            self.wake()
            return
        self._wait_for_due()

    def wake(self) -> None:
        """End the loop's poll, now or the next one; do nothing when the loop was left.

        By then the pipe's number may be another file's, the database's perhaps.
        """
        with self._mutex, contextlib.suppress(BlockingIOError):  # full: it is awake already
            if self._is_open:
                os.write(self._writing, _WORD)

    def _wait_for_due(self) -> None:
        """Have a timer for what is due before the next safety look, made once for each time."""
        due_ms = self._store.next_due_ms()
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
            self.wake()  # so that the loop computes its timeout again, with this timer

    def _on_due(self) -> None:
        self._due_ms = self._due_timer = None
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
        self._look.cancel()
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._get_up()
        for descriptor in (self._ears, self._reading):
            loop.remove_reader(descriptor)
        self._bell.remove_echo(self._writing)
        self._close_descriptors()

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
        if self._is_open:
            self._close_descriptors()


def _do_nothing() -> None:
    """Be the timer that bounds the loop's poll; the turn before it does the looking."""
