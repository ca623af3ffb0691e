"""A worker with nothing to do uses next to no processor time."""

from __future__ import annotations

import time

import pytest

from tests.celery.conftest import Arena
from tests.support import cpu_s, wait_until

pytestmark = pytest.mark.slow

AIM_PERCENT = 1.0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_an_idle_worker_uses_next_to_no_processor_time(arena: Arena, pool: str) -> None:
    worker = arena.worker(pool=pool, concurrency=4)
    assert arena.tasks.add.delay(1, 1).get(timeout=30) == 2

    began_s, before_s = time.monotonic(), cpu_s(worker.pid)
    wait_until(lambda: time.monotonic() > began_s + 6, what="six seconds", every_s=0.5)
    percent = (cpu_s(worker.pid) - before_s) / (time.monotonic() - began_s) * 100
    print(f"{pool}, -c 4, idle: {percent:.2f} % of a core")
    assert percent < 5 * AIM_PERCENT
