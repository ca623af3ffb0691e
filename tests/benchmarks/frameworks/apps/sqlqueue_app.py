"""Our own framework."""

from __future__ import annotations

import os

from sqlqueue import SqlQueue
from tests.benchmarks.frameworks.apps import jobs

app = SqlQueue("bench", broker_url=os.environ["BENCH_BROKER"])

ENQUEUE = {
    name: app.task(name=name)(getattr(jobs, name)).delay for name in ("nothing", "nap", "mark")
}
