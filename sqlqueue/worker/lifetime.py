"""When a child has lived long enough, and is to be replaced by a fresh one.

For tasks that leak: memory, descriptors, connections of a library. The child is asked between two
jobs, so nothing is interrupted; its supervisor forks another one at once.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Final

__all__ = ["Lifetime", "resident_bytes"]

_STATM: Final = Path("/proc/self/statm")
_MIB: Final = 1024 * 1024


class Lifetime:
    """The bounds of one child's life: jobs and bytes of resident memory, 0 for no bound."""

    def __init__(self, *, max_jobs: int = 0, max_memory_bytes: int = 0) -> None:
        self._max_jobs = max_jobs
        self._max_memory_bytes = max_memory_bytes

    def jobs_left(self, jobs_ended: int) -> int | None:
        """Return how many more jobs a child may run that has ended so many; None for any number."""
        return max(self._max_jobs - jobs_ended, 0) if self._max_jobs else None

    def reason_to_end(self, jobs_ended: int) -> str | None:
        """Return why a child that has run so many jobs should end now, None if it should not.

        For the log. Asked after every job, so it costs one read of a file of the kernel at most.
        """
        if self._max_jobs and jobs_ended >= self._max_jobs:
            return f"it has run {jobs_ended} jobs, of {self._max_jobs} a child may run"
        if self._max_memory_bytes:
            bytes_now = resident_bytes()
            if bytes_now > self._max_memory_bytes:
                return (
                    f"it takes {bytes_now / _MIB:.1f} MiB of memory, of"
                    f" {self._max_memory_bytes / _MIB:.1f} MiB a child may take"
                )
        return None


def resident_bytes() -> int:
    """Return how much memory this process has in RAM, without its swapped pages.

    Where there is no /proc it is the most it ever had: the kernel tells no other figure there.
    """
    with contextlib.suppress(OSError):
        # proc(5): the second number is resident pages.
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, KiB elsewhere
