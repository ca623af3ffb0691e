"""Events: who listens sees every step of a job, whatever process it happens in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.celery.conftest import Arena
from tests.support import wait_until

pytestmark = pytest.mark.slow


@contextmanager
def listening(arena: Arena) -> Iterator[list[dict[str, Any]]]:
    """Collect all events while the block runs."""
    events: list[dict[str, Any]] = []
    with arena.app.connection_for_read() as connection:
        receiver = arena.app.events.Receiver(connection, handlers={"*": events.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": True})
        thread.start()
        try:
            # Each living worker is asked for a heartbeat once the listener's queue is bound.
            wait_until(lambda: events, deadline_s=30, what="a first event")
            yield events
        finally:
            receiver.should_stop = True
            thread.join(timeout=30)
            assert not thread.is_alive()


def types_of(events: list[dict[str, Any]], job: str) -> list[str]:
    return [event["type"] for event in list(events) if event.get("uuid") == job]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_listener_sees_each_job_sent_received_started_and_succeeded(
    arena: Arena, pool: str
) -> None:
    arena.settings["task_send_sent_event"] = True
    arena.worker("worker", "-E", pool=pool)
    with listening(arena) as events:
        jobs = [arena.tasks.add.delay(number, 1).id for number in range(10)]
        for job in jobs:
            wait_until(lambda job=job: len(types_of(events, job)) == 4, what="four events")
    wanted = ["task-received", "task-sent", "task-started", "task-succeeded"]
    assert [sorted(types_of(events, job)) for job in jobs] == [wanted] * 10


def test_two_listeners_see_the_same_events(arena: Arena) -> None:
    arena.worker("worker", "-E")
    with listening(arena) as first, listening(arena) as second:
        job = arena.tasks.add.delay(1, 1).id
        for events in (first, second):
            wait_until(
                lambda events=events: "task-succeeded" in types_of(events, job), what="the end"
            )
        assert types_of(first, job) == types_of(second, job)


def test_a_worker_tells_that_it_came_and_goes(arena: Arena) -> None:
    arena.worker("first")
    with listening(arena) as events:
        arena.worker("second").signal(15)
        for wanted in ("worker-online", "worker-offline"):
            wait_until(
                lambda wanted=wanted: (
                    (wanted, "second@arena")
                    in [(event["type"], event["hostname"]) for event in list(events)]
                ),
                deadline_s=30,
                what=wanted,
            )
