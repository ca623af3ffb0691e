"""Acknowledgements of an event loop wait for the end of its turn, and are committed together.

A Celery worker made 1.4 write transactions a job, one of them to acknowledge; now it makes 0.4. What is
kept instead of "it is committed when `ack` returns":

* An acknowledgement that was called is committed before the loop waits, and before this connection
  publishes, rejects, extends or claims anything further.
* It waits at most about a second, whatever the loop's thread does meanwhile: the connection's keeper
  looks once a second. The end of a channel, of a connection and of the interpreter commit it first.
* A process killed before that has not acknowledged: those messages come again, as those do whose
  acknowledgement was on its way to a server.

So only the thread of a running loop holds them. Everybody else (`drain_events`, `get`, other
threads) finds it committed, or an error, when `ack` returns; unless a program that drains asks for
the same with `group_acks`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

from kombu.log import get_logger

from sqlqueue_transport.errors import LeaseLost, Unavailable
from sqlqueue_transport.messages import Outcome, Settlement, split_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlqueue_transport.messages import Claim
    from sqlqueue_transport.store import Store

logger = get_logger(__name__)

_DONE = Outcome.done()


class HeldAcks:
    """Hold acknowledgements of one connection, and commit them with what is settled or claimed next.

    Only the loop's thread holds; any thread may settle. An acknowledgement that was held and comes
    too late changes nothing, as ever, and is logged (`lease_lost`), because nobody is left to be told.
    """

    def __init__(self, store: Store, *, durable: bool) -> None:
        """Hold none. `durable` settles on the disk."""
        self._store = store
        self._durable = durable
        # A deque, whose ends are atomic: the keeper's thread may take while the loop's thread holds.
        self._waiting: deque[Settlement] = deque()
        self._loop_thread: int | None = None
        self._is_owed = False

    def __bool__(self) -> bool:
        """Say whether any waits."""
        return bool(self._waiting)

    def begin(self) -> None:
        """Hold what the calling thread acknowledges from now on: it runs a loop, or drains."""
        self._loop_thread = threading.get_ident()

    def end(self) -> None:
        """Hold nothing any more, because no loop will come by; commit what waits, now or later."""
        self._loop_thread = None
        with contextlib.suppress(Unavailable):  # it is owed
            self.settle()

    def hold(self, tags: Iterable[int]) -> bool:
        """Hold deliveries that are done; False when the caller has to settle them himself."""
        if self._loop_thread != threading.get_ident():
            return False
        for tag in tags:
            self._waiting.append(Settlement(*split_tag(tag), _DONE))
        if not self._is_owed:
            # Whoever pays debts, once a second and before the store is closed, settles these too.
            self._is_owed = True
            self._store.owe(self._pay)
        return True

    def settle(self, settlements: Sequence[Settlement] = ()) -> list[Settlement]:
        """End what waits and these deliveries in one transaction; return the refused of these.

        Raises Unavailable; what waited then waits on. If the process dies midway, all of them are
        applied or none.
        """
        if not self._waiting:
            return self._store.settle(settlements, durable=self._durable) if settlements else []
        return self._with_waiting(
            lambda waiting: self._store.settle([*waiting, *settlements], durable=self._durable)
        )

    def claim(self, claim: Callable[[Sequence[Settlement]], Claim]) -> Claim:
        """Let `claim` settle what waits in its own transaction, whose refused ones are logged here."""
        if not self._waiting:
            return claim(())
        claims: list[Claim] = []

        def work(waiting: Sequence[Settlement]) -> list[Settlement]:
            claims.append(claim(waiting))
            return claims[0].refused

        self._with_waiting(work)
        return claims[0]

    def forget(self) -> None:
        """Drop what waits: in a forked child, where it is the parent's."""
        self._waiting.clear()
        self._loop_thread = None

    def _with_waiting(
        self, work: Callable[[Sequence[Settlement]], list[Settlement]]
    ) -> list[Settlement]:
        waiting: list[Settlement] = []
        try:
            with contextlib.suppress(IndexError):
                while True:
                    waiting.append(self._waiting.popleft())
            refused = work(waiting)
        except BaseException:
            self._waiting.extendleft(reversed(waiting))
            raise
        others = []
        for one in refused:
            if any(one is each for each in waiting):
                logger.warning("lease_lost: %s", LeaseLost(one.message_id, one.delivery))
            else:
                others.append(one)
        return others

    def _pay(self) -> None:
        self._is_owed = False
        try:
            self.settle()
        except BaseException:
            self._is_owed = True
            raise
