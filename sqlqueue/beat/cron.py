"""Cron expressions: which instants they name, in a time zone with its leaps.

One of the two kinds of schedule (`schedule.py` has the other). Pure: time is handed in, as UTC
wall-clock milliseconds.

**Daylight saving time.** A cron expression speaks of wall-clock time, in which an hour may be
missing (the gap) or come twice (the fold). We keep the policy of Debian's cron, which is also
cronsim's:

- Hour and minute are both fixed (neither field starts with ``*``, as in ``30 2 * * *``): once per
  local date. In the gap the tick moves to the gap's end; in the fold only the first one counts.
- Otherwise (``*/5 * * * *``, ``0 * * * *``, ``*/10 2 * * *``) ticks follow the time that passes: a
  wall-clock time that does not exist has no tick, one that comes twice has two, at two instants.

cronsim gets naive wall-clock times only, as a calendar, and the mapping to instants is done here.
Its own (2.8) depends on where the iteration began: begun in the second pass of a fold it answers
with a time that is already over, and around a fold of half an hour (Lord Howe) it skips ticks.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final, TypeAlias

from cronsim import CronSim, CronSimError

from sqlqueue.config import time_zone
from sqlqueue.errors import ConfigError
from sqlqueue.text import escaped, quoted

if TYPE_CHECKING:
    from datetime import tzinfo

__all__ = ["Cron", "crontab", "instant_ms"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NAIVE_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - wall-clock time, of whatever zone
_MS: Final = timedelta(milliseconds=1)
_HALF_A_DAY_MS: Final = 43_200_000
_CRON_HINT: Final = (
    "Write five fields, minute hour day month weekday, such as '*/5 * * * *' or '30 2 * * MON-FRI'."
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone: minute, hour, day of month, month, day of week.

    The syntax is cronsim's: ``*``, lists, ranges, steps, names (MON, JAN), ``L`` for the month's last
    day and ``LW`` for its last weekday, ``MON#2`` for the second Monday, ``5L`` for the last Friday;
    six fields begin with seconds. Where neither day field starts with ``*``, either suffices, as in
    every cron. `timezone` None means that it names none: an entry fills in its own, and by itself it
    goes by UTC. Raises ConfigError for what cannot be read, or never comes.
    """

    expression: str
    timezone: str | None = None

    def __post_init__(self) -> None:
        """Read the expression once, so that mistakes show where the entry is declared."""
        time_zone(self.zone_name, name="timezone")
        expression: object = self.expression
        shown = quoted(expression)
        if not isinstance(expression, str) or len(expression) > 500:
            raise ConfigError(f"cron = {shown} is no cron expression. {_CRON_HINT}")
        try:
            next(CronSim(expression, datetime(2000, 1, 1)))  # noqa: DTZ001 - wall clock
        except StopIteration:
            raise ConfigError(f"cron = {shown} never comes. Correct its day or month.") from None
        except (CronSimError, AssertionError, ValueError, TypeError) as error:
            # cronsim 2.8 asserts where a list or a step meets an L.
            why = escaped(str(error)) or "not understood"
            raise ConfigError(f"cron = {shown}: {why}. {_CRON_HINT}") from None

    def next_after(self, at_ms: int) -> int | None:
        """Return the first tick after `at_ms`, which may be a tick itself; None: none before 9999."""
        return next(self._ticks_after(at_ms), None)

    @property
    def zone_name(self) -> str:
        """Return the name of the zone whose clocks it goes by."""
        return "UTC" if self.timezone is None else self.timezone

    @property
    def follows_time(self) -> bool:
        """Say whether ticks follow the time that passes, and not the times of a day."""
        minute, hour = self.expression.split()[-5:-3]
        return minute.startswith("*") or hour.startswith("*")

    def newest_between(self, after_ms: int, upto_ms: int, *, limit: int) -> list[int]:
        """Return the ticks in (after_ms, upto_ms], oldest first, the newest `limit` of them.

        cronsim runs forwards only in a way we trust, so this looks back over a window and doubles
        it until there are enough: what a year of minutely ticks costs depends on `limit` alone.
        """
        window_ms = 60_000
        while True:
            from_ms = max(after_ms, upto_ms - window_ms)
            ticks = itertools.takewhile(lambda tick: tick <= upto_ms, self._ticks_after(from_ms))
            newest = deque(ticks, maxlen=limit)
            if len(newest) == limit or from_ms <= after_ms:
                return list(newest)
            window_ms *= 2

    def _ticks_after(self, at_ms: int) -> Iterator[int]:
        zone = time_zone(self.zone_name, name="timezone")
        ticks_of = self._by_elapsed_time if self.follows_time else self._by_wall_clock
        try:
            yield from ticks_of(at_ms, zone)
        except OverflowError:  # the year 9999 is over
            return

    def _by_wall_clock(self, at_ms: int, zone: tzinfo) -> Iterator[int]:
        """Yield ticks of fixed times of day: each once, whatever the clocks do."""
        last_ms = at_ms
        for wall in self._calendar(at_ms + _offset_ms(zone, at_ms)):
            tick_ms = _instant_ms(wall, zone)
            # Not later: two times of one gap, which both moved to its end; or a time of the fold's
            # first pass, asked for in its second.
            if tick_ms > last_ms:
                yield tick_ms
                last_ms = tick_ms

    def _by_elapsed_time(self, at_ms: int, zone: tzinfo) -> Iterator[int]:
        """Yield ticks in stretches of one UTC offset, within which wall clock and time agree."""
        begin_ms, offset_ms = at_ms, _offset_ms(zone, at_ms)
        walls = self._calendar(at_ms + offset_ms)
        while True:
            wall = next(walls, None)
            if wall is None:
                return
            tick_ms = (wall - _NAIVE_EPOCH) // _MS - offset_ms
            change_ms = _offset_change_ms(zone, offset_ms, after_ms=begin_ms, upto_ms=tick_ms)
            if change_ms is None:
                yield tick_ms
                begin_ms = tick_ms
            else:
                # The stretch is over, and that was no tick. The next begins with the change, which
                # may be a tick itself: hence from the second before it, exclusive.
                begin_ms, offset_ms = change_ms, _offset_ms(zone, change_ms)
                walls = self._calendar(change_ms - 1000 + offset_ms)

    def _calendar(self, wall_ms: int) -> Iterator[datetime]:
        """Return the matching wall-clock times after `wall_ms`, zone or no zone."""
        return CronSim(self.expression, _NAIVE_EPOCH + wall_ms * _MS)


