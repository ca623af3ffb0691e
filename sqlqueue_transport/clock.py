"""The only source of time: a wall clock for people and schedules, a lease clock for leases.

Leases go by the monotonic clock, so that a jump of the wall clock neither steals nor prolongs
one. Readings of the monotonic clock mean something only within one boot (and one time
namespace), so they always travel with `boot`. SQL never asks for the time: it is bound as a
parameter, and tests can freeze or replace it here.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from sqlqueue_transport.errors import CannotOpen


class Clock(Protocol):
    """Tell the time; replaced in tests by one that jumps."""

    def wall_ms(self) -> int:
        """Return UTC milliseconds since the Unix epoch."""

    def lease_ms(self) -> int:
        """Return monotonic milliseconds, comparable within one `boot`."""

    def boot(self) -> str:
        """Name the boot and time namespace in which `lease_ms` counts."""


class SystemClock:
    """Read the machine's clocks."""

    def wall_ms(self) -> int:
        """Return UTC milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def lease_ms(self) -> int:
        """Return `CLOCK_MONOTONIC` in milliseconds; it stands still while the machine sleeps."""
        return time.monotonic_ns() // 1_000_000

    def boot(self) -> str:
        """Name this boot: kernel boot id, and the time namespace's offset where there is one."""
        return _boot_identity()


SYSTEM_CLOCK = SystemClock()

JUMP_MS = 3_600_000
PAUSE_MS = 86_400_000


def suspended_ms() -> int:
    """Return how long the machine has slept since it was booted; 0 where that cannot be told.

    On Linux `CLOCK_MONOTONIC` stands still meanwhile, and `CLOCK_BOOTTIME` does not (clock_gettime(2)).
    """
    if sys.platform != "linux":
        return 0
    awake_ns = time.monotonic_ns()  # read first, so that the difference is never negative
    return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - awake_ns) // 1_000_000


class JumpWatch:
    """Notice that the wall clock was set: by more than an hour against the lease clock.

    Age is told by the wall clock, and ten years ahead everything would be old. So what deletes by
    age pauses for a day after a jump, in which somebody may notice. A suspended machine's wall
    clock has not jumped when it wakes up, though the lease clock stood still.
    """

    def __init__(self, clock: Clock) -> None:
        """Take the clocks as they stand for right."""
        self._clock = clock
        self._offset_ms = self._offset()
        self._until_ms = 0  # on the lease clock, which does not jump

    def pauses(self) -> bool:
        """Say whether the wall clock has jumped within a day, comparing the clocks once more."""
        now_ms = self._clock.lease_ms()
        offset_ms = self._offset()
        if abs(offset_ms - self._offset_ms) > JUMP_MS:
            self._until_ms = now_ms + PAUSE_MS
        self._offset_ms = offset_ms
        return now_ms < self._until_ms

    def _offset(self) -> int:
        return self._clock.wall_ms() - self._clock.lease_ms() - suspended_ms()


@functools.cache
def _boot_identity() -> str:
    if sys.platform == "darwin":  # pragma: no cover - by design, not run in CI
        return subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        message = f"cannot tell which boot this is, so leases mean nothing here: {error}"
        raise CannotOpen(message) from error
    return f"{boot_id}{_time_namespace_offset()}"


def _time_namespace_offset() -> str:
    """Return "" in the initial time namespace, else its monotonic offset.

    Two namespaces with the same offset read the same monotonic clock, so the offset, not the
    namespace's identity, is what tells them apart (time_namespaces(7)).
    """
    try:
        lines = Path("/proc/self/timens_offsets").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, seconds, nanoseconds = line.split()
        if name == "monotonic" and (seconds, nanoseconds) != ("0", "0"):
            return f"+{seconds}.{nanoseconds}"
    return ""
