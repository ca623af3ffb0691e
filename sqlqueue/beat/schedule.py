"""When an entry of the schedule is due.

The beat's service asks here, writes what is due into the store, and sleeps until `next_after`. Pure:
time is handed in, as UTC wall-clock milliseconds, and nothing is remembered, so that any number of
beats, whenever they started, agree on every tick to the millisecond. That agreement is what makes
"each tick once" possible: the store's unique key is (entry, due time).
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar

from sqlqueue.beat.cron import Cron, crontab, instant_ms
from sqlqueue.config import duration_s, time_zone
from sqlqueue.errors import ConfigError
from sqlqueue.text import escaped, quoted
from sqlqueue_transport.clock import JUMP_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "MENDED_MS",
    "CatchUp",
    "Cron",
    "Entry",
    "EntryOptions",
    "Interval",
    "Once",
    "Overlap",
    "Tick",
    "When",
    "crontab",
    "due_ticks",
    "forgotten_after_ms",
    "manner",
    "timing",
    "when",
]

CatchUp: TypeAlias = Literal["one", "skip", "all"]
Overlap: TypeAlias = Literal["allow", "skip"]

DEFAULT_LIMIT: Final = 100
MENDED_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_LATEST_MS: Final = 253_370_764_800_000  # the year 9999, as for a job's eta

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Tick:
    """One due moment of one entry: what a producer function is called with."""

    entry: str
    due_ms: int

    @property
    def due(self) -> datetime:
        """Return the due moment as an aware datetime in UTC."""
        return _EPOCH + self.due_ms * _MS


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many milliseconds, counted from the Unix epoch and not from the beat's start.

    So two beats agree, and a restarted one goes on in step. An interval that does not divide a day
    wanders through it; use `Cron` for times of day.
    """

    every_ms: int

    def __post_init__(self) -> None:
        """Refuse what has no next tick."""
        if type(self.every_ms) is not int or self.every_ms < 1:
            raise ConfigError(f"every = {quoted(self.every_ms)} ms: give a millisecond or more.")

    @property
    def zone_name(self) -> str:
        """Say that no zone matters to it."""
        return "UTC"

    @property
    def follows_time(self) -> bool:
        """Say that ticks follow the time that passes."""
        return True

    def next_after(self, at_ms: int) -> int | None:
        """Return the first tick after `at_ms`, which may be a tick itself."""
        return (at_ms // self.every_ms + 1) * self.every_ms

    def newest_between(self, after_ms: int, upto_ms: int, *, limit: int) -> list[int]:
        """Return the ticks in (after_ms, upto_ms], oldest first, the newest `limit` of them."""
        newest = upto_ms // self.every_ms
        oldest = max(after_ms // self.every_ms + 1, newest - limit + 1)
        return [number * self.every_ms for number in range(oldest, newest + 1)]


@dataclass(frozen=True, slots=True)
class Once:
    """One moment, in UTC milliseconds: a single tick. `zone_name` is by whose clocks it is shown."""

    at_ms: int
    zone_name: str = "UTC"

    @property
    def follows_time(self) -> bool:
        """Say that it is a time of a day."""
        return False

    def next_after(self, at_ms: int) -> int | None:
        """Return the tick if it comes after `at_ms`."""
        return self.at_ms if at_ms < self.at_ms else None

    def newest_between(self, after_ms: int, upto_ms: int, *, limit: int) -> list[int]:  # noqa: ARG002 - as of the others
        """Return the tick if it is in (after_ms, upto_ms]."""
        return [self.at_ms] if after_ms < self.at_ms <= upto_ms else []


When: TypeAlias = Interval | Cron | Once


def when(
    *,
    every: object = None,
    cron: str | Cron | None = None,
    at: str | datetime | None = None,
    timezone: str | None = None,
    zone: str = "UTC",
    name: str = "entry",
) -> When:
    """Return the schedule of ``every=`` (a duration), ``cron=`` or ``at=``: exactly one is given.

    `at` is an aware datetime, or ISO text. `timezone` is the zone that the entry names, None if it
    names none; then it is `zone`, the default. It is for an expression that names none itself, and
    for an `at` without an offset. `name` is what an error calls the entry. Raises ConfigError, also
    for a zone beside an interval, and for two different ones.
    """
    if sum(each is not None for each in (every, cron, at)) != 1:
        raise ConfigError(f"{name}: give one of every=, cron= and at=, such as every='5s'.")
    try:
        own_zone = zone if timezone is None else timezone
        time_zone(own_zone, name="timezone")  # also where nothing goes by it
        if at is not None:
            return Once(_moment_ms(at, own_zone), own_zone)
        if isinstance(cron, Cron):
            return _in_zone(cron, timezone, own_zone)
        if cron is not None:
            return Cron(cron, own_zone)
        return _interval(every, timezone)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _interval(every: object, timezone: str | None) -> Interval:
    if timezone is not None:
        raise ConfigError(
            f"timezone = {quoted(timezone)} means nothing to every=, which counts from 1970."
            " Leave it out, or give times of day with cron=."
        )
    return Interval(round(duration_s(every, name="every") * 1000))


def _in_zone(cron: Cron, timezone: str | None, own_zone: str) -> Cron:
    if cron.timezone is None:
        return replace(cron, timezone=own_zone)
    if timezone is not None and timezone != cron.timezone:
        raise ConfigError(
            f"timezone = {quoted(timezone)}, but its cron names {quoted(cron.timezone)}."
            " Name the zone once."
        )
    return cron


def _moment_ms(at: object, timezone: str) -> int:
    moment = at
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.strip().replace("Z", "+00:00"))
        except ValueError:
            raise ConfigError(f"at = {quoted(at)} is no ISO time. {_AT_HINT}") from None
        if moment.utcoffset() is None:
            try:
                at_ms = instant_ms(moment, timezone)
            except OverflowError:  # in the first or the last year there is
                at_ms = -1
            return _in_range(at_ms, at)
    if not isinstance(moment, datetime):
        raise ConfigError(f"at = {quoted(at)} is no time. {_AT_HINT}")
    if moment.utcoffset() is None:
        raise ConfigError(f"at = {moment} has no time zone; give an aware datetime. {_AT_HINT}")
    return _in_range((moment - _EPOCH) // _MS, at)


def _in_range(at_ms: int, at: object) -> int:
    if 0 <= at_ms <= _LATEST_MS:
        return at_ms
    raise ConfigError(f"at = {quoted(at)} is in no year from 1970 to 9998. {_AT_HINT}")


_AT_HINT: Final = "Write such as '2027-03-01T08:00:00+01:00', or without the offset."


C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Entry(Generic[C]):
    """One line of the schedule: a call to enqueue (`signature`), or a function that yields calls.

    `catch_up` says what a beat that was down does about the ticks it missed: ``one`` enqueues the
    newest, ``skip`` none, ``all`` every one up to `catch_up_limit`, of which the newest are kept.
    `jitter_ms` is how much later than the tick its jobs may become due. With `overlap` ``skip`` a
    tick enqueues nothing while jobs of the one before are unfinished. Raises ConfigError.
    """

    name: str
    when: When
    signature: C | None = None
    produce: Callable[[Tick], Iterable[C]] | None = None
    catch_up: CatchUp = "one"
    catch_up_limit: int = DEFAULT_LIMIT
    jitter_ms: int = 0
    overlap: Overlap = "allow"
    origin: Literal["code", "settings", "file"] = "code"
    definition: str | None = None  # the text by which the file knows an entry of its own

    def __post_init__(self) -> None:
        """Refuse an entry that could not work."""
        name: object = self.name
        if not isinstance(name, str) or not 0 < len(name) <= 200 or escaped(name) != name:
            raise ConfigError(f"{quoted(name)} is no entry name. Use 1 to 200 visible characters.")
        if (self.signature is None) == (self.produce is None):
            raise ConfigError(f"entry {quoted(name)}: give either a task or a producer function.")

    def delay_ms(self, due_ms: int) -> int:
        """Return by how much a tick's jobs are late on purpose: 0 to `jitter_ms`.

        Made of entry and tick, so that all beats agree and a tick that is tried again is the same.
        """
        if not self.jitter_ms:
            return 0
        digest = hashlib.sha256(f"{self.name}\0{due_ms}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % (self.jitter_ms + 1)


def manner(
    *,
    catch_up: object = "one",
    catch_up_limit: object = None,
    jitter: object = 0,
    overlap: object = "allow",
    name: str = "entry",
) -> dict[str, Any]:
    """Check what an entry does beside its time; return it as fields of `Entry`.

    `catch_up` is one, skip, all, or ``all(20)``, which says the limit in one word. `jitter` is a
    duration. `name` is what an error calls the entry. Raises ConfigError.
    """
    match = re.fullmatch(r"all\(([0-9]{1,9})\)", catch_up) if isinstance(catch_up, str) else None
    if match:
        if catch_up_limit is not None:
            raise ConfigError(
                f"{name}: catch_up = {quoted(catch_up)} has its limit already; leave catch_up_limit"
                " out."
            )
        catch_up, catch_up_limit = "all", int(match[1])
    if catch_up not in ("one", "skip", "all"):  # a set would hash what TOML may hold: a list
        raise ConfigError(
            f"{name}: catch_up = {quoted(catch_up)} is not known."
            " Choose one of: one, skip, all, or all(20)."
        )
    limit = DEFAULT_LIMIT if catch_up_limit is None else catch_up_limit
    if type(limit) is not int or not 1 <= limit <= 100_000:
        raise ConfigError(
            f"{name}: catch_up_limit = {quoted(limit)}. Give a whole number from 1 to 100000."
        )
    if overlap not in ("allow", "skip"):
        raise ConfigError(
            f"{name}: overlap = {quoted(overlap)} is not known. Choose one of: allow, skip."
        )
    try:
        jitter_ms = round(duration_s(jitter, name="jitter") * 1000)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return {
        "catch_up": catch_up,
        "catch_up_limit": limit,
        "jitter_ms": jitter_ms,
        "overlap": overlap,
    }


class EntryOptions(TypedDict, total=False):
    """When an entry is due, and in what manner: keywords of code, keys of TOML.

    One of `every`, `cron` and `at`. The rest as in `when` and `manner`; ``all(20)`` is for texts, and
    in code `catch_up_limit` is its type-checked way.
    """

    every: object
    cron: str | Cron | None
    at: str | datetime | None
    timezone: str | None
    catch_up: CatchUp
    catch_up_limit: int | None
    jitter: float | str
    overlap: Overlap


def timing(options: EntryOptions, *, zone: str, name: str) -> dict[str, Any]:
    """Return fields of `Entry` for these options, checked; `zone` is the default of `timezone`.

    Raises ConfigError, and TypeError for an option there is not.
    """
    given: dict[str, Any] = dict(options)
    due = {key: given.pop(key) for key in ("every", "cron", "at", "timezone") if key in given}
    return {"when": when(**due, zone=zone, name=name), **manner(**given, name=name)}


def forgotten_after_ms(when: When, now_ms: int, back_ms: int) -> int | None:
    """Return from when on ticks of a future that was taken back may come again; None: they may not.

    After a clock was set back by `back_ms`. What follows the time that passes goes on at once, if it
    would else be silent for longer than from one tick to the next; by less than a minute a clock is
    mended, not set. After more than an hour a time of day may come again, too: one that has had its
    tick within a day is not given another; what lies further ahead than that was never this
    calendar's. What happens once has happened.
    """
    if isinstance(when, Once) or back_ms <= MENDED_MS:
        return None
    if when.follows_time:
        return now_ms if back_ms > min(_period_ms(when, now_ms), JUMP_MS) else None
    return now_ms + _DAY_MS if back_ms > JUMP_MS else None


def _period_ms(when: Interval | Cron, now_ms: int) -> float:
    """Return the time between the next two ticks."""
    first_ms = when.next_after(now_ms)
    second_ms = None if first_ms is None else when.next_after(first_ms)
    return math.inf if first_ms is None or second_ms is None else second_ms - first_ms


def due_ticks(
    entry: Entry[C], *, last_due_ms: int, now_ms: int, max_late_ms: int = 5000
) -> list[int]:
    """Return the ticks to enqueue now, oldest first.

    `last_due_ms` is the entry's newest tick that was enqueued or given up, and for an entry never
    seen before the moment it was first seen. After enqueueing, `now_ms` may be stored as the next
    `last_due_ms`: ticks that the policy leaves out stay out. A clock that went back gives [].

    `max_late_ms` is how late a tick may be and still count as on time, for ``skip``: one sleep of
    the beat (`beat_max_interval`).
    """
    if entry.catch_up == "skip":
        last_due_ms = max(last_due_ms, now_ms - max_late_ms - 1)
    limit = 1 if entry.catch_up == "one" else entry.catch_up_limit
    return entry.when.newest_between(last_due_ms, now_ms, limit=limit)
