"""Exchanges of an application's own: broadcasts to every worker, topics to whom they concern.

The publishers declare nothing, so these would fail on Redis: there Kombu (5.7) knows the type of an
exchange only in a process that declared it.
"""

from __future__ import annotations

import pytest

from tests.celery.conftest import Arena, ours_only
from tests.support import wait_until

pytestmark = [pytest.mark.slow, ours_only]


@pytest.fixture(autouse=True)
def _exchanges(arena: Arena) -> None:
    arena.settings["with_exchanges"] = True


def test_a_broadcast_is_run_by_each_worker_once(arena: Arena) -> None:
    for name, pool in (("one", "prefork"), ("two", "threads")):
        arena.worker(name, pool=pool)
    jobs = [
        arena.tasks.stamp.apply_async(exchange="everyone", routing_key="all").id for _ in range(5)
    ]
    arena.wait_trace(10)

    arena.wait_trace(id=arena.tasks.stamp.delay().id)
    ran = sorted((line["worker"], line["id"]) for line in arena.trace() if line["id"] in jobs)
    assert ran == sorted((f"{name}@arena", job) for name in ("one", "two") for job in jobs)


def test_a_topic_reaches_every_queue_whose_pattern_fits(arena: Arena) -> None:
    arena.worker()
    fits = {"report.weekly.eu": 1, "report": 1, "memo.daily": 1, "report.daily": 2, "memo": 0}
    for key in fits:
        arena.tasks.stamp.apply_async((key,), exchange="papers", routing_key=key)
    arena.wait_trace(sum(fits.values()))

    arena.wait_trace(id=arena.tasks.stamp.delay("last").id)
    wait_until(lambda: len(arena.trace()) == sum(fits.values()) + 1, what="no more runs than that")
    labels = [line["label"] for line in arena.trace()]
    assert {key: labels.count(key) for key in fits} == fits
