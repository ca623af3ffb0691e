"""Times and amounts: for people (`3m ago`, `11.0s`), and for machines (ISO 8601 in UTC)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final

__all__ = ["ago", "at", "iso", "number", "short", "took"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


def iso(at_ms: int | None) -> str | None:
    """Return ``2026-11-22T05:11:07.123Z``; None for None, and for a time no calendar has."""
    moment = _moment(at_ms)
    if moment is None:
        return None
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def at(at_ms: int | None, *, utc: bool) -> str:
    """Return a time to the second for people, in local time or UTC; "" for None."""
    moment = _moment(at_ms)
    if moment is None:
        return ""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if utc else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def ago(at_ms: int | None, now_ms: int) -> str:
    """Return ``3m ago``, ``in 2h`` or ``now``; "" for None."""
    if at_ms is None:
        return ""
    distance_s = (now_ms - at_ms) / 1000
    if abs(distance_s) < 1:
        return "now"
    return f"{short(distance_s)} ago" if distance_s > 0 else f"in {short(-distance_s)}"


def took(seconds: float | None) -> str:
    """Return a measured time: ``85ms``, ``11.0s``, ``2m 05s``, ``1h 10m``; "" for None."""
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest_s:02d}s"


def short(seconds: float) -> str:
    """Return a distance in its largest unit: ``45s``, ``3m``, ``2h``, ``6d``."""
    for unit, size_s in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size_s:
            return f"{seconds // size_s:.0f}{unit}"
    return f"{int(seconds)}s"


def number(count: int, thing: str = "") -> str:
    """Return ``98,670``, or ``1 job``, ``98,670 jobs``."""
    if not thing:
        return f"{count:,}"
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _moment(at_ms: int | None) -> datetime | None:
    try:
        return None if at_ms is None else _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None
