"""A queue file as the ops page sees it, at a time the test says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlqueue.consoles.ops.snapshot import Memory, Snapshot, take
from sqlqueue.consoles.ops.view import WINDOWS, Window
from sqlqueue.inspection import Inspection
from sqlqueue_transport import Fault, Outcome
from sqlqueue_transport.clock import SYSTEM_CLOCK
from tests.cli.filling import Filled
from tests.support import FakeClock

# A multiple of every bucket's length.
NOW_MS = 1_764_000_000_000 // 3_600_000 * 3_600_000


class Seen:
    """Fill a file and look at it by one clock."""

    def __init__(self, path: Path) -> None:
        # Of this boot, so that other processes may use the file, too.
        machine = SYSTEM_CLOCK
        self.clock = FakeClock(wall=NOW_MS, lease=machine.lease_ms(), boot_id=machine.boot())
        self.filled = Filled(path, clock=self.clock)
        self.memory = Memory()
        self._backend = self.filled.backend()
        self.inspection = Inspection(
            self._backend, settings=self._settings(), clock=self.clock, max_attempts={}
        )

    def look(self, window: str | Window = "1h") -> Snapshot:
        """Return what the page sees now."""
        chosen = WINDOWS[window] if isinstance(window, str) else window
        return take(self.inspection, chosen, self.memory)

    def done(self, *, waited_s: float = 1, ran_s: float = 2, **job: Any) -> str:
        """Add a job that waited and ran so long, and is done now."""
        return self._ended(Outcome.done("null"), waited_s, ran_s, **job)

    def dead(self, kind: str = "ValueError", message: str = "no such file", **job: Any) -> str:
        """Add a dead letter of this moment."""
        return self._ended(Outcome.dead(Fault(kind, message, "Traceback")), 1, 2, **job)

    def close(self) -> None:
        """Give the file back."""
        self._backend.close()
        self.filled.close()

    def _ended(self, outcome: Outcome, waited_s: float, ran_s: float, **job: Any) -> str:
        job_id = self.filled.publish(**job)
        self.clock.advance(waited_s)
        delivery = self.filled.claim(job.get("queue", "default"), lease_s=ran_s + 60)
        self.clock.advance(ran_s)
        assert self.filled.settle(delivery, outcome)
        return job_id

    def _settings(self) -> Any:
        from sqlqueue.config import Settings

        return Settings(broker_url=f"sqlqueue:///{self.filled.path}", visibility_timeout=60.0)


@contextlib.contextmanager
def seeing(path: Path) -> Iterator[Seen]:
    """Open a new file for a test, and give it back."""
    seen = Seen(path)
    try:
        yield seen
    finally:
        seen.close()
