"""Errors that are alike: the same type, and the same text but for numbers, ids and names.

Of a thousand dead letters an operator wants to know the three mistakes behind them. Grouping keeps a
count for each likeness and never the rows; refuses to know where they come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlqueue_transport.activity import FailedAttempt
    from sqlqueue_transport.listing import ErrorRow

__all__ = ["DeadGroup", "ErrorGroup", "dead_groups", "error_groups", "likeness"]

# What makes texts of one mistake differ: quoted names, hexadecimal ids and addresses, numbers.
_PARTICULARS: Final[Sequence[str]] = (
    r"'[^'\n]*'",
    r'"[^"\n]*"',
    r"\b0x[0-9a-fA-F]+\b",
    r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",
    r"\d+",
)
_PARTICULAR: Final = re.compile("|".join(_PARTICULARS))


@dataclass(frozen=True, slots=True)
class DeadGroup:
    """Be dead letters that died alike: same type, and same text but for numbers, ids and names.

    `example` is the newest one's id, or "#" and its message id.
    """

    type: str
    text: str
    count: int
    newest_at_ms: int
    tasks: tuple[str, ...]
    example: str


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Be failed attempts that failed alike; `example` is the job of the newest, as in DeadGroup."""

    type: str
    text: str
    count: int
    newest_at_ms: int
    example: str


@dataclass(slots=True)
class _Seen:
    """Be a group as it grows; the newest comes first."""

    example: str
    count: int = 0
    newest_at_ms: int = 0
    tasks: set[str] = field(default_factory=set)


@lru_cache(maxsize=1024)
def likeness(message: str) -> str:
    """Return the first line of an error's text with its particulars left out."""
    return _PARTICULAR.sub("…", message.strip().split("\n", 1)[0][:500])


def dead_groups(rows: Iterable[ErrorRow]) -> list[DeadGroup]:
    """Group jobs, newest first, by their errors; the largest group first."""
    found: dict[tuple[str, str], _Seen] = {}
    for row in rows:
        seen = _seen(found, row.error_type, row.error_message, row.job_id, row.message_id)
        seen.newest_at_ms = max(seen.newest_at_ms, row.finished_at_ms or 0)
        seen.tasks.add(row.task or "")
    groups = [
        DeadGroup(kind, text, one.count, one.newest_at_ms, tuple(sorted(one.tasks)), one.example)
        for (kind, text), one in found.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, -group.newest_at_ms))


def error_groups(attempts: Iterable[FailedAttempt]) -> list[ErrorGroup]:
    """Group failed attempts, newest first, by their errors; the largest group first."""
    found: dict[tuple[str, str], _Seen] = {}
    for row in attempts:
        seen = _seen(found, row.error_type, row.error_message, row.job_id, row.message_id)
        seen.newest_at_ms = max(seen.newest_at_ms, row.ended_at_ms)
    groups = [
        ErrorGroup(kind, text, one.count, one.newest_at_ms, one.example)
        for (kind, text), one in found.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, -group.newest_at_ms))


def _seen(
    found: dict[tuple[str, str], _Seen],
    error_type: str | None,
    error_message: str | None,
    job_id: str | None,
    message_id: int,
) -> _Seen:
    key = error_type or "", likeness(error_message or "")
    seen = found.get(key)
    if seen is None:
        seen = found[key] = _Seen(example=job_id or f"#{message_id}")
    seen.count += 1
    return seen
