"""Keep the leases of a plain Kombu consumer alive, and sweep for the dead meanwhile.

A program that consumes through Kombu (Celery, a ConsumerMixin) does not know of leases. A thread
of its own process extends them as long as the process runs; when it is stopped or killed, so is
the thread, and its messages go to somebody else. The framework's workers do not use this: their
supervisor extends what its children hold.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue_transport.store import Store

SWEEP_EVERY_S = 1.0


class Keeper:
    """Run one daemon thread for one connection; `ensure_running` is cheap and survives forks."""

    def __init__(self, store: Store, *, lease_s: float, holds_any: Callable[[], bool]) -> None:
        """Prepare; nothing runs yet. `holds_any` says whether there is a lease to extend."""
        self._store = store
        self._lease_s = lease_s
        self._holds_any = holds_any
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        """Start the thread unless it runs in this very process."""
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
        pause_s = min(SWEEP_EVERY_S, self._lease_s / 4)
        while not stop.wait(pause_s):
            try:
                self._store.consumers.beat()
                if self._holds_any():
                    self._store.consumers.extend_worker(
                        [self._store.consumers.worker_id], self._lease_s
                    )
                self._store.consumers.sweep()
            except TransportError:
                # The file is busy or gone; the consumer itself will say so on its next call.
                continue
