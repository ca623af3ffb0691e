"""The application of `sqlqueue bench`: tasks that do nothing, so that what is measured is ours."""

from __future__ import annotations

import time

from sqlqueue import SqlQueue

__all__ = ["NOTHING", "SINCE_CALL", "app", "new_app"]

NOTHING = "bench.nothing"
SINCE_CALL = "bench.since_call"


def new_app() -> SqlQueue:
    """Return an application of its own, which resolves its settings when it is first used."""
    made = SqlQueue("bench")
    made.task(name=NOTHING)(_nothing)
    made.task(name=SINCE_CALL)(_since_call)
    return made


def _nothing(payload: str) -> None:
    """Be handed a text."""


def _since_call(called_ns: int) -> int:
    """Return how long ago the call was, in nanoseconds of the machine's monotonic clock."""
    return time.monotonic_ns() - called_ns


app = new_app()