_Field: TypeAlias = "int | str | Iterable[int | str]"


def crontab(
    minute: _Field = "*",
    hour: _Field = "*",
    *,
    day_of_week: _Field = "*",
    day_of_month: _Field = "*",
    month_of_year: _Field = "*",
    timezone: str | None = None,
) -> Cron:
    """Return a Cron from Celery's keywords: ``crontab(minute=0, hour="*/3", day_of_week="mon")``.

    Celery needs day_of_month *and* day_of_week to match where a cron expression takes either, so
    both together are refused rather than read in the other way. `timezone` as of `Cron`: None goes
    by the entry's, which is the setting's unless the entry names one.
    """
    if not _is_every(day_of_week) and not _is_every(day_of_month):
        raise ConfigError(
            "crontab: day_of_month and day_of_week together mean 'both' to Celery and 'either' to"
            " cron. Give one of them; for the second Monday write Cron('0 0 * * MON#2')."
        )
    fields = (minute, hour, day_of_month, month_of_year, day_of_week)
    return Cron(" ".join(_field(each) for each in fields), timezone)


# --- wall clock and instants ----------------------------------------------------------------------


def instant_ms(wall: datetime, zone: str) -> int:
    """Return the first instant at which that zone's clocks show this; of a gap, its end."""
    return _instant_ms(wall, time_zone(zone, name="timezone"))


def _offset_ms(zone: tzinfo, at_ms: int) -> int:
    """Return the zone's offset from UTC at an instant."""
    offset = (_EPOCH + at_ms * _MS).astimezone(zone).utcoffset()
    return 0 if offset is None else offset // _MS


def _instant_ms(wall: datetime, zone: tzinfo) -> int:
    """Return the first instant at which the zone's clocks show this, or the end of the gap it is in."""
    while True:
        aware = wall.replace(tzinfo=zone)
        at_ms = (aware.astimezone(timezone.utc) - _EPOCH) // _MS
        if (wall - _NAIVE_EPOCH) // _MS - at_ms == _offset_ms(zone, at_ms):
            return at_ms
        wall += timedelta(minutes=1)


def _offset_change_ms(zone: tzinfo, offset_ms: int, *, after_ms: int, upto_ms: int) -> int | None:
    """Return the first instant in (after_ms, upto_ms] at which the offset is not `offset_ms`.

    None if there is none. `offset_ms` is that of `after_ms`. Looks every 12 hours: no zone has
    changed twice within so few.
    """
    low_ms = after_ms
    while low_ms < upto_ms:
        high_ms = min(low_ms + _HALF_A_DAY_MS, upto_ms)
        if _offset_ms(zone, high_ms) != offset_ms:
            while high_ms - low_ms > 1:
                middle_ms = (low_ms + high_ms) // 2
                if _offset_ms(zone, middle_ms) == offset_ms:
                    low_ms = middle_ms
                else:
                    high_ms = middle_ms
            return high_ms
        low_ms = high_ms
    return None


def _is_every(field: _Field) -> bool:
    return field == "*"


def _field(value: _Field) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = ",".join(_field(each) for each in value)
    text = str(value).strip()
    if len(text.split()) != 1:  # a space would make two fields of one
        raise ConfigError(
            f"crontab: {quoted(value)} is no field. Write such as 5, '*/15' or '1,2'."
        )
    return text
