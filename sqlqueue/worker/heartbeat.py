"""Stamp the slot of this process from a thread, for as long as its interpreter runs.

The supervisor extends only leases of children with a fresh stamp. The thread needs the GIL and
makes no transaction: a process that is stopped, or whose C code holds the GIL, goes silent.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Heartbeat", "interval_s"]


def interval_s(visibility_timeout_s: float) -> float:
    """Return how often a slot is stamped: several times within the shortest lease."""
    return min(1.0, visibility_timeout_s / 4)


class Heartbeat:
    """Call `beat` regularly from a daemon thread until stopped."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        """Start at once, with a first beat from the calling thread."""
        self._beat = beat
        self._every_s = every_s
        self._stop = threading.Event()
        beat()
        self._thread = threading.Thread(target=self._run, name="sqlqueue-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._beat()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._thread.join()
