"""Keep room on a disk that fills up: publishes stop first, so that what is queued can be finished.

Not only publishes write. A claim and a settlement append to the log, and copying the log back makes
the database grow by what was published lately. On a disk that publishes have filled to the last byte
nothing can be ended any more, and so nothing removed: the queue could not drain by itself. A log of
1000 pages and as many pages of growth are 8 MB (`opening.connect`); twice that is room for results and
tracebacks of some thousand jobs, too. A longer line of jobs that leave much behind may still fill it.

What jobs publish themselves is let through: refused, another try of a Celery task, or what follows in a
chain, would be lost with the job that was to publish it.

Who looks at the disk for each message pays 2 µs for it. So a disk that was found far from full is
believed to be so for a tenth of a second, less what was published meanwhile; others would have to write
a quarter of a gigabyte in that time to touch what is kept. Nearer to the end each publish looks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import DiskFault

if TYPE_CHECKING:
    from pathlib import Path

KEPT_BYTES = 16 << 20
_SHARE = 8  # of a small disk an eighth is kept
FAR_BYTES = 256 << 20
LOOK_EVERY_S = 0.1


class Room:
    """Know how much room there is on the disk of one file; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Look when first asked. `path` is the database's."""
        self._path = path
        # How far from full: what others may take before it is touched what is kept.
        self._far_bytes = 0
        self._looked_at_s = 0.0

    def refuse_when_scarce(self, size_bytes: int) -> None:
        """Raise DiskFault unless the disk has room for so many bytes more; nothing is stored then.

        What cannot be told here, as a quota, shows when the disk refuses.
        """
        left = self._far_bytes - size_bytes
        if left >= 0 and abs(time.monotonic() - self._looked_at_s) < LOOK_EVERY_S:
            self._far_bytes = left  # of two threads at once one may be forgotten: there is a lot
            return
        self._look(size_bytes)

    def _look(self, size_bytes: int) -> None:
        try:
            found = os.statvfs(self._path)  # which opens nothing
        except OSError:  # it went away; the write itself says so better
            return
        free = found.f_bavail * found.f_frsize
        kept = min(KEPT_BYTES, found.f_blocks * found.f_frsize // _SHARE)
        self._far_bytes = free - size_bytes - kept - FAR_BYTES
        self._looked_at_s = time.monotonic()
        if free - size_bytes >= kept or not found.f_blocks:
            return
        message = (
            f"the disk of {self._path} is nearly full: {free / 1e6:.1f} MB are free, and {kept / 1e6:.1f} MB"
            " have to stay free to finish what is queued. Nothing was published; free some space and try again"
        )
        raise DiskFault(message)
