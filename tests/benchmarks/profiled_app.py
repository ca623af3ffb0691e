"""An application whose task does nothing but tell the meter that it ran: of `profile worker`, and of a test.

Imported by a real worker, in the supervisor and in the child; only the child runs the task. Where
the meter writes, and what, stands in the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlqueue import SqlQueue
from tests.benchmarks.meter import Meter, time_statements

__all__ = ["ENVIRONMENT", "app", "nothing"]

ENVIRONMENT = "SQLQUEUE_PROFILE"  # path:size of a round:kind

app = SqlQueue("profile")
_path, _size, _kind = os.environ.get(ENVIRONMENT, "/dev/null:1000:plain").rsplit(":", 2)
_meter = Meter(Path(_path), int(_size), _kind)
if _kind == "statements":
    time_statements()


@app.task(name="nothing")
def nothing() -> None:
    """Be a message more."""
    _meter.tick()


@app.task(name="published")
def published(text: str) -> None:
    """Be published, and never run."""
