"""What the Jobs page is looking at, as its link says it: query parameters to a filter and back.

The link is the truth. Widgets are set from it and write to it, so that a link shows the same to
whoever opens it. Knows no Streamlit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from sqlqueue.inspection import JobFilter, State
from sqlqueue.palette import TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CUSTOM", "STALLED", "WINDOWS", "View"]

STALLED: Final = "stalled"
CUSTOM: Final = "custom"
# "" is no window: jobs of any time.
WINDOWS: Final[Mapping[str, float]] = {
    "15m": 900,
    "1h": 3600,
    "6h": 6 * 3600,
    "24h": 86_400,
    "7d": 7 * 86_400,
}
_STATES: Final = tuple(state.value for state in State)
_TEXTS: Final = ("queue", "task", "worker", "error", "search")
_LONGEST: Final = 500  # characters of a text; no id, task or path is longer, and links must not be
_MINUTE_MS: Final = 60_000
_LATEST_MS: Final = 253_402_300_799_000  # the end of the year 9999, the last that a calendar has


@dataclass(frozen=True, slots=True)
class View:
    """Be what the page shows. Texts are "" for any.

    `states` are names in the order of a job's life, or `stalled` alone. `window` is one of WINDOWS,
    CUSTOM, or "". `since_ms` and `until_ms` are for CUSTOM alone: whole minutes, None for open.
    """

    states: tuple[str, ...] = ()
    queue: str = ""
    task: str = ""
    worker: str = ""
    error: str = ""
    search: str = ""
    window: str = ""
    since_ms: int | None = None
    until_ms: int | None = None

    @classmethod
    def read(cls, params: Mapping[str, str]) -> View:
        """Read query parameters. What makes no sense is left out, never an error: links get cut."""
        texts = {name: _text(params.get(name, "")) for name in _TEXTS}
        window = params.get("within", "")
        since_ms, until_ms = _minute(params.get("since", "")), _minute(params.get("until", ""))
        if window not in WINDOWS:
            window = CUSTOM if window == CUSTOM or since_ms or until_ms else ""
        return cls(
            states=_states(params.get("state", "")),
            window=window,
            since_ms=since_ms if window == CUSTOM else None,
            until_ms=until_ms if window == CUSTOM else None,
            **texts,
        )

    def params(self) -> dict[str, str]:
        """Return the query parameters of this view, without what is not narrowed."""
        found = {"state": ",".join(self.states)}
        found |= {name: getattr(self, name) for name in _TEXTS}
        found["within"] = self.window
        found["since"], found["until"] = _iso(self.since_ms), _iso(self.until_ms)
        return {name: value for name, value in found.items() if value}

    def with_state(self, state: str) -> View:
        """Return the view with a state added, or taken away where it was in; stalled stands alone."""
        if state == STALLED:
            return dataclasses.replace(self, states=() if STALLED in self.states else (STALLED,))
        wanted = {*self.states} ^ {state}
        return dataclasses.replace(self, states=tuple(one for one in _STATES if one in wanted))

    def chosen(self, now_ms: int) -> JobFilter:
        """Return the filter; a window reaches back from `now_ms`."""
        since_ms = self.since_ms
        if self.window in WINDOWS:
            since_ms = now_ms - round(WINDOWS[self.window] * 1000)
        stalled = STALLED in self.states
        return JobFilter(
            states=() if stalled else tuple(State(name) for name in self.states),
            stalled=stalled,
            queue=self.queue or None,
            task=self.task or None,
            worker=self.worker or None,
            error=self.error or None,
            search=self.search or None,
            since_ms=since_ms,
            until_ms=self.until_ms,
        )

    @property
    def is_narrowed(self) -> bool:
        """Say whether it leaves any job out."""
        return self != View()

    def described(self) -> str:
        """Return what is looked for in a few words: ``failed jobs of tasks.stamp in mail``."""
        names = " or ".join(TITLES[state] for state in self.states)
        parts = [f"{names} jobs" if names else "jobs"]
        if self.search:
            parts.append(f"found by “{self.search}”")
        if self.task:
            parts.append(f"of {self.task}")
        if self.queue:
            parts.append(f"in {self.queue}")
        if self.worker:
            parts.append(f"of worker {self.worker}")
        if self.error:
            parts.append(f"with an error like “{self.error}”")
        if self.window in WINDOWS:
            parts.append(f"of the last {self.window}")
        elif self.window:
            parts.append("of that time")
        return " ".join(parts)


def _states(text: str) -> tuple[str, ...]:
    names = text.split(",")
    return (STALLED,) if names == [STALLED] else tuple(one for one in _STATES if one in names)


def _text(value: str) -> str:
    return value.strip()[:_LONGEST].strip()


def _minute(text: str) -> int | None:
    """Read an ISO time, UTC where it says no zone; None for what is none, and for one before 1970."""
    given = f"{text[:-1]}+00:00" if text[-1:] in "zZ" and text else text  # Python 3.10 knows no "Z"
    try:
        moment = datetime.fromisoformat(given)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        at_ms = round(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    return at_ms - at_ms % _MINUTE_MS if 0 < at_ms <= _LATEST_MS else None


def _iso(at_ms: int | None) -> str:
    if at_ms is None:
        return ""
    moment = datetime.fromtimestamp(at_ms / 1000, timezone.utc)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='minutes')}Z"
