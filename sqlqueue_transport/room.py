"""Keep room on a disk that fills up: publishes stop first, so that what is queued can be finished.

Not only publishes write. A claim and a settlement append to the log, and copying the log back makes
the database grow by what was published lately. On a disk that publishes have filled to the last byte
nothing can be ended any more, and so nothing removed: the queue could not drain by itself. A log of
1000 pages and as many pages of growth are 8 MB (`opening.connect`); twice that is room for results and
tracebacks of some thousand jobs, too. A longer line of jobs that leave much behind may still fill it.

What jobs publish themselves is let through: refused, another try of a Celery task, or what follows in a
chain, would be lost with the job that was to publish it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqlqueue_transport.errors import DiskFault

if TYPE_CHECKING:
    from pathlib import Path

KEPT_BYTES = 16 << 20
_SHARE = 8  # of a small disk an eighth is kept


def refuse_when_scarce(path: Path, size_bytes: int) -> None:
    """Raise DiskFault unless the disk of the file at `path` has room for so many bytes more.

    Nothing is stored then. Costs a system call (2 µs). What cannot be told here, as a quota, shows when
    the disk refuses.
    """
    try:
        found = os.statvfs(path)  # which opens nothing
    except OSError:  # it went away; the write itself says so better
        return
    free = found.f_bavail * found.f_frsize
    kept = min(KEPT_BYTES, found.f_blocks * found.f_frsize // _SHARE)
    if free - size_bytes >= kept or not found.f_blocks:
        return
    message = (
        f"the disk of {path} is nearly full: {free / 1e6:.1f} MB are free, and {kept / 1e6:.1f} MB have to"
        " stay free to finish what is queued. Nothing was published; free some space and try again"
    )
    raise DiskFault(message)
