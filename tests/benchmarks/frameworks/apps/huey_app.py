"""Huey, on SQLite or on Redis."""

from __future__ import annotations

import os

from tests.benchmarks.frameworks.apps import jobs

if os.environ["BENCH_BROKER"].startswith("redis:"):
    from huey import RedisHuey

    huey = RedisHuey("bench", url=os.environ["BENCH_BROKER"])
else:
    from huey import SqliteHuey

    huey = SqliteHuey(
        "bench", filename=os.environ["BENCH_BROKER"], fsync=bool(os.environ.get("BENCH_FSYNC"))
    )

ENQUEUE = {name: huey.task(name=name)(getattr(jobs, name)) for name in ("nothing", "nap", "mark")}
