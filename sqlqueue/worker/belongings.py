"""What of a child's process a task may have changed, put back after each job.

A task may set limits and timers, for itself or through a library, and forget them. The next job, and
the worker's own code, would live with them: a file size limit keeps the job from ever being settled,
an alarm that is left over ends the process in the middle of somebody else's job. (Signals are taken
back where they are listened to, in `child.py`.) What cannot be undone ends the process instead, so
that the job counts as lost and a fresh child takes over.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from typing import Final

__all__ = ["Belongings"]

_LIMITS: Final = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Belongings:
    """Remember limits when the process starts, and put them back; one thread."""

    def __init__(self, *, stops_timers: bool) -> None:
        """Look at this process.

        `stops_timers` is for a process whose jobs run one at a time: elsewhere a timer may be of
        another job that runs.
        """
        self._limits = {one: resource.getrlimit(one) for one in _LIMITS}
        self._stops_timers = stops_timers

    def take_back(self) -> bool:
        """Put back what a job has left changed; False where the system does not allow it."""
        if self._stops_timers:
            for timer in _TIMERS:
                signal.setitimer(timer, 0)
        return all(_put_back(limit, before) for limit, before in self._limits.items())


def _put_back(limit: int, before: tuple[int, int]) -> bool:
    soft, hard = resource.getrlimit(limit)
    if (soft, hard) == before:
        return True
    # Who may not raise a hard limit again still gets the soft one, as far as that.
    for wanted in (before, (before[0], hard)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, wanted)
            return True
    return False
