"""When an entry of the schedule is due.

The beat's service asks here, writes what is due into the store, and sleeps until `next_after`. Pure:
time is handed in, as UTC wall-clock milliseconds, and nothing is remembered, so that any number of
beats, whenever they started, agree on every tick to the millisecond. That agreement is what makes
"each tick once" possible: the store's unique key is (entry, due time).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, TypeVar

from sqlqueue.beat.cron import Cron, crontab
from sqlqueue.config import duration_s
from sqlqueue.errors import ConfigError
from sqlqueue.text import escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "CatchUp",
    "Cron",
    "Entry",
    "Interval",
    "Tick",
    "When",
    "crontab",
    "due_ticks",
    "when",
]

CatchUp: TypeAlias = Literal["one", "skip", "all"]

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

    def next_after(self, at_ms: int) -> int:
        """Return the first tick after `at_ms`, which may be a tick itself."""
        return (at_ms // self.every_ms + 1) * self.every_ms

    def newest_between(self, after_ms: int, upto_ms: int, *, limit: int) -> list[int]:
        """Return the ticks in (after_ms, upto_ms], oldest first, the newest `limit` of them."""
        newest = upto_ms // self.every_ms
        oldest = max(after_ms // self.every_ms + 1, newest - limit + 1)
        return [number * self.every_ms for number in range(oldest, newest + 1)]


When: TypeAlias = Interval | Cron


def when(
    *,
    every: object = None,
    cron: str | Cron | None = None,
    timezone: str = "UTC",
    name: str = "entry",
) -> When:
    """Return the schedule of ``every=`` (a duration) or ``cron=``, of which exactly one is given.

    `timezone` is for an expression given as text. `name` is what an error calls the entry.
    """
    if (every is None) == (cron is None):
        raise ConfigError(f"{name}: give either every= or cron=, such as every='5s'.")
    try:
        if isinstance(cron, Cron):
            return cron
        if cron is not None:
            return Cron(cron, timezone)
        return Interval(round(duration_s(every, name="every") * 1000))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Entry(Generic[C]):
    """One line of the schedule: a call to enqueue (`signature`), or a function that yields calls.

    `catch_up` says what a beat that was down does about the ticks it missed: ``one`` enqueues the
    newest, ``skip`` none, ``all`` every one up to `catch_up_limit`, of which the newest are kept.
    Raises ConfigError.
    """

    name: str
    when: When
    signature: C | None = None
    produce: Callable[[Tick], Iterable[C]] | None = None
    catch_up: CatchUp = "one"
    catch_up_limit: int = 100

    def __post_init__(self) -> None:
        """Refuse an entry that could not work."""
        name: object = self.name
        if not isinstance(name, str) or not 0 < len(name) <= 200 or escaped(name) != name:
            raise ConfigError(f"{quoted(name)} is no entry name. Use 1 to 200 visible characters.")
        if (self.signature is None) == (self.produce is None):
            raise ConfigError(f"entry {quoted(name)}: give either a task or a producer function.")
        if self.catch_up not in {"one", "skip", "all"}:
            raise ConfigError(
                f"entry {quoted(name)}: catch_up = {quoted(self.catch_up)} is not known."
                " Choose one of: one, skip, all."
            )
        if type(self.catch_up_limit) is not int or not 1 <= self.catch_up_limit <= 100_000:
            raise ConfigError(
                f"entry {quoted(name)}: catch_up_limit = {quoted(self.catch_up_limit)}."
                " Give a whole number from 1 to 100000."
            )


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
