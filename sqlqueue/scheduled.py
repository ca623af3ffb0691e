"""One schedule entry as operators see it: how it stands, when it comes next, how late it was.

Read from the file alone, with or without the application: the file has each entry's definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from enum import Enum
from typing import TYPE_CHECKING, Final

from sqlqueue.beat import definition
from sqlqueue.config import time_zone
from sqlqueue.errors import ConfigError

if TYPE_CHECKING:
    from sqlqueue.beat.schedule import When
    from sqlqueue_transport.schedules import ScheduleRow

__all__ = ["Scheduled", "Standing", "scheduled"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Standing(str, Enum):
    """How an entry stands, the first that is true."""

    OVER = "over"  # nothing comes any more
    PAUSED = "paused"
    ORPHANED = "orphaned"  # it is not in any running beat's application
    NO_BEAT = "no_beat"  # no beat is running at all
    FAILING = "failing"  # its newest tick could not be enqueued
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Be one entry. `when` and `zone` are None for a definition that cannot be read."""

    row: ScheduleRow
    standing: Standing
    when: When | None
    zone: tzinfo | None

    @property
    def zone_name(self) -> str:
        """Return the name of the zone whose clocks it goes by."""
        return "UTC" if self.when is None else self.when.zone_name

    @property
    def problem(self) -> str:
        """Return why it does not run as it should, "" if it does."""
        if self.row.error is None and self.standing is Standing.ORPHANED:
            return "not in any running beat's application"
        return self.row.error or ""

    @property
    def late_s(self) -> float | None:
        """Return how long after its time the newest tick was enqueued; None: there was none.

        A clock that was set back in between is not held against it.
        """
        if self.row.last_due_ms is None or self.row.last_at_ms is None:
            return None
        return max(self.row.last_at_ms - self.row.last_due_ms, 0) / 1000

    def next_ms(self, count: int, *, now_ms: int) -> list[int]:
        """Return the next due times from now on, also of an entry that is paused."""
        found: list[int] = []
        while self.when is not None and len(found) < count:
            at_ms = self.when.next_after(found[-1] if found else now_ms - 1)
            if at_ms is None:
                break
            found.append(at_ms)
        return found

    def local(self, at_ms: int) -> datetime:
        """Return a time by the clocks of the entry's own zone."""
        return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(self.zone or timezone.utc)


def scheduled(row: ScheduleRow, *, beats: int) -> Scheduled:
    """Return an entry as it stands while so many beats are running."""
    when, zone = None, None
    if row.definition is not None:
        try:
            when = definition.read(row.definition, name=row.entry).when
            zone = time_zone(when.zone_name, name="timezone")
        except ConfigError:
            when = None  # the beats say so in its error
    return Scheduled(row, _standing(row, beats), when, zone)


def _standing(row: ScheduleRow, beats: int) -> Standing:
    if row.next_due_ms is None and row.error is None:
        return Standing.OVER
    if row.paused_at_ms is not None:
        return Standing.PAUSED
    if not beats:
        return Standing.NO_BEAT
    if not row.beats:
        return Standing.ORPHANED
    return Standing.RUNNING if row.error is None else Standing.FAILING
