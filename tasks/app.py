"""The application `tasks.app:app`, and the settings of its job.

A job's way begins here: everything else in this package hangs its tasks, producers and checks on
`app`. What an operator may change stands in the `[app]` table of conf/sqlqueue.toml, each key also
as `SQLQUEUE_APP_<KEY>`. Refuses unknown keys and values that cannot be meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from sqlqueue import SqlQueue
from sqlqueue.config import duration_s
from sqlqueue.errors import ConfigError
from sqlqueue.text import did_you_mean, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JobSettings", "app", "job_settings", "read_job_settings"]

app = SqlQueue("tasks")

_MOST_PRODUCERS = 1000


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Say where job files live, how often they are made and how long stamping one takes."""

    directory: Path = Path("jobs")
    """Holds the job files; relative to the working directory of the process."""
    every: float = 5.0
    """Seconds between two ticks of a producer."""
    min_seconds: float = 7.0
    """The least a stamping job waits, in seconds."""
    max_seconds: float = 15.0
    """The most a stamping job waits, in seconds."""
    producers: int = 1
    """How many producer entries the beat runs, `producer-1` to `producer-N`."""


def job_settings() -> JobSettings:
    """Return the settings of the job as this process resolved them.

    Raises ConfigError for what `read_job_settings` refuses.
    """
    return read_job_settings(app.conf.app)


def read_job_settings(table: Mapping[str, object]) -> JobSettings:
    """Read the `[app]` table: defaults for what is missing, text where the environment gave it.

    Durations are seconds or texts like "5s" and "200ms". Raises ConfigError for an unknown key, a
    value of the wrong kind, an empty directory, no interval, a range upside down, or a number of
    producers outside 1 to 1000.
    """
    known = [field.name for field in fields(JobSettings)]
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{quoted(f'app.{key}')} is no setting.{did_you_mean(key, known)}"
                f" The [app] table has: {', '.join(known)}.",
            )
    default = JobSettings()
    settings = JobSettings(
        directory=_directory(table.get("directory", default.directory)),
        every=duration_s(table.get("every", default.every), name="app.every"),
        min_seconds=duration_s(
            table.get("min_seconds", default.min_seconds), name="app.min_seconds"
        ),
        max_seconds=duration_s(
            table.get("max_seconds", default.max_seconds), name="app.max_seconds"
        ),
        producers=_producers(table.get("producers", default.producers)),
    )
    if settings.every < 0.001:
        raise ConfigError("app.every is shorter than a millisecond. Set it to something like '5s'.")
    if settings.min_seconds > settings.max_seconds:
        raise ConfigError(
            f"app.min_seconds ({settings.min_seconds:g}) is above app.max_seconds"
            f" ({settings.max_seconds:g}). Set both, the smaller one first.",
        )
    return settings


def _directory(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ConfigError(f"app.directory must be the path of a directory, not {quoted(value)}.")
    return Path(value)


def _producers(value: object) -> int:
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value
    if isinstance(number, int) and number is not True and 1 <= number <= _MOST_PRODUCERS:
        return number
    raise ConfigError(
        f"app.producers must be a whole number from 1 to {_MOST_PRODUCERS}, not {quoted(value)}.",
    )
