"""Dramatiq on Redis."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.benchmarks.frameworks.apps import jobs

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_BROKER"]))

ENQUEUE = {
    name: dramatiq.actor(getattr(jobs, name), actor_name=name).send
    for name in ("nothing", "nap", "mark")
}
