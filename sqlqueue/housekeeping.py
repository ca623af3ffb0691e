"""Log what sweeping and housekeeping found, in the same words whichever process did it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlqueue_transport.housekeeping import Turn
    from sqlqueue_transport.messages import Lost

__all__ = ["log_lost", "log_turn"]

log = get_logger(__name__)


def log_lost(lost: Iterable[Lost]) -> None:
    """Say what became of each job that a dead process held."""
    for one in lost:
        event = "job_permanently_failed" if one.dead else "job_retry_scheduled"
        say = log.error if one.dead else log.warning
        if one.cancelled:
            event, say = "job_cancelled", log.warning
        elif not one.counted and not one.dead:
            event, say = "job_released", log.info
        say(
            event,
            job_id=one.job_id,
            task=one.task,
            queue=one.queue,
            attempt=one.attempt,
            worker=one.worker,
            error=f"{one.error.type}: {one.error.message}" if one.error else None,
        )


def log_turn(turn: Turn) -> None:
    """Say what was removed, to who wants details, and that the log stays large, to everybody."""
    if turn.removed:
        log.debug("history_pruned", **turn.removed)
    if turn.log_grown is not None:
        log.warning(
            "wal_grown",
            size_mb=round(turn.log_grown.size_bytes / 1e6),
            readers=list(turn.log_grown.readers),
            hint="a program that reads for long keeps it from being emptied: end it",
        )
