"""RQ, which finds the functions by their names."""

from __future__ import annotations

import os
from functools import partial

from redis import Redis
from rq import Queue

from tests.benchmarks.frameworks.apps import jobs

queue = Queue(connection=Redis.from_url(os.environ["BENCH_BROKER"]))

ENQUEUE = {
    name: partial(queue.enqueue, getattr(jobs, name), result_ttl=0)
    for name in ("nothing", "nap", "mark")
}
