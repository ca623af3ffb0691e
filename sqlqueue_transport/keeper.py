"""Keep the leases of a plain Kombu consumer alive, sweep for the dead, and keep house.

A program that consumes through Kombu (Celery, a ConsumerMixin) does not know of leases. A thread
of its own process extends them as long as the process runs; when it is stopped or killed, so is
the thread, and its messages go to somebody else. The framework's workers do not use this: their
supervisor extends what its children hold.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue_transport.options import Options
    from sqlqueue_transport.store import Store

SWEEP_EVERY_S = 1.0
HOUSE_AFTER_S = 60.0  # not at once: a program that lives for a moment has better things to do
# A lease is extended when a quarter of it has passed, so that three attempts may fail.
_EXTENSIONS_A_LEASE = 4


class Keeper:
    """Run one daemon thread for one connection; `ensure_running` is cheap and survives forks."""

    def __init__(
        self, store: Store, options: Options, held: Callable[[], list[tuple[int, int]]]
    ) -> None:
        """Prepare; nothing runs yet. `held` returns the deliveries whose leases to extend.

        They are named one by one: what was claimed and then lost sight of, by an exception at
        the wrong moment, runs out of its lease and comes back.
        """
        self._store = store
        self._options = options
        self._held = held
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._pid = os.getpid()

    def ensure_running(self) -> None:
        """Start the thread unless it runs in this very process."""
        if self._pid != os.getpid():  # the fork may have copied the lock taken
            self._pid, self._starting = os.getpid(), threading.Lock()
        if self._thread is not None and self._thread.is_alive():
            return
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="sqlqueue-keeper", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _run(self, stop: threading.Event) -> None:
        from sqlqueue_transport.pruning import Policy  # noqa: PLC0415 - late: in this thread

        lease_s = self._options.visibility_timeout
        policy = Policy.of(self._options)
        extend_every_s = lease_s / _EXTENSIONS_A_LEASE
        look_every_s = min(SWEEP_EVERY_S, extend_every_s)
        now_s = time.monotonic()
        # What was claimed before the thread ran may have a quarter of its lease behind it.
        extend_s, look_s, house_s = now_s, now_s + look_every_s, now_s + HOUSE_AFTER_S
        while not stop.wait(max(min(look_s, house_s) - time.monotonic(), 0.0)):
            consumers = self._store.consumers
            try:
                now_s = time.monotonic()
                if now_s >= look_s:
                    look_s = now_s + look_every_s
                    consumers.beat()
                    if now_s >= extend_s:
                        self._store.extend(self._held(), lease_s)
                        extend_s = now_s + extend_every_s
                    self._store.do_what_is_owed()
                    consumers.sweep()
                if now_s >= house_s:
                    house_s = now_s + HOUSE_AFTER_S  # also when it fails
                    pause_s = self._store.housekeeping.turn(policy).pause_s
                    house_s = time.monotonic() + pause_s
            except (TransportError, OSError):
                # The file is busy or gone; the consumer itself will say so on its next call.
                continue
