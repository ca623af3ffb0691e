"""A producer's process, as the beat's thread sees it."""

from __future__ import annotations

import tracemalloc

import pytest

from sqlqueue.beat.producers import Producer
from sqlqueue.beat.schedule import Tick
from sqlqueue_transport.clock import SYSTEM_CLOCK
from tests.support import wait_until


@pytest.fixture
def started(app):
    """Start a producer function; its process is ended after the test."""
    producers = []

    def start(function):
        app.producer(name="p", every="1s")(function)
        producer = Producer(app, app.entries["p"], limit_s=30, clock=SYSTEM_CLOCK)
        producers.append(producer)
        producer.start(Tick("p", 1000))
        return producer

    yield start
    for producer in producers:
        producer.end()


def test_what_was_said_already_is_not_copied_at_each_look(app, here, started):
    task = app.task(name="t")(lambda x: None)

    def much(tick):
        for _ in range(100):
            yield task.s("x" * 100_000)
        (here / "said").touch()
        wait_until(lambda: (here / "go").exists(), deadline_s=30)

    producer = started(much)

    def is_said():
        assert producer.finished() is None
        return (here / "said").exists()

    wait_until(is_said, deadline_s=20)
    assert producer.finished() is None  # takes the rest
    tracemalloc.start()
    try:
        assert producer.finished() is None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000
    (here / "go").touch()
    assert len(wait_until(producer.finished).publications) == 100
